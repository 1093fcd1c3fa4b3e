"""The SQL that brings back a trip which this depot forgot. Every function runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from resources.depot import routes, schema
from resources.depot.connections import now
from resources.depot.entries import Trip, Verdict
from resources.depot.trips import trip_of

trips, attempts, verdicts, messages = schema.trips, schema.attempts, schema.verdicts, schema.messages


def restore(connection: sa.Connection, values: Mapping[str, Any], attempt: int, run: str, found: Sequence[Verdict]) -> Trip:
    """The trip as committed by ``attempt`` and in further databases not yet: 'stuck'. One that is known stays as it is."""
    moment, insert = now(connection), postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    fresh = connection.execute(insert(trips).values({**values, "created_at": moment, "state": "stuck"}).on_conflict_do_nothing()).rowcount
    if fresh:
        of_attempt = {"trip": values["id"], "attempt": attempt, "run": run, "claimed_at": moment, "lease_until": moment}
        connection.execute(sa.insert(attempts).values({**of_attempt, "ended_at": moment, "outcome": "published"}))
        for verdict in found:
            known = {column.name: getattr(verdict, column.name) for column in verdicts.c}
            connection.execute(sa.insert(verdicts).values({**known, "created_at": moment}))
    return trip_of(connection, values["id"])


def ride_in(connection: sa.Connection, trip: str, other: str, ids: Sequence[int]) -> int:
    """Messages aboard ``trip`` that ``other`` has applied ride in that one from now on; how many are left aboard."""
    found = trip_of(connection, other)
    routes.lock(connection, found.route)
    aboard = (messages.c.trip == trip) & (messages.c.state == "aboard")
    connection.execute(sa.update(messages).where(aboard, messages.c.id.in_(ids)).values(trip=other, changed_at=now(connection)))
    left = connection.scalar(sa.select(sa.func.count()).where(aboard)) or 0
    if not left:
        over = {"state": "empty", "ended_at": now(connection)}
        connection.execute(sa.update(trips).where(trips.c.id == trip).values(over))
    return left
