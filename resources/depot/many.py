"""Thousands of values in one statement, in the caller's transaction: on Postgres as one array, or by COPY."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql


def among(connection: sa.Connection, column: sa.ColumnElement[Any], values: Iterable[Any]) -> sa.ColumnElement[bool]:
    """Whether ``column`` is one of ``values``. An IN list of thousands takes longer to be written and read than to be looked up."""
    if connection.dialect.name != "postgresql":
        return column.in_(list(values))
    return column == sa.any_(_array(column, values))


def looked_up(
    connection: sa.Connection, told: Sequence[sa.Column[Any]], where: sa.ColumnElement[bool], unique: sa.Column[Any], values: Iterable[Any]
) -> sa.Select[Any]:
    """``told`` of the rows ``where`` ``unique`` is one of ``values``; the two together are a unique key.

    Each value by itself: of a table that has grown since Postgres last counted it, the planner may compare every row with every value.
    """
    if connection.dialect.name != "postgresql":
        return sa.select(*told).where(where, among(connection, unique, values))
    wanted = sa.func.unnest(_array(unique, values)).table_valued("value").render_derived(name="wanted")
    row = sa.select(*told).where(where, unique == wanted.c.value).limit(1).lateral("found")
    return sa.select(row).select_from(wanted.join(row, sa.true()))


def _array(column: sa.ColumnElement[Any], values: Iterable[Any]) -> sa.BindParameter[Any]:
    """``values`` of ``column``, bound as one."""
    return sa.bindparam(None, list(values), postgresql.ARRAY(column.type), unique=True)


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert ``rows``, which all have the same columns."""
    if not rows:
        return
    if connection.dialect.name != "postgresql":
        connection.execute(sa.insert(table), rows)
        return
    import psycopg

    try:
        _copy(connection, table, rows)
    except psycopg.Error as error:
        raise exc.DBAPIError("COPY", None, error) from error


def _copy(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    from psycopg import sql

    raw: Any = connection.connection.driver_connection
    columns = [table.c[name] for name in rows[0]]
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    as_bound = [(column.key, _binder(column, connection.dialect)) for column in columns]
    with raw.cursor() as cursor, cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), names)) as copy:
        for row in rows:
            copy.write_row([row[name] if bind is None else bind(row[name]) for name, bind in as_bound])


def _binder(column: sa.Column[Any], dialect: sa.Dialect) -> Any:
    return column.type.dialect_impl(dialect).bind_processor(dialect)
