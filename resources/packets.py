"""Rows in statements that a server of MariaDB or MySQL takes: on a larger one it hangs up, as if the network had failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from resources.errors import Poison

_ESCAPED = re.compile(rb"[\0\n\r\x1a\"'\\]")
"""What drivers write as two characters."""
_CHARACTER_BYTES = 4
"""A character takes at most so many, in UTF-8 or escaped."""
_AROUND = 16
"""Quotes, the word before bytes, and what stands between two values."""
_NUMBER = 96
"""A number, date or null takes at most so many bytes, with what stands between."""


def fitting(
    rows: Iterable[Sequence[Any]], names: Sequence[str], *, table: str, statement: str, most_bytes: int, first: int
) -> Iterator[list[Sequence[Any]]]:
    """``rows``, of which the first is number ``first`` of the table's, in lists whose INSERT is smaller than ``most_bytes``, the
    server's max_allowed_packet. Poison for a row that is too large alone. ``statement`` is the INSERT without its values."""
    room = most_bytes - len(statement.encode()) - _AROUND
    run: list[Sequence[Any]] = []
    taken = 0
    for number, row in enumerate(rows, start=first):
        needs = _AROUND + sum(map(_at_most, row))
        if needs > room and (needs := _AROUND + sum(map(_exactly, row))) > room:
            largest = max(range(len(row)), key=lambda at: _exactly(row[at]))
            raise Poison(
                f"table {table!r}: row {number} of those to be written takes {needs} bytes in SQL, {_exactly(row[largest])} of them "
                f"for column {names[largest]!r}, and the server's max_allowed_packet is {most_bytes}; raise that, or write less"
            )
        if run and taken + needs > room:
            yield run
            run, taken = [], 0
        run.append(row)
        taken += needs
    if run:
        yield run


def _at_most(value: Any) -> int:
    return _AROUND + _CHARACTER_BYTES * len(value) if isinstance(value, (str, bytes)) else _NUMBER


def _exactly(value: Any) -> int:
    if not isinstance(value, (str, bytes)):
        return _NUMBER
    written = value.encode() if isinstance(value, str) else value
    return _AROUND + len(written) + len(_ESCAPED.findall(written))
