"""An author's SQL, tried on no rows when its route is declared: what DuckDB would otherwise say in the middle of a trip."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

import duckdb

from bus_assets.contract import Contract
from bus_assets.declare import Misdeclared
from bus_assets.passengers import ROW, quoted

if TYPE_CHECKING:
    import pyarrow as pa


def try_select(sql: str, stops: Mapping[str, Contract], promised: Contract, *, with_row: str | None) -> None:
    """Raise :class:`Misdeclared` if a transform's ``sql`` cannot run on the rows of ``stops``, or has not all columns that are promised.

    What makes columns of the values in rows, a ``PIVOT`` without a list of them, is judged when there are rows.
    ``with_row``: the stop whose rows have their identity with them.
    """
    made: list[str] = []
    _try(sql, stops, lambda connection: made.extend(connection.sql(sql).columns), with_row)
    if made and (missing := [name for name in promised.names if name not in made]):
        raise Misdeclared(f"its SQL makes no column {', '.join(missing)}, which its contract promises; it makes {', '.join(made)}")


def try_check(sql: str, stop: str, contract: Contract) -> None:
    """Raise :class:`Misdeclared` if a check's ``sql`` cannot run on the rows of ``stop``."""
    counted = counting(sql)
    _try(counted, {stop: contract}, lambda connection: connection.execute(f"EXPLAIN {counted}"))


def try_where(where: str, stop: str, contract: Contract) -> None:
    """Raise :class:`Misdeclared` if ``where`` is no condition on a row of ``stop``."""
    import pyarrow as pa

    rows = pa.schema([(field.name, field.parsed_type.arrow()) for field in contract.fields]).empty_table()
    if said := _problem({}, lambda connection: meeting(where, rows, connection)):
        names = ", ".join(contract.names)
        said += _unquoted(said, where, [contract])
        raise Misdeclared(f"it does not run: {said}; it is about one row of stop {stop!r} and knows nothing but its fields: {names}")


def meeting(where: str, rows: pa.Table, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
    """Those of ``rows`` that meet a drop-off's ``where``: tried as it is published."""
    return connection.from_arrow(rows).filter(where)


def counting(sql: str) -> str:
    """The statement that counts the rows which a check's ``sql`` finds; it may end in a comment, hence the line breaks."""
    return f"SELECT count(*) FROM (\n{sql.rstrip().rstrip(';')}\n) AS {quoted('offending')}"  # noqa: S608 - the author's own statement


def _try(sql: str, stops: Mapping[str, Contract], run: Callable[[duckdb.DuckDBPyConnection], object], with_row: str | None = None) -> None:
    def unless_rows_make_columns(connection: duckdb.DuckDBPyConnection) -> None:
        # For a PIVOT without a list of values DuckDB looks for them in the rows, by a statement of its own before the author's.
        if [statement.type for statement in connection.extract_statements(sql)] == [duckdb.StatementType.SELECT]:
            run(connection)

    if said := _problem(stops, unless_rows_make_columns, with_row):
        said += _unquoted(said, sql, stops.values())
        there = "; ".join(f"{stop!r} has {', '.join(contract.names)}" for stop, contract in stops.items())
        raise Misdeclared(f"it does not run: {said}; stop {there}")


def _problem(stops: Mapping[str, Contract], run: Callable[[duckdb.DuckDBPyConnection], object], with_row: str | None = None) -> str | None:
    """What DuckDB refuses in ``run``, with the rows of ``stops``, of which there are none, and with nothing outside in reach."""
    try:
        with _database(os.getpid()).cursor() as connection:
            for stop, contract in stops.items():
                columns = [f"{quoted(field.name)} {field.parsed_type.duckdb()}" for field in contract.fields]
                columns += [f"{ROW} BIGINT"] if stop == with_row else []
                connection.execute(f"CREATE TEMP TABLE {quoted(stop)} ({', '.join(columns)})")  # temporary: this cursor's own
            run(connection)
    except duckdb.Error as error:
        if isinstance(error, duckdb.PermissionException) or " extension" in str(error):
            return None  # what it takes from outside is there or not when it runs
        return " ".join(line for line in str(error).partition("\nLINE ")[0].splitlines() if line)
    return None


def _unquoted(said: str, sql: str, contracts: Iterable[Contract]) -> str:
    """The fields that ``sql`` may name without the quotes which they need, if it could not be parsed."""
    if not said.startswith("Parser Error"):
        return ""
    words = {word.lower() for word in re.findall(r'(?<!")\b\w+\b(?!")', sql)}
    keywords = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    reserved = {name for (name,) in _database(os.getpid()).cursor().execute(keywords).fetchall()}
    fields = dict.fromkeys(name for contract in contracts for name in contract.names if name.lower() in words & reserved)
    return f"; a field that is called as a word of SQL is written in quotes: {', '.join(map(quoted, fields))}" if fields else ""


@cache
def _database(_process: int) -> duckdb.DuckDBPyConnection:
    """An empty one for all trials of a process: to open it takes ten times as long as to try a statement."""
    connection = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False, "TimeZone": "UTC"})
    connection.execute("SET enable_external_access = false")
    return connection
