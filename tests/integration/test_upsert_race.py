"""Somebody else inserts a key between our look for it and our insert: Postgres merges then, as if the key had been there."""

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from resources.database import Database
from resources.receipts import Applied

COLUMNS = ["id", "n"]


def batch(*rows):
    return pa.RecordBatch.from_pylist(
        [dict(zip(COLUMNS, row, strict=True)) for row in rows], pa.schema([("id", pa.string()), ("n", pa.int64())])
    )


@pytest.fixture
def table(postgres_database_url):
    engine = sa.create_engine(postgres_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id text PRIMARY KEY, n bigint, also text)")
    yield engine
    engine.dispose()


def rows_of(engine):
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql("SELECT id, n, also FROM t ORDER BY id")]


def just_before_the_insert(engine, values):
    """Commit a row by another connection when the loader is about to insert into the table, once."""
    done = []

    def intrude(connection, cursor, statement, parameters, context, executemany):
        if not done and statement.startswith('INSERT INTO "t" ('):
            done.append(statement)
            with engine.begin() as other:
                other.exec_driver_sql(f"INSERT INTO t VALUES {values}")

    return intrude, done


@pytest.mark.parametrize("mode", ["upsert", "accumulate"])
def test_a_key_that_somebody_commits_meanwhile_is_merged(table, postgres_database_url, mode):
    intrude, done = just_before_the_insert(table, "('b', 10, 'theirs')")
    event.listen(sa.Engine, "before_cursor_execute", intrude)
    try:
        with Database(url=postgres_database_url).transaction() as transaction:
            rows = [batch(("a", 1), ("b", 2), ("c", 3))]
            if mode == "upsert":
                applied = transaction.upsert("t", COLUMNS, ["id"], rows)
            else:
                applied = transaction.accumulate("t", COLUMNS, ["id"], ["n"], rows)
    finally:
        event.remove(sa.Engine, "before_cursor_execute", intrude)
    assert done
    assert applied == Applied(inserted=2, updated=1)
    assert rows_of(table) == [("a", 1, None), ("b", 2 if mode == "upsert" else 12, "theirs"), ("c", 3, None)]


def test_rows_of_one_key_are_folded_where_none_is_there_yet(table, postgres_database_url):
    with Database(url=postgres_database_url).transaction() as transaction:
        applied = transaction.upsert("t", COLUMNS, ["id"], [batch(("a", 1), ("b", 2)), batch(("a", 3))])
    assert applied == Applied(inserted=2, folded=1)
    assert rows_of(table) == [("a", 3, None), ("b", 2, None)]
