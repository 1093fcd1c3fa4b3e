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
    fields = np.full((batch.num_rows, 1), batch.num_columns, ">i2")
    parts = [_rows_of(fields)]
    for column in batch.columns:
        parts += _text(column) if pa.types.is_string(column.type) else [_fixed(column)]
    joined = pc.binary_join_element_wise(*parts, b"")
    _, offsets, data = joined.buffers()
    return [data.slice(0, int(np.frombuffer(offsets, np.int32)[batch.num_rows]))]


def _text(column: pa.StringArray) -> list[pa.BinaryArray]:
    sizes = pc.fill_null(pc.binary_length(column), -1).to_numpy().astype(">i4")
    return [_rows_of(sizes.reshape(-1, 1)), pc.fill_null(column.view(pa.binary()), b"")]


def _fixed(column: pa.Array) -> pa.BinaryArray:
    values = _rows_of(_with_size(_values(column)))
    return pc.if_else(column.is_valid(), values, _NULL) if column.null_count else values


def _values(column: pa.Array) -> np.ndarray:
    """The values as the bytes that are sent, a row of a matrix each; anything where there is none."""
    kind = column.type
    if pa.types.is_decimal(kind):
        return _numeric(column, kind.scale)
    if pa.types.is_boolean(kind):
        return _numbers(column.cast(pa.int8()), "i1")
    if pa.types.is_date32(kind):
        return _numbers(column.view(pa.int32()), ">i4", -_POSTGRES_EPOCH_DAYS)
    if pa.types.is_timestamp(kind):
        return _numbers(column.view(pa.int64()), ">i8", -_POSTGRES_EPOCH_MICROSECONDS)
    return _numbers(column, ">f8" if pa.types.is_floating(kind) else ">i8")


def _numbers(column: pa.Array, wire: str, shift: int = 0) -> np.ndarray:
    values = pc.fill_null(column, 0).to_numpy()
    return (values + shift if shift else values).astype(wire).view(np.uint8).reshape(len(column), -1)


def _numeric(column: pa.Array, scale: int) -> np.ndarray:
    """Four numbers of 16 bits (groups, weight of the first, sign, scale), then the groups; the server drops zeros at both ends."""
    raw = np.frombuffer(column.buffers()[1], np.int64).reshape(-1, 2)[column.offset : column.offset + len(column), 0]
    after = -(-scale // _GROUP)
    whole, fraction = np.divmod(np.abs(raw), 10**scale)
    fraction = fraction * 10 ** (after * _GROUP - scale)
    before = -(-(column.type.precision - scale) // _GROUP)
    sent = np.empty((len(raw), 4 + before + after), ">i2")
    sent[:, 0], sent[:, 1], sent[:, 2], sent[:, 3] = before + after, before - 1, np.where(raw < 0, _NEGATIVE, 0), scale
    for at in range(3 + before, 3, -1):
        whole, sent[:, at] = np.divmod(whole, 10**_GROUP)
    for at in range(3 + before + after, 3 + before, -1):
        fraction, sent[:, at] = np.divmod(fraction, 10**_GROUP)
    return sent.view(np.uint8).reshape(len(raw), -1)


def _with_size(values: np.ndarray) -> np.ndarray:
    size = np.full((len(values), 1), values.shape[1], ">i4").view(np.uint8).reshape(len(values), -1)
    return np.concatenate([size, values], axis=1)


def _rows_of(matrix: np.ndarray) -> pa.BinaryArray:
    """Each row of ``matrix`` as one binary value."""
    flat = np.ascontiguousarray(matrix).view(np.uint8).reshape(len(matrix), -1)
    offsets = np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), len(flat), [None, pa.py_buffer(offsets), pa.py_buffer(flat)])
