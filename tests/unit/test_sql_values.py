"""Rows of a driver as Arrow columns: nothing is rounded, shifted or guessed, whatever the rows before were."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.errors import Misconfigured, Poison
from resources.sql_values import Columns, as_bound, as_rows

NOON = dt.datetime(2024, 7, 1, 12, 0)
NEW_YORK = dt.timezone(dt.timedelta(hours=-4))


def pieces_of(*batches: Sequence[Any], dialect: str = "sqlite") -> list[list[pa.Array]]:
    """For each batch of values the columns that it became."""
    made = Columns(["value"], dialect)
    return [[piece.column(0) for piece in made.batches([(value,) for value in values], [0])] for values in batches]


def columns_of(*batches: Sequence[Any], dialect: str = "sqlite") -> list[pa.Array]:
    """The same, where each became one."""
    return [column for (column,) in pieces_of(*batches, dialect=dialect)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, "two", 3.5, None], ["1", "two", "3.5", None]),
        ([1e-05, "n/a", 1e16], ["0.00001", "n/a", "10000000000000000"]),
        ([1, 2.5], [1.0, 2.5]),
        ([2**53 + 1, 2.5], [str(2**53 + 1), "2.5"]),
        ([True, 1], ["true", "1"]),
        ([True, 1.5], ["true", "1.5"]),
        ([NOON.date(), NOON], ["2024-07-01", "2024-07-01T12:00:00"]),
        ([NOON.date(), 5], ["2024-07-01", "5"]),
        ([NOON.time().replace(tzinfo=NEW_YORK)], ["12:00:00-04:00"]),
        ([Decimal("Infinity")], ["Infinity"]),
        ([NOON, NOON.replace(tzinfo=dt.UTC)], ["2024-07-01T12:00:00", "2024-07-01T12:00:00+00:00"]),
        ([2**63], [str(2**63)]),
        ([Decimal("NaN"), Decimal("1.5")], ["NaN", "1.5"]),
        ([{"a": [1]}, [2]], ['{"a":[1]}', "[2]"]),
        ([memoryview(b"x")], [b"x"]),
        ([dt.timedelta(hours=30)], ["1 day, 6:00:00"]),
    ],
)
def test_values_of_several_types_become_text_unless_a_type_holds_them_all(values: list[Any], expected: list[Any]) -> None:
    (column,) = columns_of(values)
    assert column.to_pylist() == expected


@pytest.mark.parametrize(
    ("first", "then", "kind", "expected"),
    [
        ([1], [None], pa.int64(), [None]),
        ([1.5], [2], pa.int64(), [2]),
        ([1], [2.5], pa.float64(), [2.5]),
        ([1], [Decimal("5.25")], pa.decimal128(38, 2), [Decimal("5.25")]),
        ([NOON.date()], [NOON], pa.timestamp("us"), [NOON]),
        ([NOON.date()], [5], pa.int64(), [5]),
        ([NOON.time()], [5], pa.int64(), [5]),
        ([b"a"], ["a"], pa.string(), ["a"]),
        ([Decimal("1.5")], [Decimal("1234567.25")], pa.decimal128(38, 2), [Decimal("1234567.25")]),
        ([Decimal("1.50")], [Decimal("2.5")], pa.decimal128(38, 2), [Decimal("2.50")]),
        ([NOON.replace(tzinfo=dt.UTC)], [NOON], pa.timestamp("us"), [NOON]),
        (["a"], [b"a"], pa.binary(), [b"a"]),
        ([1], ["x"], pa.string(), ["x"]),
        ([None], [dt.date(2024, 1, 1)], pa.date32(), [dt.date(2024, 1, 1)]),
    ],
)
def test_a_later_batch_is_never_bent_into_the_type_of_an_earlier_one(
    first: list[Any], then: list[Any], kind: pa.DataType, expected: Any
) -> None:
    column = columns_of(first, then)[1]
    assert (column.type, column.to_pylist()) == (kind, expected)


def test_bytes_are_cut_from_what_stands_beside_them() -> None:
    (pieces,) = pieces_of([1, None, b"\xff", memoryview(b"x"), "two", b""])
    assert [(piece.type, piece.to_pylist()) for piece in pieces] == [
        (pa.int64(), [1, None]),
        (pa.binary(), [b"\xff", b"x"]),
        (pa.string(), ["two"]),
        (pa.binary(), [b""]),
    ]


GIVEN: dict[str, list[Any]] = {
    "int": [0, 1, -5, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**70],
    "float": [0.0, 1.0, 5.25, -0.1, 1e-05, 1e16, 1e300, float("inf")],
    "decimal": [Decimal(text) for text in ("0", "5", "5.25", "-1.50", "1E+5", "1E-40", f"{10**40}", "1e80", "-Infinity")],
    "bool": [True, False],
    "str": ["", "x", "5", "5.25", "true", "2024-07-01", "żółć\n", "\\x78"],
    "bytes": [b"", b"x", b"\xff", b"5"],
    "date": [NOON.date(), dt.date.min, dt.date.max],
    "wall clock": [NOON, NOON.replace(hour=0), NOON.replace(microsecond=1), dt.datetime.min, dt.datetime.max],
    "instant": [NOON.replace(tzinfo=dt.UTC), NOON.replace(tzinfo=NEW_YORK), dt.datetime.min.replace(tzinfo=NEW_YORK)],
    "time": [NOON.time(), dt.time(23, 59, 59, 999999)],
    "time with offset": [NOON.time().replace(tzinfo=NEW_YORK)],
    "interval": [dt.timedelta(0), dt.timedelta(hours=30), dt.timedelta(microseconds=-1)],
    "uuid": [uuid.UUID(int=5)],
    "list": [[], [1, None, "x"], [[1.5]]],
    "dict": [{}, {"a": [1]}],
    "null": [None],
}
"""What drivers return."""


def is_kept(given: Any, found: Any) -> bool:
    """Whether ``found`` is ``given``, or a text that says all of it."""
    if isinstance(given, (list, dict)):
        return json.loads(found) == given
    if isinstance(given, dt.datetime) and given.tzinfo is not None and not isinstance(found, str):
        return found.tzinfo is not None and found == given
    if isinstance(found, str) and not isinstance(given, str):
        reads: dict[type, Any] = {
            bool: {"true": True, "false": False}.get,
            dt.date: dt.date.fromisoformat,
            dt.datetime: dt.datetime.fromisoformat,
            dt.time: dt.time.fromisoformat,
            dt.timedelta: lambda text: given if text == str(given) else None,
        }
        return reads.get(type(given), type(given))(found) == given
    is_number = type(given) in (int, float, Decimal) and type(found) in (int, float, Decimal)
    return found == given and (type(found) is type(given) or is_number)


def assert_kept(*batches: Sequence[Any]) -> None:
    came = [value for batch in batches for value in batch]
    found = [value for pieces in pieces_of(*batches) for piece in pieces for value in piece.to_pylist()]
    assert len(found) == len(came)
    for before, after in zip(came, found, strict=True):
        assert (after is None) if before is None else is_kept(before, after), (before, after, batches)


@pytest.mark.parametrize("kind", GIVEN)
def test_a_value_comes_out_as_it_came_whatever_stood_before_it(kind: str) -> None:
    for first, then in itertools.product(GIVEN[kind], itertools.chain(*GIVEN.values())):
        assert_kept([first], [then])
        assert_kept([first, then])
        assert_kept([first, None, then], [then], [None], [first])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*itertools.chain(*GIVEN.values())]), max_size=5), max_size=3))
def test_any_values_in_any_batches_come_out_as_they_came(batches: list[list[Any]]) -> None:
    assert_kept(*batches)


def test_instants_come_in_utc_and_nulls_alone_as_text() -> None:
    (column,) = columns_of([NOON.replace(tzinfo=NEW_YORK), None])
    assert column.type == pa.timestamp("us", "UTC")
    assert column.to_pylist() == [dt.datetime(2024, 7, 1, 16, 0, tzinfo=dt.UTC), None]
    assert [column.type for column in columns_of([None], [])] == [pa.string(), pa.string()]


def test_a_time_of_mariadb_is_a_time() -> None:
    (column,) = columns_of([dt.timedelta(hours=1, microseconds=5)], dialect="mariadb")
    assert column.to_pylist() == [dt.time(1, 0, 0, 5)]


@pytest.mark.parametrize(("dialect", "value"), [("sqlite", float("nan")), ("mariadb", float("nan")), ("mariadb", float("inf"))])
def test_numbers_that_a_database_would_change_are_poison(dialect: str, value: float) -> None:
    with pytest.raises(Poison, match="'speed' has a NaN"):
        list(as_rows(pa.RecordBatch.from_pydict({"speed": [1.0, value, None]}), dialect))
    assert list(as_rows(pa.RecordBatch.from_pydict({"speed": [1.0, None]}), dialect)) == [(1.0,), (None,)]


@pytest.mark.parametrize(("given", "kind"), [(5.25, pa.int64()), (Decimal("5.25"), pa.int64()), (dt.datetime(2024, 7, 1, 12), pa.date32())])
def test_a_scope_that_the_column_cannot_hold_is_refused_not_cut(given: Any, kind: pa.DataType):
    with pytest.raises(Misconfigured, match=r"scope: .* does not read as"):
        as_bound(given, kind, "postgresql", "scope")
