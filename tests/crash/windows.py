"""Where in a trip a kill landed, read afterwards from what is durable: depot, staging, the warehouse, its log or counters."""

from __future__ import annotations

from dataclasses import dataclass

from tests.crash.town import Town, Trip

BOARDING = "boarding/claim"
PICK_UP = "pick-up"
GATE = "gate/verdict"
TRANSFORM = "transform"
BEFORE_CLAIM = "publish: before claim"
IN_TRANSACTION = "publish: in transaction"
NOT_TOLD = "committed, depot not told"
AFTER = "after"
WINDOWS = (BOARDING, PICK_UP, GATE, TRANSFORM, BEFORE_CLAIM, IN_TRANSACTION, NOT_TOLD, AFTER)

SECOND_STOP = {"sales": "priced", "takings": "by_customer"}


@dataclass(frozen=True)
class Before:
    """What a ride started from: enough to tell its own traces from those of earlier ones."""

    attempt: int
    claims_given_up: int


def before(town: Town, trip: Trip | None) -> Before:
    return Before(trip.attempt if trip else 0, town.claims_given_up())


def window(town: Town, route: str, start: Before, trip: Trip | None, unfinished_frames: int) -> str:
    """The window of a killed ride. ``unfinished_frames`` was counted before anybody opened the warehouse again.

    On SQLite a transaction leaves no trace before its first pages leave the cache: until then it counts as 'before claim'.
    """
    if trip is None:
        return BOARDING
    if trip.state == "delivered":
        return AFTER
    if trip.published is not None:
        return NOT_TOLD
    if trip.attempt == start.attempt:
        return BOARDING
    second = SECOND_STOP[route]
    if second in trip.passed:
        was_inside = unfinished_frames > 0 or town.claims_given_up() > start.claims_given_up
        return IN_TRANSACTION if was_inside else BEFORE_CLAIM
    if second in trip.staged:
        return GATE
    if "orders" in trip.passed:
        return TRANSFORM
    return GATE if "orders" in trip.staged else PICK_UP
