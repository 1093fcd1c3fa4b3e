"""Rules between rows: unique keys and references, judged by DuckDB over the rows that are staged as kept.

Rows are judged in the order of ``_bus_row``, so that no row is rejected because of one that was rejected itself:

* a *reference* is broken by a value, not null, that is not among the given ones;
* a *unique key* is broken by a row when an earlier row that is kept has the same values in it, none of them null.

A row that breaks several of them has all these reasons. Looking costs one pass, and none for keys that were seen to come in
ascending order (:class:`InOrder`); only rows that share a key with another are looked at one by one.
"""

# ruff: noqa: S608 - identifiers are quoted, values are bound; DuckDB binds neither columns nor files of a view
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from bus_assets.contract import Contract, Rule
from bus_assets.reading import shown
from resources.errors import Misconfigured
from resources.ordered import Ascending
from resources.records import place_of

Known = pa.Array | pa.ChunkedArray | tuple[Sequence[str], str]
"""The values that a reference may take: in memory, or a column of staged Parquet files as ``(paths, column)``."""

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


def cross_row(
    con: duckdb.DuckDBPyConnection,
    kept_files: Sequence[str],
    contract: Contract,
    references: Mapping[str, Known],
    *,
    unit: str = "row",
    within: str | None = None,
    unique: Collection[tuple[str, ...]] = (),
) -> Iterator[Violation]:
    """Every violation of a reference, then of a unique key, each in row order; a row may come several times.

    ``kept_files`` have ``_bus_row`` (int64, unique) and may have ``_bus_origin`` and ``_bus_position``: then a message names the
    row with the same key as ``orders.csv, line 12``, ``unit`` being 'line'. ``references`` by field name. ``within``: a column of the
    files; keys are compared only among rows that are equal in it. ``unique``: keys that are known to appear once. Memory: what the
    caller sets as DuckDB's limit, and a few words for each key value that appears more than once.
    Raises :class:`Misconfigured` for a reference without values, of another kind of type, or if DuckDB runs out of memory.
    """
    if not kept_files:
        return
    cursor = con.cursor()  # temporary views of a cursor are its own
    try:
        cursor.execute(f"CREATE TEMP VIEW kept AS SELECT * FROM read_parquet({_literals(kept_files)})")
        yield from _dangling(cursor, contract, references)
        candidates = [key for key in contract.keys if key not in unique]
        yield from _repeated(cursor, contract, candidates, unit, (within,) if within else ())
    except duckdb.Error as error:
        raise Misconfigured(f"keys and references could not be checked: {str(error).splitlines()[0]}; see DuckDB's settings") from error
    finally:
        cursor.close()


def _dangling(cursor: duckdb.DuckDBPyConnection, contract: Contract, references: Mapping[str, Known]) -> Iterator[Violation]:
    cursor.execute("CREATE TEMP TABLE dangling (row BIGINT, rule INTEGER, found VARCHAR)")
    rules = [rule for rule in contract.rules() if rule.kind == "references"]
    for number, rule in enumerate(rules):
        name = rule.fields[0]
        if name not in references:
            raise Misconfigured(f"field {name!r} references {rule.detail!r}, whose values were not given")
        known = f"known_{number}"
        kind = _know(cursor, known, references[name])
        _check_kind(cursor, rule, kind)
        cursor.execute(
            f"INSERT INTO dangling SELECT _bus_row, {number}, {_text(contract, name)} FROM kept WHERE {_quoted(name)} IS NOT NULL "
            f"AND NOT EXISTS (SELECT 1 FROM {known} WHERE {known}.value = kept.{_quoted(name)})"
        )
    for row, number, found in _rows(cursor, "SELECT * FROM dangling ORDER BY row, rule"):
        yield Violation(row, str(rules[number]), f"{_hideable(found)} is not in {rules[number].detail}")


def _know(cursor: duckdb.DuckDBPyConnection, name: str, known: Known) -> str:
    """Make the values of a reference a relation ``name(value)``; its DuckDB type."""
    if isinstance(known, tuple):
        files, column = known
        source = f"SELECT {_quoted(column)} AS value FROM read_parquet({_literals(files)})" if files else "SELECT NULL AS value WHERE false"
        cursor.execute(f"CREATE TEMP VIEW {name} AS {source}")
    else:
        cursor.register(name, pa.table({"value": known}))
    return str(cursor.execute(f"DESCRIBE SELECT value FROM {name}").fetchall()[0][1])


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


def _repeated(
    cursor: duckdb.DuckDBPyConnection, contract: Contract, candidates: Sequence[tuple[str, ...]], unit: str, within: tuple[str, ...]
) -> Iterator[Violation]:
    keys = [key for key in candidates if _appears_twice(cursor, (*key, *within))]
    if not keys:
        return
    placed = {"_bus_origin", "_bus_position"} <= {name for name, *_ in cursor.execute("DESCRIBE kept").fetchall()}
    query = " UNION ALL ".join(_sharing(contract, number, key, within, placed) for number, key in enumerate(keys))
    held: dict[tuple[int, int], tuple[Any, ...]] = {}
    for row, shares in groupby(_rows(cursor, f"{query} ORDER BY row, key"), key=lambda share: share[0]):
        found = list(shares)
        taken = [share for share in found if (share[1], share[2]) in held]
        for _, key, group, _, _, _, values in taken:
            place = _place(held[key, group], unit)
            yield Violation(row, str(Rule("unique", keys[key])), f"{', '.join(map(_hideable, values))} is the same as {place}")
        if not taken and not found[0][3]:
            held.update({(key, group): (row, origin, position) for _, key, group, _, origin, position, _ in found})


def _appears_twice(cursor: duckdb.DuckDBPyConnection, key: tuple[str, ...]) -> bool:
    """Compared by hash, three times as fast as by value: a collision only costs a second look."""
    columns = ", ".join(map(_quoted, key))
    query = f"SELECT count(*) - count(DISTINCT hash({columns})) FROM kept WHERE {_complete(key)}"
    return bool(cursor.execute(query).fetchall()[0][0])


def _sharing(contract: Contract, number: int, key: tuple[str, ...], within: tuple[str, ...], placed: bool) -> str:
    """Rows that share key ``number`` with another: (row, key, group, breaks a reference, origin, position, values as text)."""
    columns = ", ".join(map(_quoted, (*key, *within)))
    same = " AND ".join(f"kept.{_quoted(name)} = twice.{_quoted(name)}" for name in (*key, *within))
    place = "CAST(_bus_origin AS VARCHAR), _bus_position" if placed else "NULL, NULL"
    values = ", ".join(_text(contract, name, "kept.") for name in key)
    first = f"SELECT {columns}, min(_bus_row) AS first FROM kept WHERE {_complete(key)} GROUP BY {columns} HAVING count(*) > 1"
    dangles = "_bus_row IN (SELECT row FROM dangling)"
    return (
        f"SELECT _bus_row AS row, {number} AS key, twice.first, {dangles}, {place}, [{values}] FROM kept JOIN ({first}) AS twice ON {same}"
    )


def _complete(key: tuple[str, ...]) -> str:
    return " AND ".join(f"{_quoted(name)} IS NOT NULL" for name in key)


def _place(held: tuple[Any, ...], unit: str) -> str:
    row, origin, position = held
    return f"row {row}" if origin is None or position is None else place_of(origin, unit, position)


def _rows(cursor: duckdb.DuckDBPyConnection, query: str) -> Iterator[tuple[Any, ...]]:
    cursor.execute(query)
    while found := cursor.fetchmany(ROWS_AT_A_TIME):
        yield from found


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
