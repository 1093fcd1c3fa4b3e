"""Ends of values that a column would change, blanks that it cuts off, zero bytes that it adds: found in the rows, as many have none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from resources.errors import Poison

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them

_TEXT_BYTES = ((mysql.TINYTEXT, 2**8 - 1), (mysql.TEXT, 2**16 - 1), (mysql.MEDIUMTEXT, 2**24 - 1))
"""Counted as UTF-8, since the column's character set is not told with its type: one in latin1 has room for some more."""


def uncut(batches: Iterable[pa.RecordBatch], columns: Sequence[sa.Column[Any]], table: str, dialect: str) -> Iterator[pa.RecordBatch]:
    """``batches``; Poison before the first one with a text that is too long for its column, in the order of ``columns``, by
    blanks alone: SQL has them cut without a word. SQLite keeps texts of any length; in ``char(n)`` blanks count for nothing anyway.
    So it is before the first one with bytes that ``binary(n)`` of MariaDB would fill up."""
    kinds = {} if dialect == "sqlite" else {place: column.type for place, column in enumerate(columns)}
    keeps = {place: most for place, kind in kinds.items() if (most := _most(kind)) is not None}
    fills = {place: kind.length or 1 for place, kind in kinds.items() if isinstance(kind, sa.BINARY)}
    for batch in batches:
        for place, (most, unit) in keeps.items():
            values = batch.column(place)
            is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
            if is_text and _cut(values, most, pc.utf8_length if unit == "characters" else pc.binary_length):
                raise Poison(
                    f"table {table!r}: column {columns[place].name!r} keeps {most} {unit} and would cut off blanks at the end; "
                    "make it longer, or cut them off in a transform"
                )
        for place, size in fills.items():
            if pc.any(pc.less(pc.binary_length(batch.column(place)), size)).as_py():
                raise Poison(
                    f"table {table!r}: column {columns[place].name!r} fills shorter values with zero bytes, up to {size}; "
                    "make it VARBINARY, or let every value have that length"
                )
        yield batch


def _most(kind: Any) -> tuple[int, str] | None:
    """How much of a text a column keeps, and in what it is counted there."""
    if isinstance(kind, sa.VARCHAR):
        return None if kind.length is None else (kind.length, "characters")
    return next(((most, "bytes") for one, most in _TEXT_BYTES if isinstance(kind, one)), None)


def _cut(values: pa.Array, most: int, length: Any) -> bool:
    """Whether a value is longer than that, but not without the blanks at its end."""
    too_long = values.filter(pc.greater(length(values), most))
    return bool(len(too_long)) and pc.any(pc.less_equal(length(pc.utf8_rtrim(too_long, " ")), most)).as_py()
