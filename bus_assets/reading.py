"""Text read as values, strictly: nothing is guessed, trimmed or rounded.

| type          | text that reads as it                                                                             |
|---------------|---------------------------------------------------------------------------------------------------|
| string        | any without a NUL character                                                                       |
| integer       | sign and digits, within 64 bits                                                                   |
| number        | digits, point, exponent; finite                                                                   |
| decimal(P,S)  | sign, digits, point; no exponent; past S digits after the point only zeros                        |
| boolean       | true, false, t, f, yes, no, 1, 0 in any case                                                      |
| date          | ``YYYY-MM-DD``, a day of the calendar, years 1 to 9999                                            |
| time          | ``HH:MM``, with seconds and up to six digits of a fraction if wanted                              |
| timestamp     | date, 'T' or a blank, time; no offset                                                             |
| timestamptz   | the same with ``Z``, ``±HH``, ``±HHMM`` or ``±HH:MM``; without one only where the field names a zone |
| binary        | the text's UTF-8 bytes                                                                            |

With a ``format`` a date or time reads as by Python's ``strptime``, except that directives that touch (``%Y%m%d``) must each have
their full width: '2013111' could be two days. A whole column is cast at once; only a column in which something does not read is
looked at more closely.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bus_assets.types import Type

MAX_SHOWN_CHARACTERS = 80
"""Longer values are cut in messages: a reason is read by a person."""

NAIVE = pa.timestamp("us")
INSTANT = pa.timestamp("us", "UTC")
_DAY = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?"
_OFFSET = r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_WALL_CLOCK = f"^{_DAY}[T ]{_CLOCK}$"
_WITH_OFFSET = f"^{_DAY}[T ]{_CLOCK}{_OFFSET}$"
_TRUE, _FALSE = ("true", "t", "yes", "1"), ("false", "f", "no", "0")
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31 in days since 1970: what Python, Postgres and ISO 8601 can all write."""
_DAY_MICROSECONDS = 86_400_000_000


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
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"


def hidden(_value: Any) -> str:
    """A sensitive value as a message shows it."""
    return "the value"


def read_text(texts: pa.StringArray, target: Target) -> Cast:
    """``texts`` as the scalar type of ``target``."""
    kind = target.type.kind
    if kind == "binary":
        return Cast(texts.cast(pa.binary()), {})
    if target.format is not None:
        return _read_formatted(texts, target)
    if kind == "timestamptz":
        return _read_instants(texts, target)
    return _read(texts, _READERS[kind], target)


def faults_of(source: pa.Array, values: pa.Array, target: Target, explain: Callable[[Any], str]) -> dict[int, str]:
    """Why each value of ``source`` that is null in ``values`` was refused."""
    refused = np.flatnonzero(pc.and_(source.is_valid(), values.is_null()))
    if not refused.size:
        return {}
    return {
        int(row): target.fault(value, explain(value))
        for row, value in zip(refused, source.take(pa.array(refused)).to_pylist(), strict=True)
    }


def by_halves(source: pa.Array, convert: Callable[[pa.Array], pa.Array], into: pa.DataType) -> pa.Array:
    """``convert`` of every value that it takes, null for those on which it raises ``ArrowInvalid``."""
    pieces: list[pa.Array] = []
    waiting = [source]
    while waiting:
        part = waiting.pop()
        try:
            pieces.append(convert(part))
        except pa.ArrowInvalid:
            if len(part) == 1:
                pieces.append(pa.nulls(1, into))
            else:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
    return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)


@dataclass(frozen=True)
class _Reader:
    """How text becomes one type. ``convert`` is Arrow's cast, laxer than the table above; a column that is ``trusted`` holds
    nothing on which the two differ, in others only text that matches ``syntax`` is cast, after ``tidy``."""

    convert: Callable[[pa.StringArray, Type], pa.Array]
    syntax: Callable[[Type], str]
    explain: Callable[[str, Type], str]
    trusted: Callable[[pa.StringArray], bool] = lambda texts: True
    tidy: Callable[[pa.StringArray, Type], pa.StringArray] = lambda texts, kind: texts


def _read(texts: pa.StringArray, reader: _Reader, target: Target) -> Cast:
    if reader.trusted(texts):
        try:
            return Cast(reader.convert(texts, target.type), {})
        except pa.ArrowInvalid:
            pass  # something in this column does not read: find it below
    plausible = reader.tidy(_matching(texts, reader.syntax(target.type)), target.type)
    values = by_halves(plausible, lambda part: reader.convert(part, target.type), target.type.arrow())
    return Cast(values, faults_of(texts, values, target, lambda text: reader.explain(text, target.type)))


def _matching(texts: pa.StringArray, syntax: str) -> pa.StringArray:
    return pc.if_else(pc.match_substring_regex(texts, syntax), texts, pa.scalar(None, pa.string()))


def _bytes(texts: pa.StringArray) -> np.ndarray:
    offsets, data = texts.buffers()[1:]
    if not len(texts) or data is None or not data.size:
        return np.empty(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]


def _no_letters(texts: pa.StringArray) -> bool:
    data = _bytes(texts)
    return not data.size or data.max() <= ord("9")


def _minutes_given(texts: pa.StringArray) -> bool:
    """Whether every text has the colon after the hour; Arrow reads '2013-01-01' and '2013-01-01T10' as timestamps too."""
    there = texts.drop_null()
    if not len(there):
        return True
    if pc.min(pc.binary_length(there)).as_py() < len("2013-01-01T10:11"):
        return False
    starts = np.frombuffer(there.buffers()[1], np.int32)[there.offset : there.offset + len(there)]
    data = np.frombuffer(there.buffers()[2], np.uint8)
    return bool((data[starts + len("2013-01-01T10")] == ord(":")).all())


def within_calendar(values: pa.Array) -> pa.Array:
    """``values``, dates or timestamps in microseconds; raises ``ArrowInvalid`` unless all lie in the years 1 to 9999."""
    is_date = pa.types.is_date32(values.type)
    span = pc.min_max(values.view(pa.int32() if is_date else pa.int64())).as_py()
    unit = 1 if is_date else _DAY_MICROSECONDS
    if span["min"] is not None and (span["min"] < _FIRST_DAY * unit or span["max"] >= (_LAST_DAY + 1) * unit):
        raise pa.ArrowInvalid("outside the years 1 to 9999")
    return values


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
    data = _bytes(texts)
    if data.size and not data.min():
        raise pa.ArrowInvalid("NUL")
    return texts


def _times(texts: pa.StringArray, _kind: Type) -> pa.Array:
    return pc.binary_join_element_wise("1970-01-01T", texts, "").cast(NAIVE).view(pa.int64()).view(pa.time64("us"))


def _decimal_syntax(kind: Type) -> str:
    before, after = kind.precision - kind.scale, kind.scale
    return rf"^[+-]?0*(?:\d{{1,{before}}}(?:\.\d{{0,{after}}}0*)?|0?\.\d{{0,{after}}}0*)$" if before else rf"^[+-]?0*\.?\d{{0,{after}}}0*$"


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


def _explain_date(text: str, _kind: Type) -> str:
    return "is not a day of the calendar" if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else "is not a date, YYYY-MM-DD"


def _explain_timestamp(text: str, _kind: Type) -> str:
    if re.fullmatch(_WITH_OFFSET[1:-1], text, re.ASCII):
        return "has an offset from UTC, a timestamp has none (a timestamptz has)"
    return "is not a timestamp, YYYY-MM-DD HH:MM:SS"


_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"

_READERS = {
    "string": _Reader(
        _without_nul,
        lambda kind: r"^[^\x00]*$",
        lambda text, kind: "contains a NUL character, which SQL databases refuse",
    ),
    "integer": _Reader(
        lambda texts, kind: texts.cast(pa.int64()),
        lambda kind: r"^[+-]?[0-9]+$",
        _explain_integer,
        trusted=_no_letters,
        tidy=lambda texts, kind: pc.replace_substring_regex(texts, r"^\+", ""),
    ),
    "number": _Reader(_finite, lambda kind: f"^{_NUMBER}$", _explain_number),
    "decimal": _Reader(_decimals, _decimal_syntax, _explain_decimal, trusted=_no_letters, tidy=_short_decimals),
    "boolean": _Reader(
        _booleans,
        lambda kind: f"(?i)^(?:{'|'.join((*_TRUE, *_FALSE))})$",
        lambda text, kind: "is not a boolean (true, false, yes, no, t, f, 1, 0)",
    ),
    "date": _Reader(lambda texts, kind: within_calendar(texts.cast(pa.date32())), lambda kind: f"^{_DAY}$", _explain_date),
    "time": _Reader(
        _times,
        lambda kind: f"^{_CLOCK}$",
        lambda text, kind: "is not a time of day, HH:MM:SS",
        trusted=lambda texts: False,
    ),
    "timestamp": _Reader(
        lambda texts, kind: within_calendar(texts.cast(NAIVE)), lambda kind: _WALL_CLOCK, _explain_timestamp, trusted=_minutes_given
    ),
}


def _as_naive(texts: pa.StringArray) -> pa.Array:
    return within_calendar(texts.cast(NAIVE))


def _as_instant(texts: pa.StringArray) -> pa.Array:
    return within_calendar(texts.cast(INSTANT))


def _read_instants(texts: pa.StringArray, target: Target) -> Cast:
    if _minutes_given(texts):
        try:
            return Cast(localised(_as_naive(texts), target.zone) if target.zone else _as_instant(texts), {})
        except pa.ArrowInvalid:
            pass  # mixed, or something does not read: find it below
    values = by_halves(_matching(texts, _WITH_OFFSET), _as_instant, INSTANT)
    if target.zone is not None:
        naive = by_halves(_matching(texts, _WALL_CLOCK), _as_naive, NAIVE)
        values = pc.coalesce(values, localised_or_null(naive, target.zone))
    return Cast(values, faults_of(texts, values, target, lambda text: _explain_instant(text, target.zone)))


def _explain_instant(text: str, zone: str | None) -> str:
    if re.fullmatch(_WALL_CLOCK[1:-1], text, re.ASCII):
        if zone is None:
            return "has no offset from UTC, and the field names no zone"
        try:
            return explain_zone(datetime.fromisoformat(text), zone)
        except ValueError:
            pass  # impossible date
    return "is not a timestamp with an offset, YYYY-MM-DDTHH:MM:SS+HH:MM"


def localised(naive: pa.Array, zone: str) -> pa.Array:
    """Wall clock times of ``zone`` as instants; raises ``ArrowInvalid`` where one does not exist there or exists twice."""
    return within_calendar(pc.assume_timezone(naive, zone).cast(INSTANT))


def localised_or_null(naive: pa.Array, zone: str) -> pa.Array:
    """The same, null where it would raise."""
    early = pc.assume_timezone(naive, zone, ambiguous="earliest", nonexistent="earliest")
    late = pc.assume_timezone(naive, zone, ambiguous="latest", nonexistent="latest")
    clear = pc.if_else(pc.equal(early, late), early, pa.scalar(None, early.type)).cast(INSTANT)
    return by_halves(clear, within_calendar, INSTANT)


def explain_zone(moment: datetime, zone: str) -> str:
    """Why the wall clock time ``moment`` is no instant in ``zone``."""
    first, second = (moment.replace(tzinfo=ZoneInfo(zone), fold=fold).utcoffset() for fold in (0, 1))
    if first is None or second is None or first == second:
        return "is outside the years 1 to 9999"
    return f"does not exist in {zone} (clocks went forward)" if first < second else f"is ambiguous in {zone} (clocks went back)"


def exact_dates(moments: pa.Array) -> pa.Array:
    """Naive timestamps at midnight as dates, null for any other time of day."""
    dates = moments.cast(pa.date32(), safe=False)
    return pc.if_else(pc.equal(dates.cast(moments.type), moments), dates, pa.scalar(None, pa.date32()))


_WIDTHS = {"Y": r"\d{4}", "m": r"\d{2}", "d": r"\d{2}", "H": r"\d{2}", "M": r"\d{2}", "S": r"\d{2}", "f": r"\d{1,6}"}
_DIRECTIVE = re.compile(r"%(.)")
_TOUCHING = re.compile(r"%[A-Za-z]%[A-Za-z]")


def _read_formatted(texts: pa.StringArray, target: Target) -> Cast:
    format = str(target.format)
    naive = pa.nulls(len(texts), NAIVE)
    if (layout := _layout(format)) is not None:
        syntax, iso = layout
        naive = by_halves(pc.replace_substring_regex(_matching(texts, syntax), syntax, iso), _as_naive, NAIVE)
    rest = pc.if_else(naive.is_null(), texts, pa.scalar(None, pa.string()))
    aware = pa.nulls(len(texts), INSTANT)
    if rest.null_count < len(rest):
        otherwise, aware = _strptime(rest, format)
        naive = pc.coalesce(naive, otherwise)
    values = _finished(naive, aware, target)
    return Cast(values, faults_of(texts, values, target, lambda text: _explain_formatted(text, format, target)))


def _layout(format: str) -> tuple[str, str] | None:
    """The pattern of text in a ``format`` of digits of full width, and its rewriting as ISO 8601; None for other formats."""
    parts, groups, end = [], {}, 0
    for match in _DIRECTIVE.finditer(format):
        parts.append(re.escape(format[end : match.start()]))
        letter, end = match.group(1), match.end()
        if letter == "%":
            parts.append("%")
        elif letter in _WIDTHS and letter not in groups:
            groups[letter] = f"\\{len(groups) + 1}"
            parts.append(f"({_WIDTHS[letter]})")
        else:
            return None
    parts.append(re.escape(format[end:]))
    day = f"{groups.get('Y', '1900')}-{groups.get('m', '01')}-{groups.get('d', '01')}"
    clock = f"{groups.get('H', '00')}:{groups.get('M', '00')}:{groups.get('S', '00')}.{groups.get('f', '0')}"
    return f"^{''.join(parts)}$", f"{day}T{clock}"


def _strptime(texts: pa.StringArray, format: str) -> tuple[pa.Array, pa.Array]:
    """(wall clock times, instants) by Python's strptime, once per distinct text; null where it does not read."""
    distinct = texts.drop_null().unique()
    moments = [_moment(text, format) for text in distinct.to_pylist()]
    naive = pa.array([moment if moment and moment.tzinfo is None else None for moment in moments], NAIVE)
    aware = pa.array([moment if moment and moment.tzinfo is not None else None for moment in moments], INSTANT)
    where = pc.index_in(texts, distinct)
    return naive.take(where), aware.take(where)


def _moment(text: str, format: str) -> datetime | None:
    if any(character.isdigit() and not character.isascii() for character in text):
        return None  # strptime takes the digits of every script
    try:
        moment = datetime.strptime(text, format)
        if _TOUCHING.search(format) and moment.strftime(format) != text:
            return None
        return moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return None


def _finished(naive: pa.Array, aware: pa.Array, target: Target) -> pa.Array:
    kind = target.type.kind
    if kind == "date":
        return exact_dates(naive)
    if kind == "time":
        ticks = pc.subtract(naive.view(pa.int64()), pc.floor_temporal(naive, unit="day").view(pa.int64()))
        return ticks.view(pa.time64("us"))
    if kind == "timestamp":
        return naive
    return aware if target.zone is None else pc.coalesce(aware, localised_or_null(naive, target.zone))


def _explain_formatted(text: str, format: str, target: Target) -> str:
    kind = target.type.kind
    moment = _moment(text, format)
    if moment is None:
        return f"is not a {kind} of the format {format}"
    if kind == "timestamptz":
        return explain_zone(moment, target.zone) if target.zone else "has no offset from UTC, and the field names no zone"
    return "has a time of day, a date has none" if kind == "date" else "has an offset from UTC, a timestamp has none"


def plain_decimals(texts: pa.StringArray) -> pa.StringArray:
    """Numbers as text without an exponent, digit for digit: ``1E-10`` is ``0.0000000001``."""
    raised = pc.match_substring_regex(texts, "[0-9][eE][+-]?[0-9]")
    if not pc.any(raised).as_py():
        return texts
    written = [None if text is None else format(Decimal(text), "f") for text in _matching(texts, "[0-9][eE]").to_pylist()]
    return pc.if_else(raised, pa.array(written, pa.string()), texts)
