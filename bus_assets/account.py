"""A trip's account: what was picked up, and where every row of it went.

    picked up = kept + rejected                             at each stop
    came in   = came out                                    through a transform that keeps the grain
    offered   = left out + folded + inserted + updated      at each drop-off

These sums come from the platform's own record. :mod:`bus_assets.recount` counts once more without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from bus_assets.counted_messages import pages
from bus_assets.drive import Bus, Drive
from bus_assets.mapped import carried_to, kind_of, looked_up_by, source_of
from bus_assets.queues import Bodies
from bus_assets.release import UNREADABLE, reaches, release_stop
from bus_assets.route import Route
from bus_assets.stops import DropOff, PickUp, Transform
from bus_assets.values import TripValues, fill
from resources.depot.entries import Trip, Verdict
from resources.errors import Refused


@dataclass(frozen=True)
class StopSum:
    """One pick-up or transform. ``came_in`` are the rows of the stop that it carries on, None for a pick-up and for released rows.

    ``goes_to`` are the stops that carry its rows on or drop them; ``looked_up_by`` those that only read them.
    """

    stop: str
    kind: str
    source: str
    passed: bool
    came_in: int | None
    picked_up: int
    kept: int
    rejected: int
    reasons: Mapping[str, int]
    grain: Literal["kept", "changed"] | None
    goes_to: tuple[str, ...]
    looked_up_by: tuple[str, ...]

    @property
    def fate(self) -> str:
        """Where the kept rows went, in words."""
        if self.goes_to:
            return f"to {', '.join(self.goes_to)}"
        return "aboard, nothing drops them" + (f"; looked up by {', '.join(self.looked_up_by)}" if self.looked_up_by else "")

    def problems(self) -> list[str]:
        found = []
        if self.picked_up != self.kept + self.rejected:
            found.append(f"{self.stop}: {self.picked_up} picked up, but {self.kept} kept + {self.rejected} rejected")
        if self.passed and self.grain == "kept" and self.came_in is not None and self.came_in != self.picked_up:
            found.append(f"{self.stop}: {self.came_in} rows came in, {self.picked_up} came out, though it keeps the grain")
        return found


@dataclass(frozen=True)
class DropSum:
    """One drop-off. ``state``: 'dropped', 'open' (not published), or 'not concerned' by a release of other rows."""

    stop: str
    of: str
    table: str
    mode: str
    state: Literal["dropped", "open", "not concerned"]
    offered: int = 0
    left_out: int = 0
    folded: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    @property
    def missing(self) -> int:
        """Keys that were to be deleted and were not there."""
        return self.offered - self.left_out - self.folded - self.deleted if self.mode == "delete" else 0

    def problems(self, kept: int) -> list[str]:
        if self.state != "dropped":
            return []
        found = []
        if self.offered != kept:
            found.append(f"{self.stop}: {self.offered} rows offered, but {kept} kept by '{self.of}'")
        gone = self.deleted + self.missing if self.mode == "delete" else self.inserted + self.updated
        if self.offered != self.left_out + self.folded + gone or self.missing < 0:
            found.append(
                f"{self.stop}: {self.offered} rows offered, but {self.left_out} left out + {self.folded} folded + {gone} dropped off"
            )
        return found


@dataclass(frozen=True)
class Recount:
    """One independent count. 'differs' makes the account not balance; 'not counted' says in ``note`` why not."""

    what: str
    stop: str
    counted_by: str
    expected: int
    found: int | None
    status: Literal["agrees", "differs", "not counted"]
    note: str = ""


@dataclass(frozen=True)
class Account:
    """The whole account of one trip. ``recounts`` is empty if nothing was recounted; ``messages`` are those that ride or ended in it,
    by state."""

    trip: str
    route: str
    trigger: str
    state: str
    error: str | None
    parameters: Mapping[str, Any]
    created_at: datetime
    stops: tuple[StopSum, ...]
    drop_offs: tuple[DropSum, ...]
    problems: tuple[str, ...]
    recounts: tuple[Recount, ...] = field(default=())
    messages: Mapping[str, int] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        """Every sum holds, and no recount differs."""
        return not self.problems and not any(recount.status == "differs" for recount in self.recounts)

    @property
    def totals(self) -> dict[str, int]:
        """Rows over all stops: picked up from sources, rejected anywhere, dropped off."""
        return {
            "picked_up": sum(stop.picked_up for stop in self.stops if stop.kind == "pick-up"),
            "rejected": sum(stop.rejected for stop in self.stops),
            "dropped_off": sum(drop.deleted if drop.mode == "delete" else drop.inserted + drop.updated for drop in self.drop_offs),
        }

    def to_json(self) -> dict[str, Any]:
        said = asdict(self) | {"created_at": self.created_at.isoformat(), "balanced": self.balanced, "totals": self.totals}
        for stop, line in zip(self.stops, said["stops"], strict=True):
            line["fate"] = stop.fate
        return said


def account(bus: Bus, route: Route, trip_id: str, recount: bool = True) -> Account:
    """The account of ``trip_id``; with ``recount`` sources, staging, quarantine and destinations are counted again.

    :class:`~resources.depot.entries.NoSuchTrip`, or Refused if the trip is another route's. What cannot be recounted (a file that is
    gone, say) is no error but said in its line.
    """
    trip = bus.depot.trip(trip_id)
    if trip.route != route.name:
        raise Refused(f"trip {trip_id} belongs to route '{trip.route}', not '{route.name}'")
    verdicts = bus.depot.verdicts(trip_id)
    stops = _stop_sums(bus, route, trip, verdicts)
    drops = _drop_sums(bus, route, trip, verdicts)
    kept = {stop.stop: stop.kept for stop in stops}
    problems = [said for stop in stops for said in stop.problems()]
    problems += [said for drop in drops for said in drop.problems(kept.get(drop.of, 0))]
    counted: tuple[Recount, ...] = ()
    if recount:
        from bus_assets.recount import recounts

        counted = recounts(as_driven(bus, route, trip), stops, drops)
    return Account(
        trip.id,
        route.name,
        trip.trigger,
        trip.state,
        trip.error,
        dict(trip.parameters),
        trip.created_at,
        stops,
        drops,
        tuple(problems),
        counted,
        _messages(bus, route, trip),
    )


def _messages(bus: Bus, route: Route, trip: Trip) -> dict[str, int]:
    found = pages(bus, route, trip.id) if route.queue else ()
    return dict(Counter(message.state for some in found for message in some))


def as_driven(bus: Bus, route: Route, trip: Trip) -> Drive:
    """The trip as its stops saw it, to look at: nothing is claimed."""
    return Drive(bus, route, trip, 0, "", "rehearsal" if trip.trigger == "rehearsal" else "delivered", frozenset())


def _stop_sums(bus: Bus, route: Route, trip: Trip, verdicts: Mapping[str, Verdict]) -> tuple[StopSum, ...]:
    unreadable = Counter[str]()
    for count in bus.depot.count_quarantined(route.name, trip.id, state=None):
        unreadable[count.stop] += count.rows if UNREADABLE in count.rules else 0
    read = {**(bus.depot.verdicts(trip.parent) if trip.trigger == "rehearsal" and trip.parent else {}), **verdicts}
    values, sums = as_driven(bus, route, trip).values, []
    for name in route.order:
        stop, verdict = route[name], verdicts.get(name)
        if isinstance(stop, DropOff) or verdict is None:
            continue
        reasons = {str(figure["rule"]): int(figure["rejected"]) for figure in verdict.figures if figure.get("rejected")}
        if unreadable.get(name):
            reasons[UNREADABLE] = unreadable[name]
        released = release_stop(trip) == name
        upstream = None if released or isinstance(stop, PickUp) else read.get(route.upstream(name)[0])
        sums.append(
            StopSum(
                stop=name,
                kind=kind_of(stop),
                source="quarantine" if released else _source(stop, values),
                passed=verdict.passed,
                came_in=upstream.kept if upstream else None,
                picked_up=verdict.picked_up,
                kept=verdict.kept,
                rejected=verdict.rejected,
                reasons=dict(sorted(reasons.items(), key=lambda entry: -entry[1])),
                grain=stop.grain if isinstance(stop, Transform) else None,
                goes_to=carried_to(route, name),
                looked_up_by=looked_up_by(route, name),
            )
        )
    return tuple(sums)


def _source(stop: PickUp | Transform, values: TripValues) -> str:
    """Where the rows came from, placeholders filled; a query's text has none, whatever it holds in braces."""
    if isinstance(stop, PickUp) and isinstance(stop.source, Bodies):
        return f"queue {stop.source.system}"
    is_template = isinstance(stop, PickUp) and not stop.per_message and stop.source.address() in stop.source.templates()
    return fill(source_of(stop), values) if is_template else source_of(stop)


def _drop_sums(bus: Bus, route: Route, trip: Trip, verdicts: Mapping[str, Verdict]) -> tuple[DropSum, ...]:
    published = {publication.database: publication.tables for publication in bus.depot.publications(trip.id)}
    sums = []
    for drop in route.drop_offs:
        of, tables = route.upstream(drop.name)[0], published.get(drop.into.database)
        line = DropSum(drop.name, of, str(drop.into), str(drop.into.mode), "open")
        if not reaches(route, trip, drop.name):
            line = replace(line, state="not concerned")
        elif tables is not None:
            line = replace(line, state="dropped", **_figures(tables.get(drop.name, {}), line.mode, verdicts.get(of)))
        sums.append(line)
    return tuple(sums)


def _figures(noted: Mapping[str, int], mode: str, verdict: Verdict | None) -> dict[str, int]:
    """What was noted at publishing. Where a process died between commit and note, the database's own counts are all there is:
    then the rows offered are those that the stop kept, and the rest was left out."""
    figures = {name: int(noted.get(name) or 0) for name in ("offered", "left_out", "folded", "inserted", "updated", "deleted")}
    if not figures["offered"] and verdict and verdict.kept:
        figures["offered"] = verdict.kept
        gone = figures["deleted"] if mode == "delete" else figures["inserted"] + figures["updated"]
        figures["left_out"] = verdict.kept - figures["folded"] - gone
    return figures
