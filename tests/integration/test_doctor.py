"""``bus doctor``: each thing that can be wrong is one finding, with what to do next; what is well is none."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._grpc.client import DagsterGrpcClient
from dagster._utils.error import serializable_error_info_from_exc_info

from bus_assets import Contract, DropOff, Field, Json, PickUp, Table, TextFile, doctor
from bus_assets.cli import main
from bus_assets.cli.loading import open_instance
from bus_assets.doctor import OF_A_LOST_ROUTE, OF_A_ROUTE, OF_ITS_SYSTEMS, OF_THE_DEPLOYMENT, Deployment, Finding, OfRoute, examined
from bus_assets.release import choose, start_release
from resources.depot.mail import Arrival
from resources.depot.process import this_process
from resources.errors import Misconfigured, Transient
from sensors.dispatch import ASIDE, ROOM
from tests.queue_cli import CliWorld
from tests.queue_world import ORDER, events, order, orders
from tests.world import shop

ROOT = Path(__file__).parents[2]
LOG = DropOff("log", Table("warehouse", "log", create=True), of="orders")


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    # The deployment's looks are tested one by one below: whether this machine's disk is full is no matter of the others.
    monkeypatch.setattr(doctor, "_is_nearly_full", lambda disk: False)
    return CliWorld(tmp_path, monkeypatch, capsys)


def diagnosis(world, *arguments):
    return [finding for finding in world.told("doctor", *arguments, code=1) if finding["level"] == "wrong"]


def is_well(world, *arguments):
    """Whether there is nothing but notes."""
    return {finding["level"] for finding in world.told("doctor", *arguments)} <= {"note"}


def only(found):
    (finding,) = found
    return finding


def long_ago(seconds=3600):
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(sep=" ")[:26]


def test_nothing_is_wrong_with_a_route_that_delivers(world):
    world.send(*orders([1, 2]))
    world.deliver()
    code, out, err = world.bus_says("doctor")
    assert (code, out) == (0, "")
    assert err == "nothing is wrong\n"
    assert world.told("doctor") == []


def test_a_finding_is_one_line_and_its_advice_another(world):
    world.bus_says("pause", "events", "--reason", "moving\nhouse")
    code, out, _ = world.bus_says("doctor")
    assert code == 1
    finding, advice = out.splitlines()
    assert finding.startswith("events: paused: moving\\nhouse, since 2")
    assert advice == "    → once that is seen to, `bus resume events`"


def test_a_paused_route_says_why_and_since_when(world):
    world.bus_says("pause", "events", "--reason", "moving house")
    finding = only(diagnosis(world, "events"))
    assert (finding["where"], finding["wrong"]) == ("events", "paused: moving house")
    assert finding["since"]


def test_messages_that_wait_for_a_person_are_told_by_reason(world):
    world.send(*orders([1, 666]), "nonsense", {"order_id": "X", "qty": 0, "price": "1"})
    world.deliver()
    found = {finding["wrong"].split(":")[0].split()[-1]: finding for finding in diagnosis(world) if "message" in finding["wrong"]}
    assert "1 × " in found["stranded"]["wrong"]
    assert "666 is too much for me" in found["stranded"]["wrong"]
    assert found["quarantined"]["wrong"].startswith("2 messages are quarantined")
    for state in ("stranded", "quarantined"):
        for command in ("redrive", "discard"):
            assert f"`bus {command} events --state {state} --reason …`" in found[state]["advice"]


def test_of_messages_that_wait_for_a_person_those_of_rarer_reasons_are_counted(world):
    world.bus.depot.inbox.board("events", [Arrival(f"k{number}", b"{}") for number in range(8)])
    world.sql("UPDATE depot_messages SET state = 'stranded', error = 'reason ' || CASE WHEN id < 4 THEN 3 ELSE id END")
    (finding,) = [one for one in diagnosis(world) if "are stranded" in one["wrong"]]
    assert finding["wrong"] == "8 messages are stranded: 3 × reason 3; 1 × reason 4; 1 × reason 5; and 3 for other reasons"


def test_dead_letters_that_lie_on_their_queue_say_how_to_redrive_them(world):
    world.send(order(666))
    world.deliver()
    assert any("--from-dead-letters" in finding["advice"] for finding in diagnosis(world))


def test_stranded_messages_that_never_reached_the_dead_letters(world):
    world.send(order(666))
    world.dead.fail(*[Transient("throttled")] * 50)
    with pytest.raises(Transient):
        world.deliver()
    world.dead._failures.clear()
    assert not any("not among the dead letters yet" in finding["wrong"] for finding in diagnosis(world))
    world.sql("UPDATE depot_messages SET changed_at = :then", then=long_ago())
    assert any("1 message is stranded, and not among the dead letters yet" in finding["wrong"] for finding in diagnosis(world))


def test_messages_that_wait_for_long(world):
    world.send(order(1))
    world.tick()
    world.sql("UPDATE depot_messages SET state = 'waiting', trip = NULL, received_at = :then", then=long_ago())
    assert "1 message is waiting for a trip" in [finding["wrong"] for finding in diagnosis(world)]
    world.bus_says("pause", "events", "--reason", "on purpose")
    assert not any("waiting for a trip" in finding["wrong"] for finding in diagnosis(world))


def test_messages_behind_a_stranded_one_do_not_wait_for_a_sensor(world):
    world.bus.depot.inbox.board("events", [Arrival(f"k{number}", b"{}", group="a") for number in range(3)])
    stranded = world.messages()[0]
    world.sql("UPDATE depot_messages SET received_at = :then", then=long_ago())
    world.sql("UPDATE depot_messages SET state = 'stranded' WHERE id = :id", id=stranded.id)
    found = diagnosis(world)
    (halted,) = [finding for finding in found if "waiting behind" in finding["wrong"]]
    assert halted["wrong"] == f"2 messages are waiting behind stranded ones of their groups: 2 behind message {stranded.id}"
    assert f"`bus redrive events --id {stranded.id} --reason …`" in halted["advice"]
    assert f"`bus discard events --id {stranded.id} --reason …`" in halted["advice"]
    assert halted["since"]
    assert not any("waiting for a trip" in finding["wrong"] for finding in found)
    world.deploy(events(dead_letters="dead", on_stranded="continue"))
    found = [finding["wrong"] for finding in diagnosis(world)]
    assert "2 messages are waiting for a trip" in found
    assert not any("waiting behind" in wrong for wrong in found)


def test_a_correction_that_came_too_early_is_told_where_its_message_is_given_up(world):
    world.deploy(events(dead_letters="dead", attempts=1, identity="order_id"))
    world.send(order(666))
    (departure,) = world.tick().departures
    world.send(order(666, qty=2))
    world.tick()
    world.run(departure)
    world.deliver()
    (stranded,) = world.messages("stranded")
    found = [finding["wrong"] for finding in diagnosis(world)]
    said = f"message {stranded.id} came with another body before that, which a redrive does not bring"
    assert any(wrong.startswith("1 message is stranded: ") and said in wrong for wrong in found)


def test_trips_that_wait_to_be_tried_again_are_told_once_everybody_waits_for_them(world):
    world.deploy(events(batch=1, max_in_flight=1))
    world.send(*orders(range(ROOM + ASIDE + 1)))
    held = "every trip failed and is tried again, and all other messages wait for them"
    while "all others wait for them" not in (done := world.tick()).said:
        look = examined(OfRoute(world.bus.depot, "events", world.route.queue), OF_A_ROUTE, "events")
        assert not any(finding.wrong.startswith(held) for finding in look)
        for departure in done.departures:
            world.run(departure, unwell)
        world.sql("UPDATE depot_trips SET not_before = '2099-01-01T00:00:00.000000' WHERE not_before > created_at")
    world.sql("UPDATE depot_messages SET received_at = :then", then=long_ago())
    found = diagnosis(world)
    finding = only(finding for finding in found if finding["wrong"].startswith(held))
    assert "`bus cancel TRIP --reason …`" in finding["advice"]
    assert not any("waiting for a trip" in finding["wrong"] for finding in found)


def test_messages_that_wait_for_a_trip_to_fill_wait_for_as_long_as_they_may(world):
    world.deploy(events(max_wait_seconds=900))
    world.send(order(1))
    world.tick()
    world.sql("UPDATE depot_messages SET received_at = :then", then=long_ago(1000))
    assert examined(OfRoute(world.bus.depot, "events", world.route.queue), OF_A_ROUTE, "events") == []
    world.sql("UPDATE depot_messages SET received_at = :then", then=long_ago(1300))
    assert only(diagnosis(world))["wrong"] == "1 message is waiting for a trip"


def test_messages_of_a_route_that_was_renamed_are_told_in_every_state_that_needs_its_sensor(world):
    world.send(*orders([1, 2]))
    assert world.tick().departures
    world.deploy(events(name="orders"))
    assert [finding for finding in world.told("doctor", code=0) if finding["where"] == "events"] == []
    world.sql("UPDATE depot_messages SET changed_at = :then, received_at = :then", then=long_ago())
    world.sql("UPDATE depot_trips SET departed_at = :then", then=long_ago())
    finding = only(finding for finding in diagnosis(world) if finding["where"] == "events")
    assert finding["wrong"].startswith("2 messages are not over, and module bus_routes_of_a_test has no route of that name")
    assert "Give it its name back" in finding["advice"]


def test_a_departed_trip_that_nobody_claims(world):
    world.send(order(1))
    (departure,) = world.tick().departures
    assert world.told("doctor") == []
    world.sql("UPDATE depot_trips SET departed_at = :then", then=long_ago())
    finding = only(diagnosis(world))
    assert finding["wrong"] == f"nobody drives trip {departure.trip}, whose run was asked for"
    assert "is a worker up?" in finding["advice"]
    world.sql("UPDATE depot_trips SET error = 'its run ended before it claimed the trip: no such variable'")
    assert only(diagnosis(world))["wrong"].endswith("; before that: its run ended before it claimed the trip: no such variable")


@pytest.mark.parametrize(("gone", "said"), [("process", "its process is gone"), ("lease", "its lease ran out at")])
def test_a_trip_whose_driver_is_gone(world, gone, said):
    world.send(order(1))
    (departure,) = world.tick().departures
    here = this_process()
    before_us = f"{here.started}0"  # another one, that had our pid
    world.bus.depot.claim(departure.trip, "run", lease_seconds=60, host=here.host, pid=here.pid, process_started=before_us)
    if gone == "lease":
        world.sql("UPDATE depot_attempts SET lease_until = :then, host = 'elsewhere'", then=long_ago())
    finding = only(diagnosis(world))
    assert said in finding["wrong"]
    assert "bus dispatch events" in finding["advice"]


def test_trips_that_no_tick_can_settle_are_not_said_to_be_settled_by_the_next(tmp_path, monkeypatch, capsys, postgres_database_url):
    monkeypatch.setattr(doctor, "_is_nearly_full", lambda disk: False)
    world = CliWorld(tmp_path, monkeypatch, capsys, events(batch=1, max_in_flight=2), warehouse_url=postgres_database_url)
    world.send(order(1))
    world.deliver()
    world.send(*orders([2, 3]))
    departures = world.tick().departures
    for number, departure in enumerate(departures):
        world.bus.depot.claim(departure.trip, f"run-{number}", lease_seconds=60)
    world.sql("UPDATE depot_attempts SET lease_until = :then, host = 'elsewhere'", then=long_ago())
    assert all("has nobody driving it" in finding["wrong"] for finding in diagnosis(world))
    with psycopg.connect(postgres_database_url.replace("+psycopg", "")) as session:
        session.execute("LOCK TABLE bus_outcomes IN ACCESS EXCLUSIVE MODE")
        found = diagnosis(world)
        pid = session.info.backend_pid
    assert [finding["trip"] for finding in found] == [departure.trip for departure in departures]
    for finding in found:
        assert f"trip {finding['trip']} cannot be settled: the lock" in finding["wrong"]
        assert f"held by session {pid} (idle in transaction since" in finding["wrong"]
        assert finding["advice"].endswith("the next tick settles it then")


def unwell(drive, at):
    if at == "warehouse":
        raise Transient("the warehouse is being moved")


def test_a_trip_that_failed_is_told_with_its_error_though_its_process_is_gone_too(world):
    world.send(order(1))
    (departure,) = world.tick().departures
    world.run(departure, unwell)
    world.sql("UPDATE depot_attempts SET lease_until = :then, host = 'elsewhere'", then=long_ago())
    finding = only(diagnosis(world))
    assert finding["wrong"].startswith(
        f"trip {departure.trip} failed, and no tick has settled it: route 'events', stop 'warehouse': the warehouse"
    )
    assert "bus dispatch events" in finding["advice"]
    world.tick()
    assert world.told("doctor") == []


def test_a_trip_that_fails_again_and_again(world):
    world.send(order(1))
    for _ in range(10):
        for departure in world.tick().departures:
            world.run(departure, unwell)
        world.hurry()
    (finding,) = [one for one in diagnosis(world) if "again and again" in one["wrong"]]
    assert "the warehouse is being moved" in finding["wrong"]
    assert "bus cancel" in finding["advice"]
    assert "tried again" not in finding["wrong"]  # it is due
    (trip,) = world.bus.depot.trips()
    soon = datetime.now(UTC) + timedelta(minutes=10)
    world.sql("UPDATE depot_trips SET not_before = :soon", soon=f"{soon:%Y-%m-%dT%H:%M:%S.%f}")
    (finding,) = [one for one in diagnosis(world) if "again and again" in one["wrong"]]
    again = f"tried again at {soon:%H:%M:%S} UTC"
    assert f"({trip.launches} runs, {again}): " in finding["wrong"]
    assert f"trip {trip.id} of route 'events': formed, {again}, started " in world.bus_says("trip", trip.id)[1]


def of_shop(world):
    """A route without a queue, two of whose rows wait in quarantine."""
    contract = Contract((Field("order_id", pattern="^O-"),), max_rejected=0.9)
    route = shop(stops=(PickUp("orders", TextFile("landing", "orders.csv"), contract), LOG))
    world.deploy(route)
    world.land("order_id\nO-1\nX-2\nX-3\n", "orders.csv")
    world.drive(route)
    return route


def test_a_release_that_failed_is_told_until_it_is_driven_or_its_rows_are_held_again(world):
    depot, route = world.bus.depot, of_shop(world)
    (wanted,), _ = choose(depot, route, "orders")
    trip = start_release(depot, wanted)
    assert is_well(world, "shop")  # it has just begun
    depot.finish_trip(trip.id, "failed", "the table is locked")
    world.drive(route)
    (finding,) = diagnosis(world, "shop")
    assert finding["wrong"] == (f"trip {trip.id}, which releases rows of stop 'orders', failed: the table is locked")
    assert finding["advice"] == (
        f"`bus drive shop --trip {trip.id}` drives it again, `bus quarantine unrelease {trip.id}` holds its rows again"
    )
    given = [row["id"] for row in world.told("quarantine", "list") if row["release_state"] == "failed"]
    assert given == list(wanted.ids)
    for state in ("held", "released", "all"):
        assert f"in release trip {trip.id}, which is failed" in world.bus_says("quarantine", "list", "--state", state)[1]
    assert f"\nnext: {finding['advice']}\n" in world.bus_says("quarantine", "show", str(given[0]))[1]
    assert world.told("quarantine", "counts") == [
        {"route": "shop", "stop": "orders", "rule": "order_id: pattern ^O-", "rows": 4, "releasable": 2}
    ]
    assert f"release trip {trip.id} has it, and is failed" in world.refused(
        "quarantine", "release", "--route", "shop", "--stop", "orders", str(given[0])
    )
    depot.inbox.cancel(trip.id, "not any more")
    assert only(diagnosis(world, "shop"))["advice"] == f"`bus quarantine unrelease {trip.id}` holds its rows again"
    world.told("quarantine", "unrelease", trip.id)
    assert is_well(world, "shop")
    assert {row["state"] for row in world.told("quarantine", "list")} == {"held"}


def test_rows_that_wait_in_quarantine_are_a_note_until_somebody_sees_to_them(world):
    of_shop(world)
    code, out, err = world.bus_says("doctor", "shop")
    assert (code, err) == (0, "nothing is wrong\n")
    said, advice = out.splitlines()
    assert said.startswith("note: shop: 2 rows that trips were delivered without wait in quarantine: 2 at stop 'orders', since 2")
    assert "`bus quarantine counts --route shop`" in advice
    world.bus_says("pause", "shop", "--reason", "moving house")
    assert [finding["level"] for finding in world.told("doctor", "shop", code=1)] == ["wrong", "note"]
    assert world.bus_says("doctor", "shop")[2] == "1 finding\n"
    world.bus_says("resume", "shop")
    world.bus_says("quarantine", "discard", "1", "2", "--reason", "test rows")
    assert world.told("doctor", "shop") == []


def test_rows_of_delivered_messages_are_a_note_and_those_of_others_are_told_with_them(world):
    bad = {"order_id": "X", "qty": 1, "price": "1"}
    world.deploy(events(decode=Json(Contract(ORDER.fields, max_rejected=0.9), records="orders")))
    world.send({"orders": [order(1), bad]}, {"orders": [bad]})
    world.deliver()
    quarantined, note = world.told("doctor", code=1)
    assert quarantined["wrong"].startswith("1 message is quarantined")
    assert note["wrong"] == "1 row that trips were delivered without waits in quarantine: 1 at stop 'messages'"
    assert note["since"]


def test_a_release_whose_process_is_gone_is_told(world):
    depot, route = world.bus.depot, of_shop(world)
    (wanted,), _ = choose(depot, route, "orders")
    trip = start_release(depot, wanted)
    depot.claim(trip.id, "run", lease_seconds=60)
    assert is_well(world, "shop")
    world.sql("UPDATE depot_attempts SET lease_until = :then WHERE trip = :trip", then=long_ago(), trip=trip.id)
    assert "has nobody driving it" in only(diagnosis(world, "shop"))["wrong"]


def test_a_trip_that_failed_is_told_until_one_with_the_same_parameters_is_delivered(world):
    depot = world.bus.depot
    of_shop(world)

    def trip(state, parameters, trigger="person", **more):
        return depot.finish_trip(depot.start_trip("shop", trigger, parameters, **more).id, state, "no such month").id

    failed = trip("failed", {"month": 2, "zone": "EU"})
    trip("delivered", {"month": 3, "zone": "EU"}, "cron")
    trip("rehearsed", {"month": 2, "zone": "EU"}, "rehearsal")
    trip("delivered", {"month": 2, "zone": "EU"}, "release")
    (finding,) = diagnosis(world, "shop")
    assert finding["wrong"] == f"its newest trip with month=2, zone=EU, {failed}, failed: no such month"
    assert finding["advice"] == f"mend that, then `bus drive shop --trip {failed}`; `bus cancel {failed} --reason …` gives it up"
    trip("delivered", {"zone": "EU", "month": 2}, "cron")
    assert is_well(world, "shop")
    of_day = trip("failed", {}, partition="2026-11-27")
    trip("delivered", {}, partition="2026-11-28")
    assert f"its newest trip with partition 2026-11-27, {of_day}, failed" in only(diagnosis(world, "shop"))["wrong"]
    depot.inbox.cancel(of_day, "nobody needs that day")
    assert is_well(world, "shop")
    for month in range(12):
        trip("failed", {"month": month})
    found = [finding["wrong"] for finding in diagnosis(world, "shop")]
    assert found[0].startswith("its newest trip with month=11, ")
    assert found[10:] == ["trips with 2 other sets of parameters failed too"]


def test_a_stuck_trip_says_how_to_roll_it_forward(world):
    world.send(order(1))
    world.deliver()
    world.sql("UPDATE depot_trips SET state = 'stuck', error = 'the second database is gone'")
    (finding,) = [one for one in diagnosis(world) if "not in all" in one["wrong"]]
    assert "the second database is gone" in finding["wrong"]
    assert "`bus drive events --trip" in finding["advice"]


@pytest.mark.parametrize("state", ["failed", "stuck"])
def test_of_an_error_that_is_cut_the_next_command_tells_it_whole(world, state):
    depot, long = world.bus.depot, f"no table log; create it: CREATE TABLE log ({', '.join(f'column_{n} TEXT' for n in range(50))})"
    of_shop(world)
    for error in (long, "the first line\nand the second"):
        trip = depot.finish_trip(depot.start_trip("shop", "person", {}).id, state, error).id
        finding = next(one for one in diagnosis(world, "shop") if trip in one["wrong"])
        assert finding["advice"].startswith(f"`bus trip {trip}` tells the whole error; mend that, then `bus drive")
        assert error in world.bus_says("trip", trip)[1]


def test_of_an_error_of_messages_that_is_cut_one_is_named_that_has_it_whole(world):
    world.bus.depot.inbox.board("events", [Arrival(f"k{number}", b"{}") for number in range(3)])
    world.sql("UPDATE depot_messages SET state = 'stranded', error = 'short'")
    world.sql("UPDATE depot_messages SET error = :error WHERE id = 2", error="long " * 100)
    (finding,) = [one for one in diagnosis(world) if "are stranded" in one["wrong"]]
    assert finding["advice"].startswith("`bus message 2` tells its error whole; `bus messages events")
    assert "long " * 100 in world.bus_says("message", "2")[1]


def test_a_queue_and_a_database_that_cannot_be_reached(world, monkeypatch):
    world.queue.fail(Misconfigured("queue order-events: there is no such queue"))

    def down(self, tables):
        raise Transient("connection refused")

    monkeypatch.setattr("resources.database.Database.prepare", down)
    said = [finding["wrong"] for finding in diagnosis(world)]
    assert "queue 'order_events': queue order-events: there is no such queue" in said
    assert "database 'warehouse': connection refused" in said


def test_of_a_queue_that_does_not_answer_nobody_is_told_to_create_it(world):
    world.queue.fail(Misconfigured("queue order-events does not exist"))
    assert only(diagnosis(world))["advice"] == "create it, or correct its name, its rights or the credentials"
    world.queue.fail(Transient("queue order-events did not answer (EndpointConnectionError); try again later"))
    assert only(diagnosis(world))["advice"] == "each tick tries again; if it stays so: is its endpoint right, up, and reachable from here?"


def test_messages_that_nobody_takes_from_their_queue(world):
    world.deploy(events(batch=2))
    world.send(*orders([1, 2, 3]))
    finding = only(diagnosis(world))
    assert finding["wrong"] == "about 3 messages are on queue 'order_events', and none is aboard"


def test_messages_on_the_queue_of_a_paused_route_are_not_said_to_need_a_sensor(world):
    world.deploy(events(batch=2))
    world.send(*orders([1, 2, 3]))
    world.bus_says("pause", "events", "--reason", "moving house")
    assert only(diagnosis(world))["wrong"] == "paused: moving house"


def test_a_module_that_does_not_load_and_what_the_depot_knows_all_the_same(world, monkeypatch):
    world.send(order(666))
    world.deliver()
    monkeypatch.setenv("BUS_MODULE", "no_such_module_anywhere")
    found = diagnosis(world)
    assert found[0]["where"] == "code location"
    assert "there is no module no_such_module_anywhere" in found[0]["wrong"]
    assert any("stranded" in finding["wrong"] for finding in found)


def test_a_depot_that_cannot_be_reached_is_the_one_finding(world, monkeypatch):
    from resources.depot.resource import DepotResource

    (world.root / "in_the_way").touch()
    broken = DepotResource(url=f"sqlite:///{world.root}/in_the_way/depot.db").depot()
    monkeypatch.setattr("bus_assets.cli.doctor_command._depot", lambda loaded: broken)
    finding = only(diagnosis(world))
    assert finding["where"] == "depot"
    assert "BUS_DEPOT_URL" in finding["advice"]


def test_a_route_that_is_not_there(world):
    assert "did you mean 'events'?" in world.refused("doctor", "evnts")


# The deployment


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as made:
        yield made


def deployment(world, **more):
    return Deployment(**{"depot": world.bus.depot, "instance": None, "sensors": ("events_queue",), "folders": (), **more})


def looked(world, **more):
    return examined(deployment(world, **more), OF_THE_DEPLOYMENT, "deployment")


def test_a_disk_that_is_nearly_full(world, monkeypatch):
    monkeypatch.undo()
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100 << 30, 99 << 30, 2 << 30))
    finding = only(looked(world, folders=(world.root / "not" / "there" / "yet", world.root / "not" / "there" / "yet")))
    assert finding.wrong.endswith("has 2.0 GiB left of 100")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100 << 30, 60 << 30, 40 << 30))
    assert looked(world, folders=(world.root,)) == []


def test_a_daemon_that_is_silent(world, instance):
    assert looked(world, instance=instance) == []  # nobody waits for it: trips may be dispatched by hand
    world.send(order(1))
    world.tick()
    assert only(looked(world, instance=instance)).wrong == "no Dagster daemon has ever looked at the sensors here"
    last = datetime(2026, 1, 2, tzinfo=UTC)
    quiet = _Standing(instance, {"SENSOR": types.SimpleNamespace(timestamp=last.timestamp())})
    assert only(looked(world, instance=quiet)).since == last
    lively = _Standing(instance, {"SENSOR": types.SimpleNamespace(timestamp=datetime.now(UTC).timestamp())})
    assert looked(world, instance=lively) == []
    assert looked(world, instance=instance, sensors=()) == []


@dataclasses.dataclass
class _Standing:
    """An instance whose daemon last spoke as told."""

    instance: dg.DagsterInstance
    beats: dict

    def get_daemon_heartbeats(self):
        return self.beats

    def all_instigator_state(self):
        return self.instance.all_instigator_state()


def test_a_sensor_that_is_switched_off_or_fails_at_every_tick(world):
    """As the daemon leaves it behind, see the test of a real one below."""
    error = types.SimpleNamespace(message="Outer: x", cause=types.SimpleNamespace(message="Misconfigured: no such queue\n", cause=None))

    def tick(status):
        return types.SimpleNamespace(status=types.SimpleNamespace(value=status), error=error, timestamp=1_700_000_000.0)

    def seen(name, status, *ticks):
        state = types.SimpleNamespace(name=name, status=types.SimpleNamespace(value=status), instigator_origin_id="o", selector_id="s")
        state.instigator_data = types.SimpleNamespace(last_tick_timestamp=1_700_000_000.0)
        beats = {"SENSOR": types.SimpleNamespace(timestamp=datetime.now(UTC).timestamp())}
        answers = {"all_instigator_state": lambda: [state], "get_ticks": lambda origin, selector, limit: ticks[:limit]}
        return looked(world, instance=types.SimpleNamespace(**answers, get_daemon_heartbeats=lambda: beats))

    off = only(seen("events_queue", "STOPPED"))
    assert "switched off" in off.wrong
    assert off.since == datetime.fromtimestamp(1_700_000_000.0, UTC)  # its last tick
    failing = only(seen("events_queue", "RUNNING", *map(tick, ["FAILURE"] * 3)))
    assert failing.wrong == "its last 3 ticks failed: Misconfigured: no such queue"
    assert seen("events_queue", "RUNNING", *map(tick, ["SKIPPED", "FAILURE", "FAILURE"])) == []
    assert seen("of_somebody_else", "STOPPED") == []
    error = _kept_of_a_dead_code_server()
    failing = only(seen("events_queue", "RUNNING", *map(tick, ["FAILURE"] * 3)))
    said = 'its last 3 ticks failed: grpc._channel._InactiveRpcError: status = StatusCode.UNAVAILABLE, details = "failed to connect'
    assert failing.wrong.startswith(said)
    assert failing.advice == "the code server does not answer: restart `dagster dev`, or `bus up`"


def _kept_of_a_dead_code_server():
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        client = DagsterGrpcClient(host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(dg.DagsterError) as raised:
            client.ping("")
    return serializable_error_info_from_exc_info((raised.type, raised.value, raised.tb))


FAILING = """
from pathlib import Path

from bus_assets import build_definitions
from resources.database import Database
from resources.errors import Misconfigured
from tests.fakes import FakeQueue
from tests.queue_world import events

QUEUE = FakeQueue("order-events")
QUEUE.fail(*[Misconfigured("queue order-events: there is no such queue")] * 1000)
ROUTES = (events(),)
defs = build_definitions(ROUTES, resources={"order_events": QUEUE, "warehouse": Database(url=f"sqlite:///{Path(__file__).parent}/w.db")})
"""


@pytest.mark.long
def test_a_real_daemon_leaves_behind_what_it_looks_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "failing_routes.py").write_text(FAILING)
    home = {"BUS_HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path / "dagster"), "BUS_MODULE": "failing_routes"}
    for name, value in {**home, "BUS_DEPOT_URL": "", "BUS_STAGING_URL": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "_is_nearly_full", lambda disk: False)
    monkeypatch.syspath_prepend(str(tmp_path))
    open_instance()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, "-m", "dagster._daemon", "run", "-m", "failing_routes"]
    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
        try:
            found = _until(lambda: [one for one in _told(capsys) if one["where"] == "events_queue"], tmp_path / "log")
        finally:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
    said = "its last 3 ticks failed: resources.errors.Misconfigured: route 'events': queue order-events: there is no such queue"
    assert only(found)["wrong"] == said
    assert not any(one["where"] == "daemon" for one in _told(capsys))
    with open_instance() as instance:
        for state in instance.all_instigator_state():
            instance.update_instigator_state(state.with_status(type(state.status).STOPPED))
    off = only([one for one in _told(capsys) if one["where"] == "events_queue"])
    assert "switched off" in off["wrong"]
    assert timedelta(0) < datetime.now(UTC) - datetime.fromisoformat(off["since"]) < timedelta(minutes=10)  # its last tick
    sys.modules.pop("failing_routes", None)


def _told(capsys):
    capsys.readouterr()
    main(["doctor", "--json"])
    return json.loads(capsys.readouterr().out)


def _until(look, log, seconds=90):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


# Adding a finding


def test_what_it_cannot_look_at_is_a_finding_and_the_other_looks_go_on(world):
    def cannot(seen):
        raise Transient("throttled")
        yield

    def can(seen):
        yield Finding("events", "something", "do something")

    found = examined(OfRoute(world.bus.depot, "events"), (cannot, can, cannot), "events")
    assert [finding.wrong for finding in found] == ["cannot look: throttled", "something"]


def test_every_look_is_in_one_of_the_lists():
    looks = {
        name
        for name, made in vars(doctor).items()
        if name.startswith("_") and getattr(made, "__annotations__", {}).get("return") == "Iterator[Finding]"
    }
    assert looks == {look.__name__ for look in (*OF_THE_DEPLOYMENT, *OF_A_ROUTE, *OF_A_LOST_ROUTE, *OF_ITS_SYSTEMS)}
