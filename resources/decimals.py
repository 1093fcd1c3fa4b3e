"""Exact sums on SQLite. It has no decimals: they are stored as text, and these functions add them without going through a double. Whole
numbers that do not fit 64 bits it adds as doubles, where these fail."""

from __future__ import annotations

import sqlite3
from decimal import Context, Decimal
from typing import Any

ADD = "bus_decimal_add"
SUM = "bus_decimal_sum"
ADD_WHOLE = "bus_integer_add"
_EXACT = Context(prec=80)
"""Two numbers of 38 digits, the most a field may have, add up to 77 at the very most."""


def register_decimals(connection: sqlite3.Connection) -> None:
    """Make ``bus_decimal_add(a, b)``, ``bus_integer_add(a, b)`` and the aggregate ``bus_decimal_sum(x)`` known; null counts as 0."""
    connection.create_function(ADD, 2, _add, deterministic=True)
    connection.create_function(ADD_WHOLE, 2, _add_whole, deterministic=True)
    connection.create_window_function(SUM, 1, _Sum)


def _decimal(value: Any) -> Decimal:
    return Decimal(str(value)) if value is not None else Decimal(0)


def _add(one: Any, other: Any) -> str:
    return format(_EXACT.add(_decimal(one), _decimal(other)), "f")


def _add_whole(one: Any, other: Any) -> Any:
    """A whole number that is too big is refused by the driver, where SQLite's own + makes a double of it."""
    return (one or 0) + (other or 0)


class _Sum:
    def __init__(self) -> None:
        self.total = Decimal(0)

    def step(self, value: Any) -> None:
        self.total = _EXACT.add(self.total, _decimal(value))

    def inverse(self, value: Any) -> None:
        self.total = _EXACT.subtract(self.total, _decimal(value))

    def value(self) -> str:
        return format(self.total, "f")

    finalize = value
