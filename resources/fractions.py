"""Fractions of a second that a column would round: found in the rows, as many columns keep none and many rows have none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from resources.errors import Poison

MICROSECOND_DIGITS = 6


def unrounded(batches: Iterable[pa.RecordBatch], columns: Sequence[sa.Column[Any]], table: str) -> Iterator[pa.RecordBatch]:
    """``batches``; Poison before the first one with a time that its column, in the order of ``columns``, would round."""
    kept = {place: digits for place, column in enumerate(columns) if (digits := _digits(column.type)) is not None}
    for batch in batches:
        for place, digits in kept.items():
            values = batch.column(place)
            is_time = pa.types.is_timestamp(values.type) or pa.types.is_time64(values.type)
            if is_time and _between(values, 10 ** (MICROSECOND_DIGITS - digits)):
                raise Poison(
                    f"table {table!r}: column {columns[place].name!r} keeps {digits} digits of a second and would round; "
                    "let it keep 6, or round the field in a transform"
                )
        yield batch


def _digits(kind: Any) -> int | None:
    """How many digits of a second a column keeps, where that is fewer than ours."""
    if isinstance(kind, (mysql.DATETIME, mysql.TIMESTAMP, mysql.TIME)):
        digits = kind.fsp or 0
    elif isinstance(kind, (sa.DateTime, sa.Time)):
        digits = getattr(kind, "precision", None)
    else:
        return None
    return digits if digits is not None and digits < MICROSECOND_DIGITS else None


def _between(values: pa.Array, step: int) -> bool:
    """Whether a value lies between two steps of so many microseconds."""
    unit = pa.timestamp("us", values.type.tz) if pa.types.is_timestamp(values.type) else pa.time64("us")
    microseconds = values.cast(unit).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return bool(np.any(microseconds % step))
