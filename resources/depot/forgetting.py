"""The SQL of forgetting trips, with all that hangs on them. Every function runs in the caller's transaction, but for ``forget``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import sqlalchemy as sa

from resources.depot import mail
from resources.depot.connections import Connections
from resources.depot.entries import OVER, Forgotten, TripState
from resources.depot.many import among
from resources.depot.quarantine import chunks
from resources.depot.schema import attempts, messages, publications, quarantine, trips, verdicts

ENDED: tuple[TripState, ...] = ("delivered", "rehearsed", *OVER)
"""A failed trip has not ended: it can be driven again."""
TRIPS_AT_ONCE = 500


def forget(connections: Connections, route: str, before: datetime) -> Forgotten:
    """Runs transactions of its own, a few trips in each."""
    with connections.reading() as connection:
        found = forgettable(connection, _free(route, before, _has_message()))
    gone = Forgotten()
    for some in chunks(found, TRIPS_AT_ONCE):
        with connections.writing() as connection:
            still = sa.select(trips.c.id).where(among(connection, trips.c.id, some), *_free(route, before, _has_message()))
            gone += _delete(connection, list(connection.scalars(still.with_for_update(skip_locked=True, of=trips))))
    return gone


def would_forget(connection: sa.Connection, route: str, before: datetime) -> Forgotten:
    """What ``forget`` takes once messages that ended ``before`` are forgotten too."""
    stays = messages.c.state.not_in(mail.ENDED) | (messages.c.changed_at >= before)
    found = forgettable(connection, _free(route, before, _has_message(stays)))
    rows = 0
    for some in chunks(found, TRIPS_AT_ONCE):
        query = sa.select(sa.func.count()).select_from(quarantine).where(among(connection, quarantine.c.trip, some))
        rows += connection.scalar(query) or 0
    return Forgotten(len(found), rows)


def forgettable(connection: sa.Connection, free: Iterable[sa.ColumnElement[bool]]) -> list[str]:
    """Of the trips that are ``free``, those to which none refers that stays: as its parent, or as where rows are from that it released.

    The newest first: what refers goes before what it refers to.
    """
    found = set(connection.scalars(sa.select(trips.c.id).where(*free)))
    children = sa.select(trips.c.id, trips.c.parent).where(trips.c.parent.is_not(None))
    released = sa.select(trips.c.id, quarantine.c.trip).join(quarantine, quarantine.c.released_trip == trips.c.id).distinct()
    refers = [(one, to) for query in (children, released) for one, to in connection.execute(query) if to in found]
    while needed := {to for one, to in refers if one not in found and to in found}:
        found -= needed
    return sorted(found, reverse=True)


def _free(route: str, before: datetime, has_message: sa.ColumnElement[bool]) -> tuple[sa.ColumnElement[bool], ...]:
    """Trips that have ended, and have no message and no row that a person may still ask for."""
    held = sa.exists().where(quarantine.c.trip == trips.c.id, quarantine.c.state == "held")
    takes = sa.exists().where(quarantine.c.released_trip == trips.c.id, quarantine.c.state == "released", trips.c.state != "delivered")
    ended = sa.func.coalesce(trips.c.ended_at, trips.c.created_at) < before
    return trips.c.route == route, trips.c.state.in_(ENDED), ended, ~has_message, ~held, ~takes


def _has_message(*conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return sa.exists().where(messages.c.trip == trips.c.id, *conditions)


def _delete(connection: sa.Connection, ids: list[str]) -> Forgotten:
    let_go = among(connection, quarantine.c.trip, ids) & (quarantine.c.state != "held")
    rows = connection.execute(sa.delete(quarantine).where(let_go)).rowcount
    for table in (attempts, verdicts, publications):
        connection.execute(sa.delete(table).where(among(connection, table.c.trip, ids)))
    connection.execute(sa.delete(trips).where(among(connection, trips.c.id, ids)))
    return Forgotten(len(ids), rows)
