"""Messages from and to Amazon SQS. The promise of the seam is in :mod:`resources.queue_seam`.

Nothing is asked before it is needed; boto3 is imported then. See :mod:`resources.claim_check` for bodies that are too large.
"""

import base64
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from dagster import ConfigurableResource
from pydantic import Field, PrivateAttr

from resources.aws_clients import client, error_code, sorted_errors
from resources.claim_check import collect, leave, why_unsendable
from resources.errors import BusError, Misconfigured, Poison, Transient
from resources.queue_seam import Depth, MessageQueue, Outgoing, Pointer, Received

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


class SqsQueue(ConfigurableResource):
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
        name, _, region = self._parts()
        return f"queue {name} ({region})" if region else f"queue {name}"

    @property
    def is_fifo(self) -> bool:
        return self.name.endswith(".fifo")

    def receive(self, limit: int, wait_seconds: float = 0) -> list[Received]:
        first = self._take(min(limit, BATCH), min(int(wait_seconds), LONGEST_POLL_SECONDS)) if limit > 0 else []
        # The visibility of the first must not run out while the last are received.
        load = _Load(first, limit, seconds=self.visibility_seconds / 4)
        if len(first) < BATCH or self.is_fifo:
            self._drain(load)
        else:
            _at_once(lambda _: self._drain(load), range(self.threads), self.threads)
        return load.messages

    def _drain(self, load: "_Load") -> None:
        while room := load.reserve():
            try:
                found = self._take(room, 0)
            except BusError:
                load.close()  # nothing is lost: what was received is handed on, and the next call meets the error
                return
            load.add(found, room)
            if not found:
                return

    def delete(self, received: Sequence[Received]) -> int:
        return sum(_at_once(self._delete, _batches(received), self.threads))

    def _delete(self, batch: Sequence[Received]) -> int:
        entries = [{"Id": str(place), "ReceiptHandle": message.receipt_handle} for place, message in enumerate(batch)]
        with self._asking("DeleteMessage") as sqs:
            return len(sqs.delete_message_batch(QueueUrl=self._url, Entries=entries).get("Successful", ()))

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
        return why_unsendable(outgoing.body, self.largest_message_bytes - _attribute_bytes(outgoing.attributes))

    def _entry(self, outgoing: Outgoing, is_large: bool) -> dict[str, Any]:
        body, attributes = outgoing.body, {name: _attribute("String", value) for name, value in outgoing.attributes.items()}
        if is_large and self.large_bodies:
            s3 = client("s3", self._parts()[2], self.large_bodies_endpoint_url, self.threads)
            body, size = leave(s3, self.large_bodies, self._parts()[0], body)
            attributes |= {name: _attribute("Number", value) for name, value in size.items()}
        entry = {"MessageBody": body, "MessageAttributes": attributes}
        entry |= {"MessageGroupId": outgoing.group} if outgoing.group is not None else {}
        return entry | ({"MessageDeduplicationId": outgoing.deduplication_id} if outgoing.deduplication_id is not None else {})

    def _send(self, batch: Sequence[dict[str, Any]]) -> None:
        entries = [{"Id": str(place), **entry} for place, entry in enumerate(batch)]
        with self._asking("SendMessage") as sqs:
            failed = sqs.send_message_batch(QueueUrl=self._url, Entries=entries).get("Failed", ())
        if not failed:
            return
        said = f"{self.where} did not take {len(failed)} of {len(batch)} messages: {failed[0].get('Code')}"
        if any(failure.get("SenderFault") for failure in failed):
            raise Misconfigured(f"{said}; check its MaximumMessageSize, and on FIFO that messages have a group and a deduplication id")
        raise Transient(f"{said}; send all again")

    def depth(self) -> Depth:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
        with self._asking("GetQueueAttributes") as sqs:
            found = sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=names).get("Attributes", {})
        return Depth(*(int(found.get(name, 0)) for name in names))

    def fetch(self, pointer: Pointer) -> bytes:
        if pointer.bucket != self.large_bodies:
            allowed = f"this queue's large_bodies is {self.large_bodies!r}" if self.large_bodies else "this queue has no large_bodies"
            raise Poison(f"the message points into bucket {pointer.bucket!r}, but {allowed}; only there bodies are fetched")
        return collect(client("s3", self._parts()[2], self.large_bodies_endpoint_url, self.threads), pointer)

    def _take(self, limit: int, wait_seconds: int) -> list[Received]:
        system = ["SentTimestamp", "ApproximateReceiveCount", *(["MessageGroupId", "MessageDeduplicationId"] if self.is_fifo else [])]
        with self._asking("ReceiveMessage") as sqs:
            answer = sqs.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=limit,
                WaitTimeSeconds=wait_seconds,
                VisibilityTimeout=self.visibility_seconds,
                MessageSystemAttributeNames=system,
                MessageAttributeNames=["All"],
            )
        return [_received(message) for message in answer.get("Messages", ())]

    @contextmanager
    def _asking(self, action: str) -> Iterator[Any]:
        """The client, with ``_url`` known. What goes wrong meanwhile is ours."""
        sqs = client("sqs", self._parts()[2], self.endpoint_url, self.threads)
        if self._url is None and action != "GetQueueUrl":
            self._url = self._find_url()
        with sorted_errors(self.where, f"sqs:{action}", self._arn(sqs)):
            try:
                yield sqs
            except Exception as error:
                if error_code(error) not in _NO_QUEUE:
                    raise
                said = f"{self.where} does not exist in this account and region, or may not be seen"
                raise Misconfigured(f"{said}; create it, correct its name, or allow sqs:{action} on {self._arn(sqs)}") from None

    def _find_url(self) -> str:
        if _URL.fullmatch(self.name):
            return self.name
        with self._asking("GetQueueUrl") as sqs:
            return sqs.get_queue_url(QueueName=self.name)["QueueUrl"]

    def _arn(self, sqs: Any) -> str:
        name, account, _ = self._parts()
        return f"arn:{sqs.meta.partition}:sqs:{sqs.meta.region_name}:{account}:{name}"

    def _parts(self) -> tuple[str, str, str | None]:
        """Name, account (``*`` until it is known) and region of the queue."""
        if found := _URL.fullmatch(self.name):
            return found["name"], found["account"], self.region or found["region"]
        known = _URL.fullmatch(self._url or "")
        return self.name, known["account"] if known else "*", self.region


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


def _attribute_bytes(attributes: Mapping[str, str]) -> int:
    """Names, types and values count towards a message's size."""
    return sum(len(name.encode()) + len("String") + len(value.encode()) for name, value in attributes.items())


def _batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _sendable(entries: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Batches that one SendMessageBatch takes: at most 10 messages, at most 1 MiB together."""
    batch: list[dict[str, Any]] = []
    total = 0
    for entry in entries:
        size = len(entry["MessageBody"].encode())
        size += _attribute_bytes({name: value["StringValue"] for name, value in entry["MessageAttributes"].items()})
        if batch and (len(batch) == BATCH or total + size > MESSAGE_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(entry)
        total += size
    if batch:
        yield batch
