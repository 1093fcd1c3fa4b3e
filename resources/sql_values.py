"""Values between Arrow and SQL: what is read becomes Arrow columns, what is written becomes what the driver or COPY takes.

How values are written where the database has no type of its own:

    decimal             SQLite: text, all digits (a NUMERIC affinity would go through a double)
    timestamptz         in UTC. SQLite: text '2024-01-31 23:59:59.000000Z', sorts as time does; MariaDB, MySQL: DATETIME(6) without zone
    timestamp           SQLite: the same without Z        date, time   SQLite: ISO text        boolean   SQLite: 0 and 1
    list, struct        JSON text, on Postgres into JSONB
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from resources.errors import Misconfigured, Poison
from resources.jsonlines import loads_exact

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them

CSV_ROWS = 65_536
"""Rows a CSV piece has at most: big enough to be fast, small enough to bound memory."""
_CSV = pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid")
"""Every value quoted, nulls not: COPY then tells NULL from ''."""
_DAY = dt.timedelta(days=1)


def chosen(batch: pa.RecordBatch, columns: Sequence[str], table: str) -> pa.RecordBatch:
    """``batch`` with exactly ``columns`` in their order; Misconfigured if one is missing."""
    missing = [name for name in columns if name not in batch.schema.names]
    if missing:
        raise Misconfigured(f"table {table!r}: the rows have no column {missing}; they have {batch.schema.names}")
    return batch if batch.schema.names == list(columns) else batch.select(list(columns))


def refuse_null_keys(batch: pa.RecordBatch, key: Sequence[str], table: str) -> None:
    """Poison if a key has a null: SQL compares null with nothing, so such a row would be added again and again."""
    for name in key:
        if nulls := batch.column(name).null_count:
            raise Poison(f"table {table!r}: {nulls} rows have no value in {name!r}, which is part of the key; make the field required")


def peeked(batches: Iterable[pa.RecordBatch]) -> tuple[pa.Schema | None, Iterator[pa.RecordBatch]]:
    """The schema of ``batches``, None if there are none, and all of them."""
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        return None, iter(())

    def again() -> Iterator[pa.RecordBatch]:
        yield first
        yield from rest

    return first.schema, again()


def pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """``batches`` without the empty ones, cut to at most ``CSV_ROWS`` rows."""
    for batch in batches:
        for start in range(0, batch.num_rows, CSV_ROWS):
            yield batch.slice(start, CSV_ROWS)


def as_csv(batch: pa.RecordBatch) -> pa.Buffer:
    """``batch`` as Postgres reads it in ``COPY … FROM STDIN (FORMAT csv)``."""
    ready = pa.table([_csv_column(column) for column in batch.columns], names=[str(at) for at in range(batch.num_columns)])
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(ready, sink, _CSV)
    return sink.getvalue()


def _csv_column(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([None if value is None else "\\x" + value.hex() for value in column.to_pylist()], pa.string())
    if pa.types.is_nested(kind):
        return pa.array(_json_texts(column), pa.string())
    if pa.types.is_dictionary(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        # As Arrow's CSV writer would write it, which takes a microsecond for each: 25 times as long.
        in_utc = column.view(pa.int64()).view(pa.timestamp(kind.unit))
        return pc.binary_join_element_wise(in_utc.cast(pa.string()), "Z", "")
    return column


def as_rows(batch: pa.RecordBatch, dialect: str) -> Iterator[tuple[Any, ...]]:
    """The rows of ``batch`` as the driver of ``dialect`` takes them in ``executemany``."""
    return zip(
        *(_driver_values(column, name, dialect) for name, column in zip(batch.schema.names, batch.columns, strict=True)), strict=True
    )


def as_bound(value: Any, kind: pa.DataType | None, dialect: str, what: str) -> Any:
    """One value, as given by a person or a placeholder, as the driver takes it in a column of Arrow type ``kind``."""
    if kind is None or value is None:
        return value
    try:
        scalar = pa.scalar(value) if isinstance(value, str) else pa.scalar(value, type=kind)
        if scalar.as_py() != value:  # Arrow reads 5.25 as the integer 5, and a datetime as its date
            raise pa.ArrowInvalid("not the same value")
        column = pa.array([scalar.as_py()], scalar.type).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        raise Misconfigured(f"{what}: {value!r} does not read as {kind}") from None
    if dialect == "postgresql":
        return _json_texts(column)[0] if pa.types.is_nested(kind) else column.to_pylist()[0]
    return _driver_values(column, what, dialect)[0]


def _driver_values(column: pa.Array, name: str, dialect: str) -> list[Any]:
    kind = column.type
    if pa.types.is_nested(kind):
        return _json_texts(column)
    if pa.types.is_floating(kind):
        _refuse_unstorable(column, name, dialect)
    if dialect == "sqlite":
        if pa.types.is_boolean(kind):
            return column.cast(pa.int8()).to_pylist()
        if pa.types.is_decimal(kind):
            return [None if value is None else format(value, "f") for value in column.to_pylist()]
        if pa.types.is_temporal(kind):
            return _objects(column.cast(pa.string()))
    elif dialect in ("mysql", "mariadb") and pa.types.is_temporal(kind):
        return _objects((column.cast(pa.timestamp("us")) if pa.types.is_timestamp(kind) else column).cast(pa.string()))
    return _objects(column)


def _objects(column: pa.Array) -> list[Any]:
    """Like ``to_pylist``, by the way of numpy where that is exact and faster."""
    if pa.types.is_string(column.type) or (
        column.null_count == 0 and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type))
    ):
        return column.to_numpy(zero_copy_only=False).tolist()
    return column.to_pylist()


def _refuse_unstorable(column: pa.Array, name: str, dialect: str) -> None:
    """SQLite silently makes a null of NaN, MariaDB and MySQL have neither NaN nor infinity."""
    odd = pc.is_nan(column) if dialect == "sqlite" else pc.invert(pc.is_finite(column))
    if pc.any(odd).as_py():
        raise Poison(f"column {name!r} has a NaN{'' if dialect == 'sqlite' else ' or an infinite number'}, which {dialect} cannot store")


def _json_texts(column: pa.Array) -> list[str | None]:
    return [None if value is None else as_json(value) for value in column.to_pylist()]


def as_json(value: Any) -> str:
    """Compact JSON; decimals, dates and times as text, bytes as hex."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_text)


class Json(str):
    """JSON as Postgres sent it: were it parsed, its numbers would pass through doubles."""

    __slots__ = ()

    @property
    def compact(self) -> str:
        if '\\"' in self:  # a quote that ends no string
            return _BLANKS_OUTSIDE_STRINGS.sub(r"\1", self)
        parts = self.split('"')
        parts[::2] = ["".join(part.split()) for part in parts[::2]]
        return '"'.join(parts)

    @property
    def value(self) -> Any:
        """A list or an object as its text; a number as a decimal, as ``numeric`` is read, or with an exponent as its text."""
        text = self.strip()
        if text[0] in "{[":
            return self.compact
        if text[0] not in "-0123456789":
            return loads_exact(text)
        return text if "e" in text.lower() else Decimal(text) if "." in text or len(text) > _INT64_DIGITS else int(text)


_INT64_DIGITS = 18
"""Whole numbers of so many characters fit 64 bits."""
_BLANKS_OUTSIDE_STRINGS = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")|\s+')


class Columns:
    """Turns rows that a driver returned into Arrow columns, whose values are what the driver gave: nothing is cut, shifted or rounded.

    A batch has the types that hold its values, whatever the batches before had: SQLite and others choose a type for each value.
    """

    def __init__(self, names: Sequence[str], dialect: str):
        self.names = list(names)
        self._dialect = dialect
        self._kinds: list[pa.DataType] = [pa.string()] * len(self.names)

    def batches(self, rows: Sequence[Sequence[Any]], at: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """The values at positions ``at`` of each row: one batch, cut only where bytes and anything else follow each other in a column.

        Other values that no type holds together are text. Without rows, or for nulls alone, a type is that of the batch before, or
        ``string``.
        """
        columns = list(zip(*rows, strict=True)) if rows else []
        mixed = [place for place in at if rows and len({issubclass(kind, _BYTES) for kind in _types(columns[place])}) > 1]
        if mixed:
            for _, alike in groupby(rows, lambda row: [isinstance(row[place], _BYTES) for place in mixed]):
                yield from self.batches(list(alike), at)
            return
        arrays = [self._array(index, columns[place] if rows else ()) for index, place in enumerate(at)]
        yield pa.RecordBatch.from_arrays(arrays, names=self.names)

    def _array(self, index: int, values: Sequence[Any]) -> pa.Array:
        known = self._kinds[index]
        made = _held(values, known)
        if made is None:
            plain = [_plain(value, self._dialect) for value in values]
            made = _held(plain, known)
            if made is None:
                made = pa.array([None if value is None else _as_text(value) for value in plain], pa.string())
        self._kinds[index] = made.type
        return made


_BYTES = (bytes, bytearray, memoryview)
_DATETIME, _TIME = frozenset({dt.datetime}), frozenset({dt.time})
_HOLDS: dict[frozenset[type], pa.DataType] = {
    frozenset({bool}): pa.bool_(),
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({int, float}): pa.float64(),  # Arrow refuses whole numbers that a double does not hold
    frozenset({str}): pa.string(),
    frozenset({bytes}): pa.binary(),
    frozenset({dt.date}): pa.date32(),
}
"""Python types → the Arrow type that holds values of exactly these. Left to itself Arrow would read 5.25 as the integer 5, and a
datetime as its date."""


def _types(values: Sequence[Any]) -> frozenset[type]:
    return frozenset(map(type, values)) - {type(None)}


def _held(values: Sequence[Any], known: pa.DataType) -> pa.Array | None:
    """``values`` in the type that holds all of them as they are, None if no type does; ``known`` is that of the batch before."""
    types = _types(values)
    try:
        if not types:
            return pa.nulls(len(values), known)
        if types in (_DATETIME, _TIME):
            return _clocks(values, types)
        if Decimal in types and types <= {int, Decimal}:
            return _decimals(values, known)
        return pa.array(values, _HOLDS[types]) if types in _HOLDS else None
    except (pa.ArrowInvalid, TypeError, OverflowError, UnicodeError):  # TypeError: what Arrow says of Decimal('Infinity')
        return None


def _clocks(values: Sequence[Any], types: frozenset[type]) -> pa.Array | None:
    """Wall clocks, or instants in UTC; None for both at once, and for times of day with an offset, which Arrow would leave out."""
    zoned = {value.tzinfo is not None for value in values if value is not None}
    if len(zoned) > 1 or (zoned == {True} and types == _TIME):
        return None
    if types == _TIME:
        return pa.array(values, pa.time64("us"))
    return pa.array(values, pa.timestamp("us", "UTC" if zoned == {True} else None))


def _decimals(values: Sequence[Any], known: pa.DataType) -> pa.Array:
    """At the scale of the batch before if that is enough, with room for the batches to come."""
    if pa.types.is_decimal(known):
        with suppress(pa.ArrowInvalid):
            return pa.array(values, known)
    made = pa.array(values)
    return made.cast(pa.decimal128(38, made.type.scale)) if pa.types.is_decimal128(made.type) else made


def _plain(value: Any, dialect: str) -> Any:
    """A driver's value as one that Arrow knows; what only that database has becomes text."""
    if isinstance(value, Json):
        return value.value
    if value is None or isinstance(value, (str, bool, int, float, Decimal, dt.date, dt.time)):
        return value
    if isinstance(value, _BYTES):
        return bytes(value)
    if isinstance(value, list):
        return _array_text(value)
    if isinstance(value, (dict, tuple)):
        return as_json(value)
    if isinstance(value, dt.timedelta) and dialect in ("mysql", "mariadb") and dt.timedelta(0) <= value < _DAY:
        return (dt.datetime(1, 1, 1, tzinfo=dt.UTC) + value).time()  # how PyMySQL gives a TIME
    return str(value)


def _array_text(items: list[Any]) -> str:
    if not any(isinstance(item, (Json, list)) for item in items):
        return as_json(items)
    return "[" + ",".join(map(_item_text, items)) + "]"


def _item_text(item: Any) -> str:
    if isinstance(item, Json):
        return item.compact
    return _array_text(item) if isinstance(item, list) else as_json(item)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, float):
        return format(Decimal(float.__repr__(value)), "f")  # a decimal reads no exponent
    return str(value)
