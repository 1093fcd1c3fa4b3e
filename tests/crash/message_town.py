"""A town in which messages start trips: its queues, its processes, and what its databases say, read with SQL of its own."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dagster import DagsterInstance
from sqlalchemy.pool import NullPool

from tests.crash.message_routes import QUEUES, Place
from tests.crash.town import DAGSTER_YAML, _fork, rows
from tests.emulators import Emulator

FIFO_GROUPS = ("a", "b", "c", "d")
_FLOCK = "hhqqi4x"
_PUBLISHERS = """
    SELECT a.application_name FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE c.relname = 'bus_outcomes' AND l.mode = 'RowExclusiveLock' AND a.application_name LIKE 'worker-%'
"""


@dataclass(frozen=True)
class Worker:
    """A process of the town: a dispatcher of a route, or one that makes runs (``route`` None)."""

    process: BaseProcess
    log: Path
    route: str | None

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.exitcode is None

    def stop(self) -> None:
        stop(self.pid)

    def wake(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def told(self) -> str:
        """What it said last; where it stands now, or how it ended."""
        said = self.log.read_text(errors="replace")[-700:] if self.log.exists() else "nothing yet"
        if not self.is_running:
            return f"{self.log.name} ended by itself, exit code {self.process.exitcode}: {said}"
        self.log.touch()
        before = self.log.stat().st_size
        os.kill(self.pid, signal.SIGUSR1)  # see message_child
        time.sleep(0.5)
        return f"{self.log.name}: {said}\nstands at {self.log.read_text(errors='replace')[before:][:3000]}"

    def kill(self) -> bool:
        self.process.kill()
        self.process.join(30)
        return self.process.exitcode == -signal.SIGKILL


def stop(pid: int) -> bool:
    """SIGSTOP, and wait until it stands still: what it was doing can be looked at, and a kill then is a kill at that moment.

    False if it is dead.
    """
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) not in "TZX":
            time.sleep(0.0005)
        return state == "T"
    return False


@dataclass
class MessageTown:
    """``send`` messages, ``start`` processes, look at what is there."""

    place: Place
    emulator: Emulator
    depot: sa.Engine = field(init=False)
    warehouse: sa.Engine = field(init=False)
    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Every message ever sent, by its id; ``_group`` of those on the FIFO queue."""

    def __post_init__(self) -> None:
        self.place.staging.mkdir(parents=True, exist_ok=True)
        self.depot = sa.create_engine(self.place.depot_url, poolclass=NullPool)
        self.warehouse = sa.create_engine(self.place.warehouse_url, poolclass=NullPool)
        self.sqs = self.emulator.client("sqs")
        self.urls = {"dead": self.sqs.create_queue(QueueName="dead-letters")["QueueUrl"]}
        for route, name in QUEUES.items():
            attributes = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
            self.urls[route] = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        number = "seq BIGSERIAL PRIMARY KEY" if self.on_postgres else "seq INTEGER PRIMARY KEY AUTOINCREMENT"
        with self.warehouse.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE lines ({number}, id TEXT, place TEXT, number BIGINT)")
        self.sendings: Counter[str] = Counter()
        """How many messages were put on each route's queue, whatever is in them."""
        self._children: list[Worker] = []
        self._shared_memory: dict[int, int] = {}

    @property
    def on_postgres(self) -> bool:
        return self.warehouse.dialect.name == "postgresql"

    # Messages

    def send(self, route: str, bodies: list[dict[str, Any]]) -> None:
        """``bodies`` in their order; of a FIFO queue each in the group of its place."""
        for start in range(0, len(bodies), 10):
            entries = []
            for body in bodies[start : start + 10]:
                self.sent.setdefault(body["id"], body)
                self.sendings[route] += 1
                number = str(self.sendings[route])
                entry = {"Id": number, "MessageBody": json.dumps(body)}
                if route == "lines":
                    entry |= {"MessageGroupId": body["place"], "MessageDeduplicationId": number}
                entries.append(entry)
            answer = self.sqs.send_message_batch(QueueUrl=self.urls[route], Entries=entries)
            assert not answer.get("Failed"), answer

    def on_queue(self, queue: str) -> tuple[int, int]:
        """How many messages wait there, and how many are in flight."""
        found = self._attributes(queue)
        return found["ApproximateNumberOfMessages"], found["ApproximateNumberOfMessagesNotVisible"]

    def _attributes(self, queue: str) -> dict[str, int]:
        found = self.sqs.get_queue_attributes(QueueUrl=self.urls[queue], AttributeNames=["All"])["Attributes"]
        return {name: int(found[name]) for name in found if name.startswith("ApproximateNumber")}

    def redrive(self) -> int:
        """Everything in the dead letters goes back to the queue it came from, as AWS's own redrive does it: under new message ids."""
        moved = 0
        while found := self.sqs.receive_message(
            QueueUrl=self.urls["dead"], MaxNumberOfMessages=10, MessageAttributeNames=["All"], VisibilityTimeout=30
        ).get("Messages"):
            for message in found:
                attributes = message.get("MessageAttributes", {})
                self.sqs.send_message(QueueUrl=self.urls["events"], MessageBody=message["Body"], MessageAttributes=attributes)
                self.sendings["events"] += 1
                self.sqs.delete_message(QueueUrl=self.urls["dead"], ReceiptHandle=message["ReceiptHandle"])
                moved += 1
        return moved

    # Processes

    def start(self, route: str | None = None) -> Worker:
        """A dispatcher of ``route``, or one that makes runs."""
        from tests.crash import message_child

        log = self.place.root / f"{len(self._children) + 1:04d}-{route or 'worker'}.log"
        what = (message_child.dispatch, (self.place, route, log)) if route else (message_child.work, (self.place, log))
        process = _fork.Process(target=what[0], args=what[1], daemon=True)
        process.start()
        self._children.append(Worker(process, log, route))
        return self._children[-1]

    @contextmanager
    def running(self, *, dispatchers: int = 1, workers: int = 2) -> Iterator[list[Worker]]:
        """So many of each; the list may be changed, and all that are in it at the end are killed."""
        self.place.dagster_home.mkdir(parents=True, exist_ok=True)
        (self.place.dagster_home / "dagster.yaml").write_text(DAGSTER_YAML)
        DagsterInstance.from_config(str(self.place.dagster_home)).dispose()  # its tables: two processes that make them at once fail
        running = [self.start(route) for route in QUEUES for _ in range(dispatchers)] + [self.start() for _ in range(workers)]
        try:
            yield running
        finally:
            for worker in running:
                worker.wake()
                worker.kill()

    # What is there

    def states(self) -> dict[str, Counter[str]]:
        found: dict[str, Counter[str]] = {route: Counter() for route in QUEUES}
        for route, state, count in rows(self.depot, "SELECT route, state, count(*) FROM depot_messages GROUP BY route, state"):
            found[route][state] = count
        return found

    def is_quiet(self) -> bool:
        """Everything that was sent is in the depot, nothing waits or rides, no trip is open, nothing is on a queue."""
        states = self.states()
        known = sum(counter.total() for counter in states.values())
        live = sum(counter[state] for counter in states.values() for state in ("waiting", "aboard"))
        unsent = rows(self.depot, "SELECT 1 FROM depot_messages WHERE to_dead_letters LIMIT 1")
        if known != len(self.sent) or live or unsent or any(sum(self.on_queue(queue)) for queue in QUEUES):
            return False
        return not rows(self.depot, "SELECT 1 FROM depot_trips WHERE state IN ('formed', 'departed', 'driving', 'failed', 'stuck')")

    def wait_until_quiet(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.is_quiet():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def archive_files(self, route: str) -> list[Path]:
        """Oldest first."""
        return sorted((self.place.staging / "archive" / route).glob(f"*/{'?' * 26}.jsonl"))

    def departures_told(self, route: str) -> int:
        """For how many departures the route's dispatchers have asked for a run so far, by their logs."""
        told = 0
        for log in self.place.root.glob(f"*-{route}.log"):
            lines = (line for line in log.read_text(errors="replace").splitlines() if not line.startswith("20"))
            told += sum(int(number) for line in lines for number in re.findall(r"departed (\d+)", line))
        return told

    def publisher(self) -> int | None:
        """The process of a run that stands in a transaction on the warehouse at this moment."""
        if self.on_postgres:
            found = rows(self.warehouse, _PUBLISHERS)
            return int(found[0][0].removeprefix("worker-")) if found else None
        return self._holder(Path(f"{self.warehouse.url.database}-shm"))

    def _holder(self, shared_memory: Path) -> int | None:
        """Who holds SQLite's write lock: byte 120 of the WAL index. https://www.sqlite.org/walformat.html#locks"""
        with suppress(FileNotFoundError):
            inode = shared_memory.stat().st_ino
            if inode not in self._shared_memory:  # never closed: that would give up the locks of this process's own connections
                self._shared_memory[inode] = os.open(shared_memory, os.O_RDWR)
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 120, 1, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(self._shared_memory[inode], fcntl.F_GETLK, asked))
            return pid if kind != fcntl.F_UNLCK else None
        return None

    def copy_depot(self) -> None:
        """Keep the depot as it is now. Nobody may be at it."""
        if self.on_postgres:
            self._as_superuser(f'CREATE DATABASE "{self.depot.url.database}_copy" TEMPLATE "{self.depot.url.database}"')
            return
        with (
            suppress(FileNotFoundError),
            closing(sqlite3.connect(self._depot_file)) as source,
            closing(sqlite3.connect(self._copy)) as copy,
        ):
            source.backup(copy)

    def restore_depot(self) -> None:
        """Put the copy where the depot is."""
        if self.on_postgres:
            name = self.depot.url.database
            self._as_superuser(f'DROP DATABASE "{name}" WITH (FORCE)', f'ALTER DATABASE "{name}_copy" RENAME TO "{name}"')
            return
        for leftover in self._depot_file.parent.glob(f"{self._depot_file.name}*"):
            if leftover != self._copy:
                leftover.unlink()
        self._copy.rename(self._depot_file)

    @property
    def _depot_file(self) -> Path:
        return Path(str(self.depot.url.database))

    @property
    def _copy(self) -> Path:
        return self._depot_file.with_suffix(".copy")

    def _as_superuser(self, *statements: str) -> None:
        """From another database: this one must have no client, and it takes a moment until the killed ones are gone."""
        engine = sa.create_engine(self.depot.url.set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        gone = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
        with engine.connect() as connection:
            connection.execute(sa.text(gone), {"name": self.depot.url.database})
            time.sleep(0.2)
            for statement in statements:
                connection.exec_driver_sql(statement)

    def told(self) -> str:
        """Where things stand, for whoever looks into a failure."""
        trips = Counter(tuple(row) for row in rows(self.depot, "SELECT route, state FROM depot_trips"))
        paused = [tuple(row) for row in rows(self.depot, "SELECT route, paused_reason FROM depot_routes WHERE paused_at IS NOT NULL")]
        queues = {queue: self._attributes(queue) for queue in self.urls}
        last = "\n".join(child.told() for child in self._children if child.process.exitcode != -signal.SIGKILL)
        return f"{self.states()}\ntrips {dict(trips)}\npaused {paused}\nqueues {queues}\n{last}"


def wrong(town: MessageTown, again: Mapping[str, int] | None = None) -> Iterator[str]:
    """What differs from the oracle, once the town is quiet. ``again``: so much more often was a message applied on purpose."""
    yield from _unaccounted(town)
    times = {key: 1 + (again or {}).get(key, 0) for key in town.sent}
    mended = town.place.mended.exists()
    events = {key: body for key, body in town.sent.items() if body.get("qty", 0) > 0 and (mended or body["item"] != "poison")}
    logged = Counter(tuple(row) for row in rows(town.warehouse, "SELECT id, item, qty FROM log"))
    expected = Counter({(key, body["item"], body["qty"]): times[key] for key, body in events.items()})
    if logged != expected:
        twice, lost = logged - expected, expected - logged
        yield f"the log has {twice.total()} rows too many ({list(twice)[:3]}), {lost.total()} too few ({list(lost)[:3]})"
    sums: dict[str, list[int]] = {}
    for key, body in events.items():
        found = sums.setdefault(body["item"], [0, 0])
        found[0] += times[key]
        found[1] += body["qty"] * times[key]
    summed = {item: [int(count), int(qty)] for item, count, qty in rows(town.warehouse, "SELECT item, messages, qty FROM sums")}
    if summed != sums:
        yield f"the sums differ: {[(item, summed.get(item), sums.get(item)) for item in sums if summed.get(item) != sums[item]][:3]}"
    for place in FIFO_GROUPS:
        came = [number for (number,) in rows(town.warehouse, "SELECT number FROM lines WHERE place = :p ORDER BY seq", p=place)]
        sent = [body["number"] for body in town.sent.values() if body.get("place") == place]
        if came != sent:
            at = next((i for i, (a, b) in enumerate(zip(came, sent, strict=False)) if a != b), min(len(came), len(sent)))
            yield f"group {place!r}: {len(came)} of {len(sent)} lines; from place {at} on {came[at : at + 5]}, expected {sent[at : at + 5]}"


def _unaccounted(town: MessageTown) -> Iterator[str]:
    """Every message sent is in the depot once, in the state that it must end in."""
    found = {key.removeprefix("body:"): state for key, state in rows(town.depot, "SELECT key, state FROM depot_messages")}
    if lost := town.sent.keys() - found.keys():
        yield f"{len(lost)} messages are not in the depot ({sorted(lost)[:3]})"
    for key, body in town.sent.items():
        poison = body.get("item") == "poison" and not town.place.mended.exists()
        expected = "quarantined" if body.get("qty", 1) < 1 else "stranded" if poison else "delivered"
        if found.get(key, expected) != expected:
            yield f"message {key} is {found[key]}, expected {expected}"
