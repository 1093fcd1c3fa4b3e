"""Keys that come in ascending order: each is greater than the one before it, so none comes twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them


class Ascending:
    """Whether every key added so far was greater than the one before it, its columns read as a word is: the first that differs
    decides. A null ends it. Text is compared by its bytes. Most exports are in the order of their key."""

    def __init__(self) -> None:
        self.holds = True
        self._last: list[pa.Array] = []

    def add(self, columns: Sequence[pa.Array]) -> bool:
        """Whether it still holds with these rows, in their order. Costs nothing once it does not."""
        rows = len(columns[0])
        if not (self.holds and rows):
            return self.holds
        after, before = [column.slice(1) for column in columns], [column.slice(0, rows - 1) for column in columns]
        first = [column.slice(0, 1) for column in columns]
        follows = not self._last or _all_greater(first, self._last)
        self.holds = follows and not any(column.null_count for column in columns) and _all_greater(after, before)
        self._last = [column.slice(rows - 1) for column in columns] if self.holds else []
        return self.holds


def _all_greater(these: Sequence[pa.Array], those: Sequence[pa.Array]) -> bool:
    found = None
    for this, that in reversed(list(zip(these, those, strict=True))):
        greater = pc.greater(this, that)
        found = greater if found is None else pc.or_(greater, pc.and_(pc.equal(this, that), found))
    return pc.all(found, skip_nulls=False, min_count=0).as_py() is True
