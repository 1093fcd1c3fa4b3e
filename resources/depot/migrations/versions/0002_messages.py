"""Messages and their routes; what trips and attempts remember of them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _trips()
    _attempts()
    _quarantine()
    _messages()
    _routes()


def _time(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _count(name: str, kind: type = sa.BigInteger) -> sa.Column:
    return sa.Column(name, kind, nullable=False, server_default="0")


def _trips() -> None:
    op.add_column("depot_trips", _time("not_before", nullable=True))
    op.add_column("depot_trips", _time("departed_at", nullable=True))
    for name in ("launches", "failures", "deaths"):
        op.add_column("depot_trips", _count(name, sa.Integer))
    op.add_column("depot_trips", sa.Column("cancelled", sa.Text))
    op.create_index("ix_depot_trips_route_state", "depot_trips", ["route", "state"])


def _attempts() -> None:
    op.add_column("depot_attempts", sa.Column("kind", sa.Text))
    op.add_column("depot_attempts", sa.Column("culprit", sa.BigInteger))


def _quarantine() -> None:
    op.add_column("depot_quarantine", sa.Column("message", sa.BigInteger))
    op.create_index("ix_depot_quarantine_message", "depot_quarantine", ["message"])


def _messages() -> None:
    op.create_table(
        "depot_messages",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        _count("generation", sa.Integer),
        sa.Column("part", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary),
        _time("sent_at", nullable=True),
        _time("event_at", nullable=True),
        sa.Column("subject", sa.Text),
        sa.Column("sequencer", sa.Text().with_variant(sa.Text(collation="C"), "postgresql")),
        sa.Column("group", sa.Text),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("trip", sa.Text),
        _time("received_at"),
        _time("changed_at"),
        _count("duplicates", sa.Integer),
        _count("rows_rejected"),
        sa.Column("error", sa.Text),
        sa.Column("to_dead_letters", sa.Boolean, nullable=False, server_default=sa.false()),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_depot_messages_route_key", "depot_messages", ["route", "key"], unique=True)
    op.create_index("ix_depot_messages_route_state", "depot_messages", ["route", "state", "id"])
    op.create_index("ix_depot_messages_route_received_at", "depot_messages", ["route", "received_at"])
    op.create_index("ix_depot_messages_trip", "depot_messages", ["trip"])
    _create_partial_index("group", ["route", "group", "state"], '"group" IS NOT NULL')
    _create_partial_index("subject", ["route", "subject", "sequencer"], "subject IS NOT NULL")
    _create_partial_index("waiting_subject", ["route", "subject"], "state = 'waiting' AND subject IS NOT NULL")
    _create_partial_index("dead_letters", ["route", "id"], "to_dead_letters = true")


def _create_partial_index(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(f"ix_depot_messages_{name}", "depot_messages", columns, sqlite_where=where, postgresql_where=where)


def _routes() -> None:
    op.create_table(
        "depot_routes",
        sa.Column("route", sa.Text, primary_key=True),
        _time("paused_at", nullable=True),
        sa.Column("paused_reason", sa.Text),
        _count("failures_in_row", sa.Integer),
        _count("ignored"),
        _count("duplicates"),
        _count("delivered"),
        _count("superseded"),
        _time("horizon", nullable=True),
    )
