"""Messages start trips: nothing lost, nothing twice, one bad message stops nobody. On a fake queue, with real databases."""

from __future__ import annotations

import gzip
import sqlite3
import time
from dataclasses import replace
from decimal import Decimal

import psycopg
import pytest

from bus_assets import Check, Contract, DropOff, Field, Json, Parameter, PickUp, Query, S3Event, Table, Text, TextFile, Transform, archive
from bus_assets.account import account
from bus_assets.boarding import board, settle
from bus_assets.doctor import OF_ITS_SYSTEMS, Systems, examined
from bus_assets.drive import Boarding
from bus_assets.publish import publish
from bus_assets.redriving import board_dead_letters
from resources.database import Database
from resources.engines import in_words, parsed
from resources.errors import Refused, Transient
from resources.files import LocalFiles
from sensors.judging import BREAKER
from tests.queue_world import ORDER, TOTAL, QueueWorld, events, order, orders


@pytest.fixture
def world(tmp_path):
    return QueueWorld(tmp_path)


def test_messages_become_rows_and_leave_the_queue(world):
    world.send(*orders(range(1, 6)))
    said = world.deliver()
    assert world.logged() == ["O-1", "O-2", "O-3", "O-4", "O-5"]
    assert world.states() == {"delivered": 5}
    assert world.queue.depth().waiting == 0
    assert said[0] == "boarded 5, departed 1"


def test_a_message_that_comes_twice_is_a_duplicate(world):
    world.send(order(1))
    world.deliver()
    world.queue.duplicate("m-1")
    assert "duplicates 1" in world.deliver()[0]
    assert world.logged() == ["O-1"]
    assert world.messages()[0].duplicates == 1


def test_an_object_where_text_was_promised_sets_the_message_aside(world):
    world.send(order(1), order(2) | {"order_id": {"O-": 2}}, order(3) | {"order_id": ["O-3"]})
    world.deliver()
    assert world.logged() == ["O-1"]
    assert world.states() == {"delivered": 1, "quarantined": 2}
    assert {message.error for message in world.messages("quarantined")} == {
        "order_id: type string: is an object, not a string",
        "order_id: type string: is a list, not a string",
    }


def test_a_path_through_what_is_no_object_sets_the_message_aside(tmp_path):
    world = QueueWorld(tmp_path, events(decode=Json(ORDER, fields={"order_id": "order.id"})))
    world.send(order(1) | {"order": {"id": "O-1"}}, order(2) | {"order": "O-2"})
    world.deliver()
    assert (world.logged(), world.states()) == (["O-1"], {"delivered": 1, "quarantined": 1})
    assert [message.error for message in world.messages("quarantined")] == [
        "order_id: type string: cannot be read at 'order.id': 'order' is a string, not an object"
    ]


def test_a_message_with_a_known_identity_and_another_body_is_told(tmp_path):
    world = QueueWorld(tmp_path, events(identity="order_id"))
    world.send(order(1), order(1) | {"qty": 7})
    assert "duplicates 1, of them with another body 1" in world.deliver()[0]
    assert world.logged() == ["O-1"]
    bodies = [arrival.body for arrivals in archive.kept(world.staging, "events") for arrival in arrivals]
    assert len(set(bodies)) == 2


def test_a_crash_between_commit_and_delete_boards_once(world):
    """The depot has the message, the queue does not know: it comes again."""
    world.send(order(1))
    world.queue.delete = lambda received: 0
    world.deliver()
    del world.queue.delete
    world.queue.expire()
    assert "duplicates 1" in world.deliver()[0]
    assert world.logged() == ["O-1"]


def test_a_poison_message_is_found_stranded_and_the_others_go_on(tmp_path):
    world = QueueWorld(tmp_path, events(dead_letters="dead", attempts=2))
    world.send(*orders([1, 2, 3, 666, 4, 5, 6, 7]))
    world.deliver()
    assert world.logged() == ["O-1", "O-2", "O-3", "O-4", "O-5", "O-6", "O-7"]
    assert world.states() == {"delivered": 7, "stranded": 1}
    (stranded,) = world.messages("stranded")
    assert "666 is too much for me" in stranded.error
    (copy,) = world.dead.receive(10)
    assert copy.attributes["bus-key"] == stranded.key


def test_a_message_that_a_trigger_of_the_table_refuses_is_found_and_its_value_not_told(tmp_path, postgres_database_url):
    refusing = "BEGIN IF NEW.order_id = 'O-666' THEN RAISE '%', NEW.order_id USING ERRCODE = 'BU001'; END IF; RETURN NEW; END"
    with psycopg.connect(postgres_database_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE log (order_id text, total numeric(14, 2))")
        connection.execute(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {refusing} $$")
        connection.execute("CREATE TRIGGER refusing BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION refuse()")
    stops = (Transform("priced", "SELECT order_id, qty * price AS total FROM messages", TOTAL), events()["log"])
    world = QueueWorld(tmp_path, events(stops=stops), warehouse_url=postgres_database_url)
    world.send(*orders([1, 666, 2]))
    said = world.deliver()
    assert world.states() == {"delivered": 2, "stranded": 1}
    (stranded,) = world.messages("stranded")
    assert "a row was refused (SQLSTATE BU001)" in stranded.error
    assert "O-666" not in stranded.error + "".join(said)


def test_a_publishing_session_that_stays_open_holds_up_its_own_trip_alone(tmp_path, postgres_database_url):
    """Its client's machine is gone: nobody has told the server."""
    plain = postgres_database_url.replace("+psycopg", "")
    world = QueueWorld(tmp_path, events(batch=1, max_in_flight=2), warehouse_url=postgres_database_url)
    world.send(order(1))
    world.deliver()
    world.send(order(2))
    (gone,) = world.tick().departures
    with psycopg.connect(plain, client_encoding="utf8") as session:

        def vanishes(drive, at):
            if at == "warehouse":
                row = (drive.route.name, drive.trip.id, drive.attempt, "published", drive.run)
                session.execute("INSERT INTO bus_outcomes (route, trip, attempt, outcome, run) VALUES (%s, %s, %s, %s, %s)", row)
                raise Transient("the machine is gone")

        world.run(gone, vanishes)
        world.send(order(3))
        began = time.monotonic()
        done = world.tick()
        assert time.monotonic() - began < 5
        lock = f"the lock of attempt 1 of trip {gone.trip} in {in_words(parsed(postgres_database_url))}"
        said = f"trip {gone.trip} cannot be settled now: {lock} is held by session {session.info.backend_pid} (idle in transaction since 2"
        assert said in done.said
        assert f"`SELECT pg_terminate_backend({session.info.backend_pid})` ends it" in done.said
        for departure in done.departures:
            world.run(departure)
        assert world.logged() == ["O-1", "O-3"]
        systems = Systems(world.bus.depot, world.route, world.bus.systems)
        (finding,) = [one for one in examined(systems, OF_ITS_SYSTEMS, "events") if "cannot be settled" in one.wrong]
        assert f"held by session {session.info.backend_pid}" in finding.wrong
        assert "pg_terminate_backend" in finding.advice
        with psycopg.connect(plain) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
        world.deliver()
        assert world.logged() == ["O-1", "O-2", "O-3"]
        assert not [one for one in examined(systems, OF_ITS_SYSTEMS, "events") if "cannot be settled" in one.wrong]
        session.close()


def test_a_stranded_message_that_comes_back_from_the_dead_letters_is_known_and_delivered_once(tmp_path):
    world = QueueWorld(tmp_path, events(dead_letters="dead", attempts=1))
    world.send(order(666))
    world.deliver()
    (copy,) = world.dead.receive(10)
    mended = Transform("priced", "SELECT order_id, qty * price AS total FROM messages", TOTAL)
    world.route = events(dead_letters="dead", stops=(mended, events()["log"]))
    world.send(copy.body, copy.body, **copy.attributes)  # redriven by hand, twice, under new message ids
    assert "redriven 1" in world.deliver()[0]
    assert world.logged() == ["O-666"]
    assert [(m.state, m.generation, m.duplicates) for m in world.messages()] == [("delivered", 1, 1)]


def test_several_failures_in_a_row_pause_the_route_and_strand_nothing(tmp_path):
    """A bad deploy: every message fails."""
    world = QueueWorld(tmp_path, events(batch=2, attempts=1))
    world.send(*[order(666) for _ in range(40)])
    world.deliver(ticks=40)
    paused = world.bus.depot.inbox.paused("events")
    assert paused is not None
    assert "666" in paused[1]
    stranded = world.states().get("stranded", 0)
    assert stranded < 6
    left = 40 - stranded
    world.route = events(stops=(Transform("priced", "SELECT order_id, qty * price AS total FROM messages", TOTAL), events()["log"]))
    world.bus.depot.inbox.resume("events")
    world.deliver()
    assert len(world.logged()) == left


BROKEN = {"order_id": "X", "qty": 0, "price": "1"}
"""As every order looks after a deploy that breaks the contract."""


def test_trips_of_nothing_but_rejected_rows_pause_the_route_before_all_that_waits_is_set_aside(tmp_path):
    world = QueueWorld(tmp_path, events(batch=2, max_in_flight=1))
    world.send(*[BROKEN] * 20)
    world.deliver(ticks=20)
    _, why = world.bus.depot.inbox.paused("events")
    newest = world.bus.depot.trips("events", "delivered", 1)[0].id
    assert why.startswith(f"{BREAKER} trips in a row delivered nothing; the newest, {newest}, had nothing but rejected rows: order_id")
    assert world.states()["quarantined"] == 2 * BREAKER
    world.route = events(decode=Json(Contract((Field("order_id"), Field("qty", "integer"), Field("price", "decimal(10,2)")))))
    world.bus.depot.inbox.resume("events")
    world.bus.depot.inbox.redrive("events", reason="the contract is mended")
    world.deliver()
    assert world.logged() == ["X"] * 20


def test_a_good_trip_between_them_does_not_let_rejected_rows_pause_the_route(tmp_path):
    world = QueueWorld(tmp_path, events(batch=2, max_in_flight=1))
    world.send(*[BROKEN] * 2 * (BREAKER - 1), order(1), BROKEN, *[BROKEN] * 2 * (BREAKER - 1))
    world.deliver()
    assert world.bus.depot.inbox.paused("events") is None
    assert world.states() == {"delivered": 1, "quarantined": 4 * (BREAKER - 1) + 1}


def test_bad_messages_that_ride_alone_pause_nothing_however_many_come_in_a_row(tmp_path):
    """Each is set aside by itself: what is wrong with it need not be wrong with the next."""
    world = QueueWorld(tmp_path, events(batch=1, max_in_flight=1))
    world.send(*[BROKEN] * BREAKER, order(1))
    world.deliver()
    assert world.bus.depot.inbox.paused("events") is None
    assert world.states() == {"delivered": 1, "quarantined": BREAKER}


def test_a_message_without_rows_among_rejected_ones_is_no_good_trip(tmp_path):
    world = QueueWorld(tmp_path, events(decode=Json(ORDER, records="orders"), batch=2, max_in_flight=1))
    world.send(*[{"orders": [BROKEN]}, {"orders": []}] * (BREAKER + 1))
    world.deliver(ticks=20)
    assert "had nothing but rejected rows: order_id" in world.bus.depot.inbox.paused("events")[1]
    assert {state: world.states()[state] for state in ("delivered", "quarantined")} == {"delivered": BREAKER, "quarantined": BREAKER}


def test_a_trip_of_rejected_rows_leaves_the_failures_before_it_counted(tmp_path):
    """Also that of one message, which is none itself."""
    world = QueueWorld(tmp_path, events(batch=1, max_in_flight=1, attempts=1))
    world.send(*[order(666)] * (BREAKER - 1), BROKEN, order(666), order(1))
    world.deliver(ticks=20)
    assert "666 is too much for me" in world.bus.depot.inbox.paused("events")[1]
    assert world.states()["quarantined"] == 1
    assert world.logged() == []


def test_a_row_that_breaks_its_contract_sets_only_its_message_aside(world):
    world.send(order(1), {"order_id": "X", "qty": 0, "price": "1"}, order(2))
    world.deliver()
    assert world.logged() == ["O-1", "O-2"]
    assert world.states() == {"delivered": 2, "quarantined": 1}
    rows = world.bus.depot.quarantined("events", None, "messages", "held", limit=10, after=0)
    assert [(row.unit, row.position, row.message) for row in rows] == [("message", 2, 2)]


def too_big(messages):
    """An author's function with a number of more than 64 bits, beyond the unsigned ones too."""
    return messages.assign(total=[2**70 if qty == 7 else int(qty) for qty in messages["qty"]])


def test_a_number_that_64_bits_do_not_hold_sets_only_its_message_aside(tmp_path):
    total = Contract((Field("order_id", required=True), Field("total", "integer")))
    stops = (Transform("priced", too_big, total), DropOff("log", Table("warehouse", "log", create=True), of="priced"))
    world = QueueWorld(tmp_path, events(stops=stops))
    world.send(order(1), order(2, qty=7), order(3))
    world.deliver()
    assert world.states() == {"delivered": 2, "quarantined": 1}
    assert world.logged() == ["O-1", "O-3"]


def test_a_message_of_many_rows_is_judged_by_its_own_share(tmp_path):
    """One bad row of twenty waits; of a message that is half bad nothing is delivered; neither depends on who shares the trip."""
    route = events(decode=Json(ORDER, records="orders"))
    world = QueueWorld(tmp_path, route)
    bad = {"order_id": "bad", "qty": 1, "price": "1"}
    world.send({"orders": [*orders(range(19)), bad]}, {"orders": [order(100), bad]}, {"orders": orders([200, 201])})
    world.deliver()
    assert len(world.logged()) == 21
    assert "O-100" not in world.logged()
    first, second, third = world.messages()
    assert (first.state, first.rows_rejected) == ("delivered", 1)
    assert (second.state, second.rows_rejected) == ("quarantined", 2)
    assert (third.state, third.rows_rejected) == ("delivered", 0)


def test_an_item_that_is_no_object_is_named(tmp_path):
    world = QueueWorld(tmp_path, events(decode=Json(ORDER, records="orders")))
    world.send({"orders": [order(1), None]}, {"orders": order(2)}, {"orders": [order(3)]})
    world.deliver()
    assert world.logged() == ["O-3"]
    reasons = [message.error for message in world.messages() if message.state == "quarantined"]
    said = ("item 2 of the list at 'orders' in the body is not an object", "the body has no list at 'orders'")
    assert reasons == [f"readable: {why}" for why in said]


def test_what_all_rows_of_a_message_share_is_found_in_its_body(tmp_path):
    fields = {"order_id": "@body.order.id", "qty": "qty"}
    world = QueueWorld(tmp_path, events(decode=Json(ORDER, fields=fields, records="lines")))
    lines = [{"qty": 1, "price": "1"}, {"qty": 2, "price": "2"}]
    world.send({"order": {"id": "O-7"}, "lines": lines}, {"order": {}, "lines": lines})
    world.deliver()
    assert world.logged() == ["O-7", "O-7"]
    assert world.states() == {"delivered": 1, "quarantined": 1}
    (bad,) = world.messages("quarantined")
    assert bad.error is not None
    assert bad.error.startswith("none of its 2 rows was delivered; the first: order_id: required")


def test_a_trip_from_before_a_stop_was_put_in_still_has_its_account(tmp_path):
    world = QueueWorld(tmp_path, events(stops=(DropOff("log", Table("warehouse", "log", create=True), of="messages"),)))
    world.send(order(1))
    world.deliver()
    (message,) = world.messages()
    made = account(world.bus, events(), message.trip)
    assert any("before the route had stop 'priced'" in recount.note for recount in made.recounts)


def test_a_trip_from_before_a_parameter_was_put_in_takes_its_default_and_keeps_it(tmp_path):
    def taxed(messages, rate, params):
        return messages.assign(total=messages["qty"] * messages["price"] * params["tax"] * int(rate["tax"][0]))

    def deployed(tax):
        rate = PickUp(
            "rate", Query("warehouse", "SELECT :tax AS tax", params={"tax": "{params.tax}"}), Contract((Field("tax", "integer"),))
        )
        made = Transform("priced", taxed, TOTAL, after=("messages", "rate"))
        drop = DropOff("log", Table("warehouse", "log", create=True), of="priced")
        return events(parameters=(Parameter("tax", "integer", default=tax),), stops=(rate, made, drop))

    def down(drive, at):
        if at == "priced":
            raise Transient("the tax office is closed")

    world = QueueWorld(tmp_path)
    world.send(*orders(range(3)))
    departure = world.tick().departures[0]
    world.route = deployed(2)
    assert world.run(departure, down) == "failure"
    assert world.bus.depot.trip(departure.trip).parameters == {"tax": 2}
    world.route = deployed(3)
    world.deliver()
    assert world.bus.depot.inbox.paused("events") is None
    assert world.rows("log") == [(f"O-{number}", "6.00") for number in range(3)]
    assert account(world.bus, world.route, departure.trip).balanced


def test_what_is_wrong_in_a_nested_field_is_told_behind_a_short_name(tmp_path):
    kind = "list<struct<barcode: string, state: struct<code: string>, weight: struct<grams: integer>, box: string>>"
    parcels = Contract((Field("order_id", required=True), Field("parcels", kind)))
    world = QueueWorld(
        tmp_path, events(decode=Json(parcels), stops=(DropOff("log", Table("warehouse", "log", create=True), of="messages"),))
    )
    world.send({"order_id": "O-1", "parcels": [{"weight": {"grams": "1.5"}}]})
    world.deliver()
    (message,) = world.messages("quarantined")
    assert message.error is not None
    assert message.error.startswith("parcels: type list<struct<")
    assert "…: item 1: weight: grams" in message.error


def test_an_idle_tick_says_who_waits_behind_whom(tmp_path):
    world = QueueWorld(tmp_path, events(attempts=1), fifo=True)
    world.send(order(666), order(1), order(2), group="a")
    world.deliver()
    assert world.states() == {"stranded": 1, "waiting": 2}
    assert "2 wait behind stranded messages of their groups" in world.tick().said


def test_two_messages_about_one_key_do_not_reject_each_other(tmp_path):
    contract = Contract((Field("order_id", required=True, unique=True), Field("qty", "integer"), Field("price", "decimal(10,2)")))
    drop = DropOff("newest", Table("warehouse", "newest", key="order_id", create=True), of="messages")
    world = QueueWorld(tmp_path, events(decode=Json(contract), stops=(drop,)))
    world.send(order(1, qty=1), order(1, qty=2), order(1, qty=3))
    world.deliver()
    assert world.states() == {"delivered": 3}
    assert [(row[0], row[1]) for row in world.rows("newest")] == [("O-1", 3)]


@pytest.mark.parametrize("body", ["", "nonsense", "[1]", "\ud800", '{"order_id": NaN}', "{" * 2000, "\x00", '"text"', "null"])
def test_what_cannot_be_decoded_waits_in_quarantine_and_the_others_go_on(world, body):
    world.queue.send = lambda bodies: [world.queue._send(one) for one in bodies]  # SQS refuses some of these: others may not
    world.send(body, order(1))
    world.deliver()
    assert world.logged() == ["O-1"]
    assert world.states() == {"delivered": 1, "quarantined": 1}
    (message,) = world.messages("quarantined")
    assert message.error


def test_a_lost_depot_applies_nothing_twice(world):
    world.send(*orders(range(1, 4)))
    world.deliver()
    for file in world.root.glob("depot.db*"):
        file.unlink()
    again = QueueWorld(world.root)
    again.queue = world.queue
    again.bus.systems["order_events"] = world.queue
    for message_id in ("m-1", "m-2"):
        world.queue.duplicate(message_id)
    again.send(order(9))
    again.deliver()
    assert again.logged() == ["O-1", "O-2", "O-3", "O-9"]
    assert again.states() == {"delivered": 3}


def test_what_another_depots_trip_applies_while_a_trip_is_under_way_is_not_applied_again_and_spends_nothing(tmp_path):
    """Two depots on one warehouse, by mistake: the receipts decide, in the transaction that publishes. Nobody aboard is to blame."""
    world = QueueWorld(tmp_path, events(attempts=1))
    world.send(*orders([1, 2]))
    (departure,) = world.tick().departures

    def overtaken(drive, at):
        if at == "warehouse":
            first = world.bus.depot.inbox.messages_of(drive.trip.id)[0]
            with drive.bus.systems[at].transaction() as transaction:
                transaction.record_receipts("events", [first.key], trip="of-another-depot", attempt=1)

    assert world.run(departure, overtaken) == "failure"
    assert world.bus.depot.newest_attempt(departure.trip).kind == "conflict"
    assert world.deliver()[0] == "departed 1, returned 1"
    assert world.logged() == ["O-2"]
    assert (world.states(), world.bus.depot.trip(departure.trip).failures) == ({"delivered": 2}, 0)
    assert world.bus.depot.inbox.paused("events") is None


def test_a_run_killed_after_the_commit_is_found_published_and_not_driven_again(world):
    world.send(*orders([1, 2]))
    (departure,) = world.tick().departures
    drive = world.drive(world.route, run="killed", tagged=departure.trip)
    with sqlite3.connect(world.root / "depot.db") as depot:  # as the process left it, which died before it could tell
        depot.execute("DELETE FROM depot_publications")
        depot.execute("UPDATE depot_trips SET state = 'driving', ended_at = NULL")
        depot.execute("UPDATE depot_attempts SET ended_at = NULL, outcome = NULL")
        depot.execute("UPDATE depot_messages SET state = 'aboard', trip = ?", (drive.trip.id,))
    world.runs.over.add("killed")
    assert "rolled forward 1" in world.tick().said
    assert [message.state for message in world.messages()] == ["delivered", "delivered"]
    assert world.logged() == ["O-1", "O-2"]


def test_a_zombie_that_wakes_up_after_its_trip_was_settled_writes_nothing(world):
    world.send(*orders([1, 2]))
    (departure,) = world.tick().departures

    def fall_asleep(drive, at):
        if at == "warehouse":
            raise Transient("asleep")

    world.run(departure, fall_asleep)
    zombie = board(world.bus, world.route, Boarding("zombie", frozenset(world.route.order), tagged=departure.trip, take_over=True))
    world.runs.over.add("zombie")
    world.hurry()
    world.deliver()
    assert world.logged() == ["O-1", "O-2"]
    with pytest.raises(Refused):
        publish(zombie, "warehouse")
    assert world.logged() == ["O-1", "O-2"]


def test_a_run_that_was_asked_for_twice_finds_nothing_to_do(world):
    world.send(order(1))
    (departure,) = world.tick().departures
    assert world.run(departure) == "success"
    assert world.run(replace(departure, launch=departure.launch + 1)) in ("success", "nothing to do")
    assert world.logged() == ["O-1"]


def test_a_transient_error_is_tried_again_for_as_long_as_it_takes(world):
    world.send(order(1))
    left = [12]

    def flaky(drive, at):
        if at == "warehouse" and left[0]:
            left[0] -= 1
            raise Transient("the warehouse is being moved")

    world.deliver(before=flaky)
    assert left == [0]
    assert world.logged() == ["O-1"]


def test_who_tries_again_what_failed_for_the_moment_is_told(world):
    world.send(order(1))
    (departure,) = world.tick().departures

    def away(drive, at):
        if at == "warehouse":
            raise Transient("the warehouse is being moved")

    world.run(departure, away)
    (trip,) = world.depot.trips()
    again = "the sensor of its queue lets the trip depart again, as `bus dispatch events` does"
    assert trip.error == f"route 'events', stop 'warehouse': the warehouse is being moved; {again}"


def test_rows_that_are_aggregated_accumulate_whatever_the_batches(tmp_path):
    per = Transform(
        "per_item",
        "SELECT order_id, CAST(sum(qty) AS BIGINT) AS qty FROM messages GROUP BY order_id",
        Contract((Field("order_id", required=True), Field("qty", "integer"))),
        grain="changed",
        combine="accumulate",
    )
    drop = DropOff("sums", Table("warehouse", "sums", key="order_id", mode="accumulate", sums=("qty",), create=True))
    world = QueueWorld(tmp_path, events(batch=3, stops=(per, drop)))
    world.send(*[order(number % 2, qty=number + 1) for number in range(10)])
    world.deliver()
    assert sorted((row[0], row[1]) for row in world.rows("sums")) == [("O-0", 25), ("O-1", 30)]


def test_each_message_alone_is_transformed_by_itself(tmp_path):
    summed = Transform(
        "summed",
        "SELECT sum(qty * price) AS total, count(*) AS lines FROM messages",
        Contract((Field("total", "decimal(18,2)"), Field("lines", "integer"))),
        grain="changed",
        combine="alone",
    )
    route = events(decode=Json(ORDER, records="lines"), stops=(summed, DropOff("log", Table("warehouse", "log", create=True))))
    world = QueueWorld(tmp_path, route)
    world.send({"lines": orders([1, 2, 3])}, {"lines": orders([4])})
    world.deliver()
    assert sorted((Decimal(str(row[0])), row[1]) for row in world.rows("log")) == [(Decimal("1.50"), 1), (Decimal("4.50"), 3)]


def beside(rows, messages, skus):
    """An author's function that joins what a message names with the message, which have no key in common."""
    return rows[["id"]].merge(messages, how="cross").merge(skus, how="left", on="id")


@pytest.mark.parametrize("batch", [100, 1])
@pytest.mark.parametrize("how", ["SELECT id, key, sku FROM rows CROSS JOIN messages LEFT JOIN skus USING (id)", beside])
def test_each_message_alone_looks_up_only_what_it_brings_itself(tmp_path, batch, how):
    """Else each of its rows came as often as there are messages in the trip."""
    made = Contract((Field("id", required=True), Field("key"), Field("sku")))
    stops = (
        PickUp("skus", TextFile("landing", "skus.csv"), Contract((Field("id"), Field("sku")))),
        PickUp("rows", TextFile("landing", "{message.key}.csv"), Contract((Field("id"),))),
        Transform("told", how, made, ("rows", "messages", "skus"), grain="changed", combine="alone"),
        DropOff("log", Table("warehouse", "log", create=True)),
    )
    world = QueueWorld(tmp_path, events(decode=Json(Contract((Field("key"),))), batch=batch, stops=stops))
    for name, text in {"skus": "id,sku\n2,two\n", "a": "id\n1\n", "b": "id\n2\n3\n"}.items():
        world.land(text, f"{name}.csv")
    world.send({"key": "a"}, {"key": "b"})
    world.deliver()
    assert sorted(world.rows("log")) == [("1", "a", None), ("2", "b", "two"), ("3", "b", None)]


def with_prices(rows, prices):
    return rows.merge(prices, how="left", on="id")


@pytest.mark.parametrize("batch", [100, 1])
@pytest.mark.parametrize("how", ["SELECT r.id, p.price FROM rows r LEFT JOIN prices p USING (id)", with_prices])
def test_where_the_grain_is_kept_a_message_looks_up_only_what_it_brings_itself_too(tmp_path, batch, how):
    """Else a row has the price that another message brought, if they happen to share a trip."""
    made = Contract((Field("id", required=True), Field("price", "integer")))
    stops = (
        PickUp("rows", TextFile("landing", "{message.key}.csv"), Contract((Field("id"),))),
        PickUp("prices", TextFile("landing", "{message.key}-prices.csv"), made),
        Transform("priced", how, made, ("rows", "prices")),
        DropOff("log", Table("warehouse", "log", create=True)),
    )
    world = QueueWorld(tmp_path, events(decode=Json(Contract((Field("key"),))), batch=batch, stops=stops))
    for name, text in {"a": "id\n1\n4\n", "b": "id\n2\n", "a-prices": "id,price\n2,10\n4,40\n", "b-prices": "id,price\n1,5\n"}.items():
        world.land(text, f"{name}.csv")
    world.send({"key": "a"}, {"key": "b"})
    world.deliver()
    assert sorted(world.rows("log")) == [("1", None), ("2", None), ("4", 40)]


@pytest.mark.parametrize("batch", [100, 1])
def test_a_reference_is_met_within_its_message_whatever_the_batches(tmp_path, batch):
    """Else the order of one message is what the line of another refers to, if they happen to share a trip."""
    line = Contract((Field("order_id", references="read.order_id"), Field("sku", references="skus.sku")))
    stops = (
        PickUp("skus", TextFile("landing", "skus.csv"), Contract((Field("sku"),))),
        PickUp("read", TextFile("landing", "{message.order_id}.csv"), Contract((Field("order_id"),))),
        PickUp("lines", TextFile("landing", "{message.order_id}-lines.csv"), replace(line, max_rejected=0.5)),
        DropOff("log", Table("warehouse", "log", create=True), of="lines"),
    )
    world = QueueWorld(tmp_path, events(batch=batch, stops=stops))
    world.land("sku\na\nb\n", "skus.csv")
    for order_id, lines in (("O-1", "O-1,a\nO-2,a\n"), ("O-2", "O-1,b\nO-2,b\nO-2,?\nO-2,a\n"), ("O-3", ",b\n")):
        world.land(f"order_id\n{order_id}\n", f"{order_id}.csv")
        world.land(f"order_id,sku\n{lines}", f"{order_id}-lines.csv")
    world.send(*orders([1, 2, 3]))
    world.deliver()
    assert sorted(world.rows("log"), key=str) == [("O-1", "a"), ("O-2", "a"), ("O-2", "b"), (None, "b")]
    assert world.states() == {"delivered": 3}
    rows = world.bus.depot.quarantined("events", None, "lines", "held", limit=100, after=0)
    found = [[reason.message for reason in row.reasons] for row in rows]
    assert sorted(found) == [["'?' is not in skus.sku"], ["'O-1' is not in read.order_id"], ["'O-2' is not in read.order_id"]]


def test_bodies_that_are_text_are_rows_of_text(tmp_path):
    """Whatever they look like; what is inside SNS is the body, and the envelope's values stand beside it where they are asked for."""
    note = Contract((Field("body", required=True, max_length=20), Field("key", required=True), Field("at", "timestamptz", required=True)))
    text = Text(note, {"key": "@key", "at": "@sent_at"})
    world = QueueWorld(tmp_path, events(decode=text, stops=(DropOff("log", Table("warehouse", "log", create=True), of="messages"),)))
    bodies = ["plain", '{"a": 1}', "Zoë 🚌", " two\nlines ", "[", "x" * 21]
    notification = {
        "Type": "Notification",
        "TopicArn": "arn:t",
        "MessageId": "17",
        "Message": "of a topic",
        "Timestamp": "2026-01-02T03:04:05Z",
    }
    world.send(*bodies, notification)
    world.deliver()
    assert [row[:2] for row in world.rows("log", "key")] == [("of a topic", "sns:17"), *[(bodies[n], f"sqs:m-{n + 1}") for n in range(5)]]
    assert world.states() == {"delivered": 6, "quarantined": 1}
    assert "max_length" in world.messages("quarantined")[0].error


def test_a_trip_that_is_not_full_waits_as_long_as_the_route_says(tmp_path):
    world = QueueWorld(tmp_path, events(batch=3, max_wait_seconds=600))
    world.send(*orders(range(4)))
    (departure,) = world.tick().departures
    assert departure.messages == 3
    world.run(departure)
    assert world.tick().departures == ()
    assert world.states() == {"delivered": 3, "waiting": 1}
    world.sql("UPDATE depot_messages SET received_at = '2026-01-01 00:00:00.000000' WHERE state = 'waiting'")
    (departure,) = world.tick().departures
    assert departure.messages == 1


def test_settle_revokes_before_it_retries(world):
    world.send(order(1))
    (departure,) = world.tick().departures
    drive = world.board(world.route, run="slow", tagged=departure.trip)
    world.runs.over.add("slow")
    world.tick()
    attempt = world.bus.depot.newest_attempt(departure.trip)
    with sqlite3.connect(world.root / "warehouse.db") as warehouse:
        assert warehouse.execute("SELECT outcome FROM bus_outcomes WHERE trip = ? AND attempt = 1", (drive.trip.id,)).fetchall() == [
            ("revoked",)
        ]
    assert attempt.outcome == "revoked"
    assert settle(world.bus, world.route, drive.trip, attempt) == "revoked"


def test_fifo_keeps_the_order_of_a_group_and_halts_behind_a_stranded_message(tmp_path):
    world = QueueWorld(tmp_path, events(attempts=1), fifo=True)
    for number in (1, 666, 2):
        world.send(order(number), group="a")
    for number in (10, 11):
        world.send(order(number), group="b")
    world.deliver(ticks=12)
    assert sorted(world.logged()) == ["O-1", "O-10", "O-11"]
    assert world.states() == {"delivered": 3, "stranded": 1, "waiting": 1}


@pytest.mark.parametrize("dead", ["dead", "dead.fifo"])
def test_fifo_messages_keep_their_group_and_their_order_through_the_dead_letters(tmp_path, dead):
    """Whatever kind their queue is of; and the group that waited behind them goes on after them."""
    world = QueueWorld(tmp_path, events(attempts=1, dead_letters="dead"), fifo=True)
    world.dead.name = dead
    world.send(*orders([1, 2]), group="b")
    for number in (666, 3, 4):
        world.send(order(number), group="a")
    world.deliver()
    assert world.states() == {"delivered": 2, "stranded": 1, "waiting": 2}
    mended = Transform("priced", "SELECT order_id, qty * price AS total FROM messages", TOTAL)
    world.route = events(dead_letters="dead", batch=1, stops=(mended, world.route["log"]))
    queue = world.route.queue
    assert queue is not None
    assert board_dead_letters(world.bus, world.route, queue, "mended").redriven == 1
    assert [message.group for message in world.messages()] == ["b", "b", "a", "a", "a"]
    (departure,) = world.tick().departures
    world.run(departure)
    world.deliver()
    assert [row[0] for row in world.rows("log", "rowid")] == ["O-1", "O-2", "O-666", "O-3", "O-4"]


def test_fifo_goes_on_behind_a_stranded_message_if_told_so(tmp_path):
    world = QueueWorld(tmp_path, events(attempts=1, on_stranded="continue"), fifo=True)
    for number in (1, 666, 2):
        world.send(order(number), group="a")
    world.deliver(ticks=12)
    assert sorted(world.logged()) == ["O-1", "O-2"]


# What messages name


FILES = Contract((Field("order_id", required=True, pattern="^O-"), Field("qty", "integer", minimum=1)), max_rejected=0.3)
GOOD = "order_id,qty\nO-1,1\nO-2,2\n"


def landing(**more):
    stops = (PickUp("orders", TextFile("landing", "{message.key}"), FILES), DropOff("log", Table("warehouse", "log", create=True)))
    return events(decode=S3Event(), stops=stops, **more)


def s3_event(key, bucket="any", sequencer="0A", **more):
    record = {"bucket": {"name": bucket}, "object": {"key": key, "size": 1, "eTag": "e", "sequencer": sequencer, **more}}
    return {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": "2026-01-02T03:04:05.000Z", "s3": record}


@pytest.fixture
def harbour(tmp_path):
    return QueueWorld(tmp_path, landing())


def test_a_file_that_a_message_names_is_read(harbour):
    harbour.land(GOOD, "a b+ü.csv")
    harbour.send({"Records": [s3_event("a+b%2B%C3%BC.csv")]})
    harbour.deliver()
    assert harbour.logged() == ["O-1", "O-2"]


def test_what_cannot_be_read_sets_its_message_aside_and_the_others_go_on(harbour):
    harbour.land(GOOD, "good.csv")
    harbour.land(gzip.compress(GOOD.encode() * 500)[:60], "cut.csv.gz")
    harbour.land("order_id,qty\nO-7,1\nx,1\ny,2\n", "mostly_bad.csv")
    harbour.land("other,columns\n1,2\n", "other.csv")
    names = ["gone.csv", "cut.csv.gz", "good.csv", "mostly_bad.csv", "..%2Fout.csv", "*.csv", "other.csv"]
    harbour.send({"Records": [s3_event(name) for name in names]})
    harbour.deliver()
    assert harbour.logged() == ["O-1", "O-2"]
    assert harbour.states() == {"delivered": 1, "quarantined": 6}
    rows = harbour.bus.depot.quarantined("events", None, "orders", "held", limit=100, after=0)
    said = {row.message: " ".join(reason.message for reason in row.reasons) for row in rows}
    assert "is not in" in said[1]
    assert "gzip" in said[2]


def test_a_file_whose_rest_is_broken_delivers_nothing_of_it(harbour):
    harbour.land(GOOD + '"never closed\n', "torn.csv")
    harbour.land(gzip.compress(("order_id,qty\n" + "".join(f"O-{n},1\n" for n in range(200_000))).encode())[:-400], "late_cut.csv.gz")
    harbour.send({"Records": [s3_event("late_cut.csv.gz")]})
    harbour.deliver()
    assert harbour.logged() == []
    assert harbour.states() == {"quarantined": 1}


def test_an_older_event_of_an_object_is_superseded_and_the_test_event_ignored(harbour):
    harbour.land(GOOD, "a.csv")
    harbour.send({"Records": [s3_event("a.csv", sequencer="0B")]}, {"Records": [s3_event("a.csv", sequencer="0A")]})
    harbour.send({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "any"})
    said = harbour.deliver()[0]
    assert "superseded 1" in said
    assert "ignored 1" in said
    assert harbour.logged() == ["O-1", "O-2"]


def test_the_same_misconfiguration_for_every_message_pauses_the_route_and_sets_nothing_aside(tmp_path):
    world = QueueWorld(tmp_path, landing())
    world.bus.systems["landing"] = LocalFiles(root=str(tmp_path / "nowhere"))
    world.send({"Records": [s3_event("a.csv"), s3_event("b.csv")]})
    world.deliver(ticks=4)
    assert world.bus.depot.inbox.paused("events") is not None
    world.bus.systems["landing"] = LocalFiles(root=str(tmp_path / "landing"))
    world.land(GOOD, "a.csv")
    world.land("order_id,qty\nO-3,1\n", "b.csv")
    world.bus.depot.inbox.resume("events")
    world.deliver()
    assert world.logged() == ["O-1", "O-2", "O-3"]


@pytest.mark.parametrize("name", ["typo1 typo2", "typo typo"])
def test_messages_that_each_name_another_missing_thing_are_set_aside_and_pause_nothing(tmp_path, name):
    """Of the same thing for each it is not said whose fault it is."""
    named = PickUp("orders", TextFile("landing", "{message.k}.csv"), FILES)
    stops = (named, DropOff("log", Table("warehouse", "log", create=True)))
    world = QueueWorld(tmp_path, events(decode=Json(Contract((Field("k", required=True), Field("n", "integer")))), stops=stops))
    (tmp_path / "landing").mkdir(exist_ok=True)
    world.send(*({"k": key, "n": number} for number, key in enumerate(name.split())))
    world.deliver(ticks=4)
    is_the_same = name == "typo typo"
    assert (world.bus.depot.inbox.paused("events") is not None) is is_the_same
    assert world.states() == ({"aboard": 2} if is_the_same else {"quarantined": 2})


# One message of several that a stop does not bear

CODES = Contract((Field("id", required=True), Field("code")))


def returns_nothing(messages):
    return None if (messages["code"] == "bad").any() else messages


def misses_a_column(messages):
    return messages[["id"]] if (messages["code"] == "bad").any() else messages


def loses_the_index(messages):
    return messages.reset_index(drop=True)[["id", "code"]] if (messages["code"] == "bad").any() else messages


BOUNDS = {
    "where": (DropOff("log", Table("warehouse", "log", create=True), where="CAST(code AS INTEGER) > 0"),),
    **{
        how.__name__: (Transform("made", how, CODES), DropOff("log", Table("warehouse", "log", create=True), of="made"))
        for how in (returns_nothing, misses_a_column, loses_the_index)
    },
}


@pytest.mark.parametrize("case", BOUNDS)
def test_a_value_that_a_stop_does_not_bear_strands_its_message_and_the_others_go_on(tmp_path, case):
    world = QueueWorld(tmp_path, events(decode=Json(CODES), attempts=1, stops=BOUNDS[case]))
    world.send(*({"id": str(number), "code": "bad" if number == 2 else "7"} for number in range(4)))
    world.deliver()
    assert world.bus.depot.inbox.paused("events") is None
    assert world.states() == {"delivered": 3, "stranded": 1}
    assert world.logged() == ["0", "1", "3"]


@pytest.mark.parametrize("gate", ["contract", "check", "contract of the stop behind it"])
def test_a_message_that_breaks_what_is_added_up_is_found_and_the_others_are_in_the_sums(tmp_path, gate):
    """Also where its rows are few enough for ``max_rejected``: the row that is rejected has what good messages say in it."""
    fields = (Field("order_id", required=True), Field("qty", "integer"))
    strict = Contract((fields[0], Field("qty", "integer", maximum=1000)), max_rejected=0.5)
    per = Transform(
        "per_item",
        "SELECT order_id, CAST(sum(qty) AS BIGINT) AS qty FROM messages GROUP BY order_id",
        strict if gate == "contract" else Contract(fields),
        checks=(Check("few", "SELECT * FROM per_item WHERE qty > 1000"),) if gate == "check" else (),
        grain="changed",
        combine="accumulate",
    )
    more = (Transform("behind", "SELECT order_id, qty FROM per_item", strict),) if gate.endswith("behind it") else ()
    drop = DropOff("sums", Table("warehouse", "sums", key="order_id", mode="accumulate", sums=("qty",), create=True))
    world = QueueWorld(tmp_path, events(attempts=1, stops=(per, *more, drop)))
    world.send(*orders(range(8)), order(0, qty=5000), order(0, qty=4))
    world.deliver()
    assert world.bus.depot.inbox.paused("events") is None
    assert world.states() == {"delivered": 9, "stranded": 1}
    assert sorted((row[0], row[1]) for row in world.rows("sums")) == [("O-0", 5), *((f"O-{number}", 1) for number in range(1, 8))]


# Two databases


def two_databases():
    stops = (*events().stops[1:2], DropOff("log", Table("warehouse", "log", create=True), of="priced"))
    return events(stops=(*stops, DropOff("copy", Table("mart", "copy", create=True), of="priced")))


def in_mart(root):
    with sqlite3.connect(root / "mart.db") as mart:
        try:
            return sorted(row[0] for row in mart.execute("SELECT order_id FROM copy"))
        except sqlite3.OperationalError:
            return []


def harbours(root):
    return QueueWorld(root, two_databases(), mart=Database(url=f"sqlite:///{root}/mart.db"))


def die_before_the_mart(drive, at):
    if at == "mart":
        raise Transient("the mart is away")


def test_a_trip_that_reached_one_database_of_two_rolls_forward(tmp_path):
    world = harbours(tmp_path)
    world.send(*orders([1, 2]))
    (departure,) = world.tick().departures
    world.run(departure, die_before_the_mart)
    assert (world.logged(), in_mart(tmp_path)) == (["O-1", "O-2"], [])
    assert [message.state for message in world.messages()] == ["aboard", "aboard"]
    world.deliver()
    assert (world.logged(), in_mart(tmp_path)) == (["O-1", "O-2"], ["O-1", "O-2"])
    assert world.states() == {"delivered": 2}


def test_every_database_keeps_the_receipts_of_what_it_has(tmp_path):
    """By them a later one refuses a message that it has, should the first have been restored from before it."""
    world = harbours(tmp_path)
    world.send(*orders([1, 2]))
    (departure,) = world.tick().departures
    world.run(departure)
    for name in world.route.databases:
        with world.bus.systems[name].transaction(reading=True) as transaction:
            assert transaction.receipt_trips("events", ["sqs:m-1", "sqs:m-2"]) == dict.fromkeys(["sqs:m-1", "sqs:m-2"], departure.trip)


def test_a_lost_depot_rolls_a_trip_forward_that_it_has_never_heard_of(tmp_path):
    """Whoever finds a receipt first rolls that trip forward in every database before calling its messages delivered."""
    world = harbours(tmp_path)
    world.send(*orders([1, 2]))
    (departure,) = world.tick().departures
    world.run(departure, die_before_the_mart)
    for file in tmp_path.glob("depot.db*"):
        file.unlink()
    again = harbours(tmp_path)
    again.queue = again.bus.systems["order_events"] = world.queue
    for message_id in ("m-1", "m-2"):
        again.queue.duplicate(message_id)
    again.send(order(3))
    again.deliver()
    assert (again.logged(), in_mart(tmp_path)) == (["O-1", "O-2", "O-3"], ["O-1", "O-2", "O-3"])
    assert again.states() == {"delivered": 3}


def test_a_condition_of_a_later_database_that_a_value_does_not_bear_is_found_before_the_first_is_written(tmp_path):
    """Once the first has the trip's rows it only rolls forward, and the value would hold it for ever."""
    contract = Contract((Field("id"), Field("code")))
    first = DropOff("log", Table("warehouse", "log", create=True), of="messages")
    second = DropOff("log2", Table("second", "log2", create=True), of="messages", where="CAST(code AS INTEGER) > 0")
    route = events(decode=Json(contract), attempts=2, stops=(first, second))
    world = QueueWorld(tmp_path, route, second=Database(url=f"sqlite:///{tmp_path}/second.db"))
    world.send(*({"id": str(n), "code": "bad" if n == 2 else "7"} for n in range(3)))
    world.deliver(12)
    assert world.states() == {"delivered": 2, "stranded": 1}
    assert sorted(row[0] for row in world.rows("log")) == ["0", "1"]


def test_a_condition_that_a_looked_up_row_does_not_bear_is_no_messages_fault(tmp_path):
    goods = PickUp("goods", TextFile("landing", "goods.csv"), Contract((Field("id"),)))
    kept = DropOff("kept", Table("warehouse", "kept", key="id", create=True), of="goods", where="CAST(id AS INTEGER) > 0")
    log = DropOff("log", Table("warehouse", "log", create=True), of="messages")
    world = QueueWorld(tmp_path, events(decode=Json(Contract((Field("id"),))), stops=(goods, kept, log)))
    world.land("id\nx\n", "goods.csv")
    world.send({"id": "1"})
    world.deliver()
    assert world.states() == {"aboard": 1}
    paused = world.bus.depot.inbox.paused("events")
    assert paused is not None
    assert "stop 'kept'" in paused[1]
    assert "message 1" not in paused[1]
