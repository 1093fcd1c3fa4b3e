"""A town in which messages start trips: its queues, its processes, and what its databases say, read with SQL of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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

GONE_SECONDS = 20
FIFO_GROUPS = ("a", "b", "c", "d")


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
        """SIGSTOP, and wait until it stands still: what it was doing can be looked at, and a kill then is a kill at that moment."""
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(self.pid, signal.SIGSTOP)
            while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZX":
                time.sleep(0.0005)

    def wake(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> bool:
        self.process.kill()
        self.process.join(30)
        return self.process.exitcode == -signal.SIGKILL


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
        for folder in (self.place.staging, self.place.dagster_home):
            folder.mkdir(parents=True, exist_ok=True)
        (self.place.dagster_home / "dagster.yaml").write_text(DAGSTER_YAML)
        DagsterInstance.from_config(str(self.place.dagster_home)).dispose()  # its tables: two processes that make them at once fail
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
        self._children = 0
        self._sendings = 0

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
                self._sendings += 1
                entry = {"Id": str(self._sendings), "MessageBody": json.dumps(body)}
                if route == "lines":
                    entry |= {"MessageGroupId": body["place"], "MessageDeduplicationId": str(self._sendings)}
                entries.append(entry)
            answer = self.sqs.send_message_batch(QueueUrl=self.urls[route], Entries=entries)
            assert not answer.get("Failed"), answer

    def waiting(self, queue: str) -> int:
        return self._attributes(queue)["ApproximateNumberOfMessages"]

    def in_flight(self, queue: str) -> int:
        return self._attributes(queue)["ApproximateNumberOfMessagesNotVisible"]

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
                self.sqs.delete_message(QueueUrl=self.urls["dead"], ReceiptHandle=message["ReceiptHandle"])
                moved += 1
        return moved

    # Processes

    def start(self, route: str | None = None) -> Worker:
        """A dispatcher of ``route``, or one that makes runs."""
        from tests.crash import message_child

        self._children += 1
        log = self.place.root / f"{self._children:04d}-{route or 'worker'}.log"
        what = (message_child.dispatch, (self.place, route, log)) if route else (message_child.work, (self.place, log))
        process = _fork.Process(target=what[0], args=what[1], daemon=True)
        process.start()
        return Worker(process, log, route)

    @contextmanager
    def running(self, *, dispatchers: int = 1, workers: int = 2) -> Iterator[list[Worker]]:
        """So many of each; the list may be changed, and all that are in it at the end are killed."""
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
        """Everything that was sent is in the depot, nothing waits or rides, nothing is on a queue."""
        states = self.states()
        known = sum(counter.total() for counter in states.values())
        live = sum(counter[state] for counter in states.values() for state in ("waiting", "aboard"))
        return known == len(self.sent) and not live and not any(self.waiting(q) + self.in_flight(q) for q in QUEUES)

    def wait_until_quiet(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.is_quiet():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def quiet_servers(self) -> None:
        """Wait until Postgres has noticed that its killed clients are gone."""
        if self.on_postgres:
            time.sleep(0.05)

    def told(self) -> str:
        """Where things stand, for whoever looks into a failure."""
        trips = Counter(tuple(row) for row in rows(self.depot, "SELECT route, state FROM depot_trips"))
        paused = [tuple(row) for row in rows(self.depot, "SELECT route, paused_reason FROM depot_routes WHERE paused_at IS NOT NULL")]
        queues = {queue: self._attributes(queue) for queue in self.urls}
        logs = sorted(self.place.root.glob("*.log"))[-4:]
        last = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-700:]}" for log in logs)
        return f"{self.states()}\ntrips {dict(trips)}\npaused {paused}\nqueues {queues}\n{last}"


def wrong(town: MessageTown, again: Mapping[str, int] | None = None) -> Iterator[str]:
    """What differs from the oracle, once the town is quiet. ``again``: so much more often was a message applied on purpose."""
    yield from _unaccounted(town)
    times = {key: 1 + (again or {}).get(key, 0) for key in town.sent}
    events = {key: body for key, body in town.sent.items() if "item" in body and body["qty"] > 0}
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
