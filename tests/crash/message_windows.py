"""Where a kill landed, read from what is durable: depot, destination, archive, queue. Of runs by their attempt, of dispatchers by sums.

A dispatcher leaves no name anywhere, so its traces are sums that do not come out even: more received than archived, more archived
than deleted, more trips departed than it told of. What earlier kills have left behind is subtracted.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.crash.message_routes import LAST_STOP, VISIBILITY_SECONDS
from tests.crash.message_town import MessageTown, Worker
from tests.crash.town import rows

BETWEEN = "run: between two trips"
CLAIMED = "run: claimed, nothing judged"
HALF_JUDGED = "run: messages judged, the rest not"
JUDGED = "run: judged, not publishing"
PUBLISHING = "run: in the transaction"
COMMITTED = "run: committed, depot not told"
TOLD = "run: publication told, messages not"
RECEIVED = "tick: received, not archived"
ARCHIVED = "tick: archived, not in the depot"
BOARDED = "tick: in the depot, not deleted"
DEPARTED = "tick: departed, no run asked for"
REVOKED = "tick: revoked, trip not judged"
STRANDED = "tick: stranded, dead letter not sent"
ELSEWHERE = "tick: at rest or between these"
RUN_WINDOWS = (BETWEEN, CLAIMED, HALF_JUDGED, JUDGED, PUBLISHING, COMMITTED, TOLD)
TICK_WINDOWS = (RECEIVED, ARCHIVED, BOARDED, DEPARTED, REVOKED, STRANDED, ELSEWHERE)
WINDOWS = (*RUN_WINDOWS, *TICK_WINDOWS)

_ATTEMPT = """
    SELECT a.trip, a.attempt, a.outcome, t.route, t.state FROM depot_attempts a JOIN depot_trips t ON t.id = a.trip
    WHERE a.pid = :pid ORDER BY a.claimed_at DESC LIMIT 1
"""
_PUBLISHED = "SELECT 1 FROM bus_outcomes WHERE trip = :trip AND attempt = :attempt AND outcome = 'published'"
_PASSED = "SELECT stop FROM depot_verdicts WHERE trip = :trip AND attempt = :attempt AND passed"
_UNJUDGED = """
    SELECT a.trip, a.attempt, a.ended_at, a.outcome FROM depot_trips t JOIN depot_attempts a ON a.trip = t.id
    WHERE t.route = :route AND t.state IN ('driving', 'failed')
    AND a.attempt = (SELECT max(attempt) FROM depot_attempts WHERE trip = t.id)
"""
_REVOKED = "SELECT 1 FROM bus_outcomes WHERE trip = :trip AND attempt = :attempt AND outcome = 'revoked'"
_PENDING = "SELECT 1 FROM depot_messages WHERE route = :route AND to_dead_letters AND state = 'stranded' LIMIT 1"


@dataclass
class Windows:
    """Names the window of each kill in one town."""

    town: MessageTown
    _undeleted: Counter[str] = field(default_factory=Counter)
    _untold: Counter[str] = field(default_factory=Counter)
    _in_flight: dict[str, tuple[int, float]] = field(default_factory=dict)

    def of(self, killed: Worker, *, was_inside: bool) -> str:
        """``was_inside``: it stood in a transaction on the warehouse when it was stopped."""
        return self._of_tick(killed.route) if killed.route else self._of_run(killed.pid, was_inside)

    def forget(self) -> None:
        """The depot is another one now: what is uneven from here on is taken as it stands."""
        for route in LAST_STOP:
            self._of_tick(route)

    def _of_run(self, pid: int, was_inside: bool) -> str:
        town, found = self.town, rows(self.town.depot, _ATTEMPT, pid=pid)
        if not found:
            return BETWEEN
        trip, attempt, outcome, route, state = found[0]
        if rows(town.warehouse, _PUBLISHED, trip=trip, attempt=attempt):
            if state == "delivered":
                return BETWEEN
            return TOLD if rows(town.depot, "SELECT 1 FROM depot_publications WHERE trip = :trip", trip=trip) else COMMITTED
        if outcome not in (None, "revoked"):
            return BETWEEN
        if was_inside:
            return PUBLISHING
        passed = {stop for (stop,) in rows(town.depot, _PASSED, trip=trip, attempt=attempt)}
        return JUDGED if LAST_STOP[route] in passed else HALF_JUDGED if passed else CLAIMED

    def _of_tick(self, route: str) -> str:
        town = self.town
        waiting, in_flight = town.on_queue(route)
        archived, newest = self._archive(route)
        undeleted = archived - (town.sendings[route] - waiting - in_flight)
        left_on_queue, self._undeleted[route] = undeleted - self._undeleted[route], undeleted
        launches = rows(town.depot, "SELECT coalesce(sum(launches), 0) FROM depot_trips WHERE route = :r", r=route)
        untold = int(launches[0][0] if launches else 0) - town.departures_told(route)
        not_told, self._untold[route] = untold - self._untold[route], untold
        if left_on_queue > 0:
            known = {key for (key,) in rows(town.depot, "SELECT key FROM depot_messages WHERE route = :r", r=route)}
            return BOARDED if newest <= known else ARCHIVED
        if self._just_received(route, in_flight):
            return RECEIVED
        if rows(town.depot, _PENDING, route=route):
            return STRANDED
        if self._unjudged(route):
            return REVOKED
        return DEPARTED if not_told > 0 else ELSEWHERE

    def _archive(self, route: str) -> tuple[int, set[str]]:
        """How many deliveries were archived ever, and the keys in the newest file."""
        texts = [file.read_text().splitlines() for file in self.town.archive_files(route)]
        return sum(map(len, texts)), {json.loads(line)["key"] for line in texts[-1]} if texts else set()

    def _just_received(self, route: str, in_flight: int) -> bool:
        before, at = self._in_flight.get(route, (0, 0.0))
        still_hidden = before if time.monotonic() - at < VISIBILITY_SECONDS else 0
        self._in_flight[route] = (in_flight, time.monotonic())
        return in_flight > still_hidden

    def _unjudged(self, route: str) -> bool:
        for trip, attempt, ended_at, outcome in rows(self.town.depot, _UNJUDGED, route=route):
            if outcome == "revoked" or (ended_at is None and rows(self.town.warehouse, _REVOKED, trip=trip, attempt=attempt)):
                return True
        return False
