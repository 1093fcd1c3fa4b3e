"""The SQL of settling: how trips of messages go on after an attempt, and how they end. Every function runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from resources.depot import decisions, quarantine, routes
from resources.depot.connections import now
from resources.depot.entries import OVER, Attempt, Trip, TripState
from resources.depot.forming import UNDERWAY, new_trip, put_aboard
from resources.depot.mail import Riders, Spent, Underway
from resources.depot.many import among
from resources.depot.messages import in_riding_order
from resources.depot.quarantine import UPDATE_IDS, brief, chunks
from resources.depot.schema import attempts, messages, trips
from resources.depot.trips import has_published, is_to_stop, newest_attempt, trip_of
from resources.errors import Misconfigured, Refused


@dataclass(frozen=True)
class Stranding:
    error: str
    to_dead_letters: bool
    halts_group: bool


def underway(connection: sa.Connection, route: str) -> list[Underway]:
    query = sa.select(trips).where(trips.c.route == route, trips.c.trigger == "queue", trips.c.state.in_(UNDERWAY))
    found = [Trip(**row) for row in connection.execute(query.order_by(trips.c.created_at, trips.c.id)).mappings()]
    if not found:
        return []
    query = sa.select(attempts).where(attempts.c.trip.in_([trip.id for trip in found])).order_by(attempts.c.attempt)
    newest = {row["trip"]: Attempt(**row) for row in connection.execute(query).mappings()}
    moment = now(connection)
    return [Underway(trip, newest.get(trip.id), (moment - (trip.departed_at or moment)).total_seconds()) for trip in found]


def riders(connection: sa.Connection, trip: str, launch: int) -> Riders | None:
    found, c = trip_of(connection, trip), messages.c
    if _was_settled(found, launch):
        return None
    query = sa.select(c.id, c.group, c.event_at, c.sent_at, c.received_at, c.sequencer).where(c.trip == trip, c.state == "aboard")
    aboard = in_riding_order(connection.execute(query).all())
    return Riders(tuple(row.id for row in aboard), tuple(row.group for row in aboard))


def retry(connection: sa.Connection, trip: str, delay_seconds: float, spent: Spent | None, launch: int | None, error: str | None) -> bool:
    found = _to_settle(connection, trip, launch)
    if found is None:
        return False
    values: dict[str, Any] = {
        "state": "stuck" if has_published(connection, found) else "formed",
        "not_before": now(connection) + timedelta(seconds=delay_seconds),
        "ended_at": None,
        "failures": found.failures + (spent == "failure"),
        "deaths": found.deaths + (spent == "death"),
        "error": error or found.error,
    }
    connection.execute(sa.update(trips).where(trips.c.id == trip).values(values))
    return True


def split(connection: sa.Connection, trip: str, parts: Sequence[Sequence[int]], launch: int | None) -> list[str]:
    found = _to_settle(connection, trip, launch)
    if found is None:
        return []
    _check_unpublished(connection, found)
    groups = _groups(connection, trip)
    _check_parts(found, parts, groups)
    _discard_rows(connection, trip)
    made = [_ride_on(connection, found, part) for part in parts]
    _wait(connection, trip)
    _end(connection, trip, "split", found.error)
    return made


def strand(connection: sa.Connection, trip: str, ids: Sequence[int], how: Stranding, launch: int | None) -> bool:
    found = _to_settle(connection, trip, launch)
    if found is None:
        return False
    _check_unpublished(connection, found)
    groups = _groups(connection, trip)
    if not ids or set(ids) - groups.keys():
        raise Misconfigured(f"messages {brief(ids)} cannot be stranded: they are not all aboard trip {trip}")
    others = _riding_on(groups, set(ids), how.halts_group)
    _strand(connection, trip, ids, how)
    _discard_rows(connection, trip)
    if others:
        _ride_on(connection, found, others)
    _wait(connection, trip)
    _end(connection, trip, "split" if others else "stranded", how.error)
    return True


def _riding_on(groups: Mapping[int, str | None], stranded: set[int], halts_group: bool) -> list[int]:
    """Who rides on without the stranded: with ``halts_group`` nobody that comes after one of its group."""
    halted: set[str | None] = set()
    others: list[int] = []
    for number, group in groups.items():
        if number in stranded:
            halted |= {group} if halts_group and group is not None else set()
        elif group not in halted:
            others.append(number)
    return others


def delivered(connection: sa.Connection, trip: str, rejected: Mapping[int, int], quarantined: Mapping[int, str], *, kept: bool) -> int:
    found = trip_of(connection, trip)
    route, failures = found.route, routes.lock(connection, found.route)["failures_in_row"]
    number_aboard = len(_groups(connection, trip))
    if not number_aboard:
        return failures
    aboard = (messages.c.trip == trip) & (messages.c.state == "aboard")
    one = aboard & (messages.c.id == sa.bindparam("number"))
    changed_at = now(connection)
    if some := [{"number": number, "rows": rows} for number, rows in rejected.items() if rows]:
        connection.execute(sa.update(messages).where(one).values(rows_rejected=sa.bindparam("rows")), some)
    if some := [{"number": number, "why": why} for number, why in quarantined.items()]:
        given_up = {"state": "quarantined", "error": sa.bindparam("why"), "changed_at": changed_at}
        connection.execute(sa.update(messages).where(one).values(given_up), some)
    done = sa.update(messages).where(aboard).values(state="delivered", error=None, changed_at=changed_at)
    routes.count(connection, route, delivered=connection.execute(done).rowcount)
    if kept:
        routes.succeeded(connection, route)
        return 0
    # A trip that failed before is counted already; a message by itself tells of no other.
    return failures if found.failures or number_aboard == 1 else routes.failed_in_row(connection, route)


def applied(connection: sa.Connection, trip: str, ids: Sequence[int]) -> int:
    found = _locked(connection, trip)
    number = 0
    for some in chunks(dict.fromkeys(ids), UPDATE_IDS):
        off = sa.update(messages).where(messages.c.trip == trip, messages.c.state == "aboard", among(connection, messages.c.id, some))
        number += connection.execute(off.values(state="delivered", trip=None, error=None, changed_at=now(connection))).rowcount
    routes.count(connection, found.route, delivered=number)
    left = len(_groups(connection, trip))
    if number and not left and found.state in ("formed", "departed", "driving", "failed") and not has_published(connection, found):
        _end(connection, trip, "empty", None)
    return left


def cancel(connection: sa.Connection, trip: str, reason: str) -> Trip:
    found = _locked(connection, trip)
    if found.state == "cancelled":
        return found
    # Of a release that was only rehearsed nothing is published, and it keeps its rows.
    if found.state in ("delivered", *OVER) or (found.state == "rehearsed" and found.trigger != "release"):
        raise Refused(f"trip {trip} is {found.state}: there is nothing left to cancel")
    if has_published(connection, found):
        forward = f"`bus drive {found.route} --trip {trip}`"
        raise Refused(f"trip {trip} has published: it cannot be cancelled any more, it only rolls forward, with {forward}")
    why = found.cancelled or reason
    connection.execute(sa.update(trips).where(trips.c.id == trip).values(cancelled=why))
    if not _is_driven(connection, trip):
        aboard = (messages.c.trip == trip) & (messages.c.state == "aboard")
        decisions.keep(connection, aboard, "cancelled", why, now(connection))
        _strand(connection, trip, list(_groups(connection, trip)), Stranding(why, to_dead_letters=False, halts_group=True))
        _end(connection, trip, "cancelled", why)
    return trip_of(connection, trip)


def _locked(connection: sa.Connection, trip: str) -> Trip:
    """The trip, locked; its route's lock was taken before it, as everybody does."""
    routes.lock(connection, trip_of(connection, trip).route)
    return trip_of(connection, trip, lock=True)


def _to_settle(connection: sa.Connection, trip: str, launch: int | None) -> Trip | None:
    """The trip, locked, if it is to be settled by this call; None if somebody else did that, or has to do something before."""
    found = _locked(connection, trip)
    return None if _was_settled(found, launch) or is_to_stop(connection, found) or _is_driven(connection, trip) else found


def _was_settled(trip: Trip, launch: int | None) -> bool:
    """Whether the trip is over, or rides on, since it was found under way: with that launch, or with any."""
    return trip.state not in UNDERWAY or (launch is not None and launch != trip.launches)


def _is_driven(connection: sa.Connection, trip: str) -> bool:
    newest = newest_attempt(connection, trip)
    return newest is not None and newest.ended_at is None


def _check_unpublished(connection: sa.Connection, trip: Trip) -> None:
    if has_published(connection, trip):
        raise Refused(f"trip {trip.id} has published: its messages stay together, and it only rolls forward")


def _groups(connection: sa.Connection, trip: str) -> dict[int, str | None]:
    """The messages aboard and their groups, in the order of boarding."""
    query = sa.select(messages.c.id, messages.c.group).where(messages.c.trip == trip, messages.c.state == "aboard")
    return dict(connection.execute(query.order_by(messages.c.id)).tuples().all())


def _check_parts(trip: Trip, parts: Sequence[Sequence[int]], groups: Mapping[int, str | None]) -> None:
    place = {number: index for index, part in enumerate(parts) for number in part}
    if not all(parts) or len(place) != sum(map(len, parts)) or place.keys() - groups.keys():
        raise Misconfigured(f"trip {trip.id} cannot be split so: every part has messages, all aboard, and each is in one part only")
    first: dict[str, int | None] = {}
    for number, group in groups.items():
        # None, in no part, is also a place: what follows one that waits must wait too.
        if group is not None and first.setdefault(group, place.get(number)) != place.get(number) and number in place:
            raise Misconfigured(f"trip {trip.id} cannot be split so: message {number} would overtake, or leave, its group")
        if group is not None and number not in place:
            first[group] = None


def _ride_on(connection: sa.Connection, trip: Trip, ids: Sequence[int]) -> str:
    made = new_trip(connection, trip.route, trip.parameters, partition=trip.partition, parent=trip.id)
    put_aboard(connection, made, ids)
    return made


def _wait(connection: sa.Connection, trip: str) -> None:
    left = sa.update(messages).where(messages.c.trip == trip, messages.c.state == "aboard")
    connection.execute(left.values(state="waiting", trip=None, changed_at=now(connection)))


def _strand(connection: sa.Connection, trip: str, ids: Sequence[int], how: Stranding) -> None:
    values = {"state": "stranded", "error": how.error, "to_dead_letters": how.to_dead_letters, "changed_at": now(connection)}
    for some in chunks(ids, UPDATE_IDS):
        connection.execute(sa.update(messages).where(messages.c.trip == trip, among(connection, messages.c.id, some)).values(values))


def _discard_rows(connection: sa.Connection, trip: str) -> None:
    """Rows that this trip holds of messages that leave it: they come again with their message."""
    leaving = sa.select(messages.c.id).where(messages.c.trip == trip, messages.c.state == "aboard")
    quarantine.discard_of_trip(connection, trip, leaving, "its message rides in another trip")


def _end(connection: sa.Connection, trip: str, state: TripState, error: str | None) -> None:
    connection.execute(sa.update(trips).where(trips.c.id == trip).values(state=state, error=error, ended_at=now(connection)))
