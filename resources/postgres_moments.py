"""Dates, times and intervals of Postgres that Python has no value for, as the server wrote them: 'infinity', '0044-03-15 BC', '24:00'."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

_KINDS = ("date", "time", "timetz", "timestamp", "timestamptz", "interval")


def read_as_written(connection: psycopg.Connection[Any]) -> None:
    """Let ``connection`` give such a value as text: one of them would fail all rows that were fetched with it."""
    for kind in _KINDS:
        number = connection.adapters.types[kind].oid
        usual = connection.adapters.get_loader(number, Format.TEXT)
        assert usual is not None
        connection.adapters.register_loader(number, _lenient(usual))


def _lenient(usual: type[Any]) -> type[Loader]:
    class Lenient(Loader):
        def __init__(self, oid: int, context: AdaptContext | None = None):
            super().__init__(oid, context)
            self._usual = usual(oid, context).load  # the driver's own, made of C, cannot be subclassed

        def load(self, data: Buffer) -> Any:
            try:
                return self._usual(data)
            except psycopg.DataError:
                return bytes(data).decode()

    return Lenient
