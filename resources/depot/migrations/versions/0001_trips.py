"""Trips, attempts, verdicts, publications and quarantine."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _trips()
    _attempts()
    _verdicts()
    _publications()
    _quarantine()


def _time(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _trip() -> sa.Column:
    return sa.Column("trip", sa.Text, sa.ForeignKey("depot_trips.id"), primary_key=True)


def _trips() -> None:
    op.create_table(
        "depot_trips",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("partition", sa.Text),
        sa.Column("run", sa.Text),
        sa.Column("parent", sa.Text),
        _time("created_at"),
        sa.Column("state", sa.Text, nullable=False),
        _time("ended_at", nullable=True),
        sa.Column("error", sa.Text),
    )
    op.create_index("ix_depot_trips_route_run", "depot_trips", ["route", "run"], unique=True)
    op.create_index("ix_depot_trips_route_created_at", "depot_trips", ["route", "created_at"])
    op.create_index("ix_depot_trips_state", "depot_trips", ["state"])


def _attempts() -> None:
    op.create_table(
        "depot_attempts",
        _trip(),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("run", sa.Text, nullable=False),
        _time("claimed_at"),
        _time("lease_until"),
        sa.Column("host", sa.Text),
        sa.Column("pid", sa.Integer),
        sa.Column("process_started", sa.Text),
        _time("ended_at", nullable=True),
        sa.Column("outcome", sa.Text),
        sa.Column("error", sa.Text),
    )
    op.create_index("ix_depot_attempts_trip_run", "depot_attempts", ["trip", "run"], unique=True)


def _verdicts() -> None:
    op.create_table(
        "depot_verdicts",
        _trip(),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stop", sa.Text, primary_key=True),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("picked_up", sa.BigInteger, nullable=False),
        sa.Column("kept", sa.BigInteger, nullable=False),
        sa.Column("rejected", sa.BigInteger, nullable=False),
        sa.Column("produced", sa.BigInteger, nullable=False),
        sa.Column("manifest", sa.JSON),
        sa.Column("digest", sa.Text),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        _time("created_at"),
    )


def _publications() -> None:
    op.create_table(
        "depot_publications",
        _trip(),
        sa.Column("database", sa.Text, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        _time("at"),
        sa.Column("tables", sa.JSON, nullable=False),
    )


def _quarantine() -> None:
    op.create_table(
        "depot_quarantine",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("trip", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("stop", sa.Text, nullable=False),
        sa.Column("row_id", sa.Text, nullable=False),
        sa.Column("origin", sa.Text),
        sa.Column("unit", sa.Text),
        sa.Column("position", sa.BigInteger),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("released_trip", sa.Text),
        sa.Column("reason", sa.Text),
        _time("created_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_depot_quarantine_route_state", "depot_quarantine", ["route", "state"])
    op.create_index("ix_depot_quarantine_trip_stop", "depot_quarantine", ["trip", "stop"])
    op.create_index("ix_depot_quarantine_released_trip", "depot_quarantine", ["released_trip"])
