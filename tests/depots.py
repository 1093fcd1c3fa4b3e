"""Depots to start a test from, with their tables made: making them anew, migration by migration, took longer than most tests."""

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
_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@functools.cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="bus-depot-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
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


class PostgresDepot:
    """A Postgres database with a depot, lent to one test after the other and emptied in between. One that was altered is thrown away."""

    def __init__(self, server_url: str):
        self._server_url, self._stack, self._url = server_url, ExitStack(), ""
        self._whole = set[tuple[str, ...]]()

    def lend(self) -> str:
        if not self._url:
            self._url = self._stack.enter_context(fresh_database(self._server_url))
            depot = Depot(self._url)
            depot.upgrade()
            depot.close()
            self._whole = self._columns()
        return self._url

    def take_back(self) -> None:
        if self._columns() != self._whole:
            self.close()
            return
        with self._connected() as connection:
            connection.exec_driver_sql(_OTHERS)
            connection.exec_driver_sql(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY")

    def close(self) -> None:
        self._url = ""
        self._stack.close()

    def _columns(self) -> set[tuple[str, ...]]:
        with self._connected() as connection:
            return {tuple(row) for row in connection.exec_driver_sql(_COLUMNS)}

    def _connected(self) -> sa.Connection:
        return sa.create_engine(self._url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()
