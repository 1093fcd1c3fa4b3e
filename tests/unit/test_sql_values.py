"""Rows of a driver as Arrow columns: nothing is rounded, shifted or guessed, whatever the rows before were."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from resources.errors import Poison
from resources.sql_values import Columns, as_rows

NOON = dt.datetime(2024, 7, 1, 12, 0)
NEW_YORK = dt.timezone(dt.timedelta(hours=-4))


def columns_of(*batches: Sequence[Any], dialect: str = "sqlite") -> list[pa.Array]:
    made = Columns(["value"], dialect)
    return [made.batch([(value,) for value in values], [0]).column(0) for values in batches]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, "two", 3.5, None, b"\xff"], ["1", "two", "3.5", None, "\\xff"]),
        ([1, 2.5], [1.0, 2.5]),
        ([2**53 + 1, 2.5], [str(2**53 + 1), "2.5"]),
        ([True, 1], ["true", "1"]),
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
