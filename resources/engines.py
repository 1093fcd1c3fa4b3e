"""Connections to SQL databases as they are used here: URL to engine, what each dialect is told about locks, zones and waiting."""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.pool import NullPool

from resources.decimals import register_decimals
from resources.errors import Misconfigured
from resources.sql_errors import LOCKED, explained, meaning

READING = "bus_reading"
NO_LIMIT = -1
REST_SECONDS = 0.5
"""A connection that was used so short a time ago is taken to live, if its server is silent. HikariCP's default."""
_RESTS_SINCE = "bus_rests_since"
MYSQL_LIKE = ("mysql", "mariadb")
VANISHED_SECONDS = 60
"""After so long without a sign of it a Postgres server gives up a client that writes, and its locks: its machine or network is gone.
By itself it waits for two hours."""
_ALIVE = "".join(
    # Not every server that speaks as Postgres has all of them.
    f", CASE WHEN current_setting('{name}', true) IS NOT NULL THEN set_config('{name}', '{value}', true) END"
    for name, value in {
        "tcp_keepalives_idle": VANISHED_SECONDS // 2,
        "tcp_keepalives_interval": VANISHED_SECONDS // 6,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": VANISHED_SECONDS * 1000,
    }.items()
)
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


@dataclass(frozen=True)
class Waiting:
    """How long to wait, in seconds; 0 for ``statement`` is for ever."""

    statement: float = 0
    lock: float = 30
    connect: float = 10


def parsed(url: str) -> URL:
    """``url`` read, with psycopg 3 as the driver of plain ``postgresql://``; Misconfigured, without the URL's text, if unreadable."""
    try:
        made = make_url(url)
    except (exc.ArgumentError, ValueError):
        said = "the database URL cannot be read; expected dialect://user:password@host:port/database"
        raise Misconfigured(f"{said}, with signs of user and password percent-encoded (@ as %40, / as %2F)") from None
    made = made.set(drivername=_DRIVERS.get(made.drivername, made.drivername))
    try:
        made.get_dialect()
    except (exc.NoSuchModuleError, ImportError):
        raise Misconfigured(f"no driver is installed for {made.drivername!r}; install it, or check the URL's beginning") from None
    if made.get_backend_name() == "sqlite" and made.host:
        path = f"/{made.database}" if made.database else ""
        file = f"sqlite:///{made.host}{path}" if made.username is None else "sqlite:///path/to/file.db"
        raise Misconfigured(
            f"the URL of a SQLite file has three slashes, or four before a path from the root; after two comes a server: write {file}"
        )
    if made.get_backend_name() == "sqlite" and made.database in (None, "", ":memory:"):
        raise Misconfigured("an in-memory SQLite database is gone with its connection; name a file: sqlite:////path/to/file.db")
    return made


def in_words(url: URL) -> str:
    """``postgresql://host:5432/warehouse``: the database for messages, without user, password or options."""
    host = (url.host or "") + (f":{url.port}" if url.port else "")
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite URL; None for other dialects and for SQLite's own ``file:`` URIs."""
    if url.get_backend_name() != "sqlite" or (url.database or "").startswith("file:"):
        return None
    return Path(url.database or "")


def make_engine(url: URL, waiting: Waiting) -> Engine:
    """An engine for one process: none of its connections may be inherited by a fork.

    On Postgres, where connecting takes as long as a small publication, one that is at rest is used again; it is asked first whether it
    still lives. Elsewhere none is kept: what was set for a session would stay.
    """
    backend = url.get_backend_name()
    arguments: dict[str, Any] = {}
    options: dict[str, Any] = {"poolclass": NullPool}
    if backend == "postgresql" and url.get_driver_name() == "psycopg":
        # Prepared statements belong to a server connection, which a pooler between may change under us.
        arguments = {"connect_timeout": max(1, round(waiting.connect)), "prepare_threshold": None, "client_encoding": "utf8"}
        options = {"pool_size": 1, "max_overflow": NO_LIMIT}
    elif backend == "sqlite":
        arguments = {"timeout": waiting.lock, "check_same_thread": False}
    elif backend in MYSQL_LIKE:
        arguments = {"connect_timeout": max(1, round(waiting.connect)), "charset": "utf8mb4"}
        options |= {"isolation_level": "READ COMMITTED"}
    try:
        engine = sa.create_engine(url, hide_parameters=True, connect_args=arguments, **options)
    except ImportError as error:
        likely = f"; with `pip install pymysql` it begins as {backend}+pymysql://" if backend in MYSQL_LIKE else ""
        raise Misconfigured(f"no driver is installed for {url.drivername!r}: {error}{likely}") from error
    if backend == "postgresql":
        ask_after_rest(engine)
        if url.get_driver_name() == "psycopg":
            from resources.postgres_reading import read_as_written

            event.listen(engine, "connect", lambda raw, _record: read_as_written(raw))
    elif backend == "sqlite":
        event.listen(engine, "connect", _sqlite_connected)
        event.listen(engine, "begin", lambda connection: _sqlite_begins(connection, waiting.lock))
    elif backend in MYSQL_LIKE:
        event.listen(engine, "connect", lambda raw, _record: _mysql_connected(raw, waiting))
    return engine


def ask_after_rest(engine: Engine) -> None:
    """Ask a Postgres connection whether it still lives before it is used again, and take another if it does not.

    Only where that is in doubt: it was at rest for a while, or the server has said something unasked, as it does when it hangs up. A run
    uses one a hundred times, and asking is a round trip each time.
    """

    @event.listens_for(engine, "checkin")
    def rests(_raw: Any, record: Any) -> None:
        record.info[_RESTS_SINCE] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def is_used(raw: Any, record: Any, _fairy: Any) -> None:
        since = record.info.get(_RESTS_SINCE)
        if since is None or (time.monotonic() - since < REST_SECONDS and _is_quiet(raw)):
            return
        try:
            engine.dialect.do_ping(raw)
        except engine.dialect.loaded_dbapi.Error as error:
            raise exc.DisconnectionError("the connection was cut while it was at rest") from error


def _is_quiet(raw: Any) -> bool:
    """Whether nothing has come on the connection's socket, not its end either."""
    poll = select.poll()
    try:
        poll.register(raw.fileno(), select.POLLIN)
    except Exception:  # each driver has its own for one that is closed
        return False
    return not poll.poll(0)


_registering = threading.Lock()


class OwnEngine:
    """An engine that is ``make`` d on first use, one for each process: a connection that two share answers the one what the other asked.

    What is at rest is closed before a fork (SQLite must not even be open across one: its locks belong to a process, its memory of them
    would be copied), and once nobody has this object any more. Safe in threads.
    """

    def __init__(self, make: Callable[[], Engine]):
        self._make = make
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._pid = os.getpid()
        with _registering:
            _opened.add(self)

    def __call__(self) -> Engine:
        with self._lock:
            if self._engine is None or self._pid != os.getpid():
                self._engine, self._pid = self._make(), os.getpid()
                weakref.finalize(self, _dispose, self._engine, self._pid)
            return self._engine

    def close(self) -> None:
        """Close what is at rest; the next use opens anew."""
        with self._lock:
            if self._engine is not None:
                _dispose(self._engine, self._pid)


_opened: weakref.WeakSet[OwnEngine] = weakref.WeakSet()


def _dispose(engine: Engine, pid: int) -> None:
    if pid == os.getpid():
        engine.dispose()


def _close_all() -> None:
    with _registering:
        every = list(_opened)
    for engine in every:
        engine.close()


def _unlock_all() -> None:
    """In a child: a lock that another thread of the parent held would stay locked."""
    global _registering
    _registering = threading.Lock()
    for engine in list(_opened):
        engine._lock = threading.Lock()


os.register_at_fork(before=_close_all, after_in_child=_unlock_all)


def _sqlite_connected(raw: Any, _record: Any) -> None:
    raw.isolation_level = None  # the driver's own BEGINs come late and are never IMMEDIATE
    raw.execute("PRAGMA foreign_keys = ON")
    register_decimals(raw)


def _sqlite_begins(connection: Connection, lock_seconds: float) -> None:
    if connection.get_execution_options().get(READING):
        connection.exec_driver_sql("PRAGMA query_only = ON")
        connection.exec_driver_sql("BEGIN")
        return
    _write_ahead(connection, lock_seconds)
    # A transaction that reads first and writes later can fail with BUSY at once, whatever the time-out.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _write_ahead(connection: Connection, lock_seconds: float) -> None:
    """Switch the file to WAL, in which readers and the writer do not wait for each other. SQLite's busy time-out does not cover this."""
    deadline = time.monotonic() + lock_seconds
    while connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        except exc.OperationalError as error:
            if meaning(error) is not LOCKED or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _mysql_connected(raw: Any, waiting: Waiting) -> None:
    with raw.cursor() as cursor:
        # Without the latter a 0 in an AUTO_INCREMENT column is stored as the next number.
        modes = "STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO"
        cursor.execute(f"SET SESSION time_zone = '+00:00', sql_mode = CONCAT(@@sql_mode, ',{modes}')")
        seconds = max(1, round(waiting.lock))
        cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}")


@contextmanager
def connected(engine: Engine, where: str, waiting: Waiting, *, reading: bool = False) -> Iterator[Connection]:
    """A connection in a transaction that nobody has committed; rolled back and closed at the end unless the caller committed."""
    with explained(where, "connecting"):
        connection = engine.connect()
    try:
        with explained(where, "beginning a transaction"):
            if reading:
                options: dict[str, Any] = {READING: True}
                if engine.dialect.name == "postgresql":
                    options["postgresql_readonly"] = True
                connection = connection.execution_options(**options)
            _begin(connection, waiting, reading=reading)
        yield connection
    except BaseException:
        if reading:
            connection.invalidate()  # a rollback would first fetch the rest of a cursor that was given up
        raise
    finally:
        _close(connection)


def _begin(connection: Connection, waiting: Waiting, *, reading: bool) -> None:
    backend = connection.dialect.name
    if reading and backend in MYSQL_LIKE:
        connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        connection.commit()
    if connection.get_transaction() is None:
        connection.begin()
    if backend == "postgresql":
        # LOCAL, not per session: behind a pooler the session is somebody else's next.
        settings = {"lock_timeout": waiting.lock * 1000, "statement_timeout": waiting.statement * 1000}
        connection.execute(
            sa.text(
                "SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :statement, true),"
                " set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true),"
                # Whatever the database or the role have set: intervals in one notation, numbers with all their digits.
                " set_config('IntervalStyle', 'postgres', true), set_config('extra_float_digits', '3', true)" + ("" if reading else _ALIVE)
            ),
            {"lock": f"{settings['lock_timeout']:.0f}", "statement": f"{settings['statement_timeout']:.0f}"},
        )
    elif backend in MYSQL_LIKE and waiting.statement and getattr(connection.dialect, "is_mariadb", False):
        connection.exec_driver_sql(f"SET SESSION max_statement_time = {float(waiting.statement)}")


def _close(connection: Connection) -> None:
    try:
        connection.close()
    except exc.SQLAlchemyError:
        if not connection.closed:
            connection.invalidate()  # it was lost; the server rolls back what it had
            connection.close()
