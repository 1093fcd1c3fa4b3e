"""A process that stops in the middle, is taken for dead, and wakes up after its trip was driven again: it must change nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.crash import oracle
from tests.crash.aims import Aim, Ridden
from tests.crash.batches import Batch
from tests.crash.routes import LOCK_SECONDS
from tests.crash.town import End, Ride, Town

MOMENTS = ("claimed", "staged", "judged", "publishing")
OVERTAKEN = ("revoked", "was taken over")
"""What a zombie is told where it would publish, or earlier, where it renews its lease after having stood for longer than that."""
LOCKED = "somebody else"
DEPOT_SECONDS = 30
"""The depot waits so long for a lock (resources.depot.connections.BUSY_SECONDS)."""
RUN_SECONDS = 15
"""What a run takes at most besides waiting, on a busy machine."""


@dataclass
class Zombie:
    """What became of one. ``stopped`` is False if it came too late to be stopped in the middle of a live attempt."""

    moment: str
    stopped: bool = False
    held_a_lock: bool = False
    taker_waited_seconds: float = 0.0
    end: End | None = None
    problems: list[str] = field(default_factory=list)


def haunt(town: Town, route: str, batch: Batch, moment: str, rng: random.Random, delivered: Sequence[tuple[str, Batch]]) -> Zombie:
    """Stop a ride at ``moment``, have another process take its trip over, wake the zombie, compare. ``delivered``: what was before."""
    zombie, trip_before = Zombie(moment), town.trip(route, batch)
    ridden = Ridden(route, batch.file, trip_before.attempt if trip_before else 0)
    with Aim(town, rng).taken(moment, ridden) as wait:
        ride = town.start(route, batch, trip_before.id if trip_before else None)
        wait(ride)
    ride.stop()
    trip = town.trip(route, batch)
    zombie.stopped = ride.is_running and trip is not None and trip.live
    if trip is None or not zombie.stopped:
        ride.wake()
        zombie.end = ride.end()
        return zombie
    zombie.problems += _taken_over(town, route, batch, trip.id, ride, zombie, rng)
    zombie.problems += _woken(town, route, batch, trip.attempt, ride, zombie)
    zombie.problems += oracle.when_delivered(town, route, batch, town.trip(route, batch), [*delivered, (route, batch)])
    return zombie


def _taken_over(town: Town, route: str, batch: Batch, trip: str, ride: Ride, zombie: Zombie, rng: random.Random) -> Iterator[str]:
    """Another process delivers the trip. If the zombie holds a lock it must say so soon, and succeed once that is gone."""
    started = time.monotonic()
    end = town.start(route, batch, trip, take_over=True).end()
    zombie.taker_waited_seconds = time.monotonic() - started
    if end.success:
        return
    zombie.held_a_lock = True
    if not any(LOCKED in error for error in end.errors):
        yield f"who took over failed otherwise than by a lock: {end.errors}"
    if zombie.taker_waited_seconds > LOCK_SECONDS + DEPOT_SECONDS + RUN_SECONDS:
        yield f"who took over waited {zombie.taker_waited_seconds:.0f} s for the zombie's lock"
    if rng.random() < 0.5:
        ride.kill()
    else:
        ride.wake()
        zombie.end = ride.end()
    town.quiet()
    end = town.start(route, batch, trip, take_over=True).end()
    if not end.success:
        yield f"who took over failed again, with the zombie gone: {end.errors}"


def _woken(town: Town, route: str, batch: Batch, attempt: int, ride: Ride, zombie: Zombie) -> Iterator[str]:
    before = town.everything()
    if ride.is_running:
        ride.wake()
        zombie.end = ride.end()
    if (after := town.everything()) != before:
        yield f"the zombie changed {[table for table in before if before[table] != after[table]]}"
    trip = town.trip(route, batch)
    won = trip is not None and trip.published == attempt
    if zombie.end and not won and not any(said in error for said in OVERTAKEN for error in zombie.end.errors):
        yield f"the zombie was overtaken and ended {zombie.end}, expected an error that says {' or '.join(map(repr, OVERTAKEN))}"
    if zombie.end and won and not zombie.end.success:
        yield f"the zombie had committed before it was stopped, and ended {zombie.end}"
