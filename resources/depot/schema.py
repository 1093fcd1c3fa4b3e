"""The depot's tables as this version of the code expects them; ``migrations/`` brings a database here.

Names carry the prefix ``depot_``: a depot may share its Postgres database with Dagster's storage or with a warehouse.
JSON is kept as text (``json``, not ``jsonb``): a quarantined record may hold a NUL character, which ``jsonb`` refuses.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

REVISION = "0005"
"""The migration that yields these tables. A test holds it against ``migrations/versions``."""

VERSION_TABLE = "depot_version"
"""Alembic's own default name is taken by Dagster's storage where both share a database."""


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC in Python; ``timestamptz`` on Postgres, ISO text without a zone on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; the depot keeps aware times only")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def storable(text: str) -> str:
    """``text`` with NUL and lone surrogates (undecodable file names) written out: Postgres keeps neither."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


class AnyText(sa.types.TypeDecorator[str]):
    """Text from outside (errors, file names), made storable."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else storable(value)


class Id(sa.types.TypeDecorator[int]):
    """A number that the database gives. One from outside that 64 bits do not hold is asked for as the last one that they do: nobody has
    that either, and the drivers raise no error of their own."""

    impl = sa.BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(sa.Integer() if dialect.name == "sqlite" else sa.BigInteger())

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else min(max(value, -(1 << 63)), (1 << 63) - 1)


def _json() -> Any:
    return sa.JSON(none_as_null=True)


def _count(name: str, kind: type[sa.Integer]) -> sa.Column[int]:
    return sa.Column(name, kind, nullable=False, server_default="0")


def _sequencer() -> Any:
    """Compared byte by byte, whatever the database's own order of text is."""
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _where(name: str, columns: tuple[str, ...], condition: str) -> sa.Index:
    return sa.Index(name, *columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))


metadata = sa.MetaData(naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s"})

trips = sa.Table(
    "depot_trips",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False),
    sa.Column("parameters", _json(), nullable=False),
    sa.Column("partition", sa.Text),
    sa.Column("run", sa.Text),
    sa.Column("parent", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("error", AnyText),
    sa.Column("not_before", UtcDateTime),
    sa.Column("departed_at", UtcDateTime),
    _count("launches", sa.Integer),
    _count("failures", sa.Integer),
    _count("deaths", sa.Integer),
    sa.Column("cancelled", AnyText),
    _count("launches_before_resume", sa.Integer),
    sa.Index("ix_depot_trips_route_run", "route", "run", unique=True),
    sa.Index("ix_depot_trips_route_created_at", "route", "created_at"),
    sa.Index("ix_depot_trips_state", "state"),
    sa.Index("ix_depot_trips_route_state", "route", "state"),
)

attempts = sa.Table(
    "depot_attempts",
    metadata,
    sa.Column("trip", sa.Text, sa.ForeignKey("depot_trips.id"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("claimed_at", UtcDateTime, nullable=False),
    sa.Column("lease_until", UtcDateTime, nullable=False),
    sa.Column("host", AnyText),
    sa.Column("pid", sa.Integer),
    sa.Column("process_started", sa.Text),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("outcome", sa.Text),
    sa.Column("error", AnyText),
    sa.Column("kind", sa.Text),
    sa.Column("culprit", sa.BigInteger),
    sa.Index("ix_depot_attempts_trip_run", "trip", "run", unique=True),
)

verdicts = sa.Table(
    "depot_verdicts",
    metadata,
    sa.Column("trip", sa.Text, sa.ForeignKey("depot_trips.id"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stop", sa.Text, primary_key=True),
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("picked_up", sa.BigInteger, nullable=False),
    sa.Column("kept", sa.BigInteger, nullable=False),
    sa.Column("rejected", sa.BigInteger, nullable=False),
    sa.Column("produced", sa.BigInteger, nullable=False),
    sa.Column("manifest", _json()),
    sa.Column("digest", sa.Text),
    sa.Column("inputs", _json(), nullable=False),
    sa.Column("figures", _json(), nullable=False),
    sa.Column("counts", _json(), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

publications = sa.Table(
    "depot_publications",
    metadata,
    sa.Column("trip", sa.Text, sa.ForeignKey("depot_trips.id"), primary_key=True),
    sa.Column("database", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("tables", _json(), nullable=False),
)

quarantine = sa.Table(
    "depot_quarantine",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("trip", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("stop", sa.Text, nullable=False),
    sa.Column("row_id", AnyText, nullable=False),
    sa.Column("origin", AnyText),
    sa.Column("unit", sa.Text),
    sa.Column("position", sa.BigInteger),
    sa.Column("reasons", _json(), nullable=False),
    sa.Column("payload", _json(), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("released_trip", sa.Text),
    sa.Column("reason", AnyText),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("message", sa.BigInteger),
    sa.Index("ix_depot_quarantine_route_state", "route", "state"),
    sa.Index("ix_depot_quarantine_trip_stop", "trip", "stop"),
    sa.Index("ix_depot_quarantine_released_trip", "released_trip"),
    sa.Index("ix_depot_quarantine_message", "message"),
    # Without AUTOINCREMENT SQLite hands the ids of deleted rows out again, and `release 17` could mean another row.
    sqlite_autoincrement=True,
)

messages = sa.Table(
    "depot_messages",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    _count("generation", sa.Integer),
    sa.Column("part", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary),
    sa.Column("sent_at", UtcDateTime),
    sa.Column("event_at", UtcDateTime),
    sa.Column("subject", sa.Text),
    sa.Column("sequencer", _sequencer()),
    sa.Column("group", sa.Text),
    sa.Column("attributes", _json(), nullable=False),
    sa.Column("trip", sa.Text),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("changed_at", UtcDateTime, nullable=False),
    _count("duplicates", sa.Integer),
    _count("other_bodies", sa.Integer),
    _count("rows_rejected", sa.BigInteger),
    sa.Column("error", AnyText),
    sa.Column("to_dead_letters", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("ix_depot_messages_route_key", "route", "key", unique=True),
    sa.Index("ix_depot_messages_route_state", "route", "state", "id"),
    sa.Index("ix_depot_messages_route_received_at", "route", "received_at"),
    sa.Index("ix_depot_messages_trip", "trip"),
    _where("ix_depot_messages_group", ("route", "group", "state"), '"group" IS NOT NULL'),
    _where("ix_depot_messages_subject", ("route", "subject", "sequencer"), "subject IS NOT NULL"),
    _where("ix_depot_messages_waiting_subject", ("route", "subject"), "state = 'waiting' AND subject IS NOT NULL"),
    _where("ix_depot_messages_dead_letters", ("route", "id"), "to_dead_letters = true"),
    # Ids give the order of a group, and quarantined rows name them: none is handed out twice.
    sqlite_autoincrement=True,
)

decisions = sa.Table(
    "depot_decisions",
    metadata,
    # Once in each generation: who is redriven, or delivered again, is in the next one.
    sa.Column("message", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("what", sa.Text, primary_key=True),
    sa.Column("reason", AnyText, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

routes = sa.Table(
    "depot_routes",
    metadata,
    sa.Column("route", sa.Text, primary_key=True),
    sa.Column("paused_at", UtcDateTime),
    sa.Column("paused_reason", AnyText),
    _count("failures_in_row", sa.Integer),
    _count("ignored", sa.BigInteger),
    _count("duplicates", sa.BigInteger),
    _count("other_bodies", sa.BigInteger),
    # How many messages were boarded and are not forgotten: the sum of all states, counted on its own.
    _count("received", sa.BigInteger),
    # How many messages are in these two states: counting a million rows takes too long.
    _count("delivered", sa.BigInteger),
    _count("superseded", sa.BigInteger),
    # Keys of messages that ended before this are forgotten.
    sa.Column("horizon", UtcDateTime),
)
