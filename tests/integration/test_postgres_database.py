"""What only Postgres can show: connections that die, its own types, and values that COPY refuses."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from resources import engines
from resources.database import Database
from resources.engines import REST_SECONDS
from resources.errors import Misconfigured, Poison, Refused, Transient
from resources.receipts import Applied
from resources.tables import Column, TablePlan, Unfit

COLUMNS = ("order_id", "quantity")
KILL_OTHERS = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def database(postgres_database_url: str) -> Database:
    made = Database(url=postgres_database_url, lock_timeout_seconds=5)
    columns = (Column("order_id", pa.string(), nullable=False), Column("quantity", pa.int64()))
    made.prepare([TablePlan("orders", columns, key=("order_id",), create=True)])
    return made


def sql(database: Database, *statements: str) -> None:
    engine = sa.create_engine(database.url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def rows(start: int, count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"order_id": [f"o{at}" for at in range(start, start + count)], "quantity": list(range(count))})


def served_by(database: Database) -> int:
    """The server process that a transaction of ``database`` talks to."""
    (found,) = database.read("SELECT pg_backend_pid() AS pid", name="pid")
    return int(found.batch.column("pid")[0].as_py())


def test_a_connection_at_rest_is_used_again_unless_it_was_cut(database: Database) -> None:
    first = served_by(database)
    assert served_by(database) == first
    sql(database, f"SELECT pg_terminate_backend({first})")
    time.sleep(0.1)  # until it has hung up
    assert served_by(database) != first


def test_a_client_that_is_gone_while_it_writes_is_given_up_within_a_minute(database: Database) -> None:
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")

    def told(connection: sa.Connection) -> list[str]:
        return [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]

    with database._writing() as connection:
        assert connection.exec_driver_sql("SELECT inet_server_addr()").scalar_one()  # by TCP
        assert told(connection) == ["30", "10", "3", "60000"]
        connection.commit()
        assert told(connection) != ["30", "10", "3", "60000"]


def test_a_setting_that_a_server_does_not_have_is_not_set(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ALIVE", engines._ALIVE.replace("tcp_user_timeout", "tcp_of_a_later_version"))
    with database.transaction() as transaction:
        assert transaction.published("t") is None


def test_a_connection_is_asked_whether_it_lives_only_after_a_rest(database: Database) -> None:
    first = served_by(database)
    asked = []
    engine = database._lazy_engine()
    engine.dialect.do_ping = lambda raw: asked.append(raw)
    assert [served_by(database) for _ in range(3)] == [first] * 3
    assert not asked
    time.sleep(REST_SECONDS + 0.1)
    assert served_by(database) == first
    assert len(asked) == 1


def test_a_fork_and_its_parent_share_no_connection(database: Database) -> None:
    served_by(database)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(served_by(database)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 20)) != served_by(database)
    os.close(read)
    os.close(write)


def test_what_was_checked_out_at_a_fork_is_used_by_the_parent_alone(database: Database) -> None:
    read, write = os.pipe()
    with database.transaction() as transaction:
        transaction.append("orders", COLUMNS, [rows(0, 1)])
        child = os.fork()
        if child == 0:
            os.write(write, str(served_by(database)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        transaction.append("orders", COLUMNS, [rows(1, 1)])
    assert int(os.read(read, 20)) != served_by(database)
    with database.transaction(reading=True) as seen:
        assert seen.count_rows("orders") == 2
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_connection_lost_in_mid_copy_is_transient_and_nothing_is_written(database: Database, mode: str) -> None:
    def dies_on_the_way() -> Iterator[pa.RecordBatch]:
        yield rows(0, 50_000)
        sql(database, KILL_OTHERS)
        for at in range(1, 40):
            yield rows(at * 50_000, 50_000)

    with pytest.raises(Transient, match="connection was lost"), database.transaction() as transaction:
        transaction.record_outcome("orders", "t1", 1, "published", "run")
        if mode == "append":
            transaction.append("orders", COLUMNS, dies_on_the_way())
        else:
            transaction.upsert("orders", COLUMNS, ["order_id"], dies_on_the_way())
    with database.transaction(reading=True) as seen:
        assert (seen.count_rows("orders"), seen.outcome("t1", 1)) == (0, None)


def test_a_connection_lost_at_commit_says_that_the_outcome_is_unknown(database: Database) -> None:
    """A deferred trigger holds the COMMIT open long enough to kill it from outside."""
    sql(
        database,
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(20); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )
    is_committing = threading.Event()

    def kill() -> None:
        assert is_committing.wait(10)
        time.sleep(0.3)
        sql(database, KILL_OTHERS)

    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill)
        with pytest.raises(Transient, match="outcome unknown"), database.transaction() as transaction:
            transaction.append("orders", COLUMNS, [rows(0, 1)])
            is_committing.set()
        killed.result(10)


def test_a_reader_whose_connection_dies_gets_a_transient(database: Database) -> None:
    reading = database.read("SELECT generate_series(1, 1000000) AS n", name="numbers", batch_rows=1000)
    next(reading)
    sql(database, KILL_OTHERS)
    with pytest.raises(Transient, match="numbers"):
        list(reading)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        (pa.string(), ["secret-\0-value"], "NUL"),
        (pa.string(), ["secret-far-too-long-for-it"], "too long.*column 'order_id'"),
    ],
)
def test_text_that_a_column_cannot_hold_is_poison_and_not_shown(
    database: Database, column: pa.DataType, values: list[str], said: str
) -> None:
    sql(database, "ALTER TABLE orders ALTER order_id TYPE varchar(20)")
    with pytest.raises(Poison, match=said) as caught, database.transaction() as transaction:
        transaction.append("orders", ["order_id"], [pa.RecordBatch.from_arrays([pa.array(values, column)], ["order_id"])])
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_sum_that_overflows_is_poison(database: Database) -> None:
    with database.transaction() as transaction:
        transaction.append("orders", COLUMNS, [pa.RecordBatch.from_pydict({"order_id": ["a"], "quantity": [2**63 - 1]})])
    with pytest.raises(Poison, match="out of its column's range"), database.transaction() as transaction:
        transaction.accumulate("orders", COLUMNS, ["order_id"], ["quantity"], [rows(0, 1), rows(0, 1)])
        more = pa.RecordBatch.from_pydict({"order_id": ["a"], "quantity": [1]})
        transaction.accumulate("orders", COLUMNS, ["order_id"], ["quantity"], [more])


def test_a_statement_that_takes_too_long_is_transient(postgres_database_url: str) -> None:
    hasty = Database(url=postgres_database_url, statement_timeout_seconds=0.2)
    with pytest.raises(Transient, match="longer than allowed"):
        list(hasty.read("SELECT pg_sleep(10)", name="sleepy"))


def test_tables_of_a_schema_are_found_and_missing_permission_is_misconfigured(database: Database) -> None:
    sql(database, "CREATE SCHEMA sales", "CREATE ROLE clerk LOGIN PASSWORD 'clerk'", "GRANT USAGE ON SCHEMA sales TO clerk")
    in_sales = database.model_copy(update={"schema_name": "sales"})
    columns = (Column("order_id", pa.string(), nullable=False), Column("quantity", pa.int64()))
    in_sales.prepare([TablePlan("lines", columns, ("order_id",), create=True)])
    with in_sales.transaction() as transaction:
        transaction.record_outcome("orders", "t1", 1, "published", "run")
        assert transaction.upsert("lines", COLUMNS, ["order_id"], [rows(0, 2)]) == Applied(inserted=2)
        assert transaction.append("public.orders", COLUMNS, [rows(0, 2)]) == Applied(inserted=2)
    assert database.count("SELECT * FROM sales.lines, sales.bus_outcomes") == 2
    clerk = sa.make_url(database.url).set(username="clerk", password="clerk").render_as_string(hide_password=False)
    try:
        with pytest.raises(Misconfigured, match="permission denied"):
            list(Database(url=clerk).read("SELECT * FROM sales.lines", name="lines"))
    finally:
        sql(database, "DROP OWNED BY clerk", "DROP ROLE clerk")


@pytest.fixture(params=["alike", "unlike"])
def parts(request: pytest.FixtureRequest, database: Database) -> str:
    """A table with one partition, whose columns stand in the same order or in another: Postgres merges them in different ways."""
    of_part = "order_id text NOT NULL, quantity bigint" if request.param == "alike" else "quantity bigint, order_id text NOT NULL"
    sql(
        database,
        'CREATE SCHEMA "Sales"',
        'CREATE TABLE "Sales".parts (order_id text, quantity bigint, PRIMARY KEY (order_id)) PARTITION BY HASH (order_id)',
        f'CREATE TABLE "Sales".parts_0 ({of_part})',
        'ALTER TABLE "Sales".parts ATTACH PARTITION "Sales".parts_0 FOR VALUES WITH (MODULUS 1, REMAINDER 0)',
    )
    return "Sales.parts"


def test_partitioned_tables_take_every_mode(database: Database, parts: str) -> None:
    twice = pa.RecordBatch.from_pydict({"order_id": ["o2", "o9", "o9"], "quantity": [5, 1, 2]})
    with database.transaction() as transaction:
        assert transaction.upsert(parts, COLUMNS, ["order_id"], [rows(0, 1)]) == Applied(inserted=1)
        assert transaction.append(parts, COLUMNS, [rows(1, 1)]) == Applied(inserted=1)
        assert transaction.upsert(parts, COLUMNS, ["order_id"], [rows(1, 2)]) == Applied(inserted=1, updated=1)
        assert transaction.accumulate(parts, COLUMNS, ["order_id"], ["quantity"], [twice]) == Applied(inserted=1, updated=1, folded=1)
        older = transaction.upsert(parts, COLUMNS, ["order_id"], [rows(2, 2)], newest="quantity")
        assert older == Applied(inserted=1, folded=1)
        assert transaction.delete(parts, ["order_id"], [rows(0, 1)]) == Applied(deleted=1)
        assert transaction.replace(parts, COLUMNS, {"order_id": "o1"}, [rows(1, 1)]) == Applied(inserted=1, deleted=1)
    (read,) = database.read('SELECT * FROM "Sales".parts ORDER BY order_id', name="parts")
    assert [tuple(row.values()) for row in read.batch.to_pylist()] == [("o1", 0), ("o2", 6), ("o3", 1), ("o9", 3)]


def test_a_key_that_somebody_inserts_meanwhile_is_counted_as_updated_in_partitions_too(database: Database, parts: str) -> None:
    other = [rows(1, 1)]

    def slip_in(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if other and statement.startswith('INSERT INTO "Sales"'):
            with Database(url=database.url).transaction() as transaction:
                transaction.append(parts, COLUMNS, [other.pop()])

    event.listen(sa.Engine, "before_cursor_execute", slip_in)
    try:
        with database.transaction() as transaction:
            done = transaction.accumulate(parts, COLUMNS, ["order_id"], ["quantity"], [rows(0, 2)])
    finally:
        event.remove(sa.Engine, "before_cursor_execute", slip_in)
    assert done == Applied(inserted=1, updated=1)


def test_types_that_only_postgres_has_become_text_that_a_contract_can_read(database: Database) -> None:
    query = """
        SELECT '6b0b0e6e-9d2c-4f7a-8a3e-0123456789ab'::uuid AS id, '{"b": [1, 2.5], "a": "ż"}'::jsonb AS doc, ARRAY[1, NULL, 3] AS list,
               '10.1.2.3'::inet AS address, 'NaN'::numeric AS odd, 1.50::numeric(10, 2) AS price, '\\x00ff'::bytea AS raw,
               '2024-03-31 01:30+02'::timestamptz AS at, '2024-03-31'::date AS day, '01:02:03'::time AS hour,
               true AS flag, 'infinity'::float8 AS big
    """
    (run,) = database.read(query, name="types")
    (row,) = run.batch.to_pylist()
    assert row["id"] == "6b0b0e6e-9d2c-4f7a-8a3e-0123456789ab"
    assert row["doc"] == '{"a":"ż","b":[1,2.5]}'
    assert (row["list"], row["address"], row["odd"], row["price"]) == ("[1,null,3]", "10.1.2.3", "NaN", Decimal("1.50"))
    assert (row["raw"], row["flag"], row["big"]) == (b"\x00\xff", True, float("inf"))
    assert run.batch.schema.field("at").type == pa.timestamp("us", "UTC")
    assert (row["at"].isoformat(), row["day"].isoformat(), row["hour"].isoformat()) == (
        "2024-03-30T23:30:00+00:00",
        "2024-03-31",
        "01:02:03",
    )


@pytest.mark.parametrize(
    ("kind", "values", "read"),
    [
        ("date", ["2024-01-01", "infinity", "0044-03-15 BC"], ["2024-01-01", "infinity", "0044-03-15 BC"]),
        ("time", ["10:00", "24:00"], ["10:00:00", "24:00:00"]),
        ("timetz", ["24:00+02"], ["24:00:00+02"]),
        ("timestamp", ["2024-01-01 10:00", "12345-01-01"], ["2024-01-01T10:00:00", "12345-01-01 00:00:00"]),
        ("timestamptz", ["2024-01-01 10:00+02", "-infinity"], ["2024-01-01T08:00:00+00:00", "-infinity"]),
        ("interval", ["1000000000 days"], ["1000000000 days"]),
        ("date[]", ["{2024-01-01,infinity}"], ['["2024-01-01","infinity"]']),
    ],
)
def test_a_moment_that_python_cannot_say_comes_as_postgres_wrote_it(
    database: Database, kind: str, values: list[str], read: list[str]
) -> None:
    query = " UNION ALL ".join(f"SELECT '{value}'::{kind} AS value" for value in values)
    (found,) = database.read(query, name="moments")
    assert found.batch.column("value").to_pylist() == read


def test_what_is_read_loses_nothing_to_the_settings_of_its_database(database: Database) -> None:
    spans = "'1 mon'::interval AS month, '1 day 2 hours'::interval AS span, ARRAY['30 days'::interval] AS spans"
    name = make_url(database.url).database
    sql(database, f"ALTER DATABASE {name} SET IntervalStyle = 'iso_8601'", f"ALTER DATABASE {name} SET extra_float_digits = 0")
    (run,) = Database(url=database.url).read(f"SELECT {spans}, 0.1::float8 + 0.2 AS sum", name="settings")
    (row,) = run.batch.to_pylist()
    assert row == {"month": "1 mon", "span": "1 day 02:00:00", "spans": '["30 days"]', "sum": 0.30000000000000004}


def test_json_keeps_its_digits(database: Database) -> None:
    quoted = r"""{"a": 1234567890123456.78, "b c": [1.10, "x: \" y"]}"""
    many = r"""{"{\"a b\": 1.10}",NULL,"\"x\""}"""
    sql(
        database,
        "CREATE TABLE docs (id int, b jsonb, t json, many jsonb[])",
        f"""INSERT INTO docs VALUES (1, '{quoted}', '{{"a" :\n 1e400}}', '{many}')""",
        "INSERT INTO docs VALUES (2, '1234567890123456.78', '12345678901234567890.10', '{}'), (3, '\"x\\u00e9\"', '\"1.10\"', NULL)",
        "INSERT INTO docs VALUES (4, 'null', 'null', '{{1.10},{2}}'), (5, 'true', '[ ]', NULL), (6, NULL, NULL, NULL)",
    )
    (run,) = database.read("SELECT b, t, many FROM docs ORDER BY id", name="docs")
    read = run.batch.to_pydict()
    first = r"""{"a":1234567890123456.78,"b c":[1.10,"x: \" y"]}"""
    assert read["b"] == [first, "1234567890123456.78", "xé", None, "true", None]
    assert read["t"] == ['{"a":1e400}', "12345678901234567890.10", "1.10", None, "[]", None]
    assert read["many"] == ['[{"a b":1.10},null,"x"]', "[]", None, "[[1.10],[2]]", None, None]
    (run,) = database.read("SELECT b FROM docs WHERE id > 4 ORDER BY id", name="docs")
    assert run.batch.column("b").to_pylist() == [True, None]
    numbers = "SELECT v::jsonb AS b, v::json AS t FROM (VALUES ('5.0'), ('-7'), ('12345678901234567890')) AS v (v)"
    (run,) = database.read(numbers, name="numbers")
    assert run.batch.column("b").to_pylist() == run.batch.column("t").to_pylist() == [Decimal("5.0"), -7, 12345678901234567890]


def trigger(body: str, on: str = "INSERT") -> tuple[str, str]:
    """A BEFORE trigger of 'orders' and its function."""
    return (
        f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        f"CREATE TRIGGER meddling BEFORE {on} ON orders FOR EACH ROW EXECUTE FUNCTION meddle()",
    )


@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize(
    ("body", "state"),
    [  # the driver reads %% as a sign
        ("RAISE EXCEPTION 'customer %% is blocked, column secret', NEW.order_id USING ERRCODE = 'BU001';", "BU001"),
        ("ASSERT false, 'secret ' || NEW.order_id;", "P0004"),
        ("SELECT order_id INTO STRICT NEW.order_id FROM orders WHERE order_id = NEW.order_id;", "P0002"),
    ],
)
def test_what_a_trigger_raises_is_about_the_row_and_not_shown(database: Database, body: str, state: str, mode: str) -> None:
    sql(database, *trigger(f"IF NEW.order_id LIKE 'secret%%' THEN {body} END IF; RETURN NEW;"))
    given = pa.RecordBatch.from_pydict({"order_id": ["a", "secret, column secret"], "quantity": [1, 2]})
    said = rf"into table 'orders' in .*: a row was refused \(SQLSTATE {state}\); look at the triggers"
    with pytest.raises(Poison, match=said) as caught, database.transaction() as transaction:
        getattr(transaction, mode)("orders", COLUMNS, batches=[given], **({"key": ["order_id"]} if mode == "upsert" else {}))
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert database.count("SELECT * FROM orders") == 0


def test_what_a_trigger_raises_at_commit_is_about_the_row_and_not_shown(database: Database) -> None:
    sql(
        database,
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE '%%', NEW.order_id USING ERRCODE = 'BU001'; END $$",
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()",
    )
    with pytest.raises(Poison, match=r"committing in .*\(SQLSTATE BU001\)") as caught, database.transaction() as transaction:
        transaction.append("orders", COLUMNS, [rows(0, 1)])
    assert "o0" not in str(caught.value)


def test_what_is_about_a_statement_stays_misconfigured_while_rows_are_written(database: Database) -> None:
    sql(database, *trigger("PERFORM nothing_of_that_name(); RETURN NEW;"))
    with pytest.raises(Misconfigured, match="nothing_of_that_name"), database.transaction() as transaction:
        transaction.append("orders", COLUMNS, [rows(0, 1)])
    with pytest.raises(Misconfigured, match="nothing may be written here"), database.transaction(reading=True) as reading:
        reading.append("orders", COLUMNS, [rows(0, 1)])


DROPS_ONE = "IF NEW.order_id = 'o1' THEN RETURN NULL; END IF; RETURN NEW;"


@pytest.mark.parametrize("there", [0, 1])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("mode", ["upsert", "accumulate", "append", "replace"])
def test_rows_that_a_trigger_drops_are_refused_and_nothing_is_written(database: Database, mode: str, backwards: bool, there: int) -> None:
    if there and mode not in ("append", "replace"):
        with database.transaction() as transaction:
            transaction.append("orders", COLUMNS, [rows(0, there)])
    sql(database, *trigger(DROPS_ONE))
    given = [rows(2, 1), rows(1, 1), rows(0, 1), rows(0, 1)] if backwards and mode in ("upsert", "accumulate") else [rows(0, 3)]
    by_key: dict[str, Any] = {"key": ["order_id"]}
    more = {"upsert": by_key, "accumulate": {**by_key, "sums": ["quantity"]}, "replace": {"scope": {}}}
    said = r"table 'orders' took 2 of 3 rows that differ: a trigger or a rule .* nothing was written"
    before = database.count("SELECT * FROM orders")
    with pytest.raises(Refused, match=said), database.transaction() as transaction:
        getattr(transaction, mode)("orders", COLUMNS, batches=given, **more.get(mode, {}))
    assert database.count("SELECT * FROM orders") == before


def test_a_table_whose_rule_does_something_else_takes_no_upsert(database: Database) -> None:
    sql(database, 'CREATE SCHEMA "Sales"', 'CREATE TABLE "Sales"."or.ders" (order_id text PRIMARY KEY, quantity bigint)')
    sql(database, 'CREATE RULE elsewhere AS ON INSERT TO "Sales"."or.ders" DO INSTEAD INSERT INTO orders VALUES (NEW.order_id)')
    columns = (Column("order_id", pa.string(), nullable=False), Column("quantity", pa.int64()))
    plan = TablePlan('Sales."or.ders"', columns, key=("order_id",))
    with pytest.raises(Misconfigured, match=r"rule 'elsewhere' does something else instead of an INSERT.*; drop it, or use a trigger"):
        database.prepare([plan])
    sql(database, 'DROP RULE elsewhere ON "Sales"."or.ders"')
    database.prepare([plan])


def test_a_key_that_is_deferrable_takes_no_upsert(database: Database) -> None:
    sql(database, "ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD CONSTRAINT late UNIQUE (order_id) DEFERRABLE")
    columns = (Column("order_id", pa.string(), nullable=False), Column("quantity", pa.int64()))
    plan, said = (
        TablePlan("orders", columns, key=("order_id",)),
        r"table 'orders': the key's constraint 'late' is DEFERRABLE.*; drop it, and add it NOT",
    )
    with pytest.raises(Unfit, match=said):
        database.compare([plan])
    sql(database, "ALTER TABLE orders ADD PRIMARY KEY (order_id)")
    with pytest.raises(Unfit, match=said):  # Postgres asks all constraints of these columns
        database.compare([plan])
    database.compare([TablePlan("orders", columns)])
    with pytest.raises(Misconfigured, match="deferrable"), database.transaction() as transaction:
        for _ in range(2):
            transaction.upsert("orders", COLUMNS, ["order_id"], [rows(0, 1)])
    sql(database, "ALTER TABLE orders DROP CONSTRAINT late, ADD CONSTRAINT late UNIQUE (order_id, quantity) DEFERRABLE")
    database.compare([plan])


def test_a_key_that_came_once_is_merged_with_no_other(database: Database) -> None:
    sql(database, "ALTER TABLE orders ALTER order_id TYPE char(5)")
    given = pa.RecordBatch.from_pydict({"order_id": ["b", "a ", "a"], "quantity": [1, 2, 3]})
    with pytest.raises(Refused, match="took 2 of 3 rows"), database.transaction() as transaction:
        transaction.upsert("orders", COLUMNS, ["order_id"], [given], unique=True)


@pytest.mark.parametrize("newest", [None, "quantity"])
def test_rows_that_a_trigger_alters_or_need_not_write_are_taken(database: Database, newest: str | None) -> None:
    sql(
        database,
        "ALTER TABLE orders ADD seen text",
        *trigger("NEW.seen = 'yes'; RETURN NEW;", on="INSERT OR UPDATE"),
        "CREATE TRIGGER z_save BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    )
    first, again = rows(0, 2), pa.RecordBatch.from_pydict({"order_id": ["o2", "o1", "o0"], "quantity": [2, 1, 0]})
    with database.transaction() as transaction:
        assert transaction.upsert("orders", COLUMNS, ["order_id"], [first], newest=newest, unique=True) == Applied(inserted=2)
        assert transaction.upsert("orders", COLUMNS, ["order_id"], [again], newest=newest, unique=True) == Applied(inserted=1, folded=2)
    assert database.count("SELECT * FROM orders WHERE seen = 'yes'") == 3


def test_what_the_trigger_of_a_view_makes_of_rows_is_not_counted(database: Database) -> None:
    sql(
        database,
        "CREATE VIEW shown AS SELECT order_id, quantity FROM orders",
        "CREATE FUNCTION through() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO orders VALUES (NEW.order_id, NEW.quantity); RETURN NULL; END'",
        "CREATE TRIGGER through INSTEAD OF INSERT ON shown FOR EACH ROW EXECUTE FUNCTION through()",
    )
    with database.transaction() as transaction:
        transaction.append("shown", COLUMNS, [rows(0, 2)])
    assert database.count("SELECT * FROM orders") == 2


@pytest.mark.parametrize(
    ("kind", "key"),
    [("varchar(3)", pa.array(["secret"])), ("numeric(3)", pa.array([12345])), ("timestamp(0)", pa.array([1], pa.timestamp("us")))],
)
def test_a_value_that_a_column_cannot_hold_is_told_of_the_destination(database: Database, kind: str, key: pa.Array) -> None:
    sql(database, f"CREATE TABLE narrow (order_id {kind} PRIMARY KEY)")
    with (
        pytest.raises((Misconfigured, Poison), match=r"table 'public\.narrow'.*column 'order_id'") as caught,
        database.transaction() as done,
    ):
        done.upsert("public.narrow", ["order_id"], ["order_id"], [pa.RecordBatch.from_arrays([key], ["order_id"])])
    assert "bus_load" not in str(caught.value)
