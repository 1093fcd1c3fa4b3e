"""Bad input through a whole route: the error names route, stop and place; nothing is half-written; the trip drives again."""

import gzip
import json
import sqlite3
import tempfile
import threading
from contextlib import closing, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlalchemy as sa

from bus_assets import Contract, DropOff, Endpoint, Field, PickUp, Query, Table, TableKey, TextFile, XmlFeed
from resources.database import Database
from resources.errors import BusError, Misconfigured, Poison, Refused, Transient
from resources.http import WebService
from tests.world import GOOD, ORDERS, World, shop

DATED = Contract((Field("order_id", required=True), Field("qty", "integer"), Field("on", "date")), max_rejected=1)
BOMB = '<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><orders><order id="1">&b;</order></orders>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><orders><order id="1">&x;</order></orders>'
IDS = Contract((Field("id", required=True),))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def text_route(contract=ORDERS, path="orders*", **options):
    stop = PickUp("orders", TextFile("landing", path, **options), contract)
    return shop(stops=(stop, DropOff("log", Table("warehouse", "log", create=True))))


def xml_route(**options):
    feed = XmlFeed("landing", "orders.xml", **{"row": "order", "fields": {"id": "@id"}, **options})
    return shop(stops=(PickUp("orders", feed, IDS), DropOff("log", Table("warehouse", "log", create=True))))


FATAL_TEXT = {
    "wrong delimiter": (GOOD.replace(",", ";").encode(), Misconfigured, "orders.csv: ", "declared as ',' but is probably ';'"),
    "truncated gzip": (gzip.compress((GOOD + "O-9,1,1\n" * 5000).encode())[:-20], Poison, "orders.gz: ", "the gzip ends too early"),
    "wrong encoding": ("order_id,qty,price\nO-1,1,1\nO-\xe4,1,1\n".encode("latin-1"), Poison, "orders.csv, line 3: ", "is not utf-8"),
    "duplicate headers": (b"order_id,qty,qty,price\nO-1,1,2,3\n", Misconfigured, "orders.csv: ", "'qty' is wanted but appears 2 times"),
    "empty file": (b"", Poison, "orders.csv: ", "the file is empty"),
    "missing column": (b"order_id,price\nO-1,1\n", Misconfigured, "orders.csv: ", "there is no column 'qty'"),
    "unclosed quote": (b'order_id,qty,price\nO-1,1,1\n"O-2,1,1\n', Poison, "orders.csv, line 3: ", "a quote that opens in the record"),
}


@pytest.mark.parametrize("case", FATAL_TEXT)
def test_a_file_that_cannot_be_read_fails_the_trip_which_then_drives_again(world, case):
    content, kind, place, said = FATAL_TEXT[case]
    path = world.land(content, place.partition(":")[0].partition(",")[0])
    with pytest.raises(kind) as error:
        world.drive(text_route())
    assert str(error.value).startswith(f"route 'shop', stop 'orders', {place}")
    assert said in str(error.value)
    assert world.rows("log") == []
    trip = world.depot.trips()[0]
    assert (trip.state, trip.error) == ("failed", str(error.value))
    path.unlink()
    world.land(GOOD)
    assert [row[0] for row in world.drive_again(text_route())] == ["O-1", "O-2", "O-3"]


def test_a_record_that_is_too_long_is_told_with_the_option_that_lets_it_pass(world):
    world.land('order_id,qty,price,note\nO-1,1,1,"' + "x\n" * 10_000 + '"\n')
    with pytest.raises(BusError, match=r"orders\.csv, line 2: the record here is longer than .*; if not, raise (\w+)$") as error:
        world.drive(text_route(longest_record_bytes=2000))
    options: dict[str, Any] = {str(error.value).split()[-1]: 30_000}
    world.drive(text_route(**options))
    assert len(world.rows("log")) == 1


def test_no_file_at_all_is_told(world):
    with pytest.raises(Misconfigured, match=r"route 'shop', stop 'orders'.*orders\*"):
        world.drive(text_route())
    world.land(GOOD)
    assert len(world.drive_again(text_route())) == 3


REJECTED_TEXT = {
    "too few fields": (b"order_id,qty,on\nO-1,1\nO-2,1,2026-01-01\n", 2, "expected 3 fields, found 2"),
    "too many fields": (b"order_id,qty,on\nO-1,1,2026-01-01,x\nO-2,1,2026-01-01\n", 2, "expected 3 fields, found 4"),
    "NUL byte": (b"order_id,qty,on\nO-\0,1,2026-01-01\nO-2,1,2026-01-01\n", 2, "NUL"),
    "overflowing number": (b"order_id,qty,on\nO-2,1,2026-01-01\nO-1,99999999999999999999,2026-01-01\n", 3, "99999999999999999999"),
    "impossible date": (b"order_id,qty,on\nO-2,1,2026-01-01\nO-1,1,2026-02-30\n", 3, "2026-02-30"),
}


@pytest.mark.parametrize("case", REJECTED_TEXT)
def test_a_row_that_cannot_be_read_waits_in_quarantine_and_the_others_go_on(world, case):
    content, line, said = REJECTED_TEXT[case]
    world.land(content)
    drive = world.drive(text_route(DATED))
    assert [row[0] for row in world.rows("log")] == ["O-2"]
    (row,) = world.depot.quarantined(trip=drive.trip.id)
    assert (row.origin, row.unit, row.position) == ("orders.csv", "line", line)
    assert said in row.reasons[0].message


def test_a_byte_order_mark_is_no_part_of_the_first_column(world):
    world.land(b"\xef\xbb\xbf" + GOOD.encode())
    world.drive(text_route())
    assert len(world.rows("log")) == 3


def test_a_header_without_rows_is_an_empty_trip_unless_rows_are_asked_for(world):
    world.land("order_id,qty,price\n")
    drive = world.drive(text_route())
    assert world.depot.trip(drive.trip.id).state == "delivered"
    with pytest.raises(BusError, match="0 rows passed, but the contract asks for at least 1"):
        world.drive(text_route(Contract(ORDERS.fields, min_rows=1)))
    world.land(GOOD)
    assert len(world.drive_again(text_route(Contract(ORDERS.fields, min_rows=1)))) == 3


FATAL_XML = {
    "cut": ('<orders><order id="1"/><order id="2', Poison, "the XML is cut or broken"),
    "cut between rows": ('<orders><order id="1"/>', Poison, "the XML is cut or broken"),
    "bomb": (BOMB, Poison, "declares the entity 'a'"),
    "external entity": (OUTSIDE, Poison, "declares the external entity 'x'"),
    "wrong namespace": ('<orders xmlns="http://shop"><order id="1"/></orders>', Misconfigured, "namespaces="),
}


@pytest.mark.parametrize("case", FATAL_XML)
def test_a_feed_that_cannot_be_trusted_fails_the_trip_which_then_drives_again(world, case):
    text, kind, said = FATAL_XML[case]
    world.land(text, "orders.xml")
    with pytest.raises(kind) as error:
        world.drive(xml_route())
    assert str(error.value).startswith("route 'shop', stop 'orders', orders.xml")
    assert said in str(error.value)
    assert "root:" not in str(error.value)
    assert world.rows("log") == []
    world.land('<orders><order id="1"/></orders>', "orders.xml")
    assert world.drive_again(xml_route()) == [("1",)]


class Service(BaseHTTPRequestHandler):
    """Answers what the test wants, then the same again."""

    status, body, headers_out = 200, b"[]", {}

    def do_GET(self):
        self.send_response(type(self).status)
        for name, value in {"Content-Length": str(len(type(self).body)), **type(self).headers_out}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(type(self).body)

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    handler = type("Handler", (Service,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ENDLESS = json.dumps({"data": [{"id": "1"}], "next": "/orders"}).encode()
NEXT = {"kind": "next_url"}
BAD_ANSWERS = {
    "too many requests": (429, b"slow down", {"Retry-After": "0"}, Transient, "answered 429"),
    "server error": (500, b"oops", {}, Transient, "answered 500"),
    # What arrived is JSON, and yet not all that was sent.
    "cut connection": (200, b'{"data": [{"id": "9"}]}', {"Content-Length": "100"}, Transient, "did not answer or broke off"),
    "endless paging": (200, ENDLESS, {}, Poison, "paging never ends"),
    "invalid JSON": (200, b'{"data": [{"id": "9"}', {}, Poison, "the body is not JSON but begins like it"),
    "refused login": (401, b"", {}, Misconfigured, "refused the credentials (401"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_service_that_misbehaves_fails_the_trip_by_name_and_the_trip_drives_again(tmp_path, service, case):
    handler, url = service
    handler.status, handler.body, handler.headers_out, kind, said = BAD_ANSWERS[case]
    crm = WebService(base_url=url, attempts=2, backoff_seconds=0.01, auth="bearer", token="t0psecret")
    world = World(tmp_path, crm=crm)
    endpoint = Endpoint("crm", "/orders", records="data", paging=NEXT)
    route = shop(stops=(PickUp("orders", endpoint, IDS), DropOff("log", Table("warehouse", "log", create=True))))
    with pytest.raises(kind) as error:
        world.drive(route)
    assert str(error.value).startswith("route 'shop', stop 'orders', /orders, page ")
    assert said in str(error.value)
    assert "t0psecret" not in str(error.value)
    assert world.rows("log") == []
    handler.status, handler.body, handler.headers_out = 200, b'{"data": [{"id": "1"}, {"id": "2"}]}', {}
    assert world.drive_again(route) == [("1",), ("2",)]


QUERIES = {
    "column": ("SELECT code AS id FROM orders", "no such column: code", "ALTER TABLE orders RENAME id TO code"),
    "table": ("SELECT id FROM sales", "no such table: sales", "ALTER TABLE orders RENAME TO sales"),
}


@pytest.mark.parametrize("case", QUERIES)
def test_a_query_for_what_is_not_there_is_told_and_the_trip_drives_again(tmp_path, case):
    sql, said, repair = QUERIES[case]
    with sqlite3.connect(tmp_path / "legacy.db") as connection:
        connection.execute("CREATE TABLE orders AS SELECT '1' AS id")
    world = World(tmp_path, legacy=Database(url=f"sqlite:///{tmp_path}/legacy.db"))
    route = shop(
        stops=(PickUp("orders", Query("legacy", sql, name="sold"), IDS), DropOff("log", Table("warehouse", "log", create=True))),
    )
    with pytest.raises(Misconfigured) as error:
        world.drive(route)
    assert str(error.value).startswith("route 'shop', stop 'orders'")
    assert "query 'sold'" in str(error.value)
    assert said in str(error.value)
    with sqlite3.connect(tmp_path / "legacy.db") as connection:
        connection.execute(repair)
    assert world.drive_again(route) == [("1",)]


def test_a_day_of_postgres_that_is_none_here_waits_in_quarantine_and_the_others_go_on(tmp_path, postgres_database_url):
    days = "SELECT '1' AS id, '2024-01-01'::date AS \"on\" UNION ALL SELECT '2', 'infinity' UNION ALL SELECT '3', '2024-01-03'"
    world = World(tmp_path, legacy=Database(url=postgres_database_url))
    contract = Contract((Field("id", required=True), Field("on", "date")), max_rejected=1)
    drop = DropOff("log", Table("warehouse", "log", create=True))
    drive = world.drive(shop(stops=(PickUp("days", Query("legacy", days), contract), drop)))
    assert [row[0] for row in world.rows("log")] == ["1", "3"]
    (waiting,) = world.depot.quarantined(trip=drive.trip.id)
    assert (waiting.position, waiting.reasons[0].message) == (2, "'infinity' is not a date, YYYY-MM-DD")


@pytest.fixture
def changing(tmp_path, monkeypatch):
    """A legacy database whose prices begin as whole numbers, read two rows at a time: SQLite stores 5.00 as the integer 5."""
    monkeypatch.setattr(Database.read, "__kwdefaults__", {**(Database.read.__kwdefaults__ or {}), "batch_rows": 2})
    monkeypatch.setattr("resources.database.BATCH_ROWS", 2)
    with sqlite3.connect(tmp_path / "legacy.db") as connection:
        connection.execute("CREATE TABLE goods (id TEXT, price DECIMAL(10,2))")
        connection.executemany("INSERT INTO goods VALUES (?, ?)", [("a", 4), ("b", 5.0), ("c", 5.25), ("d", 7), ("e", 0.1)])
    return World(tmp_path, legacy=Database(url=f"sqlite:///{tmp_path}/legacy.db"))


def test_fractions_after_whole_numbers_land_as_they_are(changing):
    contract = Contract((Field("id", required=True), Field("price", "decimal(10,2)", required=True)))
    source = Query("legacy", "SELECT id, price FROM goods ORDER BY id")
    changing.drive(shop(stops=(PickUp("goods", source, contract), DropOff("log", Table("warehouse", "log", create=True)))))
    assert changing.rows("log") == [("a", "4.00"), ("b", "5.00"), ("c", "5.25"), ("d", "7.00"), ("e", "0.10")]


def test_a_key_with_a_fraction_is_that_key_after_whole_ones(changing):
    price = Field("price", "decimal(10,2)", references=TableKey("legacy", "goods", "price"))
    changing.land("id,price\n1,5.25\n2,5.2\n3,4\n4,0.1\n")
    drive = changing.drive(text_route(Contract((Field("id"), price), max_rejected=1)))
    assert [row[0] for row in changing.rows("log")] == ["1", "3", "4"]
    assert [row.position for row in changing.depot.quarantined(trip=drive.trip.id)] == [3]


def test_a_table_with_another_schema_is_told_column_by_column(world):
    world.land(GOOD)
    with sqlite3.connect(world.root / "warehouse.db") as connection:
        connection.execute("CREATE TABLE log (order_id INTEGER, qty INTEGER, must INTEGER NOT NULL)")
    with pytest.raises(Misconfigured) as error:
        world.drive(text_route())
    for said in ("price", "order_id", "must"):
        assert said in str(error.value)
    with sqlite3.connect(world.root / "warehouse.db") as connection:
        connection.execute("DROP TABLE log")
    assert len(world.drive_again(text_route())) == 3


def test_a_table_that_is_not_there_shows_the_statement_to_run(world):
    world.land(GOOD)
    route = shop(stops=(shop()["orders"], DropOff("log", Table("warehouse", "log"))))
    with pytest.raises(Misconfigured, match=r"route 'shop', .*table 'log' does not exist.*CREATE TABLE") as error:
        world.drive(route)
    with sqlite3.connect(world.root / "warehouse.db") as connection:
        connection.execute(str(error.value)[str(error.value).index("CREATE TABLE") :])
    assert len(world.drive_again(route)) == 3


TWO_TABLES = shop(
    stops=(shop()["orders"], DropOff("made", Table("warehouse", "made", create=True)), DropOff("log", Table("warehouse", "log")))
)
FITS = "CREATE TABLE log (order_id TEXT, qty INTEGER, price NUMERIC(10, 2))"


@pytest.mark.parametrize(
    ("there", "said"), [(None, "table 'log' does not exist"), ("CREATE TABLE log (order_id TEXT)", "'qty' is missing")]
)
def test_a_table_that_cannot_take_the_rows_is_told_at_its_drop_off_before_anything_is_read(world, there, said):
    if there:
        execute(world, there)
    with pytest.raises(
        Misconfigured, match=rf"^route 'shop', stop 'log': nothing was read, since sqlite:.* cannot take the rows: .*{said}"
    ):
        world.drive(TWO_TABLES)  # there is no file of orders either
    (trip,) = world.depot.trips()
    assert (trip.state, world.depot.newest_attempt(trip.id).kind) == ("failed", "misconfigured")
    assert (world.root / "warehouse.db").exists() == bool(there), "a look makes nothing"
    execute(world, "DROP TABLE IF EXISTS log", FITS)
    world.land(GOOD)
    assert len(world.drive_again(TWO_TABLES)) == 3


def test_sums_in_a_column_of_text_are_told_before_anything_is_read(world):
    execute(world, "CREATE TABLE log (order_id TEXT PRIMARY KEY, qty TEXT, price TEXT)")
    summed = Table("warehouse", "log", key="order_id", mode="accumulate", sums=("qty", "price"))
    with pytest.raises(Misconfigured, match=r"nothing was read, since .* column 'qty' is TEXT, in which 5 and 6 add up to 56") as error:
        world.drive(shop(stops=(shop()["orders"], DropOff("log", summed))))
    assert "'price'" not in str(error.value), "a decimal is text on SQLite, and added as what it is"


def test_a_table_that_no_longer_fits_when_it_is_published_is_told_at_its_drop_off(world):
    execute(world, FITS)
    world.land(GOOD)
    with pytest.raises(Misconfigured, match=r"^route 'shop', stop 'log': sqlite:.* cannot take the rows: table 'log' does not exist"):
        world.drive(TWO_TABLES, before=lambda drive, stop: execute(world, "DROP TABLE log") if stop == "warehouse" else None)


def test_several_tables_that_do_not_fit_are_told_with_their_drop_offs(world):
    drops = (DropOff(name, Table("warehouse", name, create=name == "b")) for name in "abc")
    with pytest.raises(
        Misconfigured, match=r"stop 'a': nothing was read, since tables of drop-offs 'a', 'c': .*'a' does not .*'c' does not"
    ):
        world.drive(shop(stops=(shop()["orders"], *drops)))


def test_tables_are_not_looked_at_where_nothing_will_be_published(world):
    world.land(GOOD)
    execute(world, FITS)
    world.drive(TWO_TABLES)
    execute(world, "DROP TABLE log")
    rehearsed = shop(stops=(*TWO_TABLES.stops, shop()["priced"]))
    for select in (["orders"], ["priced"]):
        drive = world.drive(rehearsed, select=select)
        assert world.depot.trip(drive.trip.id).state == "rehearsed"


def test_a_database_that_sees_to_its_tables_itself_is_not_told_of_them_before(world):
    class Migrated(Database):
        def prepare(self, tables):
            execute(world, FITS.replace("TABLE", "TABLE IF NOT EXISTS"))
            super().prepare(tables)

    world.bus.systems["warehouse"] = Migrated(url=world.warehouse_url)
    world.land(GOOD)
    world.drive(TWO_TABLES)
    assert len(world.rows("log")) == 3


def test_a_destination_of_ones_own_that_cannot_compare_tables_is_asked_when_it_is_published(world):
    class Own:
        def __init__(self, database):
            self.prepare, self.transaction = database.prepare, database.transaction

    world.bus.systems["warehouse"] = Own(world.bus.systems["warehouse"])
    world.land(GOOD)
    with pytest.raises(Misconfigured, match=r"^route 'shop', stop 'log': sqlite:.* cannot take the rows: table 'log' does not exist"):
        world.drive(TWO_TABLES)
    execute(world, FITS)
    assert len(world.drive_again(TWO_TABLES)) == 3


def test_keys_that_are_one_to_the_table_are_refused_at_its_drop_off(tmp_path, postgres_database_url):
    """Out of order and in a type that ignores blanks, so that only the contract tells them apart."""
    world, engine = World(tmp_path, postgres_database_url), sa.create_engine(postgres_database_url, poolclass=sa.NullPool)
    by_id = shop(stops=(shop()["orders"], DropOff("log", Table("warehouse", "log", key="order_id"))))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE log (order_id char(9) PRIMARY KEY, qty bigint, price numeric(10, 2))")
    world.land(GOOD + "O-1 ,1,1.00\n")
    with pytest.raises(Refused, match=r"^route 'shop', stop 'log': table 'log' took 3 of 4 rows that differ"):
        world.drive(by_id)
    assert world.rows("log") == []
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE log ALTER order_id TYPE text")
    assert len(world.drive_again(by_id)) == 4


def test_a_database_that_cannot_be_looked_at_now_is_tried_again(world):
    world.bus.systems["warehouse"] = Database(url=world.warehouse_url, lock_timeout_seconds=0.1)
    world.land(GOOD)
    execute(world, FITS)
    with closing(sqlite3.connect(world.root / "warehouse.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Transient, match=r"^route 'shop', stop 'made': looking at tables in sqlite:.*somebody else holds a lock"):
            world.drive(TWO_TABLES)
        (trip,) = world.depot.trips()
        assert (trip.state, world.depot.newest_attempt(trip.id).kind) == ("failed", "transient")
    assert len(world.drive_again(TWO_TABLES)) == 3


def test_a_url_that_does_not_read_is_told_with_its_resource(tmp_path):
    world = World(tmp_path, warehouse_url="sqlite://x.db", legacy=Database(url="pa55word"))
    with pytest.raises(
        Misconfigured, match=r"^route 'shop', stop 'totals', resource 'warehouse': .*three slashes.* write sqlite:///x\.db$"
    ):
        world.drive(shop())
    query = PickUp("ids", Query("legacy", "SELECT 1 AS id"), IDS)
    with pytest.raises(Misconfigured, match=r"^route 'shop', stop 'ids', resource 'legacy': the database URL cannot be read; [^5]*$"):
        world.drive(shop(stops=(query,)))


def execute(world, *statements):
    with closing(sqlite3.connect(world.root / "warehouse.db")) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_lock_held_by_somebody_else_ends_in_time_and_the_trip_drives_again(tmp_path):
    world = World(tmp_path)
    world.bus.systems["warehouse"] = Database(url=world.warehouse_url, lock_timeout_seconds=0.2)
    world.land(GOOD)
    other = sqlite3.connect(tmp_path / "warehouse.db", isolation_level=None)

    def hold(drive, stop):
        if stop == "warehouse":
            other.execute("BEGIN IMMEDIATE")

    with pytest.raises(Transient, match=r"route 'shop', .*somebody else holds a lock.*; if it goes on, find who holds the lock; ") as error:
        world.drive(text_route(), before=hold)
    trip = world.depot.trips(limit=1)[0]
    assert str(error.value).endswith(f"; `bus drive shop --trip {trip.id}` tries the trip again")
    assert (trip.error, str(error.value).count("again")) == (str(error.value), 2)  # and "try again later": nobody does it by himself
    other.execute("ROLLBACK")
    other.close()
    assert len(world.drive_again(text_route())) == 3


def test_a_connection_lost_while_copying_writes_nothing_and_the_trip_drives_again(tmp_path, postgres_url):
    world = World(tmp_path, warehouse_url=postgres_url)
    world.land("order_id,qty,price\n" + "".join(f"O-{n},1,1\n" for n in range(200_000)))
    killer = sa.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    ended = threading.Event()

    def end_the_copy():
        with killer.connect() as connection:
            while not ended.is_set():
                found = connection.execute(
                    sa.text(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND pid <> pg_backend_pid()"
                    )
                ).scalar()
                if found:
                    return

    thread = threading.Thread(target=end_the_copy)
    thread.start()
    try:
        with pytest.raises(Transient, match=r"route 'shop', stop 'log'.*the connection was lost"):
            world.drive(text_route())
    finally:
        ended.set()
        thread.join()
    assert world.rows("log") == []
    assert len(world.drive_again(text_route())) == 200_000


# A full disk


def full_staging(patch):
    """/dev/full answers ENOSPC to every write."""
    opened = Path.open

    def full(self, mode="r", **more):
        return opened(Path("/dev/full"), "wb") if mode == "xb" else opened(self, mode, **more)

    patch.setattr(Path, "open", full)


def full_for_rejected_rows(patch):
    patch.setattr(tempfile, "TemporaryFile", lambda mode, **more: Path("/dev/full").open(mode))  # noqa: SIM115


def full_for_duckdb(patch):
    class Full:
        def cursor(self):
            return self

        def execute(self, *_):
            raise duckdb.OutOfMemoryException("Out of Memory Error: failed to offload data block of size 256.0 KiB (1.9 MiB/1.9 MiB used).")

        def close(self):
            pass

    patch.setattr("bus_assets.stage.duck", lambda: nullcontext(Full()))


FULL = {"staging": full_staging, "rejected rows": full_for_rejected_rows, "DuckDB": full_for_duckdb}


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_is_told_and_leaves_nothing_and_with_room_the_trip_lands_once(world, monkeypatch, case):
    world.land(GOOD + "X-4,1,1\n")
    with monkeypatch.context() as patch:
        FULL[case](patch)
        with pytest.raises(Transient, match=r"^route 'shop', stop 'orders', /.*: the disk is full.*; free space there"):
            world.drive(text_route())
    (trip,) = world.depot.trips()
    assert (trip.state, "the disk is full" in (trip.error or "")) == ("failed", True)
    assert (world.depot.verdicts(trip.id), world.depot.quarantined(state=None), world.rows("log")) == ({}, [], [])
    assert list(world.staging.root.rglob("*.tmp")) == []
    for _ in range(2):
        world.drive(text_route(), tagged=trip.id)
        assert [row[0] for row in world.rows("log")] == ["O-1", "O-2", "O-3"]
        assert [row.payload["order_id"] for row in world.depot.quarantined()] == ["X-4"]


def test_a_full_warehouse_is_told_and_has_nothing_of_the_trip_and_with_room_it_lands_once(world):
    world.land(GOOD)
    world.drive(text_route())
    limit = {"pages": sqlite3.connect(world.root / "warehouse.db").execute("PRAGMA page_count").fetchone()[0]}
    engine = world.bus.systems["warehouse"]._lazy_engine()
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {limit['pages']}"))
    world.land("order_id,qty,price\n" + "".join(f"O-{number:06},1,1\n" for number in range(5_000)))
    said = r"^route 'shop', stop 'log': appending to table 'log' in sqlite:.*warehouse\.db: the database's disk is full.*; free space there"
    with pytest.raises(Transient, match=said):
        world.drive(text_route())
    trip = world.depot.trips(state="failed")[0]
    assert "disk is full" in str(trip.error)
    assert len(world.rows("log")) == 3
    limit["pages"] = 1 << 30
    for _ in range(2):
        world.drive(text_route(), tagged=trip.id)
        assert len(world.rows("log")) == 5_003


def test_identifiers_with_quotes_are_just_names(world):
    world.land(GOOD)
    drop = DropOff("log", Table("warehouse", '"weird ""table"" ; drop"', create=True), columns={'a "b"': "order_id", "select": "qty"})
    world.drive(shop(stops=(shop()["orders"], drop)))
    assert len(world.rows('"weird ""table"" ; drop"')) == 3
