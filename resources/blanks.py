"""Blanks at the end that a column would cut off: found in the rows, as databases refuse every other value that is too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute
import sqlalchemy as sa

from resources.errors import Poison

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them


def uncut(batches: Iterable[pa.RecordBatch], columns: Sequence[sa.Column[Any]], table: str, dialect: str) -> Iterator[pa.RecordBatch]:
    """``batches``; Poison before the first one with a text that is too long for its column, in the order of ``columns``, by
    blanks alone: SQL has them cut without a word. SQLite keeps texts of any length; in ``char(n)`` blanks count for nothing anyway."""
    keeps = {place: characters for place, column in enumerate(columns) if dialect != "sqlite" and (characters := _characters(column.type))}
    for batch in batches:
        for place, characters in keeps.items():
            values = batch.column(place)
            is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
            if is_text and _cut(values, characters):
                raise Poison(
                    f"table {table!r}: column {columns[place].name!r} keeps {characters} characters and would cut off blanks at the end; "
                    "make it longer, or cut them off in a transform"
                )
        yield batch


def _characters(kind: Any) -> int | None:
    return kind.length if isinstance(kind, sa.VARCHAR) else None


def _cut(values: pa.Array, characters: int) -> bool:
    """Whether a value is longer than so many characters, but not without the blanks at its end."""
    too_long = values.filter(pc.greater(pc.utf8_length(values), characters))
    return bool(len(too_long)) and pc.any(pc.less_equal(pc.utf8_length(pc.utf8_rtrim(too_long, " ")), characters)).as_py()
