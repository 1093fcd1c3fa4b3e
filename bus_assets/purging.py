"""What grows and is not needed any more: bodies, staged rows, archives, trips, Dagster's runs. What is needed is never taken, however old.

Kept: everything about messages that wait for a person or ride; the staged rows of trips that are under way, stuck or unknown to the depot,
and of those that failed and turn out to be committed in one of several databases; receipts; keys, their archive and their trips until they
are older than anything that could still come again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from bus_assets import archive
from bus_assets.boarding import published, turned_out_published
from bus_assets.drive import Bus
from bus_assets.forward import committed_everywhere
from bus_assets.route import Route
from resources.depot import mail
from resources.depot.entries import OVER, NoSuchTrip, Trip, TripState
from resources.depot.mail import Purged
from resources.errors import BusError, Misconfigured, Transient

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from resources.depot.store import Depot

SHORTEST = timedelta(days=1)
KEYS = timedelta(days=30)
SHORTEST_KEYS = timedelta(days=28)
"""A message may lie 14 days on its queue, and 14 more among the dead letters: until then its key must be known."""
RUNS_AT_ONCE = 500
ENDED: tuple[TripState, ...] = ("delivered", "failed", "rehearsed", *OVER)


@dataclass(frozen=True)
class Horizon:
    """Take what ended before ``before``; forget messages, keys included, and trips that ended before ``keys_before``."""

    before: datetime
    keys_before: datetime
    dry_run: bool = False


def horizon(depot: Depot, older_than: timedelta, keys: timedelta = KEYS, *, dry_run: bool = False) -> Horizon:
    """By the depot's clock: by one that is ahead keys would go that are needed, and every new message be held. Misconfigured if
    something could still come again, or be looked at, that is to be forgotten."""
    if older_than < SHORTEST:
        raise Misconfigured(f"what is younger than a day may be needed; --older-than must be {SHORTEST.days}d or more")
    if keys < SHORTEST_KEYS:
        raise Misconfigured(
            f"a message may come again for {SHORTEST_KEYS.days} days, so keys are kept as long; --keys must be that or more"
        )
    now = depot.now()
    return Horizon(now - older_than, now - max(keys, older_than), dry_run)


@dataclass(frozen=True)
class Taken:
    """What was taken of one route: ``staged_files`` of so many ``trips``; ``forgotten_trips`` whole, with ``quarantined_rows`` that were
    released or discarded. ``unknown`` archived messages are not in the depot: then its keys, their archive and its trips stay. ``needed``:
    trips that failed and may yet roll forward, and why their staged files stay. ``unknown_folders`` in the staging area are those of
    ``unknown_trips``, of which the depot knows nothing, and ``unknown_why`` says what they may be needed for."""

    route: str
    bodies: int
    messages: int
    archive_files: int
    staged_files: int
    trips: int
    forgotten_trips: int
    quarantined_rows: int
    runs: int
    unknown: int
    unknown_trips: int
    needed: Mapping[str, str] = field(default_factory=dict)
    unknown_folders: tuple[str, ...] = ()
    unknown_why: str = ""


def purge(bus: Bus, route: Route, instance: DagsterInstance, upto: Horizon) -> Taken:
    """Take away what is older. Safe to break off and to do again, and while trips are driven."""
    files, unknown = _archive(bus, route, upto) if route.queue else (0, 0)
    if unknown:
        upto = replace(upto, keys_before=datetime(1970, 1, 1, tzinfo=UTC))
    messages = _messages(bus, route, upto) if route.queue else Purged()
    trips, staged, unknown_folders, needed = _staged(bus, route, upto)
    # Last: what is staged of a trip that the depot does not know is kept for ever, and messages that are kept hold their trips.
    gone = (bus.depot.forgettable_trips if upto.dry_run else bus.depot.forget_trips)(route.name, upto.keys_before)
    runs = _runs(instance, route, upto)
    of_trips = (staged, trips, gone.trips, gone.rows)
    of_others = (len(unknown_folders), needed, unknown_folders, _why_unknown(route) if unknown_folders else "")
    return Taken(route.name, messages.bodies, messages.messages, files, *of_trips, runs, unknown, *of_others)


def _messages(bus: Bus, route: Route, upto: Horizon) -> Purged:
    inbox = bus.depot.inbox
    return (inbox.purgeable if upto.dry_run else inbox.purge)(route.name, upto.before, upto.keys_before)


def _archive(bus: Bus, route: Route, upto: Horizon) -> tuple[int, int]:
    """Whole days on which every message has ended. How many files, and how many messages the depot should know and does not."""
    forgotten_before = bus.depot.inbox.horizon(route.name)
    files = unknown = 0
    for day, paths in archive.days(bus.staging, route.name).items():
        if _end(day) > upto.before:
            continue
        keys = sorted(archive.keys(bus.staging, paths))
        states = bus.depot.inbox.states(route.name, keys)
        if forgotten_before is None or _end(day) > forgotten_before:
            unknown += len(keys) - len(states)
        waits = set(states.values()) - set(mail.ENDED)
        is_lost = len(states) < len(keys) and (forgotten_before is None or _end(day) > forgotten_before)
        if not waits and not is_lost:
            files += len(paths) if upto.dry_run else archive.forget(bus.staging, route.name, day)
    return files, unknown


def _end(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)


def _staged(bus: Bus, route: Route, upto: Horizon) -> tuple[int, int, tuple[str, ...], dict[str, str]]:
    """How many trips, how many files of theirs, the folders of trips that the depot does not know: these may have to roll forward, or
    be another depot's; and which failed trips may have to as well, with why."""
    by_trip: dict[str, int] = {}
    for path in bus.staging.list(route.name):
        trip = path.split("/")[1]
        by_trip[trip] = by_trip.get(trip, 0) + 1
    old, unknown = list[Trip](), list[str]()
    for trip in by_trip:
        try:
            found = bus.depot.trip(trip)
        except NoSuchTrip:
            unknown.append(f"{route.name}/{trip}")
            continue
        if found.state in ENDED and (found.ended_at or found.created_at) < upto.before:
            old.append(found)
    needed = _needed(bus, route, [trip for trip in old if trip.state == "failed"], dry_run=upto.dry_run)
    taken = [trip.id for trip in old if trip.id not in needed]
    for trip in () if upto.dry_run else taken:
        bus.staging.delete_prefix(f"{route.name}/{trip}")
    return len(taken), sum(by_trip[trip] for trip in taken), tuple(unknown), needed


def _why_unknown(route: Route) -> str:
    """What staged rows of trips may be needed for that are in a lost depot, or in another; and when they can go."""
    gone = "they can be deleted in the staging area"
    if len(route.databases) < 2:
        right = "if this is the depot that they should be in (BUS_DEPOT_URL), and no run from before it is under way"
        return f"nothing rolls forward from them, as the route has no second database; {right}, {gone}"
    halfway = f"a trip that is committed in '{route.databases[0]}' and not in every database"
    if route.queue is None:
        return f"{halfway} rolls forward from them in the depot that knows it only; once the tables of all databases agree, {gone}"
    rebuilt = f"what `bus depot rebuild {route.name}` brings back"
    return f"{halfway} rolls forward from them once its messages ride again; once {rebuilt} is delivered, {gone}"


def _needed(bus: Bus, route: Route, failed: Sequence[Trip], *, dry_run: bool) -> dict[str, str]:
    """Of trips that failed, those whose staged rows may be needed, and why. Nobody rolls forward where there is one database."""
    found = dict[str, str]()
    if len(route.databases) < 2:
        return found
    first = route.databases[0]
    for index, trip in enumerate(failed):
        again = f"`bus drive {route.name} --trip {trip.id}`"
        try:
            if _rolls_forward(bus, route, trip, dry_run=dry_run):
                found[trip.id] = f"it is committed in '{first}' and not in every database; {again} rolls it forward from them"
        except BusError as error:
            why = f"whether it is committed in '{first}', and rolls forward from them, cannot be asked: {error}"
            if isinstance(error, Transient):  # the others do not wait for the same, one by one
                return found | dict.fromkeys([one.id for one in failed[index:]], why)
            found[trip.id] = why
    return found


def _rolls_forward(bus: Bus, route: Route, trip: Trip, *, dry_run: bool) -> bool:
    """Whether a trip that failed, for all the depot knows, is committed in the first database and not in all: the reply was lost, say.

    It is settled before, unless this is a dry run: what is not committed now cannot be committed once its rows are gone.
    """
    committed = published(bus, route, trip) is not None if dry_run else turned_out_published(bus, route, trip)
    return committed and not committed_everywhere(bus, route, trip.id)


def _runs(instance: DagsterInstance, route: Route, upto: Horizon) -> int:
    """Runs of the route's job that have ended, with their event logs."""
    found = list(_ended_runs(instance, route, upto))
    for run in () if upto.dry_run else found:
        instance.delete_run(run)
    return len(found)


def _ended_runs(instance: DagsterInstance, route: Route, upto: Horizon) -> Iterator[str]:
    from dagster import DagsterRunStatus, RunsFilter

    ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    wanted, cursor = RunsFilter(job_name=route.name, statuses=ended, updated_before=upto.before), None
    while some := instance.get_runs(wanted, cursor=cursor, limit=RUNS_AT_ONCE):
        yield from (run.run_id for run in some)
        cursor = some[-1].run_id
