"""SQLite files that are not there, in memory or read-only, URLs that cannot be read, what MariaDB says of its own
files, and the probe on an engine without transactions."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pymysql
import pytest
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from resources.database import Database
from resources.errors import Misconfigured, Poison, Transient
from resources.sql_errors import meaning
from resources.tables import Column, TablePlan


def test_reading_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no such file"):
        list(Database(url=f"sqlite:///{tmp_path}/legacy.db").read("SELECT 1", name="q"))
    assert list(tmp_path.iterdir()) == []


def test_reading_changes_neither_the_file_nor_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "legacy.db"
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t AS SELECT 1 AS a UNION ALL SELECT 'two'")
    before = path.read_bytes()
    path.chmod(0o444)
    (run,) = Database(url=f"sqlite:///{path}").read("SELECT a FROM t", name="q")
    assert run.batch.column("a").to_pylist() == ["1", "two"]
    assert (path.read_bytes(), [file.name for file in tmp_path.iterdir()]) == (before, ["legacy.db"])


def test_a_file_that_is_no_database_is_misconfigured(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("this is a text file, and a long one at that\n" * 50)
    with pytest.raises(Misconfigured, match="cannot be used as a database"):
        list(Database(url=f"sqlite:///{tmp_path}/x.db").read("SELECT * FROM t", name="q"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("sqlite://x.db", "three slashes, .*: write sqlite:///x.db$"),
        ("sqlite://data/x.db", "three slashes, .*: write sqlite:///data/x.db$"),
        ("sqlite://me:pa55word@data/x.db", "three slashes, .*: write sqlite:///path/to/file.db$"),
        ("no url, pa55word", "cannot be read; .*percent-encoded"),
        ("nosuchdb://u:pa55word@h/db", "no driver is installed for 'nosuchdb'"),
        ("mysql+mysqldb://u:pa55word@h/db", r"it begins as mysql\+pymysql://"),
    ],
)
def test_a_url_that_cannot_work_is_misconfigured(url: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said) as caught, Database(url=url).transaction():
        pass
    assert "pa55word" not in str(caught.value)


def test_decimals_beyond_a_double_are_refused_for_numeric_columns_of_sqlite(sqlite_database_url: str) -> None:
    database = Database(url=sqlite_database_url)
    database.prepare([TablePlan("prices", (Column("id", pa.int64(), nullable=False),), ("id",), create=True)])
    engine = sa.create_engine(sqlite_database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE prices ADD COLUMN price NUMERIC(38, 10)")
    with pytest.raises(Misconfigured, match="TEXT keeps all"):
        database.prepare([TablePlan("prices", (Column("price", pa.decimal128(38, 10)),))])
    database.prepare([TablePlan("prices", (Column("price", pa.decimal128(12, 2)),))])


def test_the_probe_refuses_an_engine_whose_transactions_are_not_real(mariadb_database_url: str) -> None:
    database = Database(url=mariadb_database_url)
    database.probe()
    engine = sa.create_engine(mariadb_database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE bus_outcomes ENGINE = MyISAM")
    with pytest.raises(Misconfigured, match="real transactions"):
        database.probe()
    with pytest.raises(Misconfigured, match="real transactions"):
        Database(url=mariadb_database_url).prepare([])


def settle(database: Database, trip: str) -> None:
    database.prepare(())
    with database.transaction() as transaction:
        transaction.record_outcome("orders", trip, 1, "published", "run")


def test_a_database_that_was_restored_without_this_projects_tables_gets_them_again(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.database.LEDGER_SECONDS", 0.5)
    database = Database(url=sqlite_database_url)
    settle(database, "t1")
    engine = sa.create_engine(sqlite_database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE bus_outcomes")
    refused = 0
    while refused < 100:
        try:
            settle(database, "t2")
            break
        except Misconfigured:
            refused += 1
            database.prepare([TablePlan("other", (Column("id", pa.int64()),), create=True)])  # a busy worker's, which must not put it off
            time.sleep(0.05)
    assert 0 < refused < 100


def test_a_copy_with_another_url_is_another_database(tmp_path: Path) -> None:
    one = Database(url=f"sqlite:///{tmp_path}/one.db")
    settle(one, "t1")
    other = one.model_copy(update={"url": f"sqlite:///{tmp_path}/other.db"})
    settle(other, "t2")
    for database, there in ((one, [1, None]), (other, [None, 1])):
        with database.transaction(reading=True) as transaction:
            assert [transaction.published(trip) for trip in ("t1", "t2")] == there


def test_an_engine_that_failed_the_probe_is_probed_again(sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.database.KNOWN_GOOD", ())
    monkeypatch.setattr(Database, "_settles", lambda *_: None)  # as where nobody waits for anybody
    database = Database(url=sqlite_database_url)
    for _ in range(2):
        with pytest.raises(Misconfigured, match="let two transactions settle the same attempt"):
            database.prepare(())


@pytest.mark.parametrize("number", [6, 28, 2013])
def test_trouble_of_a_mariadb_server_with_its_own_files_is_no_rows_fault(number: int) -> None:
    """'Error on delete of …' (6) came of three upserts at once, on a busy machine."""
    error = exc.OperationalError("UPDATE t", {}, pymysql.err.OperationalError(number, "Error on delete of '/tmp/#sql' (Errcode: 2)"))
    assert meaning(error, writes_rows=True).kind is Transient
    assert meaning(exc.OperationalError("UPDATE t", {}, pymysql.err.OperationalError(7_777, "no")), writes_rows=True).kind is Poison
