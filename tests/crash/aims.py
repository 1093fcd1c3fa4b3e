"""When to kill: after a random time, or at a random moment after something became visible from outside."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from tests.crash.town import Ride, Town, look, looking
from tests.crash.windows import SECOND_STOP

POLL_SECONDS = 0.001
SHARES = {"any time": 34, "claimed": 8, "staged": 15, "judged": 10, "publishing": 12, "committed": 18, "delivered": 5}
"""Of the kills. Most moments are hit by chance alone; those that last milliseconds are waited for."""

_AFTERWARDS = {"any time": 0.9, "claimed": 0.15, "staged": 0.02, "judged": 0.2, "publishing": 0.15, "committed": 0, "delivered": 0.05}
"""How much later at most than what is waited for, as a share of a ride."""

_VERDICT = """
    SELECT 1 FROM depot_verdicts v JOIN depot_trips t ON t.id = v.trip
    WHERE t.route = :route AND t.parameters LIKE :file AND v.stop = :stop AND v.attempt > :attempt
"""
_ATTEMPT = """
    SELECT 1 FROM depot_attempts a JOIN depot_trips t ON t.id = a.trip
    WHERE t.route = :route AND t.parameters LIKE :file AND a.attempt > :attempt
"""
_STATE = "SELECT 1 FROM depot_trips t WHERE t.route = :route AND t.parameters LIKE :file AND t.state = 'delivered'"
_OUTCOMES = "SELECT count(*) FROM bus_outcomes WHERE outcome = 'published'"


@dataclass(frozen=True)
class Ridden:
    """What is being driven: ``attempt`` is the newest that was there before."""

    route: str
    file: str
    attempt: int


@dataclass
class Aim:
    """``typical_seconds`` is how long a whole ride takes, as measured so far."""

    town: Town
    rng: random.Random
    typical_seconds: float = 2.0

    def measured(self, seconds: float) -> None:
        self.typical_seconds = (self.typical_seconds + seconds) / 2

    @contextmanager
    def taken(self, kind: str, ridden: Ridden) -> Iterator[Callable[[Ride], None]]:
        """Opened before the ride starts, so that nothing is missed; gives what waits for the moment, or for the ride's own end."""
        pause = self.rng.random() * self.typical_seconds * _AFTERWARDS[kind]
        if kind == "any time":
            yield lambda ride: ride.process.join(pause)
            return
        if kind == "staged":
            known = set(self._staged(ridden.route))
            stop = self.rng.choice(("orders", SECOND_STOP[ridden.route]))
            yield lambda ride: _until(lambda: any(path.split("/")[-3] == stop for path in self._staged(ridden.route) - known), ride, pause)
            return
        if kind == "publishing":
            yield lambda ride: _until(self.town.is_publishing, ride, pause)
            return
        with looking(self.town.warehouse if kind == "committed" else self.town.depot) as connection:
            yield lambda ride: _until(self._seen(kind, connection, ridden), ride, pause)

    def _seen(self, kind: str, connection: sa.Connection, ridden: Ridden) -> Callable[[], bool]:
        values = {"route": ridden.route, "file": f"%{ridden.file}%", "attempt": ridden.attempt}
        if kind == "judged":
            return lambda: bool(look(connection, _VERDICT, stop=SECOND_STOP[ridden.route], **values))
        if kind == "claimed":
            return lambda: bool(look(connection, _ATTEMPT, **values))
        if kind == "delivered":
            return lambda: bool(look(connection, _STATE, route=ridden.route, file=f"%{ridden.file}%"))
        before = _counted(connection)
        return lambda: _counted(connection) > before

    def _staged(self, route: str) -> set[str]:
        """Folders of staged files, by name: …/STOP/TOKEN/rows."""
        return {str(path) for path in self.town.place.staging.glob(f"{route}/*/*/*/*/*/*")}


def _counted(warehouse: sa.Connection) -> int:
    """0 before there is a table, too."""
    found = look(warehouse, _OUTCOMES)
    return found[0][0] if found else 0


def _until(happened: Callable[[], bool], ride: Ride, pause: float) -> None:
    while ride.is_running and not happened():
        time.sleep(POLL_SECONDS)
    ride.process.join(pause)
