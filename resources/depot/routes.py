"""The SQL of routes: their lock, their counters, whether they are paused. Every function runs in the caller's transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from resources.depot.connections import now
from resources.depot.schema import routes, trips


def lock(connection: sa.Connection, route: str) -> sa.RowMapping:
    """The route's row, made if need be, and nobody else's until this transaction ends.

    Whatever changes which messages of a route wait or ride takes it before any trip's lock: dispatchers, boarding and settling take
    turns, and none of them deadlocks with another. On SQLite the transaction's own write lock does that.
    """
    query = sa.select(routes).where(routes.c.route == route).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(routes).values(route=route).on_conflict_do_nothing())
        row = connection.execute(query).mappings().one()
    return row


def lock_known(connection: sa.Connection, route: str) -> None:
    """As :func:`lock`, but no row is made: a route without one has had no messages, and there is nothing to take turns about."""
    connection.execute(sa.select(routes.c.route).where(routes.c.route == route).with_for_update()).all()


def count(connection: sa.Connection, route: str, **more: int) -> None:
    """Add to the counters named."""
    changed = {name: routes.c[name] + number for name, number in more.items() if number}
    if changed:
        _set(connection, route, changed)


def failed_in_row(connection: sa.Connection, route: str, at_most: int | None = None) -> int:
    before = lock(connection, route)["failures_in_row"]
    failures = before + 1 if at_most is None else max(before, min(before + 1, at_most))
    _set(connection, route, {"failures_in_row": failures})
    return failures


def succeeded(connection: sa.Connection, route: str) -> None:
    _set(connection, route, {"failures_in_row": 0})


def pause(connection: sa.Connection, route: str, reason: str) -> None:
    if lock(connection, route)["paused_at"] is None:
        _set(connection, route, {"paused_at": now(connection), "paused_reason": reason})


def resume(connection: sa.Connection, route: str) -> None:
    lock(connection, route)
    _set(connection, route, {"paused_at": None, "paused_reason": None, "failures_in_row": 0})
    unclaimed = (trips.c.route == route) & trips.c.state.in_(("formed", "departed"))
    connection.execute(sa.update(trips).where(unclaimed).values(launches_before_resume=trips.c.launches))


def paused(connection: sa.Connection, route: str) -> tuple[datetime, str] | None:
    row = row_of(connection, route)
    return (row["paused_at"], row["paused_reason"]) if row is not None and row["paused_at"] is not None else None


def row_of(connection: sa.Connection, route: str) -> sa.RowMapping | None:
    return connection.execute(sa.select(routes).where(routes.c.route == route)).mappings().one_or_none()


def known(connection: sa.Connection) -> list[str]:
    return list(connection.scalars(sa.select(routes.c.route).order_by(routes.c.route)))


def forget_keys(connection: sa.Connection, route: str, before: datetime) -> None:
    """Note that keys of messages that ended ``before`` may be gone. It never moves back."""
    known = lock(connection, route)["horizon"]
    _set(connection, route, {"horizon": max(known, before) if known else before})


def _set(connection: sa.Connection, route: str, values: dict[str, Any]) -> None:
    connection.execute(sa.update(routes).where(routes.c.route == route).values(values))
