"""A lost depot, or yesterday's, from the archive and the receipts: what was boarded is not lost, what was applied is not applied again.

What only the depot knew is not brought back: trips, and rejected rows of messages that were delivered without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bus_assets import archive
from bus_assets.drive import Bus
from bus_assets.forward import committed_everywhere
from bus_assets.route import Route
from resources.depot.mail import Arrival, Remembered
from resources.errors import Misconfigured


@dataclass(frozen=True)
class Rebuilt:
    """``archived`` messages were found, of which the depot knew ``known``; the others it has now, ``by_state``."""

    route: str
    archived: int
    known: int
    by_state: Mapping[str, int]


def rebuild(bus: Bus, route: Route) -> Rebuilt:
    """Board every archived message that the depot does not know; those that are in every database are delivered at once.

    Safe to do twice and while others board: then a message that comes later is a duplicate. Order within a group holds among what is
    brought back, not towards what was boarded since: pause a FIFO route first.
    """
    if route.queue is None:
        raise Misconfigured(f"route '{route.name}' has no queue: its trips start anew from their sources")
    keys, made, everywhere = set[str](), Counter[str](), dict[str, bool]()
    for arrivals in archive.kept(bus.staging, route.name):
        fresh = [arrival for arrival in arrivals if arrival.key not in keys]
        keys.update(arrival.key for arrival in fresh)
        if fresh:
            made.update(bus.depot.inbox.rebuild(route.name, fresh, _remembered(bus, route, fresh, everywhere)))
    return Rebuilt(route.name, len(keys), len(keys) - made.total(), dict(made))


def _remembered(bus: Bus, route: Route, arrivals: Sequence[Arrival], everywhere: dict[str, bool]) -> dict[str, Remembered]:
    """What the first database says of each; a message counts as there only once its trip is in all of them."""
    if not route.databases:
        return {}
    database = bus.systems[route.databases[0]]
    database.prepare(())
    with database.transaction(reading=True) as transaction:
        found = transaction.receipt_parts(route.name, [arrival.key for arrival in arrivals])
    remembered = {}
    for key, trips in found.items():
        part = max((part for part in trips if part.isdigit() or not part), key=lambda part: int(part or 0), default=None)
        if part is not None:
            trip = trips[part]
            if trip not in everywhere:
                everywhere[trip] = committed_everywhere(bus, route, trip)
            remembered[key] = Remembered(part, trip if everywhere[trip] else None)
    return remembered
