"""A place to drive and be killed in, seen from outside: what is started there, and what its databases say afterwards.

Read with SQL of its own; nothing here asks the product how it went.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from tests.crash.batches import Batch
from tests.crash.routes import Place

RIDE_SECONDS = 120
GONE_SECONDS = 20
MANY_PAGES_BYTES = 200_000
WAREHOUSE_TABLES = ("log", "totals", "accounts", "bus_outcomes", "bus_receipts", "bus_applied")
DEPOT_TABLES = ("depot_trips", "depot_attempts", "depot_verdicts", "depot_publications", "depot_quarantine")
DAGSTER_YAML = """telemetry: {enabled: false}
event_log_storage: {module: dagster._core.storage.event_log, class: InMemoryEventLogStorage}
compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}
"""
"""Runs are kept on disk, so that a killed one is found as it was left: started. Its 60 event lines are not (they cost a second), nor
are its streams captured (two processes for each step)."""
_WAL_HEADER, _WAL_FRAME = 32, 24

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["tests.crash.child", "tests.crash.message_child"])


def warm_up() -> None:
    """Start the server that processes are forked from, so that the first ride's time is like the others'."""
    first = _fork.Process(target=time.sleep, args=(0,))
    first.start()
    first.join()


@dataclass(frozen=True)
class End:
    """How a run ended by itself."""

    success: bool
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Ride:
    """A process that drives a trip."""

    process: BaseProcess
    report: Path

    def kill(self) -> bool:
        """SIGKILL; whether it hit a living process."""
        self.process.kill()
        self.process.join(RIDE_SECONDS)
        return self.process.exitcode == -signal.SIGKILL

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands still (or has ended)."""
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(self._pid, signal.SIGSTOP)
            while Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZX":
                time.sleep(0.001)

    def wake(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)

    def end(self, seconds: float = RIDE_SECONDS) -> End:
        """Wait for it, but not for ever."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            return End(False, (f"still running after {seconds} s",))
        if not self.report.exists():
            said = self.report.with_suffix(".log").read_text(errors="replace")
            return End(False, (f"exit code {self.process.exitcode}: {said[-1500:]}",))
        said = json.loads(self.report.read_text())
        return End(said["success"], tuple(said["errors"]))

    @property
    def is_running(self) -> bool:
        return self.process.exitcode is None

    @property
    def _pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid


@dataclass(frozen=True)
class Trip:
    """A trip as depot, staging and warehouse have it. ``attempt`` is the newest, 0 if there is none."""

    id: str
    state: str
    attempt: int
    live: bool
    passed: frozenset[str]
    staged: frozenset[str]
    published: int | None
    noted: bool


@dataclass
class Town:
    """``land`` a file, ``start`` a process that drives it, look at what is left."""

    place: Place
    depot: sa.Engine = field(init=False)
    warehouse: sa.Engine = field(init=False)
    _rides: int = 0

    def __post_init__(self) -> None:
        for folder in (self.place.landing, self.place.staging, self.place.dagster_home):
            folder.mkdir(parents=True, exist_ok=True)
        (self.place.dagster_home / "dagster.yaml").write_text(DAGSTER_YAML)
        self.depot = sa.create_engine(self.place.depot_url, poolclass=NullPool)
        self.warehouse = sa.create_engine(self.place.warehouse_url, poolclass=NullPool)

    @property
    def on_postgres(self) -> bool:
        return self.warehouse.dialect.name == "postgresql"

    def land(self, batch: Batch) -> None:
        (self.place.landing / batch.file).write_text(batch.text)

    def start(self, route: str, batch: Batch, trip: str | None = None, *, take_over: bool = False) -> Ride:
        self._rides += 1
        report = self.place.root / f"ride-{self._rides:04d}.json"
        from tests.crash import child

        process = _fork.Process(target=child.drive, args=(self.place, route, batch.file, trip, take_over, report), daemon=True)
        process.start()
        return Ride(process, report)

    def trip(self, route: str, batch: Batch) -> Trip | None:
        """The trip of that file, None before there is one."""
        for trip, state, parameters in reversed(
            rows(self.depot, "SELECT id, state, parameters FROM depot_trips WHERE route = :r", r=route)
        ):
            if (json.loads(parameters) if isinstance(parameters, str) else parameters)["file"] == batch.file:
                return self._seen(trip, state, route)
        return None

    def _seen(self, trip: str, state: str, route: str) -> Trip:
        attempts = rows(self.depot, "SELECT attempt, ended_at FROM depot_attempts WHERE trip = :t ORDER BY attempt", t=trip)
        newest, ended = attempts[-1] if attempts else (0, True)
        passed = rows(self.depot, "SELECT stop FROM depot_verdicts WHERE trip = :t AND attempt = :a AND passed", t=trip, a=newest)
        noted = rows(self.depot, "SELECT 1 FROM depot_publications WHERE trip = :t", t=trip)
        published = rows(self.warehouse, "SELECT attempt FROM bus_outcomes WHERE trip = :t AND outcome = 'published'", t=trip)
        staged = {path.parts[-4] for path in (self.place.staging / route / trip / str(newest)).glob("*/*/*/*/*.parquet")}
        return Trip(
            id=trip,
            state=state,
            attempt=newest,
            live=bool(attempts) and ended is None,
            passed=frozenset(stop for (stop,) in passed),
            staged=frozenset(staged),
            published=published[0][0] if published else None,
            noted=bool(noted),
        )

    def quiet(self) -> None:
        """Wait until the servers have noticed that their client is dead, and given up or ended what it had asked for."""
        names = [engine.url.database for engine in (self.depot, self.warehouse) if engine.dialect.name == "postgresql"]
        query = "SELECT 1 FROM pg_stat_activity WHERE datname = ANY(:names) AND pid <> pg_backend_pid()"
        deadline = time.monotonic() + GONE_SECONDS
        while names and rows(self.warehouse, query, names=names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"a killed client's connection is still open after {GONE_SECONDS} s")
            time.sleep(0.005)

    def everything(self, *, depot: bool = True) -> dict[str, int]:
        """A digest of each table's rows: equal before and after, nothing was changed."""
        digests = {}
        for engine, tables in ((self.warehouse, WAREHOUSE_TABLES), *(((self.depot, DEPOT_TABLES),) if depot else ())):
            for table in tables:
                digests[table] = hash(tuple(sorted(str(tuple(row)) for row in rows(engine, f"SELECT * FROM {table}"))))
        return digests

    def claims_given_up(self) -> int:
        """Postgres: how many inserts into bus_outcomes were rolled back so far, by the server's own counters (0 on SQLite)."""
        if not self.on_postgres:
            return 0
        counted = rows(
            self.warehouse, "SELECT n_tup_ins - (SELECT count(*) FROM bus_outcomes) FROM pg_stat_user_tables WHERE relname = 'bus_outcomes'"
        )
        return counted[0][0] if counted else 0

    def unfinished_frames(self) -> int:
        """SQLite: pages that a transaction wrote to the write-ahead log and did not commit (0 on Postgres)."""
        return 0 if self.on_postgres else wal_frames_after_last_commit(self._wal)

    def is_publishing(self) -> bool:
        """Whether somebody is writing in a transaction on the warehouse at this moment."""
        if self.on_postgres:
            locked = (
                "SELECT 1 FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
                " WHERE c.relname = 'bus_outcomes' AND l.mode = 'RowExclusiveLock'"
            )
            return bool(rows(self.warehouse, locked))
        # SQLite lets pages into its log when they leave the cache; the short transactions of boarding have but a few.
        try:
            return self._wal.stat().st_size > MANY_PAGES_BYTES
        except FileNotFoundError:  # the last connection that closes removes it
            return False

    @property
    def _wal(self) -> Path:
        return Path(f"{self.warehouse.url.database}-wal")


def wal_frames_after_last_commit(log: Path) -> int:
    """https://www.sqlite.org/fileformat2.html#the_write_ahead_log: frames of this log's salt behind its last commit frame."""
    content = log.read_bytes() if log.exists() else b""
    if len(content) < _WAL_HEADER:
        return 0
    page_bytes, salt = struct.unpack_from(">I", content, 8)[0], content[16:24]
    unfinished = 0
    for at in range(_WAL_HEADER, len(content) - _WAL_FRAME - page_bytes + 1, _WAL_FRAME + page_bytes):
        if content[at + 8 : at + 16] != salt:
            break
        unfinished = 0 if struct.unpack_from(">I", content, at + 4)[0] else unfinished + 1
    return unfinished


def rows(engine: sa.Engine, sql: str, **values: Any) -> Sequence[Any]:
    """The rows of a SELECT; none where the table is not there yet."""
    with looking(engine) as connection:
        return look(connection, sql, **values)


@contextmanager
def looking(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to look through many times: each look sees what is committed at that moment."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def look(connection: sa.Connection, sql: str, **values: Any) -> Sequence[Any]:
    try:
        return connection.execute(sa.text(sql), values).fetchall()
    except (exc.OperationalError, exc.ProgrammingError) as error:
        if "no such table" in str(error) or "does not exist" in str(error):
            return []
        raise
