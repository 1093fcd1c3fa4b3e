"""The account of a trip, and its recount that does not believe the platform."""

import sqlite3

import pytest
import sqlalchemy as sa

from bus_assets import Contract, DropOff, Field, PickUp, Table, TextFile, Transform
from bus_assets.account import account
from resources.database import Database
from resources.depot.entries import NoSuchTrip
from resources.errors import BusError, Refused
from tests.world import ORDERS, PRICED, World, shop

DIRTY = "order_id,qty,price\nO-1,2,3.50\nO-2,1,1.00\nX-3,0,0.10\nO-4,1\n"


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.land(DIRTY)
    return made


def of(world, drive, route=None, **more):
    return account(world.bus, route or drive.route, drive.trip.id, **more)


def differing(made):
    return [(recount.stop, recount.what) for recount in made.recounts if recount.status == "differs"]


def test_every_row_picked_up_is_kept_or_rejected_with_its_reasons(world):
    made = of(world, world.drive(shop()))
    orders, priced = made.stops
    assert (orders.picked_up, orders.kept, orders.rejected) == (4, 2, 2)
    assert orders.reasons == {"readable": 1, "order_id: pattern ^O-": 1, "qty: minimum 1": 1}
    assert (priced.came_in, priced.picked_up, priced.kept) == (2, 2, 2)
    assert [(drop.stop, drop.offered, drop.inserted) for drop in made.drop_offs] == [("totals", 2, 2), ("log", 2, 2)]
    assert made.balanced
    assert not differing(made)
    assert made.totals == {"picked_up": 4, "rejected": 2, "dropped_off": 4}


def test_the_recount_covers_source_staging_quarantine_and_tables(world):
    made = of(world, world.drive(shop()))
    counted = {(recount.stop, recount.what): (recount.found, recount.status) for recount in made.recounts}
    assert counted[("orders", "picked up")] == (4, "agrees")
    assert counted[("orders", "kept")] == (2, "agrees")
    assert counted[("orders", "rejected")] == (2, "agrees")
    assert counted[("totals", "keys there")] == (2, "agrees")
    assert counted[("log", "rows there")] == (2, "agrees")


@pytest.mark.parametrize("schema", ["Sales", 'sa"les'])
def test_a_table_without_a_key_is_counted_again_in_a_schema_of_any_name(tmp_path, postgres_database_url, schema):
    database = Database(url=postgres_database_url, schema_name=schema)
    with sa.create_engine(postgres_database_url.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "' + schema.replace('"', '""') + '"')
    world = World(tmp_path, warehouse=database)
    world.land(DIRTY)
    made = of(world, world.drive(shop()))
    assert [(recount.found, recount.status) for recount in made.recounts if recount.what == "rows there"] == [(2, "agrees")]


def test_a_row_lost_from_the_table_is_found(world):
    drive = world.drive(shop())
    with sqlite3.connect(world.root / "warehouse.db") as connection:
        connection.execute("DELETE FROM totals WHERE order_id = 'O-1'")
        connection.execute("DELETE FROM log WHERE order_id = 'O-2'")
    made = of(world, drive)
    assert differing(made) == [("totals", "keys there"), ("log", "rows there")]
    assert not made.balanced
    assert of(world, drive, recount=False).balanced


def test_a_row_doubled_in_a_table_of_our_own_is_found(world):
    drive = world.drive(shop())
    with sqlite3.connect(world.root / "warehouse.db") as connection:
        connection.execute("INSERT INTO log SELECT * FROM log LIMIT 1")
    assert differing(of(world, drive)) == [("log", "rows there")]


def test_rows_that_others_append_to_a_table_of_theirs_are_said_and_not_blamed(world):
    with sqlite3.connect(world.root / "warehouse.db") as connection:
        connection.execute("CREATE TABLE log (order_id TEXT NOT NULL, qty BIGINT, price TEXT NOT NULL)")
        connection.execute("INSERT INTO log VALUES ('theirs', 1, '1')")
    route = shop(stops=(PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS), DropOff("log", Table("warehouse", "log"))))
    made = of(world, world.drive(route))
    there = next(recount for recount in made.recounts if recount.what == "rows there")
    assert (there.status, there.found, there.expected) == ("not counted", 3, 2)
    assert "somebody else writes" in there.note
    assert made.balanced


def test_a_source_that_changed_since_is_a_difference_with_that_hint(world):
    drive = world.drive(shop())
    world.land(DIRTY + "O-9,1,1.00\n")
    made = of(world, drive)
    assert differing(made) == [("orders", "picked up")]
    assert "changed since" in next(recount.note for recount in made.recounts if recount.status == "differs")


def test_a_source_that_is_gone_is_a_difference_and_no_error(world):
    drive = world.drive(shop())
    (world.root / "landing" / "orders.csv").unlink()
    made = of(world, drive)
    assert differing(made) == [("orders", "picked up")]
    assert "no file matches" in made.recounts[0].note


def test_staged_rows_that_were_changed_by_hand_are_found(world):
    import pyarrow.parquet as pq

    drive = world.drive(shop())
    staged = sorted((world.root / "staging").rglob("*.parquet"))
    orders = next(path for path in staged if "/orders/" in str(path))
    orders.chmod(0o600)
    pq.write_table(pq.read_table(orders).slice(1), orders)
    assert ("orders", "kept") in differing(of(world, drive))


def test_rows_left_out_by_where_are_counted_twice_over(world):
    stops = (
        PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS),
        DropOff("big", Table("warehouse", "big", create=True), where="qty > 1"),
    )
    made = of(world, world.drive(shop(stops=stops)))
    big = made.drop_offs[0]
    assert (big.offered, big.left_out, big.inserted) == (2, 1, 1)
    assert next(recount.found for recount in made.recounts if recount.what == "left out") == 1
    assert made.balanced


def test_folded_rows_and_a_changed_grain_are_shown(world):
    world.land("order_id,qty,price\nO-1,1,1.00\nO-2,1,2.00\nO-3,2,3.00\n")
    totals = Contract((Field("qty", "integer"), Field("total", "decimal(14,2)")))
    stops = (
        PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS),
        Transform("by_qty", "SELECT qty, sum(price) AS total FROM orders GROUP BY qty", totals, grain="changed"),
        DropOff("sums", Table("warehouse", "sums", key="qty", create=True), of="by_qty"),
        DropOff("last", Table("warehouse", "last", key="qty", create=True), of="orders", columns=("qty", "order_id")),
    )
    made = of(world, world.drive(shop(stops=stops)))
    by_qty = made.stops[1]
    assert (by_qty.came_in, by_qty.picked_up, by_qty.grain) == (3, 2, "changed")
    last = made.drop_offs[1]
    assert (last.offered, last.folded, last.inserted) == (3, 1, 2)
    assert made.balanced


def test_rows_older_than_the_tables_are_folded_and_a_later_trip_with_them_changes_nothing(world):
    stops = (
        PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS),
        DropOff("last", Table("warehouse", "last", key="order_id", create=True, newest="qty")),
    )
    world.land("order_id,qty,price\nO-1,7,1.00\nO-2,7,2.00\n")
    world.drive(shop(stops=stops))
    world.land("order_id,qty,price\nO-1,6,9.00\nO-2,8,9.00\nO-3,1,9.00\n")
    made = of(world, world.drive(shop(stops=stops)))
    (last,) = made.drop_offs
    assert (last.offered, last.folded, last.inserted, last.updated) == (3, 1, 1, 1)
    assert made.balanced
    assert [row[:2] for row in sorted(world.rows("last"))] == [("O-1", 7), ("O-2", 8), ("O-3", 1)]


def test_rows_that_nothing_drops_are_said_to_be_aboard(world):
    world.land("order_id,qty,price\nO-1,1,1.00\n", "orders.csv")
    world.land("id\nO-1\n", "known.csv")
    stops = (
        PickUp("known", TextFile("landing", "known.csv"), Contract((Field("id"),))),
        PickUp("orders", TextFile("landing", "orders*.csv"), Contract((Field("order_id", references="known.id"),))),
        DropOff("log", Table("warehouse", "log", create=True)),
    )
    made = of(world, world.drive(shop(stops=stops)))
    assert made.stops[0].fate == "aboard, nothing drops them; looked up by orders"
    assert made.stops[1].fate == "to log"


def test_a_delete_counts_the_keys_that_were_not_there(world):
    world.drive(shop())
    stops = (
        PickUp("orders", TextFile("landing", "gone.csv"), Contract((Field("order_id"),))),
        DropOff("totals", Table("warehouse", "totals", key="order_id", mode="delete")),
    )
    world.land("order_id\nO-1\nO-99\n", "gone.csv")
    made = of(world, world.drive(shop(name="purge", stops=stops)))
    assert (made.drop_offs[0].deleted, made.drop_offs[0].missing) == (1, 1)
    assert next(recount for recount in made.recounts if recount.what == "keys gone").status == "agrees"
    assert made.balanced


def test_a_later_trip_is_named_where_it_may_be_the_reason(world):
    first = world.drive(shop())
    stops = (
        PickUp("orders", TextFile("landing", "gone.csv"), Contract((Field("order_id"),))),
        DropOff("totals", Table("warehouse", "totals", key="order_id", mode="delete")),
    )
    world.land("order_id\nO-1\n", "gone.csv")
    later = world.drive(shop(name="purge", stops=stops))
    made = of(world, first)
    assert f"trip {later.trip.id} was delivered later" in next(recount.note for recount in made.recounts if recount.status == "differs")


def test_a_failed_trip_has_an_account_as_far_as_it_came(world):
    strict = Contract(ORDERS.fields, max_rejected=0)
    route = shop(
        stops=(
            PickUp("orders", TextFile("landing", "orders*.csv"), strict),
            Transform("priced", "SELECT order_id, qty * price AS total FROM orders", PRICED),
            DropOff("totals", Table("warehouse", "totals", key="order_id", create=True), of="priced"),
        )
    )
    with pytest.raises(BusError):
        world.drive(route)
    trip = world.depot.trips()[0]
    made = account(world.bus, route, trip.id)
    assert made.state == "failed"
    assert [(stop.stop, stop.passed, stop.rejected) for stop in made.stops] == [("orders", False, 2)]
    assert made.drop_offs[0].state == "open"
    assert made.balanced


def test_a_verdict_that_does_not_add_up_is_a_problem(world):
    drive = world.drive(shop())
    with sqlite3.connect(world.root / "depot.db") as connection:
        connection.execute("UPDATE depot_verdicts SET rejected = 1 WHERE stop = 'orders'")
    made = of(world, drive, recount=False)
    assert made.problems == ("orders: 4 picked up, but 2 kept + 1 rejected",)
    assert not made.balanced


def test_a_publication_that_does_not_add_up_is_a_problem(world):
    drive = world.drive(shop())
    with sqlite3.connect(world.root / "depot.db") as connection:
        connection.execute("UPDATE depot_publications SET tables = replace(tables, '\"inserted\":2', '\"inserted\":1')")
    made = of(world, drive, recount=False)
    assert "totals: 2 rows offered, but 0 left out + 0 folded + 1 dropped off" in made.problems


def test_an_unknown_trip_and_another_routes_trip_are_refused(world):
    drive = world.drive(shop())
    with pytest.raises(NoSuchTrip):
        account(world.bus, shop(), "nosuch")
    with pytest.raises(Refused, match="belongs to route 'shop'"):
        account(world.bus, shop(name="other"), drive.trip.id)
