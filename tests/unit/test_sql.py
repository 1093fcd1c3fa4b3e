"""An author's SELECT: does it keep the rows' identity, and where do its columns come from?"""

from collections import Counter
from importlib import import_module

import duckdb
import pytest

from bus_assets.declare import Misdeclared
from bus_assets.sql import carrying, check, column_sources

KEEPING = [
    "SELECT a, b FROM t",
    "SELECT * FROM t",
    "SELECT t.* FROM t",
    "SELECT x.a FROM t AS x LEFT JOIN u ON u.a = x.a",
    "WITH big AS (SELECT a, b + 1 AS b FROM t) SELECT b FROM big",
    "SELECT s.a FROM (SELECT a FROM t) AS s",
    "SELECT a, row_number() OVER (ORDER BY b) AS n, sum(b) OVER () AS s FROM t",
    "FROM t SELECT a",
    "SELECT a, (SELECT max(u.b) FROM u) AS most FROM t",
    'SELECT "a" AS "odd ""name" FROM "t"',
]


@pytest.mark.parametrize("sql", KEEPING)
def test_identity_is_carried_through_what_keeps_the_grain(sql):
    connection = duckdb.connect()
    connection.execute("CREATE TABLE t AS SELECT range + 1 AS _bus_row, range AS a, range * 2 AS b FROM range(5)")
    connection.execute("CREATE TABLE u AS SELECT 0 AS a, 7 AS b")
    rows = connection.sql(carrying(sql, "t", "_bus_row"))
    assert sorted(row[rows.columns.index("_bus_row")] for row in rows.fetchall()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t GROUP BY a",
        "SELECT DISTINCT a FROM t",
        "SELECT sum(b) AS b FROM t",
        "SELECT a FROM t UNION ALL SELECT a FROM t",
        "SELECT a FROM t LIMIT 3",
        "SELECT u.a FROM u JOIN t ON t.a = u.a",
        "WITH g AS (SELECT a FROM t GROUP BY a) SELECT a FROM g",
    ],
)
def test_what_changes_the_grain_must_say_so(sql):
    with pytest.raises(Misdeclared, match="grain='changed'"):
        check(sql, ("t", "u"), ("t", "u"), keeps_grain=True)
    check(sql, ("t", "u"), ("t", "u"), keeps_grain=False)


@pytest.mark.parametrize(
    "sql", ["DROP TABLE t", "INSERT INTO t SELECT 1", "COPY t TO 'x.csv'", "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM other.t"]
)
def test_only_a_select_over_the_stops_is_taken(sql):
    with pytest.raises(Misdeclared):
        check(sql, ("t",), ("t",), keeps_grain=False)


def test_columns_come_from_where_they_are_computed():
    sql = (
        "WITH r AS (SELECT id, rate FROM rates) SELECT o.id, o.qty * r.rate AS total, 'x' AS mark FROM orders o LEFT JOIN r ON r.id = o.id"
    )
    found = column_sources(sql, ("id", "total", "mark"), {"orders": ("id", "qty"), "rates": ("id", "rate")})
    assert found["id"] == (("orders", "id"),)
    assert set(found["total"]) == {("orders", "qty"), ("rates", "rate")}
    assert found["mark"] == ()


SCHEMA = {"customers": ("id", "Email", "emails"), "orders": ("id", "qty", "email")}
EMAIL = ("customers", "Email")
UNTOLD = [
    "SELECT customers AS c FROM customers",
    "SELECT to_json(k) AS c FROM customers k",
    "SELECT (SELECT max(customers) FROM customers) AS c FROM orders",
    "SELECT u.c FROM orders, unnest([customers]) AS u(c), customers",
    "SELECT COLUMNS('Em.*') AS c FROM customers",
    "SELECT COLUMNS(*) FROM customers",
    "SELECT hash(customers.*) AS c FROM customers",
    "SELECT #2 AS c FROM customers",
    "SELECT id AS i, qty AS c FROM orders UNION ALL BY NAME SELECT Email AS c, id AS i FROM customers",
    "WITH RECURSIVE r AS (SELECT id, Email AS c FROM customers UNION ALL SELECT id, c FROM r) SELECT c FROM r",
]


@pytest.mark.parametrize("sql", UNTOLD)
def test_a_column_of_which_not_all_can_be_told_may_come_from_everywhere(sql):
    assert EMAIL in column_sources(sql, ("c",), SCHEMA, untold=(EMAIL,))["c"]


TOLD = {
    "SELECT 'x' AS c FROM customers": (),
    "SELECT count(*) AS c FROM customers": (),
    "SELECT row_number() OVER (ORDER BY id) AS c FROM customers": (("customers", "id"),),
    "SELECT * RENAME (id AS c) FROM customers": (("customers", "id"),),
    "SELECT id, qty AS c FROM orders UNION ALL SELECT Email, id FROM customers": (("orders", "qty"), ("customers", "id")),
    "SELECT list_transform(emails, lambda y: y || 'x') AS c FROM customers": (("customers", "emails"),),
    "SELECT u.c FROM customers, unnest(customers.emails) AS u(c)": (("customers", "emails"),),
    "SELECT c FROM customers UNPIVOT (c FOR n IN (id, emails))": (("customers", "id"), ("customers", "emails")),
    "SELECT t.c FROM (VALUES (1)) AS t(c), customers": (),
    "SELECT EXISTS (SELECT * FROM customers k WHERE k.id = o.id) AS c FROM orders o": (),
    "SELECT NOT EXISTS (SELECT k.* FROM (SELECT * FROM customers) AS k) OR qty > 1 AS c FROM orders": (("orders", "qty"),),
    "SELECT EXISTS (FROM customers) AS c FROM orders": (),
    "SELECT id IN (SELECT * EXCLUDE (Email, emails) FROM customers) AS c FROM orders": (("orders", "id"), ("customers", "id")),
}


@pytest.mark.parametrize("sql", TOLD)
def test_a_column_of_which_all_can_be_told_comes_from_nowhere_else(sql):
    assert set(column_sources(sql, ("c",), SCHEMA, untold=(EMAIL,))["c"]) == set(TOLD[sql])


def test_a_statement_is_read_and_resolved_once_for_all_its_columns(monkeypatch):
    calls = Counter()

    def counted(module, name):
        function = getattr(import_module(module), name)
        monkeypatch.setattr(import_module(module), name, lambda *given, **more: calls.update([name]) or function(*given, **more))

    counted("sqlglot", "parse")
    counted("sqlglot.optimizer.qualify", "qualify_tables")
    columns = tuple(f"c{number}" for number in range(9))
    sql = f"WITH upper AS (SELECT {', '.join(f'upper({name}) AS {name}' for name in columns)} FROM wide) SELECT * FROM upper"
    assert column_sources(sql, columns, {"wide": columns}) == {name: (("wide", name),) for name in columns}
    column_sources(sql, columns, {"wide": columns})  # and not again in the next trip
    assert calls == {"parse": 1, "qualify_tables": 1}
