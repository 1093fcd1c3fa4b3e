"""Made-up input, the same bytes on every machine, generated once into a cache directory."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

CHUNK_ROWS = 1_000_000
CURRENCIES = ("EUR", "USD", "GBP")
NOTES = ("", "gift", "call, before noon", "fragile", 'leave it with "Kim"', "second floor, the blue door behind the yard")
FIRST_INSTANT = np.datetime64("2024-01-01T00:00:00")
YEAR_SECONDS = 31_536_000
COUNTRIES = ("DE", "FR", "PL", "US")


def cache() -> Path:
    """Where generated files are kept: BUS_BENCH_CACHE, default ``.bus/bench``."""
    folder = Path(os.environ.get("BUS_BENCH_CACHE") or ".bus/bench").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def orders_file(rows: int) -> Path:
    """A CSV with a header and ``rows`` orders of 8 columns, in a directory of its own; ``order_id`` is unique."""
    folder = cache() / f"orders-{rows}"
    path = folder / "orders.csv"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        unfinished = folder / "orders.part"
        with unfinished.open("wb") as file:
            for start in range(0, rows, CHUNK_ROWS):
                part = folder / "chunk"
                _write_csv(_orders(start, min(CHUNK_ROWS, rows - start)), part, header=start == 0)
                file.write(part.read_bytes())
                part.unlink()
        unfinished.rename(path)
    return path


def catalog_file(rows: int) -> Path:
    """An XML feed of ``rows`` products: an attribute, five short texts, a nested one."""
    folder = cache() / f"catalog-{rows}"
    path = folder / "catalog.xml"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        unfinished = folder / "catalog.part"
        with unfinished.open("w", encoding="utf-8") as file:
            file.write('<?xml version="1.0" encoding="UTF-8"?>\n<catalog>\n')
            file.writelines(_product(number) for number in range(rows))
            file.write("</catalog>\n")
        unfinished.rename(path)
    return path


def _orders(start: int, rows: int) -> pa.Table:
    made = np.random.default_rng((1, start))
    ordered = FIRST_INSTANT + made.integers(0, YEAR_SECONDS, rows).astype("timedelta64[s]")
    return pa.table(
        {
            "order_id": [f"O-{number:08d}" for number in range(start, start + rows)],
            "customer_id": made.integers(1, 50_000, rows),
            "sku": pa.DictionaryArray.from_arrays(made.integers(0, 9_999, rows), [f"SKU-{number:05d}" for number in range(9_999)]),
            "quantity": made.integers(1, 20, rows),
            "unit_price": pa.array(made.integers(100, 99_999, rows)).cast(pa.decimal128(19, 0)),
            "currency": pa.DictionaryArray.from_arrays(made.integers(0, len(CURRENCIES), rows), list(CURRENCIES)),
            "ordered_at": pa.array(np.datetime_as_string(ordered)),
            "note": pa.DictionaryArray.from_arrays(made.integers(0, len(NOTES), rows), list(NOTES)),
        }
    )


def _write_csv(made: pa.Table, path: Path, *, header: bool) -> None:
    """Quotes only where they are needed, which Arrow's own writer cannot do; '' stands for no note."""
    with duckdb.connect() as connection:
        connection.register("made", made)
        connection.execute(
            "COPY (SELECT order_id, customer_id, sku, quantity, (unit_price / 100)::DECIMAL(10, 2) AS unit_price, currency,"
            f" ordered_at || 'Z' AS ordered_at, nullif(note, '') AS note FROM made) TO '{path}' (FORMAT csv, HEADER {header})"
        )


def _product(number: int) -> str:
    return (
        f'  <product id="P-{number:07d}">\n    <name>Product &amp; part {number}</name>\n'
        f'    <price currency="{CURRENCIES[number % 3]}">{number % 9_973}.{number % 100:02d}</price>\n'
        f"    <stock>{number % 500}</stock>\n    <origin><country>{COUNTRIES[number % 4]}</country></origin>\n"
        f"    <updated>2024-{number % 12 + 1:02d}-{number % 28 + 1:02d}</updated>\n  </product>\n"
    )
