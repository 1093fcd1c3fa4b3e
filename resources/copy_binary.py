"""Rows as Postgres reads them in ``COPY … FROM STDIN (FORMAT binary)``: less work for the server than text, for the types of most tables.

The format is that of the types' ``recv`` functions (documented under COPY, "Binary Format"; numeric in src/backend/utils/adt/numeric.c):
it fits one type of column exactly and no other, so columns that are not in :func:`takes_binary` go as CSV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them

Cells = list[tuple[str, "np.ndarray | int"]]
"""Numbers that stand side by side in a row: numpy's name of how each is written, and its values, or the one that all rows have."""

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
MAX_PIECE_BYTES = 256 << 20
"""Arrow's offsets end at 2 GiB; wider rows are encoded in halves."""
MAX_DECIMAL_DIGITS = 18
"""Decimals of so many digits fit 64 bits; wider ones go as CSV."""

_NULL_BYTES = [None, pa.py_buffer(np.array([0, 4], np.int32)), pa.py_buffer(b"\xff\xff\xff\xff")]
_NULL = pa.Array.from_buffers(pa.binary(), 1, _NULL_BYTES)[0]  # pa.scalar() would import pandas
_POSTGRES_EPOCH_DAYS = 10_957
"""2000-01-01 in days since 1970."""
_POSTGRES_EPOCH_MICROSECONDS = _POSTGRES_EPOCH_DAYS * 86_400_000_000
_NEGATIVE = 0x4000
_GROUP = 4
"""numeric has base 10,000."""


def takes_binary(schema: pa.Schema, columns: Sequence[str], types: Mapping[str, Any]) -> bool:
    """Whether ``schema``'s fields, for ``columns`` in that order, can go in binary into columns of these SQLAlchemy ``types``."""
    return all(_fits(field.type, types[name]) for field, name in zip(schema, columns, strict=True))


def _fits(kind: pa.DataType, into: Any) -> bool:
    exact = type(into)
    if pa.types.is_string(kind):
        return exact in (sa.TEXT, sa.VARCHAR)
    if pa.types.is_int64(kind):
        return exact in (sa.BIGINT, sa.BigInteger)
    if pa.types.is_float64(kind):
        return exact in (sa.DOUBLE_PRECISION, postgresql.DOUBLE_PRECISION)
    if pa.types.is_boolean(kind):
        return exact is sa.BOOLEAN
    if pa.types.is_date32(kind):
        return exact is sa.DATE
    if pa.types.is_decimal128(kind):
        return exact is sa.NUMERIC and kind.precision <= MAX_DECIMAL_DIGITS and kind.scale >= 0
    if pa.types.is_timestamp(kind):
        return isinstance(into, sa.TIMESTAMP) and kind.unit == "us" and into.timezone == (kind.tz is not None)
    return False


def as_binary(batch: pa.RecordBatch) -> list[pa.Buffer]:
    """The rows of ``batch``, without header and trailer; :func:`takes_binary` must have agreed to its schema."""
    if batch.nbytes > MAX_PIECE_BYTES and batch.num_rows > 1:
        half = batch.num_rows // 2
        return as_binary(batch.slice(0, half)) + as_binary(batch.slice(half))
    parts: list[pa.BinaryArray] = []
    cells: Cells = [(">i2", batch.num_columns)]
    for column in batch.columns:
        if pa.types.is_string(column.type):
            cells.append((">i4", _sizes(column)))
            parts += [_rows(cells, len(column)), _bytes(column)]
        elif column.null_count:
            sent = pc.if_else(column.is_valid(), _rows(_fixed(column), len(column)), _NULL)
            parts += [*([_rows(cells, len(column))] if cells else []), sent]
        else:
            cells += _fixed(column)
            continue
        cells = []
    if cells:
        parts.append(_rows(cells, batch.num_rows))
    joined = pc.binary_join_element_wise(*parts, b"")
    _, offsets, data = joined.buffers()
    return [data.slice(0, int(np.frombuffer(offsets, np.int32)[batch.num_rows]))]


def _sizes(texts: pa.StringArray) -> np.ndarray:
    sizes = pc.binary_length(texts)
    return (pc.fill_null(sizes, -1) if texts.null_count else sizes).to_numpy()


def _bytes(texts: pa.StringArray) -> pa.BinaryArray:
    data = texts.view(pa.binary())
    return pc.fill_null(data, b"") if texts.null_count else data


def _fixed(column: pa.Array) -> Cells:
    """The size of the values and the values, anything where there is none."""
    values = _values(column)
    return [(">i4", sum(np.dtype(kind).itemsize for kind, _ in values)), *values]


def _values(column: pa.Array) -> Cells:
    kind = column.type
    if pa.types.is_decimal(kind):
        return _numeric(column, kind.scale)
    if pa.types.is_boolean(kind):
        return [("i1", _numbers(column.cast(pa.int8())))]
    if pa.types.is_date32(kind):
        return [(">i4", _numbers(column.view(pa.int32())) - _POSTGRES_EPOCH_DAYS)]
    if pa.types.is_timestamp(kind):
        return [(">i8", _numbers(column.view(pa.int64())) - _POSTGRES_EPOCH_MICROSECONDS)]
    return [(">f8" if pa.types.is_floating(kind) else ">i8", _numbers(column))]


def _numbers(column: pa.Array) -> np.ndarray:
    return (pc.fill_null(column, 0) if column.null_count else column).to_numpy()


def _numeric(column: pa.Array, scale: int) -> Cells:
    """Four numbers of 16 bits (groups, weight of the first, sign, scale), then the groups; the server drops zeros at both ends."""
    raw = np.frombuffer(column.buffers()[1], np.int64).reshape(-1, 2)[column.offset : column.offset + len(column), 0]
    before, after = -(-(column.type.precision - scale) // _GROUP), -(-scale // _GROUP)
    rest, groups = np.abs(raw), list[np.ndarray]()
    if odd := scale % _GROUP:
        # The last digits are filled up to a group by themselves: together with the others they might not fit 64 bits any more.
        rest, last = np.divmod(rest, 10**odd)
        groups.append(last * 10 ** (_GROUP - odd))
    for _ in range(before + scale // _GROUP):
        rest, group = np.divmod(rest, 10**_GROUP)
        groups.insert(0, group)
    head: Cells = [(">i2", before + after), (">i2", before - 1), (">i2", np.where(raw < 0, _NEGATIVE, 0)), (">i2", scale)]
    return [*head, *((">i2", group) for group in groups)]


def _rows(cells: Cells, rows: int) -> pa.BinaryArray:
    """What stands side by side in ``cells``, as one binary value for each row."""
    packed = np.empty(rows, [(str(at), kind) for at, (kind, _) in enumerate(cells)])
    for at, (_, value) in enumerate(cells):
        packed[str(at)] = value
    offsets = np.arange(0, packed.nbytes + 1, packed.itemsize, dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(packed.view(np.uint8))])
