"""One suite for the depot's seam, run on SQLite and on Postgres."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from bus_assets.purging import horizon
from resources.depot import schema
from resources.depot.connections import Connections
from resources.depot.entries import (
    AlreadyDelivered,
    AttemptEnded,
    AttemptLive,
    HeldAt,
    NoSuchTrip,
    QuarantineCount,
    QuarantinedRow,
    Reason,
    Verdict,
)
from resources.depot.process import this_process
from resources.depot.store import Depot
from resources.errors import Misconfigured, Refused, Transient

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new folder/depot.db"
    return request.getfixturevalue("postgres_database_url")


@pytest.fixture
def depot(url):
    depot = Depot(url)
    yield depot
    depot.close()


def started(depot, route="orders", **values):
    return depot.start_trip(route, "ui", {}, **values)


def driven(depot, run="run-1", **values):
    trip = started(depot, **values)
    depot.claim(trip.id, run, lease_seconds=60)
    return trip


def verdict(trip, stop="orders", attempt=1, passed=True, **values):
    numbers = {"picked_up": 3, "kept": 2, "rejected": 1, "produced": 2, "manifest": {"files": []}, "digest": "d1"} | values
    return Verdict(trip.id, attempt, stop, passed, **numbers)


def rows(count, start=0):
    return [
        QuarantinedRow(str(i), "orders.csv", "line", i + 2, (Reason("id: required", "is null"),), {"id": None, "note": f"n{i}"})
        for i in range(start, start + count)
    ]


def child(url, code, *arguments):
    """A process of its own that runs ``code`` with ``depot`` open."""
    head = "import sys, time\nfrom resources.depot.store import Depot\nfrom resources.depot.entries import *\ndepot = Depot(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, url, *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# Trips


def test_a_trip_reads_back_as_it_was_started(depot):
    parameters = {"day": date(2013, 1, 31), "limit": Decimal("0.10"), "name": "Zoë \x00"}
    trip = depot.start_trip("orders", "release", parameters, partition="2013-01", run="r", parent="other")
    assert depot.trip(trip.id) == trip
    assert trip.parameters == {"day": "2013-01-31", "limit": "0.10", "name": "Zoë \x00"}
    assert (trip.route, trip.trigger, trip.partition, trip.run, trip.parent) == ("orders", "release", "2013-01", "r", "other")
    assert (trip.state, trip.ended_at, trip.error) == ("driving", None, None)
    assert trip.created_at.tzinfo is UTC
    assert abs(trip.created_at - datetime.now(UTC)) < timedelta(seconds=30)


def test_trip_ids_sort_by_time_and_are_safe_in_paths(depot):
    first = started(depot).id
    time.sleep(0.002)
    second = started(depot).id
    assert first < second
    assert len(first) == 26
    assert first.isalnum()
    assert first == first.lower()


def test_one_run_asking_from_many_threads_gets_one_trip(url):
    depots = [Depot(url) for _ in range(4)]
    gate = threading.Barrier(8)

    def ask(number):
        gate.wait()
        return started(depots[number % 4], run="r").id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert len(depots[0].trips()) == 1
    assert started(depots[0], route="invoices", run="r").id != depots[0].trips("orders")[0].id
    for depot in depots:
        depot.close()


def test_a_given_trip_id_is_used_and_not_shared_between_routes(depot):
    assert started(depot, trip_id="trip-1").id == "trip-1" == started(depot, trip_id="trip-1").id
    with pytest.raises(Refused, match="taken by another trip"):
        started(depot, route="invoices", trip_id="trip-1")


def test_trips_lists_the_newest_first_by_route_and_state(depot):
    ids = [started(depot).id for _ in range(3)]
    other = started(depot, route="invoices").id
    depot.finish_trip(ids[0], "failed", "boom")
    assert [trip.id for trip in depot.trips()] == [other, *reversed(ids)]
    assert [trip.id for trip in depot.trips("orders", limit=2)] == [ids[2], ids[1]]
    assert [(trip.id, trip.error) for trip in depot.trips(state="failed")] == [(ids[0], "boom")]


@pytest.mark.parametrize("bad", ["Orders", "", "a/b", "1st", "x" * 64, "a;drop"])
def test_unusable_names_are_refused_with_what_is_usable(depot, bad):
    with pytest.raises(Misconfigured, match="lower-case letters"):
        started(depot, route=bad)


def test_an_unknown_trip_is_named(depot):
    for ask in (depot.trip, lambda trip: depot.claim(trip, "r", lease_seconds=1), lambda trip: depot.finish_trip(trip, "failed")):
        with pytest.raises(NoSuchTrip, match="nowhere"):
            ask("nowhere")


def test_a_finished_trip_says_when_and_delivered_is_final(depot):
    trip = driven(depot)
    delivered = depot.finish_trip(trip.id, "delivered")
    assert delivered.state == "delivered"
    assert delivered.ended_at is not None
    assert depot.finish_trip(trip.id, "failed", "late zombie") == delivered


def test_failed_after_a_publication_is_stuck_and_only_rolls_forward(depot):
    trip = driven(depot)
    depot.record_publication(trip.id, 1, "warehouse", {"orders": {"inserted": 3}})
    depot.end_attempt(trip.id, 1, "failed")
    assert depot.finish_trip(trip.id, "failed", "second database is down").state == "stuck"
    depot.claim(trip.id, "run-2", lease_seconds=60)
    assert depot.trip(trip.id).state == "stuck"
    assert depot.finish_trip(trip.id, "delivered", attempt=2).state == "delivered"


def test_an_overtaken_attempt_cannot_fail_the_trip(depot):
    trip = driven(depot)
    depot.end_attempt(trip.id, 1, "revoked")
    depot.claim(trip.id, "run-2", lease_seconds=60)
    assert depot.finish_trip(trip.id, "failed", "zombie", attempt=1).state == "driving"
    assert depot.finish_trip(trip.id, "failed", "real", attempt=2).state == "failed"


# Attempts


def test_the_first_claim_is_attempt_one_with_a_lease(depot):
    process = this_process()
    trip = started(depot)
    attempt = depot.claim(trip.id, "run-1", lease_seconds=60, host=process.host, pid=process.pid, process_started=process.started)
    assert attempt == depot.newest_attempt(trip.id)
    assert (attempt.attempt, attempt.run, attempt.ended_at, attempt.outcome) == (1, "run-1", None, None)
    assert attempt.lease_until - attempt.claimed_at == timedelta(seconds=60)


def test_a_run_that_claims_again_gets_its_own_attempt(depot):
    trip = driven(depot)
    assert depot.claim(trip.id, "run-1", lease_seconds=90).attempt == 1
    with pytest.raises(AttemptLive, match="run-1") as caught:
        depot.claim(trip.id, "run-2", lease_seconds=60)
    assert caught.value.attempt.attempt == 1


def test_a_failed_trip_is_driven_again_by_the_next_attempt(depot):
    trip = driven(depot)
    depot.end_attempt(trip.id, 1, "failed", "boom")
    depot.finish_trip(trip.id, "failed", "boom")
    assert depot.claim(trip.id, "run-2", lease_seconds=60).attempt == 2
    again = depot.trip(trip.id)
    assert (again.state, again.ended_at, again.error) == ("driving", None, None)


def test_a_claimed_trip_takes_defaults_for_parameters_that_it_has_no_value_for_and_keeps_them(depot):
    trip = depot.start_trip("orders", "ui", {"day": 3, "_scheduled": "2026-01-01T00:00:00+00:00"})
    depot.claim(trip.id, "run-1", lease_seconds=60, defaults={"day": 1, "tax": 2})
    kept = {"day": 3, "_scheduled": "2026-01-01T00:00:00+00:00", "tax": 2}
    assert depot.trip(trip.id).parameters == kept
    depot.claim(trip.id, "run-1", lease_seconds=60, defaults={"tax": 7, "zone": "north"})
    assert depot.trip(trip.id).parameters == kept, "an attempt is claimed by each of its steps, and keeps what it began with"
    depot.end_attempt(trip.id, 1, "failed", "boom")
    depot.claim(trip.id, "run-2", lease_seconds=60, defaults={"tax": 7, "zone": "north"})
    assert depot.trip(trip.id).parameters == {**kept, "zone": "north"}


def test_a_claimed_trip_takes_the_values_that_were_converted_for_it(depot):
    trip = depot.start_trip("orders", "ui", {"day": "3", "zone": "north"})
    depot.claim(trip.id, "run-1", lease_seconds=60, defaults={"day": 1, "tax": 2}, converted={"day": 3})
    assert depot.trip(trip.id).parameters == {"day": 3, "zone": "north", "tax": 2}
    depot.claim(trip.id, "run-1", lease_seconds=60, converted={"day": "3"})
    assert depot.trip(trip.id).parameters == {"day": 3, "zone": "north", "tax": 2}


@pytest.mark.parametrize("outcome", ["revoked", "failed"])
def test_a_run_whose_attempt_was_ended_cannot_claim_again(depot, outcome):
    trip = driven(depot)
    depot.end_attempt(trip.id, 1, outcome)
    with pytest.raises(AttemptEnded, match=f"was {outcome}; stop this run and drive the trip again"):
        depot.claim(trip.id, "run-1", lease_seconds=60)


def test_a_delivered_trip_is_not_driven_by_another_run(depot):
    trip = driven(depot)
    depot.end_attempt(trip.id, 1, "published")
    depot.finish_trip(trip.id, "delivered")
    with pytest.raises(AlreadyDelivered, match="start a new trip"):
        depot.claim(trip.id, "run-2", lease_seconds=60)
    assert depot.claim(trip.id, "run-1", lease_seconds=60).outcome == "published"


def test_of_racing_claims_exactly_one_wins(url):
    depots = [Depot(url) for _ in range(6)]
    for round_ in range(5):
        trip, gate = started(depots[0]), threading.Barrier(6)

        def race(number, trip=trip, gate=gate, round_=round_):
            gate.wait()
            try:
                return depots[number].claim(trip.id, f"run-{round_}-{number}", lease_seconds=60)
            except AttemptLive as lost:
                return lost.attempt

        with ThreadPoolExecutor(6) as pool:
            seen = list(pool.map(race, range(6)))
        assert {(attempt.attempt, attempt.run) for attempt in seen} == {(1, seen[0].run)}
    for depot in depots:
        depot.close()


def test_of_two_processes_claiming_exactly_one_wins(url, depot):
    code = """
depot.trips(); print("ready", flush=True); sys.stdin.readline()
for trip in sys.argv[3].split(","):
    try:
        depot.claim(trip, sys.argv[2], lease_seconds=60); print("won", flush=True)
    except AttemptLive:
        print("lost", flush=True)
"""
    ids = [started(depot).id for _ in range(20)]
    both = [child(url, code, run, ",".join(ids)) for run in ("run-a", "run-b")]
    for one in both:
        assert one.stdout.readline() == "ready\n"
    for one in both:
        one.stdin.write("go\n")
        one.stdin.flush()
    answers = [one.communicate(timeout=30)[0].split() for one in both]
    assert all(sorted(pair) == ["lost", "won"] for pair in zip(*answers, strict=True))
    assert len(answers[0]) == 20


def test_renewing_extends_the_lease_until_somebody_ends_the_attempt(depot):
    trip = driven(depot)
    before = depot.newest_attempt(trip.id).lease_until
    assert depot.renew(trip.id, 1, 600)
    assert depot.newest_attempt(trip.id).lease_until > before + timedelta(seconds=500)
    assert depot.end_attempt(trip.id, 1, "revoked") is True
    assert depot.renew(trip.id, 1, 600) is False
    assert depot.renew(trip.id, 7, 600) is False


def test_an_attempt_ends_once(depot):
    trip = driven(depot)
    assert depot.end_attempt(trip.id, 1, "published") is True
    assert depot.end_attempt(trip.id, 1, "failed", "too late") is False
    ended = depot.newest_attempt(trip.id)
    assert (ended.outcome, ended.error) == ("published", None)
    assert ended.ended_at is not None


def test_an_attempt_is_abandoned_when_its_lease_ran_out(depot):
    trip = started(depot)
    attempt = depot.claim(trip.id, "run-1", lease_seconds=0.05)
    time.sleep(0.1)
    assert depot.is_abandoned(attempt)
    depot.renew(trip.id, 1, 60)
    assert not depot.is_abandoned(depot.newest_attempt(trip.id))


def test_its_clock_is_that_of_what_it_keeps_whatever_the_clock_here_says(url, depot, monkeypatch):
    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=400)

    before = started(depot).created_at
    for module in ("bus_assets.purging", "resources.depot.connections"):
        monkeypatch.setattr(f"{module}.datetime", Ahead)
    upto = horizon(depot, timedelta(days=30))
    if url.startswith("postgres"):  # a file has no clock of its own
        assert before <= depot.now() <= started(depot).created_at <= before + timedelta(minutes=5)
        assert before <= upto.keys_before + timedelta(days=30) <= before + timedelta(minutes=5)
    assert upto.keys_before.utcoffset() == timedelta(0)


def test_an_attempt_is_abandoned_when_its_process_was_killed(url, depot):
    code = """
from resources.depot.process import this_process
p = this_process()
depot.claim(sys.argv[2], "run-1", lease_seconds=600, host=p.host, pid=p.pid, process_started=p.started)
print("claimed", flush=True); time.sleep(60)
"""
    trip = started(depot)
    with child(url, code, trip.id) as driver:
        assert driver.stdout.readline() == "claimed\n"
        attempt = depot.newest_attempt(trip.id)
        assert not depot.is_abandoned(attempt)
        assert not depot.is_abandoned(replace(attempt, host="elsewhere", pid=2**22 - 1))
        driver.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped by its parent
        assert depot.is_abandoned(attempt)
    assert depot.is_abandoned(attempt)
    assert not depot.is_abandoned(replace(attempt, pid=os.getpid(), process_started=this_process().started))
    assert depot.is_abandoned(replace(attempt, pid=os.getpid()))  # the pid was given to another process
    depot.end_attempt(trip.id, 1, "revoked")
    assert not depot.is_abandoned(depot.newest_attempt(trip.id))


# Verdicts


def test_a_verdict_reads_back_with_its_manifest_and_figures(depot):
    trip = driven(depot)
    said = verdict(trip, inputs={"raw": "d0"}, figures=({"rule": "id: required", "rows": 1},), counts={"unreadable": 2})
    assert depot.record_verdict(said, rows(1)) == 1
    found = depot.verdicts(trip.id)
    assert found == {"orders": replace(said, created_at=found["orders"].created_at)}
    assert found["orders"].created_at.tzinfo is UTC


def test_a_newer_failed_verdict_hides_an_older_passed_one(depot):
    trip = driven(depot)
    depot.record_verdict(verdict(trip, "raw"))
    depot.record_verdict(verdict(trip, "priced"))
    depot.end_attempt(trip.id, 1, "failed")
    depot.claim(trip.id, "run-2", lease_seconds=60)
    depot.record_verdict(verdict(trip, "priced", attempt=2, passed=False))
    found = depot.verdicts(trip.id)
    assert {stop: (one.attempt, one.passed) for stop, one in found.items()} == {"raw": (1, True), "priced": (2, False)}


def test_a_zombie_records_nothing(depot):
    trip = driven(depot)
    depot.end_attempt(trip.id, 1, "revoked")
    depot.claim(trip.id, "run-2", lease_seconds=60)
    depot.record_verdict(verdict(trip, attempt=2), rows(1))
    with pytest.raises(AttemptEnded, match="revoked"):
        depot.record_verdict(verdict(trip, attempt=1, passed=False), rows(5))
    with pytest.raises(AttemptEnded, match="never claimed"):
        depot.record_verdict(verdict(trip, attempt=3), rows(5))
    assert depot.verdicts(trip.id)["orders"].attempt == 2
    assert len(depot.quarantined()) == 1


def test_a_second_try_replaces_what_is_still_held_only(depot):
    trip = driven(depot)
    depot.record_verdict(verdict(trip), rows(3))
    depot.record_verdict(verdict(trip, "other"), rows(1, start=90))
    depot.discard([depot.quarantined(stop="orders")[0].id], "test data")
    depot.record_verdict(verdict(trip), rows(2, start=10))
    assert [row.row_id for row in depot.quarantined(stop="orders")] == ["10", "11"]
    assert [row.row_id for row in depot.quarantined(stop="orders", state="discarded")] == ["0"]
    assert [row.row_id for row in depot.quarantined(stop="other")] == ["90"]


def test_rows_wait_as_long_as_their_release_is_not_delivered(depot):
    delivered_with(depot, 3)
    held, failed, done = depot.quarantined()
    releases = [depot.start_trip("orders", "release", {}) for _ in range(2)]
    depot.mark_released([failed.id], releases[0].id)
    depot.mark_released([done.id], releases[1].id)
    depot.finish_trip(releases[0].id, "failed", "the table is locked")
    depot.finish_trip(releases[1].id, "delivered")
    found = depot.quarantined(state="waiting")
    assert [(row.id, row.state, row.release_state) for row in found] == [(held.id, "held", None), (failed.id, "released", "failed")]
    counts = depot.count_quarantined(state="waiting")
    assert {(one.state, one.rows, one.released_trip, one.release_state) for one in counts} == {
        ("held", 1, None, None),
        ("released", 1, releases[0].id, "failed"),
    }
    assert [trip.id for trip in depot.undelivered_releases("orders")] == [releases[0].id]
    depot.unrelease(releases[0].id)
    assert depot.undelivered_releases("orders") == []


def test_rejected_rows_that_nobody_is_to_see_to_are_discarded_and_replaced(depot):
    trip = driven(depot)
    for number in (3, 2):
        depot.record_verdict(verdict(trip), rows(number), "only looked up")
    found = depot.quarantined(trip=trip.id, state=None)
    assert [(row.state, row.reason) for row in found] == [("discarded", "only looked up")] * 2


def test_rows_that_raise_halfway_leave_the_earlier_verdict_and_rows(depot):
    trip = driven(depot)
    depot.record_verdict(verdict(trip), rows(2))

    def broken():
        yield from rows(5_000)
        raise RuntimeError("source went away")

    with pytest.raises(RuntimeError):
        depot.record_verdict(verdict(trip, passed=False), broken())
    assert depot.verdicts(trip.id)["orders"].passed
    assert len(depot.quarantined()) == 2


def test_a_process_killed_in_mid_verdict_leaves_nothing_half_written(url, depot):
    code = """
def rows():
    for i in range(20_000):
        if i == 10_000:
            print("halfway", flush=True); time.sleep(60)
        yield QuarantinedRow(str(i), "f", "line", i, (Reason("r", "m"),), {"a": "x" * 100})
depot.record_verdict(Verdict(sys.argv[2], 1, "orders", False, 1, 0, 1, 0, None, None), rows())
"""
    trip = driven(depot)
    depot.record_verdict(verdict(trip), rows(2))
    with child(url, code, trip.id) as writer:
        assert writer.stdout.readline() == "halfway\n"
        writer.send_signal(signal.SIGKILL)
    assert depot.verdicts(trip.id)["orders"].passed
    assert len(depot.quarantined(limit=10**6)) == 2
    assert depot.record_verdict(verdict(trip, passed=False), rows(4)) == 4  # its lock died with it
    assert len(depot.quarantined()) == 4


def test_thirty_thousand_rows_stream_through_in_seconds(depot):
    trip = driven(depot)
    taken, began = 0, time.monotonic()

    def stream():
        nonlocal taken
        for row in (QuarantinedRow(str(i), "f.csv", "line", i, (Reason("id: required", "is null"),), {"a": "b"}) for i in range(30_000)):
            taken += 1
            yield row

    assert depot.record_verdict(verdict(trip), stream()) == taken == 30_000
    assert time.monotonic() - began < 60
    [count] = depot.count_quarantined()
    assert count.rows == 30_000


def test_the_last_passed_trip_has_all_the_stops(depot):
    oldest, middle, newest = (driven(depot) for _ in range(3))
    for trip in (oldest, middle):
        for stop in ("a", "b"):
            depot.record_verdict(verdict(trip, stop))
    depot.record_verdict(verdict(newest, "a"))
    depot.record_verdict(verdict(newest, "b", passed=False))
    assert depot.last_passed_trip("orders", ["a", "b"]) == depot.trip(middle.id)
    assert depot.last_passed_trip("orders", ["a"]).id == newest.id
    assert depot.last_passed_trip("orders", ["a", "c"]) is None
    assert depot.last_passed_trip("invoices", ["a"]) is None


def test_a_publication_is_noted_once(depot):
    trip = driven(depot)
    depot.record_publication(trip.id, 1, "warehouse", {"orders": {"inserted": 3}})
    depot.record_publication(trip.id, 2, "warehouse", {"orders": {"inserted": 0}})
    depot.record_publication(trip.id, 2, "archive", {})
    assert [(one.database, one.attempt, one.tables) for one in depot.publications(trip.id)] == [
        ("warehouse", 1, {"orders": {"inserted": 3}}),
        ("archive", 2, {}),
    ]


# Quarantine


def delivered_with(depot, count, **values):
    trip = driven(depot, **values)
    depot.record_verdict(verdict(trip), rows(count))
    depot.finish_trip(trip.id, "delivered")
    return trip


def test_a_quarantined_row_reads_back_exactly(depot):
    trip = driven(depot)
    payload = {"id": None, "empty": "", "nul": "a\x00b", "text": 'Zoë "quoted" \\ \n 🚌', "lone": "\ud800"}
    reasons = (Reason("id: required", "is null"), Reason("nul: type string", "contains \x00"))
    depot.record_verdict(verdict(trip), [QuarantinedRow("7", "orders\udcff.csv", "line", 17, reasons, payload)])
    [row] = depot.quarantined(trip=trip.id)
    assert row.payload == payload
    assert (row.route, row.trip, row.attempt, row.stop, row.row_id) == ("orders", trip.id, 1, "orders", "7")
    assert (row.origin, row.unit, row.position) == ("orders\\udcff.csv", "line", 17)
    assert row.reasons == (reasons[0], Reason("nul: type string", "contains \\x00"))
    assert (row.state, row.trip_state) == ("held", "driving")
    assert "quoted" not in repr(row)


def test_quarantine_is_paged_by_id(depot):
    delivered_with(depot, 5)
    first = depot.quarantined("orders", limit=3)
    rest = depot.quarantined("orders", limit=3, after=first[-1].id)
    assert [row.row_id for row in first + rest] == ["0", "1", "2", "3", "4"]
    assert depot.quarantined("invoices") == []


def test_rows_that_broke_the_same_rules_and_stand_alike_are_counted_together(depot):
    first, second = delivered_with(depot, 2), delivered_with(depot, 1)
    failed = driven(depot)
    one = rows(1)[0]
    two = replace(one, reasons=(Reason("id: required", "is null"), Reason("note: pattern x\x00", "no")))
    depot.record_verdict(verdict(failed), [one, two, two])
    depot.finish_trip(failed.id, "failed")
    depot.discard([depot.quarantined(trip=failed.id)[-1].id], "x")
    required = QuarantineCount("orders", "orders", ("id: required",), 3, "held", "delivered", None, min(first.id, second.id), None)
    of_failed = replace(required, rows=1, trip_state="failed", trip=failed.id)
    twice = replace(of_failed, rules=("id: required", "note: pattern x\\x00"))
    assert set(depot.count_quarantined()) == {required, of_failed, twice}
    assert set(depot.count_quarantined(state=None)) == {required, of_failed, twice, replace(twice, state="discarded")}
    assert set(depot.count_quarantined(trip=failed.id)) == {of_failed, twice}
    assert depot.count_quarantined("invoices") == []
    assert depot.quarantined(trip=failed.id)[0].trip_state == "failed"
    assert depot.held_at("orders") == [HeldAt("orders", 3, depot.quarantined(trip=first.id)[0].created_at)]
    assert depot.held_at("invoices") == []


def test_released_rows_belong_to_the_releasing_trip_until_it_gives_them_back(depot):
    delivered_with(depot, 3)
    ids = [row.id for row in depot.quarantined()][:2]
    release = started(depot)
    depot.mark_released(ids, release.id)
    depot.mark_released(ids, release.id)
    assert [row.released_trip for row in depot.quarantined(state="released")] == [release.id] * 2
    assert depot.unrelease(release.id) == 2
    assert [row.released_trip for row in depot.quarantined()] == [None] * 3


def test_what_a_release_delivered_is_not_held_again(depot):
    delivered_with(depot, 1)
    release = driven(depot, run="run-2")
    depot.mark_released([depot.quarantined()[0].id], release.id)
    depot.record_publication(release.id, 1, "warehouse", {})
    with pytest.raises(Refused, match="dropped off"):
        depot.unrelease(release.id)


def test_releasing_is_all_or_nothing(depot):
    delivered_with(depot, 2)
    failed = driven(depot)
    depot.record_verdict(verdict(failed), rows(1))
    depot.finish_trip(failed.id, "failed")
    release, other = started(depot), started(depot)
    every = [row.id for row in depot.quarantined()]
    with pytest.raises(Refused, match="1 of the 3 rows"):
        depot.mark_released(every, release.id)
    assert len(depot.quarantined(state="held")) == 3
    depot.mark_released(every[:2], release.id)
    with pytest.raises(Refused):
        depot.mark_released(every[:1], other.id)


def test_many_rows_are_released_at_once(depot):
    delivered_with(depot, 12_000)
    release = started(depot)
    depot.mark_released([row.id for row in depot.quarantined(limit=12_000)], release.id)
    assert depot.quarantined() == []
    assert depot.unrelease(release.id) == 12_000


def test_discarding_keeps_why(depot):
    delivered_with(depot, 1)
    [row] = depot.quarantined()
    with pytest.raises(Misconfigured, match="reason"):
        depot.discard([row.id], " ")
    depot.discard([row.id], "test order")
    [gone] = depot.quarantined(state=None)
    assert (gone.state, gone.reason) == ("discarded", "test order")
    with pytest.raises(Refused):
        depot.discard([row.id], "again")


# The database below


def test_an_empty_database_opened_by_many_processes_at_once_is_migrated_once(url):
    code = 'print(len(depot.trips()), "alembic" in sys.modules, flush=True)'
    both = [child(url, code) for _ in range(3)]
    assert [one.communicate(timeout=60)[0].split()[0] for one in both] == ["0", "0", "0"]
    late = child(url, code)
    assert late.communicate(timeout=60)[0] == "0 False\n"  # up to date: no reason to pay for alembic


def test_migrations_yield_the_tables_that_the_code_expects(url, depot):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    depot.upgrade()
    connections = Connections(url)
    with connections.reading() as connection:
        options = {"compare_type": True, "compare_server_default": True, "version_table": schema.VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata) == []
    connections.close()


def test_a_database_newer_than_the_code_is_refused(url, depot):
    depot.upgrade()
    connections = Connections(url)
    with connections.writing() as connection:
        connection.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    connections.close()
    for use in (Depot(url).trips, Depot(url).upgrade):
        with pytest.raises(Misconfigured, match=r"9999.*install the newer version"):
            use()


def test_errors_and_their_causes_show_no_record(url, depot):
    trip = driven(depot)
    connections = Connections(url)
    with connections.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE depot_quarantine RENAME COLUMN payload TO gone")
    connections.close()
    row = replace(rows(1)[0], payload={"card": "s3cret"})
    with pytest.raises(Misconfigured) as caught:
        depot.record_verdict(verdict(trip), [row])
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__} {row!r}"
    assert depot.verdicts(trip.id) == {}


def test_a_depot_survives_a_fork(depot):
    trip = started(depot)
    pid = os.fork()
    if pid == 0:
        try:
            depot.claim(trip.id, "child", lease_seconds=9)
            os._exit(0 if depot.trip(trip.id) == trip else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert depot.newest_attempt(trip.id).run == "child"


def test_a_lock_held_by_somebody_is_transient_in_bounded_time(url, depot, monkeypatch):
    trip = started(depot)
    monkeypatch.setattr("resources.depot.connections.BUSY_SECONDS", 0.3)
    waiting, holder = Depot(url), Connections(url)
    with holder.writing() as connection:
        connection.execute(sa.update(schema.trips).where(schema.trips.c.id == trip.id).values(error="held"))
        began = time.monotonic()
        with pytest.raises(Transient, match="depot"):
            waiting.claim(trip.id, "run-1", lease_seconds=60)
        assert time.monotonic() - began < 20
    assert waiting.claim(trip.id, "run-1", lease_seconds=60).attempt == 1
    waiting.close()
    holder.close()


def test_a_lost_postgres_connection_is_transient_and_the_next_call_works(postgres_database_url):
    depot = Depot(postgres_database_url)
    trip = driven(depot)

    def cut():
        yield from rows(10)
        engine = sa.create_engine(postgres_database_url)
        with engine.connect() as connection:
            mine = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            connection.exec_driver_sql(mine)
        engine.dispose()

    with pytest.raises(Transient):
        depot.record_verdict(verdict(trip), cut())
    assert depot.verdicts(trip.id) == {}
    assert depot.quarantined() == []
    depot.close()


def test_refused_postgres_logins_are_misconfigured_and_show_no_password(postgres_database_url):
    url = sa.make_url(postgres_database_url).set(database="nowhere", password="s3cret").render_as_string(hide_password=False)
    with pytest.raises(Misconfigured) as caught:
        Depot(url).trips()
    assert "nowhere" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(Depot(url))


def test_an_unreachable_postgres_is_transient():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Transient, match="no connection"):
            Depot(f"postgresql://bus@127.0.0.1:{closed.getsockname()[1]}/depot").trips()
