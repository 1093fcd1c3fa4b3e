"""Which rows a contract keeps, and every reason against the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus_assets.contract import Contract, Field
from bus_assets.gate import Split, Violation, arrow_schema, cross_row, split
from resources.errors import Misconfigured

SECRET = "4111-1111"


def texts(**columns: Sequence[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(values, pa.string()) for name, values in columns.items()})


def reasons(found: Split) -> dict[int, list[tuple[str, str]]]:
    return {row.index: [(reason.rule, reason.message) for reason in row.reasons] for row in found.rejected}


def judged(field: Field, *values: str | None) -> dict[int, list[tuple[str, str]]]:
    return reasons(split(texts(**{field.name: values}), Contract(fields=(field,))))


def test_kept_rows_have_the_contracts_fields_in_its_order_and_types() -> None:
    contract = Contract(fields=(Field("n", "integer"), Field("when", "date"), Field("price", "decimal(6,2)")))
    found = split(texts(price=["1", "x", "2.5"], extra=["a", "b", "c"], when=["2013-01-01"] * 3, n=["1", "2", None]), contract)
    assert found.kept.schema == arrow_schema(contract)
    assert found.kept.schema.names == ["n", "when", "price"]
    assert found.kept_index.to_pylist() == [0, 2]
    assert found.kept.column("n").to_pylist() == [1, None]
    assert reasons(found) == {1: [("price: type decimal(6,2)", "'x' is not a decimal number")]}


def test_a_list_or_an_object_is_no_string_unless_the_field_says_json() -> None:
    batch, nested = texts(v=["a", '{"b":1}', "[1]", '{"b":1}']), {"v": {1: "an object", 2: "a list"}}
    found = split(batch, Contract(fields=(Field("v", required=True, pattern="."),)), nested)
    assert reasons(found) == {1: [("v: type string", "is an object, not a string")], 2: [("v: type string", "is a list, not a string")]}
    assert found.kept.column("v").to_pylist() == ["a", '{"b":1}']
    assert split(batch, Contract(fields=(Field("v", json=True),)), nested).kept.num_rows == 4


def test_where_a_path_did_not_lead_there_is_no_null_of_any_type() -> None:
    why = "cannot be read at 'who.v': 'who' is a number, not an object"
    for field in (Field("v"), Field("v", "integer", required=True), Field("v", json=True), Field("v", "list<string>", sensitive=True)):
        found = split(texts(v=[None, None]), Contract(fields=(field,)), astray={"v": {1: why}})
        assert reasons(found)[1] == [(f"v: type {field.type}", why)]
        assert (0 in reasons(found)) == field.required


def test_every_reason_of_a_row_is_given_in_the_contracts_order() -> None:
    contract = Contract(
        fields=(
            Field("id", "integer", required=True, minimum=10, allowed=(10, 20)),
            Field("code", pattern="^[A-Z]+$", min_length=3, max_length=5),
        )
    )
    found = split(texts(id=["5", None, "x", "20"], code=["a", "ABCDEF", "ABC", "ABC"]), contract)
    assert reasons(found) == {
        0: [
            ("id: allowed", "5 is not one of 10, 20"),
            ("id: minimum 10", "5 is below 10"),
            ("code: pattern ^[A-Z]+$", "'a' does not match ^[A-Z]+$"),
            ("code: min_length 3", "'a' has fewer than 3 characters"),
        ],
        1: [("id: required", "is missing, a value is required"), ("code: max_length 5", "'ABCDEF' has more than 5 characters")],
        2: [("id: type integer", "'x' is not an integer")],
    }
    assert {reason for row in found.rejected for reason in (r.rule for r in row.reasons)} <= {str(rule) for rule in contract.rules()}


def test_null_breaks_no_rule_but_required() -> None:
    field = Field("a", "integer", allowed=(1,), minimum=1, maximum=1)
    assert judged(field, None, "1") == {}
    assert judged(Field("s", pattern="x", min_length=1), None) == {}
    assert list(judged(Field("a", required=True), None, "")) == [0]


def test_nan_of_a_typed_source_is_a_missing_value() -> None:
    batch = pa.RecordBatch.from_pydict({"n": pa.array([1.0, float("nan")])})
    found = split(batch, Contract(fields=(Field("n", "number", required=True),)))
    assert reasons(found) == {1: [("n: required", "is missing, a value is required")]}


@pytest.mark.parametrize(
    ("kind", "minimum", "maximum", "inside", "outside"),
    [
        ("integer", 1, 3, ["1", "3"], ["0", "4"]),
        ("integer", -(10**30), 10**30, ["9223372036854775807"], []),
        ("integer", 10**30, None, [], ["9223372036854775807"]),
        ("integer", None, -(10**30), [], ["-9223372036854775808"]),
        ("decimal(4,2)", "0.005", "1.999", ["0.01", "1.99"], ["0.00", "2.00"]),
        ("decimal(4,2)", "-0.005", "1e30", ["0", "99.99"], ["-0.01"]),
        ("decimal(4,2)", "1e30", None, [], ["99.99"]),
        ("decimal(4,2)", "0", "0", ["0"], ["0.01", "-0.01"]),
        ("number", 0.5, 1, ["0.5", "1"], ["0.49", "1.01"]),
        ("string", "b", "d", ["b", "cz", "d"], ["a", "da", "é"]),
        ("date", "2013-01-01", "2013-12-31", ["2013-01-01", "2013-12-31"], ["2012-12-31", "2014-01-01"]),
        ("time", "08:00", "17:00", ["08:00", "17:00"], ["07:59:59", "17:00:00.1"]),
        ("timestamp", "2013-01-01T00:00", None, ["2013-01-01 00:00"], ["2012-12-31 23:59:59.999999"]),
        ("timestamptz", "2013-01-01T00:00:00+02:00", None, ["2012-12-31T22:00Z"], ["2013-01-01T00:00+03:00"]),
    ],
)
def test_bounds_are_inclusive_and_exact(kind: str, minimum: Any, maximum: Any, inside: list[str], outside: list[str]) -> None:
    found = judged(Field("v", kind, minimum=minimum, maximum=maximum), *inside, *outside)
    assert sorted(found) == list(range(len(inside), len(inside) + len(outside)))


@pytest.mark.parametrize(
    ("kind", "allowed", "inside", "outside"),
    [
        ("string", ("EUR", ""), ["EUR", ""], ["eur", "EUR "]),
        ("decimal(4,2)", ("1.5", "1.234", "1e9"), ["1.50"], ["1.23", "0"]),
        ("integer", (1, 10**30), ["1"], ["2"]),
        ("boolean", (True,), ["yes"], ["no"]),
        ("date", ("2013-01-01",), ["2013-01-01"], ["2013-01-02"]),
        ("timestamptz", ("2013-01-01T00:00:00Z",), ["2013-01-01T02:00+02:00"], ["2013-01-01T02:00Z"]),
        ("binary", (b"a",), ["a"], ["b"]),
    ],
)
def test_only_allowed_values_pass(kind: str, allowed: tuple[Any, ...], inside: list[str], outside: list[str]) -> None:
    found = judged(Field("v", kind, allowed=allowed), *inside, *outside)
    assert sorted(found) == list(range(len(inside), len(inside) + len(outside)))


def test_lengths_are_characters_of_text_bytes_of_binaries_and_items_of_lists() -> None:
    assert list(judged(Field("s", max_length=2), "éé", "ééé", "🚌🚌")) == [1]
    assert list(judged(Field("b", "binary", max_length=2), "é", "éé")) == [1]
    assert list(judged(Field("l", "list<integer>", min_length=1), "[1]", "[]", None)) == [1]


def test_a_dollar_is_the_end_of_the_value_not_of_a_line() -> None:
    assert list(judged(Field("s", pattern="^a$"), "a", "a\n", "b\na")) == [1, 2]
    assert list(judged(Field("s", pattern="^a.b$"), "a-b", "a\nb")) == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (Field("pan", "integer", sensitive=True), SECRET),
        (Field("pan", sensitive=True, allowed=("x",)), SECRET),
        (Field("pan", sensitive=True, pattern="^x"), SECRET),
        (Field("pan", sensitive=True, minimum="5"), SECRET),
        (Field("pan", sensitive=True, maximum="1"), SECRET),
        (Field("pan", sensitive=True, min_length=50), SECRET),
        (Field("pan", sensitive=True, max_length=1), SECRET),
        (Field("pan", "date", format="%d.%m.%Y", sensitive=True), SECRET),
        (Field("pan", "timestamptz", sensitive=True), SECRET),
        (Field("pan", "list<integer>", sensitive=True), f'["{SECRET}"]'),
        (Field("pan", "struct<a: date>", sensitive=True), f'{{"a": "{SECRET}"}}'),
        (Field("pan", sensitive=True), SECRET + "\0"),
    ],
)
def test_no_message_has_a_sensitive_value(field: Field, value: str) -> None:
    ((rule, message),) = judged(field, value)[0]
    assert rule.startswith("pan: ")
    assert "the value" in message
    assert SECRET not in message


def test_long_values_are_cut_in_messages() -> None:
    ((_, message),) = judged(Field("s", max_length=5), "x" * 100_000)[0]
    assert len(message) < 120


def test_a_missing_column_is_a_misconfiguration_that_lists_what_was_found() -> None:
    with pytest.raises(Misconfigured, match=r"column 'b' is missing; found 'a', 'B'"):
        split(texts(a=["1"], B=["1"]), Contract(fields=(Field("a"), Field("b"))))


def test_a_column_that_is_there_twice_is_a_misconfiguration() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["a", "a"])
    with pytest.raises(Misconfigured, match="column 'a' is there 2 times"):
        split(batch, Contract(fields=(Field("a"),)))


def test_a_pattern_that_is_not_re2_is_a_misconfiguration() -> None:
    with pytest.raises(Misconfigured, match=r"field 'a': pattern .* is not RE2"):
        split(texts(a=["x"]), Contract(fields=(Field("a", pattern=r"a\Z"),)))


def test_an_empty_batch_and_a_batch_of_nothing_but_rejects_stay_whole() -> None:
    contract = Contract(fields=(Field("a", "integer", required=True, allowed=(1,)), Field("t", "timestamptz")))
    empty = split(texts(a=[], t=[]), contract)
    assert (empty.kept.num_rows, empty.rejected, empty.kept.schema) == (0, [], arrow_schema(contract))
    none = split(texts(a=["x", "2"], t=[None, None]), contract)
    assert (none.kept.num_rows, len(none.rejected), none.kept.schema) == (0, 2, arrow_schema(contract))


def test_a_slice_of_a_batch_is_judged_by_its_own_rows() -> None:
    batch = texts(a=["x", "1", "\0", "20"], t=["2013-01-01"] + ["2013-01-01T00:00Z"] * 3).slice(1, 1)
    found = split(batch, Contract(fields=(Field("a", "integer"), Field("t", "timestamptz"))))
    assert found.kept.column("a").to_pylist() == [1]
    assert found.rejected == []


def staged(path: Path, contract: Contract, placed: bool = True, **columns: Sequence[str | None]) -> list[str]:
    """Rows as they are staged, in two files."""
    kept = split(texts(**columns), contract).kept
    count = kept.num_rows
    table = pa.Table.from_batches([kept]).append_column("_bus_row", pa.array(range(1, count + 1), pa.int64()))
    if placed:
        table = table.append_column("_bus_origin", pa.array(["orders.csv"] * count).dictionary_encode())
        table = table.append_column("_bus_position", pa.array(range(2, count + 2), pa.int64()))
    files = [str(path / "part 'one'.parquet"), str(path / "two.parquet")]
    pq.write_table(table.slice(0, count // 2), files[0])
    pq.write_table(table.slice(count // 2), files[1])
    return files


def across(files: Sequence[str], contract: Contract, references: dict[str, Any] | None = None, **options: Any) -> list[Violation]:
    with duckdb.connect(config={"threads": 1}) as con, cross_row(con, files, contract, references or {}, **options) as found:
        return found.of(pa.array(range(1, 1_000), pa.int64()))


def test_the_first_row_with_a_key_is_kept_and_later_ones_name_its_place(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("id", unique=True),))
    files = staged(tmp_path, contract, id=["a", "b", None, "a", None, "a"])
    message = "'a' is the same as orders.csv, line 2"
    assert across(files, contract, unit="line") == [(4, "id: unique", message), (6, "id: unique", message)]
    bare = staged(tmp_path, contract, placed=False, id=["a", "a"])
    assert across(bare, contract) == [(2, "id: unique", "'a' is the same as row 1")]


def test_keys_of_several_fields_are_compared_whole_and_not_where_one_is_null(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("id", "integer"), Field("line", "timestamptz")), unique=(("id", "line"),))
    one, two = "2013-01-01T00:00Z", "2013-01-02T00:00Z"
    files = staged(tmp_path, contract, id=["1", "1", "1", None, None], line=[one, two, one, one, one])
    assert across(files, contract, unit="line") == [
        (3, "id, line: unique", "1, 2013-01-01 00:00:00+00:00 is the same as orders.csv, line 2"),
    ]


def test_no_row_is_rejected_because_of_one_that_was_rejected_itself(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("a", unique=True), Field("b", unique=True), Field("r", references="other.r")))
    files = staged(tmp_path, contract, a=["9", "1", "1", "7", "7"], b=["1", "1", "5", "8", "9"], r=["x", "x", "x", "?", "x"])
    found = across(files, contract, {"r": pa.array(["x"])})
    # row 2 falls to row 1 by b, so row 3 is the first with a=1; row 4 breaks its reference, so row 5 is the first with a=7
    assert [(row, rule) for row, rule, _ in found] == [(2, "b: unique"), (4, "r: references other.r")]


def test_a_row_that_breaks_two_keys_and_a_reference_has_all_three_reasons(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("a", unique=True), Field("b", "integer", unique=True), Field("r", references="other.r")))
    files = staged(tmp_path, contract, a=["1", "1"], b=["2", "2"], r=["x", "?"])
    assert across(files, contract, {"r": pa.chunked_array([["x"], []], pa.string())}) == [
        (2, "r: references other.r", "'?' is not in other.r"),
        (2, "a: unique", "'1' is the same as orders.csv, row 2"),
        (2, "b: unique", "2 is the same as orders.csv, row 2"),
    ]


def test_references_may_be_staged_files_of_another_numeric_type_or_empty(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("c", "integer", references="customers.id"),))
    files = staged(tmp_path, contract, c=["1", "2", None, "3"])
    known = str(tmp_path / "customers.parquet")
    pq.write_table(pa.table({"id": pa.array([1, None, 3, 3], pa.decimal128(10, 0))}), known)
    assert [row for row, *_ in across(files, contract, {"c": ([known], "id")})] == [2]
    assert [row for row, *_ in across(files, contract, {"c": ([], "id")})] == [1, 2, 4]
    assert [row for row, *_ in across(files, contract, {"c": pa.nulls(1)})] == [1, 2, 4]


def test_a_reference_is_met_within_what_the_row_belongs_to(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("c", "integer", references="customers.id"), Field("of", "integer")))
    files = staged(tmp_path, contract, c=["1", "2", None, "2", "7"], of=["1", "1", "1", "2", "3"])
    known = str(tmp_path / "customers.parquet")
    pq.write_table(pa.table({"id": [1, 2, None], "of": [1, 2, 1]}), known)
    assert [row for row, *_ in across(files, contract, {"c": ([known], "id", "of")})] == [2, 5]
    assert [row for row, *_ in across(files, contract, {"c": ([], "id", "of")})] == [1, 2, 4, 5]


def test_values_that_cannot_be_compared_are_a_misconfiguration(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("c", "integer", references="customers.id"),))
    files = staged(tmp_path, contract, c=["1", "2"])
    with pytest.raises(Misconfigured, match=r"field 'c' is BIGINT, customers.id is VARCHAR"):
        across(files, contract, {"c": pa.array(["1"])})
    with pytest.raises(Misconfigured, match="whose values were not given"):
        across(files, contract)


def test_sensitive_keys_and_references_are_in_no_message(tmp_path: Path) -> None:
    contract = Contract(
        fields=(Field("pan", unique=True, sensitive=True, references="cards.pan"), Field("n", "integer")), unique=(("n", "pan"),)
    )
    files = staged(tmp_path, contract, pan=[SECRET, SECRET, SECRET + "0"], n=["1", "1", "2"])
    found = across(files, contract, {"pan": pa.array([SECRET])}, unit="line")
    assert {message for *_, message in found} == {
        "the value is not in cards.pan",
        "the value is the same as orders.csv, line 2",
        "1, the value is the same as orders.csv, line 2",
    }


def test_only_violations_of_the_rows_asked_for_are_told(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("id", unique=True),))
    files = staged(tmp_path, contract, id=["a", "b", "a", "a"])
    with duckdb.connect() as con, cross_row(con, files, contract, {}) as found:
        assert found
        assert [row for row, *_ in found.of(pa.array([4, 1]))] == [4]
        assert found.of(pa.array([2, 9])) == []
    with duckdb.connect() as con, cross_row(con, files[:1], contract, {}) as found:
        assert not found


def one_by_one(rows: Sequence[tuple[Any, ...]]) -> list[tuple[int, str]]:
    """The rule of keys and references as it is written, a row at a time: (row, what it breaks) of rows (a, b, r, group)."""
    held: set[tuple[Any, ...]] = set()
    found = []
    for number, (a, b, r, group) in enumerate(rows, 1):
        keys = [(rule, value, group) for rule, value in (("a: unique", a), ("b: unique", b)) if value is not None]
        broken = (["r: references o.r"] if r == "?" else []) + [key[0] for key in keys if key in held]
        found += [(number, rule) for rule in broken]
        if not broken:
            held.update(keys)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_keys_and_references_are_judged_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Nine rows or so in each of fifty groups, in which keys are few: most of them share one, and fall to a row that falls or not."""
    monkeypatch.setattr("bus_assets.cross_rows.ROWS_AT_A_TIME", 100)
    chance = random.Random(seed)
    rows = [(*chance.choices(["1", "2", "3", None], k=2), chance.choice("xxx?"), str(chance.randrange(50))) for _ in range(450)]
    contract = Contract((Field("a", unique=True), Field("b", unique=True), Field("r", references="o.r"), Field("group")))
    columns = dict(zip(("a", "b", "r", "group"), zip(*rows, strict=True), strict=True))
    found = across(staged(tmp_path, contract, **columns), contract, {"r": pa.array(["x"])}, within="group")
    assert [(row, rule) for row, rule, _ in found] == one_by_one(rows)


def test_files_that_are_gone_and_no_files_at_all(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("id", unique=True),))
    assert across([], contract) == []
    with pytest.raises(Misconfigured, match="keys and references could not be checked"):
        across([str(tmp_path / "gone.parquet")], contract)


def test_the_callers_connection_keeps_nothing_of_the_look(tmp_path: Path) -> None:
    contract = Contract(fields=(Field("id", unique=True, references="o.id"),))
    files = staged(tmp_path, contract, id=["a", "a"])
    with duckdb.connect() as con:
        for _ in range(2):
            with cross_row(con, files, contract, {"id": pa.array(["a"])}) as found:
                assert len(found.of(pa.array([1, 2]))) == 1
        assert con.execute("SHOW ALL TABLES").fetchall() == []
