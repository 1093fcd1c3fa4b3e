"""Small stand-ins that hold to the same conformance suites as the real thing. Not mocks: they do what is promised."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from resources.claim_check import attribute_bytes, why_unsendable
from resources.errors import BusError, Gone, Misconfigured, Poison
from resources.queue_seam import Depth, Outgoing, Pointer, Received

DEDUPLICATED_SECONDS = 300


@dataclass
class _Message:
    message_id: str
    outgoing: Outgoing
    sent_at: datetime
    visible_at: float = 0
    receipt_handle: str = ""
    receive_count: int = 0


@dataclass
class FakeQueue:
    """SQS in memory: visibility time-outs, receive counts, FIFO groups. Safe to share between threads.

    Strict where AWS may be either way: only the newest receipt of a message deletes it. On demand it does what AWS does now and then:
    ``expire`` makes what is in flight come again, ``duplicate`` makes a message come again although it was deleted,
    ``fail`` lets the next call raise. ``clock`` tells seconds.
    """

    name: str = "fake"
    visibility_seconds: float = 60
    clock: Callable[[], float] = time.monotonic
    large_bodies: dict[Pointer, bytes] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    """Bodies, in the order in which they were deleted."""

    def __post_init__(self) -> None:
        self._messages: list[_Message] = []
        self._all: dict[str, _Message] = {}
        self._deduplicated: dict[str, float] = {}
        self._failures: list[BusError] = []
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def become(self, other: FakeQueue) -> None:
        """Hold what ``other`` holds now."""
        vars(self).update(copy.deepcopy({name: value for name, value in vars(other).items() if name not in ("_lock", "clock")}))

    @property
    def where(self) -> str:
        return f"queue {self.name}"

    @property
    def is_fifo(self) -> bool:
        return self.name.endswith(".fifo")

    def receive(self, limit: int, wait_seconds: float = 0) -> list[Received]:
        until = self.clock() + wait_seconds
        while True:
            with self._lock:
                self._maybe_fail()
                found = self._visible(limit)
            if found or limit < 1 or self.clock() >= until:
                return found
            time.sleep(0.01)

    def delete(self, received: Sequence[Received]) -> int:
        with self._lock:
            self._maybe_fail()
            newest = {message.receipt_handle: message for message in self._messages}
            for message in received:
                if found := newest.get(message.receipt_handle):
                    self._messages.remove(found)
                    self.deleted.append(message.body)
            return len(received)  # AWS confirms old receipts too

    def send(self, bodies: Sequence[Outgoing]) -> None:
        with self._lock:
            self._maybe_fail()
            for outgoing in bodies:
                if reason := why_unsendable(outgoing.body, (1 << 20) - attribute_bytes(outgoing.attributes)):
                    raise Poison(f"{self.where} does not take a message: {reason}")
                if self.is_fifo and outgoing.group is None:
                    raise Misconfigured(f"{self.where}: a message has no group")
            for outgoing in bodies:
                self._send(outgoing)

    def depth(self) -> Depth:
        with self._lock:
            self._maybe_fail()
            waiting = sum(message.visible_at <= self.clock() for message in self._messages)
            return Depth(waiting, len(self._messages) - waiting, 0)

    def fetch(self, pointer: Pointer) -> bytes:
        self._maybe_fail()
        if pointer not in self.large_bodies:
            raise Gone("the body that the message points at is not there any more", place=f"s3://{pointer.bucket}/{pointer.key}")
        return self.large_bodies[pointer]

    def expire(self) -> None:
        """All that is in flight comes again, as after its visibility time-out."""
        with self._lock:
            for message in self._messages:
                message.visible_at = 0

    def duplicate(self, message_id: str) -> None:
        """That message, in flight or deleted, comes once more: delivery is at least once."""
        with self._lock:
            message = self._all[message_id]
            message.visible_at = 0
            if message not in self._messages:
                self._messages.append(message)

    def fail(self, *errors: BusError) -> None:
        """The next calls raise these, one each, before they do anything."""
        self._failures.extend(errors)

    def _maybe_fail(self) -> None:
        if self._failures:
            raise self._failures.pop(0)

    def _send(self, outgoing: Outgoing) -> None:
        if self.is_fifo and outgoing.deduplication_id is not None:
            if self._deduplicated.get(outgoing.deduplication_id, -1) > self.clock():
                return
            self._deduplicated[outgoing.deduplication_id] = self.clock() + DEDUPLICATED_SECONDS
        message = _Message(f"m-{next(self._numbers)}", outgoing, datetime.now(UTC))
        self._messages.append(message)
        self._all[message.message_id] = message

    def _visible(self, limit: int) -> list[Received]:
        found, now = [], self.clock()
        # A group with a message in flight gives nothing until that is deleted or visible again.
        held = {message.outgoing.group for message in self._messages if message.visible_at > now} if self.is_fifo else set()
        for message in self._messages:
            if len(found) == limit:
                break
            if message.visible_at <= now and message.outgoing.group not in held - {None}:
                found.append(self._hand_out(message))
        return found

    def _hand_out(self, message: _Message) -> Received:
        message.visible_at = self.clock() + self.visibility_seconds
        message.receive_count += 1
        message.receipt_handle = f"{message.message_id}-{next(self._numbers)}"
        outgoing, attributes = message.outgoing, dict[str, str](message.outgoing.attributes)
        return Received(
            message.message_id,
            outgoing.body,
            message.receipt_handle,
            message.sent_at,
            attributes,
            outgoing.group if self.is_fifo else None,
            outgoing.deduplication_id,
            message.receive_count,
        )


def a_message(body: str, attributes: Mapping[str, str] | None = None, **more: object) -> Received:
    """A received message for tests that need no queue."""
    told = {"message_id": "m-1", "receipt_handle": "r-1", "sent_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), **more}
    return Received(body=body, attributes=attributes or {}, **told)  # pyright: ignore[reportArgumentType]
