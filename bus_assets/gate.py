"""The gate: which rows of a batch keep their contract, and why the others do not.

Row by row rules are judged here, in Arrow, a batch at a time; rules across rows in :mod:`bus_assets.cross_rows`; and
:mod:`bus_assets.verify` judges all of them once more, by other means, from the rows that were staged as kept.
"""

# Arrow makes its compute functions when it is imported, unseen by a type checker.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bus_assets.casting import cast_column
from bus_assets.contract import Contract, Field, Rule
from bus_assets.cross_rows import Known, Violation, cross_row
from bus_assets.reading import Cast, Target, hidden, shown
from bus_assets.types import Type
from resources.errors import Misconfigured

__all__ = ["Known", "Reason", "Rejected", "Split", "Violation", "arrow_schema", "cross_row", "split"]


@dataclass(frozen=True)
class Reason:
    """One rule that a row breaks, named as in ``Contract.rules()``, and what was found instead, never a sensitive value."""

    rule: str
    message: str


@dataclass(frozen=True)
class Rejected:
    """Row ``index`` of the batch and every reason against it, in the contract's order."""

    index: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Split:
    """``kept`` has the contract's fields in the contract's order and types; ``kept_index`` says which rows of the batch they were."""

    kept: pa.RecordBatch
    kept_index: pa.Int64Array
    rejected: list[Rejected]


_MOST_DIGITS = 1000
"""Enough to round a bound that somebody wrote down, however long, without loss before the point."""


def arrow_schema(contract: Contract) -> pa.Schema:
    """The columns in which rows that keep ``contract`` are staged."""
    return pa.schema([(field.name, field.parsed_type.arrow()) for field in contract.fields])


def split(
    records_batch: pa.RecordBatch,
    contract: Contract,
    nested: Mapping[str, Mapping[int, str]] | None = None,
    astray: Mapping[str, Mapping[int, str]] | None = None,
) -> Split:
    """Judge every row by the rules that concern it alone; columns that the contract doesn't name are left out.

    A value that does not read as its field's type is judged by no other rule of that field. ``nested`` is :attr:`Records.nested`: a
    list or an object is no text, unless the field says ``json``. ``astray`` is :attr:`Records.astray`: that null is no value of any type.
    Raises :class:`Misconfigured` if a column is missing or twice there, or a pattern is not RE2.
    """
    fields = {field.name: field for field in contract.fields}
    nested, astray = nested or {}, astray or {}
    cast = {name: _cast(records_batch, field, nested.get(name), astray.get(name)) for name, field in fields.items()}
    reasons: dict[int, list[Reason]] = defaultdict(list)
    for rule in contract.rules():
        if rule.kind == "type" or rule.kind in BROKEN:
            for row, message in _breaches(rule, fields[rule.fields[0]], cast[rule.fields[0]]):
                reasons[row].append(Reason(str(rule), message))
    kept = pa.RecordBatch.from_arrays([column.values for column in cast.values()], schema=arrow_schema(contract))
    keep = np.ones(records_batch.num_rows, bool)
    keep[list(reasons)] = False
    return Split(
        kept=kept if not reasons else kept.filter(pa.array(keep)),
        kept_index=pa.array(np.flatnonzero(keep), pa.int64()),
        rejected=[Rejected(row, tuple(reasons[row])) for row in sorted(reasons)],
    )


def _cast(batch: pa.RecordBatch, field: Field, nested: Mapping[int, str] | None, astray: Mapping[int, str] | None) -> Cast:
    found = batch.schema.get_all_field_indices(field.name)
    if len(found) != 1:
        there = "is missing" if not found else f"is there {len(found)} times"
        raise Misconfigured(
            f"column {field.name!r} {there}; found {', '.join(map(repr, batch.schema.names))}; correct the source's columns or the contract"
        )
    target = Target(field.parsed_type, field.format, field.zone, hidden if field.sensitive else shown)
    cast = cast_column(batch.column(found[0]), target)
    if nested and field.parsed_type.kind == "string" and not field.json:
        cast = _without(cast, nested)
    return Cast(cast.values, {**cast.faults, **astray}) if astray else cast


def _without(cast: Cast, nested: Mapping[int, str]) -> Cast:
    """Text in which what was no text is null, and a fault."""
    mask = np.zeros(len(cast.values), bool)
    mask[list(nested)] = True
    values = pc.if_else(pa.array(mask), pa.scalar(None, pa.string()), cast.values)
    return Cast(values, {**cast.faults, **{row: f"is {what}, not a string" for row, what in nested.items()}})


def _breaches(rule: Rule, field: Field, cast: Cast) -> list[tuple[int, str]]:
    if rule.kind == "type":
        return list(cast.faults.items())
    if rule.kind == "required" and not cast.values.null_count:
        return []
    broken = BROKEN[rule.kind](cast.values, field)
    if not pc.any(broken).as_py():
        return []
    rows = np.flatnonzero(pc.fill_null(broken, False))
    values = cast.values.take(pa.array(rows)).to_pylist()
    return [(int(row), _message(rule, field, value)) for row, value in zip(rows, values, strict=True) if int(row) not in cast.faults]


def _allowed(values: pa.Array, field: Field) -> pa.Array:
    fitting = [value for value in field.allowed or () if _fits(value, field.parsed_type)]
    return pc.and_(values.is_valid(), pc.invert(pc.is_in(values, value_set=pa.array(fitting, values.type))))


def _fits(value: Any, kind: Type) -> bool:
    """Whether the type can hold ``value``; a value it cannot hold equals none."""
    try:
        pa.scalar(value, kind.arrow())
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True


def _below(values: pa.Array, field: Field) -> pa.Array:
    bound = _on_grid(field.minimum, field.parsed_type, ROUND_CEILING)
    return pc.less(values, pa.scalar(bound, values.type)) if _fits(bound, field.parsed_type) else _all(values, bound > 0)


def _above(values: pa.Array, field: Field) -> pa.Array:
    bound = _on_grid(field.maximum, field.parsed_type, ROUND_FLOOR)
    return pc.greater(values, pa.scalar(bound, values.type)) if _fits(bound, field.parsed_type) else _all(values, bound < 0)


def _on_grid(bound: Any, kind: Type, rounding: str) -> Any:
    """A decimal bound at the field's scale, rounded inwards: no value of the field lies between the two."""
    if kind.kind != "decimal":
        return bound
    with localcontext(prec=_MOST_DIGITS):
        return bound.quantize(Decimal(1).scaleb(-kind.scale), rounding=rounding)


def _all(values: pa.Array, broken: bool) -> pa.Array:
    """Every value there is on the same side of a bound that the type cannot hold."""
    return pc.and_(values.is_valid(), pa.scalar(broken))


def _unmatched(values: pa.Array, field: Field) -> pa.Array:
    try:
        return pc.invert(pc.match_substring_regex(values, field.pattern))
    except pa.ArrowInvalid as error:
        raise Misconfigured(f"field {field.name!r}: pattern {field.pattern!r} is not RE2: {error}; see RE2's syntax") from error


_LENGTH: dict[str, Callable[[pa.Array], pa.Array]] = {
    "string": pc.utf8_length,
    "binary": pc.binary_length,
    "list": pc.list_value_length,
}


def _too_long(values: pa.Array, field: Field) -> pa.Array:
    assert field.max_length is not None
    if field.parsed_type.kind == "string" and (pc.max(pc.binary_length(values)).as_py() or 0) <= field.max_length:
        return _all(values, False)  # no text has more characters than bytes
    return pc.greater(_length(values, field), field.max_length)


def _length(values: pa.Array, field: Field) -> pa.Array:
    return _LENGTH[field.parsed_type.kind](values)


BROKEN: dict[str, Callable[[pa.Array, Field], pa.Array]] = {
    "required": lambda values, field: values.is_null(),
    "allowed": _allowed,
    "minimum": _below,
    "maximum": _above,
    "pattern": _unmatched,
    "min_length": lambda values, field: pc.less(_length(values, field), field.min_length),
    "max_length": _too_long,
}
"""For each rule about one value: which values break it (true), null where there is nothing to judge."""


def _message(rule: Rule, field: Field, value: Any) -> str:
    if rule.kind == "required":
        return "is missing, a value is required"
    show = hidden if field.sensitive else shown
    return f"{show(value)} {_EXPECTED[rule.kind](field)}"


def _listed_values(values: tuple[Any, ...]) -> str:
    listed = ", ".join(shown(value) for value in values[:10])
    return f"{listed} …" if len(values) > 10 else listed


_UNITS = {"string": "characters", "binary": "bytes", "list": "items"}
_EXPECTED: dict[str, Callable[[Field], str]] = {
    "allowed": lambda field: f"is not one of {_listed_values(field.allowed or ())}",
    "minimum": lambda field: f"is below {shown(field.minimum)}",
    "maximum": lambda field: f"is above {shown(field.maximum)}",
    "pattern": lambda field: f"does not match {field.pattern}",
    "min_length": lambda field: f"has fewer than {field.min_length} {_UNITS[field.parsed_type.kind]}",
    "max_length": lambda field: f"has more than {field.max_length} {_UNITS[field.parsed_type.kind]}",
}
