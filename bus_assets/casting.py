"""A column of a source as the type that a field promises: exactly, or not at all.

Text is read as :mod:`bus_assets.reading` and :mod:`bus_assets.moments` say.
Columns with a type of their own are widened where no information can be lost:

| into         | from                                                                                     |
|--------------|------------------------------------------------------------------------------------------|
| string       | integers, decimals, booleans, dates, as their plain text                                 |
| integer      | integers, whole floats and decimals                                                      |
| number       | floats, decimals, integers that a double holds exactly                                   |
| decimal      | decimals, integers, and floats by their shortest digits, if they fit without rounding    |
| boolean      | booleans, 0 and 1                                                                        |
| date         | dates, wall clock times at midnight (what pandas makes of a date)                        |
| time, timestamp, binary | themselves, in any unit that comes out exact; times within a day                |
| timestamptz  | instants; wall clock times only where the field names a zone                             |
| list, struct | lists and structs, item by item and member by member; JSON text                          |

NaN counts as null, because pandas has no other null for floats; infinities are refused. A struct's members that the field does not
name are left out, those that are missing are null. What cannot be cast is a fault of its row, never an exception.
"""

# Arrow makes its compute functions when it is imported, unseen by a type checker.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bus_assets.moments import exact_dates, explain_zone, localised_or_null, read_moment, within_calendar
from bus_assets.reading import Cast, Target, by_halves, faults_of, plain_decimals, read_text
from bus_assets.types import Type
from resources.errors import Misconfigured
from resources.records import NESTED

_BY_TEXT = {
    ("integer", "string"),
    ("decimal", "string"),
    ("boolean", "string"),
    ("date", "string"),
    ("integer", "decimal"),
    ("number", "decimal"),
    ("decimal", "number"),
    ("integer", "boolean"),
}
_DIRECT = {
    ("integer", "integer"),
    ("number", "integer"),
    ("decimal", "integer"),
    ("integer", "number"),
    ("number", "number"),
    ("decimal", "decimal"),
    ("boolean", "boolean"),
    ("date", "date"),
    ("time", "time"),
    ("timestamp", "timestamp"),
    ("timestamptz", "timestamptz"),
    ("binary", "binary"),
}


def cast_column(column: pa.Array, target: Target) -> Cast:
    """``column`` as ``target``, null with a fault where a value has no exact counterpart."""
    column = _plain(column)
    found, wanted = _family(column.type), target.type.kind
    if found == "null":
        return Cast(pa.nulls(len(column), target.type.arrow()), {})
    if found == "number":
        column = _nan_as_null(column)
    if wanted in ("list", "struct"):
        return _nested(column, found, target)
    if found == "string":
        return _read(column, target)
    if (found, wanted) in _BY_TEXT:
        return _by_text(column, target)
    if (found, wanted) in _DIRECT:
        return _direct(column, target)
    if (found, wanted) == ("timestamp", "date"):
        days = by_halves(column, lambda part: within_calendar(exact_dates(part)), pa.date32())
        return _with_faults(column, days, target, _explain_date)
    if (found, wanted) == ("timestamp", "timestamptz"):
        return _into_instants(column, target)
    return _refused(column, target)


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The same values without the encodings in which they may come: chunks, dictionaries, extension types, wide offsets, views."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.binary())
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return column.cast(pa.list_(kind.value_type))
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return column.cast(pa.decimal128(kind.precision, kind.scale))
    return column


_FAMILIES: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_null, "null"),
    (pa.types.is_string, "string"),
    (pa.types.is_integer, "integer"),
    (pa.types.is_floating, "number"),
    (pa.types.is_decimal, "decimal"),
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_date, "date"),
    (pa.types.is_time, "time"),
    (lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None, "timestamptz"),
    (pa.types.is_timestamp, "timestamp"),
    (pa.types.is_binary, "binary"),
    # Arrow's own cast of a view takes the wrong items where it is a slice.
    (lambda kind: pa.types.is_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind), "list"),
    (pa.types.is_struct, "struct"),
)


def _family(kind: pa.DataType) -> str:
    return next((name for belongs, name in _FAMILIES if belongs(kind)), str(kind))


def _read(texts: pa.StringArray, target: Target) -> Cast:
    return read_moment(texts, target) if target.type.kind in ("date", "time", "timestamp", "timestamptz") else read_text(texts, target)


def _nan_as_null(column: pa.Array) -> pa.Array:
    missing = pc.is_nan(column)
    return pc.if_else(missing, pa.scalar(None, column.type), column) if pc.any(missing).as_py() else column


def _with_faults(column: pa.Array, values: pa.Array, target: Target, explain: Callable[[Any], str]) -> Cast:
    return Cast(values, faults_of(column, values, target, explain))


def _by_text(column: pa.Array, target: Target) -> Cast:
    given = column
    if pa.types.is_date(column.type):  # text would be made of days outside the calendar too, and without their time of what has one
        given = by_halves(column, lambda part: within_calendar(part.cast(pa.date32())), pa.date32())
    read = read_text(plain_decimals(given.cast(pa.string())), Target(target.type, show=target.show))
    if not read.faults and given.null_count == column.null_count:
        return read
    return _with_faults(column, read.values, target, lambda value: f"has no exact value as {target.type}")


def _direct(column: pa.Array, target: Target) -> Cast:
    into = target.type.arrow()

    def convert(part: pa.Array) -> pa.Array:
        values = part.cast(into)
        if target.type.kind in ("date", "time", "timestamp", "timestamptz"):
            return within_calendar(values)
        if target.type.kind == "decimal":
            values.validate(full=True)  # DuckDB's HUGEINT comes as 38 digits and may have 39
        if target.type.kind == "number" and pc.all(pc.is_finite(values)).as_py() is False:
            raise pa.ArrowInvalid("not finite")
        return values

    values = by_halves(column, convert, into)
    bounds = ", 00:00 to 23:59:59.999999" if target.type.kind == "time" else ""
    return _with_faults(column, values, target, lambda value: f"has no exact value as {target.type}{bounds}")


def _explain_date(moment: Any) -> str:
    """Why ``moment`` is no date; text is a time that Python's datetime cannot hold."""
    return "is outside the years 1 to 9999" if isinstance(moment, str) else "has a time of day, a date has none"


def _into_instants(column: pa.Array, target: Target) -> Cast:
    zone = target.zone
    if zone is None:
        return _refused(column, target, "has no offset from UTC, and the field names no zone")
    naive = by_halves(column, lambda part: within_calendar(part.cast(pa.timestamp("us"))), pa.timestamp("us"))
    return _with_faults(column, localised_or_null(naive, zone), target, lambda value: explain_zone(value, zone))


def _refused(column: pa.Array, target: Target, why: str = "") -> Cast:
    why = why or f"is {_a(_family(column.type))}, not {_a(target.type.kind)}"
    return _with_faults(column, pa.nulls(len(column), target.type.arrow()), target, lambda value: why)


def _nested(column: pa.Array, found: str, target: Target) -> Cast:
    if found == "string":
        return _from_json(column, target)
    if found != target.type.kind:
        return _refused(column, target)
    return _list(column, target) if found == "list" else _struct(column, target)


def _list(column: pa.ListArray, target: Target) -> Cast:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    items = cast_column(column.flatten(), _inner(target, target.type.item))
    return _listed(items, np.asarray(lengths), column.is_null(), target)


def _struct(column: pa.StructArray, target: Target) -> Cast:
    members = []
    for name, kind in target.type.members:
        there = column.type.get_all_field_indices(name)
        if len(there) > 1:
            raise Misconfigured(f"a struct has the member '{name}' {len(there)} times; give each a name of its own")
        member = pc.struct_field(column, there) if there else pa.nulls(len(column))
        members.append(cast_column(member, _inner(target, kind)))
    return _structured(members, column.is_null(), target)


def _inner(target: Target, kind: Type | None) -> Target:
    assert kind is not None
    return Target(kind, show=target.show)


def _listed(items: Cast, lengths: np.ndarray, missing: pa.BooleanArray, target: Target) -> Cast:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    faults: dict[int, str] = {}
    for item, why in items.faults.items():
        row = int(np.searchsorted(offsets, item, side="right")) - 1
        faults.setdefault(row, f"item {item - offsets[row] + 1}: {why}")
    values = pa.ListArray.from_arrays(pa.array(offsets), items.values, type=target.type.arrow(), mask=_or_faulty(missing, faults))
    return Cast(values, faults)


def _structured(members: list[Cast], missing: pa.BooleanArray, target: Target) -> Cast:
    faults: dict[int, str] = {}
    for (name, _), member in zip(target.type.members, members, strict=True):
        for row, why in member.faults.items():
            faults.setdefault(row, f"{name}: {why}")
    kind = target.type.arrow()
    mask = _or_faulty(missing, faults)
    values = pa.StructArray.from_arrays([member.values for member in members], fields=list(kind), mask=mask)
    return Cast(values, dict(sorted(faults.items())))


def _or_faulty(missing: pa.BooleanArray, faults: dict[int, str]) -> pa.BooleanArray:
    mask = np.array(missing)
    mask[list(faults)] = True
    return pa.array(mask, pa.bool_())


class _Unreadable:
    """In the place of a JSON value: the text that is none, or that has the wrong shape."""

    def __init__(self, why: str):
        self.why = why


def _from_json(texts: pa.StringArray, target: Target) -> Cast:
    found = [None if text is None else _parsed(text, target) for text in texts.to_pylist()]
    return _built(found, target)


def _parsed(text: str, target: Target) -> Any:
    """The value of a JSON text in which numbers are kept as they were written: they are read as the field's type later."""
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _Unreadable(target.fault(text, "is not JSON"))


def _no_constant(word: str) -> None:
    raise ValueError(word)


def _built(found: Sequence[Any], target: Target) -> Cast:
    """Python values out of JSON as an Arrow column of ``target``."""
    kind = target.type
    shape = {"list": list, "struct": dict}.get(kind.kind, (str, bool))
    faults = {row: _misfit(value, target) for row, value in enumerate(found) if value is not None and not isinstance(value, shape)}
    fitting = [None if row in faults else value for row, value in enumerate(found)]
    missing = pa.array([value is None for value in fitting], pa.bool_())
    if kind.kind == "list":
        items = _built([item for value in fitting if value is not None for item in value], _inner(target, kind.item))
        built = _listed(items, np.array([len(value or ()) for value in fitting], np.int64), missing, target)
    elif kind.kind == "struct":
        members = [_built([None if v is None else v.get(name) for v in fitting], _inner(target, member)) for name, member in kind.members]
        built = _structured(members, missing, target)
    else:
        built = _leaves(fitting, target)
    return Cast(built.values, dict(sorted({**built.faults, **faults}.items())))


def _misfit(value: Any, target: Target) -> str:
    if isinstance(value, _Unreadable):
        return value.why
    found = NESTED.get(type(value)) or target.show(value)
    return f"{found} is not {_a(target.type.kind)}"


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "integer" else f"a {kind}"


def _leaves(found: list[Any], target: Target) -> Cast:
    texts = [str(value).lower() if isinstance(value, bool) else value for value in found]
    halves = {row: "has half a surrogate pair, which is no character" for row, text in enumerate(texts) if text and not _is_text(text)}
    column = pa.array([None if row in halves else text for row, text in enumerate(texts)], pa.string())
    read = _read(column, target)
    faults = {row: target.fault(texts[row], why) for row, why in halves.items()}
    return Cast(read.values, {**read.faults, **faults})


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
