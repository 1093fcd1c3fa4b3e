"""Whole ticks on a depot, with runs and a destination that are a few lines each: killed between any two steps, paused by the breaker."""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from resources.depot import boarding, forming, settling
from resources.depot.entries import TripState
from resources.depot.inbox import Inbox
from resources.depot.mail import Arrival, Departure, Taken
from resources.depot.store import Depot
from resources.errors import Locked, Misconfigured, Transient
from resources.queue_seam import Outgoing, Pointer
from sensors.dispatch import ASIDE, CLAIM_SECONDS, LOCK_SECONDS, LOOK_SECONDS, NEXT_LOCK_SECONDS, ROOM, RUN_SECONDS, Above, Tick, tick
from sensors.envelopes import unwrap
from sensors.json_text import parse
from sensors.judging import BREAKER, DEATHS, LOST_RUNS, Policy, Unclaimed
from sensors.keeping import FETCHED_AT_ONCE, OPENING_SECONDS
from tests.depots import sqlite_depot
from tests.fakes import FakeQueue

ROUTE = "events"


class Killed(BaseException):
    """The dispatcher's process ends here."""


@dataclass
class Cut:
    """Lets the ``at``-th call of anything it wraps, or of ``only`` that, raise ``error``, before or after it is done."""

    at: int
    after: bool
    error: type[BaseException] = Killed
    only: str = ""
    calls: int = 0
    where: str = ""

    def around(self, target: Any) -> Any:
        return _Around(target, self)

    def wrapped(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def made(*args: Any, **more: Any) -> Any:
            counts = self.only in ("", name)
            self.calls += counts
            now = counts and self.calls == self.at
            if now:
                self.where = f"{'after' if self.after else 'before'} {name}"
            if now and not self.after:
                raise self.error("cut")
            done = call(*args, **more)
            if now:
                raise self.error("cut")
            return done

        return made


@dataclass
class _Around:
    target: Any
    cut: Cut

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.target, name)
        return self.cut.wrapped(found, name) if callable(found) else found


class Street:
    """A depot, a queue, and runs that apply a message by counting it; bodies that say 'poison' fail their run, 'deadly' kill it, and of
    'refused' the second database takes none, after the first did."""

    def __init__(self, root: Path, *, fifo: bool = False, **more: Any):
        url = sqlite_depot(root / "depot.db")
        self.depot, self.engine = Depot(url), sa.create_engine(url)
        self.queue, self.dead = FakeQueue("q.fifo" if fifo else "q"), FakeQueue("dead")
        known = {"batch": 4, "max_wait_seconds": 0, "max_in_flight": 2, "attempts": 2, "halt_on_stranded": True}
        self.policy = Policy(ROUTE, **{**known, **more})
        self.outcomes: dict[tuple[str, int], str] = {}
        self.applied = Counter[str]()
        self.order: list[str] = []
        self.archived: list[Arrival] = []
        self.corrected: list[Taken] = []
        self.identity: str | None = None
        self.over, self.locked = set[str](), set[str]()
        self.waited: list[tuple[str, float]] = []
        self.unclaimed = dict[int, Unclaimed]()
        self.bad, self.refuses = lambda body: body == "poison", True
        self.fetch: Callable[[Pointer], bytes] = self.queue.fetch
        self.poll_seconds, self.said = 0.0, ""

    def send(self, *bodies: str, group: str | None = None) -> None:
        self.queue.send([Outgoing(json.dumps({"say": body}), group=group) for body in bodies])

    def send_large(self, name: str, group: str | None = None, size: str = "9") -> None:
        """A message whose body waits in a bucket; its sender says that it has ``size`` bytes."""
        said = ["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": "b", "s3Key": name}]
        self.queue.large_bodies[Pointer("b", name)] = json.dumps({"say": name}).encode()
        self.queue.send([Outgoing(json.dumps(said), {"ExtendedPayloadSize": size}, group)])

    def tick(self, cut: Cut | None = None) -> Tick:
        cut = cut or Cut(0, False)
        above = Above(
            unwrap=lambda received, fetch: unwrap(received, "json", self.identity, fetch),
            fetch=self.fetch,
            archive=cut.wrapped(self.archived.extend, "archive"),
            corrected=cut.wrapped(self.corrected.extend, "corrected"),
            end=cut.wrapped(self._end, "end"),
            unclaimed=lambda trip, attempt: self.unclaimed.get(trip.launches),
            run_is_over=lambda run: run in self.over,
            abandoned=lambda attempt: False,
            report_dead=cut.wrapped(lambda attempt: None, "report_dead"),
        )
        inbox, queue, dead = cut.around(self.depot.inbox), cut.around(self.queue), cut.around(self.dead)
        done = tick(self.policy, inbox, queue, above, dead_letters=dead, poll_seconds=self.poll_seconds)
        self.said = done.said
        return done

    def _end(self, trip: Any, attempt: Any, lock_seconds: float) -> TripState | None:
        self.waited.append((trip.id, lock_seconds))
        if trip.id in self.locked:
            raise Locked("a session holds the lock")
        outcome = self.outcomes.setdefault((trip.id, attempt.attempt), "revoked")
        self.depot.end_attempt(trip.id, attempt.attempt, outcome, kind=attempt.kind or "died")
        if self.depot.publications(trip.id):
            return self.depot.finish_trip(trip.id, "stuck").state
        if outcome == "published":
            self._tell(trip.id)
        return "delivered" if outcome == "published" else None

    def _tell(self, trip: str) -> None:
        self.depot.inbox.delivered(trip, {}, {})
        self.depot.finish_trip(trip, "delivered")

    def run(self, departure: Departure, *, tells: bool = True) -> None:
        """One run of a trip; ``tells`` False: it dies between its commit and telling the depot."""
        run = f"{departure.trip}-{departure.launch}"
        attempt = self.depot.claim(departure.trip, run, lease_seconds=60).attempt
        self.over.add(run)
        messages = self.depot.inbox.messages_of(departure.trip)
        bodies = [json.loads(message.body or b"{}")["say"] for message in messages]
        if "deadly" in bodies:
            return
        if "flaky" in bodies:
            self.depot.finish_trip(departure.trip, "failed", "503", attempt=attempt, kind="transient")
            return
        if "refused" in bodies and self.refuses:
            self.outcomes[departure.trip, attempt] = "published"
            self.depot.record_publication(departure.trip, attempt, "first", {})
            self.depot.finish_trip(departure.trip, "failed", "a constraint", attempt=attempt, kind="poison")
            return
        if any(map(self.bad, bodies)):
            self.depot.finish_trip(departure.trip, "failed", "it is poison", attempt=attempt, kind="poison")
            return
        assert (departure.trip, attempt) not in self.outcomes
        self.outcomes[departure.trip, attempt] = "published"
        self.applied.update(bodies)
        self.order += bodies
        if tells:
            self._tell(departure.trip)
            self.depot.end_attempt(departure.trip, attempt, "published")

    def sql(self, statement: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement))

    def come_due(self) -> None:
        """All that backs off is to be tried now."""
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"
        self.sql(f"UPDATE depot_trips SET not_before = '{now}' WHERE not_before > '{now}'")

    def hurry(self) -> None:
        """No back-off is waited for, nor that a run which was asked for does not come."""
        self.sql("UPDATE depot_trips SET not_before = NULL WHERE state = 'formed'")
        self.sql("UPDATE depot_trips SET departed_at = '2000-01-01T00:00:00.000000' WHERE state = 'departed'")
        self.queue.expire()

    def round(self) -> None:
        """A tick and its runs; back-off that began before has not ended."""
        self.sql("UPDATE depot_trips SET not_before = '2099-01-01T00:00:00.000000' WHERE not_before > created_at")
        for departure in self.tick().departures:
            self.run(departure)

    def asked_again_after(self, seconds: float) -> tuple[Departure, ...]:
        """For which trips a tick asks once more, if so long ago runs were asked for that have not come."""
        ago = f"{datetime.now(UTC) - timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S.%f}"
        with self.engine.begin() as connection:
            connection.execute(sa.text("UPDATE depot_trips SET departed_at = :ago WHERE state = 'departed'"), {"ago": ago})
        return self.tick().departures

    def deliver(self, ticks: int = 100, cut: Cut | None = None) -> None:
        """Until nothing is left to do. A killed dispatcher comes back; what it had not handed over is not run."""
        for number in itertools.count():
            assert number < ticks, "it does not come to rest"
            self.hurry()
            try:
                departures = self.tick(cut).departures
            except (Killed, Transient):
                continue
            for place, departure in enumerate(departures):
                self.run(departure, tells=(number + place) % 2 == 0)
            if not departures and (self.depot.inbox.paused(ROUTE) or self._rests()):
                return

    def _rests(self) -> bool:
        """Messages may still wait: behind a stranded one of their group."""
        with self.engine.connect() as connection:
            live = "SELECT count(*) FROM depot_trips WHERE state IN ('formed', 'departed', 'driving', 'failed')"
            return not connection.execute(sa.text(live)).scalar_one() + self.queue.depth().waiting

    def states(self) -> Counter[str]:
        return Counter(message.state for message in self.depot.inbox.messages(ROUTE, limit=10_000))


BODIES = ("one", "poison")


@contextmanager
def a_street(**more: Any) -> Iterator[Street]:
    """In memory where there is a file system for that: hundreds of them, and none is to survive a power cut."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        street = Street(Path(folder), **more)
        yield street
        street.depot.close()
        street.engine.dispose()


@pytest.mark.parametrize(
    ("error", "after"), [pytest.param(Killed, True, id="killed after"), pytest.param(Transient, False, id="fails", marks=pytest.mark.long)]
)
def test_a_dispatcher_cut_at_any_call_loses_and_doubles_nothing(error, after):
    """Killed after each call in turn, which is before the next; and with each call failing in turn."""
    cut_at, missed = set[str](), 0
    for at in itertools.count(1):
        cut = Cut(at, after, error)
        with a_street() as street:
            street.send(*BODIES)
            street.deliver(cut=cut)
            if not cut.where:  # how many calls there are depends on the time that they take
                missed += 1
                if missed == 5:
                    break
                continue
            assert street.applied == {"one": 1}, cut.where
            assert street.states() == {"delivered": 1, "stranded": 1}, cut.where
            assert street.queue.depth().waiting == 0, cut.where
            (stranded,) = street.depot.inbox.messages(ROUTE, "stranded")
            assert {copy.attributes["bus-key"] for copy in street.dead.receive(10)} == {stranded.key}, cut.where
            assert {arrival.key for arrival in street.archived} == {"sqs:m-1", "sqs:m-2"}, cut.where
        cut_at.add(cut.where.split()[1])
    assert cut_at >= {"underway", "end", "report_dead", "failed_in_row", "retry", "split", "strand", "paused", "live"}
    assert cut_at >= {"receive", "archive", "board", "delete", "form", "depart", "dead_letters", "send", "sent_to_dead_letters"}


@pytest.mark.parametrize("step", ["archive", "board", "corrected", "delete"])
def test_a_correction_is_noted_wherever_its_dispatcher_is_killed(tmp_path, step):
    """Before 'corrected', which is between the depot's commit and the note, too: then the body comes again, and is noted."""
    street, cut = Street(tmp_path, attempts=1), Cut(1, after=False, only=step)
    street.identity = "id"
    street.queue.send([Outgoing('{"id": 1, "say": "poison"}')])
    street.deliver()
    street.queue.send([Outgoing('{"id": 1, "say": "one"}')])
    street.deliver(cut=cut)
    assert cut.where == f"before {step}"
    (message,) = street.depot.inbox.messages(ROUTE)
    assert (message.state, message.body, message.generation) == ("delivered", b'{"id": 1, "say": "one"}', 1)
    assert street.queue.depth().waiting == 0
    (decided,) = street.depot.inbox.decisions([message.id])[message.id]
    assert {(one.arrival.key, one.arrival.body, one.at) for one in street.corrected} == {(message.key, message.body, decided.at)}


def test_a_correction_that_was_set_aside_before_it_is_noted_is_noted_then(tmp_path):
    street = Street(tmp_path, attempts=1)
    street.identity, street.bad = "id", lambda body: True
    street.queue.send([Outgoing('{"id": 1, "say": "poison"}')])
    street.deliver()
    street.queue.send([Outgoing('{"id": 1, "say": "one"}')])
    with pytest.raises(Killed):
        street.tick(Cut(1, after=False, only="corrected"))
    (departure,) = street.tick().departures
    street.run(departure)
    street.tick()
    assert street.states() == {"stranded": 1}
    street.hurry()
    street.tick()
    assert [one.arrival.body for one in street.corrected] == [b'{"id": 1, "say": "one"}']


def test_another_dispatcher_that_settles_in_between_is_no_failure(tmp_path, monkeypatch):
    """What it leaves of the trip is not judged as if that were all of it: half of a lone group, which counts as no failure, would."""
    street = Street(tmp_path, batch=64, attempts=1, fifo=True)
    street.send(*map(str, range(8)), "poison", group="g")
    (departure,) = street.tick().departures
    street.run(departure, tells=True)
    underway, others = Inbox.underway, []

    def overtaken(self: Inbox, route: str) -> Any:
        found = underway(self, route)
        if not others:
            others.append(True)
            street.tick()
        return found

    monkeypatch.setattr(Inbox, "underway", overtaken)
    street.tick()
    assert others
    counts = street.depot.inbox.counts(ROUTE)
    assert (counts.failures_in_row, street.depot.inbox.paused(ROUTE)) == (0, None)
    assert sorted(trip.state for trip in street.depot.trips(ROUTE)) == ["departed", "split"]


def test_two_failing_trips_and_good_ones_between_them_do_not_pause(tmp_path):
    street = Street(tmp_path, batch=1, attempts=1)
    street.send(*["poison", "good"] * 8)
    street.deliver()
    assert street.depot.inbox.paused(ROUTE) is None
    assert street.states() == {"delivered": 8, "stranded": 8}


@pytest.mark.parametrize(("batch", "fifo"), [(1, False), (3, False), (40, False), (3, True), (40, True)])
def test_where_everything_fails_the_route_is_paused_and_nobody_is_stranded(tmp_path, batch, fifo):
    street = Street(tmp_path, batch=batch, attempts=2, fifo=fifo)
    for number in range(40):
        street.send("poison", group=f"g{number % 8}" if fifo else None)
    street.deliver()
    assert street.depot.inbox.paused(ROUTE) is not None
    assert street.states()["stranded"] < BREAKER
    street.bad = lambda body: False
    street.depot.inbox.resume(ROUTE)
    street.deliver()
    states = street.states()
    assert states["delivered"] == 40 - states["stranded"] - states["waiting"]
    assert states["waiting"] <= (4 * states["stranded"] if fifo else 0)


@pytest.mark.parametrize(("batch", "every", "attempts", "fifo"), [(20, 8, 2, False), pytest.param(20, 8, 2, True, marks=pytest.mark.long)])
def test_bad_messages_in_every_trip_stop_nobody(tmp_path, batch, every, attempts, fifo):
    """Every trip fails, and none is delivered before the fifth has: single messages tell that it is no bad deploy."""
    street = Street(tmp_path, batch=batch, attempts=attempts, fifo=fifo)
    for number in range(80):
        street.send("poison" if number % every == every // 2 else f"good {number}", group=f"g{number}" if fifo else None)
    street.deliver(400)
    bad = len(range(every // 2, 80, every))
    assert street.depot.inbox.paused(ROUTE) is None
    assert street.states() == {"delivered": 80 - bad, "stranded": bad}


def test_a_few_single_messages_tell_a_bad_deploy_however_large_the_trips_are(tmp_path):
    street = Street(tmp_path, batch=60, attempts=3)
    street.send(*["poison"] * 600)
    runs = 0
    while street.depot.inbox.paused(ROUTE) is None:
        street.hurry()
        for departure in street.tick().departures:
            street.run(departure)
            runs += 1
    assert street.states()["stranded"] == 0
    assert runs < 30


def test_a_trip_whose_lock_somebody_holds_is_told_and_the_others_go_on(tmp_path):
    street = Street(tmp_path, batch=1, max_in_flight=2, attempts=9)
    street.send("poison", "poison")
    departures = street.tick().departures
    for departure in departures:
        street.run(departure)
    held, other = (departure.trip for departure in departures)
    street.locked, street.poll_seconds = {held}, 2.5
    street.tick()  # it looks several times
    assert f"trip {held} cannot be settled now: a session holds the lock" in street.said
    assert street.waited == [(held, LOCK_SECONDS), (other, NEXT_LOCK_SECONDS)]
    street.send("good")
    (departure,) = street.tick().departures
    street.run(departure)
    assert street.applied["good"] == 1
    assert street.said.count(f"trip {held} cannot be settled now") == 1
    street.locked, street.bad = set(), lambda body: False
    street.deliver()
    assert street.applied["poison"] == 2


def test_a_trip_that_cannot_be_settled_keeps_no_other_from_being_settled(tmp_path, monkeypatch):
    street = Street(tmp_path, batch=1, max_in_flight=2, attempts=9)
    street.send("poison", "poison")
    for departure in street.tick().departures:
        street.run(departure)
    first, other = (found.trip.id for found in street.depot.inbox.underway(ROUTE))
    end = street._end

    def refused(trip: Any, attempt: Any, lock_seconds: float) -> TripState | None:
        if trip.id == first:
            raise Misconfigured("permission denied for table bus_outcomes")
        return end(trip, attempt, lock_seconds)

    monkeypatch.setattr(street, "_end", refused)
    with pytest.raises(Misconfigured, match="permission denied"):
        street.tick()
    assert [street.depot.trip(trip).state for trip in (first, other)] == ["failed", "formed"]


def test_a_trip_that_failed_is_settled_though_its_run_goes_on(tmp_path):
    """Other steps of the run may hang for as long as they like: the trip has said that it failed."""
    street = Street(tmp_path)
    street.send("flaky")
    (departure,) = street.tick().departures
    street.run(departure)
    street.over.clear()
    assert street.tick().said == "returned 1"


def test_a_tick_that_waits_for_messages_looks_after_trips_under_way(tmp_path, monkeypatch):
    street, waits = Street(tmp_path), list[float]()
    street.send("one")
    street.tick()
    monkeypatch.setattr(street.queue, "receive", lambda limit, wait_seconds=0: waits.append(wait_seconds) or [])
    street.poll_seconds = 1.5
    street.tick()
    assert LOOK_SECONDS / 2 < max(waits) <= LOOK_SECONDS


def test_trips_depart_though_messages_come_without_a_pause(tmp_path, monkeypatch):
    monkeypatch.setattr("sensors.dispatch.BUSY_SECONDS", 0.05)
    street, numbers = Street(tmp_path, batch=1, max_in_flight=50), iter(range(30))
    receive = street.queue.receive

    def coming(limit: int, wait_seconds: float = 0) -> Any:
        time.sleep(0.02)
        street.send(*map(str, itertools.islice(numbers, 1)))
        return receive(limit, wait_seconds)

    monkeypatch.setattr(street.queue, "receive", coming)
    assert 0 < len(street.tick().departures) < 30


def test_a_queue_that_fails_keeps_no_trip_from_departing(tmp_path):
    """It is departed in the depot by then: nobody else would ask for its run before that is late."""
    street = Street(tmp_path)
    street.depot.inbox.board(ROUTE, [Arrival("k", b'{"say": "one"}')])
    street.queue.fail(*[Transient("queue q is throttled")] * 3)
    done = street.tick()
    assert (len(done.departures), done.said) == (1, "departed 1; then: queue q is throttled")


def test_what_waits_behind_a_stranded_message_leaves_room_for_other_groups(tmp_path):
    street = Street(tmp_path, batch=1, attempts=1, fifo=True)
    street.send("poison", *map(str, range(8)), group="a")
    street.send("good", group="b")
    for _ in range(20):
        street.hurry()
        for departure in street.tick().departures:
            street.run(departure)
    assert street.applied == {"good": 1}


@pytest.mark.parametrize("fifo", [False, True])
def test_messages_that_cannot_be_read_for_now_keep_no_other_from_riding(tmp_path, fifo):
    """However many they are, as long as others ride; in their groups those behind them wait."""
    street = Street(tmp_path, batch=1, fifo=fifo)
    for number in range(5):
        for flaky in range(ASIDE):
            street.send("flaky", "behind", group=f"{number} {flaky}" if fifo else None)
        street.send(f"good {number}", group=f"good {number}" if fifo else None)
        for _ in range(30):
            street.round()
    assert {f"good {number}" for number in range(5)} <= street.applied.keys()
    assert street.applied["behind"] == (0 if fifo else 20)
    assert len(street.depot.trips(ROUTE, "formed")) == 5 * ASIDE
    assert street.said == "to be tried again 20"


@pytest.mark.parametrize("max_in_flight", [1, 3])
@pytest.mark.parametrize("bad", ["flaky", "refused"])
def test_a_long_group_behind_a_trip_that_fails_keeps_no_other_group_on_the_queue(tmp_path, bad, max_in_flight):
    """Which groups can ride nobody knows before they are received."""
    street = Street(tmp_path, batch=1, fifo=True, max_in_flight=max_in_flight)
    street.send(bad, *["behind"] * (ROOM + ASIDE + 1) * max_in_flight, group="a")
    street.send(*map(str, range(5)), group="b")
    for _ in range(20):
        street.queue.expire()
        street.round()
    assert street.order == [*map(str, range(5))]
    assert street.queue.depth().waiting == 0
    assert street.said == "to be tried again 1"


def test_messages_that_cannot_be_read_for_now_keep_no_other_from_riding_however_long_each_try_takes(tmp_path):
    """So long that the next is due before one is over: some always are, and what is new gets its turn nevertheless."""
    street = Street(tmp_path, batch=1, max_in_flight=1)
    for number in range(8):
        street.send("flaky", f"before {number}")
        for _ in range(4):
            street.round()
    assert sum(street.applied.values()) == 8
    street.send(*map(str, range(6)))
    for _ in range(3 * (8 + ROOM)):
        street.come_due()
        for departure in street.tick().departures:
            street.run(departure)
    assert {*map(str, range(6))} <= street.applied.keys()
    assert len(street.depot.inbox.messages(ROUTE, "aboard")) == 8


@pytest.mark.parametrize("due", [False, True])
def test_messages_that_a_later_database_refuses_keep_no_other_from_riding(tmp_path, due):
    """Their trips are committed in the first: they cannot be given up, and are tried again until somebody corrects the other one."""
    street = Street(tmp_path, batch=1, max_in_flight=1)
    street.send("refused", "refused", *map(str, range(8)))
    for _ in range(40):
        if due:
            street.come_due()
        for departure in street.tick().departures:
            street.run(departure)
        assert "rolled forward" not in street.said
    assert {*map(str, range(8))} == street.applied.keys()
    assert due or street.said == "to be tried again 2"
    assert len(street.waited) <= sum(trip.launches for trip in street.depot.trips(ROUTE, "stuck"))  # each try is looked into once
    street.refuses = False
    street.sql("UPDATE depot_trips SET not_before = NULL WHERE state = 'stuck'")
    for _ in range(4):
        for departure in street.tick().departures:
            street.run(departure)
    assert (street.applied["refused"], street.states()) == (2, {"delivered": 10})


def test_where_a_later_database_refuses_all_the_route_comes_to_a_halt_that_is_told(tmp_path):
    street = Street(tmp_path, batch=1, max_in_flight=1)
    street.send(*["refused"] * 20)
    for _ in range(20):
        for departure in street.tick().departures:
            street.run(departure)
    assert len(street.depot.trips(ROUTE, "stuck")) == len(street.depot.inbox.messages(ROUTE)) == ROOM + ASIDE
    assert street.said == f"to be tried again {ROOM + ASIDE}, and all others wait for them"


def test_while_nobody_can_be_read_the_queue_is_not_taken_apart(tmp_path):
    street = Street(tmp_path, batch=1)
    street.send(*["flaky"] * 100, "good")
    for _ in range(30):
        street.round()
    assert len(street.depot.trips(ROUTE, "formed")) == len(street.depot.inbox.messages(ROUTE)) == (ROOM + ASIDE) * 2
    assert street.said == f"to be tried again {(ROOM + ASIDE) * 2}, and all others wait for them"


@pytest.mark.parametrize("place", [0, 1, 31, 63])
def test_one_poison_in_a_long_group_does_not_pause_the_route(tmp_path, place):
    """A lone group is parted from its beginning: six trips in a row fail because of one message."""
    street = Street(tmp_path, batch=64, attempts=1, fifo=True)
    street.send(*["poison" if number == place else str(number) for number in range(64)], group="a")
    street.deliver()
    assert street.depot.inbox.paused(ROUTE) is None
    assert street.order == [str(number) for number in range(place)]
    assert street.states()["stranded"] == 1


def test_a_message_that_kills_whoever_reads_it_is_found_and_stranded(tmp_path):
    street = Street(tmp_path)
    street.send("one", "deadly", "two")
    street.deliver()
    assert street.applied == {"one": 1, "two": 1}
    assert street.states() == {"delivered": 2, "stranded": 1}


def test_runs_that_came_and_died_do_not_lengthen_the_wait_for_one_that_never_comes(tmp_path):
    street = Street(tmp_path)
    street.send("deadly")
    for launch in range(1, DEATHS + 1):
        while not (departures := street.tick().departures):
            street.hurry()
        assert [departure.launch for departure in departures] == [launch]
        if launch < DEATHS:
            street.run(departures[0])
    assert street.asked_again_after(CLAIM_SECONDS - 5) == ()
    (again,) = street.asked_again_after(CLAIM_SECONDS + 5)
    assert again.launch == DEATHS + 1
    assert street.asked_again_after(2 * CLAIM_SECONDS - 5) == ()
    assert len(street.asked_again_after(2 * CLAIM_SECONDS + 5)) == 1


@pytest.mark.parametrize("ahead_seconds", [-3600, 3600])
def test_whether_a_run_is_late_is_told_by_the_depots_clock_alone(tmp_path, monkeypatch, ahead_seconds):
    """The machine's may be wrong by an hour: it would ask at once for a second run, or never again."""
    street, ahead = Street(tmp_path), [ahead_seconds]
    for module in (boarding, forming, settling):
        monkeypatch.setattr(module, "now", lambda connection: datetime.now(UTC) + timedelta(seconds=ahead[0]))
    street.send("one")
    assert len(street.tick().departures) == 1
    ahead[0] += CLAIM_SECONDS - 5
    assert street.tick().departures == ()
    ahead[0] += 10
    assert [departure.launch for departure in street.tick().departures] == [2]


def test_runs_that_end_before_they_claim_are_asked_for_again_at_once_and_pause_the_route_after_some(tmp_path):
    """No message was read, so none is suspected and nothing is spent; the reason stands with the trip until it is claimed."""
    street = Street(tmp_path)
    street.send("one")
    (departure,) = street.tick().departures
    for launch in range(1, LOST_RUNS):
        street.unclaimed = {launch: Unclaimed(launch, "WAREHOUSE_URL is not set")}
        street.asked_again_after(RUN_SECONDS - 1)
        (trip,) = street.depot.trips(ROUTE)
        assert (trip.state, trip.launches) == ("departed", launch)  # it may still claim
        street.asked_again_after(RUN_SECONDS + 1)
        assert "its run ended before it claimed the trip: WAREHOUSE_URL is not set" in street.said
        (trip,) = street.depot.trips(ROUTE)
        assert (trip.state, trip.failures, trip.deaths) == ("formed", 0, 0)
        assert trip.error == "its run ended before it claimed the trip: WAREHOUSE_URL is not set"
        street.hurry()
        (departure,) = street.tick().departures
        assert departure.launch == launch + 1
    street.unclaimed = {LOST_RUNS: Unclaimed(LOST_RUNS, "WAREHOUSE_URL is not set")}
    assert street.asked_again_after(RUN_SECONDS + 1) == ()
    paused = street.depot.inbox.paused(ROUTE)
    assert paused is not None
    assert paused[1].endswith(f"{LOST_RUNS} times in a row: its run ended before it claimed the trip: WAREHOUSE_URL is not set")
    street.unclaimed = {}
    street.depot.inbox.resume(ROUTE)
    street.deliver()
    assert street.applied == {"one": 1}
    assert street.depot.trip(departure.trip).error is None


def test_a_tick_looks_up_runs_once_and_only_of_trips_that_nobody_claims(tmp_path, monkeypatch):
    street = Street(tmp_path, batch=1)
    looked_up = list[str]()

    class Asked(dict[int, Unclaimed]):
        def get(self, launch: int, default: Any = None) -> Any:
            looked_up.append(str(launch))

    street.unclaimed = Asked()
    street.send("one", "two")
    first, _ = street.tick().departures
    street.depot.claim(first.trip, "run", lease_seconds=60)
    monkeypatch.setattr("sensors.dispatch.LOOK_SECONDS", 0.01)
    street.poll_seconds = 0.05
    street.asked_again_after(RUN_SECONDS + 1)
    assert looked_up == ["1"]


def test_a_tick_of_a_paused_route_waits_as_an_idle_one_does_and_receives_nothing(tmp_path, monkeypatch):
    """Else the daemon ticks it each second, and each tick says the same."""
    monkeypatch.setattr("sensors.dispatch.LOOK_SECONDS", 0.01)
    street = Street(tmp_path, batch=1)
    street.depot.inbox.pause(ROUTE, "moving house")
    street.send("one")
    street.poll_seconds, began = 0.1, time.monotonic()
    assert street.tick().departures == ()
    assert time.monotonic() - began >= street.poll_seconds
    assert street.said.count("moving house") == 1
    assert street.queue.depth().waiting == 1


def test_a_trip_that_ends_while_its_route_is_paused_is_settled_by_the_tick_that_waits(tmp_path, monkeypatch):
    street = Street(tmp_path, batch=1)
    street.send("one")
    (departure,) = street.tick().departures
    street.run(departure, tells=False)
    runs, street.over = street.over, set()
    street.depot.inbox.pause(ROUTE, "moving house")
    monkeypatch.setattr("sensors.dispatch.LOOK_SECONDS", 0.01)
    street.poll_seconds = 0.1
    _at_the_third_look(monkeypatch, lambda: street.over.update(runs))
    assert street.tick().departures == ()
    assert street.states() == {"delivered": 1}


def test_a_route_that_is_resumed_under_a_tick_departs_at_once(tmp_path, monkeypatch):
    street = Street(tmp_path, batch=1, max_in_flight=1)
    street.send("one", "two")
    (departure,) = street.tick().departures  # 'two' waits in the depot
    street.run(departure)
    street.depot.inbox.pause(ROUTE, "moving house")
    street.poll_seconds, began = 60, time.monotonic()
    looks = _at_the_third_look(monkeypatch, lambda: street.depot.inbox.resume(ROUTE))
    assert len(street.tick().departures) == 1
    assert looks == [LOOK_SECONDS] * 3
    assert time.monotonic() - began < 30
    assert "moving house" not in street.said


def _at_the_third_look(monkeypatch, *happens: Callable[[], Any]) -> list[float]:
    """Of a tick that waits; the seconds that it was to wait between them."""
    looks = list[float]()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            for one in happens:
                one()

    monkeypatch.setattr("sensors.dispatch.time", types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    return looks


def test_there_is_no_more_in_the_depot_than_fits_in_flight_twice(tmp_path):
    """What has no capacity yet stays on the queue, where others can take it."""
    street = Street(tmp_path, batch=1)
    street.send(*map(str, range(100)))
    assert [len(street.tick().departures) for _ in range(5)] == [2, 0, 0, 0, 0]
    assert len(street.depot.inbox.messages(ROUTE)) == 4
    assert street.queue.depth().waiting == 96


def test_a_body_that_cannot_be_fetched_now_stays_on_the_queue_and_the_others_go_on(tmp_path):
    street = Street(tmp_path)
    street.send_large("large")
    street.send("small")

    def refuse(pointer: Pointer) -> bytes:
        raise Misconfigured("bucket b: access is denied")

    street.fetch = refuse
    done = street.tick()
    assert (len(done.departures), done.said) == (1, "boarded 1, departed 1; then: bucket b: access is denied")
    assert street.queue.depth().in_flight == 1
    street.queue.expire()
    with pytest.raises(Misconfigured, match="access is denied"):
        street.tick()
    street.fetch = street.queue.fetch
    street.run(done.departures[0])
    street.deliver()
    assert street.applied == {"large": 1, "small": 1}


def test_what_follows_a_body_that_cannot_be_fetched_in_its_group_waits_for_it(tmp_path):
    street = Street(tmp_path, fifo=True)
    street.send("first", group="a")
    street.send_large("large", group="a")
    street.send("last", group="a")
    street.send("other", group="b")
    times = Counter[str]()

    def fetch(pointer: Pointer) -> bytes:
        times["asked"] += 1
        if times["asked"] == 1:
            raise Transient("throttled")
        return street.queue.fetch(pointer)

    street.fetch = fetch
    street.deliver()
    assert [body for body in street.order if body != "other"] == ["first", "large", "last"]
    assert street.applied == {"first": 1, "large": 1, "last": 1, "other": 1}


def test_large_bodies_are_committed_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("sensors.keeping.BYTES_AT_ONCE", 30)
    street = Street(tmp_path, batch=100)
    street.send(*map(str, range(9)))
    boards = []
    street.archived = _Counted(boards)  # pyright: ignore[reportAttributeAccessIssue]
    street.tick()
    assert sum(boards) == 9
    assert max(boards) <= 3


def test_bodies_are_fetched_several_at_once(tmp_path):
    street = Street(tmp_path, batch=100)
    together = threading.Barrier(FETCHED_AT_ONCE)
    for number in range(FETCHED_AT_ONCE):
        street.send_large(str(number))

    def fetch(pointer: Pointer) -> bytes:
        together.wait(timeout=5)
        return street.queue.fetch(pointer)

    street.fetch = fetch
    street.run(street.tick().departures[0])
    assert street.order == [str(number) for number in range(FETCHED_AT_ONCE)]


@pytest.mark.parametrize(("size", "at_once"), [("9", FETCHED_AT_ONCE), ("9000000", 3), ("40000000", 1), ("many", 1)])
def test_bodies_on_their_way_are_few_where_they_are_large_and_are_parsed_one_at_a_time(tmp_path, monkeypatch, size, at_once):
    """The sender tells the size; where it does not, a body may be of the largest."""
    street, together = Street(tmp_path, batch=100), threading.Barrier(at_once)
    now, running, parsing = list[str](), list[int](), set[str]()

    def fetch(pointer: Pointer) -> bytes:
        now.append(pointer.key)
        running.append(len(now))
        together.wait(timeout=5)
        now.remove(pointer.key)
        return street.queue.fetch(pointer)

    def parsed(text: str) -> Any:
        parsing.add(threading.current_thread().name)
        return parse(text)

    monkeypatch.setattr("sensors.envelopes.parse", parsed)
    for number in range(24):
        street.send_large(str(number), size=size)
    street.fetch = fetch
    street.run(street.tick().departures[0])
    assert street.order == [str(number) for number in range(24)]
    assert max(running) == at_once
    assert parsing == {threading.current_thread().name}


def test_a_body_that_waits_inside_one_that_waited_is_fetched_too(tmp_path):
    street = Street(tmp_path)
    street.send_large("inner")
    (pointing,) = street.queue.receive(1)
    street.queue.delete([pointing])
    told = {"ExtendedPayloadSize": {"Type": "Number", "Value": "9"}}
    notification = {"Type": "Notification", "TopicArn": "t", "MessageId": "n-1", "Message": pointing.body, "MessageAttributes": told}
    street.send_large("outer")
    street.queue.large_bodies[Pointer("b", "outer")] = json.dumps(notification).encode()
    street.run(street.tick().departures[0])
    assert street.applied == {"inner": 1}


def test_bodies_for_which_a_tick_has_no_time_come_again(tmp_path, monkeypatch):
    """And what follows one of them in its group waits for it; small messages wait for none."""
    street, seconds = Street(tmp_path, batch=100, fifo=True), itertools.count()
    monkeypatch.setattr("sensors.keeping.time", types.SimpleNamespace(monotonic=lambda: next(seconds) / 2))
    for number in range(60):
        street.send_large(str(number), group=f"g{number}")
    street.send("after 59", group="g59")
    street.send("small", group="other")
    asked = list[str]()

    def fetch(pointer: Pointer) -> bytes:
        asked.append(pointer.key)
        return street.queue.fetch(pointer)

    street.fetch = fetch
    done = street.tick()
    boarded = {json.loads(arrival.body)["say"] for arrival in street.archived}
    assert 1 < len(boarded) < 61
    assert boarded == {*asked, "small"}
    assert f"left on the queue for want of time {61 - len(boarded)}" in done.said
    assert street.queue.depth().in_flight == 62 - len(boarded)
    monkeypatch.undo()
    street.run(done.departures[0])
    street.deliver()
    assert street.applied == Counter([*map(str, range(60)), "after 59", "small"])
    assert street.order.index("59") < street.order.index("after 59")


def test_a_group_whose_first_body_cannot_be_fetched_takes_no_place_of_the_others(tmp_path):
    street = Street(tmp_path, batch=100, fifo=True)
    for number in range(2 * FETCHED_AT_ONCE):
        street.send_large(f"a{number}", group="a")
    street.send_large("b", group="b")

    def fetch(pointer: Pointer) -> bytes:
        if pointer.key == "a0":
            raise Misconfigured("bucket b: access is denied")
        return street.queue.fetch(pointer)

    street.fetch = fetch
    assert street.tick().said == "boarded 1, departed 1; then: bucket b: access is denied"
    assert [json.loads(arrival.body)["say"] for arrival in street.archived] == ["b"]


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("sensors.keeping.LATE_SECONDS", -OPENING_SECONDS)
    street, comes = Street(tmp_path), threading.Event()
    street.send_large("large")
    street.send("small")
    street.fetch = lambda pointer: street.queue.fetch(pointer) if comes.wait(5) else b""
    done = street.tick()
    assert done.said == "boarded 1, departed 1, left on the queue for want of time 1"
    comes.set()
    monkeypatch.undo()
    street.run(done.departures[0])
    street.deliver()
    assert street.applied == {"large": 1, "small": 1}


class _Counted:
    def __init__(self, sizes: list[int]):
        self.extend = lambda arrivals: sizes.append(len(arrivals))


def stranded(street: Street, *bodies: str) -> None:
    """They are stranded, and none is copied to the dead letters yet."""
    street.bad = lambda body: True
    for body in bodies:
        street.send(body)
        street.deliver()
        street.depot.inbox.resume(ROUTE)
    street.dead = FakeQueue("dead")
    street.sql("UPDATE depot_messages SET to_dead_letters = true WHERE state = 'stranded'")


def test_a_dead_letter_that_its_queue_does_not_take_keeps_no_other_back(tmp_path):
    """With its identity beside it a body just below SQS's limit is above it."""
    street = Street(tmp_path, attempts=1)
    stranded(street, "one", "x" * ((1 << 20) - 12), "two")
    said = street.tick().said
    assert "has no copy among the dead letters: queue dead does not take a message: it has 1048575 bytes, more than" in said
    assert {json.loads(copy.body)["say"] for copy in street.dead.receive(10)} == {"one", "two"}
    assert street.states() == {"stranded": 3}
    assert street.tick().said == "nothing waits"


def test_a_message_that_is_stranded_again_has_another_copy_on_a_fifo_queue(tmp_path):
    """For five minutes SQS takes no second message with the same deduplication id."""
    street, copies = Street(tmp_path, attempts=1), []
    street.dead = FakeQueue("dead.fifo")
    street.send("poison")
    for _ in range(2):
        street.deliver()
        copies += street.dead.receive(10)
        street.dead.delete(copies)
        street.depot.inbox.redrive(ROUTE, reason="mended, it was thought")
    assert len(copies) == 2


def test_the_copy_of_a_message_that_was_stranded_again_can_be_mended_and_sent(tmp_path):
    """It is no older than what it is a copy of."""
    street = Street(tmp_path, attempts=1)
    street.send("poison")
    street.deliver()
    street.depot.inbox.redrive(ROUTE, reason="mended, it was thought")
    street.deliver()
    copy = street.dead.receive(10)[-1]
    street.queue.send([Outgoing('{"say": "mended"}', copy.attributes)])
    assert street.tick().said == "redriven 1, departed 1"


def test_a_queue_that_takes_no_dead_letter_is_to_blame_itself(tmp_path):
    street = Street(tmp_path, attempts=1)
    stranded(street, "one", "two")
    street.dead.fail(*[Misconfigured("queue dead does not exist")] * 3)
    with pytest.raises(Misconfigured, match="queue dead does not exist"):
        street.tick()
    street.tick()
    assert len(street.dead.receive(10)) == 2
