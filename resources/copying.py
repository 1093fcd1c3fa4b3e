"""Rows into Postgres by ``COPY … FROM STDIN``, on the connection and in the transaction of everything else.

In binary where every column's type is known exactly (a third less work for the server), else as CSV, which the server converts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any, TypeVar

import psycopg
import pyarrow as pa
from psycopg import sql
from sqlalchemy.engine import Connection

from resources.copy_binary import HEADER, TRAILER, as_binary, takes_binary
from resources.sql_errors import raise_explained
from resources.sql_values import as_csv, pieces

T = TypeVar("T")

AHEAD = 3
"""Pieces in the making while one is sent: enough that neither waits, at most 4 x 65,536 rows in memory."""


def copy_rows(
    connection: Connection,
    table: Sequence[str],
    columns: Sequence[str],
    batches: Iterable[pa.RecordBatch],
    types: Mapping[str, Any],
    *,
    where: str,
    doing: str,
) -> int:
    """Copy ``batches`` (columns in the order of ``columns``) into ``table`` ('schema', 'name'); the server's count of rows.

    ``types``: the table's column types as SQLAlchemy knows them. ``batches`` is consumed in the caller's thread; what is sent is
    made in another, which needs no interpreter lock most of the time.
    """
    raw: Any = connection.connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    into = sql.SQL("COPY {} ({}) FROM STDIN ").format(sql.Identifier(*table), sql.SQL(", ").join(map(sql.Identifier, columns)))
    copied = 0
    try:
        with raw.cursor() as cursor:
            for is_binary, run in groupby(pieces(batches), lambda piece: takes_binary(piece.schema, columns, types)):
                with cursor.copy(into + sql.SQL("(FORMAT binary)" if is_binary else "(FORMAT csv)")) as copy:
                    for part in _binary(run) if is_binary else _made(as_csv, run):
                        copy.write(memoryview(part))
                copied += cursor.rowcount
    except psycopg.Error as error:
        raise_explained(error, where, doing, writes_rows=True)
        raise
    return copied


def _binary(batches: Iterable[pa.RecordBatch]) -> Iterator[bytes | pa.Buffer]:
    yield HEADER
    for parts in _made(as_binary, batches):
        yield from parts
    yield TRAILER


def _made(encode: Callable[[pa.RecordBatch], T], batches: Iterable[pa.RecordBatch]) -> Iterator[T]:
    """``batches`` encoded in order, a few ahead, in a thread of its own."""
    with ThreadPoolExecutor(1, thread_name_prefix="bus-copy") as encoder:
        waiting: deque[Future[T]] = deque()
        for batch in batches:
            waiting.append(encoder.submit(encode, batch))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
