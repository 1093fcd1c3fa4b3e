"""What a queue of messages promises: the values that go through it, and the seam that every queue and every fake implements.

Imports neither Dagster nor boto3. Held to by one conformance suite, tests/conformance/test_queue_seam.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Received:
    """A message as it was received. ``body`` and ``receipt_handle`` are in no repr: neither belongs in a log.

    message_id        given by the queue; the same at every redelivery, another one after a redrive from the dead letters
    receipt_handle    what ``delete`` needs; another one at every receipt
    sent_at           when the queue took it, aware UTC
    attributes        the sender's message attributes; binary ones as base64 text
    group             FIFO only: within a group, messages come in the order they were sent. None on a standard queue, whose
                      MessageGroupId promises no order
    receive_count     how often it was received, this time included; approximate
    """

    message_id: str
    body: str = field(repr=False)
    receipt_handle: str = field(repr=False)
    sent_at: datetime | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    deduplication_id: str | None = None
    receive_count: int = 1


@dataclass(frozen=True)
class Outgoing:
    """A message to send. ``attributes`` become message attributes of type String: at most 10, none empty.

    A FIFO queue needs ``group``, and ``deduplication_id`` unless it deduplicates by content (for 5 minutes only).
    """

    body: str = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    deduplication_id: str | None = None


@dataclass(frozen=True)
class Depth:
    """How many messages there are: to be received, received but not deleted, not yet to be received. All approximate."""

    waiting: int
    in_flight: int
    delayed: int


@dataclass(frozen=True)
class Pointer:
    """Where the body of a message is that was too large for the queue: a claim check. ``size_bytes`` as its sender told, if it did."""

    bucket: str
    key: str
    size_bytes: int | None = field(default=None, compare=False)


@runtime_checkable
class MessageQueue(Protocol):
    """A queue that delivers at least once. Safe to share between threads.

    Every method raises :class:`~resources.errors.Transient` for throttling, lost connections, time-outs and 5xx, and
    :class:`~resources.errors.Misconfigured` for a queue that does not exist, denied access (it names the IAM action and the ARN)
    and missing credentials. No message says an endpoint, a credential or a body.
    """

    @property
    def where(self) -> str:
        """The queue in words: ``queue order-events (eu-west-1)``."""
        ...

    @property
    def is_fifo(self) -> bool:
        """Whether messages of a group come in order."""
        ...

    def receive(self, limit: int, wait_seconds: float = 0) -> list[Received]:
        """Up to ``limit`` messages: waits for the first one at most ``wait_seconds`` (0 to 20, parts rounded up), then takes what there is.

        Nothing there: an empty list. Fewer than ``limit`` does not mean that the queue is empty: a queue answers from some of its
        servers only, a FIFO queue holds back what follows an undeleted message of its group, and one call takes at most
        64 MiB of bodies. What was received is hidden from other receivers for a minute (SqsQueue.visibility_seconds); what
        is not deleted until then comes again. If the queue fails after the first messages, those are returned: the next call
        meets the failure.
        """
        ...

    def delete(self, received: Sequence[Received]) -> int:
        """Deletes those, and says how many the queue confirmed. One that it does not delete is no error: it comes again.

        Only the newest receipt of a message deletes it for certain.
        """
        ...

    def send(self, bodies: Sequence[Outgoing]) -> None:
        """Sends all, in order within a group. After an error some may have been sent: send all again, as receivers expect duplicates.

        A body that the queue does not take (too large, empty, with control characters) goes by claim check where the queue has
        ``large_bodies``, else it is Poison and nothing is sent.
        """
        ...

    def depth(self) -> Depth:
        """How many messages there are, approximately."""
        ...

    def fetch(self, pointer: Pointer) -> bytes:
        """The body that a claim check points at, see :func:`resources.claim_check.pointer_of`.

        Poison if it is gone (:class:`~resources.errors.Gone`), larger than 64 MiB, or in a bucket that is not this queue's
        ``large_bodies``: a message must not make us read what only we may read.
        """
        ...
