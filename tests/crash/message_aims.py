"""Whom to kill and when: after a random time, or as soon as something became visible from outside."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tests.crash.message_routes import QUEUES
from tests.crash.message_town import MessageTown, Worker
from tests.crash.town import look, looking

POLL_SECONDS = 0.002
PATIENCE_SECONDS = {"stranded": 15.0}
USUAL_PATIENCE_SECONDS = 4.0
AT_ONCE = ("boarded", "committed", "departed", "stranded")
"""What is over in milliseconds; after the other moments some more of them may pass."""
LATER_SECONDS = 0.015
STRANDED_AGAIN_SECONDS = 3.0
SHARES = {
    "any run": 10,
    "any tick": 8,
    "claimed": 8,
    "judged": 14,
    "publishing": 12,
    "committed": 12,
    "told": 8,
    "received": 7,
    "archived": 6,
    "boarded": 9,
    "departed": 9,
    "revoked": 8,
}
"""Of the kills. A window of milliseconds is waited for and still missed more often than hit."""

_RUNS = {
    "claimed": "SELECT pid, trip, attempt FROM depot_attempts",
    "judged": "SELECT a.pid, v.trip, v.attempt, v.stop FROM depot_verdicts v JOIN depot_attempts a USING (trip, attempt)",
    "told": "SELECT a.pid, p.trip FROM depot_publications p JOIN depot_attempts a USING (trip, attempt)",
}
"""What appears while a run goes on, with its process first."""
_PENDING = "SELECT 1 FROM depot_messages WHERE to_dead_letters LIMIT 1"
_OUTCOMES = "SELECT trip, attempt FROM bus_outcomes WHERE outcome = :outcome"
_PID = "SELECT a.pid, t.route FROM depot_attempts a JOIN depot_trips t ON t.id = a.trip WHERE a.trip = :trip AND a.attempt = :attempt"
_TICKS = {
    "boarded": "SELECT route, count(*) FROM depot_messages GROUP BY route",
    "departed": "SELECT route, sum(launches) FROM depot_trips GROUP BY route",
}
"""Sums that a tick raises, by route."""


@dataclass
class Aim:
    town: MessageTown
    rng: random.Random
    _next_stranded: float = 0.0

    def taken(self, kind: str, running: Sequence[Worker], meanwhile: Callable[[], None]) -> Worker | None:
        """Waits, ``meanwhile`` having been called once; None if what was waited for did not come.

        A dead letter that is about to be sent is rare: where one is seen on the way, that tick is the victim.
        """
        with ExitStack() as stack:
            happened = self._happened(kind, stack)
            meanwhile()
            if happened is None:
                time.sleep(self.rng.random() * 0.6)
                return self.rng.choice([worker for worker in running if (worker.route is None) == (kind == "any run")])
            stranded = None if self.town.place.mended.exists() else stack.enter_context(looking(self.town.depot))
            deadline = time.monotonic() + PATIENCE_SECONDS.get(kind, USUAL_PATIENCE_SECONDS)
            while time.monotonic() < deadline:
                if stranded and time.monotonic() > self._next_stranded and look(stranded, _PENDING):
                    self._next_stranded = time.monotonic() + STRANDED_AGAIN_SECONDS
                    return self._whose("events", running)
                if (found := happened()) is not None and (victim := self._whose(found, running)):
                    if kind not in AT_ONCE and self.rng.random() < 0.4:
                        time.sleep(self.rng.random() * LATER_SECONDS)
                    return victim
                time.sleep(POLL_SECONDS)
        return None

    def _whose(self, found: Any, running: Sequence[Worker]) -> Worker | None:
        """By pid, or one of the dispatchers of a route."""
        of = [worker for worker in running if worker.is_running and found == (worker.route if isinstance(found, str) else worker.pid)]
        return self.rng.choice(of) if of else None

    def _happened(self, kind: str, stack: ExitStack) -> Callable[[], Any] | None:
        """What gives the pid of a run or the route of a dispatcher, once it happened."""
        town = self.town
        if kind.startswith("any"):
            return None
        if kind == "publishing":
            return town.publisher
        if kind == "archived":
            return risen(lambda: {route: len(town.archive_files(route)) for route in QUEUES})
        if kind == "received":
            return risen(lambda: {route: town.on_queue(route)[1] for route in QUEUES})
        depot = stack.enter_context(looking(town.depot))
        if kind == "stranded":
            return lambda: "events" if look(depot, _PENDING) else None
        if kind in _TICKS:
            return risen(lambda: {route: int(number) for route, number in look(depot, _TICKS[kind])})
        if kind in _RUNS:
            return new(lambda: {(row[1:], row[0]) for row in map(tuple, look(depot, _RUNS[kind]))})
        warehouse = stack.enter_context(looking(town.warehouse))
        outcome = "published" if kind == "committed" else "revoked"
        fresh = new(lambda: {(tuple(row), tuple(row)) for row in look(warehouse, _OUTCOMES, outcome=outcome)})

        def whose() -> Any:
            found = fresh()
            known = look(depot, _PID, trip=found[0], attempt=found[1]) if found else []
            return known[0][0 if kind == "committed" else 1] if known else None

        return whose


def risen(numbers: Callable[[], dict[str, int]]) -> Callable[[], str | None]:
    """The route whose number is higher than at some look before."""
    lowest = numbers()

    def which() -> str | None:
        for route, number in numbers().items():
            if number > lowest.get(route, 0):
                return route
            lowest[route] = number
        return None

    return which


def new(found: Callable[[], set[tuple[Any, Any]]]) -> Callable[[], Any]:
    """What belongs to an entry that was not there at first; each new one is told once."""
    known = {key for key, _ in found()}

    def fresh() -> Any:
        for key, what in found():
            if key not in known:
                known.add(key)
                return what
        return None

    return fresh
