"""The trip protocol on a real (SQLite) warehouse: claims, receipts, zombies, gates, rehearsals."""

import sqlite3
import traceback
from dataclasses import replace
from decimal import Decimal

import pandas as pd
import pytest

from bus_assets import Contract, DropOff, Field, PickUp, Table, TextFile, Transform
from bus_assets import stage as stage_module
from bus_assets.boarding import cancel, failed, settle
from bus_assets.halting import pick_up, transform
from bus_assets.publish import publish
from resources.database import Database
from resources.depot.entries import AttemptLive, TripOver
from resources.errors import BusError, ChecksFailed, Misconfigured, Poison, Refused, Transient
from tests.world import GOOD, ORDERS, PRICED, World, lose_a_reply, shop


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.land(GOOD)
    return made


def totals(world):
    return {row[0]: Decimal(str(row[1])) for row in world.rows("totals")}


def test_a_trip_lands_all_tables_together(world):
    drive = world.drive(shop())
    assert totals(world) == {"O-1": Decimal("7.00"), "O-2": Decimal("1.00"), "O-3": Decimal("0.50")}
    assert len(world.rows("log")) == 3
    assert world.depot.trip(drive.trip.id).state == "delivered"


def test_a_second_execution_of_the_same_trip_changes_nothing(world):
    drive = world.drive(shop())
    again = world.drive(shop(), tagged=drive.trip.id)
    assert again.mode == "delivered"
    assert len(world.rows("log")) == 3


def test_a_crash_after_the_commit_and_before_the_depot_knows_applies_once(world):
    drive = world.board(shop())
    pick_up(drive, shop()["orders"])
    transform(drive, shop()["priced"])
    depot = world.depot
    publish(drive, "warehouse")
    with sqlite3.connect(world.root / "depot.db") as connection:
        connection.execute("DELETE FROM depot_publications")
        connection.execute("UPDATE depot_trips SET state = 'driving', ended_at = NULL")
        connection.execute("UPDATE depot_attempts SET ended_at = NULL, outcome = NULL")
    again = world.drive(shop(), tagged=drive.trip.id, run_is_over=lambda run: True)
    assert again.mode == "delivered"
    assert len(world.rows("log")) == 3
    assert depot.trip(drive.trip.id).state == "delivered"


def test_a_zombie_that_wakes_up_after_its_trip_was_driven_again_changes_nothing(world):
    zombie = world.board(shop())
    pick_up(zombie, shop()["orders"])
    transform(zombie, shop()["priced"])
    world.drive(shop(), tagged=zombie.trip.id, run_is_over=lambda run: True)
    before = world.rows("log")
    with pytest.raises(Refused, match="revoked"):
        publish(zombie, "warehouse")
    assert world.rows("log") == before
    assert len(before) == 3


def test_a_zombie_cannot_replace_the_verdict_of_the_attempt_that_took_over(world):
    zombie = world.board(shop())
    world.board(shop(), tagged=zombie.trip.id, run_is_over=lambda run: True)
    with pytest.raises(Refused):
        pick_up(zombie, shop()["orders"])


def test_settle_that_finds_the_commit_lets_it_stand(world):
    drive = world.board(shop())
    pick_up(drive, shop()["orders"])
    transform(drive, shop()["priced"])
    attempt = world.depot.newest_attempt(drive.trip.id)
    publish(drive, "warehouse")
    assert settle(world.bus, shop(), drive.trip, attempt) == "published"
    assert len(world.rows("log")) == 3


def test_a_trip_that_somebody_drives_is_left_to_them(world):
    first = world.board(shop())
    with pytest.raises(AttemptLive, match="is still live"):
        world.board(shop(), tagged=first.trip.id)


def test_a_person_may_insist(world):
    first = world.board(shop())
    second = world.drive(shop(), tagged=first.trip.id, take_over=True)
    assert second.attempt == 2
    assert len(world.rows("log")) == 3


def cancelled(world, trip):
    """Over, with the person's reason; nothing is written, and no run drives it any more."""
    found = world.depot.trip(trip)
    assert (found.state, found.error, found.cancelled) == ("cancelled", "wrong file", "wrong file")
    assert world.depot.newest_attempt(trip).ended_at is not None
    with pytest.raises(TripOver, match=r"is cancelled \(wrong file\)"):
        world.drive(shop(), tagged=trip)
    assert world.rows("log") == []


def test_a_trip_without_messages_that_is_cancelled_is_ended_by_its_run_at_the_next_stop(world):
    """No tick settles it. Each stop boards anew."""
    drive = world.board(shop(), run="run")
    pick_up(drive, shop()["orders"])
    assert world.depot.inbox.cancel(drive.trip.id, "wrong file").state == "driving"
    with pytest.raises(TripOver, match=r"asked to stop \(wrong file\)"):
        world.board(shop(), run="run")
    cancelled(world, drive.trip.id)


def test_a_trip_without_messages_that_is_cancelled_is_ended_by_its_run_before_it_commits(world):
    def a_person_cancels(drive, at):
        if at == "warehouse":
            world.depot.inbox.cancel(drive.trip.id, "wrong file")

    with pytest.raises(Refused, match=r"asked to stop \(wrong file\)"):
        world.drive(shop(), before=a_person_cancels)
    cancelled(world, world.depot.trips()[0].id)


def test_a_cancelled_trip_without_messages_whose_process_died_is_ended_by_whoever_drives_it_again(world):
    trip = world.board(shop()).trip.id
    world.depot.inbox.cancel(trip, "wrong file")
    with pytest.raises(TripOver, match=r"asked to stop \(wrong file\)"):
        world.drive(shop(), tagged=trip, run_is_over=lambda run: True)
    cancelled(world, trip)


def test_a_trip_without_messages_that_failed_is_cancelled_at_once(world):
    trip = world.board(shop()).trip.id
    world.depot.finish_trip(trip, "failed", "the bus broke down", attempt=1)
    assert cancel(world.bus, shop(), world.depot.trip(trip), "wrong file").state == "cancelled"
    cancelled(world, trip)


def and_a_copy(world):
    """The shop with a second database."""
    world.bus.systems["second"] = Database(url=f"sqlite:///{world.root}/second.db")
    return shop(stops=(*shop().stops, DropOff("copy", Table("second", "copy", create=True), of="orders")))


def committed_unheard(world, route, patch, **how):
    """A trip that its first database has, and whose run heard of a lost connection only."""
    with patch.context() as lost:
        lose_a_reply(lost, **how)
        with pytest.raises(Transient, match="outcome unknown") as caught:
            world.drive(route)
    return world.depot.trips()[0], caught.value


def test_a_trip_whose_commit_went_unheard_is_delivered_and_not_cancelled(world, monkeypatch):
    trip, _ = committed_unheard(world, shop(), monkeypatch)
    assert (trip.state, len(world.rows("log"))) == ("failed", 3)
    with pytest.raises(Refused, match="is delivered: there is nothing left to cancel"):
        cancel(world.bus, shop(), trip, "wrong file")
    assert [(one.state, one.cancelled) for one in world.depot.trips()] == [("delivered", None)]


def test_a_trip_whose_commit_went_unheard_rolls_forward_and_is_not_cancelled(world, monkeypatch):
    route = and_a_copy(world)
    trip, _ = committed_unheard(world, route, monkeypatch)
    with pytest.raises(Refused, match=f"only rolls forward, with `bus drive shop --trip {trip.id}`"):
        cancel(world.bus, route, trip, "wrong file")
    assert world.depot.trip(trip.id).state == "stuck"
    world.drive(route, tagged=trip.id)
    assert world.depot.trip(trip.id).state == "delivered"
    with sqlite3.connect(world.root / "second.db") as connection:
        assert connection.execute("SELECT count(*) FROM copy").fetchone() == (3,)


def test_a_request_to_stop_that_came_with_a_commit_that_went_unheard_is_void(world, monkeypatch):
    def a_person_cancels():
        world.depot.inbox.cancel(world.depot.trips()[0].id, "wrong file")

    trip, error = committed_unheard(world, shop(), monkeypatch, meanwhile=a_person_cancels)
    assert (trip.state, trip.cancelled, len(world.rows("log"))) == ("delivered", None, 3)
    assert "is delivered: there is nothing left to cancel" in error.message


def test_a_trip_is_not_cancelled_while_its_database_does_not_answer(world, monkeypatch):
    trip, _ = committed_unheard(world, shop(), monkeypatch)
    with monkeypatch.context() as down:
        down.setattr(Database, "prepare", is_down)
        with pytest.raises(Transient, match=f"no route to host; trip {trip.id} may be committed there.*`bus cancel {trip.id} --reason …`"):
            cancel(world.bus, shop(), trip, "wrong file")
    assert world.depot.trip(trip.id) == trip
    assert world.depot.newest_attempt(trip.id).ended_at is None


def is_down(*_):
    raise Transient("no route to host")


def test_a_run_that_was_asked_to_stop_while_its_database_is_down_is_ended_by_whoever_drives_it_again(world, monkeypatch):
    drive = world.board(shop())
    world.depot.inbox.cancel(drive.trip.id, "wrong file")
    error = Refused("this run stops")
    with monkeypatch.context() as down:
        down.setattr(Database, "prepare", is_down)
        failed(drive, "orders", error)
    found = world.depot.trip(drive.trip.id)
    assert (found.state, found.cancelled) == ("failed", "wrong file")
    assert "no route to host" in error.message
    with pytest.raises(TripOver):
        world.drive(shop(), tagged=drive.trip.id)
    cancelled(world, drive.trip.id)


def test_a_zombie_whose_trip_was_cancelled_changes_nothing(world):
    zombie = world.board(shop())
    for stop in (pick_up(zombie, shop()["orders"]), transform(zombie, shop()["priced"])):
        assert stop
    world.depot.finish_trip(zombie.trip.id, "failed", "the bus broke down", attempt=1)
    cancel(world.bus, shop(), zombie.trip, "wrong file")
    with pytest.raises(Refused, match="revoked"):
        publish(zombie, "warehouse")
    cancelled(world, zombie.trip.id)


def test_a_trip_that_nobody_claimed_is_cancelled_unless_its_database_knows_better(world):
    """Of a depot that was restored from before it was driven."""
    one, other = (world.depot.start_trip("shop", "cron", {}) for _ in range(2))
    assert cancel(world.bus, shop(), one, "wrong file").state == "cancelled"
    world.drive(shop(), tagged=other.id)
    with sqlite3.connect(world.root / "depot.db") as connection:
        for table in ("publications", "verdicts", "attempts"):
            connection.execute(f"DELETE FROM depot_{table}")
        connection.execute("UPDATE depot_trips SET state = 'driving', ended_at = NULL WHERE id = ?", (other.id,))
    with pytest.raises(Refused, match="is delivered"):
        cancel(world.bus, shop(), world.depot.trip(other.id), "wrong file")


def in_the_depot(world, statement):
    with sqlite3.connect(world.root / "depot.db") as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM depot_verdicts WHERE stop = 'orders'", "'orders' has no verdict"),
        ("UPDATE depot_verdicts SET passed = 0 WHERE stop = 'orders'", "'orders' did not pass its gate"),
        ("UPDATE depot_verdicts SET digest = 'another' WHERE stop = 'priced'", "names other bytes than its manifest"),
    ],
    ids=["it is gone", "it says no", "it is on other bytes"],
)
def test_a_verdict_that_is_not_the_gates_refuses_to_publish(world, statement, said):
    with pytest.raises(Refused, match=said):
        world.drive(shop(), before=lambda drive, at: in_the_depot(world, statement) if at == "warehouse" else None)
    assert world.rows("log") == []


def test_a_verdict_that_changes_while_tables_are_looked_at_refuses_to_publish(world, monkeypatch):
    prepare = Database.prepare

    def meanwhile(self, plans):
        prepare(self, plans)
        in_the_depot(world, "UPDATE depot_verdicts SET digest = 'another' WHERE stop = 'priced'")

    with pytest.raises(Refused, match="changed while it was being published"):
        world.drive(shop(), before=lambda drive, at: monkeypatch.setattr(Database, "prepare", meanwhile) if at == "warehouse" else None)
    assert world.rows("log") == []


def test_no_database_is_published_before_the_first(world):
    route = and_a_copy(world)

    def second_first(drive, at):
        if at == "warehouse":
            publish(drive, "second")

    with pytest.raises(Refused, match="'warehouse' comes first in this route"):
        world.drive(route, before=second_first)
    assert world.rows("totals") == []


@pytest.mark.parametrize(("stop", "dropped"), [("orders", ("totals", "log")), ("priced", ("totals", "log")), ("orders", ("totals",))])
def test_one_altered_staged_byte_refuses_to_publish(world, stop, dropped):
    """Also of a stop that is not dropped off itself, so that publishing reads its rows for nothing else."""
    route = shop(stops=tuple(one for one in shop().stops if not isinstance(one, DropOff) or one.name in dropped))

    def alter(drive, at):
        if at == "warehouse":
            file = next((world.root / "staging").glob(f"shop/*/*/*/{stop}/*/*/*.parquet"))
            file.chmod(0o644)
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(bytes(content))

    with pytest.raises(Refused, match="not those that were checked"):
        world.drive(route, before=alter)
    assert world.rows("log") + world.rows("totals") == []


def test_a_sabotaged_splitter_is_caught_by_the_checks(world, monkeypatch):
    world.land("order_id,qty,price\nO-1,0,3.50\nX-2,1,1.00\nO-3,5,0.10\n")
    honest = stage_module.split

    def blind(batch, contract, nested, astray):
        lax = Contract(tuple(Field(field.name, field.type) for field in contract.fields))
        return honest(batch, lax)

    monkeypatch.setattr(stage_module, "split", blind)
    with pytest.raises(ChecksFailed, match="though the gate let them pass"):
        world.drive(shop())
    assert world.rows("log") == []


def test_too_many_rejects_fail_the_trip_and_it_can_be_driven_again(world):
    world.land("order_id,qty,price\nO-1,x,3.50\nO-2,y,1.00\nO-3,5,0.10\n")
    with pytest.raises(
        ChecksFailed, match=r"route 'shop', stop 'orders': 2 of 3 rows were rejected, more than max_rejected \(50 %\)"
    ) as error:
        world.drive(shop())
    assert "orders.csv, line 2" in str(error.value)
    trip = world.depot.trips()[0]
    assert trip.state == "failed"
    world.land(GOOD)
    world.drive(shop(), tagged=trip.id)
    assert len(world.rows("log")) == 3
    assert world.depot.quarantined(trip=trip.id) == []


def test_rejected_rows_wait_in_quarantine_with_reasons_and_place(world):
    world.land("order_id,qty,price\nO-1,2,3.50\nO-1,1,1.00\nO-3,0,zero\nO-4,1,1\nO-5,1,1\n")
    drive = world.drive(shop())
    held = {row.position: row for row in world.depot.quarantined(trip=drive.trip.id)}
    assert set(held) == {3, 4}
    assert [reason.rule for reason in held[4].reasons] == ["qty: minimum 1", "price: type decimal(10,2)"]
    assert held[3].reasons[0].rule == "order_id: unique"
    assert (held[3].origin, held[3].unit) == ("orders.csv", "line")
    assert held[4].payload == {"order_id": "O-3", "qty": "0", "price": "zero"}


def test_a_selection_without_its_upstream_rehearses_and_never_publishes(world):
    first = world.drive(shop())
    rehearsal = world.drive(shop(), select=("priced",))
    assert rehearsal.mode == "rehearsal"
    assert rehearsal.trip.parent == first.trip.id
    assert world.depot.trip(rehearsal.trip.id).state == "rehearsed"
    before = world.rows("totals")
    with pytest.raises(Refused, match=f"trip {rehearsal.trip.id} is a rehearsal, which never publishes"):
        world.drive(shop(), tagged=rehearsal.trip.id)
    assert world.rows("totals") == before
    with pytest.raises(Refused, match="never publishes"):
        world.drive(shop(), select=("priced", "totals", "log"))
    assert len(world.rows("log")) == 3


def test_a_drop_off_alone_refuses_and_says_what_to_do(world):
    first = world.drive(shop())
    with pytest.raises(Refused, match=f"tag the run bus/trip/shop=TRIP .*the newest: {first.trip.id}"):
        world.drive(shop(), select=("totals", "log"))


def test_a_drop_off_alone_publishes_a_tagged_trip_whose_gates_passed(world):
    staged = world.drive(shop(), select=("orders", "priced"))
    assert world.rows("log") == []
    world.drive(shop(), select=("totals", "log"), tagged=staged.trip.id)
    assert len(world.rows("log")) == 3


def test_rows_that_a_later_stop_read_must_be_those_that_passed_last(world):
    drive = world.drive(shop(), select=("orders", "priced"))
    with pytest.raises(Refused, match="read other rows of 'orders'"):
        world.drive(shop(), select=("orders", "totals", "log"), tagged=drive.trip.id)
    assert world.rows("log") == []


def test_two_databases_follow_the_first_and_roll_forward(world, tmp_path):
    route = and_a_copy(world)

    def fail_before_second(drive, at):
        if at == "second":
            raise Poison("the lights went out")

    with pytest.raises(Poison):
        world.drive(route, before=fail_before_second)
    trip = world.depot.trips()[0]
    assert trip.state == "stuck"
    orders, priced, totals, *rest = route.stops
    renamed = replace(route, stops=(orders, replace(priced, name="worth"), replace(totals, of="worth"), *rest))
    with pytest.raises(Refused, match="the route has lost stop 'priced' since: put it back until the trip is rolled forward"):
        world.drive(renamed, tagged=trip.id)
    world.land("order_id,qty,price\nO-9,9,9\n")
    again = world.drive(route, tagged=trip.id)
    assert again.mode == "forward"
    assert world.depot.trip(trip.id).state == "delivered"
    assert len(world.rows("log")) == 3
    with sqlite3.connect(tmp_path / "second.db") as connection:
        assert connection.execute("SELECT count(*) FROM copy").fetchone() == (3,)


def test_parameters_are_typed_and_required(world):
    from bus_assets import Parameter

    stops = (PickUp("orders", TextFile("landing", "orders-{params.month}.csv"), ORDERS),)
    route = shop(stops=stops, parameters=(Parameter("month", "integer"),))
    world.land(GOOD, "orders-3.csv")
    with pytest.raises(Misconfigured, match="'month' \\(integer\\) has no default"):
        world.drive(route)
    with pytest.raises(Misconfigured, match="'x' does not read as integer"):
        world.drive(route, parameters={"month": "x"})
    drive = world.drive(route, parameters={"month": "3"})
    assert drive.trip.parameters == {"month": 3}


NO_IDENTITY = lambda orders: orders.assign(total=1).reset_index(drop=True).drop(columns="_bus_row")  # noqa: E731
HANDLERS = {
    "raises": (lambda orders: 1 / 0, Poison, "raised ZeroDivisionError: division by zero"),
    "returns nothing": (lambda orders: None, Poison, "returned nothing"),
    "returns a word": (lambda orders: "rows", Poison, "returned a str"),
    "wrong columns": (lambda orders: orders.rename(columns={"price": "cost"}), Poison, "returned no column total"),
    "loses rows": (lambda orders: orders.assign(total=orders.price)[1:], Poison, "1 of 3 rows did not come out"),
    "multiplies rows": (lambda orders: pd.concat([orders.assign(total=1)] * 2), Poison, "came out more than once"),
    "loses identity": (NO_IDENTITY, Poison, "cannot be told apart"),
    "makes rows up": (lambda orders: orders.assign(total=1, _bus_row=[1, 2, 99]), Poison, "never aboard"),
    "SQL that filters": ("SELECT order_id, price AS total FROM orders WHERE qty > 1", Poison, "1 of 3 rows did not come out"),
    "SQL that fails": ("SELECT order_id, error('no') AS total FROM orders", Poison, "its SQL failed"),
}


@pytest.mark.parametrize("case", HANDLERS)
def test_a_handler_that_misbehaves_fails_the_stop_by_name_and_the_trip_drives_again(world, case):
    handler, kind, said = HANDLERS[case]

    def route(how):
        return shop(stops=(shop()["orders"], Transform("priced", how, PRICED), DropOff("log", Table("warehouse", "log", create=True))))

    with pytest.raises(kind, match=said) as error:
        world.drive(route(handler))
    assert str(error.value).startswith("route 'shop', stop 'priced': ")
    assert "though the gate" not in str(error.value), "a key that breaks by that is no fault of the gate"
    assert world.rows("log") == []
    rows = world.drive_again(route(lambda orders: orders.assign(total=orders.qty * orders.price)))
    assert [(key, Decimal(total)) for key, total in rows] == [("O-1", Decimal(7)), ("O-2", Decimal(1)), ("O-3", Decimal("0.5"))]


def test_a_transform_that_changes_the_grain_may_aggregate(world):
    contract = Contract((Field("n", "integer"), Field("total", "decimal(14,2)")))
    grouped = Transform("sums", "SELECT count(*) AS n, sum(price) AS total FROM orders", contract, grain="changed")
    route = shop(stops=(shop()["orders"], grouped, DropOff("sums_table", Table("warehouse", "sums", scope={}, create=True))))
    world.drive(route)
    world.drive(route)
    assert [(row[0], Decimal(str(row[1]))) for row in world.rows("sums")] == [(3, Decimal("4.60"))]


def test_where_and_columns_choose_what_is_dropped(world):
    drop = DropOff("big", Table("warehouse", "big", create=True), columns={"id": "order_id"}, where="qty > 1")
    world.drive(shop(stops=(shop()["orders"], drop)))
    assert world.rows("big") == [("O-1",), ("O-3",)]


def test_a_frame_carried_through_a_merge_keeps_its_rows(world):

    def priced(orders: pd.DataFrame) -> pd.DataFrame:
        extra = pd.DataFrame({"order_id": ["O-3", "O-1"], "fee": [1, 2]})
        return orders.merge(extra, on="order_id", how="left").assign(total=lambda f: f.price)

    world.drive(
        shop(stops=(shop()["orders"], Transform("priced", priced, PRICED), DropOff("t", Table("warehouse", "totals", create=True))))
    )
    assert len(world.rows("totals")) == 3


def test_what_a_transforms_gate_rejects_is_told_by_its_line_in_the_file(world):
    strict = Contract((Field("order_id", required=True), Field("total", "decimal(14,2)", maximum="5")), max_rejected=2)
    route = shop(stops=(shop()["orders"], Transform("priced", "SELECT order_id, qty * price AS total FROM orders", strict)))
    drive = world.drive(route)
    (row,) = world.depot.quarantined(trip=drive.trip.id)
    assert (row.stop, row.origin, row.unit, row.position) == ("priced", "orders.csv", "line", 2)


def test_the_first_value_of_too_many_that_a_transforms_gate_rejects_is_told_by_its_line_in_the_file(world):
    kept = Transform("priced", "SELECT order_id, qty * price / 3 AS total FROM orders", PRICED)
    with pytest.raises(ChecksFailed, match=r"; first: orders\.csv, line 2: 2\.33.* has no exact value as decimal\(14,2\)"):
        world.drive(shop(stops=(shop()["orders"], kept)))
    with pytest.raises(ChecksFailed, match=r"; first: orders\.csv, line 2: 2\.33"):
        same = Transform("same", lambda orders: orders, ORDERS)
        world.drive(shop(stops=(shop()["orders"], same, replace(kept, how="SELECT order_id, qty * price / 3 AS total FROM same"))))
    with pytest.raises(ChecksFailed, match=r"; first: row 1: 2\.33"):
        world.drive(shop(stops=(shop()["orders"], replace(kept, grain="changed"))))


def test_a_trip_of_the_clock_knows_its_tick(world):
    from datetime import UTC, datetime

    world.land(GOOD, "orders-2026-01-31.csv")
    route = shop(stops=(PickUp("orders", TextFile("landing", "orders-{date}.csv"), ORDERS),))
    drive = world.drive(route, scheduled=datetime(2026, 1, 31, 5, tzinfo=UTC), trigger="cron")
    assert drive.values["date"] == "2026-01-31"


def test_the_words_of_an_error_never_hold_a_sensitive_value(world):
    secret = Contract((Field("order_id", sensitive=True), Field("qty", "integer"), Field("price", "decimal(10,2)")), max_rejected=0)
    hidden = Contract((Field("order_id", sensitive=True), Field("total", "integer", sensitive=True)))
    stops = (
        PickUp("orders", TextFile("landing", "orders.csv"), secret),
        Transform("cast", "SELECT CAST(order_id AS INTEGER) AS total, order_id FROM orders", hidden),
    )
    with pytest.raises(BusError) as error:
        world.drive(shop(stops=stops))
    assert "O-1" not in str(error.value)
    assert "its SQL failed: ConversionException" in str(error.value)


def numbers(orders: pd.DataFrame) -> pd.DataFrame:
    return orders.assign(total=pd.to_numeric(orders["order_id"]))


def decimals(orders: pd.DataFrame) -> pd.DataFrame:
    return orders.assign(total=orders["order_id"].map(lambda number: Decimal(number)))


SO_WAITS = "give null where a value does not read, and a field with required=True then sends that row to quarantine"
TRY_CAST = f"; TRY_CAST instead of CAST, and try_strptime, {SO_WAITS}"
COERCE = f"; pandas.to_numeric and to_datetime with errors='coerce' {SO_WAITS}"
TO_NUMERIC = 'return orders.assign(total=pd.to_numeric(orders["order_id"]))'
TO_DECIMAL = 'return orders.assign(total=orders["order_id"].map(lambda number: Decimal(number)))'
NOT_SHOWN = "the text is not shown, as rows here hold sensitive fields"
UNREAD = {  # a transform of texts that do not read: what is said where they are sensitive, and where they are not
    "a column": (
        "SELECT CAST(order_id AS INTEGER) AS total FROM orders",
        f"its SQL failed: ConversionException of column 'order_id'; {NOT_SHOWN}{TRY_CAST}",
        "its SQL failed: Conversion Error: Could not convert string 'O-1' to INT32 when casting from source column order_id" + TRY_CAST,
    ),
    "an expression": (
        "SELECT lower(order_id)::INTEGER AS total FROM orders WHERE TRY_CAST(order_id AS DATE) IS NULL",
        f"its SQL failed: ConversionException in CAST(LOWER(order_id) AS INT); {NOT_SHOWN}{TRY_CAST}",
        "its SQL failed: Conversion Error: Could not convert string 'o-1' to INT32" + TRY_CAST,
    ),
    "a time": (
        "SELECT strptime(order_id, '%Y') AS total FROM orders",
        f"its SQL failed: InvalidInputException in STRPTIME(order_id, '%Y'); {NOT_SHOWN}{TRY_CAST}",
        'its SQL failed: Invalid Input Error: Could not parse string "O-1" according to format specifier "%Y"' + TRY_CAST,
    ),
    "no value": (
        "SELECT error(order_id) AS total FROM orders",
        f"its SQL failed: InvalidInputException; {NOT_SHOWN}",
        "its SQL failed: Invalid Input Error: O-1",
    ),
    "pandas": (
        numbers,
        f"numbers() raised ValueError: {NOT_SHOWN} (line {{}} of test_trips.py: {TO_NUMERIC}){COERCE}",
        "numbers() raised ValueError: Unable to parse string",
    ),
    "a function": (
        decimals,
        f"decimals() raised InvalidOperation: {NOT_SHOWN} (line {{}} of test_trips.py: {TO_DECIMAL}){COERCE}",
        "decimals() raised InvalidOperation: [<class 'decimal.ConversionSyntax'>] (line ",
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_transform_that_fails_at_a_value_says_where_and_how_its_row_waits_instead(world, case):
    how, hidden, shown = UNREAD[case]
    line = "" if isinstance(how, str) else how.__code__.co_firstlineno + 1
    for sensitive, said in ((True, hidden.format(line)), (False, shown)):
        read = Contract((Field("order_id", sensitive=sensitive), Field("qty", "integer")))
        made = Transform("made", how, Contract((Field("total", "integer", sensitive=sensitive),)), grain="changed")
        with pytest.raises(Poison) as error:
            world.drive(shop(stops=(PickUp("orders", TextFile("landing", "orders.csv"), read), made)))
        assert ("o-1" in str(error.value).lower() and sensitive) is False
        told = str(error.value).removeprefix("route 'shop', stop 'made': ")
        assert told == said if sensitive or isinstance(how, str) else told.startswith(said) and told.endswith(COERCE)


def test_sql_that_fails_after_its_first_rows_is_the_authors_error_and_quotes_no_value(world):
    """By then it is Arrow that tells of DuckDB's error."""
    cards = Contract((Field("id", "integer"), Field("card", sensitive=True)))
    last = 150_000
    world.land("id,card\n" + "".join(f"{n},{n if n < last else 'DE-4711'}\n" for n in range(last + 1)), "cards.csv")
    stops = (
        PickUp("cards", TextFile("landing", "cards.csv"), cards),
        Transform("numbers", "SELECT CAST(card AS BIGINT) AS n FROM cards", Contract((Field("n", "integer", sensitive=True),))),
        DropOff("log", Table("warehouse", "numbers", create=True)),
    )
    with pytest.raises(Poison, match=r"its SQL failed.*not shown") as raised:
        world.drive(shop(stops=stops))
    assert "DE-4711" not in "".join(traceback.format_exception(raised.value))
    assert world.depot.trips(limit=1)[0].state == "failed"
