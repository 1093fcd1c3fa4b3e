"""Driving a trip: which trip a run drives, whether it may, and how it ends. Knows nothing of Dagster.

    board ──→ Drive ──→ pick_up / transform (bus_assets.halting) ──→ publish (bus_assets.publish)

A trip survives its attempts. Taking one over means first committing 'revoked' for the earlier attempt in the trip's first
database, under the same key that publishing uses: whichever commit comes first wins, and a zombie's publishing is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from bus_assets.passengers import Passengers
from bus_assets.progress import Progress, tell
from bus_assets.route import Route
from bus_assets.values import TripValues
from resources.depot.entries import AlreadyDelivered, Attempt, AttemptLive, Trip, Verdict
from resources.depot.process import this_process
from resources.depot.store import Depot
from resources.errors import BusError, Refused
from resources.receipts import AlreadySettled
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


@dataclass(frozen=True)
class Boarding:
    """What a run says of itself. ``selected`` are the stops that it will run; ``tagged`` and ``resumed`` name the trip, if any:
    by tag, or by the run that this one re-executes from failure. ``run_is_over`` tells whether a run has ended."""

    run: str
    selected: frozenset[str]
    trigger: str = "person"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scheduled: datetime | None = None
    tagged: str | None = None
    resumed: str | None = None
    run_is_over: Callable[[str], bool] = lambda run: False
    take_over: bool = False


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


def board(bus: Bus, route: Route, boarding: Boarding) -> Drive:
    """Find or start the run's trip and claim it. The same run boarding again (each stop does) gets the same attempt.

    Raises :class:`Refused` (or a subclass) when somebody else drives the trip, or when the selection cannot be driven.
    """
    try:
        trip = _trip(bus, route, boarding)
        missing = _missing(bus, route, trip, boarding.selected)
        if missing and (boarding.tagged or boarding.resumed):
            raise Refused(f"trip {trip.id} has no passed gate for {_list(missing)}; select it too, or all stops of the route")
        return _claimed(bus, route, trip, boarding, "rehearsal" if missing else "driving")
    except BusError as error:
        raise error.at(route=route.name) from error.__cause__


def _trip(bus: Bus, route: Route, boarding: Boarding) -> Trip:
    if boarding.tagged:
        trip = bus.depot.trip(boarding.tagged)
        if trip.route != route.name:
            raise Refused(f"trip {trip.id} belongs to route '{trip.route}', not '{route.name}'")
        return trip
    if boarding.resumed and (resumed := bus.depot.trip_of_run(route.name, boarding.resumed)):
        return resumed
    if existing := bus.depot.trip_of_run(route.name, boarding.run):
        return existing
    missing = tuple(dict.fromkeys(n for s in route.order if s in boarding.selected for n in route.needs(s) if n not in boarding.selected))
    if not missing:
        values = _parameters(route, boarding.parameters)
        if boarding.scheduled:
            values[SCHEDULED] = boarding.scheduled.isoformat()
        return bus.depot.start_trip(route.name, boarding.trigger, values, run=boarding.run)
    parent = bus.depot.last_passed_trip(route.name, missing)
    if parent is None:
        raise Refused(f"the selection leaves out {_list(missing)}, and no earlier trip has rows of it; select all stops of the route")
    only_drops = all(name in {drop.name for drop in route.drop_offs} for name in boarding.selected)
    if only_drops:
        raise Refused(
            f"{_list(tuple(sorted(boarding.selected)))} alone has no rows of its own trip to drop. Select all stops of the route for a "
            f"new trip, or tag the run {TRIP_TAG.format(route=route.name)}=TRIP to publish a trip whose gates passed "
            f"(the newest: {parent.id})"
        )
    return bus.depot.start_trip(route.name, "rehearsal", dict(parent.parameters), run=boarding.run, parent=parent.id)


def _parameters(route: Route, given: Mapping[str, Any]) -> dict[str, Any]:
    from resources.errors import Misconfigured

    known = {parameter.name: parameter for parameter in route.parameters}
    for name in given:
        if name not in known:
            raise Misconfigured(f"parameter {name!r} is not declared; the route has {', '.join(known) or 'none'}")
    values = {}
    for name, parameter in known.items():
        value = given.get(name) if given.get(name) is not None else parameter.default
        if value is None:
            raise Misconfigured(
                f"parameter {name!r} ({parameter.type}) has no default: set it, with `bus drive {route.name} --set {name}=…`"
            )
        values[name] = parameter.value(value)
    return values


def _missing(bus: Bus, route: Route, trip: Trip, selected: frozenset[str]) -> tuple[str, ...]:
    """Stops that the selection needs, does not include, and that have not passed in this trip."""
    needed = {n for stop in selected for n in route.needs(stop) if n not in selected}
    passed = {stop for stop, verdict in bus.depot.verdicts(trip.id).items() if verdict.passed} if needed else set()
    return tuple(stop for stop in route.order if stop in needed - passed)


def _claimed(bus: Bus, route: Route, trip: Trip, boarding: Boarding, mode: Mode) -> Drive:
    def drive(attempt: int, how: Mode) -> Drive:
        return Drive(bus, route, trip, attempt, boarding.run, how, boarding.selected)

    before = bus.depot.newest_attempt(trip.id)
    if before and before.run != boarding.run:
        if before.ended_at is None:
            _take_over(bus, route, trip, before, boarding)
        if published := _published(bus, route, trip):
            _caught_up(bus, route, trip, published)
    process = this_process()
    try:
        attempt = bus.depot.claim(
            trip.id, boarding.run, lease_seconds=LEASE_SECONDS, host=process.host, pid=process.pid, process_started=process.started
        )
    except AlreadyDelivered as delivered:
        return Drive(bus, route, delivered.trip, before.attempt if before else 1, boarding.run, "delivered", boarding.selected)
    how = "delivered" if attempt.outcome == "published" else "forward" if bus.depot.publications(trip.id) else mode
    return Drive(bus, route, bus.depot.trip(trip.id), attempt.attempt, boarding.run, how, boarding.selected)


def _take_over(bus: Bus, route: Route, trip: Trip, attempt: Attempt, boarding: Boarding) -> None:
    """End an attempt that is not ours: only if it failed, its run or process is gone, or a person insists."""
    over = trip.state in ("failed", "stuck") or boarding.take_over or boarding.run_is_over(attempt.run) or bus.depot.is_abandoned(attempt)
    if not over:
        raise AttemptLive(attempt)
    settle(bus, route, trip, attempt)


def settle(bus: Bus, route: Route, trip: Trip, attempt: Attempt) -> str:
    """End ``attempt`` for good: commit 'revoked' where publishing commits. Returns what the outcome is: the first commit wins."""
    outcome = "revoked"
    if route.databases:
        database = bus.systems[route.databases[0]]
        database.prepare(())
        try:
            with database.transaction() as transaction:
                transaction.record_outcome(route.name, trip.id, attempt.attempt, "revoked", attempt.run)
        except AlreadySettled as settled:
            outcome = settled.outcome
    bus.depot.end_attempt(trip.id, attempt.attempt, "published" if outcome == "published" else "revoked")
    return outcome


def _published(bus: Bus, route: Route, trip: Trip) -> int | None:
    """The attempt that committed this trip in the first database, if one did; asked of that database, not of the depot."""
    if not route.databases:
        return None
    database = bus.systems[route.databases[0]]
    database.prepare(())
    with database.transaction(reading=True) as transaction:
        return transaction.published(trip.id)


def _caught_up(bus: Bus, route: Route, trip: Trip, published: int) -> None:
    """The depot learns of a commit whose process died before it could say so."""
    done = {publication.database for publication in bus.depot.publications(trip.id)}
    for name in route.databases:
        if name in done:
            continue
        bus.systems[name].prepare(())
        with bus.systems[name].transaction(reading=True) as transaction:
            ledger = ledger_id(route, trip.id, name)
            if transaction.published(ledger) is not None:
                drops = [drop.name for drop in route.drop_offs if drop.into.database == name]
                counts = [asdict(applied.rows) for applied in transaction.applied(ledger)]
                bus.depot.record_publication(trip.id, published, name, dict(zip(drops, counts, strict=False)))
                done.add(name)
    bus.depot.finish_trip(trip.id, "delivered" if done >= set(route.databases) else "stuck")


def ledger_id(route: Route, trip: str, database: str) -> str:
    """What a trip is called in a destination's own record: two bound names may lead to one and the same database."""
    return trip if database == route.databases[0] else f"{trip}/{database}"


def failed(drive: Drive, stop: str, error: BusError) -> None:
    """Record that the trip failed at ``stop``; one whose rows are committed somewhere is stuck instead, and only rolls forward."""
    state = "stuck" if drive.bus.depot.publications(drive.trip.id) else "failed"
    if drive.mode != "delivered":
        said = str(error.at(route=drive.route.name, stop=stop))
        drive.bus.depot.finish_trip(drive.trip.id, state, said, attempt=drive.attempt)


def finished(drive: Drive, stop: str) -> None:
    """A trip whose selection holds no drop-offs ends with its last stop."""
    selected = [name for name in drive.route.order if name in drive.selected]
    if drive.mode == "rehearsal" or (drive.mode == "driving" and not drive.selected & {d.name for d in drive.route.drop_offs}):
        verdicts = drive.bus.depot.verdicts(drive.trip.id)
        if selected and all(name in verdicts for name in selected):
            whole = drive.mode == "driving" and drive.selected >= {s.name for s in drive.route.stops}
            drive.bus.depot.end_attempt(drive.trip.id, drive.attempt, "published" if whole else "rehearsed")
            drive.bus.depot.finish_trip(drive.trip.id, "delivered" if whole else "rehearsed")


@dataclass
class Lease:
    """Renews the attempt's lease as rows move, at most every :data:`RENEW_SECONDS`; raises when the attempt was taken over."""

    drive: Drive
    stop: str
    _renewed: float = field(default_factory=time.monotonic)

    def __call__(self, rows: int) -> None:
        tell(Progress(self.stop, rows))
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        if not self.drive.bus.depot.renew(self.drive.trip.id, self.drive.attempt, LEASE_SECONDS):
            raise Refused(
                f"attempt {self.drive.attempt} of trip {self.drive.trip.id} was taken over; this run stops", route=self.drive.route.name
            )


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
