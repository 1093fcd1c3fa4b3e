"""A route's account of its messages, each in one state; and counted again from the archive and the destination, message by message.

Where messages move while it counts, nothing differs for that reason: it compares keys, and counters only if they stood still.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Literal

from bus_assets import archive
from bus_assets.aboard import message_rows, named, receipt_keys
from bus_assets.drive import Bus, Drive
from bus_assets.queues import MESSAGES, Bodies
from bus_assets.rebuild import outdated
from bus_assets.release import rows_of
from bus_assets.route import Route
from bus_assets.stops import PickUp
from resources.errors import BusError, Misconfigured, Refused

if TYPE_CHECKING:
    from resources.depot.mail import Message

AT_A_TIME = 200
"""Messages that are held in memory, with bodies of up to 1 MiB each, or what their claim checks point at."""
GIVEN_UP = ("quarantined", "stranded", "superseded", "held", "discarded")


@dataclass(frozen=True)
class Counted:
    """One independent count. 'differs' makes the account not balance; ``note`` explains what differs, or was left out."""

    what: str
    counted_by: str
    expected: int
    found: int | None
    status: Literal["agrees", "differs", "not counted"]
    note: str = ""


@dataclass(frozen=True)
class MessagesAccount:
    """``received``, counted as messages were boarded, must be the sum of all states. Duplicates (``other_bodies`` of them say something
    else than the first) and ignored deliveries are counted beside it; ``on_queues`` is approximate."""

    route: str
    received: int
    by_state: Mapping[str, int]
    duplicates: int
    other_bodies: int
    ignored: int
    on_queues: Mapping[str, str]
    recounts: tuple[Counted, ...] = ()

    @property
    def in_states(self) -> int:
        return sum(self.by_state.values())

    @property
    def balanced(self) -> bool:
        return self.received == self.in_states and not any(recount.status == "differs" for recount in self.recounts)


def messages_account(bus: Bus, route: Route, recount: bool = True) -> MessagesAccount:
    """The account of ``route``; Misconfigured if it has no queue."""
    if route.queue is None:
        raise Misconfigured(f"route '{route.name}' has no queue; `bus account TRIP` accounts for a trip")
    counts = bus.depot.inbox.counts(route.name)
    by_state = {str(state): number for state, number in counts.by_state.items()}
    return MessagesAccount(
        route.name,
        counts.received,
        by_state,
        counts.duplicates,
        counts.other_bodies,
        counts.ignored,
        _on_queues(bus, route),
        tuple(_recounts(bus, route)) if recount else (),
    )


def _on_queues(bus: Bus, route: Route) -> dict[str, str]:
    """What the queues themselves say, in words."""
    said = {}
    for name in route.queue.systems if route.queue else ():
        try:
            depth = bus.systems[name].depth()
            said[name] = f"about {depth.waiting:,} waiting, {depth.in_flight:,} in flight, {depth.delayed:,} delayed"
        except BusError as error:
            said[name] = f"not known: {error}"
    return said


@dataclass
class _Seen:
    """The depot's messages, read one by one: day of receipt by key, states, and what the receipts say of them. ``earlier``: given up,
    and with a receipt from before they were sent round once more."""

    days: dict[str, date] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    with_receipt: int = 0
    wrongly: int = 0
    earlier: int = 0


def _recounts(bus: Bus, route: Route) -> Iterator[Counted]:
    inbox = bus.depot.inbox
    before, counts = _archived(bus, route), inbox.counts(route.name)
    seen = _seen(bus, route)
    if counts == inbox.counts(route.name):
        kept = sum(counts.by_state.values())
        yield _compared("in the depot", "its messages, one by one", kept, seen.states.total(), "rows were taken out of the depot by hand")
    else:
        said = "messages moved while they were counted: count again when it is quiet"
        yield Counted("in the depot", "its messages, one by one", sum(counts.by_state.values()), None, "not counted", said)
    yield from _by_archive(bus, route, before, seen)
    yield from _by_body(bus, route)
    if route.databases:
        by = f"receipts in '{route.databases[0]}'"
        yield _compared("delivered", by, seen.delivered, seen.with_receipt, "receipts were deleted, or messages were lost: report it")
        said = "applied, and not known to be: has the depot been restored? They are found out when they ride: `bus redrive`"
        note = f"left out: {seen.earlier:,} delivered before they were sent round once more; those rows stand" if seen.earlier else ""
        yield _compared("given up, yet applied", by, 0, seen.wrongly, said, note)


def _compared(what: str, counted_by: str, expected: int, found: int, why: str, note: str = "") -> Counted:
    agrees = expected == found
    return Counted(what, counted_by, expected, found, "agrees" if agrees else "differs", note if agrees else why)


def _by_archive(bus: Bus, route: Route, before: Mapping[str, date], seen: _Seen) -> Iterator[Counted]:
    """What was archived before the depot was read must be in it; what is in it must be in the archive by now."""
    after, horizon = _archived(bus, route), bus.depot.inbox.horizon(route.name)
    forgotten = {key for key, day in before.items() if key not in seen.days and horizon is not None and day < horizon.date()}
    unknown = before.keys() - seen.days.keys() - forgotten
    there = set(after.values())
    # Purging takes whole days, and says so by the horizon that it leaves behind.
    purged = {key for key, day in seen.days.items() if key not in after and horizon is not None and not _near(day, there)}
    missing = seen.days.keys() - after.keys() - purged
    note = "; ".join(
        f"left out: {number:,} whose {what}"
        for number, what in ((len(purged), "archive is purged"), (len(forgotten), "key is purged"))
        if number
    )
    why = f"{len(missing):,} are not in the archive: was it changed?"
    yield _compared(
        "received", "the archive, different keys", len(seen.days) - len(purged), len(seen.days) - len(purged) - len(missing), why, note
    )
    why = f"the depot does not know {len(unknown):,} of them: `bus depot rebuild {route.name}` brings them back"
    yield _compared(
        "archived", "messages in the depot, by key", len(before) - len(forgotten), len(before) - len(forgotten) - len(unknown), why
    )


def _by_body(bus: Bus, route: Route) -> Iterator[Counted]:
    """Whether the depot has the newest body of each message that was corrected; nothing if none was."""
    if not (corrections := archive.corrections(bus.staging, route.name)):
        return
    older = [message.key for message, _ in outdated(bus, route, corrections)]
    which = f"{len(older):,} (the first: {', '.join(older[:3])})"
    why = f"the depot has an older body of {which}: `bus depot rebuild {route.name}` takes the newest"
    yield _compared("corrected", "the archive, by body", len(corrections), len(corrections) - len(older), why)


def _near(day: date, there: set[date]) -> bool:
    """Archived, then received: midnight may lie between."""
    return day in there or day - timedelta(days=1) in there


def _archived(bus: Bus, route: Route) -> dict[str, date]:
    """The last day on which each key was archived, keys as the depot keeps them."""
    from resources.depot.messages import stored

    found: dict[str, date] = {}
    for day, paths in archive.days(bus.staging, route.name).items():
        found |= {stored(key): day for key in archive.keys(bus.staging, paths)}
    return found


def _seen(bus: Bus, route: Route) -> _Seen:
    seen = _Seen()
    for some in pages(bus, route):
        seen.days |= {message.key: message.received_at.date() for message in some}
        seen.states.update(message.state for message in some)
        applied = [message for message in some if message.state == "delivered"]
        seen.delivered += len(applied)
        seen.with_receipt += _receipts(bus, route, applied)
        given_up = [message for message in some if message.state in GIVEN_UP]
        seen.wrongly += _receipts(bus, route, given_up)
        seen.earlier += _earlier_receipts(bus, route, [message for message in given_up if message.part])
    return seen


def pages(bus: Bus, route: Route, trip: str | None = None) -> Iterator[list[Message]]:
    """All messages of the route, or those that ride or ended in ``trip``, by id."""
    after = 0
    while some := bus.depot.inbox.messages(route.name, trip=trip, limit=AT_A_TIME, after=after):
        yield some
        after = some[-1].id


def _receipts(bus: Bus, route: Route, messages: list[Message]) -> int:
    if not messages or not route.databases:
        return 0
    database = bus.systems[route.databases[0]]
    database.prepare(())
    with database.transaction(reading=True) as transaction:
        return sum(len(transaction.receipts(route.name, keys, part)) for part, keys in receipt_keys(messages).items())


def _earlier_receipts(bus: Bus, route: Route, messages: list[Message]) -> int:
    """How many have a receipt of an earlier part than theirs: each time that a message is delivered again it gets another."""
    if not messages or not route.databases:
        return 0
    with bus.systems[route.databases[0]].transaction(reading=True) as transaction:
        parts = transaction.receipt_parts(route.name, [message.key for message in messages])
    return sum(bool(parts.get(message.key, {}).keys() - {message.part}) for message in messages)


# A trip's rows, read again from its messages


def bodies_again(drive: Drive, source: Bodies) -> int:
    """The rows in the bodies of the trip's messages, by the plainest reader there is; a body that does not read counts as one.

    Refused if that cannot be told any more: a message rides elsewhere by now, or its body was purged.
    """
    seen, purged, rows = set[int](), 0, 0
    for some in pages(drive.bus, drive.route, drive.trip.id):
        seen.update(message.id for message in some)
        purged += sum(message.body is None for message in some)
        rows += sum(_rows_in(source, message.body or b"") for message in some)
    if gone := _staged_of(drive) - seen:
        raise Refused(f"{len(gone):,} of its messages were sent round again, and ride elsewhere")
    if purged:
        raise Refused(f"the bodies of {purged:,} of its messages were purged")
    return rows


def _staged_of(drive: Drive) -> set[int]:
    """The messages of which rows were kept or rejected at the stop ``messages``."""
    kept = drive.passengers(MESSAGES).messages()
    rejected = (row.message for row in rows_of(drive.bus.depot, drive.route.name, MESSAGES, None, drive.trip.id))
    return {*kept, *(message for message in rejected if message is not None)}


def _rows_in(source: Bodies, body: bytes) -> int:
    path = getattr(source.decode, "records", None)
    if not path:
        return 1
    try:
        found: Any = json.loads(body)
        for key in path.split("."):
            found = found[key]
        return len(found) if isinstance(found, list) and all(isinstance(item, dict) for item in found) else 1
    except (ValueError, KeyError, TypeError, RecursionError):
        return 1


def named_again(drive: Drive, stop: PickUp) -> int:
    """The records in what each message names. Raises what the source raises: what is set aside for good cannot be counted again."""
    total = 0
    for _, row in message_rows(drive):
        system, values = named(drive, stop, row)
        total += stop.source.recount(system, values)
    return total
