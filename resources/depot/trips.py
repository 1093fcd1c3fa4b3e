"""The SQL of trips, attempts, verdicts and publications. Every function runs in the caller's transaction."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from resources.depot import schema
from resources.depot.connections import now
from resources.depot.entries import (
    OVER,
    AlreadyDelivered,
    Attempt,
    AttemptEnded,
    AttemptLive,
    NoSuchTrip,
    Outcome,
    Publication,
    Trip,
    TripOver,
    TripState,
    Verdict,
)
from resources.errors import Refused

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
trips, attempts, verdicts, publications = schema.trips, schema.attempts, schema.verdicts, schema.publications


def new_trip_id() -> str:
    """26 characters that sort by time: 48 bits of milliseconds, 80 of chance (a lower-case ULID)."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def insert_trip(connection: sa.Connection, values: Mapping[str, Any]) -> Trip:
    """The trip as inserted, or the one that was there under this id or this run of the route."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(trips).values(created_at=now(connection), state="driving", **values).on_conflict_do_nothing())
    same = trips.c.id == values["id"]
    if values["run"] is not None:
        same |= (trips.c.route == values["route"]) & (trips.c.run == values["run"])
    found = [Trip(**row) for row in connection.execute(sa.select(trips).where(same)).mappings()]
    if len(found) != 1 or found[0].route != values["route"]:
        raise Refused(f"trip id {values['id']} is taken by another trip (route '{found[0].route}'); choose another id, or none")
    return found[0]


def trip_of(connection: sa.Connection, trip: str, *, lock: bool = False) -> Trip:
    """The trip; ``lock``: other writers of this trip wait until this transaction ends."""
    query = sa.select(trips).where(trips.c.id == trip)
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is None:
        raise NoSuchTrip(f"the depot has no trip {trip[:80]!r}")
    return Trip(**row)


def trip_of_run(connection: sa.Connection, route: str, run: str) -> Trip | None:
    tried = sa.select(attempts.c.trip).where(attempts.c.run == run)
    query = sa.select(trips).where(trips.c.route == route, (trips.c.run == run) | trips.c.id.in_(tried))
    row = connection.execute(query.order_by(trips.c.created_at.desc()).limit(1)).mappings().one_or_none()
    return Trip(**row) if row else None


def list_trips(connection: sa.Connection, route: str | None, state: str | None, limit: int) -> list[Trip]:
    query = sa.select(trips).order_by(trips.c.created_at.desc(), trips.c.id.desc()).limit(limit)
    if route is not None:
        query = query.where(trips.c.route == route)
    if state is not None:
        query = query.where(trips.c.state == state)
    return [Trip(**row) for row in connection.execute(query).mappings()]


def last_passed(connection: sa.Connection, route: str, stops: frozenset[str]) -> Trip | None:
    passed = (
        sa.select(verdicts.c.trip)
        .where(verdicts.c.stop.in_(stops))
        .group_by(verdicts.c.trip)
        .having(sa.func.count(sa.case((verdicts.c.passed, verdicts.c.stop)).distinct()) == len(stops))
    )
    query = sa.select(trips).where(trips.c.route == route, trips.c.id.in_(passed))
    row = connection.execute(query.order_by(trips.c.created_at.desc(), trips.c.id.desc()).limit(1)).mappings().one_or_none()
    return Trip(**row) if row else None


def claim(
    connection: sa.Connection,
    trip: str,
    run: str,
    lease: timedelta,
    process: Mapping[str, Any],
    defaults: Mapping[str, Any],
    converted: Mapping[str, Any],
) -> Attempt:
    found = trip_of(connection, trip, lock=True)
    own = _attempt(connection, attempts.c.trip == trip, attempts.c.run == run)
    if own is not None and own.outcome in ("revoked", "failed"):
        raise AttemptEnded(found, own.attempt, f"was {own.outcome}")
    if found.state in OVER:
        raise TripOver(found)
    if own is not None:
        return _claim_again(connection, found, own, lease, process)
    if found.state == "delivered":
        raise AlreadyDelivered(found)
    newest = newest_attempt(connection, trip)
    if newest is not None and newest.ended_at is None:
        raise AttemptLive(newest)
    if is_to_stop(connection, found):
        raise TripOver(found)
    moment = now(connection)
    number = newest.attempt + 1 if newest else 1
    values = {"trip": trip, "attempt": number, "run": run, "claimed_at": moment, "lease_until": moment + lease, **process}
    connection.execute(sa.insert(attempts).values(values))
    changed: dict[str, Any] = {} if found.state == "stuck" else {"state": "driving", "ended_at": None, "error": None}
    if converted or defaults.keys() - found.parameters.keys():
        changed["parameters"] = {**defaults, **found.parameters, **converted}
    if changed:
        connection.execute(sa.update(trips).where(trips.c.id == trip).values(changed))
    return _the_attempt(connection, trip, number)


def _claim_again(connection: sa.Connection, trip: Trip, own: Attempt, lease: timedelta, process: Mapping[str, Any]) -> Attempt:
    if own.ended_at is None:
        if is_to_stop(connection, trip):
            raise TripOver(trip)
        changed = {"lease_until": now(connection) + lease, **process}
        connection.execute(sa.update(attempts).where(_is(own.trip, own.attempt)).values(changed))
    return _the_attempt(connection, own.trip, own.attempt)


def renew(connection: sa.Connection, trip: str, attempt: int, lease: timedelta) -> bool:
    asked_to_stop = sa.exists().where(trips.c.id == trip, trips.c.cancelled.is_not(None))
    live = _is(trip, attempt) & attempts.c.ended_at.is_(None) & ~asked_to_stop
    return connection.execute(sa.update(attempts).where(live).values(lease_until=now(connection) + lease)).rowcount == 1


def end_attempt(
    connection: sa.Connection, trip: str, attempt: int, outcome: Outcome, error: str | None, why: Mapping[str, Any] | None = None
) -> bool:
    live = _is(trip, attempt) & attempts.c.ended_at.is_(None)
    values = {"ended_at": now(connection), "outcome": outcome, "error": error, **(why or {})}
    return connection.execute(sa.update(attempts).where(live).values(values)).rowcount == 1


def explain(connection: sa.Connection, trip: str, attempt: int, why: Mapping[str, Any]) -> None:
    """Keep ``kind`` and ``culprit`` with the attempt, live or not."""
    if why:
        connection.execute(sa.update(attempts).where(_is(trip, attempt)).values(why))


def newest_attempt(connection: sa.Connection, trip: str) -> Attempt | None:
    return _attempt(connection, attempts.c.trip == trip)


def _attempt(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Attempt | None:
    query = sa.select(attempts).where(*conditions).order_by(attempts.c.attempt.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return Attempt(**row) if row else None


def _the_attempt(connection: sa.Connection, trip: str, attempt: int) -> Attempt:
    return Attempt(**connection.execute(sa.select(attempts).where(_is(trip, attempt))).mappings().one())


def _is(trip: str, attempt: int) -> sa.ColumnElement[bool]:
    return (attempts.c.trip == trip) & (attempts.c.attempt == attempt)


def finish(connection: sa.Connection, trip: str, state: TripState, error: str | None, attempt: int | None) -> Trip:
    found = trip_of(connection, trip, lock=True)
    newest = newest_attempt(connection, trip)
    is_overtaken = attempt is not None and newest is not None and newest.attempt != attempt
    if found.state in ("delivered", *OVER) or (is_overtaken and state != "delivered"):
        return found
    if found.state in ("formed", "departed") and state in ("failed", "rehearsed"):
        return found  # it was settled, and is to be driven again: a zombie's late word is not about that
    if state in ("failed", "rehearsed") and list_publications(connection, trip):
        state = "stuck"
    values: dict[str, Any] = {"state": state, "error": error, "ended_at": now(connection)}
    if state == "stuck":
        # What is published somewhere cannot stop half-way; who settles it does not say why it did not go on.
        values |= {"ended_at": None, "cancelled": None, "error": error or found.error}
    connection.execute(sa.update(trips).where(trips.c.id == trip).values(values))
    return trip_of(connection, trip)


def replace_verdict(connection: sa.Connection, verdict: Verdict) -> Trip:
    """Put ``verdict`` in the place of whatever this trip had for the stop; refuses for an attempt that is not live."""
    trip = trip_of(connection, verdict.trip, lock=True)
    attempt = _attempt(connection, _is(verdict.trip, verdict.attempt))
    if attempt is None:
        raise AttemptEnded(trip, verdict.attempt, "was never claimed")
    if attempt.ended_at is not None:
        raise AttemptEnded(trip, verdict.attempt, f"was {attempt.outcome}")
    connection.execute(sa.delete(verdicts).where(verdicts.c.trip == verdict.trip, verdicts.c.stop == verdict.stop))
    values = {column.name: getattr(verdict, column.name) for column in verdicts.c}
    connection.execute(sa.insert(verdicts).values({**values, "created_at": now(connection)}))
    return trip


def verdicts_of(connection: sa.Connection, trip: str) -> dict[str, Verdict]:
    query = sa.select(verdicts).where(verdicts.c.trip == trip).order_by(verdicts.c.attempt)
    rows: list[dict[str, Any]] = [dict(row) for row in connection.execute(query).mappings()]
    return {row["stop"]: Verdict(**{**row, "figures": tuple(row["figures"])}) for row in rows}


def insert_publication(connection: sa.Connection, trip: str, attempt: int, database: str, tables: Mapping[str, Any]) -> None:
    trip_of(connection, trip, lock=True)
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    values = {"trip": trip, "attempt": attempt, "database": database, "tables": tables, "at": now(connection)}
    connection.execute(insert(publications).values(values).on_conflict_do_nothing())
    connection.execute(sa.update(trips).where(trips.c.id == trip, trips.c.cancelled.is_not(None)).values(cancelled=None))


def list_publications(connection: sa.Connection, trip: str) -> Sequence[Publication]:
    query = sa.select(publications).where(publications.c.trip == trip).order_by(publications.c.at, publications.c.database)
    return [Publication(**row) for row in connection.execute(query).mappings()]


def has_published(connection: sa.Connection, trip: Trip) -> bool:
    """Whether the trip's rows are in a destination, as far as the depot knows."""
    published = sa.select(attempts.c.attempt).where(attempts.c.trip == trip.id, attempts.c.outcome == "published")
    return trip.state == "stuck" or bool(list_publications(connection, trip.id)) or connection.execute(published).first() is not None


def is_to_stop(connection: sa.Connection, trip: Trip) -> bool:
    """Whether a person has cancelled the trip, and not too late."""
    return trip.cancelled is not None and not has_published(connection, trip)


def check_undelivered(connection: sa.Connection, trip: str) -> None:
    """Lock the trip; Refused if its rows are, or may be, in a destination, or on their way there."""
    found = trip_of(connection, trip, lock=True)
    if found.state in ("delivered", "stuck") or list_publications(connection, trip):
        raise Refused(f"trip {trip} is {found.state} and has published: the rows it released are dropped off, and cannot be held again")
    newest = newest_attempt(connection, trip)
    if newest is not None and newest.ended_at is None:
        raise Refused(
            f"run {newest.run} drives trip {trip}, and it may be committing: its rows are not held again before that has ended; "
            f"`bus quarantine unrelease {trip}` once more"
        )
