"""Rules between rows: unique keys and references, judged by DuckDB over the rows that are staged as kept.

Rows are judged in the order of ``_bus_row``, so that no row is rejected because of one that was rejected itself:

* a *reference* is broken by a value, not null, that is not among the given ones;
* a *unique key* is broken by a row when an earlier row that is kept has the same values in it, none of them null.

A row that breaks several of them has all these reasons. Looking costs one pass, and none for keys that were seen to come in
ascending order (:class:`InOrder`); only where several keys are shared, the rows that share one are looked at one by one.
"""

# ruff: noqa: S608 - identifiers are quoted, values are bound; DuckDB binds neither columns nor files of a view
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import duckdb
import pyarrow as pa

from bus_assets.contract import Contract, Rule
from bus_assets.duck import disk_full
from bus_assets.reading import shown
from resources.errors import Misconfigured
from resources.ordered import Ascending
from resources.records import place_of

Known = pa.Array | pa.ChunkedArray | tuple[Sequence[str], str] | tuple[Sequence[str], str, str]
"""The values that a reference may take: in memory, or a column of staged Parquet files as ``(paths, column)``; as ``(paths, column,
within)`` only those of rows that are equal to the referring one in the column ``within``, which both have."""

ROWS_AT_A_TIME = 10_000
_ORDERED = ("string", "integer", "number", "decimal", "date", "time", "timestamp", "timestamptz")
"""Types that Arrow compares; two values of which one is greater are never the same to DuckDB."""
_KINDS = {
    "BOOLEAN": "boolean",
    "VARCHAR": "text",
    "BLOB": "binary",
    "DATE": "date or timestamp",
    "TIME": "time",
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
}


class Violation(NamedTuple):
    """Row ``row`` (its ``_bus_row``) breaks ``rule``, named as in ``Contract.rules()``."""

    row: int
    rule: str
    message: str


class InOrder:
    """The keys that every staged row had in ascending order, so that none of them appears twice. Rows are added as they are staged."""

    def __init__(self, contract: Contract):
        comparable = [key for key in contract.keys if all(contract[name].parsed_type.kind in _ORDERED for name in key)]
        self._keys = {key: Ascending() for key in comparable}

    @property
    def keys(self) -> frozenset[tuple[str, ...]]:
        return frozenset(key for key, ascending in self._keys.items() if ascending.holds)

    def add(self, kept: pa.RecordBatch) -> None:
        for key, ascending in self._keys.items():
            ascending.add([kept.column(name) for name in key])


class Violations:
    """What rows break, kept by DuckDB until it is asked for: all rows may break something, so they are never one list here."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, contract: Contract, unit: str):
        self.rules = [rule for kind in ("references", "unique") for rule in contract.rules() if rule.kind == kind]
        self._cursor, self._unit = cursor, unit
        cursor.execute(
            "CREATE TEMP TABLE violations "
            "(row BIGINT, rule INTEGER, found VARCHAR[], first_row BIGINT, first_origin VARCHAR, first_position BIGINT)"
        )

    def __bool__(self) -> bool:
        return bool(self._cursor.execute("SELECT 1 FROM violations LIMIT 1").fetchall())

    def of(self, rows: pa.Int64Array) -> list[Violation]:
        """Those of ``rows``, in row order, each row's in the order of ``rules``."""
        self._cursor.register("asked", pa.table({"row": rows}))
        found = self._cursor.execute("SELECT * FROM violations SEMI JOIN asked USING (row) ORDER BY row, rule").fetchall()
        return [Violation(row, str(self.rules[rule]), self._said(self.rules[rule], *what)) for row, rule, *what in found]

    def _said(self, rule: Rule, found: list[str | None], row: int, origin: str | None, position: int | None) -> str:
        values = ", ".join(map(_hideable, found))
        if rule.kind == "references":
            return f"{values} is not in {rule.detail}"
        return f"{values} is the same as {_place(row, origin, position, self._unit)}"


@contextmanager
def cross_row(
    con: duckdb.DuckDBPyConnection,
    kept_files: Sequence[str],
    contract: Contract,
    references: Mapping[str, Known],
    *,
    unit: str = "row",
    within: str | None = None,
    unique: Collection[tuple[str, ...]] = (),
) -> Iterator[Violations]:
    """Every violation of a reference or of a unique key, to be asked for as long as the context is open.

    ``kept_files`` have ``_bus_row`` (int64, unique) and may have ``_bus_origin`` and ``_bus_position``: then a message names the
    row with the same key as ``orders.csv, line 12``, ``unit`` being 'line'. ``references`` by field name. ``within``: a column of the
    files; keys are compared only among rows that are equal in it. ``unique``: keys that are known to appear once. Memory: what the
    caller sets as DuckDB's limit; where two keys appear more than once, also a bit for each row and key.
    Raises :class:`Misconfigured` for a reference without values, of another kind of type, or if DuckDB runs out of memory, and
    :class:`~resources.errors.Transient` if the disk is full to which it spills.
    """
    cursor = con.cursor()  # temporary views and tables of a cursor are its own
    try:
        violations = Violations(cursor, contract, unit)
        if kept_files:
            cursor.execute(f"CREATE TEMP VIEW kept AS SELECT * FROM read_parquet({_literals(kept_files)})")
            _find_dangling(cursor, contract, references, violations.rules)
            candidates = [key for key in contract.keys if key not in unique]
            _find_repeated(cursor, contract, candidates, (within,) if within else (), violations.rules)
        yield violations
    except duckdb.Error as error:
        failed = Misconfigured(f"keys and references could not be checked: {str(error).splitlines()[0]}; see DuckDB's settings")
        raise disk_full(error) or failed from error
    finally:
        cursor.close()


def _find_dangling(cursor: duckdb.DuckDBPyConnection, contract: Contract, references: Mapping[str, Known], rules: Sequence[Rule]) -> None:
    for number, rule in enumerate(rules):
        if rule.kind != "references":
            continue
        name = rule.fields[0]
        if name not in references:
            raise Misconfigured(f"field {name!r} references {rule.detail!r}, whose values were not given")
        known = f"known_{number}"
        kind, within = _know(cursor, known, references[name])
        _check_kind(cursor, rule, kind)
        same = f"{known}.value = kept.{_quoted(name)}" + (f" AND {known}.part = kept.{_quoted(within)}" if within else "")
        cursor.execute(
            f"INSERT INTO violations SELECT _bus_row, {number}, [{_text(contract, name)}], NULL, NULL, NULL FROM kept "
            f"WHERE {_quoted(name)} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {known} WHERE {same})"
        )


def _know(cursor: duckdb.DuckDBPyConnection, name: str, known: Known) -> tuple[str, str | None]:
    """Make the values of a reference a relation ``name(value, part)``; its DuckDB type, and the column in which ``part`` is met, if any."""
    within = None
    if isinstance(known, tuple):
        files, column, *parts = known
        within = parts[0] if parts else None
        columns = f"{_quoted(column)} AS value, {_quoted(within) if within else 'NULL'} AS part"
        source = f"SELECT {columns} FROM read_parquet({_literals(files)})" if files else "SELECT NULL AS value, NULL AS part WHERE false"
        cursor.execute(f"CREATE TEMP VIEW {name} AS {source}")
    else:
        cursor.register(name, pa.table({"value": known}))
    return str(cursor.execute(f"DESCRIBE SELECT value FROM {name}").fetchall()[0][1]), within


def _check_kind(cursor: duckdb.DuckDBPyConnection, rule: Rule, known: str) -> None:
    here = str(cursor.execute(f"DESCRIBE SELECT {_quoted(rule.fields[0])} FROM kept").fetchall()[0][1])
    if known.strip('"') != "NULL" and _kind_of(known) != _kind_of(here):
        raise Misconfigured(
            f"field {rule.fields[0]!r} is {here}, {rule.detail} is {known}: their values cannot be compared; give both one type"
        )


def _kind_of(duckdb_type: str) -> str:
    if duckdb_type.startswith(("TIMESTAMP", "DATE")) and "ZONE" not in duckdb_type:
        return "date or timestamp"
    if duckdb_type.startswith("ENUM"):
        return "text"
    return _KINDS.get(duckdb_type, "number")


def _find_repeated(
    cursor: duckdb.DuckDBPyConnection,
    contract: Contract,
    candidates: Sequence[tuple[str, ...]],
    within: tuple[str, ...],
    rules: Sequence[Rule],
) -> None:
    keys = [key for key in candidates if _appears_twice(cursor, (*key, *within))]
    if not keys:
        return
    placed = {"_bus_origin", "_bus_position"} <= {name for name, *_ in cursor.execute("DESCRIBE kept").fetchall()}
    sharing = (_sharing(contract, rules.index(Rule("unique", key)), key, within, placed) for key in keys)
    cursor.execute(f"CREATE TEMP TABLE shares AS {' UNION ALL '.join(sharing)}")
    cursor.execute("CREATE TEMP TABLE fallen (row BIGINT)")
    if len(keys) > 1:
        _find_fallen(cursor, len(rules))
    cursor.execute(_LATER_ROWS)


_LATER_ROWS = """
    INSERT INTO violations
    WITH kept_first AS (
        SELECT rule, first, min(row) AS row
        FROM shares ANTI JOIN fallen USING (row)
        WHERE NOT dangles
        GROUP BY rule, first
    )
    SELECT later.row, later.rule, later.found, place.row, place.origin, place.position
    FROM shares AS later
    JOIN kept_first ON kept_first.rule = later.rule AND kept_first.first = later.first AND kept_first.row < later.row
    JOIN shares AS place ON place.rule = kept_first.rule AND place.row = kept_first.row
"""
"""Rows that have the key of an earlier one that is kept."""


def _find_fallen(cursor: duckdb.DuckDBPyConnection, rules: int) -> None:
    """Rows of ``shares`` that fall to an earlier one by any of their keys, so that they keep no key from a later row.

    With several keys that is decided row by row: whether a row stays depends on all that come before it.
    """
    (last,) = cursor.execute("SELECT max(row) FROM shares").fetchall()[0]
    held = bytearray((last + 1) * rules // 8 + 1)  # a bit for each key, told by the first row that has it
    for start in range(0, last + 1, ROWS_AT_A_TIME):
        some = "SELECT row, list(first * ? + rule) FROM shares WHERE row >= ? AND row < ? AND NOT dangles GROUP BY row ORDER BY row"
        fallen = []
        for row, keys in cursor.execute(some, [rules, start, start + ROWS_AT_A_TIME]).fetchall():
            if any(held[key >> 3] & 1 << (key & 7) for key in keys):
                fallen.append(row)
            else:
                for key in keys:
                    held[key >> 3] |= 1 << (key & 7)
        if fallen:
            cursor.register("fell", pa.table({"row": pa.array(fallen, pa.int64())}))
            cursor.execute("INSERT INTO fallen SELECT row FROM fell")


def _appears_twice(cursor: duckdb.DuckDBPyConnection, key: tuple[str, ...]) -> bool:
    """Compared by hash, three times as fast as by value: a collision only costs a second look."""
    columns = ", ".join(map(_quoted, key))
    query = f"SELECT count(*) - count(DISTINCT hash({columns})) FROM kept WHERE {_complete(key)}"
    return bool(cursor.execute(query).fetchall()[0][0])


def _sharing(contract: Contract, rule: int, key: tuple[str, ...], within: tuple[str, ...], placed: bool) -> str:
    """Rows that share ``key`` with another; ``first`` is the first of those."""
    columns = ", ".join(map(_quoted, (*key, *within)))
    same = " AND ".join(f"kept.{_quoted(name)} = twice.{_quoted(name)}" for name in (*key, *within))
    place = "CAST(_bus_origin AS VARCHAR) AS origin, _bus_position AS position" if placed else "NULL AS origin, NULL AS position"
    values = ", ".join(_text(contract, name, "kept.") for name in key)
    first = f"SELECT {columns}, min(_bus_row) AS first FROM kept WHERE {_complete(key)} GROUP BY {columns} HAVING count(*) > 1"
    return (
        f"SELECT _bus_row AS row, {rule} AS rule, twice.first, _bus_row IN (SELECT row FROM violations) AS dangles, [{values}] AS found, "
        f"{place} FROM kept JOIN ({first}) AS twice ON {same}"
    )


def _complete(key: tuple[str, ...]) -> str:
    return " AND ".join(f"{_quoted(name)} IS NOT NULL" for name in key)


def _place(row: int, origin: str | None, position: int | None, unit: str) -> str:
    return f"row {row}" if origin is None or position is None else place_of(origin, unit, position)


def _text(contract: Contract, name: str, of: str = "") -> str:
    """SQL for a value as a message shows it; null for a sensitive one."""
    if contract[name].sensitive:
        return "CAST(NULL AS VARCHAR)"
    column, kind = f"{of}{_quoted(name)}", contract[name].parsed_type.kind
    if kind == "timestamptz":
        return f"CAST(make_timestamp(epoch_us({column})) AS VARCHAR) || '+00:00'"
    return f"chr(39) || left({column}, 100) || chr(39)" if kind == "string" else f"CAST({column} AS VARCHAR)"


def _hideable(found: str | None) -> str:
    if found is None:
        return "the value"
    return shown(found[1:-1]) if found.startswith("'") else found


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _literals(paths: Sequence[str]) -> str:
    """A list of paths as SQL: a view takes no bound parameters."""
    return "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in paths) + "]"
