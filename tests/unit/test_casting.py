"""What reads as which type, and what is refused with which words."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bus_assets.casting import cast_column
from bus_assets.reading import Target, as_python, hidden, shown
from bus_assets.types import parse_type


def cast(
    values: Any, kind: str, *, format: str | None = None, zone: str | None = None, show: Any = shown
) -> tuple[list[Any], dict[int, str]]:
    column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, pa.string())
    target = Target(parse_type(kind), format, zone, show)
    found = cast_column(column, target)
    assert found.values.type == target.type.arrow()
    assert len(found.values) == len(column)
    found.values.validate(full=True)
    return found.values.to_pylist(), found.faults


READS = [
    ("integer", "0", 0),
    ("integer", "-0", 0),
    ("integer", "+12", 12),
    ("integer", "007", 7),
    ("integer", "-9223372036854775808", -(2**63)),
    ("integer", "0000000000000000000000000012", 12),
    ("number", "1.5", 1.5),
    ("number", "+.5", 0.5),
    ("number", "5.", 5.0),
    ("number", "-1e5", -1e5),
    ("number", "1E-400", 0.0),
    ("decimal(12,2)", "1", Decimal("1.00")),
    ("decimal(12,2)", "-1.5", Decimal("-1.50")),
    ("decimal(12,2)", "+1.2300000", Decimal("1.23")),
    ("decimal(12,2)", "1." + "0" * 60, Decimal("1.00")),
    ("decimal(12,2)", "0000000000000001.20", Decimal("1.20")),
    ("decimal(12,2)", ".5", Decimal("0.50")),
    ("decimal(12,2)", "9999999999.99", Decimal("9999999999.99")),
    ("decimal(2,2)", "0.25", Decimal("0.25")),
    ("decimal(2,2)", ".25", Decimal("0.25")),
    ("decimal(3,0)", "999.0", Decimal(999)),
    ("decimal(38,0)", "9" * 38, Decimal("9" * 38)),
    ("boolean", "TRUE", True),
    ("boolean", "f", False),
    ("boolean", "Yes", True),
    ("boolean", "0", False),
    ("time", "10:00:00.1234560", time(10, 0, 0, 123456)),
    ("timestamp", "2026-01-01T00:00:00.1230000", datetime(2026, 1, 1, 0, 0, 0, 123000)),
    ("timestamptz", "2026-01-01T00:00:00.12300000Z", datetime(2026, 1, 1, 0, 0, 0, 123000, tzinfo=UTC)),
    ("timestamptz", "2026-01-01T02:00:00.0000000+02:00", datetime(2026, 1, 1, tzinfo=UTC)),
    ("date", "2013-02-28", date(2013, 2, 28)),
    ("date", "2012-02-29", date(2012, 2, 29)),
    ("date", "0001-01-01", date(1, 1, 1)),
    ("date", "9999-12-31", date(9999, 12, 31)),
    ("time", "09:05", time(9, 5)),
    ("time", "23:59:59", time(23, 59, 59)),
    ("time", "23:59:59.5", time(23, 59, 59, 500_000)),
    ("timestamp", "2013-01-01T10:11", datetime(2013, 1, 1, 10, 11)),
    ("timestamp", "2013-01-01 10:11:12.123456", datetime(2013, 1, 1, 10, 11, 12, 123456)),
    ("timestamptz", "2013-01-01T10:11:12Z", datetime(2013, 1, 1, 10, 11, 12, tzinfo=UTC)),
    ("timestamptz", "2013-01-01 10:11+02:30", datetime(2013, 1, 1, 7, 41, tzinfo=UTC)),
    ("timestamptz", "2013-01-01T10:11:12.5-0500", datetime(2013, 1, 1, 15, 11, 12, 500_000, tzinfo=UTC)),
    ("timestamptz", "2013-01-01T10:11:12+02", datetime(2013, 1, 1, 8, 11, 12, tzinfo=UTC)),
    ("string", "", ""),
    ("string", " é\n", " é\n"),
    ("binary", "é\0", b"\xc3\xa9\x00"),
    ("list<integer>", '[1, "2", null]', [1, 2, None]),
    ("list<string>", '["a", 1.50, true]', ["a", "1.50", "true"]),
    ("list<decimal(5,2)>", "[0.10, 3]", [Decimal("0.10"), Decimal("3.00")]),
    ("list<list<date>>", '[["2013-01-01"], [], null]', [[date(2013, 1, 1)], [], None]),
    ("struct<a: integer, b: list<string>>", '{"a": 1, "b": ["x"], "c": 2}', {"a": 1, "b": ["x"]}),
    ("struct<a: integer, b: string>", "{}", {"a": None, "b": None}),
]


@pytest.mark.parametrize(("kind", "text", "value"), READS)
def test_text_reads_as_its_type_alone_and_beside_text_that_does_not(kind: str, text: str, value: Any) -> None:
    assert cast([text, None], kind) == ([value, None], {})
    if kind not in ("string", "binary"):
        beside, faults = cast(["\x01", text, None, text], kind)
        assert beside == [None, value, None, value]
        assert list(faults) == [0]


REFUSED = [
    ("integer", "12x", "'12x' is not an integer"),
    ("integer", "", "'' is not an integer"),
    ("integer", " 1", "' 1' is not an integer"),
    ("integer", "1 ", "'1 ' is not an integer"),
    ("integer", "1\n", r"'1\n' is not an integer"),
    ("integer", "0x10", "'0x10' is not an integer"),
    ("integer", "1.0", "'1.0' is not an integer"),
    ("integer", "1e5", "'1e5' is not an integer"),
    ("integer", "1_000", "'1_000' is not an integer"),
    ("integer", "\u0661", "'\u0661' is not an integer"),
    ("integer", "--1", "'--1' is not an integer"),
    ("integer", "9223372036854775808", "'9223372036854775808' does not fit in 64 bits"),
    ("number", "nan", "'nan' is not a finite number"),
    ("number", "-Infinity", "'-Infinity' is not a finite number"),
    ("number", "1e400", "'1e400' is too large for a double"),
    ("number", "1,5", "'1,5' is not a number"),
    ("number", "0x1p3", "'0x1p3' is not a number"),
    ("number", " 1", "' 1' is not a number"),
    ("number", ".", "'.' is not a number"),
    ("decimal(12,2)", "1.234", "'1.234' has more than 2 digits after the point"),
    ("decimal(12,2)", "12345678901", "'12345678901' has more than 10 digits before the point"),
    ("decimal(2,2)", "1", "'1' has more than 0 digits before the point"),
    ("decimal(12,2)", "1e2", "'1e2' has an exponent, a decimal has none"),
    ("decimal(12,2)", "1.2.3", "'1.2.3' is not a decimal number"),
    ("decimal(12,2)", "-", "'-' is not a decimal number"),
    ("decimal(12,2)", ".", "'.' is not a decimal number"),
    ("decimal(12,2)", "1 ", "'1 ' is not a decimal number"),
    ("boolean", "y", "'y' is not a boolean (true, false, yes, no, t, f, 1, 0)"),
    ("boolean", "", "'' is not a boolean (true, false, yes, no, t, f, 1, 0)"),
    ("date", "2013-02-30", "'2013-02-30' is not a day of the calendar"),
    ("date", "0000-01-01", "'0000-01-01' is not a day of the calendar"),
    ("date", "20130101", "'20130101' is not a date, YYYY-MM-DD"),
    ("date", "2013-1-1", "'2013-1-1' is not a date, YYYY-MM-DD"),
    ("date", "2013-01-01T00:00", "'2013-01-01T00:00' is not a date, YYYY-MM-DD"),
    ("time", "24:00", "'24:00' is not a time of day, HH:MM:SS"),
    ("time", "10", "'10' is not a time of day, HH:MM:SS"),
    ("time", "10:11Z", "'10:11Z' is not a time of day, HH:MM:SS"),
    ("time", "10:11:12.1234567", "'10:11:12.1234567' has more than six digits of a second"),
    ("timestamp", "2013-01-01", "'2013-01-01' is not a timestamp, YYYY-MM-DD HH:MM:SS"),
    ("timestamp", "2013-01-01T10", "'2013-01-01T10' is not a timestamp, YYYY-MM-DD HH:MM:SS"),
    ("timestamp", "2013-02-30 10:11", "'2013-02-30 10:11' is not a timestamp, YYYY-MM-DD HH:MM:SS"),
    ("timestamp", "2013-01-01T10:11:12Z", "'2013-01-01T10:11:12Z' has an offset from UTC, a timestamp has none (a timestamptz has)"),
    ("timestamptz", "2013-01-01T10:11:12", "'2013-01-01T10:11:12' has no offset from UTC, and the field names no zone"),
    ("timestamptz", "2013-01-01T10Z", "'2013-01-01T10Z' is not a timestamp with an offset, YYYY-MM-DDTHH:MM:SS+HH:MM"),
    ("timestamptz", "2013-01-01T10+02:00", "'2013-01-01T10+02:00' is not a timestamp with an offset, YYYY-MM-DDTHH:MM:SS+HH:MM"),
    ("timestamptz", "2013-01-01T10:11+25:00", "'2013-01-01T10:11+25:00' is not a timestamp with an offset, YYYY-MM-DDTHH:MM:SS+HH:MM"),
    ("timestamptz", "0001-01-01T00:00+02:00", "'0001-01-01T00:00+02:00' is not a timestamp with an offset, YYYY-MM-DDTHH:MM:SS+HH:MM"),
    ("string", "x\0y", r"'x\x00y' contains a NUL character, which SQL databases refuse"),
    ("list<integer>", "[1,", "'[1,' is not JSON"),
    ("list<integer>", "[NaN]", "'[NaN]' is not JSON"),
    ("list<integer>", "1", "'1' is not a list"),
    ("list<integer>", '[1, "x"]', "item 2: 'x' is not an integer"),
    ("list<integer>", "[[1]]", "item 1: a list is not an integer"),
    ("list<string>", '["a\\u0000"]', r"item 1: 'a\x00' contains a NUL character, which SQL databases refuse"),
    ("list<string>", '["\\ud800"]', r"item 1: '\ud800' has half a surrogate pair, which is no character"),
    ("struct<a: integer>", '{"a": 1.5}', "a: '1.5' is not an integer"),
    ("struct<a: list<date>>", '{"a": ["2013-02-30"]}', "a: item 1: '2013-02-30' is not a day of the calendar"),
    ("list<integer>", "[" * 100_000, "'" + "[" * 78 + "… is not JSON"),
]


@pytest.mark.parametrize(("kind", "text", "message"), REFUSED)
def test_text_is_refused_with_what_was_found_and_expected(kind: str, text: str, message: str) -> None:
    values, faults = cast([None, text, None], kind)
    assert values == [None, None, None]
    assert faults == {1: message}


@pytest.mark.parametrize(("kind", "text", "message"), REFUSED)
def test_a_sensitive_value_is_in_no_message(kind: str, text: str, message: str) -> None:
    _, faults = cast([text], kind, show=hidden)
    assert "the value" in faults[0] or "a list is not" in faults[0]
    assert len(text) < 3 or text not in faults[0]


FORMATS = [
    ("date", "%d.%m.%Y", "28.02.2013", date(2013, 2, 28)),
    ("date", "%d.%m.%Y", "1.2.2013", date(2013, 2, 1)),
    ("date", "%Y%m%d", "20130228", date(2013, 2, 28)),
    ("date", "%m/%d/%y", "2/28/13", date(2013, 2, 28)),
    ("date", "%m/%d/%y", "02/28/69", date(1969, 2, 28)),
    ("date", "%d %b %Y", "28 Feb 2013", date(2013, 2, 28)),
    ("date", "%Y-%m-%d %H:%M", "2013-02-28 00:00", date(2013, 2, 28)),
    ("time", "%H%M", "0517", time(5, 17)),
    ("time", "%I:%M %p", "5:17 PM", time(17, 17)),
    ("timestamp", "%d.%m.%Y %H:%M:%S", "28.02.2013 10:11:12", datetime(2013, 2, 28, 10, 11, 12)),
    ("timestamp", "%Y/%m/%d (%H:%M:%S.%f)", "2013/02/28 (10:11:12.5)", datetime(2013, 2, 28, 10, 11, 12, 500_000)),
    ("timestamptz", "%d.%m.%Y %H:%M %z", "28.02.2013 10:11 +0200", datetime(2013, 2, 28, 8, 11, tzinfo=UTC)),
]


@pytest.mark.parametrize(("kind", "format", "text", "value"), FORMATS)
def test_text_reads_by_the_format_of_its_field(kind: str, format: str, text: str, value: Any) -> None:
    assert cast([text, None, text], kind, format=format) == ([value, None, value], {})
    beside, faults = cast([text, "?", text], kind, format=format)
    assert beside == [value, None, value]
    assert faults == {1: f"'?' is not a {kind} of the format {format}"}


@pytest.mark.parametrize(
    ("kind", "format", "text", "why"),
    [
        ("date", "%d.%m.%Y", "31.02.2013", "is not a date of the format %d.%m.%Y"),
        ("date", "%d.%m.%Y", " 28.02.2013", "is not a date of the format %d.%m.%Y"),
        ("date", "%d.%m.%Y", "28.02.2013 x", "is not a date of the format %d.%m.%Y"),
        ("date", "%d.%m.%Y", "\u0662\u0668.02.2013", "is not a date of the format %d.%m.%Y"),
        ("date", "%Y%m%d", "2013111", "is not a date of the format %Y%m%d"),
        ("time", "%H%M", "517", "is not a time of the format %H%M"),
        ("date", "%Y-%m-%d %H:%M", "2013-02-28 00:01", "has a time of day, a date has none"),
        ("timestamp", "%Y-%m-%d %H:%M%z", "2013-02-28 00:01+0200", "has an offset from UTC, a timestamp has none"),
        ("timestamptz", "%Y-%m-%d %H:%M", "2013-02-28 00:01", "has no offset from UTC, and the field names no zone"),
    ],
)
def test_text_that_breaks_or_does_not_settle_its_format_is_refused(kind: str, format: str, text: str, why: str) -> None:
    assert cast([text], kind, format=format) == ([None], {0: f"{text!r} {why}"})


def test_wall_clock_times_become_instants_by_the_zone_of_the_field() -> None:
    values, faults = cast(["2013-07-01T10:00", "2013-01-01 10:00", "2013-01-01T10:00Z", None], "timestamptz", zone="America/New_York")
    assert values == [
        datetime(2013, 7, 1, 14, tzinfo=UTC),
        datetime(2013, 1, 1, 15, tzinfo=UTC),
        datetime(2013, 1, 1, 10, tzinfo=UTC),
        None,
    ]
    assert faults == {}
    assert cast(["2013-07-01T10:00"], "timestamptz", zone="America/New_York")[0] == values[:1]


GAP, TWICE = datetime(2013, 3, 10, 2, 30), datetime(2013, 11, 3, 1, 30)


@pytest.mark.parametrize(
    ("values", "format"),
    [
        (pa.array(["2013-03-10T02:30", "2013-11-03T01:30", "2013-07-01T10:00"]), None),
        (pa.array(["10.03.2013 02:30", "03.11.2013 01:30", "01.07.2013 10:00"]), "%d.%m.%Y %H:%M"),
        (pa.array([GAP, TWICE, datetime(2013, 7, 1, 10)], pa.timestamp("ns")), None),
    ],
    ids=["iso", "format", "typed"],
)
def test_local_times_that_do_not_exist_or_exist_twice_are_refused_with_that_reason(values: pa.Array, format: str | None) -> None:
    found, faults = cast(values, "timestamptz", zone="America/New_York", format=format)
    assert found == [None, None, datetime(2013, 7, 1, 14, tzinfo=UTC)]
    assert faults[0].endswith("does not exist in America/New_York (clocks went forward)")
    assert faults[1].endswith("is ambiguous in America/New_York (clocks went back)")


EAST = timezone(timedelta(hours=2))
TYPED = [
    (pa.array([1, None], pa.int32()), "integer", [1, None]),
    (pa.array([3.0, float("nan"), None]), "integer", [3, None, None]),
    (pa.array([Decimal("3.00")]), "integer", [3]),
    (pa.array([2**53, 5]), "number", [2.0**53, 5.0]),
    (pa.array([1.5, float("nan")]), "number", [1.5, None]),
    (pa.array([Decimal("0.1")]), "number", [0.1]),
    (pa.array([5], pa.int64()), "decimal(12,2)", [Decimal("5.00")]),
    (pa.array([0.1, 1e-2, 1e5]), "decimal(12,2)", [Decimal("0.10"), Decimal("0.01"), Decimal("100000.00")]),
    (pa.array([1e20, 1e-7]), "decimal(38,7)", [Decimal(10) ** 20, Decimal("0.0000001")]),
    (pa.array([0.1], pa.float32()), "decimal(12,2)", [Decimal("0.10")]),
    (pa.array([Decimal("1.500")]), "decimal(12,2)", [Decimal("1.50")]),
    (pa.array([1, 0, None]), "boolean", [True, False, None]),
    (pa.array([1, -5, None]), "string", ["1", "-5", None]),
    (pa.array([Decimal("1.50"), Decimal("0.00")]), "string", ["1.50", "0.00"]),
    (pa.array([Decimal("0.0000000001")]), "string", ["0.0000000001"]),
    (pa.array([True, None]), "string", ["true", None]),
    (pa.array([date(2013, 1, 2)]), "string", ["2013-01-02"]),
    (pa.array([date(2013, 1, 2)], pa.date64()), "date", [date(2013, 1, 2)]),
    (pa.array([datetime(2013, 1, 2)], pa.timestamp("ns")), "date", [date(2013, 1, 2)]),
    (pa.array([time(1, 2)], pa.time32("s")), "time", [time(1, 2)]),
    (pa.array([1_000, 2_000], pa.timestamp("ns")), "timestamp", [datetime(1970, 1, 1, microsecond=1), datetime(1970, 1, 1, microsecond=2)]),
    (pa.array([datetime(2013, 1, 1, 2, tzinfo=EAST)], pa.timestamp("s", "+02:00")), "timestamptz", [datetime(2013, 1, 1, tzinfo=UTC)]),
    (pa.array(["a", "b", "a"]).dictionary_encode(), "string", ["a", "b", "a"]),
    (pa.array(["1", None], pa.large_string()), "integer", [1, None]),
    (pa.array(["1", None], pa.string_view()), "integer", [1, None]),
    (pa.array([b"ab"], pa.binary(2)), "binary", [b"ab"]),
    (pa.nulls(2), "date", [None, None]),
    (pa.array(["x", "1", "2"])[1:], "integer", [1, 2]),
    (pa.chunked_array([["1"], ["2"]]), "integer", [1, 2]),
    (pa.chunked_array([], pa.string()), "integer", []),
    (pa.array([[1], None, [], [None, 2]], pa.list_(pa.int32())), "list<decimal(3,1)>", [[Decimal(1)], None, [], [None, Decimal(2)]]),
    (pa.array([[9], [1], None, [2]], pa.list_(pa.int32()))[1:], "list<integer>", [[1], None, [2]]),
    (pa.array([{"a": 1, "z": 2}, None]), "struct<a: integer, b: string>", [{"a": 1, "b": None}, None]),
]


@pytest.mark.parametrize(("column", "kind", "values"), TYPED, ids=lambda part: str(part.type) if isinstance(part, pa.Array) else None)
def test_typed_columns_are_widened_exactly(column: pa.Array, kind: str, values: list[Any]) -> None:
    assert cast(column, kind) == (values, {})


REFUSED_TYPED = [
    (pa.array([3.5]), "integer", "3.5 has no exact value as integer"),
    (pa.array([1e19]), "integer", "1e+19 has no exact value as integer"),
    (pa.array([2**64 - 1], pa.uint64()), "integer", "18446744073709551615 has no exact value as integer"),
    (pa.array([2**53 + 1]), "number", "9007199254740993 has no exact value as number"),
    (pa.array([float("inf")]), "number", "inf has no exact value as number"),
    (pa.array([float("inf")]), "decimal(12,2)", "inf has no exact value as decimal(12,2)"),
    (pa.array([0.125]), "decimal(12,2)", "0.125 has no exact value as decimal(12,2)"),
    (pa.array([12345]), "decimal(4,0)", "12345 has no exact value as decimal(4,0)"),
    (pa.array([Decimal("1.505")]), "decimal(12,2)", "1.505 has no exact value as decimal(12,2)"),
    (pa.array([2]), "boolean", "2 has no exact value as boolean"),
    (pa.array([True]), "integer", "true is a boolean, not an integer"),
    (pa.array([1.5]), "string", "1.5 is a number, not a string"),
    (pa.array([date(2013, 1, 1)]), "timestamp", "2013-01-01 is a date, not a timestamp"),
    (pa.array([datetime(2013, 1, 1, 5)]), "date", "2013-01-01T05:00:00 has a time of day, a date has none"),
    (pa.array([datetime(2013, 1, 1)]), "timestamptz", "2013-01-01T00:00:00 has no offset from UTC, and the field names no zone"),
    (pa.array([b"x"]), "string", "b'x' is a binary, not a string"),
    (pa.array([[1, 300]]), "list<decimal(2,0)>", "item 2: 300 has no exact value as decimal(2,0)"),
    (pa.array([{"a": 1.5}]), "struct<a: integer>", "a: 1.5 has no exact value as integer"),
]


@pytest.mark.parametrize(("column", "kind", "message"), REFUSED_TYPED)
def test_typed_values_that_would_lose_something_are_refused(column: pa.Array, kind: str, message: str) -> None:
    assert cast(column, kind) == ([None], {0: message})


def test_nanoseconds_that_microseconds_cannot_hold_are_refused() -> None:
    values, faults = cast(pa.array([1_001, 2_000], pa.timestamp("ns")), "timestamp")
    assert values == [None, datetime(1970, 1, 1, microsecond=2)]
    assert list(faults) == [0]


def test_long_values_are_cut_in_messages() -> None:
    _, faults = cast(["x" * 10_000], "integer")
    assert len(faults[0]) < 110
    assert "…" in faults[0]


@given(st.lists(st.sampled_from(["1", "-5", "x", "99999999999999999999", "0x1", "+7", "", None, "12"]), max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_value_reads_the_same_whatever_stands_beside_it(texts: list[str | None]) -> None:
    values, faults = cast(texts, "integer")
    for row, text in enumerate(texts):
        alone, alone_faults = cast([text], "integer")
        assert values[row] == alone[0]
        assert faults.get(row) == alone_faults.get(0)


@given(st.sampled_from("-+0 "), st.integers(0, 10**45), st.integers(0, 45), st.integers(1, 38), st.integers(0, 38))
@example("+", 340282366920938463463374607431768211455, 0, 20, 2)
@example("0", 92097428264002940900, 0, 38, 38)
@settings(max_examples=100, deadline=None)
def test_decimals_read_exactly_or_not_at_all(start: str, digits: int, after: int, precision: int, scale: int) -> None:
    scale = min(precision, scale)
    with localcontext(prec=200):
        text = start.strip() + format(Decimal(digits).scaleb(-after), "f")
        exact, unit = Decimal(text), Decimal(1).scaleb(-scale)
        fits = exact == exact.quantize(unit) and abs(exact) < Decimal(10) ** (precision - scale)
    values, faults = cast([text], f"decimal({precision},{scale})")
    assert values == ([exact] if fits else [None])
    assert bool(faults) != fits


def test_numbers_with_more_digits_than_a_decimal_has_are_refused_not_wrapped() -> None:
    huge = pa.array([Decimal(10**38)], pa.decimal256(60, 0))
    wrapped = pa.array([2**127 - 1, 0], pa.decimal256(39, 0))
    hugeint = pa.Array.from_buffers(pa.decimal128(38, 0), 2, [None, pa.py_buffer((2**127 - 1).to_bytes(16, "little") + bytes(16))])
    for column in (huge, wrapped, pa.array([1e39]), hugeint):
        for kind in ("decimal(38,0)", "decimal(38,2)", "decimal(20,2)"):
            values, faults = cast(column, kind)
            assert (values[0], list(faults)) == (None, [0])
    assert cast(hugeint, "string") == ([str(2**127 - 1), "0"], {})


@given(st.lists(st.floats(width=64) | st.none(), max_size=30))
@settings(max_examples=60, deadline=None)
def test_floats_as_integers_keep_every_whole_number_and_no_other(floats: list[float | None]) -> None:
    values, faults = cast(pa.array(floats, pa.float64()), "integer")
    for row, value in enumerate(floats):
        absent = value is None or np.isnan(value)
        whole = value is not None and bool(np.isfinite(value)) and value.is_integer() and -(2.0**63) <= value < 2.0**63
        assert values[row] == (int(value) if whole and value is not None else None)
        assert (row in faults) == (not absent and not whole)


@pytest.mark.parametrize("kind", ["date", "timestamp", "timestamptz"])
def test_typed_days_outside_the_calendar_are_refused(kind: str) -> None:
    before = pa.array([-719_163, 0], pa.int32()).view(pa.date32())
    column = before if kind == "date" else before.cast(pa.timestamp("s"))
    values, faults = cast(column, kind, zone="UTC" if kind == "timestamptz" else None)
    assert values[0] is None
    assert values[1] is not None
    assert list(faults) == [0]


FAR = pa.array([0, 2_932_897, None], pa.int32()).view(pa.date32())
"""1970-01-01, 10000-01-01, which Python cannot say, and null."""
LISTED = pa.ListArray.from_arrays(pa.array([0, 1, 2, None, 3], pa.int32()), FAR)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (FAR, [date(1970, 1, 1), "10000-01-01", None]),
        (LISTED, [[date(1970, 1, 1)], ["10000-01-01"], [None], None]),
        (
            pa.StructArray.from_arrays([FAR, pa.array([1, 2, 3])], ["on", "n"], mask=pa.array([False, False, True])),
            [{"on": date(1970, 1, 1), "n": 1}, {"on": "10000-01-01", "n": 2}, None],
        ),
        (pa.StructArray.from_arrays([LISTED], ["days"])[1:2], [{"days": ["10000-01-01"]}]),
    ],
)
def test_a_day_that_python_cannot_say_is_text_also_inside_of_others(column: pa.Array, values: list[Any]) -> None:
    assert as_python(column) == values
    refused, faults = cast(column, "string" if pa.types.is_nested(column.type) else "date")
    assert faults
    assert len(refused) == len(column)


@pytest.mark.parametrize(
    ("unit", "out_of_day", "within"),
    [
        ("us", [86_400_000_000, -5], 5),
        ("ns", [86_400_000_000_000, 36_000_123_456_789], 5_000),
        ("ms", [86_400_000, -1], 5),
        ("s", [86_400], 5),
    ],
)
def test_times_outside_a_day_or_between_microseconds_are_refused_and_not_wrapped(unit: str, out_of_day: list[int], within: int) -> None:
    kind = pa.time64(unit) if unit in ("us", "ns") else pa.time32(unit)
    column = pa.array([*out_of_day, within, None], pa.int64() if unit in ("us", "ns") else pa.int32()).view(kind)
    values, faults = cast(column, "time")
    assert [value is None for value in values] == [*(True for _ in out_of_day), False, True]
    assert all(why.endswith("has no exact value as time, 00:00 to 23:59:59.999999") for why in faults.values())
    assert not any("00:00:00" in why.partition(" has ")[0] for why in faults.values())
    nested, faults = cast(pa.ListArray.from_arrays(list(range(len(column) + 1)), column), "list<time>")
    assert nested == [None if row in faults else [value] for row, value in enumerate(values)]
    assert list(faults) == list(range(len(out_of_day)))


def test_what_is_said_of_a_time_reads_as_no_other_time() -> None:
    times = pa.array([86_400_000_000, -5, 5], pa.int64()).view(pa.time64("us"))
    for column in (times, times.dictionary_encode(), times.cast(pa.time64("ns"))):
        _, faults = cast(pa.array(as_python(column)), "time")
        assert list(faults) == [0, 1]


@pytest.mark.parametrize("wrapped", ["list", "struct"])
def test_a_nested_day_outside_the_calendar_is_a_fault_of_its_row(wrapped: str) -> None:
    days = pa.array([2**31 - 1, 1], pa.int32()).view(pa.date32())
    column = pa.ListArray.from_arrays([0, 1, 2], days) if wrapped == "list" else pa.StructArray.from_arrays([days], ["d"])
    values, faults = cast(column, "list<date>" if wrapped == "list" else "struct<d: date>")
    assert (values[0], list(faults)) == (None, [0])
    assert values[1] is not None
    assert list(cast(column, "integer")[1]) == [0, 1]


@pytest.mark.parametrize(
    ("kind", "text"),
    [("time", "10:00:00.1234567"), ("timestamp", "2026-01-01T00:00:00.1234567"), ("timestamptz", "2026-01-01T00:00:00.1234567Z")],
)
def test_digits_of_a_second_beyond_six_are_told(kind: str, text: str) -> None:
    assert cast([text], kind) == ([None], {0: f"{text!r} has more than six digits of a second"})


def test_in_a_zone_zeros_behind_six_digits_of_a_second_are_none() -> None:
    found, faults = cast(["2026-01-01T01:00:00.5000000", "2026-01-01T01:00:00.0000001"], "timestamptz", zone="Europe/Berlin")
    assert found == [datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC), None]
    assert faults[1].endswith("has more than six digits of a second")
