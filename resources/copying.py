"""Rows into Postgres by ``COPY … FROM STDIN (FORMAT csv)``, on the connection and in the transaction of everything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pyarrow as pa
from psycopg import sql
from sqlalchemy.engine import Connection

from resources.sql_errors import raise_explained
from resources.sql_values import as_csv, pieces

AHEAD = 3
"""CSV pieces in the making while one is sent: enough that neither waits, at most 4 x 65,536 rows in memory."""


def copy_rows(
    connection: Connection, table: Sequence[str], columns: Sequence[str], batches: Iterable[pa.RecordBatch], *, where: str, doing: str
) -> int:
    """Copy ``batches`` (columns in the order of ``columns``) into ``table`` ('schema', 'name'); the server's count of rows.

    ``batches`` is consumed in the caller's thread; the CSV is written in another, which needs no interpreter lock while it does.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        sql.Identifier(*table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    try:
        with raw.cursor() as cursor:
            with cursor.copy(statement) as copy:
                for piece in _csv_pieces(batches):
                    copy.write(memoryview(piece))
            return cursor.rowcount
    except psycopg.Error as error:
        raise_explained(error, where, doing)
        raise


def _csv_pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Buffer]:
    with ThreadPoolExecutor(1, thread_name_prefix="bus-csv") as writer:
        waiting: deque[Future[pa.Buffer]] = deque()
        for piece in pieces(batches):
            waiting.append(writer.submit(as_csv, piece))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
