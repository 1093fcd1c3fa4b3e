"""Rows that come in the order of their key are merged without being sorted; where two keys might still be one, they are folded."""

from decimal import Decimal

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from resources.database import Database
from resources.errors import Refused
from resources.receipts import Applied

COLUMNS = ["id", "n"]


def batch(*rows, key=pa.string()):  # noqa: B008 - a type is a value
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays([pa.array(values, kind) for values, kind in zip(columns, (key, pa.int64()), strict=True)], COLUMNS)


@pytest.fixture
def engine(postgres_database_url):
    engine = sa.create_engine(postgres_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def statements():
    seen = []

    def note(connection, cursor, statement, parameters, context, executemany):
        seen.append(statement)

    event.listen(sa.Engine, "before_cursor_execute", note)
    yield seen
    event.remove(sa.Engine, "before_cursor_execute", note)


def merged(engine, kind, *batches, there=(), mode="upsert"):
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE t (id {kind} PRIMARY KEY, n bigint)")
        for row in there:
            connection.exec_driver_sql("INSERT INTO t VALUES (%s, %s)", row)
    with Database(url=engine.url.render_as_string(hide_password=False)).transaction() as transaction:
        if mode == "accumulate":
            applied = transaction.accumulate("t", COLUMNS, ["id"], ["n"], batches)
        else:
            applied = transaction.upsert("t", COLUMNS, ["id"], batches)
    with engine.connect() as connection:
        return applied, [tuple(row) for row in connection.exec_driver_sql("SELECT id, n FROM t ORDER BY id")]


@pytest.mark.parametrize("there", [[], [("b", 20)], [("x", 20)]])
def test_rows_in_order_are_not_sorted(engine, statements, there):
    applied, rows = merged(engine, "text", batch(("a", 1), ("b", 2)), batch(("c", 3)), there=there)
    known = sum(key in "abc" for key, _ in there)
    assert applied == Applied(inserted=3 - known, updated=known)
    assert rows == sorted({**dict(there), "a": 1, "b": 2, "c": 3}.items())
    assert not [statement for statement in statements if "DISTINCT ON" in statement]


@pytest.mark.parametrize("there", [[], [("b", 20)]])
@pytest.mark.parametrize("order", ["aba", "abb", "bab"])
def test_rows_out_of_order_are_folded(engine, there, order):
    applied, rows = merged(engine, "text", *(batch((key, number)) for number, key in enumerate(order)), there=there)
    assert applied == Applied(inserted=2 - len(there), updated=len(there), folded=1)
    assert rows == sorted({key: number for number, key in enumerate(order)}.items())


@pytest.mark.parametrize("there", [[], [(Decimal("1.0"), 20)]])
def test_keys_that_the_column_rounds_to_one_are_refused(engine, there):
    rows = [batch((Decimal("1.01"), 1), (Decimal("1.04"), 2), key=pa.decimal128(5, 2))]
    with pytest.raises(Refused, match=r"took 1 of 2 rows that differ: .* two keys are one in the type or collation"):
        merged(engine, "numeric(4,1)", *rows, there=there)


def test_keys_that_differ_in_trailing_blanks_only_are_refused_by_a_column_that_ignores_them(engine):
    with pytest.raises(Refused, match="took 1 of 2 rows that differ"):
        merged(engine, "char(3)", batch(("a", 1), ("a ", 2)))


def test_a_missing_sum_counts_as_zero_in_order_too(engine):
    applied, found = merged(engine, "text", batch(("a", None), ("b", 2)), mode="accumulate")
    assert applied == Applied(inserted=2)
    assert found == [("a", 0), ("b", 2)]
