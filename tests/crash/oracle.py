"""What must be true in a town: between kills, and when a trip has been delivered. Each check gives sentences about what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from tests.crash.batches import Batch, summed, upserted
from tests.crash.town import Town, Trip, rows
from tests.crash.windows import SECOND_STOP

_LOG = "SELECT batch, order_id, customer, qty, price, note FROM log WHERE batch = :b"
_TABLES = {"sales": ("log", "totals"), "takings": ("log", "accounts")}


def between_kills(town: Town, route: str, batch: Batch, trip: Trip | None, delivered: Sequence[tuple[str, Batch]]) -> Iterator[str]:
    """All or nothing: either the outcome and every row of every table are there, or none of them. By counts; the rest comes later."""
    is_in = trip is not None and trip.published is not None
    logged = rows(town.warehouse, "SELECT count(*) FROM log WHERE batch = :b", b=batch.number)
    expected = len(batch.kept) if is_in else 0
    if (found := logged[0][0] if logged else 0) != expected:
        yield f"{found} rows of the batch are in the log, expected {expected} (published: {is_in})"
    if route == "sales":
        counted = rows(town.warehouse, "SELECT count(*) FROM totals WHERE batch = :b", b=batch.number)
    else:
        counted = rows(town.warehouse, "SELECT coalesce(sum(orders), 0) FROM accounts")
        expected += sum(len(done.kept) for name, done in delivered if name == route)
    if (found := counted[0][0] if counted else 0) != expected:
        yield f"{_TABLES[route][1]} has {found} orders, expected {expected} (published: {is_in})"


def when_delivered(town: Town, route: str, batch: Batch, trip: Trip | None, delivered: Sequence[tuple[str, Batch]]) -> Iterator[str]:
    """Every row exactly once, the sums exact, the depot in accord, nothing left open. ``delivered`` includes this batch."""
    if trip is None or trip.state != "delivered":
        yield f"the depot says {trip.state if trip else 'nothing'} of the trip, expected delivered"
        return
    found = Counter((*row[:4], Decimal(str(row[4])), row[5]) for row in rows(town.warehouse, _LOG, b=batch.number))
    if found != Counter(batch.kept):
        twice = sum(count - 1 for count in found.values())
        yield f"the log has {found.total()} rows of the batch, {twice} of them twice, expected {len(batch.kept)} once each"
    yield from _second_table(town, route, [done for name, done in delivered if name == route])
    yield from _ledger(town, route, trip)
    yield from _depot(town, route, batch, trip)


def _second_table(town: Town, route: str, batches: Iterable[Batch]) -> Iterator[str]:
    if route == "sales":
        found, expected = rows(town.warehouse, "SELECT order_id, batch, total FROM totals"), upserted(batches)
    else:
        found, expected = rows(town.warehouse, "SELECT customer, orders, amount FROM accounts"), summed(batches)
    table = {key: (number, Decimal(str(amount))) for key, number, amount in found}
    if len(table) != len(found) or table != expected:
        wrong = [key for key in table.keys() | expected.keys() if table.get(key) != expected.get(key)]
        sample = f"{wrong[0]}: {table.get(wrong[0])}, expected {expected.get(wrong[0])}" if wrong else "a key is there twice"
        yield f"{_TABLES[route][1]} differs in {len(wrong)} of {len(expected)} keys; {sample}"


def _ledger(town: Town, route: str, trip: Trip) -> Iterator[str]:
    outcomes = rows(town.warehouse, "SELECT attempt, outcome FROM bus_outcomes WHERE trip = :t ORDER BY attempt", t=trip.id)
    won = [attempt for attempt, outcome in outcomes if outcome == "published"]
    if len(won) != 1 or won[0] != trip.attempt or len(outcomes) != trip.attempt:
        yield f"outcomes are {[tuple(row) for row in outcomes]}, expected each of {trip.attempt} attempts revoked and the last published"
    if (receipts := rows(town.warehouse, "SELECT count(*) FROM bus_receipts WHERE trip = :t", t=trip.id)[0][0]) != 1:
        yield f"{receipts} receipts of the trip, expected 1"
    applied = [table for (table,) in rows(town.warehouse, 'SELECT "table" FROM bus_applied WHERE trip = :t ORDER BY id', t=trip.id)]
    if tuple(applied) != _TABLES[route]:
        yield f"counts were kept of {applied}, expected {list(_TABLES[route])}, once each"


def _depot(town: Town, route: str, batch: Batch, trip: Trip) -> Iterator[str]:
    ends = rows(town.depot, "SELECT outcome FROM depot_attempts WHERE trip = :t ORDER BY attempt", t=trip.id)
    if [outcome for (outcome,) in ends] != ["revoked"] * (trip.attempt - 1) + ["published"]:
        yield f"the depot's attempts ended {[tuple(row) for row in ends]}, expected revoked but for the last, which published"
    held = rows(town.depot, "SELECT stop, position FROM depot_quarantine WHERE trip = :t AND state = 'held' ORDER BY position", t=trip.id)
    if [tuple(row) for row in held] != [("orders", line) for line in batch.rejected]:
        yield f"{len(held)} rows wait in quarantine, expected the {len(batch.rejected)} rejected ones, once each"
    verdicts = rows(town.depot, "SELECT stop, passed, picked_up, kept, rejected, produced FROM depot_verdicts WHERE trip = :t", t=trip.id)
    second = len(batch.kept) if route == "sales" else len(batch.takings)
    expected = {"orders": (True, batch.picked_up, len(batch.kept), len(batch.rejected), len(batch.kept))}
    expected |= {SECOND_STOP[route]: (True, second, second, 0, second)}
    found: dict[str, Any] = {stop: (bool(passed), *sums) for stop, passed, *sums in verdicts}
    if found != expected or len(verdicts) != len(expected):
        yield f"verdicts are {found}, expected {expected}"
