"""What is to be done about a trip whose attempt failed: ride again, split, be stranded, or pause the route. Plain values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resources.depot.entries import Kind, Trip
from resources.depot.mail import Riders, Spent

DEATHS = 5
"""So often may the process that drives a trip die before the trip itself is suspected: a message may kill whoever reads it."""
LOST_RUNS = 12
"""So many runs in a row that end before they claim their trip pause the route, some twenty minutes after the first: an outage that is
shorter needs nobody, and a run's setting that is missing for longer needs somebody."""
BREAKER = 5
"""So many trips that fail in a row, with none delivered between them, may be no accident: from then on nothing is stranded, and single
messages tell whether something is wrong with all of them, a bad deploy, or with one in each trip."""
PROBES = 3
"""So many messages that fail by themselves after that, with none delivered between them, pause the route."""
LONGEST_DELAY_SECONDS = 300.0
PATIENCE = 3
"""So often is a trip launched before the message that cannot be read for now, while others can, rides on without them."""


@dataclass(frozen=True)
class Policy:
    """What a route asks of its queue. ``parameters`` are those of its trips."""

    route: str
    batch: int
    max_wait_seconds: float
    max_in_flight: int
    attempts: int
    halt_on_stranded: bool
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Retry:
    delay_seconds: float
    spent: Spent | None = None


@dataclass(frozen=True)
class Split:
    """``parts`` become trips; messages in none of them wait again, behind those."""

    parts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Strand:
    messages: tuple[int, ...]


@dataclass(frozen=True)
class Pause:
    """The same messages ride again when a person has resumed the route."""


@dataclass(frozen=True)
class Unclaimed:
    """``runs`` of a trip in a row that failed, or were cancelled, before they claimed it, and were asked for since the route was last
    resumed; ``error`` is why the newest was."""

    runs: int
    error: str


Decision = Retry | Split | Strand | Pause


def judge(trip: Trip, riders: Riders, kind: Kind, culprit: int | None, policy: Policy) -> Decision:
    """What to do about a failed attempt, by the kind of its failure."""
    if kind == "conflict":
        return Retry(0)
    if kind == "transient":
        if trip.launches >= PATIENCE and culprit in riders.messages and len(riders.messages) > 1:
            return Split(halves(riders.messages, riders.groups, culprit))
        return Retry(delay_seconds(trip.launches))
    if kind in ("misconfigured", "checks"):
        return Pause()
    if kind == "refused":
        return Retry(delay_seconds(trip.launches), "failure") if trip.failures + 1 < policy.attempts else Pause()
    if kind == "died" and trip.deaths + 1 < DEATHS:
        return Retry(delay_seconds(trip.deaths), "death")
    parts = halves(riders.messages, riders.groups, culprit)
    if parts:
        return Split(parts)
    if kind != "died" and trip.failures + 1 < policy.attempts:
        return Retry(delay_seconds(trip.failures + 1), "failure")
    return Strand(riders.messages)


def judge_unclaimed(ended: Unclaimed) -> Retry | Pause:
    """What to do about a run that ended before its claim. It is nobody's failure aboard, and spends nothing of what the trip has."""
    return Retry(delay_seconds(ended.runs - 1)) if ended.runs < LOST_RUNS else Pause()


def delay_seconds(before: int) -> float:
    """1, 2, 4 … seconds, five minutes at most."""
    return min(LONGEST_DELAY_SECONDS, 2.0 ** min(before, 30))


def halves(messages: Sequence[int], groups: Sequence[str | None], culprit: int | None) -> tuple[tuple[int, ...], ...]:
    """The messages in smaller parts: the suspect by itself where one is known, else halves. () for a message alone.

    Messages of one group stay in order: groups are parted first; of a single group the beginning rides, and the rest waits.
    """
    units = _units(messages, groups)
    if len(units) > 1:
        suspect = next((place for place, unit in enumerate(units) if culprit in unit), None)
        if suspect is not None:
            return units[suspect], _flat(units[:suspect] + units[suspect + 1 :])
        return _flat(units[: len(units) // 2]), _flat(units[len(units) // 2 :])
    if len(messages) < 2:
        return ()
    before = messages.index(culprit) if culprit in messages else len(messages) // 2
    return (tuple(messages[: max(before, 1)]),)


def probe(riders: Riders) -> Split:
    """The first by itself, with its group if it has one; the others behind it."""
    first, *others = _units(riders.messages, riders.groups)
    return Split((first, _flat(others)))


def _units(messages: Sequence[int], groups: Sequence[str | None]) -> list[tuple[int, ...]]:
    """What can be parted: the messages of a group together, each message without a group by itself."""
    found: dict[Any, list[int]] = {}
    for message, group in zip(messages, groups, strict=True):
        found.setdefault(("alone", message) if group is None else group, []).append(message)
    return [tuple(unit) for unit in found.values()]


def _flat(units: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(message for unit in units for message in unit)
