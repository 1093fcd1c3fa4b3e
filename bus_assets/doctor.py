"""What is wrong with a route, since when, and what to do next: one small function for each kind of finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bus_assets.route import Route
from resources.depot.store import Depot
from resources.errors import BusError

UNCLAIMED_SECONDS = 60
OLD_SECONDS = 300
LAUNCHES = 4
MANY = 1_000


@dataclass(frozen=True)
class Finding:
    """``advice`` is the next command, or the next thing to look at."""

    route: str
    wrong: str
    advice: str
    since: datetime | None = None


def findings(depot: Depot, route: Route, systems: Mapping[str, Any]) -> list[Finding]:
    """Everything that is wrong with ``route``, the gravest first."""
    return [finding for look in LOOKS for finding in look(depot, route, systems)]


def _paused(depot: Depot, route: Route, systems: Mapping[str, Any]) -> Iterator[Finding]:
    if route.queue and (paused := depot.inbox.paused(route.name)):
        yield Finding(route.name, f"paused: {paused[1]}", f"mend it, then `bus resume {route.name}`", paused[0])


def _unreachable(depot: Depot, route: Route, systems: Mapping[str, Any]) -> Iterator[Finding]:
    for name in route.databases:
        try:
            systems[name].prepare(())
        except BusError as error:
            yield Finding(route.name, f"database '{name}': {error}", "start it, or correct its URL or rights")
    for name in route.queue.systems if route.queue else ():
        try:
            systems[name].depth()
        except BusError as error:
            yield Finding(route.name, f"queue '{name}': {error}", "create it, or correct its name or rights")


def _trips(depot: Depot, route: Route, systems: Mapping[str, Any]) -> Iterator[Finding]:
    now = datetime.now(UTC)
    for trip in depot.trips(route.name, "stuck", MANY):
        yield Finding(
            route.name,
            f"trip {trip.id} is committed in one database and not in all: {trip.error or 'its process died'}",
            f"`bus drive {route.name} --trip {trip.id}` rolls it forward",
            trip.created_at,
        )
    if not route.queue:
        return
    for found in depot.inbox.underway(route.name):
        asked = found.trip.departed_at
        if found.trip.state == "departed" and asked and now - asked > timedelta(seconds=UNCLAIMED_SECONDS):
            yield Finding(route.name, f"nobody drives trip {found.trip.id}", "is a worker up? `bus up`, or `bus worker`", asked)
        elif found.attempt and found.attempt.ended_at is None and depot.is_abandoned(found.attempt):
            yield Finding(route.name, f"the process that drove trip {found.trip.id} is gone", "the sensor settles it: is the daemon up?")
    for trip in depot.trips(route.name, "formed", MANY):
        if trip.launches >= LAUNCHES:
            said = f"trip {trip.id} fails again and again: {trip.error or 'see its runs'}"
            yield Finding(route.name, said, f"`bus trip {trip.id}`; `bus cancel {trip.id} --reason …` gives it up", trip.created_at)


def _messages(depot: Depot, route: Route, systems: Mapping[str, Any]) -> Iterator[Finding]:
    if not route.queue:
        return
    counts = depot.inbox.counts(route.name)
    for state in ("stranded", "quarantined", "held"):
        number = counts.by_state.get(state, 0)
        if number:
            waiting = depot.inbox.messages(route.name, state, limit=MANY)
            why = Counter((message.error or "").partition("\n")[0][:80] for message in waiting).most_common(1)[0][0]
            advice = f"`bus messages {route.name} --state {state}`, then `bus redrive {route.name} --state {state} --reason …`"
            yield Finding(route.name, f"{number} messages are {state}, most of them: {why}", advice, waiting[0].changed_at)
    oldest = counts.oldest_waiting
    if oldest and (datetime.now(UTC) - oldest).total_seconds() > OLD_SECONDS:
        yield Finding(route.name, f"{counts.by_state.get('waiting', 0)} messages wait", "is the sensor on, and a worker up?", oldest)
    unsent = depot.inbox.dead_letters(route.name, MANY)
    if unsent and route.queue.dead_letters:
        yield Finding(route.name, f"{len(unsent)} stranded messages are not among the dead letters yet", "the sensor sends them: is it on?")


LOOKS: tuple[Callable[[Depot, Route, Mapping[str, Any]], Iterator[Finding]], ...] = (_unreachable, _paused, _trips, _messages)
