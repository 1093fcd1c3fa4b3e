"""The SQL of dispatching: waiting messages become trips, trips depart. Every function runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from resources.depot import routes
from resources.depot.connections import now
from resources.depot.entries import Trip, TripState
from resources.depot.mail import BackingOff, Departure
from resources.depot.many import among
from resources.depot.quarantine import UPDATE_IDS, chunks
from resources.depot.schema import attempts, messages, trips
from resources.depot.trips import new_trip_id, trip_of

UNDERWAY: tuple[TripState, ...] = ("departed", "driving", "failed", "stuck")
STUCK_AGAIN = timedelta(minutes=1)
"""How long a stuck trip waits until it departs once more."""
AGAIN_EVERY = timedelta(minutes=1)
"""How often at most, where one trip rides at a time, one that failed before departs while new ones are ready."""


@dataclass(frozen=True)
class _Ready:
    """A trip whose time has come. ``alone``: if it failed before, while others rode."""

    trip: str
    launches: int
    since: datetime
    alone: bool


@dataclass(frozen=True)
class Limits:
    batch: int
    max_wait_seconds: float
    max_trips: int
    aside: int
    halt_on_stranded: bool


def form(connection: sa.Connection, route: str, limits: Limits, parameters: Mapping[str, Any]) -> int:
    if routes.lock(connection, route)["paused_at"] is not None:
        return 0
    room = limits.max_trips - _standing(connection, route, ("formed", *UNDERWAY))
    if room <= 0:
        _, alone, perhaps = _backing_off(connection, route, limits.aside)
        room += len(alone) + len(perhaps)
    formed = 0
    while formed < room and (ids := _due(connection, route, limits)):
        put_aboard(connection, new_trip(connection, route, parameters), ids)
        formed += 1
    return formed


def _due(connection: sa.Connection, route: str, limits: Limits) -> list[int]:
    """The messages of the next trip; none while it is not full and its oldest message may wait for more."""
    found = _boardable(connection, route, limits.batch, limits.halt_on_stranded)
    if 0 < len(found) < limits.batch:
        waited = now(connection) - min(received for _, received in found)
        if waited < timedelta(seconds=limits.max_wait_seconds):
            return []
    return [number for number, _ in found]


def _boardable(connection: sa.Connection, route: str, batch: int, halt_on_stranded: bool) -> list[tuple[int, datetime]]:
    """The oldest messages that may board one trip together: all of a group in order, and only where none of it is in the way: aboard, or
    stranded before them."""
    query = sa.select(messages.c.id, messages.c.received_at).where(*_waits_for_a_trip_only(route, halt_on_stranded))
    return [(number, received) for number, received in connection.execute(query.order_by(messages.c.id).limit(batch))]


def boardable(connection: sa.Connection, route: str, halt_on_stranded: bool) -> tuple[int, datetime | None]:
    query = sa.select(sa.func.count(), sa.func.min(messages.c.received_at)).where(*_waits_for_a_trip_only(route, halt_on_stranded))
    number, since = connection.execute(query).one()
    return number, since


def _waits_for_a_trip_only(route: str, halt_on_stranded: bool) -> tuple[sa.ColumnElement[bool], ...]:
    other = messages.alias("other")
    in_the_way = other.c.state == "aboard"
    if halt_on_stranded:
        in_the_way |= (other.c.state == "stranded") & (other.c.id < messages.c.id)
    blocked = sa.exists().where(other.c.route == route, other.c.group == messages.c.group, in_the_way)
    return messages.c.route == route, messages.c.state == "waiting", ~blocked


def _standing(connection: sa.Connection, route: str, states: Sequence[TripState]) -> int:
    query = sa.select(sa.func.count()).where(*_of_messages(route), trips.c.state.in_(states))
    return connection.execute(query).scalar_one()


def backing_off(connection: sa.Connection, route: str, at_most: int) -> BackingOff:
    every, alone, perhaps = _backing_off(connection, route, at_most)
    held = [_aboard_or_behind(connection, route, those) for those in (alone, perhaps)]
    waiting = sum(state in ("formed", "stuck") for state in every.values())
    return BackingOff(len(every), waiting, len(alone) + len(perhaps), *held)


def _aboard_or_behind(connection: sa.Connection, route: str, of: Sequence[str]) -> int:
    if not of:
        return 0
    c, first = messages.c, messages.alias("first")
    aboard = (first.c.route == route) & (first.c.state == "aboard") & among(connection, first.c.trip, of)
    behind = (c.state == "waiting") & sa.exists().where(aboard, first.c.group == c.group)
    query = sa.select(sa.func.count()).where(c.route == route, behind)
    return sum(_how_many_aboard(connection, of).values()) + connection.execute(query).scalar_one()


def _backing_off(connection: sa.Connection, route: str, at_most: int) -> tuple[dict[str, TripState], list[str], list[str]]:
    """Trips that failed before and are tried again, which may be for ever, by their state; and those of them that take no other trip's
    place meanwhile: all that fail alone, while others ride (they were split off, or a later trip is delivered); and the first ``at_most``
    of the rest, as what those wait for may be down for everybody.

    Whether one waits, is due or rides at this moment makes no difference: of those that are slow to fail some always are due."""
    failed = _has_failed() | (trips.c.not_before > now(connection))
    columns = (trips.c.created_at, trips.c.id, trips.c.state, _fails_alone(route))
    query = sa.select(*columns).where(*_of_messages(route), trips.c.state.in_(("formed", *UNDERWAY)), failed)
    # Sorted here: for an order, SQLite reads every trip by the index that has it.
    found = sorted(connection.execute(query).tuples())
    sure = [trip for _, trip, _, is_alone in found if is_alone]
    perhaps = [trip for _, trip, _, is_alone in found if not is_alone]
    return {trip: state for _, trip, state, _ in found}, sure, perhaps[:at_most]


def _fails_alone(route: str) -> sa.ColumnElement[bool]:
    """Of a trip that failed: whether others ride, as it was split off, or one that was formed later is delivered."""
    later = trips.alias("later")
    overtook = (later.c.route == route) & (later.c.trigger == "queue") & (later.c.state == "delivered")
    # Newest first, and once: looked for beside each trip, none may be found among all that were ever delivered.
    newest = sa.select(later.c.created_at).where(overtook).order_by(later.c.created_at.desc()).limit(1).scalar_subquery()
    return trips.c.parent.is_not(None) | sa.func.coalesce(newest > trips.c.created_at, sa.false())


def _of_messages(route: str) -> tuple[sa.ColumnElement[bool], ...]:
    return trips.c.route == route, trips.c.trigger == "queue"


def new_trip(connection: sa.Connection, route: str, parameters: Mapping[str, Any], **more: Any) -> str:
    values = {"id": new_trip_id(), "route": route, "trigger": "queue", "parameters": dict(parameters), "state": "formed"}
    connection.execute(sa.insert(trips).values(values | {"created_at": now(connection)} | more))
    return values["id"]


def put_aboard(connection: sa.Connection, trip: str, ids: Sequence[int]) -> None:
    for some in chunks(ids, UPDATE_IDS):
        boarding = sa.update(messages).where(among(connection, messages.c.id, some))
        connection.execute(boarding.values(state="aboard", trip=trip, changed_at=now(connection)))


def form_for_run(
    connection: sa.Connection, route: str, run: str, batch: int, halt_on_stranded: bool, parameters: Mapping[str, Any]
) -> Trip | None:
    routes.lock(connection, route)
    there = connection.execute(sa.select(trips.c.id).where(trips.c.route == route, trips.c.run == run)).scalar()
    if there is not None:
        return trip_of(connection, there)
    ids = [number for number, _ in _boardable(connection, route, batch, halt_on_stranded)]
    if not ids:
        return None
    trip = new_trip(connection, route, parameters, run=run, state="departed", launches=1, departed_at=now(connection))
    put_aboard(connection, trip, ids)
    return trip_of(connection, trip)


def depart(connection: sa.Connection, route: str, max_in_flight: int, limit: int) -> list[Departure]:
    if routes.lock(connection, route)["paused_at"] is not None:
        return []
    moment = now(connection)
    every, again = _in_flight(connection, route, moment)
    room = min(limit, max_in_flight - every)
    if room <= 0:
        return []
    share = max(0, _share(connection, route, moment, max_in_flight) - again)
    leaving = _leaving(connection, route, moment, room, share, kept_free=max_in_flight > 1)
    if not leaving:
        return []
    _launch(connection, [one.trip for one in leaving], moment)
    aboard = _how_many_aboard(connection, [one.trip for one in leaving])
    return [Departure(one.trip, one.launches + 1, aboard.get(one.trip, 0), moment) for one in leaving]


def _in_flight(connection: sa.Connection, route: str, moment: datetime) -> tuple[int, int]:
    """How many trips a run is asked for or drives, and how many of them failed before, stuck ones among them."""
    is_asked_for = (
        (trips.c.not_before > moment) & trips.c.departed_at.is_not(None) & ~_attempted(attempts.c.claimed_at >= trips.c.departed_at)
    )
    flies = trips.c.state.in_(("departed", "driving")) | ((trips.c.state == "stuck") & (_is_driven() | is_asked_for))
    columns = sa.select(sa.case((_has_failed() | (trips.c.state == "stuck"), 1), else_=0).label("again"))
    flying = columns.where(*_of_messages(route), trips.c.state.in_(UNDERWAY), flies).subquery()
    every, again = connection.execute(sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(flying.c.again), 0))).one()
    return every, again


def _leaving(connection: sa.Connection, route: str, moment: datetime, room: int, share: int, *, kept_free: bool) -> list[_Ready]:
    """Who departs now: the longest ready first, but of trips that failed before, some of which may always be due, no more than ``share``
    while new ones are ready. Nor of those that fail alone where the other places are ``kept_free``: a new one may come at any moment."""
    new = _ready(connection, route, moment, room, ~_has_failed())
    again = _ready(connection, route, moment, room, _has_failed())
    leaving = sorted(again[:share] + new, key=lambda one: (one.since, one.trip))[:room]
    beyond = [one for one in again[share:] if not (one.alone and kept_free)]
    return leaving + beyond[: room - len(leaving)]


def _share(connection: sa.Connection, route: str, moment: datetime, max_in_flight: int) -> int:
    """How many of the trips in flight those that failed before may be while new ones are ready: half, or a single one in its turn, which
    comes once others could ride for as long as the last one rode."""
    if max_in_flight > 1:
        return max_in_flight // 2
    ended = sa.select(sa.func.max(attempts.c.ended_at)).where(attempts.c.trip == trips.c.id).scalar_subquery()
    # Not those that failed since they departed: to fail for the first time was no turn.
    had_failed = _attempted(attempts.c.ended_at <= trips.c.departed_at)
    under_way = trips.c.state.in_(("formed", *UNDERWAY))
    turns = connection.execute(sa.select(trips.c.departed_at, ended).where(*_of_messages(route), under_way, had_failed)).tuples().all()
    if not turns:
        return 1
    departed, over = max(turns)
    return 1 if moment >= max(departed + AGAIN_EVERY, over + (over - departed)) else 0


def _ready(connection: sa.Connection, route: str, moment: datetime, room: int, which: sa.ColumnElement[bool]) -> list[_Ready]:
    has_come = trips.c.not_before.is_(None) | (trips.c.not_before <= moment)
    may = trips.c.state.in_(("formed", "stuck")) & ~((trips.c.state == "stuck") & _is_driven())
    since = sa.func.coalesce(trips.c.not_before, trips.c.created_at)
    query = sa.select(trips.c.id, trips.c.launches, since, _fails_alone(route)).where(*_of_messages(route), may, has_come, which)
    # A trip that somebody claims at this moment is locked: it needs no run of ours.
    locked = query.order_by(since, trips.c.id).limit(room).with_for_update(skip_locked=True, of=trips)
    return [_Ready(*found) for found in connection.execute(locked).tuples()]


def _has_failed() -> sa.ColumnElement[bool]:
    return _attempted(attempts.c.ended_at.is_not(None))


def _is_driven() -> sa.ColumnElement[bool]:
    return _attempted(attempts.c.ended_at.is_(None))


def _attempted(how: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Whether a trip has an attempt of which ``how`` is true."""
    return sa.exists().where(attempts.c.trip == trips.c.id, how)


def _launch(connection: sa.Connection, leaving: Sequence[str], moment: datetime) -> None:
    is_stuck = trips.c.state == "stuck"
    values = {
        "state": sa.case((is_stuck, trips.c.state), else_="departed"),
        "not_before": sa.case((is_stuck, sa.literal(moment + STUCK_AGAIN, trips.c.not_before.type)), else_=trips.c.not_before),
        "launches": trips.c.launches + 1,
        "departed_at": moment,
    }
    connection.execute(sa.update(trips).where(trips.c.id.in_(leaving)).values(values))


def _how_many_aboard(connection: sa.Connection, of: Sequence[str]) -> dict[str, int]:
    aboard = messages.c.trip.in_(of) & (messages.c.state == "aboard")
    query = sa.select(messages.c.trip, sa.func.count()).where(aboard).group_by(messages.c.trip)
    return dict(connection.execute(query).tuples().all())
