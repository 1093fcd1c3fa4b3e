"""Text read as values, strictly: nothing is guessed, trimmed or rounded.

| type          | text that reads as it                                                                             |
|---------------|---------------------------------------------------------------------------------------------------|
| string        | any without a NUL character                                                                       |
| integer       | sign and digits, within 64 bits                                                                   |
| number        | digits, point, exponent; finite                                                                   |
| decimal(P,S)  | sign, digits, point; no exponent; past S digits after the point only zeros                        |
| boolean       | true, false, t, f, yes, no, 1, 0 in any case                                                      |
| date          | ``YYYY-MM-DD``, a day of the calendar, years 1 to 9999                                            |
| time          | ``HH:MM``, with seconds and up to six digits of a fraction if wanted, and zeros behind those      |
| timestamp     | date, 'T' or a blank, time; no offset                                                             |
| timestamptz   | the same with ``Z``, ``±HH``, ``±HHMM`` or ``±HH:MM``; without one only where the field names a zone |
| binary        | the text's UTF-8 bytes                                                                            |

With a ``format`` a date or time reads as by Python's ``strptime``, except that directives that touch (``%Y%m%d``) must each have
their full width: '2013111' could be two days. A whole column is cast at once; only a column in which something does not read is
looked at more closely.
"""

# Arrow makes its compute functions when it is imported, unseen by a type checker.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bus_assets.types import MAX_DECIMAL_DIGITS, Type
from resources.texts import shortened

MAX_SHOWN_CHARACTERS = 80
"""Longer values are cut in messages: a reason is read by a person."""

_TRUE, _FALSE = ("true", "t", "yes", "1"), ("false", "f", "no", "0")


@dataclass(frozen=True)
class Target:
    """What a column is to become, and how a value of it may be shown (``show`` hides sensitive ones)."""

    type: Type
    format: str | None = None
    zone: str | None = None
    show: Callable[[Any], str] = repr

    def fault(self, value: Any, why: str) -> str:
        return f"{self.show(value)} {why}"


@dataclass(frozen=True)
class Cast:
    """A column in its new type. ``faults`` says of each row that could not be cast why; there, ``values`` is null."""

    values: pa.Array
    faults: dict[int, str]


def shown(value: Any) -> str:
    """``value`` as a message shows it: text in quotes with control characters escaped, long values cut."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, (str, bytes)):
        text = repr(value[: MAX_SHOWN_CHARACTERS + 1])
    else:
        text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return shortened(text, MAX_SHOWN_CHARACTERS)


def hidden(_value: Any) -> str:
    """A sensitive value as a message shows it."""
    return "the value"


def read_text(texts: pa.StringArray, target: Target) -> Cast:
    """``texts`` as a string, number, boolean or binary; dates and times are read by :mod:`bus_assets.moments`."""
    if target.type.kind == "binary":
        return Cast(texts.cast(pa.binary()), {})
    return read(texts, _READERS[target.type.kind], target)


def faults_of(source: pa.Array, values: pa.Array, target: Target, explain: Callable[[Any], str]) -> dict[int, str]:
    """Why each value of ``source`` that is null in ``values`` was refused."""
    if source.null_count == values.null_count:  # a null stays one
        return {}
    refused = np.flatnonzero(pc.and_(source.is_valid(), values.is_null()))
    if not refused.size:
        return {}
    return {
        int(row): target.fault(value, explain(value)) for row, value in zip(refused, as_python(source.take(pa.array(refused))), strict=True)
    }


def as_python(values: pa.Array) -> list[Any]:
    """The values; times as text, and every moment in one that is outside of what Python's dates and times can say, nested ones too."""
    try:
        # Python's times begin anew at midnight, and end at microseconds: 24:00:00 would be 00:00:00.
        exact = values.cast(_instead(values.type, pa.types.is_time, pa.time64("us")))
        return exact.cast(_instead(exact.type, pa.types.is_time, pa.string())).to_pylist()
    except (OverflowError, ValueError):
        if len(values) > 1:
            return [value for row in range(len(values)) for value in as_python(values.slice(row, 1))]
        return values.cast(_instead(values.type, pa.types.is_temporal, pa.string())).to_pylist()


def _instead(kind: pa.DataType, is_meant: Callable[[pa.DataType], bool], into: pa.DataType) -> pa.DataType:
    """``kind`` with ``into`` in every place of what ``is_meant``."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_instead(kind.value_type, is_meant, into))
    if pa.types.is_struct(kind):
        return pa.struct([member.with_type(_instead(member.type, is_meant, into)) for member in kind])
    return into if is_meant(kind.value_type if pa.types.is_dictionary(kind) else kind) else kind


def by_halves(source: pa.Array, convert: Callable[[pa.Array], pa.Array], into: pa.DataType) -> pa.Array:
    """``convert`` of every value that it takes, null for those on which it raises ``ArrowInvalid``. Each distinct value is tried once."""
    try:
        return convert(source)
    except pa.ArrowInvalid:
        pass  # one of the values, and only trying finds which
    encoded = source.dictionary_encode()
    pieces: list[pa.Array] = [pa.nulls(0, into)]
    waiting = [encoded.dictionary]
    while waiting:
        part = waiting.pop()
        try:
            pieces.append(convert(part))
        except pa.ArrowInvalid:
            half = len(part) // 2
            if half:
                waiting += [part[half:], part[:half]]
            else:
                pieces.append(pa.nulls(1, into))
    return pa.concat_arrays(pieces).take(encoded.indices)


@dataclass(frozen=True)
class Reader:
    """How text becomes one type. ``convert`` is Arrow's cast, laxer than the table above; a column that is ``trusted`` holds
    nothing on which the two differ, in others only text that matches ``syntax`` is cast, after ``tidy``."""

    convert: Callable[[pa.StringArray, Type], pa.Array]
    syntax: Callable[[Type], str]
    explain: Callable[[str, Type], str]
    trusted: Callable[[pa.StringArray, Type], bool] = lambda texts, kind: True
    tidy: Callable[[pa.StringArray, Type], pa.StringArray] = lambda texts, kind: texts


def read(texts: pa.StringArray, reader: Reader, target: Target) -> Cast:
    if reader.trusted(texts, target.type):
        try:
            return Cast(reader.convert(texts, target.type), {})
        except pa.ArrowInvalid:
            pass  # something in this column does not read: find it below
    plausible = reader.tidy(matching(texts, reader.syntax(target.type)), target.type)
    values = by_halves(plausible, lambda part: reader.convert(part, target.type), target.type.arrow())
    return Cast(values, faults_of(texts, values, target, lambda text: reader.explain(text, target.type)))


def matching(texts: pa.StringArray, syntax: str) -> pa.StringArray:
    return pc.if_else(pc.match_substring_regex(texts, syntax), texts, pa.scalar(None, pa.string()))


def bytes_of(texts: pa.StringArray) -> np.ndarray:
    offsets, data = texts.buffers()[1:]
    if not len(texts) or data is None or not data.size:
        return np.empty(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]


def _no_letters(texts: pa.StringArray, _kind: Type) -> bool:
    data = bytes_of(texts)
    return not data.size or data.max() <= ord("9")


def _has_room(texts: pa.StringArray, kind: Type) -> bool:
    """Whether Arrow reads every text as ``kind`` or refuses it: of more digits than 38, its scale's included, it makes another number."""
    return _no_letters(texts, kind) and (pc.max(pc.binary_length(texts)).as_py() or 0) + kind.scale <= MAX_DECIMAL_DIGITS


def _finite(texts: pa.StringArray, _kind: Type) -> pa.Array:
    values = texts.cast(pa.float64())
    if pc.all(pc.is_finite(values)).as_py() is False:
        raise pa.ArrowInvalid("not finite")
    return values


def _booleans(texts: pa.StringArray, _kind: Type) -> pa.Array:
    words = pc.ascii_lower(texts)
    if pc.all(pc.is_in(words, value_set=pa.array([*_TRUE, *_FALSE, None]))).as_py() is False:
        raise pa.ArrowInvalid("not a boolean")
    return pc.if_else(texts.is_valid(), pc.is_in(words, value_set=pa.array(_TRUE)), pa.scalar(None, pa.bool_()))


def _without_nul(texts: pa.StringArray, _kind: Type) -> pa.Array:
    data = bytes_of(texts)
    if data.size and not data.min():
        raise pa.ArrowInvalid("NUL")
    return texts


def _decimal_syntax(kind: Type) -> str:
    before, after = kind.precision - kind.scale, kind.scale
    return (
        rf"^[+-]?0*(?:\d{{1,{before}}}(?:\.\d{{0,{after}}}0*)?|0?\.\d{{0,{after}}}0*)$" if before else rf"^[+-]?0*(?:\.\d{{0,{after}}}0*)?$"
    )


def _decimals(texts: pa.StringArray, kind: Type) -> pa.Array:
    return texts.cast(kind.arrow())


def _short_decimals(texts: pa.StringArray, kind: Type) -> pa.StringArray:
    return pc.replace_substring_regex(texts, rf"^([^.]*\.\d{{0,{kind.scale}}})0*$", r"\1")


def _explain_integer(text: str, _kind: Type) -> str:
    return "does not fit in 64 bits" if re.fullmatch(r"[+-]?[0-9]+", text) else "is not an integer"


def _explain_number(text: str, _kind: Type) -> str:
    if re.fullmatch(r"[+-]?(inf|infinity|nan)", text, re.IGNORECASE):
        return "is not a finite number"
    return "is too large for a double" if re.fullmatch(_NUMBER, text) else "is not a number"


def _explain_decimal(text: str, kind: Type) -> str:
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", text):
        after = text.partition(".")[2].rstrip("0")
        before = kind.precision - kind.scale
        if len(after) > kind.scale:
            return f"has more than {kind.scale} digits after the point"
        return f"has more than {before} digits before the point"
    return "has an exponent, a decimal has none" if re.fullmatch(_NUMBER, text) else "is not a decimal number"


_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"

_READERS = {
    "string": Reader(
        _without_nul,
        lambda kind: r"^[^\x00]*$",
        lambda text, kind: "contains a NUL character, which SQL databases refuse",
    ),
    "integer": Reader(
        lambda texts, kind: texts.cast(pa.int64()),
        lambda kind: r"^[+-]?[0-9]+$",
        _explain_integer,
        trusted=_no_letters,
        tidy=lambda texts, kind: pc.replace_substring_regex(texts, r"^\+", ""),
    ),
    "number": Reader(_finite, lambda kind: f"^{_NUMBER}$", _explain_number),
    "decimal": Reader(_decimals, _decimal_syntax, _explain_decimal, trusted=_has_room, tidy=_short_decimals),
    "boolean": Reader(
        _booleans,
        lambda kind: f"(?i)^(?:{'|'.join((*_TRUE, *_FALSE))})$",
        lambda text, kind: "is not a boolean (true, false, yes, no, t, f, 1, 0)",
    ),
}


def plain_decimals(texts: pa.StringArray) -> pa.StringArray:
    """Numbers as text without an exponent, digit for digit: ``1E-10`` is ``0.0000000001``."""
    raised = pc.match_substring_regex(texts, "[0-9][eE][+-]?[0-9]")
    if not pc.any(raised).as_py():
        return texts
    written = [None if text is None else format(Decimal(text), "f") for text in matching(texts, "[0-9][eE]").to_pylist()]
    return pc.if_else(raised, pa.array(written, pa.string()), texts)
