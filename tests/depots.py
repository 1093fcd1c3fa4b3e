"""Databases, depots and Dagster's storages to start a test from, used again: making each anew took longer than most tests."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from resources.depot.schema import metadata
from resources.depot.store import Depot
from tests.servers import fresh_database

_COLUMNS = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
_INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
_SCHEMAS = "SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
_SETTINGS = "SELECT (SELECT count(*) FROM pg_db_role_setting) + (SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql')"
_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def _folder(prefix: str) -> Path:
    """One for this process."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _template() -> Path:
    folder = _folder("bus-depot-")
    depot = Depot(f"sqlite:///{folder}/depot.db")
    depot.upgrade()
    depot.close()
    return folder / "depot.db"


def sqlite_depot(file: Path) -> str:
    """The URL of a SQLite depot in ``file``: an empty one if there is none yet."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_template(), file)
    return f"sqlite:///{file}"


@functools.cache
def _dagsters_template() -> Path:
    import dagster

    folder = _folder("bus-dagster-")
    settings = folder / "dagster.yaml"
    settings.write_text("telemetry: {enabled: false}")
    with dagster.DagsterInstance.from_config(str(folder)) as instance:
        instance.get_runs_count()
    settings.unlink()
    return folder


def dagsters_storage(folder: Path) -> Path:
    """``folder``, which must not be there yet, as a DAGSTER_HOME with all tables of SQLite in it, and no settings."""
    shutil.copytree(_dagsters_template(), folder)
    return folder


class Lent:
    """A Postgres database that is lent to one test after the other, and emptied in between."""

    def __init__(self, server_url: str):
        self._server_url, self._stack, self._url = server_url, ExitStack(), ""

    def lend(self) -> str:
        if not self._url:
            self._url = self._stack.enter_context(fresh_database(self._server_url))
            self._prepare()
        return self._url

    def take_back(self) -> None:
        is_empty = False
        try:
            with self._connected() as connection:
                connection.exec_driver_sql(_OTHERS)
                is_empty = self._emptied(connection)
        finally:
            if not is_empty:
                self.close()

    def close(self) -> None:
        self._url = ""
        self._stack.close()

    def _prepare(self) -> None:
        pass

    def _emptied(self, connection: sa.Connection) -> bool:
        """False where that cannot be: the next test gets another database."""
        if connection.exec_driver_sql(_SETTINGS).scalar_one():
            return False
        for (schema,) in connection.exec_driver_sql(_SCHEMAS).all():
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
        connection.exec_driver_sql("GRANT USAGE ON SCHEMA public TO PUBLIC")
        return True

    def _connected(self) -> sa.Connection:
        return sa.create_engine(self._url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()


class LentDepot(Lent):
    """One with a depot in it."""

    def _prepare(self) -> None:
        depot = Depot(self._url)
        depot.upgrade()
        depot.close()
        with self._connected() as connection:
            self._whole = _shape(connection)

    def _emptied(self, connection: sa.Connection) -> bool:
        if _shape(connection) != self._whole:
            return False
        connection.exec_driver_sql(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY")
        return True


def _shape(connection: sa.Connection) -> set[tuple[str, ...]]:
    """Every schema, column and index, and whether anything is set."""
    return {tuple(row) for query in (_SCHEMAS, _COLUMNS, _INDEXES, _SETTINGS) for row in connection.exec_driver_sql(query)}
