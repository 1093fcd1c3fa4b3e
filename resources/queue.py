"""Messages from and to Amazon SQS. The promise of the seam is in :mod:`resources.queue_seam`.

Nothing is asked before it is needed; boto3 is imported then. See :mod:`resources.claim_check` for bodies that are too large.
"""

import base64
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
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

_URL = re.compile(r"https?://(?:sqs\.(?P<region>[a-z0-9-]+)\.)?[^/]+/(?P<account>\d{12})/(?P<name>[A-Za-z0-9_.-]+)")
_NO_QUEUE = ("QueueDoesNotExist", "NonExistentQueue", "QueueDeletedRecently", "InvalidAddress")


class SqsQueue(ConfigurableResource):
    """An SQS queue: ``name`` is its name, or its URL for a queue of another account. A name that ends in ``.fifo`` is FIFO.

    Needs sqs:GetQueueUrl (for a name), and of sqs:ReceiveMessage, DeleteMessage, SendMessage, GetQueueAttributes what is used.
    Credentials come from boto3's own chain; retries are botocore's own.
    """

    name: str
    region: str | None = None
    endpoint_url: str | None = Field(default=None, description="for emulators and private endpoints; default: AWS")
    large_bodies: str | None = Field(default=None, description="bucket for bodies that SQS does not take; default: they are refused")
    large_bodies_endpoint_url: str | None = Field(default=None, description="where that bucket is, if not on AWS")
    threads: int = Field(default=4, ge=1, le=64)
    visibility_seconds: int = Field(default=60, ge=1, le=43_200, description="how long received messages are hidden from others")
    _url: str | None = PrivateAttr(default=None)

    @property
    def where(self) -> str:
        raise NotImplementedError

    @property
    def is_fifo(self) -> bool:
        raise NotImplementedError

    def receive(self, limit: int, wait_seconds: float = 0) -> list[Received]:
        raise NotImplementedError

    def delete(self, received: Sequence[Received]) -> int:
        raise NotImplementedError

    def send(self, bodies: Sequence[Outgoing]) -> None:
        raise NotImplementedError

    def depth(self) -> Depth:
        raise NotImplementedError

    def fetch(self, pointer: Pointer) -> bytes:
        raise NotImplementedError
