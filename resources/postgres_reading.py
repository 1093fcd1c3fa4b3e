"""What Python would make something else of, as Postgres wrote it: 'infinity', '0044-03-15 BC', '24:00', months, the digits of JSON."""

from __future__ import annotations

from functools import cache
from typing import Any

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types.string import TextLoader

from resources.sql_values import Json

_KINDS = ("date", "time", "timetz", "timestamp", "timestamptz")


def read_as_written(connection: psycopg.Connection[Any]) -> None:
    """Let ``connection`` give such a value as text, where one of them would fail all rows that were fetched with it; intervals always,
    and JSON as :class:`~resources.sql_values.Json`."""
    for kind in _KINDS:
        number = connection.adapters.types[kind].oid
        usual = connection.adapters.get_loader(number, Format.TEXT)
        assert usual is not None
        connection.adapters.register_loader(number, _lenient(usual))
    connection.adapters.register_loader("interval", TextLoader)  # a month is no number of days, as psycopg would have it
    for kind in ("json", "jsonb"):
        connection.adapters.register_loader(kind, _JsonLoader)


@cache  # each connection asks for the same few
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


class _JsonLoader(Loader):
    def load(self, data: Buffer) -> Json:
        return Json(bytes(data).decode())
