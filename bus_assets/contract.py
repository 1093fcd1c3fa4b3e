"""What a stop promises of its rows: a :class:`Contract` of :class:`Field` s. Pure declarations; the gate applies them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any
from zoneinfo import available_timezones

from bus_assets.declare import Misdeclared, about, declaration
from bus_assets.types import Type, parse_type
from resources.table_names import checked_identifier, name_parts

FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
RESERVED_PREFIX = "_bus_"
DEFAULT_MAX_REJECTED = 0.1
"""One bad passenger never stops the bus, a bad source does: above a tenth rejected, a stop fails unless told otherwise."""


@declaration
class TableKey:
    """A column of a table that exists already, for ``Field(references=…)``: rows whose value is not in it are rejected."""

    database: str
    table: str
    column: str

    def __post_init__(self) -> None:
        name_parts(self.table)
        checked_identifier(self.column, f"TableKey of {self.table!r}: column")

    def __str__(self) -> str:
        return f"{self.database}: {self.table}.{self.column}"


@declaration
class Field:
    """One column that a stop promises.

    ``type``         see :mod:`bus_assets.types`; text that does not read as it is rejected, never guessed or rounded.
    ``required``     no null. ``unique``: no value twice in a trip; the first in source order is kept, later ones are rejected.
    ``allowed``      the only values there may be. ``minimum``/``maximum``: inclusive. Written as text for decimals and dates.
    ``pattern``      RE2; must match somewhere: anchor with ``^…$`` for the whole value.
    ``min_length``/``max_length``  characters of a string, bytes of a binary, items of a list.
    ``references``   'stop.field' of a stop before this one, or a :class:`TableKey`. Null passes; add ``required`` to forbid it. What a
                     message brings is referred to within that message.
    ``format``       how text is read as a date, time or timestamp: strptime, e.g. ``%d.%m.%Y``. Default: ISO 8601.
    ``zone``         IANA zone of timestamps that come without one ('America/New_York'); only for ``timestamptz``.
    ``json``         of a string: a list or an object out of JSON is taken too, as its JSON text. Without it such a row is rejected.
    ``sensitive``    never shown in previews, logs, errors or metadata. What a Transform makes of a sensitive field must say whether it
                     is sensitive as well: True, or False if nothing of the value can be told from it. None: not said, so it is not.
    """

    name: str
    type: str = "string"
    required: bool = False
    unique: bool = False
    allowed: tuple[Any, ...] | None = None
    minimum: Any = None
    maximum: Any = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    references: str | TableKey | None = None
    format: str | None = None
    zone: str | None = None
    json: bool = False
    sensitive: bool | None = None
    description: str = ""

    def __post_init__(self) -> None:
        me = f"field {self.name!r}"
        if not FIELD_NAME.fullmatch(self.name):
            raise Misdeclared(f"{me}: a name has letters, digits and underscores, starts with a letter, and has at most 63 characters")
        with about(me):
            kind = self.parsed_type
        if self.pattern is not None:
            if kind.kind != "string":
                raise Misdeclared(f"{me}: pattern needs type string, not {kind}; check it in a transform, or read it as string")
            self._check_pattern(me, self.pattern)
        if (self.min_length is not None or self.max_length is not None) and kind.kind not in ("string", "binary", "list"):
            raise Misdeclared(f"{me}: min_length and max_length need a string, binary or list, not {kind}")
        if (self.minimum is not None or self.maximum is not None) and not kind.is_ordered:
            raise Misdeclared(f"{me}: minimum and maximum need an ordered type, not {kind}")
        if not kind.is_scalar and (self.unique or self.allowed is not None or self.references is not None):
            raise Misdeclared(f"{me}: unique, allowed and references need a scalar type, not {kind}")
        for text in ("minimum", "maximum"):
            if (value := getattr(self, text)) is not None:
                object.__setattr__(self, text, self._value(me, text, value))
        if self.allowed is not None:
            if not self.allowed:
                raise Misdeclared(f"{me}: allowed is empty, so no value could ever pass; leave it out or list the values")
            object.__setattr__(self, "allowed", tuple(self._value(me, "allowed", value) for value in self.allowed))
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise Misdeclared(f"{me}: minimum {self.minimum} exceeds maximum {self.maximum}")
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise Misdeclared(f"{me}: min_length {self.min_length} exceeds max_length {self.max_length}")
        if self.zone is not None:
            if kind.kind != "timestamptz":
                raise Misdeclared(f"{me}: zone is for type timestamptz, not {kind}")
            if self.zone not in available_timezones():
                raise Misdeclared(f"{me}: zone {self.zone!r} is not an IANA time zone such as 'Europe/Berlin'")
        if self.format is not None and kind.kind != "time" and not re.search(r"%[YyGcxDF]", self.format):
            raise Misdeclared(f"{me}: format {self.format!r} has no year, so every date would be in 1900; add %Y or %y")
        if self.format is not None and kind.kind not in ("date", "time", "timestamp", "timestamptz"):
            raise Misdeclared(f"{me}: format is for dates, times and timestamps, not {kind}")
        if self.json and kind.kind != "string":
            raise Misdeclared(f"{me}: json is for type string, not {kind}, which says itself what may be in it")
        if isinstance(self.references, str) and len(self.references.split(".")) != 2:
            raise Misdeclared(f"{me}: references {self.references!r} is not of the form 'stop.field'; for a table use TableKey(…)")

    @cached_property
    def parsed_type(self) -> Type:
        return parse_type(self.type)

    @staticmethod
    def _check_pattern(me: str, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise Misdeclared(f"{me}: pattern {pattern!r} is not a regular expression: {error}") from None
        if re.search(r"\(\?(=|!|<=|<!)|\\[1-9]", pattern):
            raise Misdeclared(f"{me}: pattern {pattern!r} uses look-around or a back-reference, which RE2 does not have")

    def _value(self, me: str, what: str, value: Any) -> Any:
        """``value`` as the Python value of the field's type, so that rules compare like with like."""
        kind = self.parsed_type.kind
        try:
            return _PYTHON[kind](value) if not isinstance(value, bool) or kind == "boolean" else _refuse(value)
        except (ValueError, TypeError, InvalidOperation):
            raise Misdeclared(f"{me}: {what} value {value!r} does not read as {self.type}") from None


def _refuse(value: Any) -> Any:
    raise ValueError(value)


def _integer(value: Any) -> int:
    return int(value) if isinstance(value, (int, str)) or value == int(value) else _refuse(value)


def _instant(value: Any) -> datetime:
    moment: datetime = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment.astimezone(UTC) if moment.tzinfo else _refuse(value)


def _wall_clock(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return _refuse(value) if moment.tzinfo else moment


_PYTHON: dict[str, Any] = {
    "string": lambda v: v if isinstance(v, str) else _refuse(v),
    "integer": _integer,
    "number": lambda v: _refuse(v) if math.isnan(float(v)) else float(v),
    "boolean": lambda v: v if isinstance(v, bool) else _refuse(v),
    "decimal": lambda v: Decimal(str(v)),
    "date": lambda v: date.fromisoformat(v) if isinstance(v, str) else v if type(v) is date else _refuse(v),
    "time": lambda v: v if isinstance(v, time) else time.fromisoformat(v),
    "timestamp": _wall_clock,
    "timestamptz": _instant,
    "binary": lambda v: v if isinstance(v, bytes) else _refuse(v),
}


@dataclass(frozen=True)
class Rule:
    """One thing a contract asks, as it is named in checks, reasons and figures: ``order_id: unique``."""

    kind: str
    fields: tuple[str, ...]
    detail: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.fields)}: {self.kind}{f' {self.detail}' if self.detail else ''}"


@declaration
class Contract:
    """The fields a stop promises, and how many rows may break that promise before the stop fails.

    ``unique``        keys of several fields: ``unique=(("order_id", "line"),)``. A key with a null in it is not compared.
    ``max_rejected``  a share of the rows picked up (0.05) or a count (20; ``0``: none). Rows within it wait in quarantine and the
                      check is yellow; over it the stop fails, the trip is not published. Default 0.1.
    ``min_rows``      fewer kept rows than this fail the stop: an empty file that should never be empty. Not for rows of messages: how many
                      share a trip is chance.
    """

    fields: tuple[Field, ...]
    unique: tuple[tuple[str, ...], ...] = ()
    max_rejected: int | float = DEFAULT_MAX_REJECTED
    min_rows: int = 0

    def __post_init__(self) -> None:
        if not self.fields:
            raise Misdeclared("Contract: at least one field is needed")
        seen: dict[str, str] = {}
        for field in self.fields:
            if (other := seen.get(field.name.lower())) is not None:
                raise Misdeclared(f"Contract: field {field.name!r} appears twice (as {other!r}); names are compared without case")
            seen[field.name.lower()] = field.name
        for key in self.unique:
            for name in key:
                if name not in self.names:
                    raise Misdeclared(
                        f"Contract: unique key {key} names {name!r}, which is not a field; fields are {', '.join(self.names)}"
                    )
                if not self[name].parsed_type.is_scalar:
                    raise Misdeclared(f"Contract: unique key {key}: field {name!r} is a {self[name].type}, a key needs scalars")
        if isinstance(self.max_rejected, bool) or self.max_rejected < 0:
            raise Misdeclared(f"Contract: max_rejected {self.max_rejected!r} is neither a share (0.05) nor a count (20)")
        if isinstance(self.max_rejected, float) and self.max_rejected > 1:
            raise Misdeclared(f"Contract: max_rejected {self.max_rejected!r}: a share is at most 1.0; for a count write a whole number")
        if self.min_rows < 0:
            raise Misdeclared(f"Contract: min_rows {self.min_rows} is below zero")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    def __getitem__(self, name: str) -> Field:
        return next(field for field in self.fields if field.name == name)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def sensitive(self) -> frozenset[str]:
        return frozenset(field.name for field in self.fields if field.sensitive)

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """Every unique key, single fields first."""
        return tuple((field.name,) for field in self.fields if field.unique) + self.unique

    def rules(self) -> Iterator[Rule]:
        """Every rule, in the order in which the checks list them."""
        for field in self.fields:
            name = (field.name,)
            yield Rule("type", name, field.type)
            if field.required:
                yield Rule("required", name)
            if field.allowed is not None:
                yield Rule("allowed", name)
            if field.minimum is not None:
                yield Rule("minimum", name, str(field.minimum))
            if field.maximum is not None:
                yield Rule("maximum", name, str(field.maximum))
            if field.pattern is not None:
                yield Rule("pattern", name, field.pattern)
            if field.min_length is not None:
                yield Rule("min_length", name, str(field.min_length))
            if field.max_length is not None:
                yield Rule("max_length", name, str(field.max_length))
            if field.references is not None:
                yield Rule("references", name, str(field.references))
        for key in self.keys:
            yield Rule("unique", key)

    def allows(self, rejected: int, picked_up: int) -> bool:
        """Whether so many rejected rows of so many picked up are within ``max_rejected``."""
        if isinstance(self.max_rejected, int):
            return rejected <= self.max_rejected
        return rejected <= self.max_rejected * picked_up
