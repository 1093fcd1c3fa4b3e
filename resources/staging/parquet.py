"""Arrow batches to staged Parquet files, and back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resources.errors import Misconfigured, Refused
from resources.staging.manifest import Manifest, StagedFile
from resources.staging.seam import Staging

ROWS_PER_FILE = 262_144
BYTES_PER_FILE = 64 << 20
"""A file is encoded in memory before it is written: wide rows end it earlier than ``rows_per_file`` does."""

ROWS_PER_GROUP = 32768
BYTES_PER_GROUP = 32 << 20
"""What is collected (as Arrow) before it is encoded: a batch of 100 rows of its own would be a poor row group."""

DICTIONARY_SHARE = 0.25
"""A dictionary pays for a column with at most this share of distinct values; elsewhere its hashing doubles the time of writing."""

_SAMPLE_ROWS = 16_384
_COUNTABLE = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_integer,
    pa.types.is_decimal,
    pa.types.is_temporal,
)


class StagedWriter:
    """Writes batches of one ``schema`` as Parquet files of at most ``rows_per_file`` rows below ``prefix``.

    Each writer's file names are its own, so a second try below the same prefix meets nothing of the first. No rows at all give
    one file that knows the schema. A full row group is encoded and stored in a thread of the writer's own while the next one is
    collected. Memory: two row groups and an encoded file. Used as a context manager, or ``close()`` d; until then there is no
    manifest, and without one its files count for nothing. Raises what ``Staging.write`` raises, from a later ``write`` or ``close``.
    """

    def __init__(self, staging: Staging, prefix: str, schema: pa.Schema, *, rows_per_file: int = ROWS_PER_FILE):
        if rows_per_file < 1:
            raise Misconfigured(f"rows_per_file is {rows_per_file}; a file has at least one row")
        self._staging, self._prefix, self._schema = staging, prefix, schema
        self._rows_per_file = rows_per_file
        self._token = secrets.token_hex(4)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = self._file_rows = 0
        self._files: list[StagedFile] = []
        self._open: _Encoding | None = None
        self._layout: dict[str, Any] | None = None
        self._manifest: Manifest | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bus-staging")  # begins with the first full row group
        self._encoding: Future[bool] | None = None

    def __enter__(self) -> StagedWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._thread.shutdown()

    @property
    def manifest(self) -> Manifest:
        """What was written; only once the writer is closed."""
        if self._manifest is None:
            raise Refused("the writer is not closed: what it staged is not whole yet", place=self._prefix)
        return self._manifest

    def write(self, batch: pa.RecordBatch) -> None:
        if not batch.schema.equals(self._schema):
            raise Misconfigured(f"the batch has {_columns(batch.schema)}; this stop stages {_columns(self._schema)}", place=self._prefix)
        if self._manifest is not None:
            raise Refused("the writer is closed", place=self._prefix)
        while batch.num_rows:
            room = min(self._rows_per_file - self._file_rows, ROWS_PER_GROUP) - self._waiting_rows
            taken, batch = batch.slice(0, room), batch.slice(room)
            self._waiting.append(taken)
            self._waiting_rows += taken.num_rows
            self._waiting_bytes += taken.nbytes
            if self._waiting_rows >= min(self._rows_per_file - self._file_rows, ROWS_PER_GROUP) or self._waiting_bytes >= BYTES_PER_GROUP:
                self._wait()
                group, is_last = self._collected()
                self._encoding = self._thread.submit(self._encode, group, is_last)

    def close(self) -> Manifest:
        """Write what is left; the manifest. Closing twice gives the same."""
        if self._manifest is None:
            self._wait()
            if self._waiting or not (self._files or self._open):
                self._encode(*self._collected())
            self._end_file()
            self._thread.shutdown()
            self._manifest = Manifest.of(tuple(self._files))
            pa.default_memory_pool().release_unused()  # who comes next (DuckDB) has memory of its own: 60 MB less at the peak
        return self._manifest

    def _wait(self) -> None:
        """Until the row group on its way is in; raises what it met. Its file may have become too big to take more."""
        if self._encoding is not None and self._encoding.result():
            self._file_rows = 0
        self._encoding = None

    def _collected(self) -> tuple[pa.Table, bool]:
        """What waits, as a row group, and whether its file is full with it."""
        group = pa.Table.from_batches(self._waiting, self._schema)
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
        self._file_rows += group.num_rows
        is_last = self._file_rows >= self._rows_per_file
        if is_last:
            self._file_rows = 0
        return group, is_last

    def _encode(self, group: pa.Table, is_last: bool) -> bool:
        """Whether the file was ended. In the writer's thread: the open file and the list of files are touched by nobody else then."""
        group = group.combine_chunks()
        self._layout = self._layout or _layout(group)
        self._open = self._open or _Encoding(group.schema, self._layout)
        self._open.add(group)
        if is_last or self._open.bytes >= BYTES_PER_FILE:
            self._end_file()
            return True
        return False

    def _end_file(self) -> None:
        if self._open is None:
            return
        content, rows = self._open.end(), self._open.rows
        path = f"{self._prefix}/{len(self._files):05d}-{self._token}.parquet"
        stored = self._staging.write(path, content)
        self._files.append(StagedFile(path, rows, stored.bytes, stored.sha256))
        self._open = None


class _Encoding:
    """One Parquet file on its way, in memory."""

    def __init__(self, schema: pa.Schema, layout: dict[str, Any]):
        self.rows = 0
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, schema, **layout)

    def add(self, group: pa.Table) -> None:
        self._writer.write_table(group, row_group_size=max(group.num_rows, 1))
        self.rows += group.num_rows

    @property
    def bytes(self) -> int:
        return self._sink.tell()

    def end(self) -> memoryview:
        self._writer.close()
        return memoryview(self._sink.getvalue())


def _layout(first: pa.Table) -> dict[str, Any]:
    """How each column is encoded, as its first values suggest.

    1 M orders: 0.12 s and 26 MB so; 0.30 s and 29 MB with dictionaries and LZ4 everywhere and statistics.
    """
    sample = first.slice(0, _SAMPLE_ROWS)
    columns = dict(zip(first.schema.names, (column.combine_chunks() for column in sample.columns), strict=True))
    repetitive = [name for name, column in columns.items() if _is_repetitive(column)]
    ascending = [name for name, column in columns.items() if name not in repetitive and _is_ascending(column)]
    return {
        "use_dictionary": repetitive,
        "column_encoding": dict.fromkeys(ascending, "DELTA_BINARY_PACKED") or None,
        "compression": "lz4",
        "store_decimal_as_integer": True,
        "write_statistics": False,
    }


def _is_repetitive(column: pa.Array) -> bool:
    """Whether few values come again and again."""
    return any(is_kind(column.type) for is_kind in _COUNTABLE) and len(column.unique()) <= DICTIONARY_SHARE * len(column)


def _is_ascending(column: pa.Array) -> bool:
    """Whether these are numbers that count up, like those of rows and lines."""
    if not pa.types.is_int64(column.type) or column.null_count:
        return False
    return bool((np.diff(column.to_numpy()) > 0).all())


def read_batches(
    staging: Staging, manifest: Manifest, columns: Sequence[str] | None = None, batch_rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """The staged rows in order; at least one batch, an empty one if there are no rows, so that the schema is known.

    Each file's bytes are read once, compared with the manifest's digest, and those very bytes decoded. ``columns`` selects and
    orders; one that is not there is Misconfigured. Refused if a file is missing, altered or has another number of rows.
    Memory: one encoded file and one decoded batch.
    """
    for file in manifest.files:
        source = _opened(staging, file)
        wanted = _wanted(source.schema_arrow, columns, file)
        for batch in source.iter_batches(batch_size=batch_rows, columns=wanted):
            yield batch.select(wanted)
    if not manifest.rows and manifest.files:
        schema = read_schema(staging, manifest)
        yield pa.RecordBatch.from_pylist([], schema).select(_wanted(schema, columns, manifest.files[0]))


def read_schema(staging: Staging, manifest: Manifest) -> pa.Schema:
    """The schema of the staged rows; Refused as for ``read_batches``."""
    if not manifest.files:
        raise Refused("the manifest names no file; drive the trip again")
    return _opened(staging, manifest.files[0]).schema_arrow


def _opened(staging: Staging, file: StagedFile) -> pq.ParquetFile:
    content = staging.read(file.path, sha256=file.sha256)
    try:
        source = pq.ParquetFile(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise Refused("the staged file is not Parquet; drive the trip again", place=file.path) from error
    if source.metadata.num_rows != file.rows:
        raise Refused(f"the staged file has {source.metadata.num_rows} rows, its manifest says {file.rows}", place=file.path)
    return source


def _wanted(schema: pa.Schema, columns: Sequence[str] | None, file: StagedFile) -> list[str]:
    if columns is None:
        return schema.names
    if absent := [name for name in columns if name not in schema.names]:
        raise Misconfigured(f"no column {', '.join(absent)}; staged are {', '.join(schema.names)}", place=file.path)
    return list(columns)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}{'' if field.nullable else ' not null'}" for field in schema)
