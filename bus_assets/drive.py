"""One attempt at a trip, as its stops see it. Knows nothing of Dagster.

board (bus_assets.boarding) ──→ Drive ──→ pick_up / transform (bus_assets.halting) ──→ publish (bus_assets.publish)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from bus_assets.passengers import Passengers
from bus_assets.progress import Progress, tell
from bus_assets.route import Route
from bus_assets.values import TripValues
from resources.depot.entries import Trip, Verdict
from resources.depot.store import Depot
from resources.errors import BusError, Refused
from resources.staging import Manifest, Staging

LEASE_SECONDS = 900
"""An attempt that shows no progress for so long counts as dead. Its process's death, or its run's end, is seen at once."""
RENEW_SECONDS = 10.0
TRIP_TAG = "bus/trip/{route}"
"""The run tag that says which trip of a route to drive; the same in the UI, the CLI and in sensors."""

SCHEDULED = "_scheduled"
"""Among a trip's parameters: the tick that started it, ISO 8601. No declared parameter begins with an underscore."""

Mode = Literal["driving", "rehearsal", "forward", "delivered"]


@dataclass(frozen=True)
class Bus:
    """What trips drive with: the durable record, the place for staged rows, and the systems by the names routes use."""

    depot: Depot
    staging: Staging
    systems: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, system in self.systems.items():
            if be_called := getattr(type(system), "be_called", None):
                be_called(system, name)


@dataclass(frozen=True)
class Boarding:
    """What a run says of itself. ``selected`` are the stops that it will run; ``tagged`` and ``resumed`` name the trip, if any:
    by tag, or by the run that this one re-executes from failure. ``run_is_over`` tells whether a run has ended. ``one_process``: all
    stops share this one, so that with it the attempt dies."""

    run: str
    selected: frozenset[str]
    trigger: str = "person"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scheduled: datetime | None = None
    tagged: str | None = None
    resumed: str | None = None
    run_is_over: Callable[[str], bool] = lambda run: False
    take_over: bool = False
    one_process: bool = True


@dataclass(frozen=True)
class Drive:
    """One attempt at a trip by one run. ``mode``:

    'driving'    stops run, drop-offs publish.
    'rehearsal'  stops run on rows of ``parent``, nothing is published.
    'forward'    committed in the first database already: nothing is picked up again, the other databases follow.
    'delivered'  nothing is left to do.
    """

    bus: Bus
    route: Route
    trip: Trip
    attempt: int
    run: str
    mode: Mode
    selected: frozenset[str]

    @property
    def values(self) -> TripValues:
        scheduled = self.trip.parameters.get(SCHEDULED)
        return TripValues(self.trip.id, datetime.fromisoformat(scheduled) if scheduled else self.trip.created_at, self.trip.parameters)

    @property
    def has_messages(self) -> bool:
        """Whether messages are aboard: of a queue route, unless it rehearses or carries rows released from quarantine."""
        return self.route.queue is not None and self.trip.trigger not in ("release", "rehearsal")

    def verdicts(self) -> dict[str, Verdict]:
        """The newest verdict per stop; in a rehearsal, the parent trip's for the stops that are not rehearsed."""
        own = self.bus.depot.verdicts(self.trip.id)
        if self.mode == "rehearsal" and self.trip.parent:
            return {**self.bus.depot.verdicts(self.trip.parent), **own}
        return own

    def passengers(self, stop: str, verdicts: Mapping[str, Verdict] | None = None) -> Passengers:
        """The rows that ``stop`` keeps in this trip; :class:`Refused` without a passed verdict."""
        verdict = (verdicts or self.verdicts()).get(stop)
        if verdict is None or not verdict.passed or verdict.manifest is None:
            raise Refused(f"stop '{stop}' has no passed verdict in trip {self.trip.id}; drive it first", route=self.route.name, stop=stop)
        return Passengers(stop, self.route.contract_of(stop), Manifest.from_json(verdict.manifest), self.bus.staging)


class NothingToDo(Refused):
    """The trip is somebody else's, or over: the run ends without having done anything, and without having failed."""


class AppliedBefore(Refused):
    """Messages aboard were applied by an earlier trip while this one was under way: nothing was written; the rest rides again."""


class Overtaken(Refused):
    """This attempt was ended by somebody else, or its trip cancelled, while its run went on: nothing was written. Whoever ended it decides
    how the trip goes on."""


class Ended(BusError):
    """Somebody ended the run: terminated it, or told its process to stop."""


def ledger_id(route: Route, trip: str, database: str) -> str:
    """What a trip is called in a destination's own record: two bound names may lead to one and the same database."""
    return trip if database == route.databases[0] else f"{trip}/{database}"


@dataclass
class Lease:
    """Renews the attempt's lease as rows move, at most every :data:`RENEW_SECONDS`; raises when the attempt was taken over, or its
    trip cancelled."""

    drive: Drive
    stop: str
    _renewed: float = field(default_factory=time.monotonic)

    def __call__(self, rows: int) -> None:
        tell(Progress(self.stop, rows))
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        if not self.drive.bus.depot.renew(self.drive.trip.id, self.drive.attempt, LEASE_SECONDS):
            check_not_cancelled(self.drive)
            raise Overtaken(
                f"attempt {self.drive.attempt} of trip {self.drive.trip.id} was taken over; this run stops", route=self.drive.route.name
            )


def check_not_cancelled(drive: Drive) -> None:
    """:class:`Overtaken` if a person has cancelled the trip since its run claimed it."""
    if (why := drive.bus.depot.trip(drive.trip.id).cancelled) is not None:
        said = f"trip {drive.trip.id} was asked to stop ({why}); this run stops, and nothing was written"
        raise Overtaken(said, route=drive.route.name)
