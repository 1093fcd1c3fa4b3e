"""Quarantined rows ride again, once."""

import shutil
from decimal import Decimal

import pytest

from bus_assets import Contract, DropOff, Field, Json, JsonLines, PickUp, Table, TextFile, Transform
from bus_assets.account import account
from bus_assets.boarding import unrelease
from bus_assets.release import LeftBehind, check_release, choose, overwritten, refusals, start_release
from resources.depot.entries import TripOver
from resources.errors import BusError, Refused
from tests.queue_world import QueueWorld, events
from tests.world import ORDERS, PRICED, World, lose_a_reply, shop

DIRTY = "order_id,qty,price\nO-1,2,3.50\nX-2,1,1.00\nO-3,0,0.10\nO-4,1\n"
FIXED = Contract((Field("order_id", required=True, unique=True), *ORDERS.fields[1:]), max_rejected=0)
"""The pattern that rejected X-2 is gone. No row may be rejected in a whole load, which a release does not mind."""


def fixed(contract=FIXED, **more):
    stops = (
        PickUp("orders", TextFile("landing", "orders*.csv"), contract),
        Transform("priced", "SELECT order_id, qty * price AS total FROM orders", PRICED),
        DropOff("totals", Table("warehouse", "totals", key="order_id", create=True), of="priced"),
        DropOff("log", Table("warehouse", "log", create=True), of="orders"),
    )
    return shop(**{"stops": stops, **more})


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.land(DIRTY)
    return made


def lenient():
    contract = Contract(ORDERS.fields, max_rejected=0.9)
    return fixed(contract)


def released(world, route, stop="orders", ids=None):
    releases, left = choose(world.depot, route, stop, ids)
    trips = [start_release(world.depot, release) for release in releases]
    return trips, left


def ids_of(world, **filters):
    return [row.id for row in world.depot.quarantined(**filters)]


def test_a_released_row_passes_the_gate_and_all_that_carries_it(world):
    world.drive(lenient())
    (trip,), left = released(world, fixed())
    world.drive(fixed(), tagged=trip.id)
    assert {row[0]: Decimal(str(row[1])) for row in world.rows("totals")}["X-2"] == Decimal("1.00")
    assert sorted(row[0] for row in world.rows("log")) == ["O-1", "X-2"]
    assert world.depot.trip(trip.id).state == "delivered"
    assert [row.why for row in left] == [left[0].why]
    assert "could not be taken apart" in left[0].why


def test_a_row_that_is_still_bad_is_quarantined_again_at_its_old_place(world):
    world.drive(lenient())
    (trip,), _ = released(world, fixed())
    world.drive(fixed(), tagged=trip.id)
    again = world.depot.quarantined(trip=trip.id)
    assert [(row.payload["order_id"], row.origin, row.position, row.unit) for row in again] == [("O-3", "orders.csv", 4, "line")]
    assert refusals(fixed(), "orders")(again[0]) is None
    assert [row.payload["order_id"] for row in world.depot.quarantined(state="released")] == ["X-2", "O-3"]


def test_its_account_balances_and_counts_the_released_rows(world):
    world.drive(lenient())
    (trip,), _ = released(world, fixed())
    world.drive(fixed(), tagged=trip.id)
    made = account(world.bus, fixed(), trip.id)
    assert (made.stops[0].source, made.stops[0].picked_up, made.stops[0].kept, made.stops[0].rejected) == ("quarantine", 2, 1, 1)
    assert made.balanced
    assert made.recounts[0].status == "agrees"


def test_a_released_row_leaves_quarantine_at_most_once_by_a_depot_from_yesterday(world):
    world.drive(lenient())
    world.depot.close()
    shutil.copy(world.root / "depot.db", world.root / "yesterday.db")
    (trip,), _ = released(world, fixed())
    world.drive(fixed(), tagged=trip.id)
    before = world.rows("log")
    world.depot.close()
    for left in world.root.glob("depot.db*"):
        left.unlink()
    shutil.copy(world.root / "yesterday.db", world.root / "depot.db")
    (again,), _ = released(world, fixed())
    with pytest.raises(Refused, match="released before"):
        world.drive(fixed(), tagged=again.id)
    assert world.rows("log") == before
    assert world.depot.trip(again.id).state == "failed"


def test_driving_a_delivered_release_again_changes_nothing(world):
    world.drive(lenient())
    (trip,), _ = released(world, fixed())
    world.drive(fixed(), tagged=trip.id)
    before = world.rows("log")
    assert world.drive(fixed(), tagged=trip.id).mode == "delivered"
    assert world.rows("log") == before


def test_a_release_that_failed_is_driven_again(world):
    world.drive(lenient())
    (trip,), _ = released(world, fixed())

    def break_down(drive, at):
        if at == "warehouse":
            raise BusError("the bus broke down")

    with pytest.raises(BusError, match="broke down"):
        world.drive(fixed(), tagged=trip.id, before=break_down)
    assert len(world.rows("log")) == 1
    world.drive(fixed(), tagged=trip.id)
    assert len(world.rows("log")) == 2


def test_a_release_that_failed_can_be_held_again_and_released_anew(world):
    world.drive(lenient())
    (trip,), _ = released(world, fixed())
    world.depot.finish_trip(trip.id, "failed", "the bus broke down")
    assert world.depot.unrelease(trip.id) == 2
    (second,), _ = released(world, fixed())
    world.drive(fixed(), tagged=second.id)
    assert sorted(row[0] for row in world.rows("log")) == ["O-1", "X-2"]


@pytest.mark.parametrize("at", ["orders", "warehouse"])
def test_what_is_held_again_while_it_is_being_released_is_not_published(world, at):
    """A person takes the release for dead; it goes on, and so does the one that releases the rows anew."""
    world.drive(lenient())
    (trip,), _ = released(world, fixed())

    def hold_again(drive, here):
        if here == at:
            assert unrelease(world.bus, fixed(), trip) == 2

    with pytest.raises(BusError):
        world.drive(fixed(), tagged=trip.id, before=hold_again)
    assert len(world.rows("log")) == 1
    assert world.depot.trip(trip.id).state == "cancelled"
    (second,), _ = released(world, fixed())
    world.drive(fixed(), tagged=second.id)
    assert sorted(row[0] for row in world.rows("log")) == ["O-1", "X-2"]
    with pytest.raises(TripOver):
        world.drive(fixed(), tagged=trip.id)


def test_what_was_released_and_never_heard_of_is_not_held_again(world, monkeypatch):
    world.drive(lenient())
    (trip,), _ = released(world, fixed())
    lose_a_reply(monkeypatch)
    with pytest.raises(BusError):
        world.drive(fixed(), tagged=trip.id)
    assert world.depot.trip(trip.id).state == "failed"
    with pytest.raises(Refused, match="has published"):
        unrelease(world.bus, fixed(), trip)
    assert world.depot.trip(trip.id).state == "delivered"


def test_a_row_is_in_one_release_at_a_time(world):
    world.drive(lenient())
    releases, _ = choose(world.depot, fixed(), "orders")
    start_release(world.depot, releases[0])
    with pytest.raises(Refused, match="not held"):
        start_release(world.depot, releases[0])
    assert world.depot.trips(state="failed")[0].trigger == "release"
    assert choose(world.depot, fixed(), "orders")[0] == ()


def test_a_duplicate_of_a_delivered_row_does_not_ride_alone_past_the_gate(world):
    world.land("order_id,qty,price\nO-1,2,3.50\nO-1,1,9.00\n")
    world.drive(lenient())
    number = ids_of(world)
    with pytest.raises(Refused, match="the row with the same key is delivered"):
        choose(world.depot, lenient(), "orders", number)
    no_longer_unique = Contract((Field("order_id"), *ORDERS.fields[1:]))
    assert choose(world.depot, fixed(no_longer_unique), "orders", number)[0][0].ids == tuple(number)


def test_an_object_in_the_place_of_text_is_not_released_as_its_text(world):
    (world.root / "landing" / "orders.jsonl").write_text('{"id": "O-1", "to": "me"}\n{"id": "O-2", "to": {"name": "you"}}\n')

    def route(**more):
        contract = Contract((Field("id"), Field("to", **more)), max_rejected=0.9)
        log = DropOff("log", Table("warehouse", "log", create=True))
        return shop(stops=(PickUp("orders", JsonLines("landing", "orders.jsonl", fields={"id": "id", "to": "to"}), contract), log))

    world.drive(route())
    assert world.rows("log") == [("O-1", "me")]
    with pytest.raises(Refused, match="it breaks 'to: type string': what quarantine keeps of it is text"):
        choose(world.depot, route(), "orders", ids_of(world))
    (trip,), left = released(world, route(json=True))
    world.drive(route(json=True), tagged=trip.id)
    assert left == ()
    assert sorted(world.rows("log")) == [("O-1", "me"), ("O-2", '{"name":"you"}')]


def test_what_a_path_did_not_lead_to_is_rejected_and_not_released_as_null(world):
    lines = ('{"id": 1, "who": {"n": 7}}', '{"id": 2, "who": 5}', '{"id": 3, "who": [{"n": 7}]}', '{"id": 4, "who": null}', '{"id": 5}')
    (world.root / "landing" / "orders.jsonl").write_text("\n".join(lines))
    source = JsonLines("landing", "orders.jsonl", fields={"n": "who.n"})

    def route(*names):
        contract = Contract((Field("id", "integer"), *(Field(name, "integer") for name in names)), max_rejected=0.9)
        return shop(stops=(PickUp("orders", source, contract), DropOff("log", Table("warehouse", "log", create=True), columns=("id",))))

    world.drive(route("n"))
    assert world.rows("log") == [(1,), (4,), (5,)]
    held = world.depot.quarantined()
    assert [(row.position, dict(row.payload), [tuple(reason) for reason in row.reasons]) for row in held] == [
        (2, {"id": "2"}, [("n: type integer", "cannot be read at 'who.n': 'who' is a number, not an object")]),
        (3, {"id": "3"}, [("n: type integer", "cannot be read at 'who.n': 'who' is a list, not an object")]),
    ]
    with pytest.raises(Refused, match=f"row {held[0].id} cannot be released: the contract asks for 'n', which was not read"):
        choose(world.depot, route("n"), "orders", [row.id for row in held])


def test_a_row_without_a_field_that_the_contract_has_since_does_not_ride_as_if_it_were_null(world):
    def route(*names, most="100", **fields):
        contract = Contract((Field("id", required=True), Field("qty", "integer", maximum=most), *map(Field, names)), max_rejected=0.9)
        log = DropOff("log", Table("warehouse", "log", create=True), columns=("id", "qty"))
        return shop(stops=(PickUp("orders", TextFile("landing", "orders.csv", fields=fields), contract), log))

    world.land("id,qty,note,region\nA,1,x,EU\nB,500,,US\n")
    world.drive(route("note"))
    (number,) = ids_of(world)
    renamed = route("remark", "region", most="900", remark="note")
    lacks = "the contract asks for 'remark', 'region', which were not read when the row was quarantined; drive the route again"
    assert choose(world.depot, renamed, "orders") == ((), (LeftBehind(number, lacks),))
    with pytest.raises(Refused, match=f"row {number} cannot be released: the contract asks for 'region', which was not read"):
        choose(world.depot, route("note", "region", most="900"), "orders", [number])
    (trip,), left = released(world, route("note", most="900"))  # its note is null, not absent
    assert left == ()
    with pytest.raises(Refused, match=f"row {number} cannot ride: .*'region'.* `bus quarantine unrelease {trip.id}`"):
        world.drive(route("note", "region", most="900"), tagged=trip.id)
    world.drive(route(most="900"), tagged=trip.id)
    assert world.rows("log") == [("A", 1), ("B", 500)]


def test_ids_that_are_not_held_there_are_refused_and_nothing_is_released(world):
    world.drive(lenient())
    with pytest.raises(Refused, match="row 99 is not held"):
        choose(world.depot, fixed(), "orders", [*ids_of(world)[1:2], 99])
    with pytest.raises(Refused, match="could not be taken apart"):
        choose(world.depot, fixed(), "orders", ids_of(world))


def test_rows_of_a_trip_that_is_not_delivered_stay(world):
    with pytest.raises(BusError):
        world.drive(fixed(Contract(ORDERS.fields, max_rejected=0)))
    releases, left = choose(world.depot, fixed(), "orders")
    assert releases == ()
    assert any("is failed, not delivered" in row.why for row in left)


def aggregated(mode="upsert", **more):
    by_qty = Contract((Field("qty", "integer"), Field("n", "integer")))
    stops = (
        PickUp("orders", TextFile("landing", "orders*.csv"), Contract(ORDERS.fields, max_rejected=0.9)),
        Transform("by_qty", "SELECT qty, count(*) AS n FROM orders GROUP BY qty", by_qty, grain="changed"),
        DropOff("sums", Table("warehouse", "sums", key="qty", create=True, mode=mode, **more), of="by_qty"),
    )
    return shop(stops=stops)


def test_a_changed_grain_on_the_way_is_refused_unless_the_table_accumulates(world):
    world.drive(aggregated())
    with pytest.raises(Refused, match=r"changes the grain.*drive the route again, or let the table accumulate"):
        choose(world.depot, aggregated(), "orders")
    assert choose(world.depot, aggregated("accumulate", sums=("n",)), "orders")[0]


def test_released_rows_accumulate(world):
    before = aggregated("accumulate", sums=("n",))
    world.drive(before)
    assert world.rows("sums") == [(2, 1)]
    after = shop(
        stops=(
            PickUp("orders", TextFile("landing", "orders*.csv"), Contract((Field("order_id"), Field("qty", "integer")))),
            *before.stops[1:],
        )
    )
    (trip,), _ = released(world, after)
    world.drive(after, tagged=trip.id)
    assert world.rows("sums") == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize(
    "table", [Table("warehouse", "t", mode="replace", scope={}), Table("warehouse", "t", key="order_id", mode="delete")]
)
def test_tables_that_are_about_whole_loads_are_refused(world, table):
    route = shop(stops=(PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS), DropOff("t", table)))
    with pytest.raises(Refused, match="drive the route again"):
        choose(world.depot, route, "orders")


def test_where_another_trip_adds_twice_it_is_not_the_advice(world):
    pick_up = PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS)
    whole = DropOff("t", Table("warehouse", "t", mode="replace", scope={}), of="orders")
    log = DropOff("log", Table("warehouse", "log"), of="orders")
    sums = DropOff("sums", Table("warehouse", "sums", key="order_id", mode="accumulate", sums=("qty",)), of="orders")
    for stops, named in (((whole, log), "'log'"), ((whole, log, sums), "'log' and 'sums'")):
        with pytest.raises(Refused) as caught:
            choose(world.depot, shop(stops=(pick_up, *stops)), "orders")
        assert f"another trip of the route adds to {named} twice" in str(caught.value)
        assert "`bus quarantine export`" in str(caught.value)
        assert "drive the route again" not in str(caught.value).lower()
    grain = shop(stops=(*aggregated().stops, log))
    with pytest.raises(Refused, match=r"changes the grain.*adds to 'log' twice.*or let the table accumulate"):
        choose(world.depot, grain, "orders")
    with pytest.raises(Refused, match=r"only looked up: another trip of the route adds to 'log' twice"):
        choose(world.depot, shop(stops=looked_up().stops[:3]), "goods")


def looked_up():
    stops = (
        PickUp("goods", TextFile("landing", "goods.csv"), Contract((Field("id", required=True),), max_rejected=0.9)),
        PickUp("orders", TextFile("landing", "orders*.csv"), Contract((Field("order_id", references="goods.id"),), max_rejected=0.9)),
        DropOff("log", Table("warehouse", "log", create=True), of="orders"),
        DropOff("stock", Table("warehouse", "stock", create=True), of="goods"),
    )
    return shop(stops=stops)


def test_a_reference_that_arrived_since_lets_the_row_pass_and_other_tables_get_nothing(world):
    world.land("order_id\nA\nB\n")
    world.land("id\nA\n", "goods.csv")
    world.drive(looked_up())
    assert world.rows("log") == [("A",)]
    world.land("id\nA\nB\n", "goods.csv")
    (trip,), _ = released(world, looked_up())
    world.drive(looked_up(), tagged=trip.id)
    assert world.rows("log") == [("A",), ("B",)]
    assert world.rows("stock") == [("A",)]
    made = account(world.bus, looked_up(), trip.id)
    assert [drop.state for drop in made.drop_offs] == ["dropped", "not concerned"]
    assert made.balanced


def test_what_a_stop_rejects_that_is_only_looked_up_waits_once_however_many_releases_read_it(world):
    world.land("order_id\nA\nB\n")
    world.land('id,x\nA,1\n"",2\n', "goods.csv")
    world.drive(looked_up())
    (of_goods,) = ids_of(world, stop="goods")
    world.land('id,x\nA,1\nB,1\n"",2\n', "goods.csv")
    (trip,), _ = released(world, looked_up())

    def break_down(drive, at):
        if at == "warehouse":
            raise BusError("the bus broke down")

    with pytest.raises(BusError, match="broke down"):
        world.drive(looked_up(), tagged=trip.id, before=break_down)
    world.drive(looked_up(), tagged=trip.id)  # what the first attempt rejected is not there twice
    assert world.rows("log") == [("A",), ("B",)]
    assert ids_of(world, stop="goods") == [of_goods]
    (again,) = world.depot.quarantined(trip=trip.id, state=None)
    assert (again.stop, again.state) == ("goods", "discarded")
    assert again.reason == (
        "only looked up, for a release of stop 'orders': what 'goods' rejects waits where it was to be dropped off, "
        f"in trip {trip.parent}, say"
    )
    made = account(world.bus, looked_up(), trip.id)
    assert {stop.stop: stop.rejected for stop in made.stops} == {"goods": 1, "orders": 0}
    assert made.balanced
    assert {count.status for count in made.recounts} == {"agrees"}


def test_tables_are_named_in_which_a_released_row_replaces_a_newer_one(world):
    assert [table.name for table in overwritten(fixed(), "orders")] == ["totals"]
    newest = Table("warehouse", "log", key="order_id", newest="qty")
    assert overwritten(shop(stops=(fixed().stops[0], DropOff("log", newest))), "orders") == ()
    assert overwritten(looked_up(), "orders") == ()


def test_a_stop_that_is_only_looked_up_cannot_release(world):
    route = shop(stops=(*looked_up().stops[:3],))
    with pytest.raises(Refused, match="only looked up"):
        choose(world.depot, route, "goods")


def test_rows_that_a_transform_rejected_ride_from_there(world):
    world.land("order_id,qty,price\nO-1,2,3.50\nO-2,1,1.00\n")

    def route(most):
        priced = Contract((Field("order_id"), Field("total", "decimal(14,2)", maximum=most)), max_rejected=0.9)
        stops = (
            PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS),
            Transform("priced", "SELECT order_id, qty * price AS total FROM orders", priced),
            DropOff("totals", Table("warehouse", "totals", key="order_id", create=True)),
            DropOff("log", Table("warehouse", "log", create=True), of="orders"),
        )
        return shop(stops=stops)

    world.drive(route("5"))
    (trip,), _ = released(world, route("9"), "priced")
    world.drive(route("9"), tagged=trip.id)
    assert {row[0]: Decimal(str(row[1])) for row in world.rows("totals")} == {"O-1": Decimal("7.00"), "O-2": Decimal("1.00")}
    assert len(world.rows("log")) == 2
    assert account(world.bus, route("9"), trip.id).balanced


@pytest.mark.parametrize("stricter", ["priced", "checked"])
def test_a_row_that_a_transform_rejects_again_is_still_told_at_its_own_line(world, stricter):
    """Released rows are numbered anew, and line 2 is row 1 of what is picked up, which is another."""
    world.land("order_id,qty,price\nO-2,1,1.00\nO-1,2,3.50\n")

    def route(most):
        limits = {
            name: Contract((Field("order_id"), Field("total", "decimal(14,2)", maximum=most[name])), max_rejected=0.9) for name in most
        }
        stops = (
            PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS),
            Transform("priced", "SELECT order_id, qty * price AS total FROM orders", limits["priced"]),
            Transform("checked", "SELECT order_id, total FROM priced", limits["checked"]),
            DropOff("totals", Table("warehouse", "totals", key="order_id", create=True)),
        )
        return shop(stops=stops)

    world.drive(route({"priced": "5", "checked": "9"}))
    after = route({"priced": "9", "checked": "9", stricter: "6"})
    (trip,), _ = released(world, after, "priced")
    world.drive(after, tagged=trip.id)
    found = world.depot.quarantined(trip=trip.id)
    assert [(row.stop, row.payload["order_id"], row.origin, row.unit, row.position) for row in found] == [
        (stricter, "O-1", "orders.csv", "line", 3)
    ]


def test_a_date_that_was_read_already_is_written_back_in_its_own_format(world):
    contract = Contract((Field("id", references="goods.id"), Field("day", "date", format="%d.%m.%Y")), max_rejected=0.9)
    stops = (
        PickUp("goods", TextFile("landing", "goods.csv"), Contract((Field("id"),))),
        PickUp("orders", TextFile("landing", "orders*.csv"), contract),
        DropOff("log", Table("warehouse", "log", create=True), of="orders"),
    )
    world.land("id\nB\n", "goods.csv")
    world.land("id,day\nA,24.12.2026\nB,25.12.2026\n")
    world.drive(shop(stops=stops))
    world.land("id\nA\nB\n", "goods.csv")
    (trip,), _ = released(world, shop(stops=stops))
    world.drive(shop(stops=stops), tagged=trip.id)
    assert [(row[0], str(row[1])) for row in world.rows("log")] == [("A", "2026-12-24"), ("B", "2026-12-25")]


def test_a_date_of_a_row_that_was_set_aside_with_its_message_is_written_back_too(tmp_path):
    """Its trip is delivered, since another stop delivered a part of the message."""

    def route(**more):
        contract = Contract((Field("id", **more), Field("day", "date", format="%d.%m.%Y")), max_rejected=0)
        stops = (
            PickUp("orders", TextFile("landing", "{message.key}"), contract),
            DropOff("log", Table("warehouse", "log", create=True)),
            DropOff("told", Table("warehouse", "told", create=True), of="messages"),
        )
        return events(decode=Json(Contract((Field("key"),))), stops=stops)

    world = QueueWorld(tmp_path, route(pattern="^O-"))
    world.land("id,day\nO-1,24.12.2026\nX-2,25.12.2026\n", "a.csv")
    world.send({"key": "a.csv"})
    world.deliver()
    assert world.states() == {"delivered": 1}
    assert [[reason.rule for reason in row.reasons] for row in world.depot.quarantined()] == [["id: pattern ^O-"], ["message"]]
    (trip,), left = released(world, route())
    world.drive(route(), tagged=trip.id)
    assert left == ()
    assert [(row[0], str(row[1])) for row in world.rows("log")] == [("O-1", "2026-12-24"), ("X-2", "2026-12-25")]


def test_a_row_of_a_message_that_lacks_a_field_is_told_what_brings_its_message_again(tmp_path):
    def route(*names):
        contract = Contract((Field("n", "integer"), *map(Field, names)), max_rejected=0.9)
        return events(
            decode=Json(contract, records="rows"), stops=(DropOff("log", Table("warehouse", "log", create=True), columns=("n",)),)
        )

    world = QueueWorld(tmp_path, route())
    world.send({"rows": [{"n": 1}, {"n": "two"}]})
    world.deliver()
    (number,) = ids_of(world)
    (message,) = world.messages()
    _, (left,) = choose(world.depot, route("note"), "messages")
    assert left.id == number
    assert "'note', which was not read when the row was quarantined; `bus replay events --id " + str(message.id) in left.why
    assert "drive the route again" not in left.why


def test_a_row_that_cannot_be_taken_apart_comes_again_as_its_message_stands(tmp_path):
    """By a redrive while its message is quarantined; delivered again once it is delivered without the row."""
    lenient = Contract((Field("n", "integer", required=True),), max_rejected=0.9)
    log = DropOff("log", Table("warehouse", "log", create=True))
    pick_up = PickUp("lines", TextFile("landing", "{message.key}"), lenient)
    route = events(decode=Json(Contract((Field("key", required=True),))), stops=(pick_up, log))
    world = QueueWorld(tmp_path, route)
    world.land("n\n1\n2,3\n", "some.csv")
    world.send({"key": "some.csv"}, {"key": "gone.csv"})
    world.deliver()
    assert world.states() == {"delivered": 1, "quarantined": 1}
    _, left = choose(world.depot, route, "lines")
    why = {row.message: next(one.why for one in left if one.id == row.id) for row in world.depot.quarantined()}
    assert why[1].startswith("it could not be taken apart")
    assert "`bus replay events --id 1 --again --reason …`" in why[1]
    assert "whose other rows are added to 'log' twice" in why[1]
    assert why[2].startswith("its message is quarantined, not delivered, and brings its rows with it: `bus redrive events --id MESSAGE")


def test_what_cannot_be_released_of_a_queue_route_comes_again_with_its_messages():
    """Nobody drives a queue's route again: it has a trip where it has messages."""
    fields = (Field("order_id"), Field("qty", "integer"))
    lines = Transform("lines", "SELECT order_id, qty FROM messages", Contract(fields), grain="changed", combine="alone")
    table = Table("warehouse", "lines", key="order_id", create=True)
    goods = PickUp("goods", TextFile("landing", "goods.csv"), Contract((Field("sku"),)))
    with pytest.raises(Refused, match="changes the grain") as caught:
        check_release(events(stops=(lines, DropOff("t", table))), "messages")
    assert "`bus redrive events --id MESSAGE --reason …`" in str(caught.value)
    assert "`bus replay events --id MESSAGE --again --reason …`" in str(caught.value)
    assert "drive the route again" not in str(caught.value)
    assert "twice" not in str(caught.value)
    with pytest.raises(Refused, match="whose other rows are added to 'log' twice"):
        check_release(events(stops=(lines, DropOff("t", table), DropOff("log", Table("warehouse", "log"), of="messages"))), "messages")
    with pytest.raises(Refused, match="only looked up: after the fix the next trip of route 'events' picks up 'goods' anew"):
        check_release(events(stops=(goods, DropOff("log", Table("warehouse", "log"), of="messages"))), "goods")


def test_rows_that_need_others_of_their_message_are_not_released_without_them(tmp_path):
    """A release brings no messages: what is looked up in them would be null, and referred to in vain."""

    def route(least, *more, **field):
        contract = Contract((Field("id", **field), Field("v", "integer", minimum=least)), max_rejected=0.9)
        stops = (
            PickUp("goods", TextFile("landing", "goods.csv"), Contract((Field("id"),))),
            PickUp("prices", TextFile("landing", "{message.key}-prices.csv"), Contract((Field("id"), Field("v", "integer")))),
            PickUp("orders", TextFile("landing", "{message.key}.csv"), contract),
            *more,
            DropOff("log", Table("warehouse", "log", create=True)),
        )
        return events(decode=Json(Contract((Field("key"),))), stops=stops)

    world = QueueWorld(tmp_path, route(1))
    for name, text in {"goods": "id\nx\ny\n", "a": "id,v\nx,1\ny,0\n", "a-prices": "id,v\nx,10\ny,20\n"}.items():
        world.land(text, f"{name}.csv")
    world.send({"key": "a"})
    world.deliver()
    priced = Transform(
        "priced",
        "SELECT o.id, p.v FROM orders o LEFT JOIN prices p USING (id)",
        Contract((Field("id"), Field("v", "integer"))),
        after=("orders", "prices"),
    )
    for needs in (route(0, priced), route(0, references="prices.id")):
        with pytest.raises(
            Refused, match=r"'orders'.* rows of 'prices', which released rows ride without.*`bus replay events --id MESSAGE"
        ):
            choose(world.depot, needs, "orders")
    assert "rows of 'prices', which released rows ride without" in str(refusals(route(0, priced), "orders")(world.depot.quarantined()[0]))
    (trip,), _ = released(world, route(0, references="goods.id"))
    world.drive(route(0, references="goods.id"), tagged=trip.id)
    assert world.rows("log") == [("x", 1), ("y", 0)]


def test_rows_of_trips_with_other_parameters_ride_in_trips_of_their_own(world):
    from bus_assets import Parameter

    route = fixed(Contract(ORDERS.fields, max_rejected=0.9), parameters=(Parameter("day", "integer", default=1),))
    for day in (1, 2):
        world.land(f"order_id,qty,price\nO-{day},1,1.00\nX-{day},1,1.00\n")
        world.drive(route, parameters={"day": day})
    releases, _ = choose(world.depot, route, "orders")
    assert [release.parameters for release in releases] == [{"day": 1}, {"day": 2}]
