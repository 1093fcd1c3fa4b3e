"""The real code as actors that take turns, one transaction at a time.

A dispatcher's tick and a run are greenlets: each stands still before every transaction of a database and every call of the queue, and
goes on when a schedule says so. So a schedule is any interleaving of real processes, at the granularity in which they see each other's
work; killing an actor where it stands is ``kill -9`` there.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import greenlet
import pytest

from bus_assets import Contract, DropOff, Field, Json, Queue, Route, Table
from bus_assets.build.dispatching import policy_of, protocol
from bus_assets.drive import Drive
from bus_assets.rebuild import rebuild
from resources.database import Database
from resources.depot import forming, store, trips
from resources.depot.connections import Connections
from resources.depot.entries import AttemptLive, TripOver
from resources.depot.mail import Departure
from resources.errors import BusError, Poison, Refused
from sensors import ahead, dispatch, judging
from sensors.dispatch import tick
from tests.fakes import FakeQueue
from tests.queue_world import Runs
from tests.world import World

KEY = Contract((Field("key", required=True),))
ROUTE = Route(
    name="events",
    triggers=(Queue("order_events", decode=Json(KEY), batch=2, attempts=1, max_in_flight=3, identity="key"),),
    stops=(
        DropOff("log", Table("first", "log", create=True), of="messages"),
        DropOff("copy", Table("second", "copy", create=True), of="messages"),
    ),
)
"""Two databases, append-only tables without a key: what comes twice shows."""
REST_TICKS = 60


class Killed(BaseException):
    """The actor's process is gone."""


@dataclass(eq=False)
class Actor:
    """``at`` is what it is about to do. ``run``: that of a worker, and its ``trip``."""

    name: str
    greenlet: greenlet.greenlet
    trip: str = ""
    run: str = ""
    at: str = "start"
    inside: int = 0
    error: str = ""

    @property
    def is_over(self) -> bool:
        return self.greenlet.dead


_acting: list[Actor] = []


def _pause(what: str) -> None:
    """Give the turn back, unless a transaction is open: then others would only wait for its lock."""
    actor = next((actor for actor in _acting if actor.greenlet is greenlet.getcurrent()), None)
    if actor and not actor.inside:
        actor.at = what
        assert actor.greenlet.parent
        actor.greenlet.parent.switch()


@contextmanager
def _in_transaction() -> Iterator[None]:
    actor = next((actor for actor in _acting if actor.greenlet is greenlet.getcurrent()), None)
    if actor:
        actor.inside += 1
    try:
        yield
    finally:
        if actor:
            actor.inside -= 1


def _paused_before(method: Any, what: str) -> Any:
    @contextmanager
    def made(*args: Any, **more: Any) -> Iterator[Any]:
        _pause(what)
        with _in_transaction(), method(*args, **more) as opened:
            yield opened

    return made


class TurnQueue(FakeQueue):
    """A queue at whose calls actors take turns."""

    def receive(self, limit: int, wait_seconds: float = 0) -> Any:
        _pause("receive")
        return super().receive(limit, 0)

    def delete(self, received: Any) -> int:
        _pause("delete")
        return super().delete(received)


class Inline(Executor):
    """What else a thread of its own does, done at once by the actor itself: others may take their turn before and after it."""

    def submit(self, fn: Any, /, *args: Any, **more: Any) -> Future[Any]:
        done = Future[Any]()
        try:
            done.set_result(fn(*args, **more))
        except Exception as error:
            done.set_exception(error)
        return done


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Turns at every transaction; budgets so small that a schedule of a few dozen steps spends them; ids that repeat."""
    patch.setattr(Connections, "reading", _paused_before(Connections.reading, "read the depot"))
    patch.setattr(Connections, "writing", _paused_before(Connections.writing, "write the depot"))
    patch.setattr(Database, "transaction", _paused_before(Database.transaction, "a destination"))
    patch.setattr(ahead, "ThreadPoolExecutor", lambda *_, **__: Inline())
    patch.setattr(judging, "DEATHS", 1)
    patch.setattr(dispatch, "BREAKER", 10_000)
    numbers = itertools.count(1)
    for module in (trips, forming, store.trips):
        patch.setattr(module, "new_trip_id", lambda: f"trip-{next(numbers):05d}")


@dataclass
class Budget:
    """How often a schedule may do what the world does to us."""

    kills: int = 3
    expired: int = 2
    redelivered: int = 2
    relaunched: int = 1
    redriven: int = 1
    restored: int = 0
    cancelled: int = 0
    discarded: int = 0


class ModelWorld(World):
    """``messages`` of which the last is poison. ``actions()`` are what may happen now, by what to call it."""

    def __init__(self, root: Path, template: Path | None, budget: Budget, messages: int = 3):
        if template:
            shutil.copytree(template, root, dirs_exist_ok=True)
        self.queue, self.route, self.runs = TurnQueue(), ROUTE, Runs()
        databases = {name: Database(url=f"sqlite:///{root}/{name}.db", lock_timeout_seconds=1) for name in ROUTE.databases}
        super().__init__(root, order_events=self.queue, **databases)
        self.budget, self.keys = budget, [f"m{number}" for number in range(messages)]
        self.poison = self.keys[-1] if messages > 1 else ""
        for key in self.keys:
            self.queue.send([_outgoing(key)])
        self.actors: list[Actor] = []
        self.asked: list[Departure] = []
        self.snapshot: Path | None = None
        self.stopped: set[str] = set()
        self.given_up: set[str] = set()
        self.stranded_then: set[str] = set()
        self.trace: list[str] = []
        self._numbers = itertools.count(1)
        self._look = {name: sqlite3.connect(root / f"{name}.db") for name in ROUTE.databases}
        if template is None:
            self.bus.depot.upgrade()

    # What may happen

    def actions(self) -> dict[str, Callable[[], None]]:
        found: dict[str, Callable[[], None]] = {}
        if sum(actor.name.startswith("dispatcher") for actor in self.actors) < 2:
            found["tick"] = self._start_tick
        for departure in self.asked:
            if sum(bool(actor.run) for actor in self.actors) < 3:
                found[f"launch {departure.trip}"] = lambda d=departure: self._launch(d)
        for actor in self.actors:
            found[f"{actor.name} goes on: {actor.at}"] = lambda a=actor: self._go_on(a)
        for name, faults in self._faults().items():
            found |= {f"{name} {of}": act for of, act in faults.items()} if getattr(self.budget, name) else {}
        return found

    def _faults(self) -> dict[str, dict[str, Callable[[], None]]]:
        live = self._depot("SELECT a.trip FROM depot_attempts a WHERE a.ended_at IS NULL AND a.lease_until > '2001'")
        stranded = self._stranded()
        underway = self._depot(
            "SELECT id FROM depot_trips WHERE cancelled IS NULL AND state IN ('formed', 'departed', 'driving', 'failed')"
        )
        return {
            "kills": {actor.name + ": " + actor.at: lambda a=actor: self._kill(a) for actor in self.actors},
            "expired": {trip: lambda t=trip: self._expire(t) for (trip,) in live},
            "redelivered": {key: lambda k=key: self._redeliver(k) for key in self.keys},
            "relaunched": {d.trip: lambda d=d: self._launch(d, again=True) for d in self.asked},
            "redriven": {key: lambda k=key: self._redrive(k) for key in stranded},
            "restored": {"": self._restore if self.snapshot else self._copy},
            "discarded": {key: lambda k=key: self._discard(k) for key in stranded},
            # Not after that: cancelling asks no destination, and strands what a restored depot does not know to be applied.
            "cancelled": {} if self._is_restored else {trip: lambda t=trip: self._cancel(t) for (trip,) in underway},
        }

    def act(self, name: str, action: Callable[[], None]) -> None:
        self.trace.append(name)
        for kind in vars(self.budget):
            if name.startswith(f"{kind} ") and (kind != "restored" or self.snapshot):
                setattr(self.budget, kind, getattr(self.budget, kind) - 1)
        action()

    def _start_tick(self) -> None:
        self.hurry()
        self._start(f"dispatcher {next(self._numbers)}", self._tick)

    def _tick(self) -> None:
        queue = self.route.queue
        assert queue is not None
        above, policy = protocol(self.bus, self.route, queue, self.runs), policy_of(self.route, queue)
        self.asked += tick(policy, self.bus.depot.inbox, self.queue, above, poll_seconds=0).departures

    def _launch(self, departure: Departure, *, again: bool = False) -> None:
        if not again:
            self.asked.remove(departure)
        number = next(self._numbers)
        run = f"run-{number}"
        actor = self._start(f"worker {number} of {departure.trip}", lambda: self._drive(departure, run), start=False)
        actor.run, actor.trip = run, departure.trip

    def _drive(self, departure: Departure, run: str) -> None:
        try:
            self.drive(self.route, run=run, tagged=departure.trip, before=self._author)
        finally:
            self.runs.over.add(run)

    def _author(self, drive: Drive, at: str) -> None:
        """An author's function that one message is too much for."""
        if at == "first" and any(
            json.loads(m.body or b"{}")["key"] == self.poison for m in drive.bus.depot.inbox.messages_of(drive.trip.id)
        ):
            raise Poison("too much for me")

    def _start(self, name: str, work: Callable[[], None], *, start: bool = True) -> Actor:
        def act() -> None:
            try:
                work()
            except (BusError, AttemptLive, TripOver) as error:
                actor.error = str(error)
            except Killed:
                return

        actor = Actor(name, greenlet.greenlet(act))
        self.actors.append(actor)
        if start:
            self._go_on(actor)
        return actor

    def _go_on(self, actor: Actor) -> None:
        _acting[:] = self.actors
        actor.greenlet.switch()
        self._bury(actor)

    def _kill(self, actor: Actor) -> None:
        _acting[:] = self.actors
        if actor.greenlet:
            actor.greenlet.throw(Killed())
        self.actors.remove(actor)
        self.runs.over |= {actor.run} - {""}

    def _bury(self, actor: Actor) -> None:
        if actor.is_over:
            self.trace[-1] += " → over" + (f": {actor.error[:90]}" if actor.error else "")
            self.actors.remove(actor)

    def _expire(self, trip: str) -> None:
        """The lease runs out, rightly or wrongly: who drives the trip may live on."""
        self._write("UPDATE depot_attempts SET lease_until = '2000-01-01T00:00:00.000000' WHERE trip = ? AND ended_at IS NULL", trip)

    def _redeliver(self, key: str) -> None:
        self.queue.duplicate(f"m-{self.keys.index(key) + 1}")

    def _redrive(self, key: str) -> None:
        self.queue.send([_outgoing(key)])

    def _cancel(self, trip: str) -> None:
        try:
            self.bus.depot.inbox.cancel(trip, "sent by mistake")
        except Refused:
            return
        self.stopped |= {trip} - self._published()

    def _discard(self, key: str) -> None:
        (message,) = self.bus.depot.inbox.messages(ROUTE.name, key=f"body:{key}")
        self.bus.depot.inbox.discard(ROUTE.name, [message.id], reason="nobody needs it")
        self.given_up.add(key)

    def _published(self) -> set[str]:
        return {trip for (trip,) in self._look["first"].execute("SELECT trip FROM bus_outcomes WHERE outcome = 'published'")}

    def _copy(self) -> None:
        """The depot as it is now, for whoever restores it later."""
        self.snapshot = self.root / "depot.copy"
        with sqlite3.connect(self.root / "depot.db") as source, sqlite3.connect(self.snapshot) as target:
            source.backup(target)
        source.close()
        target.close()

    def _restore(self) -> None:
        """Yesterday's depot, and what its messages were since, by archive and receipts. Dispatchers were stopped for it; runs were not."""
        assert self.snapshot
        for actor in [actor for actor in self.actors if not actor.run]:
            self._kill(actor)
        self.bus.depot.close()
        for leftover in self.root.glob("depot.db*"):
            leftover.unlink()
        shutil.copy(self.snapshot, self.root / "depot.db")
        self.stopped.clear()  # nobody remembers
        self.given_up.clear()
        self.stranded_then = set(self._stranded())  # what came of them since, it does not know: they may be applied
        rebuild(self.bus, self.route)

    def _stranded(self) -> list[str]:
        return [key for (key,) in self._depot("SELECT substr(key, 6) FROM depot_messages WHERE state = 'stranded' ORDER BY id")]

    def hurry(self) -> None:
        """Back-off is over; a run that was asked for and did not come is late; what is in flight on the queue is so no more."""
        self._write("UPDATE depot_trips SET not_before = NULL WHERE state IN ('formed', 'stuck')")
        self._write("UPDATE depot_trips SET departed_at = '2000-01-01T00:00:00.000000' WHERE state = 'departed'")
        self.queue.expire()

    # At the end

    def rest(self) -> None:
        """No more faults: who lives comes to an end, and dispatchers tick until nothing is left to do.

        A depot that was restored under a run has lost that run's verdicts: the route may be paused for it, and a person resumes it.
        """
        while self.actors:
            self.act(f"{self.actors[0].name} ends", lambda: self._go_on(self.actors[0]))
        for _ in range(REST_TICKS):
            paused = self.bus.depot.inbox.paused(ROUTE.name)
            if paused and self._is_restored and "has no verdict" in paused[1]:
                self.act("resumed", lambda: self.bus.depot.inbox.resume(ROUTE.name))
            self.act("tick", self._start_tick)
            while self.actors:
                self._go_on(self.actors[0])
            for departure in list(self.asked):
                self.act(f"launch {departure.trip}", lambda d=departure: self._launch(d))
                while self.actors:
                    self._go_on(self.actors[0])
            if self._is_at_rest():
                return
        self.trace.append("it never came to rest")

    @property
    def _is_restored(self) -> bool:
        return self.snapshot is not None and sum(step.startswith("restored") for step in self.trace) > 1  # the first is the copy

    def _is_at_rest(self) -> bool:
        live = "SELECT 1 FROM depot_trips WHERE state IN ('formed', 'departed', 'driving', 'failed', 'stuck')"
        waits = "SELECT 1 FROM depot_messages WHERE state IN ('waiting', 'aboard')"
        return not self.asked and not self._depot(live) and not self._depot(waits) and not self.queue.depth().waiting

    def wrong(self, *, final: bool = False) -> str | None:
        """The first broken promise. Read with SQL of its own."""
        first, second = self._counted("first", "log"), self._counted("second", "copy")
        if self.stopped and (late := self.stopped & self._published()):
            return f"{min(late)} was cancelled, and published later"
        states = dict(self._depot("SELECT substr(key, 6), state FROM depot_messages"))
        on_queue = {json.loads(message.outgoing.body)["key"] for message in self.queue._messages}
        for key in self.keys:
            state = states.get(key)
            if first[key] > 1 or second[key] > 1:
                return f"{key} is applied {first[key]} and {second[key]} times"
            if second[key] and not first[key]:
                return f"{key} is in the second database only"
            if state in ("stranded", "discarded") and first[key] and key not in self.stranded_then:
                return f"{key} is {state} and applied"
            if key in self.given_up and state != "discarded":
                return f"{key} was discarded, and is {state}"
            if state == "delivered" and not (first[key] and second[key]):
                return f"{key} is delivered and is {first[key]} and {second[key]} times there"
            if state is None and key not in on_queue:
                return f"{key} is lost"
            if final and state not in ("delivered", "stranded", "discarded"):
                return f"at rest, {key} is {state}"
            if final and (state == "stranded") and key != self.poison and not self._may_be_stranded:
                return f"{key} is stranded for nothing"
        return None

    @property
    def _may_be_stranded(self) -> bool:
        """A person cancels; and a trip whose processes die too often is given up: with a budget of one death, any kill or lost lease may
        do that."""
        return any(step.startswith(("kills", "expired", "restored", "cancelled")) for step in self.trace)

    def close(self) -> None:
        for actor in list(self.actors):
            self._kill(actor)
        self.bus.depot.close()
        for connection in self._look.values():
            connection.close()

    def _counted(self, database: str, table: str) -> Counter[str]:
        try:
            return Counter(key for (key,) in self._look[database].execute(f"SELECT key FROM {table}"))
        except sqlite3.OperationalError:
            return Counter()

    def _depot(self, query: str) -> list[Any]:
        with sqlite3.connect(self.root / "depot.db") as connection:
            found = connection.execute(query).fetchall()
        connection.close()
        return found

    def _write(self, statement: str, *values: Any) -> None:
        with sqlite3.connect(self.root / "depot.db") as connection:
            connection.execute(statement, values)
        connection.close()


def _outgoing(key: str) -> Any:
    from resources.queue_seam import Outgoing

    return Outgoing(json.dumps({"key": key}))


@dataclass
class Found:
    """What exploring came to: the first broken promise, and the schedule that broke it."""

    schedules: int = 0
    steps: int = 0
    problem: str | None = None
    trace: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        said = f"{self.schedules} schedules, {self.steps} steps: {self.problem or 'every promise holds'}"
        return "\n".join([said, *(f"  {number}. {step}" for number, step in enumerate(self.trace, 1) if self.problem)])
