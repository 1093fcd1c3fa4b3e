"""How the depot reaches its database: one engine per process, one transaction per call, foreign errors made ours."""

from __future__ import annotations

import json
import sqlite3
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event, exc

from resources.depot import migrate
from resources.engines import OwnEngine, ask_after_rest
from resources.errors import BusError, Misconfigured, Poison, Transient

BUSY_SECONDS = 30
"""How long a call waits for somebody else's write before it is Transient."""

CONNECT_SECONDS = 10

_SQLITE_MISCONFIGURED = {"SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_NOTADB", "SQLITE_CORRUPT"}
_LIBPQ_MISCONFIGURED = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
    "could not translate host",
)
_SQLSTATE: dict[str, type[BusError]] = {
    "08": Transient,  # connection lost
    "22": Poison,  # a value that the column does not take
    "40": Transient,  # deadlock, serialization
    "53": Transient,  # disk full, out of memory, too many connections
    "55": Transient,  # lock not available
    "57": Transient,  # cancelled, server shutting down or starting
    "58": Transient,  # an I/O error of the server's
}


class Connections:
    """``reading()`` and ``writing()`` are one transaction each, committed when the block ends well, else rolled back.

    Cheap to construct; connects, and brings the schema up to date, on first use. Safe in threads and after a fork.
    Raises Misconfigured at construction for a URL that cannot be a depot's.
    """

    def __init__(self, url: str):
        self._url = depot_url(url)
        self.place = f"depot {self._url.render_as_string(hide_password=True)}"
        self._engine = OwnEngine(partial(_engine, self._url))
        self._is_current = False

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with ours(self.place), self._ready().begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that may write: on SQLite the write lock is taken at once, as a later upgrade may fail despite the time-out."""
        with ours(self.place), _for_writing(self._ready()).begin() as connection:
            yield connection

    def upgrade(self) -> None:
        """Bring the schema to this version's, under a lock; Misconfigured if the database is newer than the code."""
        with ours(self.place):
            self._upgrade(self._engine())

    def close(self) -> None:
        """Give the connections back; the next call opens new ones."""
        self._engine.close()

    def _ready(self) -> sa.Engine:
        engine = self._engine()
        if not self._is_current:
            with engine.begin() as connection:
                is_current = migrate.is_current(connection, self.place)
            if not is_current:
                self._upgrade(engine)
            self._is_current = True
        return engine

    def _upgrade(self, engine: sa.Engine) -> None:
        with _for_writing(engine).begin() as connection:
            migrate.upgrade(connection, self.place)


def depot_url(text: str) -> sa.URL:
    """``sqlite:///file`` or ``postgresql://…`` (driven by psycopg 3); Misconfigured for anything else. Never echoes a password."""
    try:
        url = sa.make_url(text)
    except exc.ArgumentError:
        raise Misconfigured("the depot's URL is not one: expected sqlite:////path/depot.db or postgresql://user@host/database") from None
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "postgresql+psycopg":
        return url
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise Misconfigured(f"the depot's URL starts with {url.drivername}://; a depot is sqlite:// or postgresql://")
    if not url.database or ":memory:" in url.database or "mode=memory" in text:
        raise Misconfigured("the depot's URL names no file: a depot must outlive the process; expected sqlite:////path/depot.db")
    return url


def _engine(url: sa.URL) -> sa.Engine:
    # Parameters are hidden: an error must not show a quarantined record.
    common: dict[str, Any] = {"json_serializer": json_text, "hide_parameters": True, "pool_timeout": BUSY_SECONDS}
    if url.get_backend_name() == "sqlite":
        _make_parent(url)
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, **common)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    # Never prepared: a plan made while a table was small would be kept while it grows.
    arguments = {"connect_timeout": CONNECT_SECONDS, "prepare_threshold": None}
    engine = sa.create_engine(url, connect_args=arguments, **common)
    ask_after_rest(engine)
    event.listen(engine, "connect", _set_up_postgres)
    return engine


def _for_writing(engine: sa.Engine) -> sa.Engine:
    return engine.execution_options(bus_writes=True)


def _make_parent(url: sa.URL) -> None:
    folder = Path(url.database or "").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(
            f"the depot's directory {folder} cannot be made: {error.strerror}; make it, or name another in the depot's URL"
        ) from error


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not guessed by the driver
    connection.execute("PRAGMA foreign_keys = ON")
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        _switch_to_wal(connection)


def _switch_to_wal(connection: Any) -> None:
    """Once per file. SQLite does not wait here: of two processes on a new file one is told BUSY at once."""
    deadline = clock.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or clock.monotonic() > deadline:
                raise
            clock.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("bus_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_up_postgres(connection: Any, _record: Any) -> None:
    connection.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
    connection.commit()


def now(connection: sa.Connection) -> datetime:
    """The depot's clock, aware UTC: the server's on Postgres (not the transaction's start: it may have waited), else the machine's."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    return connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one().astimezone(UTC)


class NotJson(Poison, ValueError):
    """A value that JSON has no word for."""


def json_text(value: Any) -> str:
    """Compact JSON in ASCII (any server encoding takes it); dates, decimals and UUIDs become text. Raises NotJson."""
    try:
        return _JSON.encode(value)
    except (TypeError, ValueError) as error:
        # The Postgres driver calls this itself, out of SQLAlchemy's sight: nobody else would make the error ours.
        raise NotJson(str(error)) from error


def _plain(value: Any) -> Any:
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be kept in the depot as JSON")


_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain)


@contextmanager
def ours(place: str) -> Iterator[None]:
    """Foreign database errors as ours. Texts never carry parameters or row values."""
    try:
        yield
    except exc.TimeoutError as error:
        raise Transient("no connection became free in time; retry, or drive fewer trips at once", place=place) from error
    except exc.StatementError as error:
        # Without a driver's error it is a value that the depot's own types refused, before anything was sent.
        raise (_from_driver(error, place) if isinstance(error, exc.DBAPIError) else Poison(f"{error.orig}", place=place)) from error
    except exc.SQLAlchemyError as error:
        raise Misconfigured(f"{type(error).__name__}: the depot cannot be used", place=place) from error


def _from_driver(error: exc.DBAPIError, place: str) -> BusError:
    code = getattr(error.orig, "sqlite_errorname", None)
    return _from_sqlite(code, error, place) if code else _from_postgres(error, place)


def _from_sqlite(code: str, error: exc.DBAPIError, place: str) -> BusError:
    if code == "SQLITE_FULL":
        return Transient("the disk is full; free space there, then drive the trip again", place=place)
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Transient("somebody else kept it locked; retry, or end that process", place=place)
    if any(code.startswith(name) for name in _SQLITE_MISCONFIGURED):
        return Misconfigured(f"{error.orig}; the file and its directory must be writable, and a depot's", place=place)
    if isinstance(error, exc.OperationalError) and code != "SQLITE_ERROR":
        return Transient(f"{error.orig} ({code})", place=place)
    return Misconfigured(f"{error.orig} ({code}): not what this version expects; was its schema changed by hand?", place=place)


def _from_postgres(error: exc.DBAPIError, place: str) -> BusError:
    driver: Any = error.orig
    state = getattr(driver, "sqlstate", None)
    # The primary message only: its detail may quote row values.
    text = (getattr(getattr(driver, "diag", None), "message_primary", None) or str(driver)).strip()
    if state is None:
        refused = any(words in text for words in _LIBPQ_MISCONFIGURED)
        return (Misconfigured if refused else Transient)(f"no connection: {text}", place=place)
    kind = Misconfigured if state == "58P01" else _SQLSTATE.get(state[:2], Misconfigured)
    if state == "53100":
        return Transient("the server's disk is full; free space there, then drive the trip again", place=place)
    return kind(f"{text} (SQLSTATE {state})", place=place)
