"""Bringing a depot's schema to this version's. Alembic is imported only when there is something to do (it costs 0.2 s)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from resources.depot.schema import REVISION, VERSION_TABLE, metadata
from resources.errors import Misconfigured

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x6275735F6465706F
"""Postgres advisory lock 'bus_depo': two processes may start on one empty database."""


def is_current(connection: sa.Connection, place: str) -> bool:
    """Whether the schema is this version's: one SELECT. Ends the transaction's use if the table is missing."""
    found = _revision(connection)
    if found is not None and found > REVISION:
        raise _newer(found, place)
    return found == REVISION


def upgrade(connection: sa.Connection, place: str) -> None:
    """Run the missing migrations in ``connection``'s transaction: all or none. A database newer than the code: Misconfigured."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    if sa.inspect(connection).has_table(VERSION_TABLE) and is_current(connection, place):
        return  # somebody else did it while this process waited for the lock
    _run_migrations(connection)


def _run_migrations(connection: sa.Connection) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(MIGRATIONS))
    with EnvironmentContext(Config(), script, fn=lambda revision, _: script._upgrade_revs("head", revision)) as environment:
        environment.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE)
        environment.run_migrations()


def _revision(connection: sa.Connection) -> str | None:
    try:
        return connection.execute(sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))).scalar()
    except (exc.ProgrammingError, exc.OperationalError) as error:
        if getattr(error.orig, "sqlstate", None) == "42P01" or "no such table" in str(error.orig):
            return None
        raise


def _newer(found: str, place: str) -> Misconfigured:
    return Misconfigured(
        f"the depot is at revision {found}, this version of the code knows only {REVISION}; install the newer version", place=place
    )
