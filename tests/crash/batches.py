"""Files of orders with dirt in them, and what must come of each: computed here, without the product."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

CUSTOMERS = 2_000
DIRTY_SHARE = 0.02
NOTE = 3 * "Wrapped, to be left with the neighbour; do not fold, do not bend, this side up; ring twice and wait for the dog to stop. "
"""Long enough that SQLite's page cache spills early in a transaction: what it left in the log then tells where a kill landed."""
FIELDS = ("batch", "order_id", "customer", "qty", "price", "note")

Row = tuple[int, str, str, int, Decimal, str]


@dataclass(frozen=True)
class Batch:
    """One file. ``kept`` are the rows that must be dropped off; ``rejected`` the lines that must wait in quarantine."""

    number: int
    file: str
    text: str
    kept: tuple[Row, ...]
    rejected: tuple[int, ...]

    @property
    def picked_up(self) -> int:
        return len(self.kept) + len(self.rejected)

    @property
    def takings(self) -> dict[str, tuple[int, Decimal]]:
        """Customer → orders and amount."""
        found: dict[str, tuple[int, Decimal]] = defaultdict(lambda: (0, Decimal(0)))
        for _, _, customer, qty, price, _ in self.kept:
            orders, amount = found[customer]
            found[customer] = (orders + 1, amount + qty * price)
        return dict(found)

    @property
    def totals(self) -> dict[str, tuple[int, Decimal]]:
        """Order → the batch that wrote it last, and its total."""
        return {order: (batch, qty * price) for batch, order, _, qty, price, _ in self.kept}


def made(rng: random.Random, number: int, rows: int) -> Batch:
    """A batch of ``rows`` lines. Order ids come again in later batches, as in a table that is upserted."""
    lines, kept, rejected = [",".join(FIELDS)], list[Row](), list[int]()
    ids = rng.sample(range(3 * rows), rows)
    for line, order_id in enumerate(ids, 2):
        row: Row = (number, f"O-{order_id}", f"C-{rng.randrange(CUSTOMERS)}", rng.randint(1, 9), Decimal(rng.randint(1, 99999)) / 100, NOTE)
        written: tuple[object, ...] = row
        if rng.random() < DIRTY_SHARE and kept:
            written = rng.choice(_DIRT)(row, kept[0])
            rejected.append(line)
        else:
            kept.append(row)
        lines.append(",".join(f'"{value}"' if value is NOTE else str(value) for value in written))
    return Batch(number, f"orders-{number:03d}.csv", "\n".join(lines) + "\n", tuple(kept), tuple(rejected))


_DIRT = (
    lambda row, first: (*row[:3], 0, *row[4:]),
    lambda row, first: (*row[:3], "many", *row[4:]),
    lambda row, first: (*row[:4], "", row[5]),
    lambda row, first: (row[0], "X" + row[1], *row[2:]),
    lambda row, first: (row[0], first[1], *row[2:]),  # a second row of the file's first order
)


def summed(batches: Iterable[Batch]) -> dict[str, tuple[int, Decimal]]:
    """The accounts after all of ``batches``."""
    found: dict[str, tuple[int, Decimal]] = defaultdict(lambda: (0, Decimal(0)))
    for batch in batches:
        for customer, (orders, amount) in batch.takings.items():
            before = found[customer]
            found[customer] = (before[0] + orders, before[1] + amount)
    return dict(found)


def upserted(batches: Iterable[Batch]) -> dict[str, tuple[int, Decimal]]:
    """The totals after all of ``batches``, in that order."""
    found: dict[str, tuple[int, Decimal]] = {}
    for batch in batches:
        found.update(batch.totals)
    return found
