"""One suite for the seam of messages, run on SQLite and on Postgres."""

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from resources.depot import boarding, messages, quarantine, schema
from resources.depot import trips as trips_sql
from resources.depot.entries import AttemptEnded, AttemptLive, Forgotten, NoSuchTrip, QuarantinedRow, Reason, TripOver, Verdict
from resources.depot.mail import Arrival, BackingOff, Boarded, Halt, Purged, Redriven, Remembered
from resources.depot.store import Depot
from resources.errors import Misconfigured, Poison, Refused, Transient
from resources.receipts import stored_key

ROOT = Path(__file__).parents[2]
DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request):
    return request.getfixturevalue(f"{request.param}_depot_url")


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request):
    """Without a depot's tables."""
    return request.getfixturevalue(f"{request.param}_database_url")


@pytest.fixture
def depot(url):
    depot = Depot(url)
    yield depot
    depot.close()


@pytest.fixture
def inbox(depot):
    return depot.inbox


def arrivals(count, start=0, **values):
    return [Arrival(f"k{number}", f"body {number}".encode(), **values) for number in range(start, start + count)]


def formed(inbox, batch=10, max_trips=10, **values):
    return inbox.form("orders", batch=batch, max_wait_seconds=0, max_trips=max_trips, **values)


def departed(inbox, limit=10):
    return [departure.trip for departure in inbox.depart("orders", max_in_flight=10, limit=limit)]


def underway(inbox, trip):
    return next(one for one in inbox.underway("orders") if one.trip.id == trip)


def riders(inbox, trip):
    return inbox.riders(trip, underway(inbox, trip).trip.launches)


def riding(inbox, count=3, **values):
    """A departed trip of ``count`` new messages, and their ids."""
    start = inbox.messages("orders", limit=10_000)
    inbox.board("orders", arrivals(count, len(start), **values))
    formed(inbox, batch=count)
    [trip] = departed(inbox)
    return trip, list(riders(inbox, trip).messages)


def failed(depot, trip, run="run-1", outcome="revoked"):
    attempt = depot.claim(trip, run, lease_seconds=60).attempt
    depot.end_attempt(trip, attempt, outcome)
    return attempt


def states(inbox, route="orders"):
    return {message.id: message.state for message in inbox.messages(route, limit=10_000)}


def counted(inbox, route="orders"):
    counts = inbox.counts(route)
    assert counts.is_balanced
    return {state: number for state, number in counts.by_state.items() if number}


def held_row(message, row_id="0"):
    return QuarantinedRow(row_id, "orders", "line", 1, (Reason("id: required", "is null"),), {"id": None}, message=message)


def verdict(trip, attempt=1):
    return Verdict(trip, attempt, "messages", True, 1, 0, 1, 0, {"files": []}, "d1")


def change(depot, text, **values):
    with depot._connections.writing() as connection:
        connection.execute(sa.text(text), values)


def child(url, code, *arguments):
    """A process of its own that runs ``code`` with ``inbox`` open, once told to go."""
    head = "import sys\nfrom resources.depot.store import Depot\nfrom resources.depot.mail import *\ndepot = Depot(sys.argv[1])\n"
    head += 'inbox = depot.inbox\ninbox.live("orders"); print("ready", flush=True); sys.stdin.readline()\n'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", head + code, url, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def together(children):
    for one in children:
        assert one.stdout.readline() == "ready\n"
    for one in children:
        one.stdin.write("go\n")
        one.stdin.flush()
    return [one.communicate(timeout=60)[0].split() for one in children]


# Boarding


def test_a_message_reads_back_as_it_arrived(inbox):
    sent, happened = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    body, attributes = b"\x00\xff not text", {"message_id": "m", "nested": {"n": [1, None, "Zoë \x00"]}}
    arrival = Arrival("orders/17", body, sent, happened, "bucket/Zoë", "0A0", "g1", attributes)
    assert inbox.board("orders", [arrival]) == Boarded(waiting=1)
    [message] = inbox.messages()
    assert (message.route, message.key, message.generation, message.part, message.state) == ("orders", "orders/17", 0, "", "waiting")
    assert (message.body, message.sent_at, message.event_at) == (body, sent, happened)
    assert (message.subject, message.sequencer, message.group, message.attributes) == ("bucket/Zoë", "0A", "g1", attributes)
    assert (message.trip, message.error, message.duplicates, message.rows_rejected) == (None, None, 0, 0)
    assert message.to_dead_letters is False
    assert message.received_at == message.changed_at
    assert abs(message.received_at - datetime.now(UTC)) < timedelta(seconds=30)
    assert "not text" not in f"{message!r} {arrival!r}"


def test_nothing_arrives(inbox):
    assert inbox.board("orders", []) == Boarded()
    assert inbox.live("orders") == 0
    assert inbox.messages() == []


def test_ids_follow_the_order_of_arrival(inbox):
    inbox.board("orders", arrivals(300))
    inbox.board("orders", arrivals(300, 300))
    assert [message.key for message in inbox.messages("orders", limit=1000)] == [f"k{number}" for number in range(600)]


def test_a_known_key_is_a_duplicate_in_its_route_only(inbox):
    inbox.board("orders", arrivals(2))
    assert inbox.board("orders", [*arrivals(3), Arrival("k0", b"other")]) == Boarded(waiting=1, duplicates=3, other_bodies=1)
    assert inbox.board("invoices", arrivals(1)) == Boarded(waiting=1)
    assert [(message.body, message.duplicates) for message in inbox.messages("orders")] == [(b"body 0", 2), (b"body 1", 1), (b"body 2", 0)]
    assert (inbox.counts("orders").duplicates, inbox.counts("invoices").duplicates) == (3, 0)


def test_duplicates_with_another_body_are_told_apart(inbox):
    """Most often an identity that does not identify: the first message counts, and what the other one said is in the archive."""
    first, other = Arrival("k0", b"1"), Arrival("k0", b"2")
    assert inbox.board("orders", [first, first, other]) == Boarded(waiting=1, duplicates=2, other_bodies=1)
    assert inbox.board("orders", [other, first, *arrivals(1, 1)]) == Boarded(waiting=1, duplicates=2, other_bodies=1)
    assert [(message.body, message.duplicates, message.other_bodies) for message in inbox.messages()] == [(b"1", 4, 2), (b"body 1", 0, 0)]
    assert (inbox.counts("orders").other_bodies, inbox.counts("invoices").other_bodies) == (2, 0)


@pytest.mark.parametrize(
    ("again", "differs"),
    [
        (b'{"b":[1.50,"x"],"a":null}', 0),
        (b'{ "a" : null, "b" : [1.50, "\\u0078"] }', 0),
        (b'{"a": null, "b": [1.5, "x"]}', 1),
        (b'{"a": null, "b": ["1.50", "x"]}', 1),
        (b'{"a": null, "b": ["x", 1.50]}', 1),
        (b"[" * 100_000, 1),
        (b"\xff", 1),
    ],
)
def test_json_that_was_written_anew_on_its_way_is_no_other_body(inbox, again, differs):
    first = Arrival("k", b'{"a": null, "b": [1.50, "x"]}')
    for arrivals_ in ([first, Arrival("k", again)], [Arrival("k", again)]):
        assert inbox.board("orders", arrivals_).other_bodies == differs


def test_a_message_that_waits_again_is_compared_with_what_came_last(inbox):
    inbox.board("orders", [Arrival("k0", b"{oops", problem="not JSON")])
    assert inbox.board("orders", [Arrival("k0", b"{}"), Arrival("k0", b"{}")]) == Boarded(redriven=1, duplicates=1)


def test_what_was_received_is_counted_beside_the_states(depot, inbox):
    """Once for each message, however often it comes; until it is forgotten."""
    known = [Arrival("bad", b"{", problem="no JSON"), event("late", "1"), event("new", "2"), Arrival("test", b"", ignored="s3:TestEvent")]
    for _ in range(2):
        inbox.board("orders", [*known, *arrivals(3), *arrivals(2)])
        inbox.rebuild("orders", arrivals(5), {"k4": Remembered("", "t1")})
        assert inbox.counts("orders").received == 8
    assert counted(inbox) == {"waiting": 5, "delivered": 1, "quarantined": 1, "superseded": 1}
    now = datetime.now(UTC) + DAY
    inbox.purge("orders", now, now)
    assert inbox.counts("orders").received == 6
    assert counted(inbox) == {"waiting": 5, "quarantined": 1}
    assert inbox.counts("nobody").is_balanced
    change(depot, "DELETE FROM depot_messages WHERE key = 'bad'")
    assert not inbox.counts("orders").is_balanced


def test_counts_are_of_one_moment(depot, inbox):
    """In two statements a message could be seen in two states, or in none: the sums would differ for no reason."""
    inbox.board("orders", arrivals(1))
    statements = []
    sa.event.listen(depot._connections._engine(), "before_cursor_execute", lambda *given: statements.append(given[2]))
    inbox.counts("orders")
    assert len([one for one in statements if one.startswith("SELECT")]) == 1


def test_two_arrivals_of_one_key_in_one_call_are_one_message(inbox):
    assert inbox.board("orders", [*arrivals(2), *arrivals(2), *arrivals(1)]) == Boarded(waiting=2, duplicates=3)
    assert [message.duplicates for message in inbox.messages()] == [2, 1]


@pytest.mark.parametrize("key", ["k" * 400, "k" * 401, "\x00", "\ud800", "Zoë" * 200, "\x00" * 390, "'\"; DROP", ""])
def test_any_key_is_stored_as_receipts_store_it(inbox, key):
    inbox.board("orders", [Arrival(key, b""), Arrival(key + "x", b"")])
    assert inbox.board("orders", [Arrival(key, b"")]) == Boarded(duplicates=1)
    one, other = inbox.messages()
    assert one.key != other.key
    assert stored_key(one.key) == one.key  # a receipt under the message's key stands under the very same text
    assert inbox.messages(key=key) == [one]


def test_ignored_arrivals_are_only_counted(inbox):
    test_event = Arrival("k0", b"{}", ignored="s3:TestEvent")
    assert inbox.board("orders", [test_event, test_event, *arrivals(1)]) == Boarded(waiting=1, ignored=2)
    assert len(inbox.messages()) == 1
    assert inbox.counts("orders").ignored == 2


def test_what_cannot_be_decoded_is_quarantined_with_the_problem(inbox):
    broken = Arrival("k0", b"{oops", problem="not JSON at character 1")
    assert inbox.board("orders", [broken]) == Boarded(quarantined=1)
    assert inbox.board("orders", [broken]) == Boarded(duplicates=1)
    [message] = inbox.messages()
    assert (message.state, message.error, message.body, message.generation) == ("quarantined", "not JSON at character 1", b"{oops", 0)
    assert formed(inbox) == 0
    assert inbox.board("orders", [Arrival("k0", b"{}", subject="s")]) == Boarded(redriven=1)
    [message] = inbox.messages()
    assert (message.state, message.error, message.body, message.generation, message.subject) == ("waiting", None, b"{}", 1, "s")


def test_what_comes_again_without_its_group_keeps_it(inbox):
    """A standard queue tells none; who comes with another one is in that."""
    inbox.board("orders", [Arrival(f"k{number}", b"{", group="a", problem="no JSON") for number in range(3)])
    inbox.board("orders", [Arrival("k0", b"{}"), Arrival("k1", b"{}", group="a"), Arrival("k2", b"{}", group="b")])
    assert [(message.state, message.group) for message in inbox.messages()] == [("waiting", "a"), ("waiting", "a"), ("waiting", "b")]


def test_what_was_sent_before_the_horizon_is_held(inbox):
    old, new = datetime.now(UTC) - timedelta(hours=2), datetime.now(UTC)
    inbox.board("orders", [Arrival("known", b"", old)])
    given = [Arrival("old", b"", old), Arrival("new", b"", new), Arrival("no time", b""), Arrival("known", b"", old)]
    assert inbox.board("orders", given, horizon_seconds=3600) == Boarded(waiting=2, held=1, duplicates=1)
    [held] = inbox.messages(state="held")
    assert held.key == "old"
    assert "may have been delivered" in held.error
    assert inbox.board("orders", [Arrival("old", b"", old)], horizon_seconds=3600) == Boarded(duplicates=1)
    assert inbox.redrive("orders", reason="it was not").waiting == 1
    assert counted(inbox) == {"waiting": 4}


def test_boarding_is_all_or_nothing(inbox):
    with pytest.raises(Poison, match="set cannot be kept") as caught:
        inbox.board("orders", [Arrival("k0", b"s3cret"), Arrival("k1", b"s3cret", attributes={"a": {1}})])
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"
    assert inbox.messages() == []


def test_unusable_routes_are_refused(inbox):
    for ask in (
        lambda: inbox.board("No", []),
        lambda: inbox.form("No", batch=1, max_wait_seconds=0, max_trips=1),
        lambda: inbox.pause("No", "x"),
        lambda: inbox.failed_in_row("No"),
    ):
        with pytest.raises(Misconfigured, match="lower-case"):
            ask()


def test_many_arrivals_board_in_a_few_statements(depot, inbox):
    inbox.board("orders", arrivals(1000, subject="s", sequencer="1"))
    statements = []
    engine = depot._connections._engine()
    sa.event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    again = [Arrival(f"k{number}", b"", subject=f"s{number}", sequencer="2") for number in range(500, 1500)]
    assert inbox.board("orders", again) == Boarded(waiting=500, duplicates=500, other_bodies=500)
    assert len(statements) < 15


# Superseding


def event(key, sequencer, subject="bucket/file", **values):
    return Arrival(key, b"{}", subject=subject, sequencer=sequencer, **values)


def test_an_older_sequencer_is_superseded_whichever_comes_first(inbox):
    assert inbox.board("orders", [event("b", "0055AED6DCD9")]) == Boarded(waiting=1)
    assert inbox.board("orders", [event("a", "0055AED6DCD8")]) == Boarded(superseded=1)
    assert inbox.board("orders", [event("c", "0055AED6DCDA")]) == Boarded(waiting=1, replaced=1)
    assert {message.key: message.state for message in inbox.messages()} == {"b": "superseded", "a": "superseded", "c": "waiting"}
    assert counted(inbox) == {"waiting": 1, "superseded": 2}
    assert inbox.board("orders", [event("a", "0055AED6DCD8")]) == Boarded(duplicates=1)


def test_the_shorter_sequencer_is_padded_with_zeros(inbox):
    inbox.board("orders", [event("a", "00A", "1"), event("b", "00A1", "2"), event("c", "00A0", "3")])
    later = [event("a2", "00A00", "1"), event("b2", "00A", "2"), event("c2", "00A000001", "3")]
    assert inbox.board("orders", later) == Boarded(waiting=2, superseded=1, replaced=1)
    assert [message.key for message in inbox.messages(state="waiting")] == ["a", "b", "a2", "c2"]  # a and a2 are equally new


def test_within_one_call_only_the_newest_of_a_subject_waits(inbox):
    mixed = [event(f"k{number}", f"{number:04X}") for number in (3, 9, 1, 7)]
    others = [event("other", "0001", "another"), event("plain", None), Arrival("no subject", b"", sequencer="0000")]
    assert inbox.board("orders", mixed + others) == Boarded(waiting=4, superseded=3)
    assert [message.key for message in inbox.messages(state="waiting")] == ["k9", "other", "plain", "no subject"]


def test_a_delivered_newer_one_supersedes_and_one_that_rides_is_left_alone(inbox):
    inbox.board("orders", [event("a", "1", "s"), event("x", "1", "t")])
    formed(inbox)
    assert inbox.board("orders", [event("b", "2", "s")]) == Boarded(waiting=1)
    assert states(inbox) == {1: "aboard", 2: "aboard", 3: "waiting"}
    [trip] = departed(inbox)
    inbox.delivered(trip, {}, {})
    assert inbox.board("orders", [event("w", "0", "t")]) == Boarded(superseded=1)


def test_who_redrives_a_superseded_one_is_told_how_its_object_comes_back(inbox):
    inbox.board("orders", [Arrival("new", b"", subject="s", sequencer="02"), Arrival("old", b"", subject="s", sequencer="01")])
    (old,) = inbox.messages(state="superseded")
    with pytest.raises(Refused, match=r"\(\d+\) are not stranded .*; a superseded one rides no more: .*copy that version over the object"):
        inbox.redrive("orders", [old.id], reason="it is the good one")
    with pytest.raises(Refused, match=r"nothing was changed$"):
        inbox.redrive("orders", [99], reason="no such message")


def test_a_stranded_one_that_comes_again_too_late_is_superseded(inbox):
    trip, [number] = riding(inbox, 1, subject="s", sequencer="1")
    inbox.strand(trip, [number], "no", to_dead_letters=True)
    inbox.board("orders", [event("newer", "2", "s")])
    assert inbox.board("orders", [event("k0", "1", "s")]) == Boarded(superseded=1)
    assert counted(inbox) == {"waiting": 1, "superseded": 1}


# Forming


def test_waiting_messages_board_in_their_order(inbox):
    inbox.board("orders", arrivals(7))
    assert inbox.live("orders") == 7
    assert formed(inbox, batch=3) == 3
    assert formed(inbox, batch=3) == 0
    trips = departed(inbox)
    assert [riders(inbox, trip).messages for trip in trips] == [(1, 2, 3), (4, 5, 6), (7,)]
    assert inbox.live("orders") == 7
    trip = underway(inbox, trips[0]).trip
    assert (trip.trigger, trip.state, trip.parameters, trip.launches, trip.run) == ("queue", "departed", {}, 1, None)


def test_a_trip_carries_the_parameters_given(depot, inbox):
    inbox.board("orders", arrivals(1))
    formed(inbox, parameters={"currency": "EUR"})
    [trip] = depot.trips("orders", "formed")
    assert trip.parameters == {"currency": "EUR"}


def test_a_trip_that_is_not_full_waits_for_more(depot, inbox):
    inbox.board("orders", arrivals(5))
    assert inbox.form("orders", batch=3, max_wait_seconds=60, max_trips=9) == 1
    assert counted(inbox) == {"waiting": 2, "aboard": 3}
    change(depot, "UPDATE depot_messages SET received_at = :then WHERE id = 4", then=datetime.now(UTC).replace(tzinfo=None) - DAY)
    assert inbox.form("orders", batch=3, max_wait_seconds=60, max_trips=9) == 1
    assert inbox.form("orders", batch=3, max_wait_seconds=60, max_trips=9) == 0


def test_there_are_never_more_trips_than_allowed(depot, inbox):
    inbox.board("orders", arrivals(20))
    assert formed(inbox, batch=1, max_trips=3) == 3
    assert formed(inbox, batch=1, max_trips=3) == 0
    first, second, third = departed(inbox)
    assert formed(inbox, batch=1, max_trips=3) == 0
    depot.claim(first, "run-1", lease_seconds=60)
    depot.finish_trip(first, "failed", "boom", attempt=1)
    depot.record_publication(second, 1, "warehouse", {})
    depot.finish_trip(second, "stuck")
    assert formed(inbox, batch=1, max_trips=3) == 0
    inbox.delivered(third, {}, {})
    depot.finish_trip(third, "delivered")
    assert formed(inbox, batch=1, max_trips=3) == 1
    depot.start_trip("orders", "ui", {})  # a trip without messages takes nobody's place
    assert formed(inbox, batch=1, max_trips=4) == 1


def test_what_was_split_off_and_backs_off_takes_no_other_trips_place(depot, inbox):
    """For as long as one message cannot be read others ride; a whole trip that backs off makes the next one wait."""
    trip, ids = riding(inbox, 2)
    inbox.board("orders", arrivals(9, 2))
    inbox.retry(trip, 60, spent=None)
    assert formed(inbox, batch=1, max_trips=1) == 0
    change(depot, "UPDATE depot_trips SET not_before = NULL")
    inbox.split(*departed(inbox), [ids[:1], ids[1:]])
    first, second = departed(inbox)
    assert formed(inbox, batch=1, max_trips=2) == 0
    inbox.retry(first, 60, spent=None)
    assert formed(inbox, batch=1, max_trips=2) == 1
    inbox.retry(second, 0, spent=None)
    assert formed(inbox, batch=1, max_trips=2) == 0
    assert formed(inbox, batch=1, max_trips=3) == 1


@pytest.mark.parametrize("state", ["backs off", "due", "departed", "driving", "failed"])
def test_a_trip_that_fails_while_others_ride_takes_no_other_trips_place_whatever_state_it_is_in(depot, inbox, state):
    """Else those that fail slowly fill every place again and again, and no new message is ever received."""
    trip, _ = riding(inbox, 2)
    failed(depot, trip)
    inbox.retry(trip, 60 if state == "backs off" else 0, spent=None)
    if state in ("departed", "driving", "failed"):
        assert departed(inbox) == [trip]
    if state in ("driving", "failed"):
        depot.claim(trip, "run-2", lease_seconds=60)
    if state == "failed":
        depot.finish_trip(trip, "failed", "503", attempt=2)
    inbox.board("orders", arrivals(9, 2))
    assert inbox.backing_off("orders", aside=0) == BackingOff(trips=1, waiting=state in ("backs off", "due"), aside=0, alone=0, perhaps=0)
    assert formed(inbox, batch=1, max_trips=1) == 0
    assert formed(inbox, batch=1, max_trips=1, aside=1) == 1
    for other in depot.trips("orders", "formed"):
        if other.id != trip:
            depot.claim(other.id, "run-3", lease_seconds=60)
            inbox.delivered(other.id, {}, {})
            depot.finish_trip(other.id, "delivered")
    assert inbox.backing_off("orders", aside=0) == BackingOff(trips=1, waiting=state in ("backs off", "due"), aside=1, alone=2, perhaps=0)
    assert formed(inbox, batch=1, max_trips=1) == 1
    assert formed(inbox, batch=1, max_trips=1) == 0


@pytest.mark.parametrize("state", ["waits", "due", "driven"])
def test_a_trip_that_a_later_database_refuses_takes_no_other_trips_place(depot, inbox, state):
    """It may be refused for ever, and cannot be given up."""
    trip, _ = riding(inbox, 2)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_publication(trip, 1, "warehouse", {})
    assert depot.finish_trip(trip, "failed", "CHECK", attempt=1).state == "stuck"
    depot.end_attempt(trip, 1, "published")
    if state != "due":
        assert departed(inbox) == [trip]
    if state == "driven":
        depot.claim(trip, "run-2", lease_seconds=60)
    inbox.board("orders", arrivals(9, 2))
    assert inbox.backing_off("orders", aside=0) == BackingOff(trips=1, waiting=1, aside=0, alone=0, perhaps=0)
    assert inbox.backing_off("orders", aside=1) == BackingOff(trips=1, waiting=1, aside=1, alone=0, perhaps=2)
    assert formed(inbox, batch=1, max_trips=1) == 0
    assert formed(inbox, batch=1, max_trips=1, aside=1) == 1
    [other] = [found.id for found in depot.trips("orders", "formed")]
    inbox.delivered(other, {}, {})
    depot.finish_trip(other, "delivered")
    assert inbox.backing_off("orders", aside=0) == BackingOff(trips=1, waiting=1, aside=1, alone=2, perhaps=0)
    assert formed(inbox, batch=1, max_trips=1) == 1
    assert formed(inbox, batch=1, max_trips=1) == 0


def test_stuck_trips_depart_in_their_turn_and_keep_their_error(depot, inbox):
    """Tried each minute, many of them would take every turn of the others."""
    inbox.board("orders", arrivals(1))
    formed(inbox)
    [trip] = departed(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_publication(trip, 1, "warehouse", {})
    depot.finish_trip(trip, "failed", "CHECK", attempt=1)
    depot.end_attempt(trip, 1, "published")
    inbox.board("orders", arrivals(1, 1))
    formed(inbox)
    [fresh] = [found.id for found in depot.trips("orders", "formed")]
    inbox.retry(trip, 0, spent=None)
    assert departed(inbox, 1) == [fresh]
    assert departed(inbox, 1) == [trip]
    assert depot.finish_trip(trip, "stuck").error == "CHECK"


def test_a_trip_that_nobody_claimed_in_time_has_not_failed(depot, inbox):
    trip, _ = riding(inbox, 1)
    inbox.board("orders", arrivals(3, 1))
    inbox.retry(trip, 0, spent=None)
    assert formed(inbox, batch=1, max_trips=1, aside=1) == 0
    assert inbox.backing_off("orders", aside=1).trips == 0
    assert departed(inbox) == [trip]
    depot.claim(trip, "run-1", lease_seconds=60)
    assert formed(inbox, batch=1, max_trips=1, aside=1) == 0


def test_a_trip_that_is_tried_again_departs_behind_those_that_were_ready_before_it_was(depot, inbox):
    inbox.board("orders", arrivals(2))
    formed(inbox, batch=1)
    first, second = departed(inbox)
    inbox.board("orders", arrivals(1, 2))
    formed(inbox)
    [fresh] = [trip.id for trip in depot.trips("orders", "formed")]
    for trip in (second, first):
        failed(depot, trip)
        inbox.retry(trip, 0, spent=None)
    inbox.board("orders", arrivals(1, 3))
    formed(inbox)
    assert departed(inbox)[:3] == [fresh, second, first]


def test_batches_of_none_are_misconfigured(inbox):
    with pytest.raises(Misconfigured, match="batch"):
        formed(inbox, batch=0)
    with pytest.raises(Misconfigured, match="batch"):
        inbox.form_for_run("orders", "run", 0)


def test_a_run_of_a_person_gets_what_waits_and_the_same_again(depot, inbox):
    assert inbox.form_for_run("orders", "run-1", 2) is None
    inbox.board("orders", arrivals(3))
    inbox.pause("orders", "broken")
    trip = inbox.form_for_run("orders", "run-1", 2, parameters={"a": 1})
    assert (trip.state, trip.run, trip.trigger, trip.launches, trip.parameters) == ("departed", "run-1", "queue", 1, {"a": 1})
    assert inbox.form_for_run("orders", "run-1", 2) == trip
    assert [message.id for message in inbox.messages_of(trip.id)] == [1, 2]
    depot.claim(trip.id, "run-1", lease_seconds=60)
    assert inbox.form_for_run("orders", "run-1", 2).state == "driving"
    assert inbox.form_for_run("orders", "run-2", 2).id != trip.id
    assert inbox.form_for_run("orders", "run-3", 2) is None


def test_many_processes_of_one_run_get_one_trip(url):
    depots = [Depot(url) for _ in range(4)]
    depots[0].inbox.board("orders", arrivals(8))
    gate = threading.Barrier(4)

    def ask(depot):
        gate.wait()
        return depot.inbox.form_for_run("orders", "run-1", 2).id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, depots))) == 1
    assert counted(depots[0].inbox) == {"waiting": 6, "aboard": 2}
    for depot in depots:
        depot.close()


# Groups


def grouped(*groups):
    return [Arrival(f"k{number}", b"", group=group) for number, group in enumerate(groups)]


def test_of_a_group_one_trip_is_in_flight(depot, inbox):
    inbox.board("orders", grouped("a", "a", "b", "a", "b", None))
    assert formed(inbox, batch=2) == 3
    first, second, third = departed(inbox)
    assert riders(inbox, first).messages == (1, 2)
    assert riders(inbox, second).messages == (3, 5)  # 4 must wait for 1 and 2
    assert riders(inbox, second).groups == ("b", "b")
    assert riders(inbox, third).messages == (6,)  # what has no group never waits
    assert formed(inbox, batch=2) == 0
    inbox.delivered(first, {}, {})
    depot.finish_trip(first, "delivered")
    assert formed(inbox, batch=2) == 1
    [fourth] = departed(inbox)
    assert riders(inbox, fourth).messages == (4,)


def test_a_trip_takes_several_groups_each_in_order(inbox):
    inbox.board("orders", grouped("a", "b", "a", "b"))
    assert formed(inbox) == 1
    [trip] = departed(inbox)
    assert [(message.id, message.group) for message in inbox.messages_of(trip)] == [(1, "a"), (2, "b"), (3, "a"), (4, "b")]


@pytest.mark.parametrize(("halt", "on", "wait"), [(True, [1], [3]), (False, [1, 3], [])])
def test_behind_a_stranded_message_its_group_waits_or_rides_on(depot, inbox, halt, on, wait):
    trip, ids = riding(inbox, 3, group="g")
    assert inbox.strand(trip, ids[1:2], "no", to_dead_letters=True, halt_on_stranded=halt)
    assert [list(riders(inbox, one).messages) for one in departed(inbox)] == [on]
    assert [number for number, state in states(inbox).items() if state == "waiting"] == wait


def test_a_stranded_message_halts_its_group_until_it_is_redriven(inbox):
    inbox.board("orders", grouped("a", "b"))
    formed(inbox)
    [trip] = departed(inbox)
    inbox.strand(trip, [1], "poison", to_dead_letters=False)
    inbox.board("orders", [Arrival("later", b"", group="a"), Arrival("free", b"", group="c")])
    assert formed(inbox) == 1
    assert inbox.messages(key="later")[0].state == "waiting"
    assert inbox.messages(key="free")[0].state == "aboard"
    inbox.redrive("orders", reason="fixed")
    assert formed(inbox) == 1
    last = departed(inbox)[-1]
    assert [message.key for message in inbox.messages_of(last)] == ["k0", "later"]


def test_a_redriven_message_does_not_wait_for_a_later_one_of_its_group(depot, inbox):
    trip, ids = riding(inbox, 3, group="g")
    failed(depot, trip)
    inbox.strand(trip, ids, "poison", to_dead_letters=False)
    inbox.redrive("orders", [ids[0]], reason="fixed")
    assert (inbox.moving("orders"), inbox.halts("orders")) == (1, [])
    assert inbox.boardable("orders") == (1, inbox.messages("orders")[0].received_at)
    assert formed(inbox) == 1
    assert states(inbox) == {ids[0]: "aboard", ids[1]: "stranded", ids[2]: "stranded"}
    inbox.redrive("orders", [ids[2]], reason="fixed")
    assert (inbox.moving("orders"), [halt.behind for halt in inbox.halts("orders")]) == (1, [1])
    assert formed(inbox) == 0


def test_a_group_goes_on_past_a_stranded_message_if_told_so(inbox):
    inbox.board("orders", grouped("a"))
    formed(inbox)
    [trip] = departed(inbox)
    inbox.strand(trip, [1], "poison", to_dead_letters=False, halt_on_stranded=False)
    inbox.board("orders", [Arrival("later", b"", group="a")])
    assert formed(inbox) == 0
    assert inbox.form_for_run("orders", "run", 5) is None
    assert formed(inbox, halt_on_stranded=False) == 1


def test_a_failed_trip_keeps_its_group(depot, inbox):
    inbox.board("orders", grouped("a", "a"))
    formed(inbox, batch=1)
    [trip] = departed(inbox)
    failed(depot, trip)
    inbox.retry(trip, 60, spent="failure")
    assert formed(inbox, batch=1) == 0


# Departing


def test_trips_depart_once_and_never_too_many(depot, inbox):
    inbox.board("orders", arrivals(5))
    formed(inbox, batch=1)
    first = inbox.depart("orders", max_in_flight=3, limit=2)
    assert [(one.launch, one.messages) for one in first] == [(1, 1), (1, 1)]
    depot.claim(first[0].trip, "run-1", lease_seconds=60)  # driving is in flight as well
    [third] = inbox.depart("orders", max_in_flight=3, limit=2)
    assert inbox.depart("orders", max_in_flight=3, limit=2) == []
    trip = depot.trip(third.trip)
    assert trip.state == "departed"
    assert trip.departed_at >= trip.created_at
    assert trip.departed_at == third.at
    assert 0 <= underway(inbox, third.trip).departed_seconds < 60
    inbox.delivered(first[0].trip, {}, {})
    depot.finish_trip(first[0].trip, "delivered")
    assert len(inbox.depart("orders", max_in_flight=3, limit=2)) == 1
    assert inbox.depart("orders", max_in_flight=0, limit=2) == []


def test_a_retried_trip_departs_when_its_time_has_come(depot, inbox):
    trip, _ = riding(inbox)
    failed(depot, trip)
    assert inbox.retry(trip, 0.3, spent=None) is True
    assert departed(inbox) == []
    time.sleep(0.35)
    assert [(one.trip, one.launch, one.messages) for one in inbox.depart("orders", max_in_flight=1, limit=1)] == [(trip, 2, 3)]


def test_a_trip_that_a_person_drives_first_does_not_depart(depot, inbox):
    inbox.board("orders", arrivals(1))
    formed(inbox)
    [trip] = depot.trips("orders", "formed")
    depot.claim(trip.id, "run-1", lease_seconds=60)
    assert depot.trip(trip.id).state == "driving"
    assert departed(inbox) == []
    assert riders(inbox, trip.id).messages == (1,)


def due_again(depot, inbox, count, *, alone):
    """So many trips that failed before and are due; ``alone``: a later one is delivered, and there is one of a single message besides."""
    inbox.board("orders", arrivals(count + alone))
    formed(inbox, batch=1)
    trips = departed(inbox)
    for trip in trips[:count]:
        failed(depot, trip)
        inbox.retry(trip, 0, spent=None)
    for trip in trips[count:]:
        depot.claim(trip, "run-1", lease_seconds=60)
        inbox.delivered(trip, {}, {})
        depot.finish_trip(trip, "delivered")
    return trips[:count]


def new_ones(depot, inbox, count):
    known = {trip.id for trip in depot.trips("orders")}
    inbox.board("orders", arrivals(count, 100 + len(known)))
    formed(inbox, batch=1, aside=100)
    return sorted({trip.id for trip in depot.trips("orders", "formed")} - known)


@pytest.mark.parametrize("alone", [False, True])
def test_trips_that_failed_are_half_of_those_in_flight_while_new_ones_are_ready(depot, inbox, alone):
    """However many are due before them: where each takes long to fail, a new one would wait for all of them."""
    again = due_again(depot, inbox, 6, alone=alone)
    fresh = new_ones(depot, inbox, 3)
    assert sorted(one.trip for one in inbox.depart("orders", max_in_flight=4, limit=4)) == sorted(again[:2] + fresh[:2])
    for trip in fresh[:2]:
        depot.claim(trip, "run-1", lease_seconds=60)
        inbox.delivered(trip, {}, {})
        depot.finish_trip(trip, "delivered")
    assert [one.trip for one in inbox.depart("orders", max_in_flight=4, limit=1)] == [fresh[2]]


def test_places_are_kept_free_of_trips_that_fail_while_others_ride(depot, inbox):
    """What comes next finds one. Where nothing is delivered since, all may have failed for one reason, and be well now: then they may."""
    again = due_again(depot, inbox, 6, alone=False)
    assert [one.trip for one in inbox.depart("orders", max_in_flight=4, limit=4)] == again[:4]
    for trip in again[:4]:
        inbox.retry(trip, 0, spent=None)
    last = new_ones(depot, inbox, 1)[0]
    assert last in {one.trip for one in inbox.depart("orders", max_in_flight=3, limit=3)}
    depot.claim(last, "run-1", lease_seconds=60)
    inbox.delivered(last, {}, {})
    depot.finish_trip(last, "delivered")
    for trip in depot.trips("orders", "departed"):
        inbox.retry(trip.id, 0, spent=None)
    assert len(inbox.depart("orders", max_in_flight=4, limit=4)) == 2
    assert inbox.depart("orders", max_in_flight=4, limit=4) == []


def test_where_one_trip_rides_at_a_time_those_that_failed_have_a_turn_each_minute(depot, inbox):
    first, second, *_ = due_again(depot, inbox, 3, alone=True)
    change(depot, "UPDATE depot_trips SET departed_at = '2026-01-01T00:00:00.000000'")
    fresh = new_ones(depot, inbox, 2)

    def one() -> str:
        [departure] = inbox.depart("orders", max_in_flight=1, limit=1)
        return departure.trip

    assert one() == first
    inbox.retry(first, 60, spent=None)
    for trip in fresh:
        assert one() == trip
        depot.claim(trip, "run-1", lease_seconds=60)
        inbox.delivered(trip, {}, {})
        depot.finish_trip(trip, "delivered")
    assert one() == second  # nobody else is ready


def test_a_turn_of_those_that_failed_is_not_used_up_by_one_that_fails_for_the_first_time(depot, inbox):
    """Where a new one failed each minute, none of them would ever ride again."""
    first, *_ = due_again(depot, inbox, 3, alone=True)
    new_ones(depot, inbox, 1)
    assert [one.trip for one in inbox.depart("orders", max_in_flight=1, limit=1)] == [first]


def test_others_ride_for_as_long_as_one_that_failed_before_took_to_fail_again(depot, inbox):
    """Each minute one that takes two to fail would leave them nothing."""
    first, second = due_again(depot, inbox, 2, alone=True)
    fresh = new_ones(depot, inbox, 2)
    assert [one.trip for one in inbox.depart("orders", max_in_flight=1, limit=1)] == [first]
    depot.claim(first, "run-2", lease_seconds=60)
    depot.finish_trip(first, "failed", "503", attempt=2)
    depot.end_attempt(first, 2, "failed")
    inbox.retry(first, 60, spent=None)

    def leaves(departed: int, ended: int) -> str:
        """Who leaves so many minutes after the first one departed and failed again."""
        departed_at, ended_at = (datetime.now(UTC) - timedelta(minutes=ago) for ago in (departed, ended))
        change(depot, f"UPDATE depot_trips SET departed_at = '{departed_at:%Y-%m-%dT%H:%M:%S.%f}' WHERE id = '{first}'")
        change(depot, f"UPDATE depot_attempts SET ended_at = '{ended_at:%Y-%m-%dT%H:%M:%S.%f}' WHERE trip = '{first}' AND attempt = 2")
        change(depot, f"UPDATE depot_attempts SET ended_at = '2026-01-01T00:00:00.000000' WHERE trip = '{first}' AND attempt = 1")
        [departure] = inbox.depart("orders", max_in_flight=1, limit=1)
        inbox.retry(departure.trip, 60, spent=None)
        return departure.trip

    assert leaves(9, 4) == fresh[0]
    assert leaves(9, 5) == second


def test_no_more_stuck_trips_than_others_are_in_flight(depot, inbox):
    """Each may be driven for long, waiting for the database that it is not in yet."""
    trips = due_again(depot, inbox, 6, alone=False)
    for trip in trips:
        depot.record_publication(trip, 1, "warehouse", {})
        assert depot.finish_trip(trip, "stuck").state == "stuck"
    assert len(inbox.depart("orders", max_in_flight=2, limit=2)) == 2
    assert inbox.depart("orders", max_in_flight=2, limit=2) == []  # asked for
    for trip in trips[:2]:
        depot.claim(trip, "run-2", lease_seconds=60)
    change(depot, "UPDATE depot_trips SET not_before = NULL")
    assert inbox.depart("orders", max_in_flight=2, limit=2) == []  # driven
    depot.end_attempt(trips[0], 2, "failed")
    assert len(inbox.depart("orders", max_in_flight=2, limit=2)) == 1


def test_stuck_trips_depart_to_roll_forward(depot, inbox):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_publication(trip, 1, "warehouse", {})
    assert depot.finish_trip(trip, "failed", "second database is down", attempt=1).state == "stuck"
    assert departed(inbox) == []  # its run may still be there
    depot.end_attempt(trip, 1, "published")
    before = datetime.now(UTC)
    [departure] = inbox.depart("orders", max_in_flight=1, limit=1)
    assert (departure.trip, departure.launch, departure.messages) == (trip, 2, 3)
    assert departed(inbox) == []
    found = underway(inbox, trip)
    assert (found.trip.state, riders(inbox, trip).messages) == ("stuck", tuple(ids))
    assert timedelta(seconds=50) < found.trip.not_before - before < timedelta(seconds=90)
    assert inbox.retry(trip, 0, spent="failure") is True
    assert (depot.trip(trip).state, depot.trip(trip).failures) == ("stuck", 1)
    assert departed(inbox) == [trip]


def test_nothing_forms_or_departs_while_the_route_is_paused(inbox):
    inbox.board("orders", arrivals(2))
    assert inbox.paused("orders") is None
    formed(inbox, batch=1, max_trips=1)
    inbox.pause("orders", "three failures in a row")
    inbox.pause("orders", "another reason")
    since, why = inbox.paused("orders")
    assert why == "three failures in a row"
    assert abs(since - datetime.now(UTC)) < timedelta(seconds=30)
    assert inbox.counts("orders").paused_reason == why
    assert (formed(inbox, batch=1), departed(inbox)) == (0, [])
    assert inbox.board("orders", arrivals(1, 7)) == Boarded(waiting=1)
    inbox.resume("orders")
    assert inbox.paused("orders") is None
    assert formed(inbox, batch=1) == 2
    assert len(departed(inbox)) == 3
    with pytest.raises(Misconfigured, match="reason"):
        inbox.pause("orders", " ")


def test_resuming_notes_how_often_the_trips_of_the_route_were_launched_before(depot, inbox):
    trip, _ = riding(inbox)
    inbox.retry(trip, 0, spent=None)
    assert departed(inbox) == [trip]
    inbox.resume("invoices")
    assert depot.trip(trip).launches_before_resume == 0
    inbox.resume("orders")
    assert depot.trip(trip).launches_before_resume == 2
    inbox.retry(trip, 0, spent=None)
    assert departed(inbox) == [trip]
    assert (depot.trip(trip).launches, depot.trip(trip).launches_before_resume) == (3, 2)


def test_failures_in_a_row_end_with_a_delivery_or_a_person(depot, inbox):
    assert [inbox.failed_in_row("orders") for _ in range(3)] == [1, 2, 3]
    assert inbox.counts("orders").failures_in_row == 3
    assert inbox.failed_in_row("invoices") == 1
    inbox.resume("orders")
    assert inbox.failed_in_row("orders") == 1
    trip, _ = riding(inbox)
    inbox.delivered(trip, {}, {})
    assert inbox.failed_in_row("orders") == 1
    inbox.delivered(trip, {}, {})  # said again: nothing was delivered by that
    assert inbox.failed_in_row("orders") == 2
    assert [inbox.failed_in_row("orders", at_most=most) for most in (3, 3, 0, 4, 3)] == [3, 3, 3, 4, 4]
    assert inbox.counts("orders").failures_in_row == 4


def test_a_trip_of_which_nothing_was_kept_is_a_failure_among_those_in_a_row(inbox):
    inbox.failed_in_row("orders")
    trip, ids = riding(inbox)
    whole = dict.fromkeys(ids, "all rows")
    assert [inbox.delivered(trip, {}, whole, kept=False) for _ in range(2)] == [2, 2]  # said again, it is not counted again
    trip, ids = riding(inbox)
    inbox.retry(trip, 0, spent="failure")
    assert departed(inbox) == [trip]
    assert inbox.delivered(trip, {}, dict.fromkeys(ids, "all rows"), kept=False) == 2  # it has failed, and was counted, before
    trip, ids = riding(inbox, 1)
    assert inbox.delivered(trip, {}, {ids[0]: "all rows"}, kept=False) == 2  # one message says nothing of the others
    trip, ids = riding(inbox)
    assert inbox.delivered(trip, {}, {ids[0]: "all rows"}) == 0
    assert inbox.failed_in_row("orders") == 1


# Riding order


def test_messages_ride_by_event_time_then_sequencer(inbox):
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    inbox.board(
        "orders",
        [
            Arrival("late", b"", sent_at=noon, event_at=noon + timedelta(hours=1)),
            Arrival("second", b"", event_at=noon, subject="s1", sequencer="0B"),
            Arrival("first", b"", event_at=noon, subject="s2", sequencer="0A00"),
            Arrival("early", b"", sent_at=noon - timedelta(hours=1)),
            Arrival("now", b""),
            Arrival("also first", b"", event_at=noon, subject="s3", sequencer="0A"),
        ],
    )
    formed(inbox)
    [trip] = departed(inbox)
    order = ["early", "first", "also first", "second", "late", "now"]
    assert [message.key for message in inbox.messages_of(trip)] == order
    assert [inbox.messages(trip=trip)[number - 1].key for number in riders(inbox, trip).messages] == order


# Claims of trips of messages


def test_a_claim_of_a_trip_that_is_over_finds_nothing_to_do(depot, inbox):
    trip, ids = riding(inbox)
    inbox.split(trip, [ids[:1], ids[1:]])
    with pytest.raises(TripOver, match="split") as caught:
        depot.claim(trip, "run-1", lease_seconds=60)
    assert caught.value.trip.state == "split"
    one, two = departed(inbox)
    inbox.strand(one, ids[:1], "cannot be read", to_dead_letters=True)
    with pytest.raises(TripOver, match=r"stranded.*cannot be read"):
        depot.claim(one, "run-1", lease_seconds=60)
    inbox.cancel(two, "not today")
    with pytest.raises(TripOver, match=r"cancelled.*not today"):
        depot.claim(two, "run-1", lease_seconds=60)
    three, ids = riding(inbox)
    depot.claim(three, "run-1", lease_seconds=60)
    inbox.applied(three, ids)
    for run in ("run-1", "run-2"):
        with pytest.raises(TripOver, match="empty"):
            depot.claim(three, run, lease_seconds=60)


def test_a_revoked_run_is_told_so_even_if_its_trip_is_over(depot, inbox):
    trip, ids = riding(inbox)
    failed(depot, trip)
    inbox.split(trip, [ids])
    with pytest.raises(AttemptEnded, match="revoked") as told:
        depot.claim(trip, "run-1", lease_seconds=60)
    assert "ride again by themselves" in str(told.value)
    assert "drive the trip again" not in str(told.value)


@pytest.mark.parametrize("word", ["failed", "stuck", "rehearsed", "delivered"])
def test_no_word_of_a_run_changes_a_trip_that_is_over(depot, inbox, word):
    trip, ids = riding(inbox)
    failed(depot, trip)
    inbox.split(trip, [ids])
    before = depot.trip(trip)
    assert depot.finish_trip(trip, word, "zombie", attempt=1) == before
    assert before.ended_at is not None


def test_a_zombies_late_word_does_not_fail_what_was_retried(depot, inbox):
    trip, _ = riding(inbox)
    failed(depot, trip)
    inbox.retry(trip, 0, spent="failure")
    assert depot.finish_trip(trip, "failed", "zombie", attempt=1).state == "formed"
    departed(inbox)
    assert depot.finish_trip(trip, "failed", "zombie", attempt=1).state == "departed"
    depot.claim(trip, "run-2", lease_seconds=60)
    assert depot.finish_trip(trip, "failed", "real", attempt=2).state == "failed"


@pytest.mark.parametrize("state", ["driving", "formed", "departed", "split", "empty", "nonsense"])
def test_a_run_cannot_say_what_only_dispatching_says(depot, state):
    trip = depot.start_trip("orders", "ui", {})
    with pytest.raises(Misconfigured, match="delivered, failed, rehearsed or stuck"):
        depot.finish_trip(trip.id, state)


def test_attempts_keep_why_they_failed(depot, inbox):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.finish_trip(trip, "failed", "bad row", attempt=1, kind="poison", culprit=ids[1])
    depot.end_attempt(trip, 1, "revoked", "bad row")
    attempt = underway(inbox, trip).attempt
    assert (attempt.kind, attempt.culprit, attempt.outcome, attempt.error) == ("poison", ids[1], "revoked", "bad row")
    depot.claim(trip, "run-2", lease_seconds=60)
    depot.end_attempt(trip, 2, "failed", "gone", kind="died")
    assert (underway(inbox, trip).attempt.kind, underway(inbox, trip).attempt.culprit) == ("died", None)
    with pytest.raises(Misconfigured, match="transient"):
        depot.end_attempt(trip, 2, "failed", kind="nonsense")


# Settling


def test_underway_tells_what_settling_needs(depot, inbox):
    inbox.board("orders", arrivals(5))
    formed(inbox, batch=1)
    first, second, third, fourth, fifth = departed(inbox)
    depot.claim(second, "run-2", lease_seconds=60)
    failed(depot, third)
    depot.claim(third, "run-3", lease_seconds=60)
    depot.finish_trip(third, "failed", "boom", attempt=2)
    inbox.delivered(fourth, {}, {})
    depot.finish_trip(fourth, "delivered")
    inbox.retry(fifth, 60, spent="death")
    depot.start_trip("orders", "ui", {})
    found = inbox.underway("orders")
    assert [(one.trip.id, one.trip.state, riders(inbox, one.trip.id).messages) for one in found] == [
        (first, "departed", (1,)),
        (second, "driving", (2,)),
        (third, "failed", (3,)),
    ]
    assert [one.attempt and (one.attempt.attempt, one.attempt.run) for one in found] == [None, (1, "run-2"), (2, "run-3")]
    assert inbox.underway("invoices") == []


def test_nobody_is_told_who_rides_in_a_trip_that_somebody_else_has_settled(depot, inbox):
    """Else what is left aboard would be taken for the whole of it, and judged."""
    trip, ids = riding(inbox, 3)
    assert inbox.riders(trip, 0) is None
    assert inbox.riders(trip, 2) is None
    failed(depot, trip)
    assert inbox.riders(trip, 1).messages == tuple(ids)
    inbox.split(trip, [ids[:1]], launch=1)
    assert inbox.riders(trip, 1) is None


def test_a_retry_counts_what_it_spends(depot, inbox):
    trip, ids = riding(inbox)
    failed(depot, trip)
    for number, spent in enumerate(("failure", "death", None, "failure"), start=1):
        assert inbox.retry(trip, 0, spent=spent, launch=number) is True
        assert inbox.retry(trip, 0, spent=spent, launch=number) is False  # two settlers saw the same attempt
        assert depot.trip(trip).state == "formed"
        departed(inbox)
    found = depot.trip(trip)
    assert (found.failures, found.deaths, found.launches) == (2, 1, 5)
    assert inbox.retry(trip, 0, spent="failure", launch=4) is False  # it departed again in between
    assert set(states(inbox).values()) == {"aboard"}
    with pytest.raises(Misconfigured, match="nothing, not 'x'"):
        inbox.retry(trip, 0, spent="x")
    with pytest.raises(NoSuchTrip):
        inbox.retry("nowhere", 0, spent=None)
    assert ids == list(riders(inbox, trip).messages)


def test_while_an_attempt_is_live_nobody_settles(depot, inbox):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    assert inbox.retry(trip, 0, spent=None) is False
    assert inbox.split(trip, [ids]) == []
    assert inbox.strand(trip, ids, "no", to_dead_letters=True) is False
    assert riders(inbox, trip).messages == tuple(ids)
    depot.end_attempt(trip, 1, "revoked")
    assert inbox.retry(trip, 0, spent=None) is True


def test_a_split_puts_each_part_on_a_trip_and_the_rest_waits(depot, inbox):
    inbox.board("orders", arrivals(5))
    formed(inbox, parameters={"currency": "EUR"})
    [trip] = departed(inbox)
    failed(depot, trip)
    made = inbox.split(trip, [[1, 2], [4]])
    assert [[message.id for message in inbox.messages_of(one)] for one in made] == [[1, 2], [4]]
    part = depot.trip(made[0])
    assert (part.state, part.parent, part.trigger, part.parameters) == ("formed", trip, "queue", {"currency": "EUR"})
    assert (part.launches, part.failures) == (0, 0)
    assert depot.trip(trip).state == "split"
    assert states(inbox) == {1: "aboard", 2: "aboard", 3: "waiting", 4: "aboard", 5: "waiting"}
    assert inbox.messages_of(trip) == []
    assert inbox.split(trip, [[1]]) == []
    assert departed(inbox) == made


@pytest.mark.parametrize("parts", [[[1], []], [[1, 1]], [[1], [1, 2]], [[1, 99]]])
def test_a_split_that_makes_no_sense_changes_nothing(inbox, parts):
    trip, ids = riding(inbox)
    with pytest.raises(Misconfigured, match="cannot be split so"):
        inbox.split(trip, parts)
    assert riders(inbox, trip).messages == tuple(ids)


def test_a_split_keeps_the_order_of_a_group(depot, inbox):
    inbox.board("orders", grouped("a", "a", "b", "a", "b"))
    formed(inbox)
    [trip] = departed(inbox)
    for parts in ([[1], [2]], [[2]], [[1, 4]], [[1, 2, 4, 5]], [[3], [5]], [[1, 2], [4, 3, 5]]):
        with pytest.raises(Misconfigured, match="its group"):
            inbox.split(trip, parts)
    [first, second] = inbox.split(trip, [[1, 2], [3, 5]])  # by group, then by prefix
    assert states(inbox)[4] == "waiting"
    assert formed(inbox) == 0
    departed(inbox)
    inbox.delivered(second, {}, {})
    depot.finish_trip(second, "delivered")
    assert formed(inbox) == 0
    inbox.delivered(first, {}, {})
    depot.finish_trip(first, "delivered")
    assert formed(inbox) == 1


def test_stranding_some_lets_the_others_ride_on(depot, inbox):
    trip, ids = riding(inbox)
    failed(depot, trip)
    assert inbox.strand(trip, [ids[1]], "row 7 is broken", to_dead_letters=True) is True
    assert inbox.strand(trip, [ids[1]], "row 7 is broken", to_dead_letters=True) is False
    stranded = inbox.messages(state="stranded")[0]
    assert (stranded.id, stranded.error, stranded.to_dead_letters, stranded.trip) == (ids[1], "row 7 is broken", True, trip)
    assert depot.trip(trip).state == "split"
    [rest] = departed(inbox)
    assert riders(inbox, rest).messages == (ids[0], ids[2])
    assert depot.trip(rest).parent == trip


def test_stranding_all_ends_the_trip(depot, inbox):
    trip, ids = riding(inbox)
    failed(depot, trip)
    inbox.strand(trip, ids, "broken", to_dead_letters=False)
    found = depot.trip(trip)
    assert (found.state, found.error) == ("stranded", "broken")
    assert found.ended_at is not None
    assert counted(inbox) == {"stranded": 3}
    assert inbox.underway("orders") == []


def test_what_follows_a_stranded_one_of_its_group_waits(inbox):
    inbox.board("orders", grouped("a", "a", "b", "a", None))
    formed(inbox)
    [trip] = departed(inbox)
    inbox.strand(trip, [2], "no", to_dead_letters=False)
    assert states(inbox) == {1: "aboard", 2: "stranded", 3: "aboard", 4: "waiting", 5: "aboard"}
    [rest] = departed(inbox)
    inbox.strand(rest, [1], "no", to_dead_letters=False, halt_on_stranded=False)
    assert states(inbox) == {1: "stranded", 2: "stranded", 3: "aboard", 4: "waiting", 5: "aboard"}


def test_only_what_is_aboard_can_be_stranded(inbox):
    trip, ids = riding(inbox)
    for wrong in ([], [99], [ids[0], 99]):
        with pytest.raises(Misconfigured, match="not all aboard"):
            inbox.strand(trip, wrong, "no", to_dead_letters=False)
    assert riders(inbox, trip).messages == tuple(ids)


@pytest.mark.parametrize("noted", ["publication", "attempt"])
def test_after_a_publication_a_trip_only_rolls_forward(depot, inbox, noted):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    if noted == "publication":
        depot.record_publication(trip, 1, "warehouse", {})
    depot.end_attempt(trip, 1, "failed" if noted == "publication" else "published")
    for ask in (
        lambda: inbox.split(trip, [ids]),
        lambda: inbox.strand(trip, ids, "no", to_dead_letters=True),
        lambda: inbox.cancel(trip, "stop"),
    ):
        with pytest.raises(Refused, match="rolls forward"):
            ask()
    assert inbox.retry(trip, 60, spent="failure") is True
    assert depot.trip(trip).state == "stuck"
    assert riders(inbox, trip).messages == tuple(ids)


def test_delivered_messages_keep_how_many_rows_were_rejected(depot, inbox):
    trip, ids = riding(inbox, 4)
    inbox.delivered(trip, {ids[0]: 2, ids[1]: 0, ids[3]: 5, 999: 1}, {ids[3]: "all 5 rows were rejected", 999: "x"})
    found = [(message.state, message.rows_rejected, message.error, message.trip) for message in inbox.messages()]
    assert found == [
        ("delivered", 2, None, trip),
        ("delivered", 0, None, trip),
        ("delivered", 0, None, trip),
        ("quarantined", 5, "all 5 rows were rejected", trip),
    ]
    inbox.delivered(trip, {ids[0]: 7}, {ids[0]: "late"})
    assert counted(inbox) == {"delivered": 3, "quarantined": 1}
    assert inbox.messages()[0].rows_rejected == 2
    assert depot.trip(trip).state == "departed"


def test_what_an_earlier_trip_applied_leaves_this_one(depot, inbox):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    assert inbox.applied(trip, [ids[0], 999]) == 2
    message = inbox.messages()[0]
    assert (message.state, message.trip) == ("delivered", None)
    assert inbox.applied(trip, []) == 2
    assert depot.trip(trip).state == "driving"
    assert inbox.applied(trip, ids) == 0
    assert depot.trip(trip).state == "empty"
    assert counted(inbox) == {"delivered": 3}


def test_a_delivered_trip_is_not_empty(depot, inbox):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    inbox.delivered(trip, {}, {})
    assert inbox.applied(trip, ids) == 0
    assert depot.trip(trip).state == "driving"


# Cancelling


def test_cancelling_strands_the_messages_of_a_trip_that_nobody_drives(depot, inbox):
    inbox.board("orders", arrivals(2))
    formed(inbox)
    [trip] = depot.trips("orders", "formed")
    cancelled = inbox.cancel(trip.id, "wrong file")
    assert (cancelled.state, cancelled.error, cancelled.cancelled) == ("cancelled", "wrong file", "wrong file")
    assert inbox.cancel(trip.id, "again") == cancelled
    assert [(message.state, message.error, message.to_dead_letters) for message in inbox.messages()] == [
        ("stranded", "wrong file", False)
    ] * 2
    assert departed(inbox) == []


def test_cancelling_a_driven_trip_asks_its_run_to_stop(depot, inbox):
    trip, _ = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    assert depot.renew(trip, 1, 60) is True
    asked = inbox.cancel(trip, "stop it")
    assert (asked.state, asked.cancelled) == ("driving", "stop it")
    assert depot.renew(trip, 1, 60) is False
    assert depot.newest_attempt(trip).ended_at is None
    with pytest.raises(AttemptLive):
        depot.claim(trip, "run-2", lease_seconds=60)
    with pytest.raises(TripOver, match=r"asked to stop.*stop it"):
        depot.claim(trip, "run-1", lease_seconds=60)
    depot.finish_trip(trip, "failed", "stopped", attempt=1)
    depot.end_attempt(trip, 1, "revoked")
    with pytest.raises(TripOver, match=r"asked to stop.*stop it"):
        depot.claim(trip, "run-2", lease_seconds=60)
    assert inbox.retry(trip, 0, spent="failure") is False
    assert inbox.cancel(trip, "settled").state == "cancelled"
    assert {message.error for message in inbox.messages()} == {"stop it"}


def test_a_request_to_stop_that_comes_too_late_is_void(depot, inbox):
    trip, _ = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    inbox.cancel(trip, "stop it")
    depot.record_publication(trip, 1, "warehouse", {})
    assert depot.renew(trip, 1, 60) is True
    assert depot.claim(trip, "run-1", lease_seconds=60).attempt == 1
    depot.end_attempt(trip, 1, "failed")
    assert depot.finish_trip(trip, "failed", "second database", attempt=1).state == "stuck"
    assert depot.claim(trip, "run-2", lease_seconds=60).attempt == 2
    inbox.delivered(trip, {}, {})
    assert depot.finish_trip(trip, "delivered").state == "delivered"
    with pytest.raises(Refused, match="delivered"):
        inbox.cancel(trip, "stop it")


def test_a_trip_without_messages_is_cancelled_once_its_attempt_has_ended(depot, inbox):
    """Not by its run's word that it failed: it may be committed. One that is published is not stopped any more."""
    trip, other = (depot.start_trip("orders", "cron", {}).id for _ in range(2))
    for one in (trip, other):
        depot.claim(one, "run-1", lease_seconds=60)
        assert inbox.cancel(one, "stop it").state == "driving"
    depot.record_publication(other, 1, "warehouse", {})
    assert depot.finish_trip(other, "failed", "second database", attempt=1).state == "stuck"
    asked = depot.finish_trip(trip, "failed", "stopped", attempt=1)
    assert (asked.state, asked.error, asked.cancelled) == ("failed", "stopped", "stop it")
    assert inbox.cancel(trip, "again").state == "failed"
    depot.end_attempt(trip, 1, "revoked")
    with pytest.raises(TripOver, match=r"asked to stop.*stop it"):
        depot.claim(trip, "run-2", lease_seconds=60)
    ended = inbox.cancel(trip, "settled")
    assert (ended.state, ended.error, ended.ended_at is None) == ("cancelled", "stop it", False)


def test_cancelling_needs_a_reason_and_something_to_cancel(depot, inbox):
    trip, ids = riding(inbox)
    with pytest.raises(Misconfigured, match="reason"):
        inbox.cancel(trip, "")
    inbox.split(trip, [ids])
    with pytest.raises(Refused, match="split"):
        inbox.cancel(trip, "stop")
    with pytest.raises(NoSuchTrip):
        inbox.cancel("nowhere", "stop")


# Dead letters


def test_dead_letters_are_told_until_they_are_sent(inbox):
    trip, ids = riding(inbox)
    inbox.strand(trip, ids[:2], "no", to_dead_letters=True)
    [rest] = departed(inbox)
    inbox.strand(rest, ids[2:], "no", to_dead_letters=False)
    assert [message.id for message in inbox.dead_letters("orders", 1)] == ids[:1]
    assert [message.body for message in inbox.dead_letters("orders", 10)] == [b"body 0", b"body 1"]
    assert inbox.dead_letters("invoices", 10) == []
    inbox.sent_to_dead_letters(ids[:1])
    assert [message.id for message in inbox.dead_letters("orders", 10)] == ids[1:2]
    assert inbox.redrive("orders", ids=ids[1:2], reason="fixed").waiting == 1
    assert inbox.dead_letters("orders", 10) == []


# Round again


def stranded_with_row(depot, inbox):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_verdict(verdict(trip), [held_row(number, str(number)) for number in ids])
    depot.end_attempt(trip, 1, "revoked")
    inbox.strand(trip, ids, "no", to_dead_letters=True)
    return trip, ids


def test_a_stranded_message_that_arrives_again_is_redriven(depot, inbox):
    _, ids = stranded_with_row(depot, inbox)
    again = Arrival("k1", b"repaired", group="g", attributes={"bus-generation": 0})
    assert inbox.board("orders", [again, *arrivals(1, 1)]) == Boarded(redriven=1, duplicates=1, other_bodies=1)
    message = inbox.messages(key="k1")[0]
    assert (message.id, message.state, message.generation, message.part) == (ids[1], "waiting", 1, "")
    assert (message.body, message.group, message.trip, message.error, message.to_dead_letters) == (b"repaired", "g", None, None, False)
    assert [(row.message, row.state) for row in depot.quarantined(state=None)] == [
        (ids[0], "held"),
        (ids[1], "discarded"),
        (ids[2], "held"),
    ]
    assert "message redriven" in depot.quarantined(state="discarded")[0].reason


def test_a_person_redrives_by_state_or_by_id(depot, inbox):
    _, ids = stranded_with_row(depot, inbox)
    inbox.board("orders", [Arrival("bad", b"{", problem="not JSON"), Arrival("old", b"", datetime.now(UTC) - DAY)], horizon_seconds=60)
    assert inbox.redrive("orders", ids=ids[:1], reason="fixed").waiting == 1
    assert depot.quarantined(state="discarded")[0].reason == "message redriven: fixed"
    assert counted(inbox) == {"waiting": 1, "stranded": 2, "quarantined": 1, "held": 1}
    assert inbox.redrive("orders", states=("quarantined",), reason="fixed").waiting == 1
    assert inbox.redrive("invoices", reason="fixed").waiting == 0
    assert inbox.redrive("orders", reason="fixed").waiting == 3
    assert counted(inbox) == {"waiting": 5}
    assert {message.generation for message in inbox.messages()} == {1}
    assert depot.quarantined() == []


def reasons(inbox, *ids):
    return {number: [(one.what, one.reason, one.generation) for one in said] for number, said in inbox.decisions(ids).items()}


def test_what_people_decide_about_a_message_is_kept_each_time(inbox):
    trip, ids = riding(inbox, 2)
    inbox.strand(trip, ids, "no", to_dead_letters=True)
    for reason in ("first", "second"):
        inbox.redrive("orders", ids=ids[:1], reason=reason)
        formed(inbox)
        inbox.strand(*departed(inbox), ids[:1], "no", to_dead_letters=True)
    inbox.board("orders", [*arrivals(2), Arrival("new", b"")], dead_letters="third \x00")
    formed(inbox)
    inbox.delivered(*departed(inbox), {}, {})
    inbox.again(ids[1:], "fourth")
    thrice = [("redriven", "first", 1), ("redriven", "second", 2), ("from the dead letters", "third \\x00", 3)]
    assert reasons(inbox, *ids, 3, 99) == {
        ids[0]: thrice,
        ids[1]: [("from the dead letters", "third \\x00", 1), ("delivered again", "fourth", 2)],
        3: [("from the dead letters", "third \\x00", 0)],
    }
    newest = inbox.decisions(ids)[ids[0]][-1]
    assert abs(newest.at - datetime.now(UTC)) < timedelta(seconds=30)


def test_what_comes_by_itself_was_nobodys_decision(inbox):
    trip, ids = riding(inbox, 1)
    inbox.strand(trip, ids, "no", to_dead_letters=True)
    assert inbox.board("orders", arrivals(2)) == Boarded(redriven=1, waiting=1)
    assert inbox.board("orders", arrivals(2), dead_letters="once more") == Boarded(duplicates=2)
    assert reasons(inbox, *ids, 2) == {}


def test_of_a_cancelled_trip_its_messages_keep_the_reason(depot, inbox):
    trip, ids = riding(inbox, 2)
    depot.claim(trip, "run-1", lease_seconds=60)
    inbox.cancel(trip, "wrong prices")
    assert reasons(inbox, *ids) == {}  # it is driven still
    depot.end_attempt(trip, 1, "revoked")
    inbox.cancel(trip, "said again")
    inbox.cancel(trip, "said again")
    assert reasons(inbox, *ids) == {number: [("cancelled", "wrong prices", 0)] for number in ids}


def test_a_purge_forgets_decisions_with_their_message_only(depot, inbox):
    trip, ids = riding(inbox, 3)
    inbox.strand(trip, ids, "no", to_dead_letters=True)
    inbox.redrive("orders", reason="mended")
    formed(inbox)
    inbox.delivered(*departed(inbox), {}, {ids[2]: "all rows"})
    now = datetime.now(UTC) + DAY
    change(depot, "UPDATE depot_messages SET changed_at = :then WHERE id = :id", then=(now - 40 * DAY).replace(tzinfo=None), id=ids[0])
    assert inbox.purge("orders", now, now - 30 * DAY) == Purged(bodies=1, messages=1)
    assert sorted(reasons(inbox, *ids)) == ids[1:]
    assert inbox.purge("orders", now, now) == Purged(messages=1)
    assert sorted(reasons(inbox, *ids)) == ids[2:]


def test_many_are_redriven_and_sent_again_in_a_few_statements(depot, inbox):
    trip, ids = riding(inbox, 1000)
    inbox.strand(trip, ids, "no", to_dead_letters=True)
    statements = []
    sa.event.listen(depot._connections._engine(), "before_cursor_execute", lambda *given: statements.append(given[2]))
    assert inbox.redrive("orders", reason="fixed").waiting == 1000
    assert len(statements) < 12
    formed(inbox, batch=1000)
    inbox.delivered(*departed(inbox), {}, {})
    statements.clear()
    assert inbox.again(ids, "lost") == 1000
    assert len(statements) < 12
    statements.clear()
    assert len(inbox.decisions(ids)) == 1000
    assert len(statements) < 3


def test_a_redrive_may_be_of_a_span_of_time(depot, inbox):
    """From ``since``, and before ``until``."""
    trip, ids = riding(inbox, 4)
    inbox.strand(trip, ids, "no", to_dead_letters=True)
    days = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)]
    for number, day in zip(ids, days, strict=True):
        with depot._connections.writing() as connection:
            connection.execute(sa.update(schema.messages).where(schema.messages.c.id == number).values(received_at=day))
    assert (
        inbox.redrive("orders", since=days[3] + DAY, reason="x").waiting == inbox.redrive("orders", until=days[0], reason="x").waiting == 0
    )
    assert inbox.redrive("orders", since=days[1], until=days[2], reason="x").waiting == 1
    assert states(inbox) == {ids[0]: "stranded", ids[1]: "waiting", ids[2]: "stranded", ids[3]: "stranded"}
    with pytest.raises(Refused, match="were received then"):
        inbox.redrive("orders", ids=ids[2:], since=days[3], reason="x")
    assert inbox.redrive("orders", ids=ids[2:3], since=days[1], reason="x").waiting == 1
    assert inbox.redrive("orders", since=days[0], reason="x").waiting == 2


def test_a_redrive_is_all_or_nothing(depot, inbox):
    _, ids = stranded_with_row(depot, inbox)
    inbox.board("orders", arrivals(1, 50))
    for wrong in ([*ids, 4], [ids[0], 999]):
        with pytest.raises(Refused, match=r"1 of the .* are not stranded"):
            inbox.redrive("orders", ids=wrong, reason="fixed")
    with pytest.raises(Refused):
        inbox.redrive("invoices", ids=ids, reason="fixed")
    assert counted(inbox) == {"stranded": 3, "waiting": 1}
    with pytest.raises(Misconfigured, match="not delivered"):
        inbox.redrive("orders", states=("delivered",), reason="fixed")
    with pytest.raises(Misconfigured, match="reason"):
        inbox.redrive("orders", reason="")


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 10**30, -(10**30)])
def test_an_id_that_no_column_holds_is_one_that_is_not_there(depot, inbox, number):
    trip, [_, bad] = riding(inbox, 2)
    inbox.strand(trip, [bad], "broken", to_dead_letters=False)
    for ask in (
        lambda: inbox.redrive("orders", [bad, number], reason="r"),
        lambda: inbox.discard("orders", [bad, number], reason="r"),
        lambda: inbox.again([bad, number], "r"),
        lambda: depot.discard([number], "r"),
        lambda: depot.mark_released([number], trip),
    ):
        with pytest.raises(Refused, match=f"{number}.* are not "):
            ask()
    assert inbox.replay("orders", ids=[number]) == []
    assert [found.id for found in inbox.messages("orders", after=number)] == ([] if number > 0 else [1, 2])
    assert depot.quarantined(after=number) == []
    assert states(inbox)[bad] == "stranded"


def test_a_redriven_message_that_was_replaced_is_superseded(inbox):
    trip, [number] = riding(inbox, 1, subject="s", sequencer="1")
    inbox.strand(trip, [number], "no", to_dead_letters=False)
    inbox.board("orders", [event("newer", "2", "s")])
    assert inbox.redrive("orders", reason="fixed").waiting == 0
    assert counted(inbox) == {"waiting": 1, "superseded": 1}


# Given up for good


def test_what_is_discarded_is_no_newer_one(inbox):
    """Whoever gives up the newer event wants the older one, which was in its way no more."""
    trip, [old] = riding(inbox, 1, subject="s", sequencer="1")
    inbox.strand(trip, [old], "no", to_dead_letters=False)
    inbox.board("orders", [event("newer", "2", "s", problem="broken")])
    inbox.discard("orders", states=("quarantined",), reason="nobody can read it")
    assert inbox.redrive("orders", reason="then this one").waiting == 1
    inbox.board("orders", [event("newest", "9", "t", problem="broken")])
    inbox.discard("orders", states=("quarantined",), reason="nor this one")
    assert inbox.board("orders", [event("late", "8", "t")]) == Boarded(waiting=1)
    assert counted(inbox) == {"waiting": 2, "discarded": 2}


@pytest.mark.parametrize("decide", ["discard", "redrive"])
def test_many_are_decided_some_at_a_time(inbox, monkeypatch, decide):
    """So that whoever boards meanwhile waits for some of them, not for all."""
    inbox.board("orders", [Arrival(f"k{number}", b"", problem="no") for number in range(7)])
    at_once, given_up = [], getattr(messages, decide)

    def watched(connection, route, ids, *args, **kwargs):
        at_once.append(len(ids))
        return given_up(connection, route, ids, *args, **kwargs)

    monkeypatch.setattr(messages, decide, watched)
    monkeypatch.setattr("resources.depot.inbox.DECIDED_AT_ONCE", 3)
    assert getattr(inbox, decide)("orders", reason="all of them") == (Redriven(7) if decide == "redrive" else 7)
    assert at_once == [3, 3, 1]
    assert inbox.counts("orders").is_balanced


def test_a_discarded_message_is_kept_and_does_not_wake(depot, inbox):
    _, ids = stranded_with_row(depot, inbox)
    inbox.board("orders", [Arrival("bad", b"{", problem="not JSON"), Arrival("old", b"", datetime.now(UTC) - DAY)], horizon_seconds=60)
    assert inbox.discard("orders", ids[:1], reason="a test order \x00") == 1
    assert inbox.discard("orders", states=("quarantined",), reason="nobody can read it") == 1
    assert inbox.discard("invoices", reason="of another route") == 0
    assert counted(inbox) == {"discarded": 2, "stranded": 2, "held": 1}
    message = inbox.messages(key="k0")[0]
    assert (message.state, message.generation, message.body, message.error) == ("discarded", 0, b"body 0", "no")
    assert [message.id for message in inbox.dead_letters("orders", 10)] == ids[1:]
    assert reasons(inbox, ids[0], 4) == {
        ids[0]: [("discarded", "a test order \\x00", 0)],
        4: [("discarded", "nobody can read it", 0)],
    }
    [row] = depot.quarantined(state="discarded")
    assert (row.message, row.reason) == (ids[0], "message discarded: a test order \\x00")
    again = [Arrival("k0", b"mended"), Arrival("bad", b"{}")]
    assert inbox.board("orders", again) == Boarded(duplicates=2, other_bodies=2)
    assert inbox.board("orders", again, dead_letters="for others") == Boarded(duplicates=2, other_bodies=2)
    assert inbox.correct(inbox.messages(key="k0")[0], again[0]) is False
    assert inbox.rebuild("orders", again, {}) == {}
    assert inbox.redrive("orders", reason="all that waits for a person").waiting == 3
    assert counted(inbox) == {"discarded": 2, "waiting": 3}
    assert inbox.discard("orders", reason="nothing waits for a person") == 0


def test_who_discarded_a_message_takes_it_back(depot, inbox):
    _, ids = stranded_with_row(depot, inbox)
    inbox.discard("orders", reason="a mistake")
    assert inbox.redrive("orders", ids[:1], reason="no, it counts").waiting == 1
    assert inbox.redrive("orders", states=("discarded",), reason="they all count").waiting == 2
    assert counted(inbox) == {"waiting": 3}
    assert reasons(inbox, ids[0]) == {ids[0]: [("discarded", "a mistake", 0), ("redriven", "no, it counts", 1)]}
    formed(inbox)
    inbox.strand(*departed(inbox), ids, "no", to_dead_letters=True)
    assert inbox.discard("orders", ids, reason="no mistake") == 3
    assert reasons(inbox, ids[0])[ids[0]][-1] == ("discarded", "no mistake", 1)


def test_a_discarded_message_holds_its_group_no_longer(inbox):
    trip, ids = riding(inbox, 3, group="g")
    inbox.strand(trip, ids[:1], "poison", to_dead_letters=False)
    assert (formed(inbox), inbox.moving("orders"), inbox.halts("orders")[0].behind) == (0, 0, 2)
    inbox.discard("orders", ids[:1], reason="a test order")
    assert (inbox.halts("orders"), inbox.moving("orders"), formed(inbox)) == ([], 2, 1)
    assert [message.id for message in inbox.messages_of(departed(inbox)[-1])] == ids[1:]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("waiting", "waits for a trip; once it is aboard, `bus cancel TRIP"),
        ("aboard", r"rides in trip .*; `bus cancel 2"),
        ("delivered", "only there"),
        ("superseded", "a newer one of its subject"),
        ("discarded", "already"),
    ],
)
def test_what_is_not_given_up_is_not_discarded(depot, inbox, state, says):
    _, ids = stranded_with_row(depot, inbox)
    inbox.board("orders", [Arrival("other", b"")])
    change(depot, "UPDATE depot_messages SET state = :state, trip = '2026-a-trip' WHERE id = 4", state=state)
    with pytest.raises(Refused, match=f"message 4 of route 'orders' cannot be discarded: it .*{says}.*nothing was changed"):
        inbox.discard("orders", [*ids, 4], reason="x")
    assert set(states(inbox).values()) == {"stranded", state}


def test_discarding_is_all_or_nothing(depot, inbox):
    _, ids = stranded_with_row(depot, inbox)
    with pytest.raises(Refused, match=r"1 of the 2 messages .* are not stranded or quarantined or held messages of route 'orders';"):
        inbox.discard("orders", [ids[0], 999], reason="x")
    with pytest.raises(Refused, match="that were received then"):
        inbox.discard("orders", ids, since=datetime.now(UTC) + DAY, reason="x")
    with pytest.raises(Refused, match="of route 'invoices'"):
        inbox.discard("invoices", ids, reason="x")
    with pytest.raises(Misconfigured, match="not delivered"):
        inbox.discard("orders", states=("delivered",), reason="x")
    with pytest.raises(Misconfigured, match="reason"):
        inbox.discard("orders", ids, reason=" ")
    assert inbox.discard("orders", until=datetime.now(UTC) - DAY, reason="x") == 0
    assert counted(inbox) == {"stranded": 3}


def test_a_purge_takes_what_was_discarded_like_what_was_delivered(depot, inbox):
    _, ids = stranded_with_row(depot, inbox)
    inbox.discard("orders", reason="x")
    now = datetime.now(UTC) + DAY
    assert inbox.purgeable("orders", now, now - 30 * DAY) == inbox.purge("orders", now, now - 30 * DAY) == Purged(bodies=3)
    with pytest.raises(Refused, match="that have their bodies"):
        inbox.redrive("orders", ids[:1], reason="too late")
    assert depot.forget_trips("orders", now) == Forgotten()
    assert depot.forgettable_trips("orders", now) == Forgotten(1, 3)
    assert inbox.purgeable("orders", now, now) == inbox.purge("orders", now, now) == Purged(messages=3)
    assert (counted(inbox), reasons(inbox, *ids)) == ({}, {})
    assert depot.forget_trips("orders", now) == Forgotten(1, 3)


def test_delivering_again_is_a_new_part(depot, inbox):
    trip, ids = stranded_with_row(depot, inbox)
    inbox.redrive("orders", reason="fixed")
    formed(inbox)
    [trip] = departed(inbox)
    inbox.delivered(trip, {ids[0]: 1}, {})
    assert inbox.replay("orders") == ids
    assert inbox.replay("orders", since=datetime.now(UTC) + DAY) == []
    assert inbox.replay("orders", until=datetime.now(UTC) - DAY) == []
    assert inbox.replay("orders", since=datetime.now(UTC) - DAY, until=datetime.now(UTC) + DAY, ids=ids[:2]) == ids[:2]
    assert inbox.again(ids[:2], "the table was lost") == 2
    assert [(message.state, message.generation, message.part, message.rows_rejected) for message in inbox.messages()] == [
        ("waiting", 2, "2", 0),
        ("waiting", 2, "2", 0),
        ("delivered", 1, "", 0),
    ]
    assert counted(inbox) == {"waiting": 2, "delivered": 1}
    formed(inbox)
    [trip] = departed(inbox)
    inbox.strand(trip, ids[:2], "no", to_dead_letters=False)
    inbox.redrive("orders", reason="fixed")
    assert [(message.generation, message.part) for message in inbox.messages()][:2] == [(3, "2"), (3, "2")]
    with pytest.raises(Refused, match="not delivered"):
        inbox.again(ids, "all of them")
    assert counted(inbox) == {"waiting": 2, "delivered": 1}
    with pytest.raises(Misconfigured, match="reason"):
        inbox.again(ids[2:], "")


def test_a_replay_leaves_out_what_was_replaced(inbox):
    for number in (1, 2):
        trip, _ = riding(inbox, 1, subject="s", sequencer=str(number))
        inbox.delivered(trip, {}, {})
    assert inbox.replay("orders") == [2]


# Rows of messages


def test_rows_keep_their_message_and_are_released_only_if_it_was_delivered(depot, inbox):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_verdict(verdict(trip), [held_row(number, str(number)) for number in (*ids, None)])
    inbox.delivered(trip, {ids[0]: 1}, {ids[1]: "all rows were rejected"})
    depot.finish_trip(trip, "delivered")
    rows = depot.quarantined()
    assert [(row.message, row.message_state) for row in rows] == [
        (ids[0], "delivered"),
        (ids[1], "quarantined"),
        (ids[2], "delivered"),
        (None, None),
    ]
    assert {(one.rows, one.message, one.message_state) for one in depot.count_quarantined("orders")} == {
        (2, ids[0], "delivered"),
        (1, ids[1], "quarantined"),
        (1, None, None),
    }
    release = depot.start_trip("orders", "release", {})
    with pytest.raises(Refused, match="bus redrive"):
        depot.mark_released([row.id for row in rows], release.id)
    assert len(depot.quarantined(state="held")) == 4
    depot.mark_released([row.id for row in rows if row.message != ids[1]], release.id)
    assert inbox.redrive("orders", reason="contract fixed").waiting == 1
    assert [row.state for row in depot.quarantined(state=None)] == ["released", "discarded", "released", "released"]


def test_rows_of_messages_that_leave_their_trip_are_not_held_twice(depot, inbox):
    trip, ids = riding(inbox)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_verdict(verdict(trip), [held_row(number, str(number)) for number in ids])
    depot.end_attempt(trip, 1, "revoked")
    inbox.strand(trip, ids[:1], "no", to_dead_letters=False)
    assert [(row.message, row.state) for row in depot.quarantined(state=None)] == [
        (ids[0], "held"),
        (ids[1], "discarded"),
        (ids[2], "discarded"),
    ]


def test_rows_of_a_message_that_arrives_again_are_not_held_twice(depot, inbox):
    trip, [number] = riding(inbox, 1)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_verdict(verdict(trip), [held_row(number)])
    inbox.delivered(trip, {number: 1}, {number: "none of its rows was delivered"})
    depot.finish_trip(trip, "delivered")
    assert inbox.board("orders", arrivals(1)).redriven == 1
    [row] = depot.quarantined(state=None)
    assert (row.state, row.message) == ("discarded", number)


@pytest.mark.parametrize(
    ("beside", "at"),
    [
        ("unrelease", "check_none_rides"),
        ("unrelease and release", "check_none_rides"),
        ("release", "check_none_rides"),
        ("release", "discard_of_messages"),
    ],
)
def test_a_row_that_is_held_or_released_beside_a_replay_lands_once(depot, inbox, url, monkeypatch, at, beside):
    """Its message brings it, or its release, whichever comes first: between two statements of ``again`` it changes in no way."""
    trip, [number] = riding(inbox, 1)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_verdict(verdict(trip), [held_row(number)])
    inbox.delivered(trip, {number: 1}, {})
    depot.finish_trip(trip, "delivered")
    [row], release, other = depot.quarantined(), depot.start_trip("orders", "release", {}).id, Depot(url)
    if beside != "release":
        depot.mark_released([row.id], release)
        inbox.cancel(release, "wrong rows")

    def changed():
        if beside != "release":
            other.unrelease(release)
        if beside != "unrelease":
            another = other.start_trip("orders", "release", {}).id
            other.mark_released([row.id], another)
            other.finish_trip(another, "delivered")

    real = getattr(quarantine, at)
    with ThreadPoolExecutor(1) as pool:
        changing = []

        def meanwhile(*arguments):
            if not changing:
                changing.append(pool.submit(changed))
                wait(changing, timeout=0.5)
            return real(*arguments)

        monkeypatch.setattr(quarantine, at, meanwhile)
        with suppress(Refused):
            inbox.again([number], "all of it")
        with suppress(Refused):
            changing[0].result()
    other.close()
    [row] = depot.quarantined(state=None)
    by_its_message, by_a_release = states(inbox)[number] == "waiting", row.state != "discarded"
    assert by_its_message != by_a_release


def test_rows_are_not_held_again_while_somebody_drives_their_release(depot, inbox):
    trip, [number] = riding(inbox, 1)
    depot.claim(trip, "run-1", lease_seconds=60)
    depot.record_verdict(verdict(trip), [held_row(number)])
    inbox.delivered(trip, {number: 1}, {})
    depot.finish_trip(trip, "delivered")
    [row], release = depot.quarantined(), depot.start_trip("orders", "release", {}).id
    depot.mark_released([row.id], release)
    depot.claim(release, "run-2", lease_seconds=60)
    assert inbox.cancel(release, "wrong rows").state == "driving"
    with pytest.raises(Refused, match="it may be committing"):
        depot.unrelease(release)
    depot.end_attempt(release, 1, "revoked")
    inbox.cancel(release, "wrong rows")
    assert depot.unrelease(release) == 1


# Looking


def test_messages_are_listed_by_what_is_asked(depot, inbox):
    trip, ids = riding(inbox)
    inbox.board("orders", arrivals(2, 10))
    inbox.board("invoices", arrivals(1))
    assert [message.id for message in inbox.messages(limit=2)] == [1, 2]
    assert [message.id for message in inbox.messages(limit=2, after=2)] == [3, 4]
    assert [message.id for message in inbox.messages(trip=trip)] == ids
    assert [message.id for message in inbox.messages("orders", "waiting")] == [4, 5]
    assert [message.route for message in inbox.messages(key="k0")] == ["orders", "invoices"]
    assert [message.id for message in inbox.messages(since=datetime.now(UTC) - DAY, after=4)] == [5, 6]
    assert inbox.messages(since=datetime.now(UTC) + DAY) == []


def test_counts_have_every_state_and_the_oldest_that_waits(inbox):
    none = inbox.counts("orders")
    assert (set(none.by_state.values()), none.oldest_waiting, none.duplicates, none.paused_at) == ({0}, None, 0, None)
    trip, ids = riding(inbox, 4)
    inbox.delivered(trip, {}, {ids[0]: "all rows"})
    trip, ids = riding(inbox, 2)
    inbox.strand(trip, ids[:1], "no", to_dead_letters=False)
    inbox.board("orders", [Arrival("w", b""), event("s2", "2"), event("s1", "1"), Arrival("k0", b"", problem="x")])
    counts = inbox.counts("orders")
    assert counts.by_state == {
        "waiting": 2,
        "aboard": 1,
        "delivered": 3,
        "quarantined": 1,
        "stranded": 1,
        "superseded": 1,
        "held": 0,
        "discarded": 0,
    }
    assert counts.oldest_waiting == inbox.messages(key="w")[0].received_at
    assert counts.duplicates == 1


def test_who_waits_behind_a_stranded_message_is_told_apart_from_who_just_waits(depot, inbox):
    assert (inbox.halts("orders"), inbox.boardable("orders")) == ([], (0, None))
    trip, (stranded,) = riding(inbox, 1, group="a")
    failed(depot, trip)
    inbox.strand(trip, [stranded], "poison", to_dead_letters=False)
    inbox.board("orders", arrivals(2, 10, group="a"))
    behind = inbox.messages("orders", "waiting")
    assert inbox.halts("orders") == [Halt(stranded, 2, behind[0].received_at)]
    assert inbox.boardable("orders") == (0, None)
    assert inbox.boardable("orders", halt_on_stranded=False) == (2, behind[0].received_at)
    inbox.board("orders", [*arrivals(1, 20, group="b"), *arrivals(1, 30)])
    assert inbox.halts("orders") == [Halt(stranded, 2, behind[0].received_at)]
    assert inbox.boardable("orders") == (2, inbox.messages(key="k20")[0].received_at)
    assert (inbox.halts("invoices"), inbox.boardable("invoices")) == ([], (0, None))
    assert formed(inbox) == 1
    inbox.board("orders", arrivals(1, 40, group="b"))
    assert inbox.boardable("orders") == (0, None)  # one of its group is aboard


# Forgetting


def test_a_purge_takes_bodies_then_keys_and_old_arrivals_are_held(depot, inbox):
    now = datetime.now(UTC)
    old, oldest = now - 10 * DAY, now - 40 * DAY
    trip, ids = riding(inbox, 4)
    inbox.delivered(trip, {}, {ids[3]: "all rows"})
    inbox.board("orders", arrivals(1, 10))
    for number, then in ((ids[0], oldest), (ids[1], old), (ids[3], oldest), (5, oldest)):
        change(depot, "UPDATE depot_messages SET changed_at = :then WHERE id = :id", then=then.replace(tzinfo=None), id=number)
    assert inbox.purge("invoices", now, oldest) == Purged()
    assert inbox.purge("orders", now - 5 * DAY, now - 30 * DAY) == Purged(bodies=1, messages=1)
    assert [(message.id, message.body is None, message.state) for message in inbox.messages("orders")] == [
        (ids[1], True, "delivered"),
        (ids[2], False, "delivered"),
        (ids[3], False, "quarantined"),
        (5, False, "waiting"),
    ]
    assert counted(inbox) == {"waiting": 1, "delivered": 2, "quarantined": 1}
    assert inbox.replay("orders") == [ids[2]]
    with pytest.raises(Refused, match="have their bodies"):
        inbox.again([ids[1]], "x")
    late = [Arrival("k0", b"", sent_at=now - 31 * DAY), Arrival("k1", b"", sent_at=oldest), Arrival("fresh", b"", sent_at=now - DAY)]
    assert inbox.board("orders", late) == Boarded(held=1, duplicates=1, waiting=1)
    inbox.purge("orders", now - 5 * DAY, now - 35 * DAY)  # the horizon does not move back
    assert inbox.board("orders", [Arrival("k99", b"", sent_at=now - 31 * DAY)]) == Boarded(held=1)
    with pytest.raises(Misconfigured, match="kept longer"):
        inbox.purge("orders", now - 30 * DAY, now - 5 * DAY)


def test_ids_of_forgotten_messages_are_not_handed_out_again(inbox):
    trip, ids = riding(inbox)
    inbox.delivered(trip, {}, {})
    now = datetime.now(UTC) + DAY
    assert inbox.purge("orders", now, now) == Purged(messages=3)
    inbox.board("orders", arrivals(1, 20))
    assert inbox.messages()[0].id > max(ids)


def a_month_ago(depot, *trips):
    """As if these trips had ended then; all of them, if none is named."""
    then, every = (datetime.now(UTC) - 40 * DAY).replace(tzinfo=None), [trip.id for trip in depot.trips(limit=1000)]
    for trip in trips or every:
        change(depot, "UPDATE depot_trips SET created_at = :then, ended_at = :then WHERE id = :trip", then=then, trip=trip)


def person_trip(depot, state="delivered", rows=0, run="run-1", **values):
    trip = depot.start_trip("orders", "person", {}, **values).id
    depot.claim(trip, run, lease_seconds=60)
    depot.record_verdict(verdict(trip), [held_row(None, str(number)) for number in range(rows)])
    depot.end_attempt(trip, 1, "published" if state == "delivered" else "failed")
    if state == "delivered":
        depot.record_publication(trip, 1, "warehouse", {})
    depot.finish_trip(trip, state)
    return trip


def row_counts(depot):
    with depot._connections.reading() as connection:
        tables = (schema.trips, schema.attempts, schema.verdicts, schema.publications, schema.quarantine)
        return [connection.scalar(sa.select(sa.func.count()).select_from(table)) for table in tables]


def test_ended_trips_are_forgotten_with_all_that_hangs_on_them(depot, inbox):
    now = datetime.now(UTC)
    person_trip(depot)
    young, trip = person_trip(depot), person_trip(depot, rows=2)
    depot.discard([row.id for row in depot.quarantined(trip=trip)], "no use")
    riding(inbox, 2)
    a_month_ago(depot, *(one.id for one in depot.trips() if one.id != young))
    assert depot.forget_trips("invoices", now) == Forgotten()
    assert depot.forget_trips("orders", now - 50 * DAY) == Forgotten()
    assert depot.forgettable_trips("orders", now - 30 * DAY) == Forgotten(2, 2)
    assert depot.forget_trips("orders", now - 30 * DAY) == Forgotten(2, 2)
    assert depot.forget_trips("orders", now - 30 * DAY) == Forgotten()
    assert {one.id: one.state for one in depot.trips()} == {young: "delivered", inbox.messages()[0].trip: "departed"}
    assert row_counts(depot) == [2, 1, 1, 1, 0]


@pytest.mark.parametrize("state", ["failed", "stuck", "formed", "departed", "driving"])
def test_a_trip_that_can_still_be_driven_is_not_forgotten(depot, state):
    trip = person_trip(depot)
    change(depot, "UPDATE depot_trips SET state = :state WHERE id = :trip", state=state, trip=trip)
    a_month_ago(depot)
    assert depot.forget_trips("orders", datetime.now(UTC)) == depot.forgettable_trips("orders", datetime.now(UTC)) == Forgotten()


def test_a_trip_is_kept_as_long_as_a_message_of_it(depot, inbox):
    """Delivered ones go with their keys; stranded ones wait for a person."""
    trip, ids = riding(inbox)
    failed(depot, trip)
    inbox.strand(trip, ids[:1], "poison", to_dead_letters=False)
    formed(inbox)
    [other] = departed(inbox)
    failed(depot, other)
    inbox.delivered(other, {}, {})
    depot.finish_trip(other, "delivered")
    a_month_ago(depot)
    month = datetime.now(UTC) - 30 * DAY
    assert depot.forget_trips("orders", month) == Forgotten()
    change(depot, "UPDATE depot_messages SET changed_at = :then", then=(month - DAY).replace(tzinfo=None))
    assert depot.forgettable_trips("orders", month) == Forgotten(1)
    assert inbox.purge("orders", month, month) == Purged(messages=2)
    assert depot.forget_trips("orders", month) == Forgotten(1)
    assert [one.id for one in depot.trips()] == [trip]
    inbox.redrive("orders", reason="mended")
    assert depot.forget_trips("orders", month) == Forgotten(1)


def test_held_rows_keep_their_trip_and_a_release_that_is_not_delivered_too(depot):
    now, trip = datetime.now(UTC), person_trip(depot, rows=2)
    first, second = (row.id for row in depot.quarantined())
    release = person_trip(depot, "failed", parent=trip, run="run-2")
    depot.mark_released([first], release)
    a_month_ago(depot)
    assert depot.forget_trips("orders", now) == Forgotten()
    change(depot, "UPDATE depot_trips SET state = 'cancelled' WHERE id = :trip", trip=release)
    assert depot.forget_trips("orders", now) == Forgotten()
    depot.unrelease(release)
    assert depot.forget_trips("orders", now) == Forgotten(1)
    another = person_trip(depot, run="run-3")
    depot.mark_released([first], another)
    depot.discard([second], "no use")
    a_month_ago(depot, trip)
    assert depot.forget_trips("orders", now - DAY) == Forgotten()  # the release's account counts its rows
    a_month_ago(depot)
    assert depot.forgettable_trips("orders", now) == Forgotten(2, 2)
    assert depot.forget_trips("orders", now) == Forgotten(2, 2)
    assert row_counts(depot) == [0, 0, 0, 0, 0]


def test_a_trip_is_kept_as_long_as_what_was_split_off_it(depot, inbox, monkeypatch):
    monkeypatch.setattr("resources.depot.forgetting.TRIPS_AT_ONCE", 1)
    trip, ids = riding(inbox)
    failed(depot, trip)
    parts = inbox.split(trip, [ids[:1], ids[1:]])
    for part in departed(inbox):
        failed(depot, part)
        inbox.delivered(part, {}, {})
        depot.finish_trip(part, "delivered")
    now = datetime.now(UTC) + DAY
    inbox.purge("orders", now, now)
    a_month_ago(depot, trip, parts[0])
    assert depot.forget_trips("orders", now - 10 * DAY) == Forgotten(1)
    assert {one.id for one in depot.trips()} == {trip, parts[1]}
    a_month_ago(depot)
    assert depot.forget_trips("orders", now - 10 * DAY) == Forgotten(2)


# Rebuilding


def test_a_rebuilt_message_waits_unless_the_destination_has_it(inbox):
    remembered = {"k1": Remembered("", "t1"), "k2": Remembered("3", "t3"), "k3": Remembered("", None)}
    assert inbox.rebuild("orders", arrivals(4), remembered) == {"waiting": 2, "delivered": 2}
    found = {m.key: (m.state, m.generation, m.part, m.trip) for m in inbox.messages("orders")}
    assert found == {
        "k0": ("waiting", 0, "", None),
        "k1": ("delivered", 0, "", "t1"),
        "k2": ("delivered", 3, "3", "t3"),
        "k3": ("waiting", 0, "", None),
    }
    assert counted(inbox) == {"waiting": 2, "delivered": 2}


def test_a_rebuilt_message_that_is_sent_again_gets_a_part_that_has_no_receipt_yet(inbox):
    inbox.rebuild("orders", arrivals(1), {"k0": Remembered("3", "t3")})
    inbox.again(inbox.replay("orders"), "for a test")
    [message] = inbox.messages("orders")
    assert (message.state, message.part) == ("waiting", "4")


def test_rebuilding_twice_or_what_is_known_changes_nothing(depot, inbox):
    trip, _ = riding(inbox, 2)
    before = inbox.messages("orders")
    assert inbox.rebuild("orders", arrivals(2), {"k0": Remembered("", "other")}) == {}
    assert inbox.rebuild("orders", [*arrivals(3), *arrivals(3)], {}) == {"waiting": 1}
    assert inbox.rebuild("orders", arrivals(3), {}) == {}
    assert inbox.messages("orders")[:2] == before
    assert inbox.counts("orders").duplicates == 0
    assert len(inbox.messages_of(trip)) == 2


def test_what_could_not_be_decoded_and_what_is_older_than_the_keys_is_rebuilt_as_it_would_be_boarded(depot, inbox):
    long_ago = datetime.now(UTC) - 90 * DAY
    inbox.purge("orders", datetime.now(UTC), datetime.now(UTC) - 30 * DAY)
    made = [Arrival("a", b"{", problem="no JSON"), Arrival("b", b"{}", sent_at=long_ago), Arrival("c", b"{}", sent_at=long_ago)]
    assert inbox.rebuild("orders", made, {"c": Remembered("", "t1")}) == {"quarantined": 1, "held": 1, "delivered": 1}


def test_an_older_one_of_its_subject_is_rebuilt_as_superseded(inbox):
    assert inbox.rebuild("orders", [event("a", "1"), event("b", "2"), event("c", "3")], {"a": Remembered("", "t1")}) == {
        "delivered": 1,
        "superseded": 1,
        "waiting": 1,
    }
    assert counted(inbox) == {"delivered": 1, "superseded": 1, "waiting": 1}
    assert {m.key: m.state for m in inbox.messages("orders")} == {"a": "delivered", "b": "superseded", "c": "waiting"}


def quarantined(inbox, *keys, **more):
    inbox.board("orders", [Arrival(key, b"{", problem="no JSON", **more) for key in keys])


def test_who_boards_hears_of_corrections_once_they_are_kept(inbox):
    """Of what waits again with another body, and of nothing else; others board meanwhile."""
    quarantined(inbox, "same", "other", "twice")
    inbox.board("orders", [Arrival("waits", b"1")])
    told, refused = [], []
    came = [Arrival("same", b"{"), Arrival("other", b"2"), Arrival("twice", b"2"), Arrival("twice", b"3"), Arrival("waits", b"2")]

    def refuse(taken):
        refused.extend(taken)
        inbox.board("orders", [Arrival("meanwhile", b"1")])
        raise Transient("the archive does not answer")

    with pytest.raises(Transient, match="does not answer"):
        inbox.board("orders", came, corrected=refuse)
    assert counted(inbox) == {"waiting": 5}
    assert [one.arrival for one in refused] == [Arrival("other", b"2"), Arrival("twice", b"2")]
    assert {one.at for one in refused} == {message.changed_at for message in inbox.messages() if message.key in ("other", "twice")}
    assert inbox.board("orders", [*came, Arrival("new", b"1")], corrected=told.extend).duplicates == 5
    assert told == refused
    assert {message.key: message.body for message in inbox.messages()} == {
        "same": b"{",
        "other": b"2",
        "twice": b"2",
        "waits": b"1",
        "meanwhile": b"1",
        "new": b"1",
    }


def test_what_is_delivered_again_by_a_depot_from_before_it_was_delivered_again_gets_a_receipt_of_its_own(inbox):
    """The destination remembers the part that this depot would give next: with it the replay would be found applied, and bring nothing."""
    trip, ids = riding(inbox, 2)
    inbox.delivered(trip, {}, {})
    before = {message.key: message.generation for message in inbox.messages()}
    inbox.rebuild("orders", arrivals(2), {"k0": Remembered("3", "t3"), "k1": Remembered("", trip)})
    assert {message.key: message.generation for message in inbox.messages()} == before | {"k0": 3}
    inbox.again(ids, "the report was wrong")
    assert {message.key: message.part for message in inbox.messages()} == {"k0": "4", "k1": "1"}


def at(hour):
    return datetime(2026, 7, 1, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    "older",
    [
        pytest.param(Arrival("a", b"1", at(10)), id="it was kept and not deleted from the queue, and comes again"),
        pytest.param(Arrival("a", b"1", at(14), generation=0), id="its copy was among the dead letters"),
    ],
)
def test_a_body_does_not_come_back_that_was_corrected(inbox, older):
    """Though the message is set aside again, and waits for what corrects it."""
    told = []
    inbox.board("orders", [Arrival("a", b"1", at(10), problem="no JSON")])
    for body, sent in ((b"2", at(11)), (b"3", at(12))):
        inbox.board("orders", [Arrival("a", body, sent)], corrected=told.extend)
        formed(inbox, batch=1)
        (trip,) = departed(inbox)
        inbox.cancel(trip, "set aside")
    boarded = inbox.board("orders", [older], corrected=told.extend)
    assert (boarded.duplicates, boarded.other_bodies, boarded.redriven) == (1, 1, 0)
    (message,) = inbox.messages()
    assert (message.state, message.body) == ("stranded", b"3")
    assert [one.arrival.body for one in told] == [b"2", b"3"]
    newest = Arrival("a", b"3", at(13), generation=message.generation)
    assert inbox.board("orders", [newest]).redriven == 1
    assert inbox.counts("orders").is_balanced


def test_what_corrects_a_correction_is_later_even_where_the_clock_was_set_back(inbox, monkeypatch):
    quarantined(inbox, "a")
    told = []
    inbox.board("orders", [Arrival("a", b"1")], corrected=told.extend)
    formed(inbox, batch=1)
    (trip,) = departed(inbox)
    inbox.cancel(trip, "set aside")
    monkeypatch.setattr(boarding, "now", lambda connection: datetime(2020, 1, 1, tzinfo=UTC))
    inbox.board("orders", [Arrival("a", b"1", problem="no JSON"), Arrival("a", b"2")], corrected=told.extend)
    first, again, second = told
    assert (again.arrival.body, again.at, second.arrival.body) == (b"1", first.at, b"2")
    assert second.at > first.at
    assert [one.generation for one in inbox.decisions([1])[1] if one.what == "corrected"] == [1, 2]


def test_a_message_is_corrected_unless_it_rides_or_has_ended(depot, inbox):
    quarantined(inbox, "quarantined", group="a")
    inbox.board("orders", [Arrival("held", b"1", datetime(2020, 1, 1, tzinfo=UTC))], horizon_seconds=60)
    riding(inbox, 1)
    inbox.board("orders", [event("older", "1"), event("newer", "2")])
    known = {message.key: message for message in inbox.messages()}
    assert {key: inbox.correct(message, Arrival(key, b"2")) for key, message in known.items()} == {
        "quarantined": True,
        "held": True,
        "k2": False,
        "older": False,
        "newer": True,
    }
    found = {message.key: (message.state, message.body, message.generation, message.group, message.error) for message in inbox.messages()}
    assert found["quarantined"] == ("waiting", b"2", 1, "a", None)
    assert found["held"] == ("waiting", b"2", 1, None, None)
    assert found["k2"][:3] == ("aboard", b"body 2", 0)
    assert inbox.correct(known["quarantined"], Arrival("quarantined", b"3")) is False  # it was sent round again since it was read
    assert inbox.counts("orders").is_balanced


def test_two_that_rebuild_and_board_at_once_make_one_message_of_each_key(url, inbox):
    inbox.live("orders")
    rebuilds = "for n in range(0, 300, 10): inbox.rebuild('orders', [Arrival(f'k{i}', b'{}') for i in range(n, n + 10)], {})"
    boards = "for n in range(0, 300, 10): inbox.board('orders', [Arrival(f'k{i}', b'{}') for i in range(n, n + 10)])"
    together([child(url, rebuilds), child(url, boards), child(url, rebuilds)])
    assert counted(inbox) == {"waiting": 300}


def test_it_tells_which_keys_it_knows_and_of_which_routes(inbox):
    assert inbox.routes() == []
    inbox.board("orders", [*arrivals(1), Arrival("bad", b"{", problem="no JSON"), Arrival("x" * 900, b"")])
    assert inbox.states("orders", ["k0", "bad", "nobody", "x" * 900]) == {"k0": "waiting", "bad": "quarantined", "x" * 900: "waiting"}
    assert inbox.states("others", ["k0"]) == {}
    assert inbox.routes() == ["orders"]


def test_what_could_be_purged_is_what_is_purged(depot, inbox):
    trip, _ = riding(inbox, 4)
    inbox.delivered(trip, {}, {})
    inbox.board("orders", [Arrival("waits", b"{}")])
    change(depot, "UPDATE depot_messages SET changed_at = :then WHERE key = 'k0'", then="2026-01-01 00:00:00.000000+00")
    now = datetime.now(UTC) + DAY
    for keep in (now - 30 * DAY, now - 3650 * DAY, now):
        said = inbox.purgeable("orders", now, keep)
        assert inbox.purgeable("orders", now, keep) == said
        assert inbox.purge("orders", now, keep) == said
        assert inbox.horizon("orders") >= keep
    assert counted(inbox) == {"waiting": 1}
    with pytest.raises(Misconfigured, match="keys are kept longer"):
        inbox.purgeable("orders", now, now + DAY)


# Many at once


def test_two_dispatchers_at_once_put_no_message_into_two_trips(url):
    """Boards, forms and departs in threads of several depots while trips are delivered."""
    depots = [Depot(url) for _ in range(3)]
    depots[0].upgrade()
    stop, departures, seen = threading.Event(), [], []

    def dispatch(depot):
        mine = random.Random(id(depot))
        while not stop.is_set():
            depot.inbox.form("orders", batch=mine.randint(1, 7), max_wait_seconds=0, max_trips=6)
            seen.append(sum(len(depot.trips("orders", state, limit=99)) for state in ("formed", "departed")))
            departures.extend(depot.inbox.depart("orders", max_in_flight=4, limit=mine.randint(1, 4)))
            for one in depot.inbox.underway("orders"):
                depot.inbox.delivered(one.trip.id, {}, {})
                depot.finish_trip(one.trip.id, "delivered")

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(dispatch, depot) for depot in depots]
        boarding = [pool.submit(depots[0].inbox.board, "orders", arrivals(40, start)) for start in range(0, 200, 20)]
        for one in boarding:
            one.result()
        deadline = time.monotonic() + 60
        while depots[0].inbox.live("orders") and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        for one in running:
            one.result()
    assert counted(depots[0].inbox) == {"delivered": 220}
    assert Counter((one.trip, one.launch) for one in departures).most_common(1)[0][1] == 1
    assert sum(one.messages for one in departures) == 220
    assert all(one.messages for one in departures)
    assert max(seen) <= 12  # two listings, each true at its own moment
    for depot in depots:
        depot.close()


def test_of_two_processes_forming_and_departing_each_trip_goes_to_one(url, inbox):
    inbox.board("orders", [Arrival(f"k{number}", b"", group=f"g{number % 7}" if number % 2 else None) for number in range(200)])
    code = """
for _ in range(30):
    inbox.form("orders", batch=5, max_wait_seconds=0, max_trips=10)
    for one in inbox.depart("orders", max_in_flight=10, limit=3):
        print(f"{one.trip}:{one.launch}:{one.messages}", flush=True)
"""
    answers = together([child(url, code) for _ in range(2)])
    gone = [text.split(":") for answer in answers for text in answer]
    assert len({trip for trip, _, _ in gone}) == len(gone) == 10
    assert len(inbox.underway("orders")) == 10
    trips = [one.trip.id for one in inbox.underway("orders")]
    aboard = [
        (*one, trip)
        for trip, of in zip(trips, [riders(inbox, trip) for trip in trips], strict=True)
        for one in zip(of.messages, of.groups, strict=True)
    ]
    assert len({number for number, _, _ in aboard}) == len(aboard) == sum(int(messages) for _, _, messages in gone)
    for group in {group for _, group, _ in aboard if group}:
        assert len({trip for _, found, trip in aboard if found == group}) == 1


def test_two_processes_boarding_the_same_messages_keep_each_once(url, inbox):
    code = """
import random
keys = list(range(300)); random.Random(int(sys.argv[2])).shuffle(keys)
waiting = 0
for start in range(0, 300, 30):
    some = [Arrival(f"k{key}", b"", subject=f"s{key % 5}", sequencer=f"{key:04X}") for key in keys[start:start + 30]]
    done = inbox.board("orders", some); waiting += done.waiting + done.superseded
print(waiting)
"""
    answers = together([child(url, code, str(number)) for number in (1, 2)])
    assert sum(int(answer[0]) for answer in answers) == 300
    counts = inbox.counts("orders")
    assert (counts.duplicates, counts.by_state["waiting"], counts.by_state["superseded"]) == (300, 5, 295)
    assert {message.key for message in inbox.messages(state="waiting")} == {f"k{number}" for number in range(295, 300)}


def test_settling_and_claiming_at_once_never_deadlock(url):
    """Every lock is taken in one order: the route's, then the trip's."""
    depots = [Depot(url) for _ in range(4)]
    inbox = depots[0].inbox
    inbox.board("orders", arrivals(40))
    formed(inbox, batch=2, max_trips=20)
    trips = departed(inbox, limit=20) + [departure.trip for departure in inbox.depart("orders", max_in_flight=20, limit=20)]

    def claim(number):
        for trip in trips:
            try:
                attempt = depots[number].claim(trip, f"run-{number}", lease_seconds=60).attempt
                depots[number].finish_trip(trip, "failed", "x", attempt=attempt, kind="poison")
                depots[number].end_attempt(trip, attempt, "failed")
            except (AttemptLive, AttemptEnded, TripOver):
                continue

    def settle(number):
        for _ in range(8):
            for one in depots[number].inbox.underway("orders"):
                of = depots[number].inbox.riders(one.trip.id, one.trip.launches)
                if of and len(of.messages) > 1:
                    depots[number].inbox.split(one.trip.id, [[message] for message in of.messages], launch=one.trip.launches)
            depots[number].inbox.board("orders", arrivals(40))
            depots[number].inbox.depart("orders", max_in_flight=99, limit=99)

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(claim, 0), pool.submit(claim, 1), pool.submit(settle, 2), pool.submit(settle, 3)]:
            one.result(timeout=120)
    assert counted(inbox) == {"aboard": 40}
    assert Counter(message.trip for message in inbox.messages(limit=99)).total() == 40
    for depot in depots:
        depot.close()


def test_a_trip_that_is_being_claimed_at_this_moment_does_not_depart(postgres_database_url):
    """Claim has locked the formed trip, and not committed: a run is there already."""
    depot = Depot(postgres_database_url)
    depot.inbox.board("orders", arrivals(2))
    formed(depot.inbox, batch=1)
    claimed, other = sorted(depot.trips("orders", "formed"), key=lambda trip: trip.created_at)
    with depot._connections.writing() as connection:
        trips_sql.claim(connection, claimed.id, "run-1", timedelta(seconds=60), {}, {}, {})
        assert departed(depot.inbox) == [other.id]
    assert depot.trip(claimed.id).state == "driving"
    depot.close()


# The tables before


def at_revision(url, wanted):
    """A database with the tables of that revision, and nothing in them."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    from resources.depot.connections import Connections
    from resources.depot.migrate import MIGRATIONS

    connections = Connections(url)
    script = ScriptDirectory(str(MIGRATIONS))
    environment = EnvironmentContext(Config(), script, fn=lambda revision, _: script._upgrade_revs(wanted, revision))
    with connections._engine().execution_options(bus_writes=True).begin() as connection, environment:
        environment.configure(connection=connection, version_table=schema.VERSION_TABLE)
        environment.run_migrations()
    return connections


def test_a_depot_of_the_first_revision_is_brought_here_with_its_data(empty_url):
    """Built by the first migration alone, filled, then opened by this version."""
    connections = at_revision(empty_url, "0001")
    with connections._engine().execution_options(bus_writes=True).begin() as connection:
        when = "2026-01-02 03:04:05.000006" + ("+00" if connection.dialect.name == "postgresql" else "")
        trip = "INSERT INTO depot_trips (id, route, trigger, parameters, created_at, state) VALUES ('t1', 'orders', 'cron', '{}', :t, :s)"
        connection.execute(sa.text(trip), {"t": when, "s": "delivered"})
        attempt = "INSERT INTO depot_attempts (trip, attempt, run, claimed_at, lease_until) VALUES ('t1', 1, 'run-1', :t, :t)"
        connection.execute(sa.text(attempt), {"t": when})
        row = (
            "INSERT INTO depot_quarantine (route, trip, attempt, stop, row_id, reasons, payload, state, created_at) "
            """VALUES ('orders', 't1', 1, 'rows', '7', '[{"rule": "r", "message": "m"}]', '{"a": "b"}', 'held', :t)"""
        )
        connection.execute(sa.text(row), {"t": when})
    connections.close()
    depot = Depot(empty_url)
    trip = depot.trip("t1")
    assert (trip.state, trip.launches, trip.failures, trip.deaths, trip.cancelled, trip.not_before) == ("delivered", 0, 0, 0, None, None)
    attempt = depot.newest_attempt("t1")
    assert (attempt.run, attempt.kind, attempt.culprit) == ("run-1", None, None)
    [row] = depot.quarantined("orders")
    assert (row.row_id, row.payload, row.message, row.state, row.trip_state) == ("7", {"a": "b"}, None, "held", "delivered")
    depot.mark_released([row.id], depot.start_trip("orders", "release", {}).id)
    assert depot.inbox.board("orders", arrivals(1)) == Boarded(waiting=1)
    depot.close()


def test_what_a_depot_of_the_third_revision_holds_was_received(empty_url):
    connections = at_revision(empty_url, "0003")
    with connections._engine().execution_options(bus_writes=True).begin() as connection:
        when = {"t": datetime(2026, 1, 2, tzinfo=UTC).replace(tzinfo=None)}
        for route, number in (("orders", 3), ("invoices", 1), ("idle", 0)):
            connection.execute(
                sa.text("INSERT INTO depot_routes (route, delivered) VALUES (:route, :number)"), {"route": route, "number": number}
            )
            for key in range(number):
                row = (
                    "INSERT INTO depot_messages (route, key, part, state, attributes, received_at, changed_at) "
                    "VALUES (:route, :key, '', 'delivered', '{}', :t, :t)"
                )
                connection.execute(sa.text(row), {"route": route, "key": f"k{key}", **when})
    connections.close()
    depot = Depot(empty_url)
    assert [depot.inbox.counts(route).received for route in ("orders", "invoices", "idle")] == [3, 1, 0]
    assert depot.inbox.board("orders", arrivals(5)) == Boarded(waiting=2, duplicates=3)
    assert (depot.inbox.counts("orders").received, counted(depot.inbox)) == (5, {"waiting": 2, "delivered": 3})
    depot.close()


def test_a_forked_process_boards_with_connections_of_its_own(depot, inbox):
    inbox.board("orders", arrivals(1))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if inbox.board("orders", arrivals(2)) == Boarded(waiting=1, duplicates=1) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert inbox.live("orders") == 2
