"""A lost depot, or yesterday's, from the archive and the receipts: what was boarded is not lost, what was applied is not applied again.

Of messages that were corrected (they arrived again with another body, when they were stranded or quarantined) the newest body counts.
What only the depot knew is not brought back: trips, and rejected rows of messages that were delivered without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bus_assets import archive
from bus_assets.drive import Bus
from bus_assets.forward import committed_everywhere
from bus_assets.route import Route
from resources.depot.mail import Arrival, Message, Remembered
from resources.errors import Misconfigured


@dataclass(frozen=True)
class Rebuilt:
    """``archived`` messages were found, of which the depot knew ``known``; the others it has now, ``by_state``.

    ``corrected`` of the known ones wait with the newest body now; ``outdated`` are the keys of those that ride, or ended, with an older
    one: they were left alone.
    """

    route: str
    archived: int
    known: int
    by_state: Mapping[str, int]
    corrected: int
    outdated: tuple[str, ...]


def rebuild(bus: Bus, route: Route) -> Rebuilt:
    """Board every archived message that the depot does not know; those that are in every database are delivered at once.

    Safe to do twice and while others board: then a message that comes later is a duplicate. Order within a group holds among what is
    brought back, not towards what was boarded since: pause a FIFO route first.
    """
    if route.queue is None:
        raise Misconfigured(f"route '{route.name}' has no queue: its trips start anew from their sources")
    keys, made, everywhere = set[str](), Counter[str](), dict[str, bool]()
    corrections = archive.corrections(bus.staging, route.name)
    for arrivals in archive.kept(bus.staging, route.name):
        fresh = [arrival for arrival in arrivals if arrival.key not in keys]
        keys.update(arrival.key for arrival in fresh)
        if fresh:
            newest = [_newest(bus, arrival, corrections) for arrival in fresh]
            made.update(bus.depot.inbox.rebuild(route.name, newest, _remembered(bus, route, fresh, everywhere)))
    corrected, left = _correct(bus, route, corrections)
    return Rebuilt(route.name, len(keys), len(keys) - made.total(), dict(made), corrected, left)


def outdated(bus: Bus, route: Route, corrections: Mapping[str, archive.Correction]) -> Iterator[tuple[Message, Arrival]]:
    """Messages that are in this depot as they were before they were corrected, without their bodies; and what they were corrected to."""
    inbox = bus.depot.inbox
    for key, correction in corrections.items():
        for message in inbox.messages(route.name, key=key):
            if message.body is None or archive.digest(message.body) == correction.digest:
                continue
            # What this depot took later is perhaps not in the archive yet.
            taken = [one.at for one in inbox.decisions([message.id]).get(message.id, ()) if one.what == "corrected"]
            if all(at < correction.at for at in taken):
                yield replace(message, body=None), archive.corrected(bus.staging, key, correction)


def _correct(bus: Bus, route: Route, corrections: Mapping[str, archive.Correction]) -> tuple[int, tuple[str, ...]]:
    done = {message.key: bus.depot.inbox.correct(message, arrival) for message, arrival in outdated(bus, route, corrections)}
    return sum(done.values()), tuple(key for key, is_corrected in done.items() if not is_corrected)


def _newest(bus: Bus, arrival: Arrival, corrections: Mapping[str, archive.Correction]) -> Arrival:
    """In the place of the first, and in its group, as the depot keeps them."""
    if arrival.key not in corrections:
        return arrival
    newest = archive.corrected(bus.staging, arrival.key, corrections[arrival.key])
    return replace(newest, group=newest.group or arrival.group)


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
