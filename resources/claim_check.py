"""Bodies that are too large for SQS wait in a bucket; the message carries a claim check.

The form is that of Amazon's extended client libraries (Java's and Python's; see payload-offloading-java-common), so that either
side may be theirs: a body ``["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": …, "s3Key": …}]`` and an
attribute that says the size. Objects are never deleted here, since the message may come again: give the bucket a lifecycle rule
longer than the retention of queue and dead letters together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from resources.aws_clients import error_code, sorted_errors
from resources.errors import Gone, Poison
from resources.queue_seam import Pointer

SIZE_ATTRIBUTE = "ExtendedPayloadSize"
LARGEST_BODY_BYTES = 64 << 20
"""What ``fetch`` reads at most: a body is held in memory and stored in the depot."""

_SIZE_ATTRIBUTES = (SIZE_ATTRIBUTE, "SQSLargePayloadSize")
_CLASS = "software.amazon.payloadoffloading.PayloadS3Pointer"
_CLASSES = (_CLASS, "com.amazon.sqs.javamessaging.MessageS3Pointer")
_LONGEST_POINTER = 4096
_UNSENDABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What is not in AWS's list for SendMessage: #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF."""


def pointer_of(body: str, attributes: Mapping[str, str]) -> Pointer | None:
    """Where the body of that message is, or None for an ordinary message. Never raises."""
    size = next((attributes[name] for name in _SIZE_ATTRIBUTES if name in attributes), None)
    if size is None or len(body) > _LONGEST_POINTER:
        return None
    try:
        kind, place = json.loads(body)
        bucket, key = place["s3BucketName"], place["s3Key"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    told = kind in _CLASSES and isinstance(bucket, str) and isinstance(key, str)
    return Pointer(bucket, key, int(size) if re.fullmatch(r"\d{1,18}", size) else None) if told else None


def may_wait(body: str, attributes: Mapping[str, str]) -> bool:
    """Whether the body of that message, or of one inside it, may be in a bucket: told without reading it."""
    return any(name in attributes or name in body for name in _SIZE_ATTRIBUTES)


def why_unsendable(body: str, limit_bytes: int) -> str | None:
    """Why SQS would not take ``body``, or None. ``limit_bytes`` is what attributes leave of a message."""
    if not body:
        return "it is empty"
    if found := _UNSENDABLE.search(body):
        return f"it has U+{ord(found.group()):04X} at character {found.start() + 1}"
    size = len(body.encode())
    return f"it has {size} bytes, more than {limit_bytes}" if size > limit_bytes else None


def attribute_bytes(attributes: Mapping[str, str]) -> int:
    """What they take of a message's size: names, types and values count."""
    return sum(len(name.encode()) + len("String") + len(value.encode()) for name, value in attributes.items())


def leave(s3: Any, bucket: str, folder: str, body: str) -> tuple[str, dict[str, str]]:
    """Puts ``body`` into the bucket; returns the body and the attributes of the message that points there.

    The key is the content's digest: sent again, it is the same object.
    """
    try:
        content = body.encode()
    except UnicodeEncodeError as error:
        raise Poison(f"the body has half of a surrogate pair at character {error.start + 1}: no text, and cannot be sent") from None
    key = f"{folder}/{hashlib.sha256(content).hexdigest()}"
    with sorted_errors(f"bucket {bucket}", "s3:PutObject", f"arn:aws:s3:::{bucket}/{folder}/*"):
        s3.put_object(Bucket=bucket, Key=key, Body=content)
    return json.dumps([_CLASS, {"s3BucketName": bucket, "s3Key": key}]), {SIZE_ATTRIBUTE: str(len(content))}


def collect(s3: Any, pointer: Pointer) -> bytes:
    """The body that ``pointer`` points at. Raises Gone, Poison (too large), Transient, Misconfigured."""
    place = f"s3://{pointer.bucket}/{pointer.key}"
    with sorted_errors(f"bucket {pointer.bucket}", "s3:GetObject and s3:ListBucket", f"arn:aws:s3:::{pointer.bucket} and its objects"):
        try:
            answer = s3.get_object(Bucket=pointer.bucket, Key=pointer.key)
        except Exception as error:
            if error_code(error) == "NoSuchKey":
                said = "the body that the message points at is not there any more; send the message again"
                raise Gone(said, place=place) from None
            raise
        with answer["Body"] as stream:
            if answer["ContentLength"] > LARGEST_BODY_BYTES:
                said = f"the body that the message points at has {answer['ContentLength']} bytes, more than {LARGEST_BODY_BYTES}"
                raise Poison(said, place=place)
            return stream.read()
