"""The recount finds what the gate let through, and nothing where the gate is right."""

# Arrow makes its compute functions when it is imported, unseen by a type checker.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus_assets import gate
from bus_assets.contract import Contract, Field
from bus_assets.verify import BALANCE, ONCE, Figure, verify
from resources.errors import Misconfigured

SOURCE = Path(__file__).parents[2] / "bus_assets" / "verify.py"


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


def texts(columns: Mapping[str, Sequence[str | None]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(values, pa.string()) for name, values in columns.items()})


def write(path: Path, table: pa.Table, name: str = "kept") -> list[str]:
    pq.write_table(table, path / f"{name}.parquet")
    return [str(path / f"{name}.parquet")]


def numbered(kept: pa.RecordBatch, rows: Sequence[int] | None = None) -> pa.Table:
    numbers = pa.array(range(1, kept.num_rows + 1) if rows is None else rows, pa.int64())
    return pa.Table.from_batches([kept]).append_column("_bus_row", numbers)


def broken(figures: Sequence[Figure]) -> dict[str, int]:
    return {figure.rule: figure.violations for figure in figures if figure.violations}


def recount(
    con: duckdb.DuckDBPyConnection, path: Path, contract: Contract, known: Mapping[str, Any] | None = None, **columns: Any
) -> dict[str, int]:
    """Figures for rows staged as they come, past the gate."""
    arrays = [pa.array(columns[field.name], field.parsed_type.arrow()) for field in contract.fields]
    table = numbered(pa.RecordBatch.from_arrays(arrays, schema=gate.arrow_schema(contract)))
    return broken(verify(con, write(path, table), contract, known or {}, picked_up=table.num_rows, rejected=0))


def test_it_shares_no_code_with_the_gate() -> None:
    imported = set(re.findall(r"^(?:from|import) (\S+)", SOURCE.read_text(), re.MULTILINE))
    assert {name for name in imported if name.startswith("bus_assets")} == {"bus_assets.contract", "bus_assets.duck", "bus_assets.types"}


def test_a_figure_per_rule_in_the_contracts_order_then_the_sums(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    contract = Contract(fields=(Field("a", "integer", required=True, unique=True), Field("b", pattern="x")), unique=(("a", "b"),))
    files = write(tmp_path, numbered(gate.split(texts({"a": ["1", "2"], "b": ["x", None]}), contract).kept))
    figures = verify(con, files, contract, {}, picked_up=5, rejected=3)
    assert [figure.rule for figure in figures] == [*map(str, contract.rules()), BALANCE, ONCE]
    assert broken(figures) == {}
    assert {figure.rows_checked for figure in figures if figure.rule != BALANCE} == {2}


EVERY_RULE = [
    (Field("v", required=True), ["a", None], "v: required"),
    (Field("v", allowed=("a", "b")), ["a", "c", None], "v: allowed"),
    (Field("v", "decimal(4,2)", allowed=("1.5", "1e9", "1.234")), [Decimal("1.50"), Decimal("1.23")], "v: allowed"),
    (Field("v", "decimal(4,2)", allowed=("1e9",)), [Decimal("1.50"), None], "v: allowed"),
    (Field("v", "integer", allowed=(1, 10**30)), [1, 2], "v: allowed"),
    (Field("v", "integer", minimum=2), [1, 2, None], "v: minimum 2"),
    (Field("v", "integer", minimum=10**30), [1, None], f"v: minimum {10**30}"),
    (Field("v", "integer", maximum=-(10**60)), [1, None], f"v: maximum {-(10**60)}"),
    (Field("v", "decimal(4,2)", minimum="0.005"), [Decimal("0.00"), Decimal("0.01")], "v: minimum 0.005"),
    (Field("v", "decimal(4,2)", maximum="1.999"), [Decimal("1.99"), Decimal("2.00")], "v: maximum 1.999"),
    (Field("v", "decimal(4,2)", minimum="0"), [Decimal("-0.01"), Decimal("0.00")], "v: minimum 0"),
    (Field("v", "decimal(38,10)", maximum="1e27"), [Decimal("1e27"), Decimal("1" + "0" * 27 + ".0000000001")], "v: maximum 1E+27"),
    (Field("v", "decimal(4,2)", minimum="1e60"), [Decimal("1.00"), None], "v: minimum 1E+60"),
    (Field("v", "number", maximum=1), [1.0, 1.5], "v: maximum 1.0"),
    (Field("v", minimum="b"), ["a", "b", "é"], "v: minimum b"),
    (Field("v", "date", maximum="2013-01-01"), [date(2013, 1, 1), date(2013, 1, 2)], "v: maximum 2013-01-01"),
    (
        Field("v", "timestamptz", minimum="2013-01-01T00:00:00+02:00"),
        [datetime(2012, 12, 31, 22, tzinfo=UTC), datetime(2012, 12, 31, 21, 59, tzinfo=UTC)],
        "v: minimum 2012-12-31 22:00:00+00:00",
    ),
    (Field("v", pattern="^a$"), ["a", "a\n", None], "v: pattern ^a$"),
    (Field("v", pattern="^a.b$"), ["a-b", "a\nb"], "v: pattern ^a.b$"),
    (Field("v", max_length=2), ["éé", "ééé", "🚌🚌"], "v: max_length 2"),
    (Field("v", "binary", min_length=2), [b"ab", b"a"], "v: min_length 2"),
    (Field("v", "list<integer>", min_length=1), [[1], [], None], "v: min_length 1"),
    (Field("v", unique=True), ["a", "a", None, None], "v: unique"),
    (Field("v", "number", unique=True), [0.0, -0.0], "v: unique"),
    (Field("v", references="o.v"), ["x", "y", None], "v: references o.v"),
    (Field("v"), ["a", "b\0", None], "v: type string"),
    (Field("v", "number"), [1.0, float("inf")], "v: type number"),
    (Field("v", "number"), [1.0, float("nan")], "v: type number"),
    (Field("v", "list<string>"), [["a", None], ["b\0", None], None, []], "v: type list<string>"),
    (
        Field("v", "struct<a: list<string>, B: number>"),
        [{"a": ["x"], "B": 1.0}, {"a": ["x", "y\0"], "B": None}, None],
        "v: type struct<a: list<string>, B: number>",
    ),
]


@pytest.mark.parametrize(("field", "values", "rule"), EVERY_RULE, ids=[f"{f.type}-{rule}"[:60] for f, _, rule in EVERY_RULE])
def test_a_staged_row_that_breaks_a_rule_is_counted(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, field: Field, values: list[Any], rule: str
) -> None:
    known = {"v": pa.array(["x", None])} if field.references else {}
    assert recount(con, tmp_path, Contract(fields=(field,)), known, v=values) == {rule: 1}


def test_days_outside_the_calendar_are_counted(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    for kind, beyond in [("date", 2_932_897), ("timestamp", 2_932_897 * 86_400_000_000), ("timestamptz", -719_163 * 86_400_000_000)]:
        contract = Contract(fields=(Field("v", kind),))
        arrow = contract["v"].parsed_type.arrow()
        column = pa.array([0, beyond], pa.int32() if kind == "date" else pa.int64()).view(arrow)
        files = write(tmp_path, numbered(pa.RecordBatch.from_arrays([column], names=["v"])))
        assert broken(verify(con, files, contract, {}, picked_up=2, rejected=0)) == {f"v: type {kind}": 1}


def test_a_column_of_another_type_or_missing_in_one_file_breaks_all_rules_of_its_field(
    con: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    contract = Contract(fields=(Field("a", "integer", minimum=0, unique=True), Field("b")))
    right = write(tmp_path, pa.table({"a": pa.array([1]), "b": ["x"], "_bus_row": [1]}), "right")
    for column in (pa.array([2], pa.int32()), pa.array(["2"]), pa.array([2.0])):
        wrong = write(tmp_path, pa.table({"a": column, "b": ["x"], "_bus_row": [2]}), "wrong")
        found = broken(verify(con, right + wrong, contract, {}, picked_up=2, rejected=0))
        assert found == {"a: type integer": 2, "a: minimum 0": 2, "a: unique": 2}
    missing = write(tmp_path, pa.table({"b": ["x"], "_bus_row": [2]}), "missing")
    assert broken(verify(con, missing, contract, {}, picked_up=1, rejected=0)) == {"a: type integer": 1, "a: minimum 0": 1, "a: unique": 1}


def test_lost_and_doubled_rows_are_counted(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    contract = Contract(fields=(Field("a"),))
    kept = gate.split(texts({"a": ["x", "y", "z"]}), contract).kept
    assert broken(verify(con, write(tmp_path, numbered(kept)), contract, {}, picked_up=5, rejected=1)) == {BALANCE: 1}
    doubled = write(tmp_path, numbered(kept, [1, 2, 2]))
    assert broken(verify(con, doubled, contract, {}, picked_up=3, rejected=0)) == {ONCE: 1}
    assert broken(verify(con, [], contract, {}, picked_up=3, rejected=3)) == {}
    assert broken(verify(con, [], contract, {}, picked_up=3, rejected=2)) == {BALANCE: 1}


def test_an_empty_file_has_no_violations(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    contract = Contract(fields=(Field("a", "integer", required=True, unique=True, references="o.a", minimum=1), Field("b", pattern="x")))
    files = write(tmp_path, numbered(gate.split(texts({"a": [], "b": []}), contract).kept))
    figures = verify(con, files, contract, {"a": ([], "a")}, picked_up=0, rejected=0)
    assert {figure.violations for figure in figures} == {0}


def test_a_reference_that_is_met_by_what_the_row_does_not_belong_to_is_counted(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    contract = Contract(fields=(Field("a", references="o.a"), Field("n", "number", references="o.n"), Field("of", "integer")))
    files = write(tmp_path, pa.table({"a": ["x", "y", None], "n": [0.0, -0.0, 0.0], "of": [1, 2, None]}), "other")
    known = {"a": (files, "a", "of"), "n": (files, "n", "of")}
    assert recount(con, tmp_path, contract, known, a=["x", "y", None], n=[-0.0, 0.0, None], of=[1, 2, 3]) == {}
    assert recount(con, tmp_path, contract, known, a=["x", "x", "y", None, "z"], n=[0.0, None, 0.0, 0.0, 0.0], of=[2, 1, 1, 3, 2]) == {
        "a: references o.a": 3,
        "n: references o.n": 1,
    }
    assert recount(con, tmp_path, contract, dict.fromkeys("an", ([], "a", "of")), a=["x"], n=[None], of=[1]) == {"a: references o.a": 1}


def test_identifiers_and_paths_with_quotes_are_no_sql(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    contract = Contract(
        fields=(Field("select", "integer", required=True), Field("v", allowed=("'; --",), pattern="'")), unique=(("select", "v"),)
    )
    kept = gate.split(texts({"select": ["1"], "v": ["'; --"]}), contract).kept
    assert kept.num_rows == 1
    files = write(tmp_path, numbered(kept), 'it\'s "here"')
    assert broken(verify(con, files, contract, {}, picked_up=1, rejected=0)) == {}


def test_unreadable_files_and_values_not_given_are_misconfigurations(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    contract = Contract(fields=(Field("a", references="o.a"),))
    files = write(tmp_path, numbered(gate.split(texts({"a": ["x"]}), contract).kept))
    with pytest.raises(Misconfigured, match="whose values were not given"):
        verify(con, files, contract, {}, picked_up=1, rejected=0)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(Misconfigured, match="could not be checked"):
        verify(con, [str(tmp_path / "broken.parquet")], contract, {"a": pa.array(["x"])}, picked_up=1, rejected=0)


SABOTAGED = {
    "required": (Field("v", required=True), ["a", None]),
    "allowed": (Field("v", allowed=("a",)), ["a", "b"]),
    "minimum": (Field("v", "integer", minimum=5), ["5", "4"]),
    "maximum": (Field("v", "integer", maximum=5), ["5", "6"]),
    "pattern": (Field("v", pattern="^a$"), ["a", "b"]),
    "min_length": (Field("v", min_length=2), ["aa", "a"]),
    "max_length": (Field("v", max_length=1), ["aa", "a"]),
}


@pytest.mark.parametrize("kind", SABOTAGED)
def test_a_splitter_that_forgets_a_rule_is_found_out(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert set(SABOTAGED) == set(gate.BROKEN)
    field, values = SABOTAGED[kind]
    contract = Contract(fields=(field,))
    assert len(gate.split(texts({"v": values}), contract).rejected) == 1
    monkeypatch.setitem(gate.BROKEN, kind, lambda column, _field: pc.and_(column.is_null(), column.is_valid()))
    found = gate.split(texts({"v": values}), contract)
    assert found.rejected == []
    figures = verify(con, write(tmp_path, numbered(found.kept)), contract, {}, picked_up=2, rejected=0)
    assert list(broken(figures).values()) == [1]
    assert kind in next(iter(broken(figures)))


KNOWN_CODES = ("a", "ab", "é")
ZONE = "America/New_York"
POOLS: dict[str, list[str | None]] = {
    "n": [None, "1", "2", "+2", "-3", "07", "7", "x", " 1", "0x1", "1e2", "9223372036854775808", "9223372036854775807"],
    "s": [None, "", "a", "ab", "a\n", "é", "A", "b\0", "abc", "🚌"],
    "d": [None, "1", "1.00", "1.25", "-1.250", "1.255", "1e1", "9999.99", "10000", "x", ".5"],
    "w": [None, "2013-01-01", "2013-02-30", "2012-02-29", "0000-01-01", "2013-1-1", "x"],
    "t": [
        None,
        "2013-01-01T05:00Z",
        "2013-01-01 00:00",
        "2013-03-10T02:30",
        "2013-11-03T01:30",
        "2013-01-01",
        "2013-01-01T05:00:00.5+00:00",
    ],
}


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    flag = st.booleans()
    fields = (
        Field(
            "n", "integer", required=draw(flag), unique=draw(flag), minimum=draw(maybe(st.just(-1))), maximum=draw(maybe(st.just(7))),
            allowed=draw(maybe(st.just((1, 2, 7)))),
        ),
        Field(
            "s", unique=draw(flag), pattern=draw(maybe(st.sampled_from(["^[a-z]*$", "b", "."]))), min_length=draw(maybe(st.just(1))),
            max_length=draw(maybe(st.just(2))), minimum=draw(maybe(st.just("a"))), references=draw(maybe(st.just("codes.code"))),
        ),
        Field("d", "decimal(6,2)", required=draw(flag), minimum=draw(maybe(st.just("-1.245"))), maximum=draw(maybe(st.just("9999.985")))),
        Field("w", "date", minimum=draw(maybe(st.just("2013-01-01")))),
        Field("t", "timestamptz", zone=draw(maybe(st.just(ZONE))), maximum=draw(maybe(st.just("2013-01-01T05:00:00Z")))),
    )  # fmt: skip
    return Contract(fields=fields, unique=draw(st.sampled_from([(), (("s", "w"),), (("d", "t"), ("n", "s"))])))


rows_of = st.lists(st.fixed_dictionaries({name: st.sampled_from(pool) for name, pool in POOLS.items()}), max_size=25)


class Oracle:
    """The same rules, slowly and one row at a time, from the contract's docstrings."""

    def __init__(self, contract: Contract):
        self.contract = contract
        self.held: set[tuple[Any, ...]] = set()

    def broken(self, row: dict[str, str | None]) -> set[str]:
        found: set[str] = set()
        values: dict[str, Any] = {}
        for field in self.contract.fields:
            try:
                values[field.name] = self.read(field, row[field.name])
            except ValueError:
                found.add(f"{field.name}: type {field.type}")
                continue
            found |= self.one(field, values[field.name])
        if found:
            return found
        found |= {f"{f.name}: references {f.references}" for f in self.contract.fields if f.references and self.dangles(values[f.name])}
        keys = {key: (key, *(values[name] for name in key)) for key in self.contract.keys if all(values[name] is not None for name in key)}
        found |= {f"{', '.join(key)}: unique" for key, held in keys.items() if held in self.held}
        if not found:
            self.held |= set(keys.values())
        return found

    @staticmethod
    def dangles(value: Any) -> bool:
        return value is not None and value not in KNOWN_CODES

    @staticmethod
    def one(field: Field, value: Any) -> set[str]:
        if value is None:
            return {f"{field.name}: required"} if field.required else set()
        checks = {
            "allowed": field.allowed is not None and value not in field.allowed,
            f"minimum {field.minimum}": field.minimum is not None and value < field.minimum,
            f"maximum {field.maximum}": field.maximum is not None and value > field.maximum,
            f"pattern {field.pattern}": field.pattern is not None and not re.search(field.pattern.replace("$", r"\Z"), value),
            f"min_length {field.min_length}": field.min_length is not None and len(value) < field.min_length,
            f"max_length {field.max_length}": field.max_length is not None and len(value) > field.max_length,
        }
        return {f"{field.name}: {rule}" for rule, is_broken in checks.items() if is_broken}

    @staticmethod
    def read(field: Field, text: str | None) -> Any:
        if text is None:
            return None
        shape = {"n": r"[+-]?[0-9]+", "d": r"-?[0-9]*\.?[0-9]*", "w": r"[0-9]{4}-[0-9]{2}-[0-9]{2}", "t": r".{10}[T ].+"}
        if field.name == "s":
            if "\0" in text:
                raise ValueError(text)
            return text
        if not re.fullmatch(shape[field.name], text):
            raise ValueError(text)
        if field.name == "n":
            return int(text) if -(2**63) <= int(text) < 2**63 else int("out of range")
        if field.name == "d":
            value = Decimal(text)
            return value if value == round(value, 2) and abs(value) < 10**4 else int("does not fit")
        if field.name == "w":
            return date.fromisoformat(text)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo:
            return moment.astimezone(UTC)
        instants = {moment.replace(tzinfo=ZoneInfo(field.zone or ""), fold=fold).astimezone(UTC) for fold in (0, 1)}
        return instants.pop() if len(instants) == 1 else int("ambiguous")


@given(contracts(), rows_of)
@settings(max_examples=120, deadline=None)
def test_gate_oracle_and_recount_agree_on_random_rows_and_contracts(
    con: duckdb.DuckDBPyConnection, contract: Contract, rows: list[dict[str, str | None]]
) -> None:
    oracle = Oracle(contract)
    expected = {index: found for index, row in enumerate(rows) if (found := oracle.broken(row))}
    known = {"s": pa.array(KNOWN_CODES)}
    done = gate.split(texts({name: [row[name] for row in rows] for name in POOLS}), contract)
    found = {rejected.index: {reason.rule for reason in rejected.reasons} for rejected in done.rejected}
    table = numbered(done.kept, [index + 1 for index in done.kept_index.to_pylist()])
    with tempfile.TemporaryDirectory() as folder:
        with gate.cross_row(con, write(Path(folder), table), contract, known) as violations:
            for violation in violations.of(table["_bus_row"].combine_chunks()):
                found.setdefault(violation.row - 1, set()).add(violation.rule)
        kept = table.filter(pc.invert(pc.is_in(table["_bus_row"], value_set=pa.array([index + 1 for index in found], pa.int64()))))
        figures = verify(con, write(Path(folder), kept), contract, known, picked_up=len(rows), rejected=len(found))
    assert broken(figures) == {}
    assert found == expected
