"""What is inside a message from SQS: the data, without the envelopes that SNS, EventBridge and S3 put around it. Pure.

    raw            the body is the data                                       key  sqs:MESSAGE-ID
    SNS            {"Type": "Notification", "Message": "…", …}                key  sns:MESSAGE-ID
    EventBridge    {"detail-type": …, "source": …, "id": …, "detail": …}      key  event:ID
    S3 (decode s3) {"Records": [{"eventSource": "aws:s3", …}, …]}             key  BUCKET/KEY/VERSION/SEQUENCER/ETAG, one arrival a record

Each may be inside the one above it; the innermost identity counts, since it survives the outer service's own repetitions. An identity
that the author names counts more than those of SNS, EventBridge and SQS; the key that this project gave a message it sent to
the dead letters counts most. In the place of a body, SQS's or SNS's, there may be a claim check: the body waits in a bucket.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote, unquote, unquote_plus

from resources.claim_check import pointer_of
from resources.depot.mail import TRIP_RECEIPT, Arrival
from resources.errors import Poison
from resources.queue_seam import Pointer, Received
from sensors.json_text import Digits, NotJson, at_path, member, parse

Decode = Literal["json", "text", "s3"]
Fetch = Callable[[Pointer], bytes]

DEDUPLICATION_ID = "@deduplication_id"
"""As ``identity``: a FIFO message's deduplication id. Only for senders that never use one again: SQS forgets it after 5 minutes."""

KEY, GENERATION, EVENT_AT, GROUP = "bus-key", "bus-generation", "bus-event-at", "bus-group"
"""Message attributes of what this project sends, see :func:`carried`."""

NO_GROUP = "none"
"""The group of a copy on a FIFO queue whose message has none."""

MAX_RECORDS = 1000
"""S3 puts one record into a notification, and may put more; a message with thousands of them was made to exhaust its reader."""

_BOM = "\ufeff"
_NO_TEXT = "not readable: half of a surrogate pair is no character"
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_OBJECT = ("bucket", "key", "version", "etag", "size", "sequencer", "event", "event_time")
_CREATED = ("ObjectCreated:", "Object Created")


def unwrap(received: Received, decode: Decode, identity: str | None = None, fetch: Fetch | None = None) -> tuple[Arrival, ...]:
    """The data in ``received``: one Arrival, for S3 one a record, never none, with the same keys at every redelivery.

    ``decode``: 'json' leaves the text of the innermost JSON document exactly as it was written, without a byte order mark;
    'text' whatever is inside SNS or EventBridge, or else the body; 's3' a JSON object for each created object, with
    bucket, key, version, etag, size, sequencer, event and event_time (null where it was not told).
    ``identity``: a dotted path to a text or number in the JSON document, or ``@deduplication_id``.
    ``fetch``: the body that a claim check points at, see :meth:`resources.queue_seam.MessageQueue.fetch`; its Poison is a ``problem``, and
    what else it raises is all that is ever raised here.

    What cannot be read has a ``problem``, which says what is wrong and where but quotes nothing, and as body what there is of it. S3's
    test message and events that bring no object are ``ignored``. What carries a ``bus-key`` is taken as it was when it got that.
    """
    letter = _opened(received, decode, fetch)
    if letter.problem is not None:
        return (letter.arrival(),)
    if decode != "text" and _is_test_event(letter.value):
        return (letter.arrival(ignored="s3:TestEvent, with which S3 tells that it may send"),)
    if decode == "s3":
        return _objects(letter)
    return (_identified(letter, received, identity).arrival(),)


def carried(key: str, generation: int, event_at: datetime | None, group: str | None) -> dict[str, str]:
    """Message attributes with which a message that is sent anew keeps its identity and its group: as ``unwrap`` reads them back."""
    attributes = {KEY: _quoted(key), GENERATION: str(generation)}
    return attributes | ({EVENT_AT: event_at.isoformat()} if event_at else {}) | ({GROUP: _quoted(group)} if group else {})


def _quoted(text: str) -> str:
    return quote(text, safe=_PLAIN, errors="replace")


@dataclass(frozen=True)
class _Letter:
    """A message on its way out of its envelopes. ``value`` is ``text`` parsed, None where it is no JSON."""

    text: str
    key: str
    sent_at: datetime | None
    group: str | None
    attributes: dict[str, Any]
    envelopes: tuple[str, ...] = ()
    value: Any = None
    event_at: datetime | None = None
    is_own: bool = False
    generation: int | None = None
    problem: str | None = None

    def arrival(self, **more: Any) -> Arrival:
        told: dict[str, Any] = {
            "key": self.key,
            "body": _bytes(self.text),
            "sent_at": self.sent_at,
            "event_at": self.event_at,
            "group": self.group,
            "attributes": {**self.attributes, "envelope": "+".join(self.envelopes) or "none"},
            "problem": self.problem,
            "generation": self.generation,
        }
        made = Arrival(**told | more)
        return replace(made, key=f"key:{made.key}") if made.key.startswith(TRIP_RECEIPT) else made

    def inside(self, envelope: str, text: str, key: str, at: Any, **attributes: Any) -> _Letter:
        """The letter that was in this one."""
        return replace(
            self,
            text=text,
            key=key,
            value=None,
            event_at=_moment(at) or self.event_at,
            envelopes=(*self.envelopes, envelope),
            attributes=self.attributes | attributes,
        )

    def wrong(self, problem: str) -> _Letter:
        inside = f" (inside {' in '.join(reversed(self.envelopes))})" if self.envelopes else ""
        return replace(self, problem=problem + inside)


def _opened(received: Received, decode: Decode, fetch: Fetch | None) -> _Letter:
    sent = received.attributes
    attributes: dict[str, Any] = {"message_id": received.message_id} | ({"message_attributes": dict(sent)} if sent else {})
    letter = _Letter(received.body.removeprefix(_BOM), f"sqs:{received.message_id}", received.sent_at, received.group, attributes)
    if key := unquote(sent.get(KEY, "")):
        # A standard queue tells no group, and a FIFO one that of the copy, which may be made up.
        group = unquote(sent.get(GROUP, "")) or (None if received.group == NO_GROUP else received.group)
        generation = _whole_number(Digits(sent.get(GENERATION, "")))
        letter = replace(letter, key=key, event_at=_moment(sent.get(EVENT_AT)), group=group, is_own=True, generation=generation)
    letter = _read(_claimed(letter, sent, fetch), decode)
    for take_out in () if letter.is_own else (_from_sns, _from_event):
        if letter.problem is None and isinstance(letter.value, dict) and (inner := take_out(letter, letter.value)):
            letter = _read(_claimed(inner, _sns_attributes(letter.value), fetch), decode)
    return letter


def _claimed(letter: _Letter, attributes: Mapping[str, str], fetch: Fetch | None) -> _Letter:
    """The letter with the body that waits in a bucket, where this one is only a claim check. ``attributes`` came with it."""
    pointer = pointer_of(letter.text, attributes) if letter.problem is None else None
    if pointer is None:
        return letter
    if fetch is None:
        return letter.wrong("the body waits in a bucket and was not fetched")
    try:
        text = fetch(pointer).decode()
    except UnicodeDecodeError:
        return letter.wrong("the body that waits in a bucket is no text in UTF-8")
    except Poison as error:
        return letter.wrong(error.message)
    return replace(letter, text=text.removeprefix(_BOM))


def _read(letter: _Letter, decode: Decode) -> _Letter:
    """The letter with its text parsed; for 'text' only where it may be an envelope."""
    if letter.problem is not None:
        return letter
    if decode != "text" or '"TopicArn"' in letter.text or '"detail-type"' in letter.text:
        try:
            return replace(letter, value=parse(letter.text))
        except NotJson as error:
            if decode != "text":
                return letter.wrong(str(error))
    return letter if _is_text(letter.text) else letter.wrong(_NO_TEXT)


def _from_sns(letter: _Letter, value: dict[str, Any]) -> _Letter | None:
    kind, topic, text, key = (value.get(name) for name in ("Type", "TopicArn", "Message", "MessageId"))
    if not isinstance(topic, str):
        return None
    if kind in ("SubscriptionConfirmation", "UnsubscribeConfirmation"):
        return letter.wrong(f"no data but SNS's {kind}; confirm the subscription by its owner, then send the data again")
    if kind != "Notification" or not _is_told(text) or not _is_told(key):
        return None
    more = {"subject": value["Subject"]} if isinstance(value.get("Subject"), str) else {}
    return letter.inside("sns", str(text).removeprefix(_BOM), f"sns:{key}", value.get("Timestamp"), topic=topic, **more)


def _sns_attributes(value: Mapping[str, Any]) -> dict[str, str]:
    """SNS tells a message's attributes in its envelope: {NAME: {"Type": …, "Value": …}}."""
    told = value.get("MessageAttributes")
    return {name: str(at_path(one, "Value")) for name, one in told.items()} if isinstance(told, dict) else {}


def _from_event(letter: _Letter, value: dict[str, Any]) -> _Letter | None:
    kind, source, key = (value.get(name) for name in ("detail-type", "source", "id"))
    if not (_is_told(kind) and _is_told(source) and _is_told(key) and "detail" in value):
        return None
    text = member(letter.text, "detail")
    return letter.inside("eventbridge", text, f"event:{key}", value.get("time"), source=source, detail_type=kind)


def _identified(letter: _Letter, received: Received, identity: str | None) -> _Letter:
    """The letter under the key that the author asked for."""
    if identity is None or letter.is_own:
        return letter
    if identity == DEDUPLICATION_ID:
        found, kind = received.deduplication_id, "deduplication"
    else:
        found, kind = at_path(letter.value, identity), "body"
    if not _is_told(found):
        return letter.wrong(f"there is no text or number at {identity!r}, which identifies a message")
    if "\0" in str(found):
        return letter.wrong(f"there is a NUL in {identity!r}, which identifies a message")
    return replace(letter, key=f"{kind}:{found}")


def _is_test_event(value: Any) -> bool:
    return isinstance(value, dict) and value.get("Service") == "Amazon S3" and value.get("Event") == "s3:TestEvent"


def _objects(letter: _Letter) -> tuple[Arrival, ...]:
    value = letter.value
    records = value.get("Records") if isinstance(value, dict) else None
    if letter.is_own:
        return (_object(letter, letter.key, _again(value)),)
    if letter.attributes.get("source") == "aws.s3":
        return (_object(letter, letter.key, _from_detail(value, letter)),)
    if not isinstance(records, list) or not records:
        return (letter.wrong("not an S3 event: neither Records nor an event of source aws.s3").arrival(),)
    if len(records) > MAX_RECORDS:
        return (letter.wrong(f"{len(records)} records in one message, more than {MAX_RECORDS}").arrival(),)
    return tuple(_from_notification(letter, place, record) for place, record in enumerate(records))


def _from_notification(letter: _Letter, place: int, record: Any) -> Arrival:
    alone = replace(letter, text=json.dumps(record), envelopes=(*letter.envelopes, "s3"))
    return _object(alone, f"{letter.key}#{place}", _from_record(record))


def _object(letter: _Letter, fallback: str, told: dict[str, Any] | None) -> Arrival:
    """The arrival for one object; ``fallback`` is the key where what was told does not identify one."""
    if told is None or not _is_told(told["bucket"]) or not _is_told(told["key"]):
        return replace(letter, key=fallback).wrong("not an S3 event with a bucket and a key").arrival()
    subject, at = f"{told['bucket']}/{told['key']}", _moment(told["event_time"])
    # Some emulators give every write the same sequencer, some give none: the content tells writes apart as well.
    which = f"{told['sequencer'] or told['event_time'] or ''}/{told['etag'] or ''}"
    return letter.arrival(
        key=letter.key if letter.is_own else f"{subject}/{told['version'] or ''}/{which}",
        body=json.dumps(told, separators=(",", ":")).encode(),
        event_at=at or letter.event_at,
        subject=subject,
        sequencer=told["sequencer"],
        ignored=None if str(told["event"]).startswith(_CREATED) else f"{_event_name(told)}, which brings no object",
    )


def _from_record(record: Any) -> dict[str, Any] | None:
    """An S3 notification's record; its key is URL-encoded."""
    if not str(at_path(record, "eventSource")).endswith(":s3"):
        return None
    try:
        key = unquote_plus(_text(at_path(record, "s3.object.key")) or "", errors="strict")
    except UnicodeDecodeError:
        return None
    event = (_text(at_path(record, "eventName")) or "").removeprefix("s3:")
    return _told(at_path(record, "s3"), key, event, _text(at_path(record, "eventTime")), version="versionId", etag="eTag")


def _from_detail(detail: Any, letter: _Letter) -> dict[str, Any] | None:
    """The detail of S3's event in EventBridge; its key is as it is."""
    at = letter.event_at.isoformat().replace("+00:00", "Z") if letter.event_at else None
    key, etag = _text(at_path(detail, "object.key")), "etag" if _text(at_path(detail, "object.etag")) else "eTag"  # moto writes it so
    return _told(detail, key, letter.attributes["detail_type"], at, version="version-id", etag=etag)


def _told(about: Any, key: str | None, event: str, event_time: str | None, *, version: str, etag: str) -> dict[str, Any]:
    return {
        "bucket": _text(at_path(about, "bucket.name")),
        "key": key,
        "version": _text(at_path(about, f"object.{version}")),
        "etag": (_text(at_path(about, f"object.{etag}")) or "").strip('"') or None,
        "size": _whole_number(at_path(about, "object.size")),
        "sequencer": _text(at_path(about, "object.sequencer")),
        "event": event,
        "event_time": event_time,
    }


def _again(value: Any) -> dict[str, Any] | None:
    """What this project made of an event before it sent it on."""
    if not isinstance(value, dict):
        return None
    return {name: (_whole_number if name == "size" else _text)(value.get(name)) for name in _OBJECT}


def _event_name(told: Mapping[str, Any]) -> str:
    name = str(told["event"])
    return name if re.fullmatch(r"[A-Za-z: ]{1,60}", name) else "an event"


def _is_told(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _text(value: Any) -> str | None:
    return value if _is_told(value) and not isinstance(value, Digits) else None


def _whole_number(value: Any) -> int | None:
    return int(value) if isinstance(value, Digits) and re.fullmatch(r"\d{1,18}", value) else None


def _moment(value: Any) -> datetime | None:
    """An ISO 8601 time, aware UTC; None for anything else."""
    try:
        at = datetime.fromisoformat(value)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_text(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _bytes(text: str) -> bytes:
    """UTF-8; what is no text, and has a problem for that, keeps its halves of characters."""
    return text.encode("utf-8", "surrogatepass")
