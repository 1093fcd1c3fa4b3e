"""The database seam, the same on Postgres (COPY), SQLite and MariaDB (portable SQL)."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from resources.database import Database
from resources.errors import Misconfigured, Poison, Refused, Transient
from resources.receipts import AlreadySettled, Applied
from resources.tables import Column, TablePlan, Unfit

ORDERS = pa.schema([("order_id", pa.string()), ("quantity", pa.int64()), ("price", pa.decimal128(12, 2)), ("note", pa.string())])
COLUMNS = tuple(ORDERS.names)
SECRET = "4711-very-secret"


@pytest.fixture(params=["postgres", "sqlite", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_database_url")


@pytest.fixture
def database(url: str) -> Database:
    return Database(url=url, lock_timeout_seconds=20)


@pytest.fixture
def orders(database: Database) -> Database:
    """A database with an empty table of orders."""
    database.prepare([plan("orders", ORDERS, key=("order_id",))])
    return database


def plan(name: str, schema: pa.Schema, *, key: tuple[str, ...] = (), create: bool = True) -> TablePlan:
    return TablePlan(name, tuple(Column(field.name, field.type, field.name not in key) for field in schema), key, create)


def order(order_id: str | None, quantity: int | None = 1, price: str | None = "1.00", note: str | None = "") -> dict[str, Any]:
    return {"order_id": order_id, "quantity": quantity, "price": None if price is None else Decimal(price), "note": note}


def batch(*rows: dict[str, Any], schema: pa.Schema = ORDERS) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=schema)


def append(database: Database, *rows: dict[str, Any], table: str = "orders", schema: pa.Schema = ORDERS) -> Applied:
    with database.transaction() as transaction:
        return transaction.append(table, schema.names, [batch(*rows, schema=schema)])


def rows_of(database: Database, table: str = "orders", by: str = "order_id") -> list[dict[str, Any]]:
    found = [row for records in database.read(f"SELECT * FROM {table} ORDER BY {by}", name=table) for row in records.batch.to_pylist()]
    return [{name: Decimal(value) if name == "price" and value is not None else value for name, value in row.items()} for row in found]


def run_sql(url: str, *statements: str) -> None:
    if url.startswith("sqlite"):
        Path(make_url(url).database or "").parent.mkdir(exist_ok=True)
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def is_postgres(url: str) -> bool:
    return url.startswith("postgresql")


EVERYTHING = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("whole", pa.int64()),
        ("exact", pa.decimal128(38, 10)),
        ("instant", pa.timestamp("us", "UTC")),
        ("clock", pa.timestamp("us")),
        ("day", pa.date32()),
        ("hour", pa.time64("us")),
        ("flag", pa.bool_()),
        ("double", pa.float64()),
        ("bytes", pa.binary()),
        ("items", pa.list_(pa.int64())),
        ("parts", pa.struct([("a", pa.string()), ("b", pa.int64())])),
    ]
)
TEXTS = [
    "",
    "NULL",
    "\\N",
    "\\.",
    "a\nb",
    "a\r\nb",
    "\r",
    '"',
    '""',
    "it's",
    "back\\slash",
    "tab\t",
    ",",
    "  spaced ",
    "żółć 漢字 🚌",
    "%s %(x)s :p",
]


def everything() -> pa.RecordBatch:
    moment = dt.datetime(2024, 2, 29, 23, 59, 59, 999999)
    full = {
        "whole": -(2**63),
        "exact": Decimal("-1234567890123456789012345678.0123456789"),
        "instant": moment.replace(tzinfo=dt.UTC),
        "clock": moment,
        "day": dt.date(2024, 2, 29),
        "hour": dt.time(23, 59, 59, 999999),
        "flag": False,
        "double": 0.1,
        "bytes": bytes(range(256)),
        "items": [1, None, 3],
        "parts": {"a": 'quo"te', "b": 2},
    }
    rows: list[dict[str, Any]] = [{"id": 0, "text": None}]
    rows += [{"id": at, "text": text, **full} for at, text in enumerate(TEXTS, start=1)]
    rows.append({"id": 99, "text": "small", "exact": Decimal("0.0000000001"), "flag": True, "double": 1e300, "bytes": b"", "items": []})
    return pa.RecordBatch.from_pylist(rows, schema=EVERYTHING)


def as_written(read: pa.RecordBatch, schema: pa.Schema) -> list[dict[str, Any]]:
    """What was read, in the types that were written: SQLite gives text for most."""
    columns: dict[str, list[Any]] = {}
    for field in schema:
        column = read.column(field.name)
        if pa.types.is_nested(field.type):
            columns[field.name] = [None if value is None else json.loads(value) for value in column.to_pylist()]
        elif pa.types.is_time(field.type) and pa.types.is_string(column.type):
            columns[field.name] = [None if value is None else dt.time.fromisoformat(value) for value in column.to_pylist()]
        else:
            columns[field.name] = column.cast(field.type).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


# --- values -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_every_type_comes_back_as_it_was_written(database: Database, mode: str) -> None:
    written = everything()
    database.prepare([plan("things", EVERYTHING, key=("id",))])
    with database.transaction() as transaction:
        if mode == "append":
            transaction.append("things", EVERYTHING.names, [written])
        else:
            transaction.upsert("things", EVERYTHING.names, ["id"], [written])
    (read,) = database.read("SELECT * FROM things ORDER BY id", name="things")
    assert as_written(read.batch, EVERYTHING) == written.to_pylist()


def test_a_table_that_was_created_fits_the_plan_it_was_created_from(database: Database) -> None:
    planned = [plan("things", EVERYTHING, key=("id", "text"))]
    database.prepare(planned)
    database.prepare(planned)


def test_names_may_be_anything(database: Database) -> None:
    names = ["select", "a b", 'quo"te', "per%cent", "co:lon", "br(ack)et", "żółć", "back\\slash", "Upper", "it's"]
    schema = pa.schema([(name, pa.string()) for name in names])
    table = '"wei""rd t.able % żółć"'
    database.prepare([plan(table, schema, key=("select", "a b"))])
    first, second = ({name: f"{name}{at}" for name in names} for at in (1, 2))
    with database.transaction() as transaction:
        assert transaction.append(table, names, [batch(first, schema=schema)]) == Applied(inserted=1)
        upserted = transaction.upsert(table, names, ["select", "a b"], [batch(first, second, schema=schema)])
        assert upserted == Applied(inserted=1, updated=1)
        assert transaction.count_matching(table, ["select", "a b"], [batch(first, second, schema=schema)]) == 2
        assert transaction.replace(table, names, {'quo"te': 'quo"te1'}, [batch(first, schema=schema)]) == Applied(inserted=1, deleted=1)
        assert transaction.delete(table, ["select", "a b"], [batch(second, schema=schema)]) == Applied(deleted=1)
    (values,) = database.column_keys(table, 'quo"te')
    assert values.to_pylist() == ['quo"te1']


@pytest.mark.parametrize("name", ["x" * 64, "ż" * 32, "a.b.c", "", "a.", '"open'])
def test_names_that_no_database_would_keep_are_refused(database: Database, name: str) -> None:
    with pytest.raises(Misconfigured, match="name"):
        database.prepare([plan(name, ORDERS)])


# --- preparing --------------------------------------------------------------------------------------------------------------------


def test_all_differences_of_all_tables_are_in_one_error(database: Database, url: str) -> None:
    run_sql(url, "CREATE TABLE orders (order_id VARCHAR(20) NULL, quantity VARCHAR(10), price INTEGER, must VARCHAR(5) NOT NULL)")
    schema = pa.schema([*ORDERS, ("day", pa.date32())])
    with pytest.raises(Misconfigured) as caught:
        database.prepare([plan("orders", schema, key=("order_id",), create=False), plan("new", ORDERS), plan("gone", ORDERS, create=False)])
    said = str(caught.value)
    for part in ("'price' is INTEGER", "'note' is missing", "'day' is missing", "'must' must have a value", "exactly (order_id)"):
        assert part in said
    assert "'gone' does not exist" in said
    assert "CREATE TABLE" in said
    assert "'quantity'" not in said, "text takes whole numbers"
    with pytest.raises(Misconfigured, match="new"):
        list(database.read("SELECT * FROM new", name="new"))


def test_comparing_tells_what_preparing_would_and_makes_nothing(database: Database, url: str) -> None:
    wanted = [plan("new", ORDERS), plan("orders", ORDERS, key=("order_id",), create=False)]
    with pytest.raises(Unfit, match="'orders' does not exist") as caught:
        database.compare(wanted)
    assert caught.value.places == (1,)
    with pytest.raises(Unfit) as prepared:
        database.prepare(wanted)
    assert str(caught.value) == str(prepared.value)
    run_sql(url, str(caught.value).split("or run: ")[1])
    database.compare(wanted)
    with pytest.raises(Misconfigured, match="new"):
        list(database.read("SELECT * FROM new", name="new"))


def test_a_schema_that_is_not_there_is_told_before_a_table_is_made_in_it(postgres_database_url: str) -> None:
    with pytest.raises(Unfit, match=r"table 'nowhere\.new': there is no schema 'nowhere' to make it in; create that"):
        Database(url=postgres_database_url).compare([plan("nowhere.new", ORDERS)])


def test_comparing_makes_no_database(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "none.db"
    Database(url=f"sqlite:///{file}").compare([plan("new", ORDERS)])
    with pytest.raises(Unfit, match=rf"{file} cannot take the rows: table 'old' does not exist"):
        Database(url=f"sqlite:///{file}").compare([plan("old", ORDERS, create=False)])
    assert not file.parent.exists()


def test_the_statement_that_is_shown_makes_a_table_that_fits(database: Database, url: str) -> None:
    wanted = plan("orders", EVERYTHING, key=("id",), create=False)
    with pytest.raises(Misconfigured, match="or run: CREATE TABLE") as caught:
        database.prepare([wanted])
    run_sql(url, str(caught.value).split("or run: ")[1].replace("%", "%%"))
    database.prepare([wanted])


def test_a_unique_index_serves_as_key_and_defaults_need_no_value(database: Database, url: str) -> None:
    run_sql(
        url,
        "CREATE TABLE orders (order_id VARCHAR(20) NOT NULL, line INTEGER NOT NULL, kind VARCHAR(5) NOT NULL DEFAULT 'x', quantity BIGINT)",
        "CREATE UNIQUE INDEX one_line ON orders (line, order_id)",
    )
    schema = pa.schema([("order_id", pa.string()), ("line", pa.int64()), ("quantity", pa.int64())])
    database.prepare([plan("orders", schema, key=("order_id", "line"), create=False)])
    lines = batch(*({"order_id": "a", "line": at, "quantity": at} for at in (1, 2, 2)), schema=schema)
    with database.transaction() as transaction:
        done = transaction.upsert("orders", schema.names, ["order_id", "line"], [lines])
    assert done == Applied(inserted=2, folded=1)
    with pytest.raises(Misconfigured, match=r"exactly \(order_id\)"):
        database.prepare([plan("orders", schema, key=("order_id",), create=False)])


def test_two_processes_may_prepare_the_same_tables_at_once(url: str) -> None:
    def prepare(_: int) -> None:
        Database(url=url).prepare([plan("orders", ORDERS, key=("order_id",))])

    with ThreadPoolExecutor(4) as many:
        list(many.map(prepare, range(4)))
    assert append(Database(url=url), order("a")) == Applied(inserted=1)


# --- loading ----------------------------------------------------------------------------------------------------------------------


def test_append_takes_batches_one_by_one_and_skips_empty_ones(orders: Database) -> None:
    with orders.transaction() as transaction:
        done = transaction.append("orders", COLUMNS, (batch(*made) for made in ([order("a")], [], [order("b"), order("c")])))
        assert done == Applied(inserted=3)
        assert transaction.append("orders", COLUMNS, []) == Applied()
        assert transaction.count_rows("orders") == 3


def test_upsert_lets_the_last_row_of_a_key_win_and_leaves_other_columns(orders: Database) -> None:
    append(orders, order("a", note="kept"), order("z"))
    few = ("quantity", "order_id")
    schema = pa.schema([("quantity", pa.int64()), ("order_id", pa.string())])
    batches = [[("b", 1), ("a", 2), ("b", 3)], [("a", 4), ("c", 5), ("a", None)]]
    with orders.transaction() as transaction:
        rows = (batch(*({"order_id": key, "quantity": n} for key, n in made), schema=schema) for made in batches)
        assert transaction.upsert("orders", few, ["order_id"], rows) == Applied(inserted=2, updated=1, folded=3)
        assert transaction.upsert("orders", few, ["order_id"], []) == Applied()
    assert [(row["order_id"], row["quantity"], row["note"]) for row in rows_of(orders)] == [
        ("a", None, "kept"),
        ("b", 3, None),
        ("c", 5, None),
        ("z", 1, ""),
    ]


def test_an_older_row_does_not_replace_a_newer_one(orders: Database) -> None:
    append(orders, order("new", 5), order("old", 5), order("same", 5), order("unknown", None), order("kept", 5))
    given = [order(key, quantity) for key, quantity in (("new", 4), ("old", 6), ("unknown", 1), ("kept", None), ("fresh", None))]
    given.append(order("same", 5, note="again"))
    with orders.transaction() as transaction:
        done = transaction.upsert("orders", COLUMNS, ["order_id"], [batch(*given)], newest="quantity")
    assert done == Applied(inserted=1, updated=3, folded=2)
    there = {row["order_id"]: (row["quantity"], row["note"]) for row in rows_of(orders)}
    assert there == {
        "new": (5, ""),
        "old": (6, ""),
        "same": (5, "again"),
        "unknown": (1, ""),
        "kept": (5, ""),
        "fresh": (None, ""),
    }


def test_of_one_load_the_newest_row_of_a_key_counts_and_of_equal_ones_the_last(orders: Database) -> None:
    quantities = ((2, "a"), (3, "b"), (3, "c"), (1, "d"), (None, "e"))
    given = [order("a", quantity, note=note) for quantity, note in quantities] + [order("n", None), order("n", 1)]
    with orders.transaction() as transaction:
        done = transaction.upsert("orders", COLUMNS, ["order_id"], [batch(*given)], newest="quantity")
    assert done == Applied(inserted=2, folded=5)
    assert [(row["quantity"], row["note"]) for row in rows_of(orders)] == [(3, "c"), (1, "")]


def as_moment(value: Any) -> dt.datetime:
    """SQLite has no type for it: there it is text."""
    return (dt.datetime.fromisoformat(value) if isinstance(value, str) else value).replace(tzinfo=dt.UTC)


def test_times_are_compared_as_times_with_and_without_fractions(database: Database) -> None:
    kinds = pa.schema([("id", pa.string()), ("at", pa.timestamp("us", "UTC"))])
    database.prepare([plan("moments", kinds, key=("id",))])
    micros = (0, 1, 100_000, 120_000, 1_000_000)
    moments = [dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC) + dt.timedelta(microseconds=micro) for micro in micros]
    pairs = {f"{number}": pair for number, pair in enumerate(itertools.permutations(moments, 2))}
    for at in (0, 1):
        with database.transaction() as transaction:
            rows = [batch(*({"id": key, "at": pair[at]} for key, pair in pairs.items()), schema=kinds)]
            transaction.upsert("moments", kinds.names, ["id"], rows, newest="at")
    found = [row for records in database.read("SELECT * FROM moments", name="moments") for row in records.batch.to_pylist()]
    assert {row["id"]: as_moment(row["at"]) for row in found} == {key: max(pair) for key, pair in pairs.items()}


SECONDS = {"postgresql": "TIMESTAMPTZ(0)", "mysql": "DATETIME", "mariadb": "DATETIME"}


def test_a_fraction_of_a_second_that_the_column_would_round_is_refused(database: Database, url: str) -> None:
    kind = SECONDS.get(make_url(url).get_backend_name())
    if kind is None:
        pytest.skip("SQLite keeps times as text")
    run_sql(url, f"CREATE TABLE moments (id VARCHAR(9) PRIMARY KEY, at {kind})")
    kinds = pa.schema([("id", pa.string()), ("at", pa.timestamp("us", "UTC"))])
    database.prepare([plan("moments", kinds, create=False)])
    whole, half = (dt.datetime(2026, 1, 2, 3, 4, 5, micro, dt.UTC) for micro in (0, 500_000))
    for mode in ("append", "upsert"):
        more = {"key": ["id"]} if mode == "upsert" else {}
        with database.transaction() as transaction:
            getattr(transaction, mode)("moments", kinds.names, batches=[batch({"id": mode, "at": whole}, schema=kinds)], **more)
        with pytest.raises(Poison, match="'at' keeps 0 digits of a second"), database.transaction() as transaction:
            getattr(transaction, mode)("moments", kinds.names, batches=[batch({"id": mode, "at": half}, schema=kinds)], **more)


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_blanks_that_the_column_would_cut_off_are_refused(database: Database, url: str, mode: str) -> None:
    characters = " CHARACTER SET utf8mb4" if url.startswith(("mysql", "mariadb")) else ""
    run_sql(url, f"CREATE TABLE texts (id VARCHAR(3){characters} PRIMARY KEY)")
    kinds = pa.schema([("id", pa.string())])
    more = {"key": ["id"]} if mode == "upsert" else {}
    with database.transaction() as transaction:
        getattr(transaction, mode)("texts", ["id"], batches=[batch({"id": "żół"}, {"id": "ab "}, schema=kinds)], **more)
    if url.startswith("sqlite"):
        keeps_any = contextlib.nullcontext()
    else:
        keeps_any = pytest.raises(Poison, match="table 'texts': column 'id' keeps 3 characters and would cut off blanks")
    with keeps_any, database.transaction() as transaction:
        getattr(transaction, mode)("texts", ["id"], batches=[batch({"id": "c"}, {"id": "abc  "}, schema=kinds)], **more)
    if not url.startswith("sqlite"):
        with pytest.raises(Poison, match="too long"), database.transaction() as transaction:
            getattr(transaction, mode)("texts", ["id"], batches=[batch({"id": "abcd "}, schema=kinds)], **more)


def test_a_zero_stays_one_in_a_column_that_counts_by_itself(mariadb_database_url: str) -> None:
    run_sql(mariadb_database_url, "CREATE TABLE things (id BIGINT AUTO_INCREMENT PRIMARY KEY, order_id VARCHAR(9))")
    database, kinds = Database(url=mariadb_database_url), pa.schema([("id", pa.int64()), ("order_id", pa.string())])
    zero = [batch({"id": 0, "order_id": "zero"}, schema=kinds)]
    with database.transaction() as transaction:
        assert transaction.append("things", kinds.names, zero) == Applied(inserted=1)
        assert transaction.upsert("things", kinds.names, ["id"], zero) == Applied(updated=1)
        assert transaction.append("things", ["order_id"], zero) == Applied(inserted=1)
    assert [row["id"] for row in rows_of(database, "things", by="id")] == [0, 1]
    (mode,) = database.read("SELECT @@sql_mode AS mode", name="mode")
    assert {"ERROR_FOR_DIVISION_BY_ZERO", "STRICT_ALL_TABLES"} <= set(mode.batch.to_pylist()[0]["mode"].split(","))


@pytest.mark.parametrize("kind", ["VARCHAR(768) CHARACTER SET utf8mb4", "VARCHAR(3072) CHARACTER SET latin1", "VARBINARY(3070)", "TEXT"])
def test_a_key_may_be_as_long_as_mariadb_indexes(mariadb_database_url: str, kind: str) -> None:
    run_sql(mariadb_database_url, f"CREATE TABLE things (id {kind} NOT NULL UNIQUE, n BIGINT)")
    is_binary, database = "BINARY" in kind, Database(url=mariadb_database_url)
    kinds = pa.schema([("id", pa.binary() if is_binary else pa.string()), ("n", pa.int64())])
    keys = [key.encode() if is_binary else key for key in ("k" * 768, "k" * 767, "k" * 768)]
    database.compare([plan("things", kinds, key=("id",), create=False)])
    given = [batch(*({"id": key, "n": n} for n, key in enumerate(keys)), schema=kinds)]
    with database.transaction() as transaction:
        assert transaction.upsert("things", kinds.names, ["id"], given) == Applied(inserted=2, folded=1)
        assert transaction.accumulate("things", kinds.names, ["id"], ["n"], given) == Applied(updated=2, folded=1)
        assert transaction.count_matching("things", ["id"], given) == 2
    assert [row["n"] for row in rows_of(database, "things", by="n")] == [2, 4]


def test_what_mariadb_says_of_the_temporary_table_is_not_told(mariadb_database_url: str) -> None:
    run_sql(mariadb_database_url, "CREATE TABLE texts (id VARCHAR(3) CHARACTER SET latin1 PRIMARY KEY)")
    given = batch({"id": "żół"}, schema=pa.schema([("id", pa.string())]))
    said = r"^upserting into table 'texts' in [^`]*\(for column `id`\)$"
    with pytest.raises(Poison, match=said), Database(url=mariadb_database_url).transaction() as transaction:
        transaction.upsert("texts", ["id"], ["id"], [given])


def test_numbers_are_not_compared_in_a_column_of_text(database: Database, url: str) -> None:
    run_sql(url, "CREATE TABLE things (id VARCHAR(9) PRIMARY KEY, n VARCHAR(20))")
    columns = (Column("id", pa.string(), False), Column("n", pa.int64()))
    database.prepare([TablePlan("things", columns, ("id",))])
    with pytest.raises(Misconfigured, match=r"'n' is VARCHAR.*in which 9 is newer than 10"):
        database.prepare([TablePlan("things", columns, ("id",), newest="n")])


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.decimal128(12, 2)])
def test_numbers_are_not_added_in_a_column_of_text(database: Database, url: str, kind: pa.DataType) -> None:
    run_sql(url, "CREATE TABLE things (id VARCHAR(9) PRIMARY KEY, n VARCHAR(20))")
    summed = TablePlan("things", (Column("id", pa.string(), False), Column("n", kind)), ("id",), sums=("n",))
    if url.startswith("sqlite") and pa.types.is_decimal(kind):
        database.compare([summed])  # text is how SQLite keeps decimals, and they are added exactly
        return
    loses = url.startswith("sqlite") and pa.types.is_floating(kind)  # whether it is added or not
    said = "SQLite keeps 15 digits" if loses else "in which 5 and 6 add up to 56; make it a number, or take it out of sums="
    with pytest.raises(Unfit, match=rf"'n' is VARCHAR.*{said}"):
        database.compare([summed])


@pytest.mark.parametrize("at_once", [True, False])
def test_a_sum_that_overflows_is_poison_and_nothing_is_written(orders: Database, at_once: bool) -> None:
    most, more = order("a", 2**63 - 1), order("a", 1)
    if not at_once:
        append(orders, most)
    with pytest.raises(Poison, match=r"out of its( column's)? range"), orders.transaction() as transaction:
        transaction.accumulate("orders", COLUMNS, ["order_id"], ("quantity",), [batch(*([most, more] if at_once else [more]))])
    assert rows_of(orders) == ([] if at_once else [most])


def test_a_table_may_be_called_as_temporary_ones_are(database: Database) -> None:
    names = ["bus_load_1", "bus_load_2"]
    database.prepare([plan(name, ORDERS, key=("order_id",)) for name in names])
    with database.transaction() as transaction:
        for name in (*names, *names):
            transaction.upsert(name, COLUMNS, ["order_id"], [batch(order("a"))])
    assert [len(rows_of(database, name)) for name in names] == [1, 1]


def test_upsert_of_keys_alone_counts_every_row(orders: Database) -> None:
    append(orders, order("a"))
    with orders.transaction() as transaction:
        done = transaction.upsert("orders", ["order_id"], ["order_id"], [batch(order("a"), order("b"), order("b"))])
    assert done == Applied(inserted=1, updated=1, folded=1)


def test_keys_that_differ_by_case_or_a_trailing_space_are_different(orders: Database) -> None:
    with orders.transaction() as transaction:
        done = transaction.upsert("orders", COLUMNS, ["order_id"], [batch(order("a"), order("A"), order("a "), order("ä"))])
    assert done == Applied(inserted=4)


def test_accumulate_adds_exactly_and_counts_null_as_zero(orders: Database) -> None:
    append(orders, order("a", 1, "0.10", "old"), order("n", None, None), order("o", None, None))
    with orders.transaction() as transaction:
        given = [
            batch(order("a", 2, "0.20"), order("b", 5, "1.01", "first")),
            batch(order("a", None, "0.30", "new"), order("b", 6, "2.02", "last"), order("m", None, None), order("n", 7, None)),
        ]
        done = transaction.accumulate("orders", COLUMNS, ["order_id"], ("quantity", "price"), given)
    assert done == Applied(inserted=2, updated=2, folded=2)
    summed = [order("a", 3, "0.60", "new"), order("b", 11, "3.03", "last"), order("m", 0, "0"), order("n", 7, "0")]
    assert rows_of(orders) == [*summed, order("o", None, None)]


def test_replace_deletes_its_scope_and_nothing_else(orders: Database) -> None:
    append(orders, order("a", 1, note="x"), order("b", 1, note="y"), order("c", 2, note="x"), order("d", 1, note=None))
    with orders.transaction() as transaction:
        done = transaction.replace("orders", COLUMNS, {"quantity": "1", "note": "x"}, [batch(order("e", 1, note="x"))])
        assert done == Applied(inserted=1, deleted=1)
        assert transaction.replace("orders", COLUMNS, {"note": None}, []) == Applied(deleted=1)
    assert [row["order_id"] for row in rows_of(orders)] == ["b", "c", "e"]
    with orders.transaction() as transaction:
        assert transaction.replace("orders", COLUMNS, {}, [batch(order("z"))]) == Applied(inserted=1, deleted=3)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("exact", "-1234567890123456789012345678.0123456789"),
        ("instant", "2024-02-29T23:59:59.999999Z"),
        ("day", "2024-02-29"),
        ("flag", False),
    ],
)
def test_a_scope_finds_what_was_written_in_every_type(database: Database, column: str, value: Any) -> None:
    database.prepare([plan("things", EVERYTHING, key=("id",))])
    rows = everything()
    with database.transaction() as transaction:
        transaction.append("things", EVERYTHING.names, [rows])
        done = transaction.replace("things", EVERYTHING.names, {column: value}, [rows.slice(1, 2)])
    assert done == Applied(inserted=2, deleted=len(TEXTS))


def test_replace_refuses_rows_outside_its_scope_and_says_how_many(orders: Database) -> None:
    append(orders, order("a", 1))
    with pytest.raises(Refused, match="3 rows are outside"), orders.transaction() as transaction:
        outside = [batch(order("b", 1), order("c", 2)), batch(order("d", None), order("e", 3))]
        transaction.replace("orders", COLUMNS, {"quantity": 1}, outside)
    assert rows_of(orders) == [order("a", 1)]
    with pytest.raises(Misconfigured, match="scope names"), orders.transaction() as transaction:
        transaction.replace("orders", ["order_id"], {"quantity": 1}, [])
    with pytest.raises(Misconfigured, match="does not read as"), orders.transaction() as transaction:
        transaction.replace("orders", COLUMNS, {"quantity": "one"}, [batch(order("b", 1))])


CASELESS = {"sqlite": "TEXT COLLATE NOCASE", "mariadb": "VARCHAR(9) CHARACTER SET latin1", "postgresql": "VARCHAR(9)"}
REGIONS = pa.schema([("region", pa.string()), ("n", pa.int64())])


def test_replace_leaves_scopes_that_differ_by_case_or_a_blank(database: Database, url: str) -> None:
    run_sql(url, f"CREATE TABLE regions (region {CASELESS[make_url(url).get_backend_name()]}, n BIGINT)")
    with database.transaction() as transaction:
        for deleted in (0, 1):
            for n, region in enumerate(("EU", "eu", "EU ", "Eü")):
                given = [batch({"region": region, "n": n}, schema=REGIONS)]
                done = transaction.replace("regions", REGIONS.names, {"region": region}, given)
                assert done == Applied(inserted=1, deleted=deleted)
    assert [row["n"] for row in rows_of(database, "regions", by="n")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("backend", "kind", "kept", "given"),
    [
        ("mariadb", "CHAR(5)", "EU", "EU "),
        ("mariadb", "ENUM('EU')", "EU", "eu"),
        ("postgres", "CHAR(5)", "EU", "EU "),
    ],
)
def test_a_scope_that_the_table_does_not_keep_as_it_is_is_refused(
    request: pytest.FixtureRequest, backend: str, kind: str, kept: str, given: str
) -> None:
    url = request.getfixturevalue(f"{backend}_database_url")
    run_sql(url, f"CREATE TABLE regions (region {kind}, n BIGINT)")
    database = Database(url=url)
    for deleted in (0, 1):
        with database.transaction() as transaction:
            done = transaction.replace("regions", REGIONS.names, {"region": kept}, [batch({"region": kept, "n": 1}, schema=REGIONS)])
            assert done == Applied(inserted=1, deleted=deleted)
    said = r"'regions' does not keep the scope \(region\) as it is|'region' as they are declared"
    with pytest.raises((Misconfigured, Poison), match=said), database.transaction() as transaction:
        transaction.replace("regions", REGIONS.names, {"region": given}, [batch({"region": given, "n": 2}, schema=REGIONS)])
    assert [row["n"] for row in rows_of(database, "regions", by="n")] == [1]


def test_delete_takes_the_rows_of_the_keys(orders: Database) -> None:
    append(orders, *(order(key) for key in "abc"))
    with orders.transaction() as transaction:
        done = transaction.delete("orders", ["order_id"], [batch(order("a"), order("x")), batch(order("a"), order("c"))])
        assert done == Applied(deleted=2, folded=1)
        assert transaction.delete("orders", ["order_id"], []) == Applied()
    assert [row["order_id"] for row in rows_of(orders)] == ["b"]


def test_matching_keys_are_counted_once_each(orders: Database) -> None:
    append(orders, *(order(key) for key in "abc"))
    with orders.transaction() as transaction:
        assert transaction.count_matching("orders", ["order_id"], [batch(order("a"), order("x"), order("a")), batch(order("c"))]) == 2
        assert transaction.count_matching("orders", ["order_id"], []) == 0


def test_rows_without_a_key_or_a_column_are_refused(orders: Database) -> None:
    with pytest.raises(Poison, match="1 rows have no value in 'order_id'"), orders.transaction() as transaction:
        transaction.upsert("orders", COLUMNS, ["order_id"], [batch(order("a"), order(None))])
    with pytest.raises(Misconfigured, match="have no column"), orders.transaction() as transaction:
        transaction.append("orders", COLUMNS, [pa.RecordBatch.from_pydict({"order_id": ["a"]})])
    with pytest.raises(Misconfigured, match="has no column"), orders.transaction() as transaction:
        transaction.append("orders", ["order_id", "day"], [pa.RecordBatch.from_pydict({"order_id": ["a"], "day": ["x"]})])
    with pytest.raises(Misconfigured, match="there is no table 'nowhere'"), orders.transaction() as transaction:
        transaction.append("nowhere", COLUMNS, [batch(order("a"))])
    assert rows_of(orders) == []


def test_what_batches_raise_passes_unchanged_and_nothing_is_written(orders: Database) -> None:
    def breaks() -> Iterator[pa.RecordBatch]:
        yield batch(order("a"))
        raise LookupError("the staging area is gone")

    with pytest.raises(LookupError, match="staging area"), orders.transaction() as transaction:
        transaction.append("orders", COLUMNS, breaks())
    assert rows_of(orders) == []


# --- outcomes and receipts --------------------------------------------------------------------------------------------------------


def test_a_transaction_keeps_everything_or_nothing(orders: Database) -> None:
    def publish(attempt: int, *, fails: bool) -> None:
        with orders.transaction() as transaction:
            transaction.record_outcome("orders", "t1", attempt, "published", "run-1")
            assert transaction.record_receipts("orders", ["m1", "m2"], trip="t1", attempt=attempt) == ()
            done = transaction.append("orders", COLUMNS, [batch(order("a"))])
            transaction.record_applied("t1", "orders", "append", done)
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(1, fails=True)
    with orders.transaction(reading=True) as seen:
        assert (seen.published("t1"), seen.applied("t1"), seen.receipts("orders", ["m1", "m2"])) == (None, (), frozenset())
        assert seen.count_rows("orders") == 0
    publish(2, fails=False)
    with orders.transaction(reading=True) as seen:
        assert (seen.published("t1"), seen.outcome("t1", 2), seen.outcome("t1", 1)) == (2, "published", None)
        assert [(done.table, done.mode, done.rows) for done in seen.applied("t1")] == [("orders", "append", Applied(inserted=1))]
        assert seen.receipts("orders", ["m2", "m3"]) == {"m2"}
        assert seen.count_rows("orders") == 1


def test_it_tells_how_many_rows_all_trips_left_in_a_table(orders: Database) -> None:
    with orders.transaction() as transaction:
        assert transaction.rows_left_in("orders") == 0
        transaction.record_applied("t1", "orders", "append", Applied(inserted=3))
        transaction.record_applied("t1", "other", "append", Applied(inserted=5))
        transaction.record_applied("t2", "orders", "replace", Applied(inserted=1, deleted=2))
    with orders.transaction(reading=True) as seen:
        assert seen.rows_left_in("orders") == 2


@pytest.mark.parametrize("schema", ["Sales", 'sa"les', "sales: 2024", "select"])
def test_a_schema_may_be_called_anything(postgres_database_url: str, schema: str) -> None:
    run_sql(postgres_database_url, 'CREATE SCHEMA "' + schema.replace('"', '""') + '"')
    database = Database(url=postgres_database_url, schema_name=schema)
    database.prepare([plan("orders", ORDERS, key=("order_id",))])
    with database.transaction() as transaction:
        transaction.record_outcome("orders", "t1", 1, "published", "run")
        transaction.record_applied("t1", "orders", "upsert", transaction.upsert("orders", COLUMNS, ["order_id"], [batch(order("a"))]))
    with database.transaction(reading=True) as seen:
        assert (seen.published("t1"), seen.count_rows("orders"), seen.rows_left_in("orders")) == (1, 1, 1)
        assert [done.rows for done in seen.applied("t1")] == [Applied(inserted=1)]
    assert [piece.to_pylist() for piece in database.column_keys("orders", "order_id")] == [["a"]]


def test_an_attempt_is_settled_once(orders: Database) -> None:
    with orders.transaction() as transaction:
        transaction.record_outcome("orders", "t1", 1, "revoked", "run-1")
    with pytest.raises(AlreadySettled, match="revoked") as caught, orders.transaction() as transaction:
        transaction.record_outcome("orders", "t1", 1, "published", "run-2")
    assert caught.value.outcome == "revoked"
    with orders.transaction() as transaction:
        transaction.record_outcome("orders", "t1", 2, "published", "run-2")
        assert transaction.published("t1") == 2


def test_it_tells_every_part_under_which_a_key_has_receipts(orders: Database) -> None:
    long = "k" * 500
    with orders.transaction() as transaction:
        transaction.record_receipts("orders", ["a", "b", long], trip="t1", attempt=1)
        transaction.record_receipts("orders", ["a"], part="2", trip="t2", attempt=1)
        transaction.record_receipts("others", ["c"], trip="t3", attempt=1)
    with orders.transaction(reading=True) as seen:
        assert seen.receipt_parts("orders", ["a", "c", long]) == {"a": {"": "t1", "2": "t2"}, long: {"": "t1"}}
        assert seen.receipt_parts("orders", []) == {}


def test_receipts_that_were_there_come_back_in_order_and_the_others_are_new(orders: Database) -> None:
    long = "folder/" * 300
    with orders.transaction() as transaction:
        assert transaction.record_receipts("orders", ["b", "a", long + "1"], trip="t1", attempt=1) == ()
        assert transaction.record_receipts("orders", [], trip="t1", attempt=1) == ()
    with orders.transaction() as transaction:
        again = ["z", "b", "A", "a ", long + "2", "a", long + "1"]
        assert transaction.record_receipts("orders", again, trip="t2", attempt=1) == ("b", "a", long + "1")
        assert transaction.record_receipts("orders", ["a"], part="release-1", trip="t2", attempt=1) == ()
        assert transaction.record_receipts("invoices", ["a"], trip="t2", attempt=1) == ()
        assert transaction.receipts("orders", ["a", "b", "c", long + "1", long + "3"]) == {"a", "b", long + "1"}
        many = [f"k{at}" for at in range(1234)]
        assert transaction.record_receipts("orders", many, trip="t3", attempt=1) == ()
        assert transaction.record_receipts("orders", many, trip="t3", attempt=1) == tuple(many)


@pytest.mark.parametrize("first_commits", [True, False])
def test_a_second_writer_waits_for_the_first(orders: Database, first_commits: bool) -> None:
    """Two attempts race for one key: the one that began first decides, by committing or rolling back, what the other finds."""
    has_begun, may_end = threading.Event(), threading.Event()

    def first() -> None:
        with orders.transaction() as transaction:
            transaction.record_outcome("orders", "t1", 1, "published", "first")
            transaction.record_receipts("orders", ["m1"], trip="t1", attempt=1)
            has_begun.set()
            may_end.wait(10)
            if not first_commits:
                raise LookupError("rolled back")

    def second(key: str) -> str:
        try:
            with orders.transaction() as transaction:
                if key == "outcome":
                    transaction.record_outcome("orders", "t1", 1, "revoked", "second")
                    return "recorded"
                return f"conflicts: {transaction.record_receipts('orders', ['m1', 'm0'], trip='t2', attempt=1)}"
        except AlreadySettled as settled:
            return f"found {settled.outcome}"

    with ThreadPoolExecutor(3) as many:
        holder = many.submit(first)
        assert has_begun.wait(10)
        waiting = [many.submit(second, "outcome"), many.submit(second, "receipt")]
        time.sleep(0.3)
        assert not any(waiter.done() for waiter in waiting), "they must wait for the first to end"
        may_end.set()
        found = [waiter.result(20) for waiter in waiting]
    assert (holder.exception() is None) == first_commits
    assert found == (["found published", "conflicts: ('m1',)"] if first_commits else ["recorded", "conflicts: ()"])


def test_a_lock_that_somebody_holds_is_transient_in_bounded_time(orders: Database, url: str) -> None:
    impatient = Database(url=url, lock_timeout_seconds=1)
    append(orders, order("a"))
    with orders.transaction() as holder:
        holder.upsert("orders", COLUMNS, ["order_id"], [batch(order("a", 2))])
        began = time.monotonic()
        with pytest.raises(Transient, match="holds a lock"), impatient.transaction() as transaction:
            transaction.upsert("orders", COLUMNS, ["order_id"], [batch(order("a", 3))])
        assert time.monotonic() - began < 20
    assert rows_of(orders) == [order("a", 2)]


def test_readers_do_not_wait_for_a_writer(orders: Database, url: str) -> None:
    append(orders, order("a"))
    reader = Database(url=url, lock_timeout_seconds=1)
    with orders.transaction() as transaction:
        transaction.replace("orders", COLUMNS, {}, [batch(order("b"))])
        transaction.upsert("orders", COLUMNS, ["order_id"], [batch(order("c"))])
        transaction.delete("orders", ["order_id"], [batch(order("b"))])
        assert [row["order_id"] for row in rows_of(reader)] == ["a"]
    assert [row["order_id"] for row in rows_of(reader)] == ["c"]


def test_upserts_of_the_same_keys_at_once_both_succeed(orders: Database, url: str) -> None:
    """On MariaDB, whose UPDATE takes its locks in an order of its own, some may have to be tried again, as Transient says."""
    keys = [f"k{at:04}" for at in range(300)]

    def upsert_once(number: int) -> int:
        with Database(url=url).transaction() as transaction:
            ordered = keys if number % 2 else keys[::-1]
            applied = transaction.upsert("orders", COLUMNS, ["order_id"], [batch(*(order(key, number) for key in ordered))])
            return applied.inserted + applied.updated

    def upsert(number: int) -> int:
        done = 0
        while done < 900:
            try:
                done += upsert_once(number)
            except Transient:
                if not url.startswith("mariadb"):
                    raise
        return done

    with ThreadPoolExecutor(3) as many:
        assert list(many.map(upsert, range(3))) == [900, 900, 900]
    assert [row["order_id"] for row in rows_of(orders)] == keys


def test_a_key_that_somebody_inserts_between_update_and_insert_is_merged(mariadb_database_url: str) -> None:
    database = Database(url=mariadb_database_url)
    database.prepare([plan("orders", ORDERS, key=("order_id",))])
    other = [order("a", 1)]

    def slip_in(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if other and statement.startswith("INSERT INTO `orders`") and "SELECT" in statement:
            append(Database(url=mariadb_database_url), other.pop())

    event.listen(sa.Engine, "before_cursor_execute", slip_in)
    try:
        with database.transaction() as transaction:
            given = [batch(order("b", 2), order("a", 5))]
            done = transaction.accumulate("orders", COLUMNS, ["order_id"], ("quantity",), given)
    finally:
        event.remove(sa.Engine, "before_cursor_execute", slip_in)
    assert done == Applied(inserted=1, updated=1)
    assert [(row["order_id"], row["quantity"]) for row in rows_of(database)] == [("a", 6), ("b", 2)]


def test_a_deadlock_is_transient_and_the_other_transaction_goes_on(orders: Database, url: str) -> None:
    if url.startswith("sqlite"):
        pytest.skip("SQLite has one writer at a time")
    # Between the two stand enough rows that nobody finds it cheaper to scan, and so to lock, the whole table.
    append(orders, order("x", 0), order("y", 0), *(order(f"x{at}", 0) for at in range(2000)))
    both_hold_one = threading.Barrier(2)

    def crosswise(first: str, second: str) -> str:
        try:
            with orders.transaction() as transaction:
                transaction.upsert("orders", COLUMNS, ["order_id"], [batch(order(first, 1))])
                both_hold_one.wait(20)
                transaction.upsert("orders", COLUMNS, ["order_id"], [batch(order(second, 1))])
        except Transient as error:
            assert "collided with another transaction" in str(error)
            return "collided"
        return "committed"

    with ThreadPoolExecutor(2) as two:
        ends = [two.submit(crosswise, "x", "y"), two.submit(crosswise, "y", "x")]
        assert sorted(end.result(30) for end in ends) == ["collided", "committed"]
    assert [row["quantity"] for row in rows_of(orders) if row["order_id"] in "xy"] == [1, 1]


def test_the_dialect_passes_the_probe(database: Database) -> None:
    database.probe()
    database.prepare([])
    with database.transaction(reading=True) as seen:
        assert seen.count_rows("bus_outcomes") == 0, "the probe takes away what it wrote"


# --- reading ----------------------------------------------------------------------------------------------------------------------


def test_a_query_streams_in_batches_with_names_and_places(orders: Database) -> None:
    append(orders, *(order(f"k{at}", at) for at in range(5)))
    sql = "SELECT order_id AS id, quantity, note FROM orders WHERE quantity < :below AND order_id IN :ids ORDER BY quantity"
    ids = [f"k{at}" for at in range(9)]
    fields = {"amount": "quantity", "key": "id"}
    runs = list(orders.read(sql, params={"below": 5, "ids": ids}, fields=fields, name="small orders", batch_rows=2))
    assert [run.batch.to_pydict() for run in runs] == [
        {"amount": [0, 1], "key": ["k0", "k1"]},
        {"amount": [2, 3], "key": ["k2", "k3"]},
        {"amount": [4], "key": ["k4"]},
    ]
    assert [run.positions.to_pylist() for run in runs] == [[1, 2], [3, 4], [5]]
    assert {(run.origin, run.unit) for run in runs} == {("small orders", "row")}
    assert orders.count(f"{sql} -- all", {"below": 4, "ids": ids}) == 4
    assert orders.count("SELECT * FROM orders;\n") == 5


def test_a_query_without_rows_gives_one_empty_batch(orders: Database) -> None:
    (run,) = orders.read("SELECT order_id, quantity FROM orders", fields={"a": "order_id"}, name="none")
    assert run.unread == ("quantity",)
    assert (run.batch.num_rows, run.batch.schema.names, len(run.positions)) == (0, ["a"], 0)


@pytest.mark.parametrize(
    ("sql", "params", "fields", "said"),
    [
        ("SELECT * FROM nowhere", {}, {}, "nowhere"),
        ("SELECT nothing FROM orders", {}, {}, "nothing"),
        ("SELEC 1", {}, {}, "SELEC"),
        ("SELECT order_id FROM orders", {}, {"x": "lost"}, r"no column \['lost'\]; it has \['order_id'\]"),
        ("SELECT :a, :b", {"b": 1, "c": 2}, {}, r"asks for \['a'\], it has no place for \['c'\]"),
    ],
)
def test_a_query_that_cannot_work_is_misconfigured(orders: Database, sql: str, params: Any, fields: Any, said: str) -> None:
    append(orders, order("a"))
    with pytest.raises(Misconfigured, match=said):
        list(orders.read(sql, params=params, fields=fields, name="q"))
    assert len(rows_of(orders)) == 1


def test_a_query_cannot_write(orders: Database, url: str) -> None:
    append(orders, order("a"))
    run_sql(url, *(["CREATE SEQUENCE numbers"] if is_postgres(url) else []))
    with pytest.raises(Misconfigured, match="nothing may be written"):
        list(orders.read("SELECT nextval('numbers')" if is_postgres(url) else "DELETE FROM orders", name="q"))
    assert len(rows_of(orders)) == 1


def test_keys_of_a_column_come_once_and_without_null(orders: Database) -> None:
    append(orders, order("a", 1), order("b", 1), order("c", 2), order("d", None))
    found = [value for piece in orders.column_keys("orders", "quantity") for value in piece.to_pylist()]
    assert sorted(found) == [1, 2]
    with pytest.raises(Misconfigured, match="lost"):
        list(orders.column_keys("orders", "lost"))


# --- errors -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["order_id", "quantity"])
def test_a_value_that_the_table_refuses_is_poison_and_not_shown(orders: Database, url: str, column: str) -> None:
    run_sql(url, "CREATE TABLE strict (order_id VARCHAR(30) PRIMARY KEY, quantity BIGINT NOT NULL CHECK (quantity <> 4711))")
    schema = pa.schema([("order_id", pa.string()), ("quantity", pa.int64())])
    good = {"order_id": SECRET, "quantity": 1}
    bad = {"order_id": SECRET, "quantity": 2} if column == "order_id" else {"order_id": "b", "quantity": 4711}
    with pytest.raises(Poison) as caught:
        append(orders, good, bad, table="strict", schema=schema)
    shown = str(caught.value) + "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert "'4711'" not in shown
    assert orders.count("SELECT * FROM strict") == 0


SIGNALLING = "SET @said = CONCAT('blocked for column ', NEW.id); SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = @said"
MARIADB_REFUSES = {
    1644: (
        "CREATE TABLE strict (id VARCHAR(60) PRIMARY KEY)",
        f"CREATE TRIGGER meddling BEFORE INSERT ON strict FOR EACH ROW BEGIN IF NEW.id LIKE '4711%%' THEN {SIGNALLING}; END IF; END",
    ),
    40001: (
        "CREATE TABLE strict (id VARCHAR(60) PRIMARY KEY)",
        f"CREATE TRIGGER meddling BEFORE INSERT ON strict FOR EACH ROW BEGIN {SIGNALLING}, MYSQL_ERRNO = 40001; END",
    ),
    1526: ("CREATE TABLE strict (id VARCHAR(60) PRIMARY KEY) PARTITION BY LIST COLUMNS (id) (PARTITION one VALUES IN ('good'))",),
    1369: (
        "CREATE TABLE kept (id VARCHAR(60) PRIMARY KEY)",
        "CREATE VIEW strict AS SELECT id FROM kept WHERE id NOT LIKE '4711%%' WITH CHECK OPTION",
    ),
}
"""By the server's number: tables of which a trigger, the partitions or a view refuse one row."""


@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize("number", MARIADB_REFUSES)
def test_what_mariadb_refuses_of_a_row_is_poison_and_not_shown(mariadb_database_url: str, number: int, mode: str) -> None:
    run_sql(mariadb_database_url, *MARIADB_REFUSES[number])
    given = batch({"id": "good"}, {"id": SECRET}, schema=pa.schema([("id", pa.string())]))
    more = {"key": ["id"]} if mode == "upsert" else {}
    with (
        pytest.raises(Poison, match=rf"table 'strict' in .*\(error {number}\)") as caught,
        Database(url=mariadb_database_url).transaction() as transaction,
    ):
        getattr(transaction, mode)("strict", ["id"], batches=[given], **more)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def small_packets(mariadb_database_url: str) -> Iterator[str]:
    """A database of a server that takes statements below 64 KB."""
    table = "CREATE TABLE texts (id BIGINT PRIMARY KEY, text MEDIUMTEXT CHARACTER SET utf8mb4)"
    run_sql(mariadb_database_url, table, "SET GLOBAL max_allowed_packet = 65536")
    yield mariadb_database_url
    run_sql(mariadb_database_url, "SET GLOBAL max_allowed_packet = DEFAULT")


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_rows_go_in_statements_that_mariadb_takes_and_one_that_is_too_large_is_poison(small_packets: str, mode: str) -> None:
    kinds = pa.schema([("id", pa.int64()), ("text", pa.string())])
    more = {"key": ["id"]} if mode == "upsert" else {}
    refused = pytest.raises(Poison, match=r"row 2 of those .* for column 'text', .* max_allowed_packet is 65536; raise that")
    for texts, done in (
        (["a" * 40_000, "ż" * 30_000, "'" * 30_000, "b" * 64_000], contextlib.nullcontext()),
        (["c", "d" * 70_000], refused),
        (["c", "'" * 40_000], refused),
    ):
        rows = batch(*({"id": at, "text": text} for at, text in enumerate(texts)), schema=kinds)
        with done, Database(url=small_packets).transaction() as transaction:
            getattr(transaction, mode)("texts", kinds.names, batches=[rows], **more)
    assert Database(url=small_packets).count("SELECT * FROM texts") == 4


def test_of_a_value_that_names_a_key_only_the_constraint_is_told(mariadb_database_url: str) -> None:
    run_sql(mariadb_database_url, "CREATE TABLE strict (id VARCHAR(60) PRIMARY KEY)")
    given = batch(*[{"id": f"for key {SECRET}"}] * 2, schema=pa.schema([("id", pa.string())]))
    with (
        pytest.raises(Poison, match=r"must be unique \(for key 'PRIMARY'\)$") as caught,
        Database(url=mariadb_database_url).transaction() as transaction,
    ):
        transaction.append("strict", ["id"], [given])
    assert SECRET not in str(caught.value)


def test_what_mariadb_says_of_a_statement_stays_misconfigured_while_rows_are_written(mariadb_database_url: str) -> None:
    meddling = "CREATE TRIGGER meddling BEFORE INSERT ON strict FOR EACH ROW INSERT INTO strict VALUES ('b')"
    run_sql(mariadb_database_url, "CREATE TABLE strict (id VARCHAR(60) PRIMARY KEY)", meddling)
    given = batch({"id": "a"}, schema=pa.schema([("id", pa.string())]))
    with pytest.raises(Misconfigured, match="Can't update table"), Database(url=mariadb_database_url).transaction() as transaction:
        transaction.append("strict", ["id"], [given])


def test_what_sqlite_finds_in_a_value_as_it_runs_is_poison_and_not_shown(sqlite_database_url: str) -> None:
    saying = f"CREATE TRIGGER saying BEFORE INSERT ON things BEGIN SELECT RAISE(ABORT, 'constraint failed: {SECRET}'); END"
    run_sql(sqlite_database_url, "CREATE TABLE things (id TEXT PRIMARY KEY, n BIGINT)", saying)
    database = Database(url=sqlite_database_url)
    kinds = pa.schema([("id", pa.string()), ("n", pa.int64())])
    with pytest.raises(Poison, match=r"a value was refused$"), database.transaction() as transaction:
        transaction.append("things", kinds.names, [batch({"id": "a", "n": 1}, schema=kinds)])
    with pytest.raises(Poison, match=r"a number is out of its column's range$"), database.transaction() as transaction:
        most = [{"id": "a", "n": 2**63 - 1}] * 2
        transaction.accumulate("things", kinds.names, ["id"], ["n"], [batch(*most, schema=kinds)])
    whole = pa.schema([("n", pa.uint64())])
    with pytest.raises(Poison, match="a number is out of its column's range"), database.transaction() as transaction:
        transaction.append("things", ["n"], [batch({"n": 2**63}, schema=whole)])


def test_a_sum_that_the_column_cannot_hold_is_poison(database: Database) -> None:
    kinds = pa.schema([("id", pa.string()), ("n", pa.int64())])
    database.prepare([plan("sums", kinds, key=("id",))])
    for number, done in (
        (2**63 - 2, contextlib.nullcontext()),
        (1, contextlib.nullcontext()),
        (1, pytest.raises(Poison, match=r"a number is out of its column's range|a sum out of its range")),
    ):
        with done, database.transaction() as transaction:
            transaction.accumulate("sums", kinds.names, ["id"], ["n"], [batch({"id": "a", "n": number}, schema=kinds)])
    assert rows_of(database, "sums", "id") == [{"id": "a", "n": 2**63 - 1}]


def test_a_password_is_never_shown(url: str) -> None:
    if url.startswith("sqlite"):
        pytest.skip("SQLite has no login")
    wrong = make_url(url).set(username="nobody", password=SECRET).render_as_string(hide_password=False)
    database = Database(url=wrong)
    with pytest.raises(Misconfigured, match="login was refused") as caught:
        list(database.read("SELECT 1", name="q"))
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + repr(database) + str(database) + database.where


def test_a_server_that_does_not_answer_is_transient(url: str) -> None:
    if url.startswith("sqlite"):
        pytest.skip("SQLite has no server")
    gone = make_url(url).set(port=1).render_as_string(hide_password=False)
    with pytest.raises(Transient, match="connection was lost"), Database(url=gone, connect_timeout_seconds=2).transaction():
        pass


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_rows_that_a_trigger_of_sqlite_ignores_are_refused(sqlite_database_url: str, mode: str) -> None:
    database = Database(url=sqlite_database_url)
    database.prepare([plan("orders", ORDERS, key=("order_id",))])
    ignoring = "CREATE TRIGGER meddling BEFORE INSERT ON orders WHEN NEW.order_id = 'b' BEGIN SELECT RAISE(IGNORE); END"
    run_sql(sqlite_database_url, ignoring)
    with pytest.raises(Refused, match="table 'orders' took 2 of 3 rows that differ"), database.transaction() as transaction:
        more = {"key": ["order_id"]} if mode == "upsert" else {}
        getattr(transaction, mode)("orders", COLUMNS, batches=[batch(order("b"), order("a"), order("c"))], **more)
    assert rows_of(database) == []


@pytest.mark.parametrize(
    ("column", "replaces"),
    [
        ("note TEXT UNIQUE ON CONFLICT REPLACE", True),
        ("note TEXT NOT NULL on /* as it was */ conflict\nreplace DEFAULT ''", True),
        ("note TEXT UNIQUE ON CONFLICT IGNORE", False),
        ("note TEXT DEFAULT 'ON CONFLICT REPLACE' -- no on conflict replace\n", False),
    ],
)
def test_a_table_of_sqlite_that_deletes_what_is_in_the_way_is_refused(sqlite_database_url: str, column: str, replaces: bool) -> None:
    database = Database(url=sqlite_database_url)
    run_sql(sqlite_database_url, f"CREATE TABLE Orders (order_id TEXT PRIMARY KEY, {column})")
    kinds = (Column("order_id", pa.string(), False), Column("note", pa.string()))
    database.compare([TablePlan("orders", kinds[:1], fills=False)])
    refused = pytest.raises(Unfit, match=r"table 'orders': a constraint says ON CONFLICT REPLACE.*; make the table without that")
    with refused if replaces else contextlib.nullcontext():
        database.compare([TablePlan("orders", kinds)])


def test_rows_that_a_constraint_of_sqlite_leaves_out_are_refused(sqlite_database_url: str) -> None:
    run_sql(sqlite_database_url, "CREATE TABLE orders (order_id TEXT UNIQUE ON CONFLICT IGNORE)")
    with pytest.raises(Refused, match="table 'orders' took 1 of 2 rows"), Database(url=sqlite_database_url).transaction() as transaction:
        transaction.append("orders", ["order_id"], [batch(order("a"), order("a"))])


def test_a_view_of_mariadb_is_refused_for_a_table_below_it_that_has_no_transactions(mariadb_database_url: str) -> None:
    run_sql(
        mariadb_database_url,
        "CREATE TABLE orders (order_id VARCHAR(9)) ENGINE=InnoDB",
        "CREATE TABLE `ol``d` (order_id VARCHAR(9)) ENGINE=MyISAM",
        "CREATE VIEW good AS SELECT order_id, '`ol``d`' AS note FROM orders",
        "CREATE VIEW bad AS SELECT order_id FROM `ol``d` WHERE order_id <> 'it''s `'",
        "CREATE VIEW worse AS SELECT * FROM bad",
    )
    database, columns = Database(url=mariadb_database_url), (Column("order_id", pa.string()),)
    database.compare([TablePlan("good", columns)])
    for view in ("bad", f"{make_url(mariadb_database_url).database}.worse"):
        with pytest.raises(Unfit, match=r"table 'ol`d' below it: engine MyISAM has no transactions; ALTER TABLE … ENGINE = InnoDB"):
            database.compare([TablePlan(view, columns)])
    with pytest.raises(Unfit, match=r": engine MyISAM has no transactions"):
        database.compare([TablePlan("ol`d", columns)])


def test_columns_of_sqlite_without_a_type_are_merged_like_others(sqlite_database_url: str) -> None:
    database = Database(url=sqlite_database_url)
    run_sql(sqlite_database_url, "CREATE TABLE orders (order_id PRIMARY KEY, quantity, price, note)")
    database.prepare([plan("orders", ORDERS, key=("order_id",), create=False)])
    for rows in ([order("b"), order("a")], [order("a"), order("c")]):
        with database.transaction() as transaction:
            transaction.upsert("orders", COLUMNS, batches=[batch(*rows)], key=["order_id"])
    assert [row["order_id"] for row in rows_of(database)] == ["a", "b", "c"]


def test_a_type_that_nobody_knows_is_told_with_its_column(mariadb_database_url: str) -> None:
    database = Database(url=mariadb_database_url)
    run_sql(mariadb_database_url, "CREATE TABLE places (id VARCHAR(9) PRIMARY KEY, place POINT)")
    with (
        pytest.raises(Misconfigured, match=r"column 'place' of table 'places' in .* not known here.* leave it out"),
        database.transaction() as t,
    ):
        t.upsert("places", ["id", "place"], batches=[pa.record_batch({"id": ["a"], "place": ["POINT(1 1)"]})], key=["id"])
