"""Every rule of a contract once more, in SQL, from the rows that were staged as kept.

Written apart from the gate, and sharing no code with it, so that a mistake in one is found by the other: what this counts is what
the checks show, and a violation here means that the gate is wrong. One statement, whatever the number of rules; a second one for keys
that do not come in ascending order.
"""

# ruff: noqa: S608 - identifiers are quoted, values are bound; DuckDB binds neither columns nor files of a view
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import duckdb
import pyarrow as pa

from bus_assets.contract import Contract, Field, Rule
from bus_assets.duck import disk_full
from bus_assets.types import Type
from resources.errors import Misconfigured

BALANCE = "rows: picked up = kept + rejected"
ONCE = "rows: each kept once"
_ROW_NUMBER = "row_number"
_LARGEST_INTEGER = 2**63 - 1
_EXACT = Context(prec=1000)
"""More digits than anybody writes in a bound; Python's own 28 are fewer than a decimal(38,10) has."""


@dataclass(frozen=True)
class Figure:
    """How many of ``rows_checked`` staged rows break ``rule``; 0 unless the gate is wrong."""

    rule: str
    rows_checked: int
    violations: int


def verify(
    con: duckdb.DuckDBPyConnection,
    kept_files: Sequence[str],
    contract: Contract,
    references: Mapping[str, pa.Array | pa.ChunkedArray | tuple[Sequence[str], str] | tuple[Sequence[str], str, str]],
    *,
    picked_up: int,
    rejected: int,
    within: str | None = None,
) -> tuple[Figure, ...]:
    """A figure for every rule in the order of ``contract.rules()``, then :data:`BALANCE` and :data:`ONCE`.

    ``kept_files``: Parquet with the contract's columns and ``_bus_row``. ``references``: for each field that has one the values it may
    take, in memory or as ``(paths, column)`` of staged Parquet; as ``(paths, column, where)`` those of rows whose ``where`` is the same.
    ``within``: a column; a key may come again where that differs. A column that is missing in a file or has another type there breaks
    all rules of its field in every row. Raises :class:`Misconfigured` if the files cannot be read or compared.
    """
    rules = list(contract.rules())
    cursor = con.cursor()
    try:
        rows, repeated, *violations = _counted(cursor, kept_files, contract, references, rules, (within,) if within else ())
    except duckdb.Error as error:
        raise disk_full(error) or Misconfigured(f"the staged rows could not be checked: {str(error).splitlines()[0]}") from error
    finally:
        cursor.close()
    figures = tuple(Figure(str(rule), rows, found) for rule, found in zip(rules, violations, strict=True))
    return (*figures, Figure(BALANCE, picked_up, abs(picked_up - rejected - rows)), Figure(ONCE, rows, repeated))


@dataclass
class _Statement:
    """The SELECT as it grows: a column per rule, with its bound values in the order of the text.

    Rules about one row are counted in one scan (``count_if``: a third of the time of ``FILTER``). Keys are looked through in another:
    values that each are greater than the one before them are distinct, which costs a tenth of counting distinct values. Where
    they are not in order, those are counted, each in a scan of its own, which is twice as fast as all of them in one aggregate.
    """

    files: Sequence[str]
    columns: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    bound: list[Any] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def count_where(self, broken: str, *values: Any) -> None:
        self.columns.append(f"rule_{len(self.columns)}")
        self.broken.append(f"coalesce(count_if({broken}), 0) AS {self.columns[-1]}")
        self.bound += values

    def count_repetitions(self, key: tuple[str, ...]) -> None:
        self.columns.append(f"rule_{len(self.columns)}")
        self.keys[self.columns[-1]] = key

    def counted(self, cursor: duckdb.DuckDBPyConnection) -> list[int]:
        """Rows, repeated row numbers, then what each rule counted."""
        found = self._answers(cursor, [self._each_row(), self._in_order()], self.bound)
        repeated = [name for name in (_ROW_NUMBER, *self.keys) if found[name] > 1]
        found |= dict.fromkeys((_ROW_NUMBER, *self.keys), 0)
        found |= self._answers(cursor, [self._distinct(name) for name in repeated], []) if repeated else {}
        return [found[name] for name in ("rows", _ROW_NUMBER, *self.columns)]

    def _answers(self, cursor: duckdb.DuckDBPyConnection, scans: Sequence[str], bound: Sequence[Any]) -> dict[str, int]:
        try:
            return _row(cursor, ", ".join(scans), bound)
        except duckdb.OutOfMemoryException:  # many columns and many keys at once: slower, with the memory of one scan
            first, *others = scans
            return _row(cursor, first, bound) | {name: found for scan in others for name, found in _row(cursor, scan, []).items()}

    def _each_row(self) -> str:
        rows = f"(SELECT {', '.join(['*', *self.members])} FROM {self._staged})"
        return f"(SELECT {', '.join(['count(*) AS rows', *self.broken])} FROM {rows})"

    def _in_order(self) -> str:
        """Per key how many rows are not proved to be greater than the one before: the first never is. Null proves nothing."""
        keys = {_ROW_NUMBER: ("_bus_row",), **self.keys}
        steps = ", ".join(f"({_greater(key)}) IS NOT TRUE AS {name}" for name, key in keys.items())
        counts = ", ".join(f"coalesce(count_if({name}), 0) AS {name}" for name in keys)
        return f"(SELECT {counts} FROM (SELECT {steps} FROM {self._staged}))"

    def _distinct(self, name: str) -> str:
        if name == _ROW_NUMBER:
            return f"(SELECT count(*) - count(DISTINCT _bus_row) AS {name} FROM {self._staged})"
        key = self.keys[name]
        columns = ", ".join(map(_name, key))
        there = " AND ".join(f"{_name(name)} IS NOT NULL" for name in key)
        value = columns if len(key) == 1 else f"({columns})"
        return f"(SELECT count(*) - count(DISTINCT {value}) AS {name} FROM (SELECT {columns} FROM {self._staged} WHERE {there}))"

    @property
    def _staged(self) -> str:
        return f"read_parquet({_paths(self.files)})"


def _row(cursor: duckdb.DuckDBPyConnection, scans: str, bound: Sequence[Any]) -> dict[str, int]:
    made = cursor.execute(f"SELECT * FROM {scans}", bound)
    return dict(zip((name for name, *_ in made.description or ()), made.fetchall()[0], strict=True))


def _greater(key: tuple[str, ...]) -> str:
    """SQL that is true where the key is greater than in the row before, read as a word is: the first part that differs decides."""
    first, *rest = key
    column = _name(first)
    before = f"lag({column}) OVER ()"
    return f"{column} > {before}" + (f" OR ({column} = {before} AND ({_greater(tuple(rest))}))" if rest else "")


def _counted(
    cursor: duckdb.DuckDBPyConnection,
    files: Sequence[str],
    contract: Contract,
    references: Mapping[str, Any],
    rules: list[Rule],
    within: tuple[str, ...],
) -> list[int]:
    if not files:
        return [0] * (len(rules) + 2)
    wrong = _mistyped(cursor, files, contract)
    statement = _Statement(files)
    for number, rule in enumerate(rules):
        if wrong.intersection(rule.fields):
            statement.count_where("true")
        elif rule.kind == "unique":
            statement.count_repetitions(rule.fields + within)
        elif rule.kind == "references":
            _refer(cursor, statement, number, rule, references)
        else:
            _judge(statement, rule.kind, contract[rule.fields[0]])
    return statement.counted(cursor)


def _mistyped(cursor: duckdb.DuckDBPyConnection, files: Sequence[str], contract: Contract) -> set[str]:
    """Fields whose column is missing or of another type in any of the files."""
    promised = ", ".join(f"typeof(CAST(NULL AS {field.parsed_type.duckdb()}))" for field in contract.fields)
    types = dict(zip(contract.names, cursor.execute(f"SELECT {promised}").fetchall()[0], strict=True))
    wrong: set[str] = set()
    for file in files:
        found = {name: kind for name, kind, *_ in cursor.execute(f"DESCRIBE SELECT * FROM read_parquet({_paths([file])})").fetchall()}
        wrong |= {name for name, kind in types.items() if found.get(name) != kind}
    return wrong


def _judge(statement: _Statement, rule: str, of: Field) -> None:
    """Count the rows whose value alone breaks ``rule``; null breaks nothing but 'required'."""
    column, kind = _name(of.name), of.parsed_type
    if rule == "type":
        statement.count_where(_impossible(column, kind) or "false")
    elif rule == "required":
        statement.count_where(f"{column} IS NULL")
    elif rule == "allowed":
        values = [value for value in of.allowed or () if _holds(kind, value)]
        among = f"{column} IN ({', '.join('?' * len(values))})" if values else "false"
        statement.count_where(f"{column} IS NOT NULL AND NOT ({among})", *values)
    elif rule in ("minimum", "maximum"):
        _bound(statement, column, kind, of.minimum if rule == "minimum" else of.maximum, lower=rule == "minimum")
    elif rule == "pattern":
        statement.count_where(f"NOT regexp_matches({column}, ?)", of.pattern)
    elif rule in ("min_length", "max_length"):
        size = {"string": "length", "binary": "octet_length", "list": "len"}[kind.kind]
        statement.count_where(f"{size}({column}) {'<' if rule == 'min_length' else '>'} {int(getattr(of, rule))}")
    else:
        raise Misconfigured(f"rule {rule!r} of field {of.name!r} has no recomputation; add one to bus_assets.verify")


def _impossible(value: str, kind: Type, depth: int = 0) -> str | None:
    """SQL that is true for values that the column's type can hold but ours cannot; None where there are none."""
    if kind.kind == "string":
        return f"contains({value}, chr(0))"
    if kind.kind == "number":
        return f"NOT isfinite({value})"
    if kind.kind in ("date", "timestamp"):
        return f"NOT ({value} >= '0001-01-01' AND {value} < '9999-12-31'::DATE + 1)"
    if kind.kind == "timestamptz":
        return f"NOT (epoch_us({value}) BETWEEN epoch_us(TIMESTAMP '0001-01-01') AND epoch_us(TIMESTAMP '9999-12-31 23:59:59.999999'))"
    if kind.item is not None:
        item = _impossible(f"item{depth}", kind.item, depth + 1)
        return item and f"coalesce(list_bool_or(list_transform({value}, lambda item{depth}: {item})), false)"
    parts = [_impossible(f"struct_extract({value}, '{name}')", member, depth) for name, member in kind.members]
    return " OR ".join(f"coalesce({part}, false)" for part in parts if part) or None


def _bound(statement: _Statement, column: str, kind: Type, bound: Any, *, lower: bool) -> None:
    """Count values beyond ``bound``. One that the type cannot hold is beyond all values or none; between two steps of a decimal the
    nearer step inside counts."""
    if kind.kind == "decimal":
        steps = _steps(bound, kind).to_integral_value(ROUND_CEILING if lower else ROUND_FLOOR)
        bound = steps.scaleb(-kind.scale, _EXACT)
    if _holds(kind, bound):
        statement.count_where(f"{column} {'<' if lower else '>'} ?", bound)
    else:
        statement.count_where(f"{column} IS NOT NULL" if (bound > 0) == lower else "false")


def _steps(value: Decimal, kind: Type) -> Decimal:
    """``value`` in units of the last digit that the type keeps."""
    return value.scaleb(kind.scale, _EXACT)


def _holds(kind: Type, value: Any) -> bool:
    if kind.kind == "integer":
        return -_LARGEST_INTEGER - 1 <= value <= _LARGEST_INTEGER
    if kind.kind == "decimal":
        steps = _steps(value, kind)
        return steps == steps.to_integral_value() and steps.copy_abs() < 10**kind.precision
    return True


def _refer(cursor: duckdb.DuckDBPyConnection, statement: _Statement, number: int, rule: Rule, references: Mapping[str, Any]) -> None:
    column = rule.fields[0]
    if column not in references:
        raise Misconfigured(f"field {column!r} references {rule.detail!r}, whose values were not given")
    known, also = references[column], ""
    if isinstance(known, tuple):
        also = "".join(f", {_name(same)}" for same in known[2:])
        source = f"SELECT {_name(known[1])} AS value{also} FROM read_parquet({_paths(known[0])})" if known[0] else None
    else:
        cursor.register(f"values_{number}", pa.table({"value": known}))
        source = f"SELECT value FROM values_{number}" if len(known) - known.null_count else None
    there = f"{_name(column)} IS NOT NULL"
    among = f"({_name(column)}{also}) IN (SELECT value{also} FROM ({source}) WHERE value IS NOT NULL)" if source else "false"
    statement.members.append(f"{there} AND ({among}) IS NOT TRUE AS dangling_{number}")
    statement.count_where(f"dangling_{number}")


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _paths(files: Sequence[str]) -> str:
    return "[" + ", ".join("'" + file.replace("'", "''") + "'" for file in files) + "]"
