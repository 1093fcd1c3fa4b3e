"""What the depot remembers, as frozen values; and the ways in which it says no."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from resources.errors import Misconfigured, Refused

TripState = Literal["formed", "departed", "driving", "delivered", "failed", "rehearsed", "stuck", "split", "stranded", "cancelled", "empty"]
OVER: tuple[TripState, ...] = ("split", "stranded", "cancelled", "empty")
"""Ends that nothing changes any more, of trips of messages, whose messages ride elsewhere or not at all; any trip may be cancelled."""

Kind = Literal["transient", "poison", "checks", "misconfigured", "refused", "conflict", "died"]
"""Why an attempt failed, sorted by what to do next."""

Outcome = Literal["published", "failed", "revoked", "rehearsed"]
RowState = Literal["held", "released", "discarded"]
RowFilter = Literal["held", "released", "discarded", "waiting"]
"""Waiting are those that are held, and those given to a release trip that is not delivered."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TRIP_ID = re.compile(r"[0-9a-z][0-9a-z_-]{0,63}")


@dataclass(frozen=True)
class Trip:
    """One drive of a route. ``run`` is the Dagster run that started it; ``parent`` the trip that a release or rehearsal reads from, or
    that was split into this one.

    A trip of messages is formed first: it departs when ``not_before`` has come. ``launches`` is how many runs were asked for,
    ``failures`` and ``deaths`` what its retries have spent. ``cancelled`` is why it was asked to stop. ``launches_before_resume`` of its
    launches are from before a person last resumed the route.
    """

    id: str
    route: str
    trigger: str
    parameters: Mapping[str, Any]
    partition: str | None
    run: str | None
    parent: str | None
    created_at: datetime
    state: TripState
    ended_at: datetime | None
    error: str | None
    not_before: datetime | None = None
    departed_at: datetime | None = None
    launches: int = 0
    failures: int = 0
    deaths: int = 0
    cancelled: str | None = None
    launches_before_resume: int = 0

    @property
    def tried_again(self) -> str:
        """When a trip of messages that failed departs again at the earliest, in words; '' where its time has come, or none is set."""
        waits = self.state == "formed" and self.not_before is not None and self.not_before > datetime.now(UTC)
        return f"tried again at {self.not_before:%H:%M:%S} UTC" if waits else ""


@dataclass(frozen=True)
class Attempt:
    """One try at a trip by one run. Live while ``ended_at`` is None. ``lease_until`` is on the depot's clock.

    ``kind`` is why it failed, ``culprit`` the id of the message that the error names.
    """

    trip: str
    attempt: int
    run: str
    claimed_at: datetime
    lease_until: datetime
    host: str | None
    pid: int | None
    process_started: str | None
    ended_at: datetime | None
    outcome: Outcome | None
    error: str | None
    kind: Kind | None = None
    culprit: int | None = None


@dataclass(frozen=True)
class Verdict:
    """The recorded result of a stop's checks.

    ``picked_up`` = ``kept`` + ``rejected`` rows that came in; ``produced`` rows went out; ``counts`` has whatever else is counted.
    ``manifest`` names the exact staged bytes (``Manifest.to_json()``) and ``digest`` is its digest; ``inputs`` gives per upstream
    stop the digest that was read; ``figures`` are ``{"rule": …, "rows": …}``. ``created_at`` is set by the depot.
    """

    trip: str
    attempt: int
    stop: str
    passed: bool
    picked_up: int
    kept: int
    rejected: int
    produced: int
    manifest: Mapping[str, Any] | None
    digest: str | None
    inputs: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[Mapping[str, Any], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    created_at: datetime | None = None


class Reason(NamedTuple):
    """Why a row was rejected: ``rule`` as the contract names it, ``message`` for a person."""

    rule: str
    message: str


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that broke its contract. ``payload`` is the record as text columns, as it was picked up.

    ``row_id`` identifies the row within its stop; ``position`` is the ``unit`` ('line', 'element', …) in ``origin`` where it
    starts; ``message`` the id of the message that it came in. What follows is filled in by the depot. ``payload`` may be sensitive:
    it is not in the repr.
    """

    row_id: str
    origin: str | None
    unit: str | None
    position: int | None
    reasons: tuple[Reason, ...]
    payload: Mapping[str, str | None] = field(repr=False)
    message: int | None = None
    id: int | None = None
    route: str = ""
    trip: str = ""
    attempt: int = 0
    stop: str = ""
    state: RowState = "held"
    released_trip: str | None = None
    reason: str | None = None
    created_at: datetime | None = None
    trip_state: TripState | None = None
    message_state: str | None = None
    release_state: TripState | None = None

    @property
    def rules(self) -> tuple[str, ...]:
        """What it broke."""
        return tuple(reason.rule for reason in self.reasons)


@dataclass(frozen=True)
class QuarantineCount:
    """``rows`` that broke the same ``rules`` and stand alike, as do their trips, messages and release trips; ``trip``, ``message`` and
    ``released_trip`` are one row's."""

    route: str
    stop: str
    rules: tuple[str, ...]
    rows: int
    state: RowState
    trip_state: TripState | None
    message_state: str | None
    trip: str
    message: int | None
    released_trip: str | None = None
    release_state: TripState | None = None


@dataclass(frozen=True)
class HeldAt:
    """``rows`` of delivered trips, and of no message that is not, are held at ``stop``, the oldest ``since`` then."""

    stop: str
    rows: int
    since: datetime


@dataclass(frozen=True)
class Publication:
    """A trip's rows are committed in ``database``; ``tables`` says what was done to each."""

    trip: str
    database: str
    attempt: int
    at: datetime
    tables: Mapping[str, Any]


@dataclass(frozen=True)
class Forgotten:
    """``trips`` with all that hung on them; ``rows`` of theirs that were released from quarantine or discarded."""

    trips: int = 0
    rows: int = 0

    def __add__(self, other: Forgotten) -> Forgotten:
        return Forgotten(self.trips + other.trips, self.rows + other.rows)


class NoSuchTrip(Refused):
    """The depot knows no trip of that id."""


class AttemptLive(Refused):
    """Somebody else drives this trip now: ``attempt``."""

    def __init__(self, attempt: Attempt):
        super().__init__(
            f"attempt {attempt.attempt} of trip {attempt.trip} is still live: run {attempt.run} on {attempt.host or 'an unknown host'}, "
            f"lease until {attempt.lease_until:%Y-%m-%d %H:%M:%S} UTC; wait for it to end, or revoke it first"
        )
        self.attempt = attempt


class AttemptEnded(Refused):
    """This attempt was ended (``revoked`` by somebody, or ``failed``) or never claimed: its run must stop."""

    def __init__(self, trip: Trip, attempt: int, found: str):
        then = "stop this run and drive the trip again"
        if trip.trigger == "queue":
            again = f"its messages ride again by themselves, unless they were stranded or cancelled; `bus trip {trip.id}` tells"
            then = f"this run has nothing left to do (a stop of it that failed says why): {again}"
        super().__init__(f"attempt {attempt} of trip {trip.id} {found}; {then}")
        self.trip = trip.id
        self.attempt = attempt


class TripOver(Refused):
    """The trip is over without having been delivered by a run (``trip.state``), or was asked to stop: a run has nothing to do."""

    def __init__(self, trip: Trip):
        why = {"split": "its messages ride in other trips", "empty": "all its messages were applied by earlier trips"}.get(
            trip.state, trip.cancelled or trip.error or "its messages were given up"
        )
        said = trip.state if trip.state in OVER else "asked to stop"
        super().__init__(f"trip {trip.id} is {said} ({why}); there is nothing left to drive in it")
        self.trip = trip


class AlreadyDelivered(Refused):
    """The trip is delivered: driving it again could only deliver it twice."""

    def __init__(self, trip: Trip):
        super().__init__(f"trip {trip.id} is delivered already; to move the data again, start a new trip of route '{trip.route}'")
        self.trip = trip


def checked_name(value: str, what: str) -> str:
    """``value`` if it is usable in paths, tags and keys; else :class:`Misconfigured`."""
    if not _NAME.fullmatch(value):
        raise Misconfigured(
            f"{what} {value!r} is not a usable name: lower-case letters, digits and underscores, starting with a letter, at most 63"
        )
    return value


def checked_trip_id(value: str) -> str:
    if not _TRIP_ID.fullmatch(value):
        raise Misconfigured(f"trip id {value[:80]!r} is not usable: lower-case letters, digits, '-' and '_', at most 64")
    return value
