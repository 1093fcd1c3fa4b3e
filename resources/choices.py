"""Values that an ENUM or a SET of MariaDB and MySQL would take for others: found in the rows, as many have none.

Digits are taken there for the place of a value, letters for those of another case, and the values of a SET are sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from resources.errors import Poison

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them


def as_declared(batches: Iterable[pa.RecordBatch], columns: Sequence[sa.Column[Any]], table: str) -> Iterator[pa.RecordBatch]:
    """``batches``; Poison before the first one with a text that its column, in the order of ``columns``, does not have as it stands."""
    choosing = {place: column for place, column in enumerate(columns) if isinstance(column.type, (mysql.ENUM, mysql.SET))}
    for batch in batches:
        for place, column in choosing.items():
            if not all(_is_declared(value, column.type) for value in pc.unique(batch.column(place)).to_pylist()):
                raise Poison(
                    f"table {table!r}: a text is none of the values of column {column.name!r} as they are declared; list them as allowed= "
                    "of the field, change it in a transform, or make the column VARCHAR"
                )
        yield batch


def _is_declared(value: str | None, kind: Any) -> bool:
    if value is None:
        return True
    if isinstance(kind, mysql.ENUM):
        return value in kind.enums
    chosen = value.split(",")
    return value == ",".join(declared for declared in kind.values if declared in chosen)
