"""Dates, times and instants out of text, by ISO 8601 or the format of a field, and wall clock times in a zone."""

# Arrow makes its compute functions when it is imported, unseen by a type checker.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bus_assets.reading import Cast, Reader, Target, by_halves, faults_of, matching, read
from bus_assets.types import Type

NAIVE = pa.timestamp("us")
INSTANT = pa.timestamp("us", "UTC")
_DAY = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6}0*)?)?"
_OFFSET = r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_WALL_CLOCK = f"^{_DAY}[T ]{_CLOCK}$"
_WITH_OFFSET = f"^{_DAY}[T ]{_CLOCK}{_OFFSET}$"
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31 in days since 1970: what Python, Postgres and ISO 8601 can all write."""
_DAY_MICROSECONDS = 86_400_000_000


def read_moment(texts: pa.StringArray, target: Target) -> Cast:
    """``texts`` as the date, time, timestamp or timestamptz of ``target``."""
    if target.format is not None:
        return _read_formatted(texts, target)
    if target.type.kind == "timestamptz":
        return _read_instants(texts, target)
    return read(texts, _READERS[target.type.kind], target)


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
    """``values``, dates, times or timestamps in microseconds; raises ``ArrowInvalid`` unless all lie in the years 1 to 9999, or a day."""
    is_date = pa.types.is_date32(values.type)
    first, end, unit = _FIRST_DAY, _LAST_DAY + 1, 1 if is_date else _DAY_MICROSECONDS
    if pa.types.is_time(values.type):
        first, end = 0, 1
    span = pc.min_max(values.view(pa.int32() if is_date else pa.int64())).as_py()
    if span["min"] is not None and (span["min"] < first * unit or span["max"] >= end * unit):
        raise pa.ArrowInvalid("outside a day" if pa.types.is_time(values.type) else "outside the years 1 to 9999")
    return values


def _times(texts: pa.StringArray, _kind: Type) -> pa.Array:
    return pc.binary_join_element_wise("1970-01-01T", texts, "").cast(NAIVE).view(pa.int64()).view(pa.time64("us"))


def _six_digits(texts: pa.StringArray) -> pa.StringArray:
    """Without the zeros behind the sixth digit of a second: .NET writes seven."""
    return pc.replace_substring_regex(texts, r"(\.\d{6})0+", r"\1")


def _explain_clock(text: str, otherwise: str) -> str:
    return "has more than six digits of a second" if re.search(r":\d\d\.\d{7}", text, re.ASCII) else otherwise


def _explain_date(text: str, _kind: Type) -> str:
    return "is not a day of the calendar" if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else "is not a date, YYYY-MM-DD"


def _explain_timestamp(text: str, _kind: Type) -> str:
    if re.fullmatch(_WITH_OFFSET[1:-1], text, re.ASCII):
        return "has an offset from UTC, a timestamp has none (a timestamptz has)"
    return _explain_clock(text, "is not a timestamp, YYYY-MM-DD HH:MM:SS")


_READERS = {
    "date": Reader(lambda texts, kind: within_calendar(texts.cast(pa.date32())), lambda kind: f"^{_DAY}$", _explain_date),
    "time": Reader(
        _times,
        lambda kind: f"^{_CLOCK}$",
        lambda text, kind: _explain_clock(text, "is not a time of day, HH:MM:SS"),
        trusted=lambda texts, kind: False,
        tidy=lambda texts, kind: _six_digits(texts),
    ),
    "timestamp": Reader(
        lambda texts, kind: within_calendar(texts.cast(NAIVE)),
        lambda kind: _WALL_CLOCK,
        _explain_timestamp,
        trusted=lambda texts, kind: _minutes_given(texts),
        tidy=lambda texts, kind: _six_digits(texts),
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
    values = by_halves(_six_digits(matching(texts, _WITH_OFFSET)), _as_instant, INSTANT)
    if target.zone is not None:
        naive = by_halves(_six_digits(matching(texts, _WALL_CLOCK)), _as_naive, NAIVE)
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
    return _explain_clock(text, "is not a timestamp with an offset, YYYY-MM-DDTHH:MM:SS+HH:MM")


def localised(naive: pa.Array, zone: str) -> pa.Array:
    """Wall clock times of ``zone`` as instants; raises ``ArrowInvalid`` where one does not exist there or exists twice."""
    return within_calendar(pc.assume_timezone(naive, zone).cast(INSTANT))


def localised_or_null(naive: pa.Array, zone: str) -> pa.Array:
    """The same, null where it would raise."""
    early = pc.assume_timezone(naive, zone, ambiguous="earliest", nonexistent="earliest")
    late = pc.assume_timezone(naive, zone, ambiguous="latest", nonexistent="latest")
    clear = pc.if_else(pc.equal(early, late), early, pa.scalar(None, early.type)).cast(INSTANT)
    return by_halves(clear, within_calendar, INSTANT)


def explain_zone(moment: Any, zone: str) -> str:
    """Why the wall clock time ``moment`` is no instant in ``zone``; text is a time that Python's datetime cannot hold."""
    if not isinstance(moment, datetime):
        return "is outside the years 1 to 9999"
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
        naive = by_halves(pc.replace_substring_regex(matching(texts, syntax), syntax, iso), _as_naive, NAIVE)
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
        moment = datetime.strptime(text, format)  # noqa: DTZ007 - the field's zone comes later
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
