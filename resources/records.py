"""The one shape in which every source hands over what it read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resources.errors import Misconfigured

if TYPE_CHECKING:
    import pyarrow as pa


NESTED = {list: "a list", dict: "an object"}
"""What there may be in JSON where one value was expected, in words."""


@dataclass(frozen=True)
class Unreadable:
    """A record that the source could not take apart, kept as it stood: a row with too many fields, say.

    ``message``: the message that it came in or by, as in :class:`Records`.
    """

    position: int
    raw: str
    reason: str
    message: int | None = None


@dataclass(frozen=True)
class Records:
    """A run of records from one origin, in source order.

    ``batch``       columns named as the caller asked. Sources without types of their own (text, XML, JSON) give every column
                    as ``string``: the text as it stood, ``null`` where there was none, lists and objects as JSON text.
                    Typed sources (SQL, Parquet) give the Arrow type nearest to their own.
    ``origin``      what a person would open to look: a file name, a URL, a query's name. Never a secret.
    ``positions``   int64, one per record: the ``unit`` in the origin at which the record starts, counted from 1.
    ``unit``        'line', 'element', 'record' or 'row'.
    ``unreadable``  records between these that could not be taken apart; they are not in ``batch``.
    ``messages``    int64, one per record: the depot's number of the message that it came in, or that named what was read; None where
                    no message did. ``spoiled``: messages of which no record may be used, in this run or another.
    ``nested``      where a column of ``batch`` has the JSON text of 'a list' or 'an object': column → row of the batch → which of them.
    ``astray``      where a column of ``batch`` has null because its path did not lead there, through a number, say: column → row → why.
    ``unread``      columns of the origin that none of the names asked for takes, where it has columns: they stay behind.
    """

    batch: pa.RecordBatch
    origin: str
    positions: pa.Int64Array
    unit: str
    unreadable: tuple[Unreadable, ...] = ()
    messages: pa.Int64Array | None = None
    spoiled: frozenset[int] = frozenset()
    nested: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    astray: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.positions) != self.batch.num_rows:
            said = f"the source gave {len(self.positions)} positions for {self.batch.num_rows} records"
            raise Misconfigured(f"{said}; each record has one, also where several start at the same", place=self.origin)


def unread_of(there: Iterable[str], fields: Mapping[str, str]) -> tuple[str, ...]:
    """Which of the columns ``there`` no output column is read from."""
    read = set(fields.values())
    return tuple(dict.fromkeys(name for name in there if name not in read))


def place_of(origin: str, unit: str, position: int) -> str:
    """``orders.csv, line 17``: the words for a place, the same everywhere."""
    return f"{origin}, {unit} {position}"


def total(runs: Iterable[Records]) -> int:
    """How many records there are in ``runs``, unreadable ones included."""
    return sum(run.batch.num_rows + len(run.unreadable) for run in runs)
