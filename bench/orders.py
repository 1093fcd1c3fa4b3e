"""The orders file into Postgres: through a route, and by the tools that people would use instead. Run by :mod:`bench.worker`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus_assets import Contract, DropOff, Field, PickUp, Route, Table, TextFile, Transform

WARM_UP_ROWS = 1_000
CURRENCIES = ("EUR", "USD", "GBP", "CHF")

ORDERS = Contract(
    (
        Field("order_id", required=True, unique=True, pattern=r"^O-\d{8}$"),
        Field("customer_id", "integer", required=True, minimum=1),
        Field("sku", required=True),
        Field("quantity", "integer", required=True, minimum=1, maximum=1_000),
        Field("unit_price", "decimal(10,2)", required=True, minimum="0"),
        Field("currency", required=True, allowed=CURRENCIES),
        Field("ordered_at", "timestamptz", required=True),
        Field("note", max_length=200),
    )
)
PRICED = Contract(
    (
        Field("order_id", required=True, unique=True),
        Field("customer_id", "integer", required=True),
        Field("sku", required=True),
        Field("quantity", "integer", required=True),
        Field("amount", "decimal(14,2)", required=True, minimum="0"),
        Field("currency", required=True, allowed=CURRENCIES),
        Field("ordered_at", "timestamptz", required=True),
        Field("note"),
    )
)
PRICE = """SELECT order_id, customer_id, sku, quantity, CAST(quantity * unit_price AS DECIMAL(14,2)) AS amount, currency, ordered_at, note
FROM orders"""

COLUMNS = "order_id text NOT NULL, customer_id bigint NOT NULL, sku text NOT NULL, quantity bigint NOT NULL, {price} NOT NULL, \
currency text NOT NULL, ordered_at timestamptz NOT NULL, note text"
PRICED_COLUMNS, RAW_COLUMNS = COLUMNS.format(price="amount numeric(14,2)"), COLUMNS.format(price="unit_price numeric(14,2)")
"""Equal tables: the same number of columns, types and constraints for the route and for the bare tools."""


def route(name: str, table: str, key: str = "") -> Route:
    """One text file → contract → one SQL transform → contract → one table."""
    return Route(
        name=name,
        stops=(
            PickUp("orders", TextFile(name, "*.csv"), ORDERS),
            Transform("priced", PRICE, PRICED),
            DropOff("dropped", Table("warehouse", table, key=key or ()), of="priced"),
        ),
    )


def product(file: str, url: str, table: str, key: str, home: str) -> Callable[[], None]:
    """The route on the whole file, after a trip with a few rows into a table of its own (``warm``, as ``table``).

    As a warm worker drives it in production: depot and Dagster's storage in Postgres too.
    """
    import logging

    from bench.driven import job, on_postgres
    from resources.database import Database
    from resources.files import LocalFiles

    few = Path(home) / "few"
    few.mkdir()
    with open(file, encoding="utf-8") as whole:
        (few / "few.csv").write_text("".join(line for line, _ in zip(whole, range(WARM_UP_ROWS), strict=False)))
    warehouse = Database(url=url)
    logging.disable(logging.INFO)  # a run's events are kept in Dagster's storage; on a console they are for people
    place, instance = Path(home) / "bus", on_postgres(url, Path(home) / "dagster")
    job(route("warm_up", "warm", key), {"warm_up": LocalFiles(root=str(few)), "warehouse": warehouse}, place, instance, url)()
    systems = {"whole": LocalFiles(root=str(Path(file).parent)), "warehouse": warehouse}
    return job(route("whole", table, key), systems, place, instance, url)


def dlt_merge(file: str, url: str, table: str, home: str) -> Callable[[], None]:
    """dlt from Arrow, write disposition merge, as its documentation says is the fast way."""
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": home, "RUNTIME__LOG_LEVEL": "ERROR"}
    import dlt
    import pyarrow as pa
    import pyarrow.csv as arrow_csv

    options = arrow_csv.ConvertOptions(
        column_types={"unit_price": pa.decimal128(14, 2), "ordered_at": pa.timestamp("us", "UTC")}, strings_can_be_null=True
    )

    @dlt.resource(name=table, write_disposition="merge", primary_key="order_id")
    def orders() -> Any:
        with arrow_csv.open_csv(file, arrow_csv.ReadOptions(block_size=1 << 24), convert_options=options) as batches:
            for batch in batches:
                yield pa.Table.from_batches([batch])

    destination = dlt.destinations.postgres(url.replace("+psycopg", ""))
    pipeline = dlt.pipeline("bench", destination=destination, dataset_name="dlt", pipelines_dir=home)

    def load() -> None:
        pipeline.run(orders()).raise_on_failed_jobs()

    return load


def pandas_to_sql(file: str, url: str, table: str) -> Callable[[], None]:
    """``read_csv`` and ``to_sql``, in chunks so that it fits; no merge, nothing checked."""
    import pandas as pd
    import sqlalchemy as sa

    engine = sa.create_engine(url)
    engine.connect().close()

    def load() -> None:
        with engine.begin() as connection:
            for chunk in pd.read_csv(file, parse_dates=["ordered_at"], chunksize=100_000):
                chunk.to_sql(table, connection, if_exists="append", index=False)

    return load
