"""Messages from and to Amazon SQS. The promise of the seam is in :mod:`resources.queue_seam`.

Nothing is asked before it is needed; boto3 is imported then. See :mod:`resources.claim_check` for bodies that are too large.
"""

import base64
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field, PrivateAttr

from resources.aws_clients import client, error_code, in_our_words
from resources.claim_check import attribute_bytes, collect, leave, why_unsendable
from resources.errors import BusError, Misconfigured, Poison, Transient
from resources.queue_seam import Depth, MessageQueue, Outgoing, Pointer, Received
from resources.system import System

__all__ = ["Depth", "MessageQueue", "Outgoing", "Pointer", "Received", "SqsQueue"]

BATCH = 10
"""Messages in one call, AWS's limit."""
MESSAGE_BYTES = 1 << 20
"""A message with its attributes, and all messages of one SendMessageBatch together: AWS's limit since August 2025."""
LONGEST_POLL_SECONDS = 20
RECEIVED_BYTES = 64 << 20
"""Where ``receive`` ends, however few messages that is: they are all in memory."""

_URL = re.compile(r"https?://(?:sqs\.(?P<region>[a-z0-9-]+)\.)?[^/@]+/(?P<account>\d{12})/(?P<name>[A-Za-z0-9_.-]+)")
_NO_QUEUE = ("QueueDoesNotExist", "NonExistentQueue", "QueueDeletedRecently", "InvalidAddress")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SqsQueue(System):
    """An SQS queue: ``name`` is its name, or its URL for a queue of another account. A name that ends in ``.fifo`` is FIFO.

    Needs sqs:GetQueueUrl (for a name), and of sqs:ReceiveMessage, DeleteMessage, SendMessage, GetQueueAttributes what is used;
    s3:GetObject, ListBucket and PutObject on ``large_bodies``. Credentials come from boto3's own chain, retries are botocore's own.
    """

    name: str
    region: str | None = None
    endpoint_url: str | None = Field(default=None, description="for emulators and private endpoints; default: AWS")
    large_bodies: str | None = Field(default=None, description="bucket for bodies that SQS does not take; default: they are refused")
    large_bodies_endpoint_url: str | None = Field(default=None, description="where that bucket is, if not on AWS")
    largest_message_bytes: int = Field(default=MESSAGE_BYTES, ge=1024, le=MESSAGE_BYTES, description="the queue's MaximumMessageSize")
    threads: int = Field(default=4, ge=1, le=64, description="connections at once; a FIFO queue is received by one")
    visibility_seconds: int = Field(default=60, ge=1, le=43_200, description="how long received messages are hidden from others")
    _url: str | None = PrivateAttr(default=None)

    @property
    def where(self) -> str:
        name, region = self._parts()
        return f"queue {name} ({region})" if region else f"queue {name}"

    @property
    def is_fifo(self) -> bool:
        return self.name.endswith(".fifo")

    def receive(self, limit: int, wait_seconds: float = 0) -> list[Received]:
        if limit < 1:
            return []
        take = self._taker()
        first = take(min(limit, BATCH), min(math.ceil(wait_seconds), LONGEST_POLL_SECONDS))
        # The visibility of the first must not run out while the last are received.
        load = _Load(first, limit, seconds=self.visibility_seconds / 4)
        if len(first) < BATCH or self.is_fifo:
            load.drain(take)
        else:
            _at_once(lambda _: load.drain(take), range(self.threads), self.threads)
        return load.messages

    def delete(self, received: Sequence[Received]) -> int:
        if not received:
            return 0
        sqs = self._sqs()

        def delete(batch: Sequence[Received]) -> int:
            entries = [{"Id": str(place), "ReceiptHandle": message.receipt_handle} for place, message in enumerate(batch)]
            return len(sqs.ask("DeleteMessage", sqs.client.delete_message_batch, Entries=entries).get("Successful", ()))

        return sum(_at_once(delete, _batches(received), self.threads))

    def send(self, bodies: Sequence[Outgoing]) -> None:
        reasons = [self._why_unsendable(outgoing) for outgoing in bodies]  # all of them before the first is sent
        for reason in filter(None, reasons):
            if self.large_bodies is None:
                raise Poison(f"{self.where} does not take a message: {reason}; set large_bodies to a bucket, where such bodies can wait")
        entries = [self._entry(outgoing, bool(reason)) for outgoing, reason in zip(bodies, reasons, strict=True)]
        _at_once(self._send, list(_sendable(entries)), 1 if self.is_fifo else self.threads)

    def _why_unsendable(self, outgoing: Outgoing) -> str | None:
        for name, value in outgoing.attributes.items():
            if reason := why_unsendable(value, MESSAGE_BYTES):
                raise Poison(f"{self.where} does not take attribute {name!r}: {reason}; escape it or leave it out")
        return why_unsendable(outgoing.body, self.largest_message_bytes - attribute_bytes(outgoing.attributes))

    def _entry(self, outgoing: Outgoing, is_large: bool) -> dict[str, Any]:
        body, attributes = outgoing.body, {name: _attribute("String", value) for name, value in outgoing.attributes.items()}
        if is_large and self.large_bodies:
            body, size = leave(self._s3(), self.large_bodies, self._parts()[0], body)
            attributes |= {name: _attribute("Number", value) for name, value in size.items()}
        entry = {"MessageBody": body, "MessageAttributes": attributes}
        entry |= {"MessageGroupId": outgoing.group} if outgoing.group is not None else {}
        return entry | ({"MessageDeduplicationId": outgoing.deduplication_id} if outgoing.deduplication_id is not None else {})

    def _send(self, batch: Sequence[dict[str, Any]]) -> None:
        entries = [{"Id": str(place), **entry} for place, entry in enumerate(batch)]
        sqs = self._sqs()
        failed = sqs.ask("SendMessage", sqs.client.send_message_batch, Entries=entries).get("Failed", ())
        if not failed:
            return
        said = f"{self.where} did not take {len(failed)} of {len(batch)} messages: {failed[0].get('Code')}"
        if any(failure.get("SenderFault") for failure in failed):
            raise Misconfigured(f"{said}; check its MaximumMessageSize, and on FIFO that messages have a group and a deduplication id")
        raise Transient(f"{said}; send all again")

    def depth(self) -> Depth:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
        sqs = self._sqs()
        found = sqs.ask("GetQueueAttributes", sqs.client.get_queue_attributes, AttributeNames=names).get("Attributes", {})
        return Depth(*(int(found.get(name, 0)) for name in names))

    def fetch(self, pointer: Pointer) -> bytes:
        if pointer.bucket != self.large_bodies:
            allowed = f"this queue's large_bodies is {self.large_bodies!r}" if self.large_bodies else "this queue has no large_bodies"
            raise Poison(f"the message points into bucket {pointer.bucket!r}, but {allowed}; only there bodies are fetched")
        return collect(self._s3(), pointer)

    def _taker(self) -> "_Take":
        """Receives so many messages, waiting so many seconds for the first one."""
        sqs, names = self._sqs(), ["SentTimestamp", "ApproximateReceiveCount"]
        asked = {
            "VisibilityTimeout": self.visibility_seconds,
            "MessageSystemAttributeNames": [*names, "MessageGroupId", "MessageDeduplicationId"] if self.is_fifo else names,
            "MessageAttributeNames": ["All"],
        }

        def take(limit: int, wait_seconds: int) -> list[Received]:
            receive, much = sqs.client.receive_message, {"MaxNumberOfMessages": limit, "WaitTimeSeconds": wait_seconds}
            found = list(map(_received, sqs.ask("ReceiveMessage", receive, **much, **asked).get("Messages", ())))
            if self.is_fifo and any(message.group is None for message in found):
                said = (
                    "messages came without their group, so their order is not known; is its server too old for MessageSystemAttributeNames?"
                )
                raise Misconfigured(f"{self.where} is FIFO, but {said}")
            return found

        return take

    def _sqs(self) -> "_Sqs":
        name, region = self._parts()
        sqs = _Sqs(client("sqs", region, self.endpoint_url, self.threads, where=self.where), self.where, name, self._url)
        if sqs.url is None:
            is_url = _URL.fullmatch(self.name)
            sqs.url = self.name if is_url else sqs.ask("GetQueueUrl", sqs.client.get_queue_url, QueueName=name)["QueueUrl"]
            self._url = sqs.url
        return sqs

    def _s3(self) -> Any:
        return client("s3", self._parts()[1], self.large_bodies_endpoint_url, self.threads, where=f"{self.where}, its large_bodies")

    def _parts(self) -> tuple[str, str | None]:
        """Name and region of the queue."""
        found = _URL.fullmatch(self.name)
        return (found["name"], self.region or found["region"]) if found else (self.name, self.region)


@dataclass
class _Sqs:
    """A queue's calls. Plain attributes, as thousands of calls a second go through them and a resource's are slow."""

    client: Any
    where: str
    name: str
    url: str | None

    def ask(self, action: str, method: Callable[..., Any], **parameters: Any) -> Any:
        """What ``method`` answers. What goes wrong meanwhile is ours."""
        try:
            return method(QueueUrl=self.url, **parameters) if self.url else method(**parameters)
        except Exception as error:
            if (ours := self._in_our_words(error, action)) is None:
                raise
            raise ours from None

    def _in_our_words(self, error: Exception, action: str) -> BusError | None:
        known, meta = _URL.fullmatch(self.url or ""), self.client.meta
        arn = f"arn:{meta.partition}:sqs:{meta.region_name}:{known['account'] if known else '*'}:{self.name}"
        if error_code(error) in _NO_QUEUE:
            said = f"{self.where} does not exist in this account and region, or may not be seen"
            return Misconfigured(f"{said}; create it, correct its name, or allow sqs:{action} on {arn}")
        return in_our_words(error, self.where, f"sqs:{action}", arn)


_Take = Callable[[int, int], list[Received]]


class _Load:
    """What one call has received so far, filled by several threads."""

    def __init__(self, first: list[Received], limit: int, seconds: float):
        self.messages = first
        self._room = limit - len(first) if first else 0
        self._bytes = sum(len(message.body) for message in first)
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()

    def reserve(self) -> int:
        """How many the caller may receive now; it tells ``add`` how many it was."""
        with self._lock:
            if self._bytes >= RECEIVED_BYTES or time.monotonic() > self._until:
                return 0
            reserved = min(BATCH, self._room)
            self._room -= reserved
            return reserved

    def add(self, found: list[Received], reserved: int) -> None:
        with self._lock:
            self.messages += found
            self._bytes += sum(len(message.body) for message in found)
            self._room += reserved - len(found)

    def close(self) -> None:
        with self._lock:
            self._until = 0

    def drain(self, take: _Take) -> None:
        """Adds what there is until there is nothing, no room, or no time."""
        while room := self.reserve():
            try:
                found = take(room, 0)
            except BusError:
                self.close()  # nothing is lost: what was received is handed on, and the next call meets the error
                return
            self.add(found, room)
            if not found:
                return


def _at_once(do: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """``do`` for each item, on several threads if there are several. After an error no more are begun."""
    if threads == 1 or len(items) < 2:
        return [do(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="sqs") as pool:
        return list(pool.map(do, items))  # which cancels the rest when one fails


def _received(message: Mapping[str, Any]) -> Received:
    system = message.get("Attributes", {})
    sent = system.get("SentTimestamp")
    return Received(
        message_id=message["MessageId"],
        body=message.get("Body", ""),
        receipt_handle=message["ReceiptHandle"],
        sent_at=_EPOCH + timedelta(milliseconds=int(sent)) if sent else None,
        attributes={name: _value(attribute) for name, attribute in message.get("MessageAttributes", {}).items()},
        group=system.get("MessageGroupId"),
        deduplication_id=system.get("MessageDeduplicationId"),
        receive_count=int(system.get("ApproximateReceiveCount", 1)),
    )


def _value(attribute: Mapping[str, Any]) -> str:
    binary = attribute.get("BinaryValue")
    return attribute.get("StringValue", "") if binary is None else base64.b64encode(binary).decode()


def _attribute(kind: str, value: str) -> dict[str, str]:
    return {"DataType": kind, "StringValue": value}


def _batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _sendable(entries: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Batches that one SendMessageBatch takes: at most 10 messages, at most 1 MiB together."""
    batch: list[dict[str, Any]] = []
    total = 0
    for entry in entries:
        size = len(entry["MessageBody"].encode())
        size += attribute_bytes({name: value["StringValue"] for name, value in entry["MessageAttributes"].items()})
        if batch and (len(batch) == BATCH or total + size > MESSAGE_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(entry)
        total += size
    if batch:
        yield batch
