"""Parquet files as typed columns."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resources.errors import Misconfigured, Poison, Transient
from resources.files_seam import Files, Listed, matching
from resources.records import Records, unread_of

BATCH_ROWS = 65536
COPY_BYTES = 8 << 20


def read_parquet(files: Files, pattern: str, *, fields: Mapping[str, str], batch_rows: int = BATCH_ROWS) -> Iterator[Records]:
    """The rows of every file that matches, in name order; ``fields``: output column → top-level column in the file.

    Arrow types as the file has them (dictionaries as what they stand for); positions are rows, counted from 1. A file
    without rows gives one empty run. Raises Misconfigured (no file, no such column), Poison (not Parquet, cut or broken), Transient
    (no room for the copy of a file that cannot be read out of order), and what ``files`` raises.
    """
    if not fields:
        raise Misconfigured("fields is empty: name at least one column to read")
    return _read(files, pattern, dict(fields), batch_rows)


def count_parquet(files: Files, pattern: str, **_: Any) -> int:
    """How many rows the files' footers promise."""
    count = 0
    for listed in matching(files, pattern):
        with _seekable(files, listed) as source:
            count += _opened(source, listed.name).metadata.num_rows
    return count


def _read(files: Files, pattern: str, fields: dict[str, str], batch_rows: int) -> Iterator[Records]:
    for listed in matching(files, pattern):
        with _seekable(files, listed) as source:
            yield from _read_file(_opened(source, listed.name), listed.name, fields, batch_rows)


def _read_file(file: pq.ParquetFile, name: str, fields: dict[str, str], batch_rows: int) -> Iterator[Records]:
    _check_columns(file.schema_arrow.names, fields, name)
    unread = unread_of(file.schema_arrow.names, fields)
    row = 1
    for batch in _batches(file, name, fields, batch_rows):
        positions = pa.array(np.arange(row, row + batch.num_rows, dtype=np.int64))
        row += batch.num_rows
        yield Records(batch, name, positions, "row", unread=unread)
    if row - 1 != file.metadata.num_rows:
        raise Poison(f"the footer promises {file.metadata.num_rows} rows but there are {row - 1}; have the file sent again", place=name)
    if row == 1:
        schema = _selected(file.schema_arrow.empty_table(), fields)
        yield Records(schema, name, pa.array([], pa.int64()), "row", unread=unread)


def _batches(file: pq.ParquetFile, name: str, fields: dict[str, str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    try:
        for batch in file.iter_batches(batch_rows, columns=list(dict.fromkeys(fields.values()))):
            yield _selected(pa.Table.from_batches([batch]), fields)
    except (pa.ArrowException, OSError) as error:
        raise _broken(name, error) from error


def _selected(table: pa.Table, fields: dict[str, str]) -> pa.RecordBatch:
    columns = [_plain(table.column(column).combine_chunks()) for column in fields.values()]
    return pa.RecordBatch.from_arrays(columns, names=list(fields))


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _check_columns(names: Sequence[str], fields: dict[str, str], file: str) -> None:
    times = Counter(names)
    for column in fields.values():
        if times[column] != 1:
            what = f"column {column!r} appears {times[column]} times" if times[column] else f"there is no column {column!r}"
            raise Misconfigured(f"{what}; there is {', '.join(map(repr, names))}", place=file)


def _opened(source: BinaryIO, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> Poison:
    return Poison(f"not a whole Parquet file ({str(error).splitlines()[0]}); have it sent again", place=name)


@contextmanager
def _seekable(files: Files, listed: Listed) -> Iterator[BinaryIO]:
    """``listed`` opened so that it can be read out of order: as it is, or copied to a temporary file first."""
    with files.open(listed.name, listed.version) as raw:
        if raw.seekable():
            yield raw
            return
        with tempfile.TemporaryFile() as copy:
            _copy(raw, cast(BinaryIO, copy), listed.name)
            yield cast(BinaryIO, copy)


def _copy(raw: BinaryIO, copy: BinaryIO, name: str) -> None:
    try:
        while block := raw.read(COPY_BYTES):
            copy.write(block)
        copy.seek(0)
    except OSError as error:
        raise Transient(f"copying the file to {tempfile.gettempdir()} failed: {error.strerror or error}", place=name) from error
