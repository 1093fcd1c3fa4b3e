"""Messages that start trips: the :class:`Queue` trigger, how bodies become rows, and the stop at which they come aboard.

A route with a Queue has an implicit first stop, ``messages``: its rows are what the bodies say. Other stops read them like any
stop's rows, or read, message by message, what a message names: ``TextFile("landing", "{message.key}")``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bus_assets.contract import Contract, Field
from bus_assets.declare import Misdeclared, checked_name, declaration
from bus_assets.values import TripValues

if TYPE_CHECKING:
    from resources.records import Records

MESSAGES = "messages"
"""The name of the stop at which a queue route's messages come aboard."""
OF_THE_ENVELOPE = ("@key", "@sent_at", "@group", "@event_at")
"""What a field of a message may be besides a path in its body: its identity, when it was sent, its FIFO group, the event's time."""
BODY = "@body."
"""How the path of a field begins that is found in the whole body, and not in the item of ``records`` that is the row."""
LONGEST_WAIT_SECONDS = 900
MOST_PER_TRIP = 100_000

_JSON_PATH = re.compile(r"@deduplication_id|[^.\s@][^.]*(\.[^.\s][^.]*)*")

S3_EVENT = Contract(
    fields=(
        Field("bucket", required=True),
        Field("key", required=True, description="decoded, as the object is called"),
        Field("version", description="of a bucket with versioning"),
        Field("etag"),
        Field("size", "integer"),
        Field("sequencer", description="orders the events of one key"),
        Field("event", required=True, description="ObjectCreated:Put, say"),
        Field("event_time", "timestamptz"),
    ),
    max_rejected=0,
)


@declaration
class Json:
    """Bodies are JSON objects. ``fields`` are dotted paths (``order.id``) or one of :data:`OF_THE_ENVELOPE`; what is not listed is
    found under its own name. ``records`` is the path of a list in the body, whose items are the rows; none: the body is one row.
    With ``records``, paths are those in an item; ``@body.order.id`` is what all of them share.

    A message of which more than ``contract.max_rejected`` of the rows are rejected waits in quarantine whole; the others go on.
    """

    kind: ClassVar[Literal["json"]] = "json"

    contract: Contract
    fields: Mapping[str, str] = field(default_factory=dict)
    records: str | None = None

    def __post_init__(self) -> None:
        _check_fields("Json", self.contract, self.fields)


@declaration
class Text:
    """Bodies are text: one row each, with the field ``body`` and whatever of the envelope ``fields`` asks for."""

    kind: ClassVar[Literal["text"]] = "text"

    contract: Contract = field(default_factory=lambda: Contract((Field("body"),)))
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_fields("Text", self.contract, self.fields)
        open_ones = [name for name in self.contract.names if name != "body" and self.fields.get(name) not in OF_THE_ENVELOPE]
        if open_ones:
            raise Misdeclared(f"Text: field {open_ones[0]!r} is neither 'body' nor mapped to one of {', '.join(OF_THE_ENVELOPE)}")


@declaration
class S3Event:
    """Bodies are S3 notifications, direct, through SNS or through EventBridge; each record is a message, an object that was created.

    Its rows are :data:`S3_EVENT`; ``TextFile("landing", "{message.key}")`` then reads exactly that version of the object.
    """

    kind: ClassVar[Literal["s3"]] = "s3"

    @property
    def contract(self) -> Contract:
        return S3_EVENT

    @property
    def fields(self) -> Mapping[str, str]:
        return {}


def _check_fields(what: str, contract: Contract, fields: Mapping[str, str]) -> None:
    for name, path in fields.items():
        if name not in contract:
            raise Misdeclared(f"{what}: fields maps {name!r}, which the contract does not promise; it promises {', '.join(contract.names)}")
        if path.startswith("@") and path not in OF_THE_ENVELOPE and not (what == "Json" and path.startswith(BODY)):
            raise Misdeclared(f"{what}: field {name!r}: {path!r} is not known; there is {', '.join(OF_THE_ENVELOPE)}, and {BODY}… in Json")


@declaration
class Queue:
    """Messages on SQS start trips. ``system`` names the bound queue; one queue belongs to one route.

    ``decode``              how bodies become rows of the stop ``messages``.
    ``batch``               messages per trip at most. ``max_wait_seconds``: how long the oldest may wait for a trip to fill; 0: not at all.
    ``max_in_flight``       trips at once. More messages than they can carry stay on the queue.
    ``attempts``            how often a message that fails alone is tried before it is stranded. Deaths of processes have their own budget.
    ``identity``            a JSON path in the body that tells messages apart (``order.event_id``), or '@deduplication_id' (good for five
                            minutes only, says AWS). Default: what the envelope has: an S3 object's version, SNS's or SQS's message id.
    ``dead_letters``        the bound queue to which stranded messages are copied; they stay in the depot as well.
    ``on_stranded``         FIFO: whether a group waits behind a stranded message ('halt') or goes on ('continue').
    """

    system: str
    decode: Json | Text | S3Event
    batch: int = 500
    max_wait_seconds: float = 0.0
    max_in_flight: int = 4
    attempts: int = 3
    identity: str | None = None
    dead_letters: str | None = None
    on_stranded: Literal["halt", "continue"] = "halt"

    def __post_init__(self) -> None:
        me = f"Queue {self.system!r}"
        checked_name(self.system, "queue")
        for name, least, most in (("batch", 1, MOST_PER_TRIP), ("max_in_flight", 1, 1000), ("attempts", 1, 100)):
            if not least <= getattr(self, name) <= most:
                raise Misdeclared(f"{me}: {name} is {getattr(self, name)}; it must be {least} to {most}")
        if not 0 <= self.max_wait_seconds <= LONGEST_WAIT_SECONDS:
            raise Misdeclared(f"{me}: max_wait_seconds is {self.max_wait_seconds:g}; it must be 0 to {LONGEST_WAIT_SECONDS}")
        if self.dead_letters == self.system:
            raise Misdeclared(f"{me}: dead_letters names the same queue, so stranded messages would come back for ever; name another")
        if self.identity is not None and not _JSON_PATH.fullmatch(self.identity):
            raise Misdeclared(f"{me}: identity {self.identity!r} is neither a dotted path in the body nor '@deduplication_id'")
        if self.identity is not None and isinstance(self.decode, Text) and self.identity != "@deduplication_id":
            raise Misdeclared(f"{me}: identity {self.identity!r} is a path in a JSON body, but bodies are read as text")

    @property
    def systems(self) -> tuple[str, ...]:
        return (self.system, self.dead_letters) if self.dead_letters else (self.system,)


@declaration
class Bodies:
    """The source of the stop ``messages``: the bodies of the trip's messages, from the depot. Made by :class:`Queue`."""

    unit: ClassVar[str] = "message"

    system: str
    decode: Json | Text | S3Event
    fields: Mapping[str, str] = field(default_factory=dict)

    def read(self, system: Any, fields: Mapping[str, str], values: TripValues) -> Iterator[Records]:
        raise NotImplementedError("bodies are read from the depot, not from the queue: see bus_assets.aboard")

    def recount(self, system: Any, values: TripValues) -> int:
        raise NotImplementedError("bodies are counted in the depot, not on the queue: see bus_assets.aboard")

    def address(self) -> str:
        return "queue"

    def templates(self) -> tuple[Any, ...]:
        return ()
