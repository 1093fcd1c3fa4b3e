"""A route's account of its messages: each in one state; counted again from archive and destination, without the depot's counters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bus_assets import archive
from bus_assets.aboard import message_rows, named, receipt_keys
from bus_assets.drive import Bus, Drive
from bus_assets.queues import Bodies
from bus_assets.route import Route
from bus_assets.stops import PickUp
from resources.errors import Misconfigured

if TYPE_CHECKING:
    from resources.depot.mail import Message

AT_A_TIME = 5_000


@dataclass(frozen=True)
class Counted:
    """``note`` says what a difference may mean."""

    what: str
    counted_by: str
    expected: int
    found: int
    note: str = ""

    @property
    def agrees(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True)
class MessagesAccount:
    """received = the sum of all states. Duplicates and ignored deliveries are counted beside it."""

    route: str
    by_state: Mapping[str, int]
    duplicates: int
    ignored: int
    recounts: tuple[Counted, ...]

    @property
    def received(self) -> int:
        return sum(self.by_state.values())

    @property
    def balanced(self) -> bool:
        return all(recount.agrees for recount in self.recounts)


def messages_account(bus: Bus, route: Route) -> MessagesAccount:
    """The account of ``route``; Misconfigured if it has no queue. Exact while nothing moves; traffic shows as small differences."""
    if route.queue is None:
        raise Misconfigured(f"route '{route.name}' has no queue; `bus account TRIP` accounts for a trip")
    counts = bus.depot.inbox.counts(route.name)
    states, with_receipt, delivered = Counter[str](), 0, 0
    for some in _pages(bus, route):
        states.update(message.state for message in some)
        applied = [message for message in some if message.state == "delivered"]
        delivered, with_receipt = delivered + len(applied), with_receipt + _receipts(bus, route, applied)
    by_state = {str(state): number for state, number in counts.by_state.items()}
    received = sum(by_state.values())
    archived = {arrival.key for some in archive.kept(bus.staging, route.name) for arrival in some}
    found = [
        Counted("received", "messages in the depot, one by one", received, sum(states.values()), "rows were taken out of the depot by hand")
    ]
    found.append(Counted("received", "the archive, different keys", received, len(archived), "archives were purged, or messages were"))
    if route.databases:
        found.append(Counted("delivered", f"receipts in '{route.databases[0]}'", delivered, with_receipt, "receipts were deleted"))
    return MessagesAccount(route.name, by_state, counts.duplicates, counts.ignored, tuple(found))


def _pages(bus: Bus, route: Route) -> Iterator[list[Message]]:
    after = 0
    while some := bus.depot.inbox.messages(route.name, limit=AT_A_TIME, after=after):
        yield some
        after = some[-1].id


def _receipts(bus: Bus, route: Route, messages: list[Message]) -> int:
    if not messages or not route.databases:
        return 0
    database = bus.systems[route.databases[0]]
    database.prepare(())
    with database.transaction(reading=True) as transaction:
        return sum(len(transaction.receipts(route.name, keys, part)) for part, keys in receipt_keys(messages).items())


def bodies_again(drive: Drive, source: Bodies) -> int:
    """The rows in the bodies of the trip's messages, by the plainest reader there is; a body that does not read counts as one."""
    messages = drive.bus.depot.inbox.messages(drive.route.name, trip=drive.trip.id, limit=1_000_000)
    return sum(_rows_in(source, message.body or b"") for message in messages)


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
