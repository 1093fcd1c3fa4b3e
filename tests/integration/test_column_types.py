"""Columns of existing tables that would change a value without a word: refused before a row is sent, or at the row."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.pool import NullPool

from resources.blanks import uncut
from resources.choices import as_declared
from resources.database import Database
from resources.errors import Misconfigured, Poison
from resources.tables import Column, TablePlan, Unfit

TEXT, NUMBER, WHOLE = pa.string(), pa.float64(), pa.int64()


class Bench:
    """A database in which a table of one column ``v`` is made for each case."""

    def __init__(self, url: str):
        self.database = Database(url=url)
        self._engine = sa.create_engine(url, poolclass=NullPool)
        self._made = 0

    def close(self) -> None:
        self._engine.dispose()

    def run(self, *statements: str) -> None:
        with self._engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def compare(self, column: str, kind: pa.DataType, *, nullable: bool = True) -> str:
        """The name of a new table with ``v`` of SQL type ``column``, which takes the rows."""
        self._made += 1
        table = f"t{self._made}"
        self.run(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, v {column})")
        self.database.prepare([TablePlan(table, (Column("id", WHOLE, False), Column("v", kind, nullable)), ("id",))])
        return table

    def kept(self, column: str, kind: pa.DataType, *values: Any, mode: str = "append") -> list[Any]:
        """What the database gives for ``values`` that were put into such a table."""
        table = self.compare(column, kind)
        rows = pa.RecordBatch.from_arrays([pa.array(range(len(values)), WHOLE), pa.array(values, kind)], names=["id", "v"])
        more = {"key": ["id"]} if mode == "upsert" else {}
        with self.database.transaction() as transaction:
            getattr(transaction, mode)(table, ["id", "v"], batches=[rows], **more)
        with self._engine.connect() as connection:
            return list(connection.exec_driver_sql(f"SELECT v FROM {table} ORDER BY id").scalars())


@pytest.fixture
def sqlite(tmp_path: Any) -> Iterator[Bench]:
    with closing(Bench(f"sqlite:///{tmp_path}/test.db")) as bench:
        yield bench


@pytest.fixture
def mariadb(mariadb_database_url: str) -> Iterator[Bench]:
    with closing(Bench(mariadb_database_url)) as bench:
        yield bench


@pytest.fixture
def postgres(postgres_database_url: str) -> Iterator[Bench]:
    with closing(Bench(postgres_database_url)) as bench:
        yield bench


# --- SQLite, which converts by the affinity of the declared type -------------------------------------------------------------------


def test_sqlite_makes_no_other_number_or_text_of_a_value(sqlite: Bench) -> None:
    for column, kind, said in [
        ("TEXT", NUMBER, "'v' is TEXT, the rows have double: SQLite keeps 15 digits of a number as text, REAL keeps all; change the col"),
        ("VARCHAR(40)", NUMBER, "SQLite keeps 15 digits of a number as text"),
        ("BIGINT", pa.decimal128(19, 0), "'v' is BIGINT, .*SQLite keeps 18 digits in such a column, TEXT keeps all"),
        ("JSON", TEXT, r"'v' is JSON, the rows have string: SQLite makes a number of text that reads as one \('007' becomes 7\), TEXT"),
        ("STRING", TEXT, "text does not fit"),
    ]:
        with pytest.raises(Unfit, match=said):
            sqlite.compare(column, kind)
    assert sqlite.kept("REAL", NUMBER, 0.30000000000000004) == [0.30000000000000004]
    assert sqlite.kept("DECIMAL(10,2)", NUMBER, 0.30000000000000004, 2.0**63) == [0.30000000000000004, 2.0**63]
    assert sqlite.kept("BIGINT", pa.decimal128(18, 0), Decimal("999999999999999999")) == [999999999999999999]
    assert sqlite.kept("TEXT", pa.decimal128(38, 0), Decimal("12345678901234567890")) == ["12345678901234567890"]
    assert sqlite.kept("JSON", pa.list_(WHOLE), [7]) == ["[7]"]
    assert sqlite.kept("TEXT", TEXT, "007") == sqlite.kept("", TEXT, "007") == ["007"]


# --- MariaDB ----------------------------------------------------------------------------------------------------------------------


def test_mariadb_rounds_no_double_and_converts_no_text(mariadb: Bench) -> None:
    for column, kind, said in [
        ("DOUBLE(10,2)", NUMBER, r"'v' is DOUBLE\(10, 2\), the rows have double: a fixed scale rounds"),
        ("FLOAT(10,2)", NUMBER, "single precision loses digits"),
        ("YEAR", TEXT, r"'v' is YEAR.*text does not fit"),
        ("BIT(8)", TEXT, "text does not fit"),
    ]:
        with pytest.raises(Unfit, match=said):
            mariadb.compare(column, kind)
    assert mariadb.kept("DOUBLE", NUMBER, 0.30000000000000004) == [0.30000000000000004]


def test_mariadb_makes_no_moment_of_a_null(mariadb: Bench) -> None:
    required = "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP"
    said = "'v' is TIMESTAMP NOT NULL, which makes the time of loading of a null; make the field required, or the column NULL"
    with pytest.raises(Unfit, match=said):
        mariadb.compare(required, pa.timestamp("us"))
    mariadb.compare(required, pa.timestamp("us"), nullable=False)
    assert mariadb.kept("TIMESTAMP NULL", pa.timestamp("us"), None) == [None]


ENUM, SET = "ENUM('new', 'it''s', '5')", "SET('a', 'b', '7')"
NOT_DECLARED = "table 't.*': a text is none of the values of column 'v' as they are declared; list them as allowed= of the field"


def test_mariadb_takes_no_text_for_another_of_a_list(mariadb: Bench) -> None:
    assert mariadb.kept(ENUM, TEXT, "5", "it's", None, "new") == ["5", "it's", None, "new"]
    assert mariadb.kept(SET, TEXT, "a,b", "7", None) == ["a,b", "7", None]
    with pytest.raises(Poison, match=NOT_DECLARED):
        mariadb.kept(ENUM, TEXT, "5", "1", mode="upsert")
    with pytest.raises(Unfit, match="only text fits, a number is taken for the place of a value"):
        mariadb.compare(ENUM, WHOLE)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(mysql.ENUM("new", "5"), value) for value in ("1", "NEW", "new ", "")]
    + [(mysql.SET("a", "b"), value) for value in ("b,a", "a,a", "3")],
)
def test_a_text_that_is_not_declared_is_not_shown(kind: Any, value: str) -> None:
    with pytest.raises(Poison, match=NOT_DECLARED) as told:
        list(as_declared([pa.record_batch({"v": [None, value]})], [sa.Column("v", kind)], "t"))
    assert f"'{value}'" not in str(told.value)


def test_mariadb_cuts_and_fills_no_end_of_a_value(mariadb: Bench) -> None:
    utf8, longest = "TINYTEXT CHARACTER SET utf8mb4", "ä" * 127 + " "
    assert mariadb.kept(utf8, TEXT, None, longest) == [None, longest]
    said = "'v' keeps 255 bytes and would cut off blanks at the end; make it longer, or cut them off in a transform"
    with pytest.raises(Poison, match=said):
        mariadb.kept(utf8, TEXT, "a", longest + " ", mode="upsert")
    assert mariadb.kept("BINARY(4)", pa.binary(), b"abcd", None) == [b"abcd", None]
    with pytest.raises(Poison, match=r"'v' fills shorter values with zero bytes, up to 4; make it VARBINARY, or let every value have"):
        mariadb.kept("BINARY(4)", pa.binary(), b"abcd", b"ab", mode="upsert")


@pytest.mark.parametrize(("kind", "most"), [(mysql.TEXT(), 2**16 - 1), (mysql.MEDIUMTEXT(), 2**24 - 1), (mysql.LONGTEXT(), None)])
def test_ends_are_looked_for_beyond_the_size_of_a_type(kind: Any, most: int | None) -> None:
    def passes(text: str) -> bool:
        return bool(list(uncut([pa.record_batch({"v": [text]})], [sa.Column("v", kind)], "t", "mariadb")))

    longest = "x" * ((most or 2**24) - 1) + " "
    assert passes(longest)
    assert passes(longest + "x "), "the database refuses what is too long without its blanks"
    if most:
        with pytest.raises(Poison, match=f"'v' keeps {most} bytes"):
            passes(longest + " ")


def test_mariadb_gives_no_fewer_digits_than_it_has(mariadb: Bench) -> None:
    mariadb.run("CREATE TABLE measured (id INTEGER, v FLOAT, w DOUBLE)", "INSERT INTO measured VALUES (1, 16777215, 0.1)")
    said = r"query 'q': column \['v'\] is FLOAT, of which mariadb gives 6 digits and rounds the others; write CAST\(… AS DOUBLE\)"
    with pytest.raises(Misconfigured, match=said):
        list(mariadb.database.read("SELECT * FROM measured", name="q"))
    for query, fields in [
        ("SELECT CAST(v AS DOUBLE) AS v, w FROM measured", None),
        ("SELECT *, v + 0e0 AS x FROM measured", {"v": "x", "w": "w"}),
    ]:
        (run,) = mariadb.database.read(query, name="q", fields=fields)
        assert run.batch.to_pylist() == [{"v": 16777215.0, "w": 0.1}]


# --- Postgres ---------------------------------------------------------------------------------------------------------------------


def test_postgres_cuts_no_text_and_rounds_no_number(postgres: Bench) -> None:
    for column, kind, said in [
        ('"char"', TEXT, "'v' is name or \"char\", the rows have string: it cuts texts to 63 bytes, or to one; TEXT keeps all"),
        ("name", TEXT, "it cuts texts to 63 bytes"),
        ("money", TEXT, "'v' is MONEY, the rows have string: text does not fit"),
        ("interval(0)", TEXT, "0 digits of a second are kept, others rounded"),
        ("numeric(5,-2)", WHOLE, "the last 2 digits would be rounded"),
        ("numeric(5,-2)", pa.decimal128(10, 0), "the last 2 digits would be rounded"),
        ("numeric(5,-2)", NUMBER, "a fixed scale rounds"),
    ]:
        with pytest.raises(Unfit, match=re.escape(said)):
            postgres.compare(column, kind)
    assert postgres.kept("numeric(5,2)", WHOLE, 12) == postgres.kept("numeric", NUMBER, 12.0) == [12]
    assert postgres.kept("interval", TEXT, "1 day") == postgres.kept("interval(6)", TEXT, "1 day") == [dt.timedelta(days=1)]
    assert postgres.kept("varchar", TEXT, "x" * 70) == ["x" * 70]


def test_a_domain_of_postgres_is_judged_as_the_type_behind_it(postgres: Bench) -> None:
    postgres.run(
        'CREATE DOMAIN "Price" AS numeric(10,2)',
        'CREATE DOMAIN dear AS "Price" CHECK (value > 9)',
        "CREATE DOMAIN code AS varchar(3) NOT NULL",
        "CREATE DOMAIN at AS timestamp(0)",
        "CREATE DOMAIN single AS real",
        "CREATE DOMAIN wide AS bigint",
    )
    for column, kind, said in [
        ("dear", TEXT, "'v' is NUMERIC(10, 2), the rows have string: text does not fit"),
        ('"Price"', pa.decimal128(12, 3), "3 decimals would be rounded to 2"),
        ("single", NUMBER, "single precision loses digits"),
    ]:
        with pytest.raises(Unfit, match=re.escape(said)):
            postgres.compare(column, kind)
    assert postgres.kept("dear", pa.decimal128(10, 2), Decimal("9.99"), mode="upsert") == [Decimal("9.99")]
    assert postgres.kept("wide", WHOLE, 2**62) == [2**62]
    with pytest.raises(Poison, match="a check of the table is broken"):
        postgres.kept("dear", pa.decimal128(10, 2), Decimal("1.00"))
    assert postgres.kept("code", TEXT, "ab ", mode="upsert") == ["ab "]
    with pytest.raises(Poison, match="'v' keeps 3 characters and would cut off blanks"):
        postgres.kept("code", TEXT, "abc ")
    with pytest.raises(Poison, match="'v' keeps 0 digits of a second and would round"):
        postgres.kept("at", pa.timestamp("us"), dt.datetime(2026, 1, 2, 3, 4, 5, 600000))
