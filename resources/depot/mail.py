"""What the depot remembers of messages, as frozen values. Bodies may be sensitive: no repr shows one.

arrival ──board──→ waiting ──form──→ aboard ──delivered──→ delivered ──again──→ waiting, next generation
             │        ▲                │ ──delivered──→ quarantined ─┐ nothing of it could be delivered
             │        └─ split, strand │ ──strand, cancel──→ stranded ─┤ given up
             │                                                         └──redrive, or it arrives again──→ waiting, next generation
             ├──→ superseded    a newer one of its subject is here (or came while it waited)
             ├──→ quarantined   it cannot be decoded
             └──→ held          older than the keys that are kept: it may have been delivered before ──redrive──→ waiting

stranded, quarantined, held ──discard──→ discarded    for good, by a person: arriving again does not wake it ──redrive──→ waiting
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from resources.depot.entries import Attempt, Trip

MessageState = Literal["waiting", "aboard", "delivered", "quarantined", "stranded", "superseded", "held", "discarded"]
WAIT_FOR_A_PERSON: tuple[MessageState, ...] = ("stranded", "quarantined", "held")
"""These can be redriven and discarded."""
ENDED: tuple[MessageState, ...] = ("delivered", "superseded", "discarded")
"""Of these nothing more is expected: purging takes them. All others ride, or wait, for a trip or for a person."""
Spent = Literal["failure", "death"]
"""What a retry takes from a trip: one of its own attempts, or one of the infrastructure's deaths."""
Decided = Literal["redriven", "from the dead letters", "delivered again", "cancelled", "discarded", "corrected"]
"""What a person decides about messages; and that one was corrected, which its sender decided."""
TRIP_RECEIPT = "trip:"
"""How the receipts of whole trips, and of rows released one by one, begin; no key of a message does, see :mod:`sensors.envelopes`."""


@dataclass(frozen=True)
class Arrival:
    """A message as it came, unwrapped. ``key`` identifies it within its route, for ever.

    ``subject`` and ``sequencer``: what it is about and its place among the messages about that (an S3 object and its events); of two
    the higher sequencer is newer. ``group``: messages of one group ride in the order in which they were boarded. ``attributes`` are
    kept as JSON. ``problem``: why it cannot be decoded, never quoting it. ``ignored``: why it is only counted. ``generation``: of a copy
    among the dead letters, which one of the message it is a copy of.
    """

    key: str
    body: bytes = field(repr=False)
    sent_at: datetime | None = None
    event_at: datetime | None = None
    subject: str | None = None
    sequencer: str | None = None
    group: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    ignored: str | None = None
    generation: int | None = None


@dataclass(frozen=True)
class Taken:
    """An arrival that the depot took instead of the body that it had under the key: ``at``, by its own clock."""

    arrival: Arrival
    at: datetime


@dataclass(frozen=True)
class Boarded:
    """What became of the arrivals of one call: they add up to how many there were, but for the last two.

    ``superseded`` arrivals were older than what is here; ``replaced`` are messages that waited until a newer one arrived.
    ``other_bodies`` are the duplicates that say something else than the message whose key they have.
    """

    waiting: int = 0
    duplicates: int = 0
    redriven: int = 0
    superseded: int = 0
    quarantined: int = 0
    ignored: int = 0
    held: int = 0
    replaced: int = 0
    other_bodies: int = 0


@dataclass(frozen=True)
class Message:
    """A message as the depot keeps it.

    ``key``, ``subject`` and ``group`` are storable text, shortened as receipts shorten keys. ``sequencer`` stands without trailing
    zeros, so that plain text order is AWS's order (the shorter one padded with zeros). ``generation`` is how often it was sent round
    again. ``part`` is the part of its receipt: '' for everything but a delivered message that was sent ``again``, whose part
    is the generation that it got then. ``trip`` is the trip that it rides in or that ended it. ``body`` is None once purged.
    ``other_bodies`` of its ``duplicates`` had another body. ``to_dead_letters``: stranded, and to be sent to the queue for dead letters.
    """

    id: int
    route: str
    key: str
    generation: int
    part: str
    state: MessageState
    body: bytes | None = field(repr=False)
    sent_at: datetime | None
    event_at: datetime | None
    subject: str | None
    sequencer: str | None
    group: str | None
    attributes: Mapping[str, Any]
    trip: str | None
    received_at: datetime
    changed_at: datetime
    duplicates: int
    other_bodies: int
    rows_rejected: int
    error: str | None
    to_dead_letters: bool


@dataclass(frozen=True)
class Decision:
    """What was decided about a message, why, and the generation that it got by it (or had, when it was discarded or its trip cancelled)."""

    what: Decided
    reason: str
    generation: int
    at: datetime


class Aboard(NamedTuple):
    """A message aboard a trip, without its body and all that is read only once: see :class:`Message`."""

    id: int
    key: str
    part: str


@dataclass(frozen=True)
class Underway:
    """A trip that settling looks at, and its newest attempt. ``departed_seconds``: how long ago it departed, by the depot's clock alone;
    0 if it never did."""

    trip: Trip
    attempt: Attempt | None
    departed_seconds: float


@dataclass(frozen=True)
class BackingOff:
    """``trips`` of messages that failed and are tried again; ``waiting`` of them until it is worth another try, or for their turn.
    ``aside`` take no other trip's place. How many messages ride in those, or wait behind one that does: ``alone`` where others ride
    meanwhile, ``perhaps`` where all may be down."""

    trips: int
    waiting: int
    aside: int
    alone: int
    perhaps: int


@dataclass(frozen=True)
class Riders:
    """The messages aboard a trip, in riding order; ``groups`` is parallel to ``messages``."""

    messages: tuple[int, ...]
    groups: tuple[str | None, ...]


@dataclass(frozen=True)
class Departure:
    """A run is to be asked for: launch number ``launch`` of ``trip``, with ``messages`` aboard. ``at`` is when it departed: a depot
    that was restored from a copy counts its launches from there, but not its time."""

    trip: str
    launch: int
    messages: int
    at: datetime


@dataclass(frozen=True)
class Counts:
    """How a route's messages stand, at one moment. ``by_state`` has every state. ``received`` is counted on its own where messages are
    boarded, less those that were purged: it must be the sum of ``by_state``. ``ignored``, ``duplicates`` and, of those,
    ``other_bodies`` count deliveries ever."""

    by_state: Mapping[MessageState, int]
    received: int = 0
    oldest_waiting: datetime | None = None
    ignored: int = 0
    duplicates: int = 0
    other_bodies: int = 0
    failures_in_row: int = 0
    paused_at: datetime | None = None
    paused_reason: str | None = None

    @property
    def is_balanced(self) -> bool:
        return self.received == sum(self.by_state.values())


@dataclass(frozen=True)
class Halt:
    """A stranded ``message`` (the first of its group), how many wait ``behind`` it in its group, and since when the first of those does."""

    message: int
    behind: int
    since: datetime


@dataclass(frozen=True)
class Remembered:
    """What a destination remembers of a message that this depot forgot: the ``part`` of its newest receipt, and the ``trip`` that left it.

    ``trip`` is None if that trip is not in every database of the route yet: then the message has to ride on.
    """

    part: str
    trip: str | None


@dataclass(frozen=True)
class Redriven:
    """What became of messages that a person sent round again: ``superseded`` ones had been replaced by a newer one of their subject."""

    waiting: int = 0
    superseded: int = 0

    def __add__(self, other: Redriven) -> Redriven:
        return Redriven(self.waiting + other.waiting, self.superseded + other.superseded)


@dataclass(frozen=True)
class Purged:
    """What a purge took away: bodies of messages that are kept, and whole messages, keys included."""

    bodies: int = 0
    messages: int = 0
