"""What a transform makes arrives with an equal value, or is refused: in SQL, pandas and Arrow, alone, among others and nested."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus_assets import Contract, Field, Transform
from bus_assets.casting import cast_column
from bus_assets.reading import Target, shown
from bus_assets.transforms import run_transform
from bus_assets.types import parse_type
from resources.errors import Misconfigured, Poison

EAST = timezone(timedelta(hours=5))
NANO = pd.Timestamp("2024-01-01 00:00:00.123456789")
NEVER = object()
"""What no field can hold."""
TARGETS = ("string", "integer", "number", "decimal(38,0)", "decimal(12,2)", "boolean", "date", "time", "timestamp", "timestamptz", "binary")


def agrees(given: Any, kept: Any) -> bool:
    """Whether ``kept`` says the same as ``given``, as the tables in casting.py and reading.py have it; written apart from them."""
    if kept is None:
        return given is None or given is pd.NaT or given is pd.NA or (isinstance(given, (float, Decimal)) and given != given)
    if isinstance(kept, list):
        return len(kept) == len(given) and all(map(agrees, given, kept))
    if isinstance(kept, dict):
        return set(kept) == set(given) and all(agrees(given[name], kept[name]) for name in kept)
    if isinstance(given, (str, bytes)):
        return agrees_with_text(given, kept)
    if isinstance(kept, bytes):
        return agrees(given, kept.decode())
    if isinstance(kept, str):
        return says(kept, given)
    if isinstance(given, (bool, np.bool_)) or isinstance(kept, bool):
        return isinstance(kept, bool) and bool(given) == kept and given in (True, False)
    if isinstance(given, (int, float, Decimal, np.number)):
        if isinstance(kept, float):
            return float(given) == kept
        return isinstance(kept, (int, Decimal)) and Decimal(str(given)) == kept
    if type(kept) is date and isinstance(given, datetime):
        return given.tzinfo is None and given == datetime.combine(kept, time())
    same = (given.tzinfo is None) == (kept.tzinfo is None) if isinstance(kept, (datetime, time)) and hasattr(given, "tzinfo") else True
    return same and bool(given == kept) and isinstance(given, type(kept))


def agrees_with_text(given: str | bytes, kept: Any) -> bool:
    if isinstance(kept, (str, bytes)):
        return kept == (given.encode() if isinstance(kept, bytes) and isinstance(given, str) else given)
    return given in READS and agrees(READS[given], kept)


READS = {"5": 5, "true": True, "2024-01-01": date(2024, 1, 1), "10:00": time(10)}


def says(text: str, given: Any) -> bool:
    if isinstance(given, (bool, np.bool_)):
        return text == str(bool(given)).lower()
    if isinstance(given, (int, float, Decimal, np.number)):
        return Decimal(text) == Decimal(str(given))
    if isinstance(given, time) and given.tzinfo:
        return time.fromisoformat(text) == given
    return given is not NEVER and text in (str(given), given.isoformat())


def arrives(column: Any, kind: str, rows: list[Any]) -> bool:
    """Whether ``column`` keeps each of ``rows`` as ``kind`` with an equal value, or refuses it."""
    found = cast_column(column, Target(parse_type(kind), show=shown))
    found.values.validate(full=True)
    kept = found.values.to_pylist()
    return all(row in found.faults or agrees(given, kept[row]) for row, given in enumerate(rows))


def nested(kind: str, how: str) -> str:
    return {"": kind, "list": f"list<{kind}>", "struct": f"struct<a: {kind}>", "both": f"list<struct<a: {kind}>>"}[how]


def wrapped(value: Any, how: str) -> Any:
    return {"": value, "list": [value], "struct": {"a": value}, "both": [{"a": value}]}[how]


def made_by(how: Any, *kinds: str) -> list[pa.RecordBatch]:
    fields = tuple(Field(f"v{at}", kind) for at, kind in enumerate(kinds))
    return list(run_transform(Transform("made", how, Contract(fields), grain="changed"), [], {}))


OBJECTS = [
    *(None, float("nan"), pd.NaT, pd.NA, True, False, np.bool_(True)),
    *(0, 1, -1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**38, 0.5, -0.0, 1e20, 2.0**63, float("inf"), np.int64(7), np.float64(0.1)),
    *(Decimal("1.10"), Decimal("1E+3"), Decimal(10**38), Decimal("NaN"), Decimal("Infinity")),
    *(date(2024, 1, 1), date.min, date.max, datetime(2024, 1, 1), datetime(2024, 1, 1, 5), datetime.min, datetime.max),
    *(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=EAST), datetime(1900, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam"))),
    *(NANO, NANO.tz_localize("UTC"), NANO.floor("us"), pd.Timestamp("2024-01-01", tz="Europe/Berlin")),
    *(time(10), time.max, time(10, tzinfo=UTC), time(10, tzinfo=EAST)),
    *("", "5", "true", "2024-01-01", "10:00", b"5", b"\xff"),
]


@given(
    values=st.lists(st.sampled_from(OBJECTS), min_size=1, max_size=4),
    how=st.sampled_from(["", "", "list", "struct", "both"]),
    kind=st.sampled_from(TARGETS),
)
@settings(max_examples=100, deadline=None)
def test_objects_of_pandas(values: list[Any], how: str, kind: str) -> None:
    rows = [wrapped(value, how) for value in values]
    column = pd.Series(rows, dtype=object)
    try:
        (batch,) = made_by(lambda: pd.DataFrame({"v0": column}), nested(kind, how))
    except Poison:
        return
    assert arrives(batch.column("v0"), nested(kind, how), rows)


def test_a_category_of_objects() -> None:
    values = [date(2024, 1, 1), datetime(2024, 1, 1, 5), time(10, tzinfo=EAST)]
    for rows in (values[:2], values[2:]):
        column = pd.Series(pd.Categorical.from_codes(range(len(rows)), categories=pd.Index(rows, dtype=object)))
        for kind in TARGETS:
            (batch,) = made_by(lambda column=column: pd.DataFrame({"v0": column}), kind)
            assert arrives(batch.column("v0"), kind, rows)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_period_is_not_its_number(kind: str) -> None:
    (batch,) = made_by(lambda: pd.DataFrame({"v0": pd.Series([pd.Period("2024-01")])}), kind)
    assert list(cast_column(batch.column("v0"), Target(parse_type(kind))).faults) == ([] if kind in ("string", "binary") else [0])


IN_SQL: dict[str, Any] = {
    "true": True,
    "9223372036854775807": 2**63 - 1,
    "9223372036854775808::UBIGINT": 2**63,
    "9007199254740993": 2**53 + 1,
    "170141183460469231731687303715884105727::HUGEINT": 2**127 - 1,
    "5::UHUGEINT": 5,
    "340282366920938463463374607431768211455::UHUGEINT": 2**128 - 1,
    "md5_number('a')": 129134844867590561315626153795017621772,
    "'1234567890123456789012345678901234567890'::BIGNUM": 1234567890123456789012345678901234567890,
    "1.50::DECIMAL(10, 3)": Decimal("1.5"),
    "0.1::FLOAT": np.float32(0.1),
    "0.1::DOUBLE": 0.1,
    "1e20::DOUBLE": 1e20,
    "'infinity'::DOUBLE": NEVER,
    "'nan'::DOUBLE": float("nan"),
    "DATE '2024-01-01'": date(2024, 1, 1),
    "DATE '0044-03-15 (BC)'": NEVER,
    "DATE 'infinity'": NEVER,
    "TIME '10:00:00.000001'": time(10, 0, 0, 1),
    "TIME '24:00:00'": NEVER,
    "TIME_NS '10:00:00.123456789'": NEVER,
    "TIMETZ '10:00:00+05'": time(10, tzinfo=EAST),
    "TIMETZ '10:00:00+00'": time(10, tzinfo=UTC),
    "TIMESTAMP '2024-01-01 00:00:00'": datetime(2024, 1, 1),
    "TIMESTAMP 'infinity'": NEVER,
    "TIMESTAMP '10000-01-01'": NEVER,
    "TIMESTAMP_S '2024-01-01 00:00:00'": datetime(2024, 1, 1),
    "TIMESTAMP_MS 'infinity'": NEVER,
    "TIMESTAMP_NS '2024-01-01 00:00:00.123456789'": NANO,
    "TIMESTAMP_NS '-infinity'": NEVER,
    "TIMESTAMPTZ '2024-01-01 00:00:00+05'": datetime(2024, 1, 1, tzinfo=EAST),
    "TIMESTAMPTZ '-infinity'": NEVER,
    "INTERVAL 1 MONTH": NEVER,
    "'00000000-0000-0000-0000-00000000000a'::UUID": "00000000-0000-0000-0000-00000000000a",
    "'5'::ENUM ('5', 'b')": "5",
    "'\\xFF'::BLOB": b"\xff",
    "'a' || chr(0)": "a\0",
    "MAP {'a': 1}": NEVER,
    "1::VARIANT": NEVER,
}


@pytest.mark.parametrize("how", ["", "both"])
def test_values_of_sql(how: str) -> None:
    cases = [(written, value, kind) for written, value in IN_SQL.items() for kind in TARGETS]
    form = {"": "{}", "list": "[{}]", "struct": "{{'a': {}}}", "both": "[{{'a': {}}}]"}[how]
    columns = (f"{form.format(written)} AS v{at}" for at, (written, _, _) in enumerate(cases))
    (batch,) = made_by(f"SELECT {', '.join(columns)}", *(nested(kind, how) for _, _, kind in cases))
    for at, (written, value, kind) in enumerate(cases):
        assert arrives(batch.column(f"v{at}"), nested(kind, how), [wrapped(value, how)]), (written, kind)


def of(values: list[int], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.int64() if kind.bit_width == 64 else pa.int32()).view(kind)


IN_ARROW: list[tuple[pa.Array, list[Any]]] = [
    (of([86_400_000_000, -1, 0], pa.time64("us")), [NEVER, NEVER, time()]),
    (of([1_001, 1_000], pa.time64("ns")), [NEVER, time(0, 0, 0, 1)]),
    (of([86_400, 5], pa.time32("s")), [NEVER, time(0, 0, 5)]),
    (of([86_400_005, 86_400_000], pa.date64()), [NEVER, date(1970, 1, 2)]),
    (of([2**62, 0], pa.date64()), [NEVER, date(1970, 1, 1)]),
    (of([2**31 - 1, 0], pa.date32()), [NEVER, date(1970, 1, 1)]),
    (of([2**62, 0], pa.timestamp("s")), [NEVER, datetime(1970, 1, 1)]),
    (of([1_001, 1_000], pa.timestamp("ns", "Asia/Tokyo")), [NEVER, datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)]),
    (of([5], pa.duration("us")), [NEVER]),
    (pa.array([2**64 - 1, 5], pa.uint64()), [2**64 - 1, 5]),
    (pa.array([np.float16(0.1)]), [float(np.float16(0.1))]),
    (pa.array([0.1, 2**24], pa.float32()), [np.float32(0.1), 2.0**24]),
    (pa.array([Decimal("1.5")], pa.decimal32(5, 2)), [Decimal("1.5")]),
    (pa.array([Decimal("1.5")], pa.decimal64(15, 2)), [Decimal("1.5")]),
    (pa.array([Decimal(10**60)], pa.decimal256(70, 2)), [Decimal(10**60)]),
    (pa.array([150], pa.int64()).cast(pa.decimal128(20, 0)).cast(pa.decimal128(20, -1), safe=False), [Decimal(150)]),
    (pa.array([5, 5, 6]).dictionary_encode(), [5, 5, 6]),
    (pa.RunEndEncodedArray.from_arrays([2, 3], pa.array([5, 6])), [5, 5, 6]),
    (pa.array([{"a": 1}]), [{"a": 1}]),
    (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), [NEVER]),
    (pa.array([[5], None, [], [6, 7]], pa.list_view(pa.int64()))[1:], [None, [], [6, 7]]),
    (pa.array([[5], None, [6, 7]], pa.large_list_view(pa.int64()))[1:], [None, [6, 7]]),
    (pa.array([[5], None, [6]], pa.list_(pa.int64(), 1))[1:], [None, [6]]),
    (pa.array([b"5"], pa.binary_view()), [b"5"]),
]


@pytest.mark.parametrize(("column", "values"), IN_ARROW, ids=lambda part: str(part.type) if isinstance(part, pa.Array) else "")
@pytest.mark.parametrize("how", ["", "list", "struct", "both"])
def test_values_of_arrow(column: pa.Array, values: list[Any], how: str) -> None:
    def inner(kind: str) -> str:
        return f"list<{kind}>" if isinstance(values[-1], list) else f"struct<a: {kind}>" if isinstance(values[-1], dict) else kind

    made = column if how not in ("struct", "both") else pa.StructArray.from_arrays([column], ["a"])
    made = made if how not in ("list", "both") else pa.ListArray.from_arrays(list(range(len(column) + 1)), made)
    for kind in (*TARGETS, "struct<a: integer>"):
        (batch,) = made_by(lambda: pa.table({"v0": made}), nested(inner(kind), how))
        assert arrives(batch.column("v0"), nested(inner(kind), how), [wrapped(value, how) for value in values]), kind


def test_what_arrow_has_no_type_for_comes_as_text_in_order() -> None:
    sql = f"SELECT range::UHUGEINT + {2**127} AS v0, [TIMETZ '10:00:00+05'] AS v1 FROM range(3) ORDER BY range DESC"
    (batch,) = made_by(sql, "string", "list<time>")
    assert batch.column("v0").to_pylist() == [str(2**127 + 2), str(2**127 + 1), str(2**127)]
    faults = cast_column(batch.column("v1"), Target(parse_type("list<time>"), show=shown)).faults
    assert faults[0] == "item 1: '10:00:00+05' is not a time of day, HH:MM:SS"


@pytest.mark.parametrize(("value", "kind"), [("'101'::BIT", "BIT"), ("union_value(b := 1)", "UNION")])
def test_types_that_no_field_takes_are_refused_with_the_way_to_take_them(value: str, kind: str) -> None:
    with pytest.raises(Misconfigured, match=rf"column 'v0' holds DuckDB's type {kind}.*, .* CAST\(\"v0\" AS VARCHAR\)"):
        made_by(f"SELECT [{{'a': {value}}}] AS v0", "list<struct<a: binary>>")
    made_by(f"SELECT {value} AS other, CAST({value} AS VARCHAR) AS v0", "string")


def test_a_struct_with_two_members_of_one_name_is_refused() -> None:
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    with pytest.raises(Misconfigured, match="the member 'a' 2 times"):
        cast_column(twice, Target(parse_type("struct<a: integer>")))
