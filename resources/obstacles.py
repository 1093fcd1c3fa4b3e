"""What keeps a table from what is promised, whatever its columns are: it has no transactions, or does something else than write rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from resources.engines import MYSQL_LIKE

_POSTGRES = sa.text(
    "SELECT rulename, NULL FROM pg_rewrite JOIN pg_class ON pg_class.oid = ev_class "
    "WHERE ev_class = to_regclass(:name) AND relkind IN ('r', 'p') AND ev_type = '3' AND is_instead "
    "UNION ALL SELECT conname, ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey)) "
    "FROM pg_constraint WHERE conrelid = to_regclass(:name) AND contype IN ('p', 'u') AND condeferrable"
)
"""Rules of a table by which an INSERT does something else (a view is made of such); unique keys that are deferrable, and their columns."""
_SQLITE_NO_KEYWORD = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^]]*\]|--[^\n]*|/\*.*?\*/""", re.DOTALL)
_SQLITE_REPLACES = re.compile(r"\bON\s+CONFLICT\s+REPLACE\b", re.IGNORECASE)
_MYSQL_NAMES = re.compile(r"'(?:[^'\\]|''|\\.)*'|`((?:[^`]|``)+)`\.`((?:[^`]|``)+)`|`(?:[^`]|``)+`", re.DOTALL)
"""In a view's definition as the server writes it: (schema, table), or an alias and its column, which is no table."""
_MYSQL_VIEW = sa.text(
    "SELECT view_definition FROM information_schema.views WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
)
_MYSQL_TABLES = sa.text(
    "SELECT table_schema, table_name, engine FROM information_schema.tables WHERE (table_schema, table_name) IN :names"
).bindparams(sa.bindparam("names", expanding=True))


def obstacles(inspector: sa.Inspector, table: str, schema: str | None, key: Sequence[str], *, fills: bool) -> Iterator[str]:
    """Each in words, with what to do. ``key``: by which rows are merged, if they are; ``fills``: rows are put in.

    ``inspector`` is one of a connection.
    """
    connection = inspector.bind
    assert isinstance(connection, Connection)
    dialect = connection.dialect.name
    if dialect == "postgresql" and key:  # rows without a key are copied, and COPY passes over rules
        for name, columns in connection.execute(_POSTGRES, {"name": in_sql(connection, table, schema)}):
            if columns is None:
                yield f"rule {name!r} does something else instead of an INSERT, and what it did is not counted; drop it, or use a trigger"
            elif set(columns) == set(key):
                yield f"the key's constraint {name!r} is DEFERRABLE, so rows cannot be merged by it; drop it, and add it NOT DEFERRABLE"
    elif dialect == "sqlite" and fills and _replaces(connection, table, schema):
        yield "a constraint says ON CONFLICT REPLACE, by which a row deletes others, uncounted; make the table without that"
    elif dialect in MYSQL_LIKE:
        engine = inspector.get_table_options(table, schema).get(f"{dialect}_engine")
        engines = {"": engine} if engine else _engines_below(connection, table, schema)
        for below, kind in engines.items():
            if kind.lower() != "innodb":
                what = f"table {below!r} below it: " if below else ""
                yield f"{what}engine {kind} has no transactions; ALTER TABLE … ENGINE = InnoDB"


def in_sql(connection: Connection, table: str, schema: str | None) -> str:
    """The table's name as it stands in SQL, and as Postgres's ``to_regclass`` takes it."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    return ".".join(quote(part) for part in (schema, table) if part)


def _replaces(connection: Connection, table: str, schema: str | None) -> bool:
    there = sa.table("sqlite_master", sa.column("sql"), sa.column("type"), sa.column("name"), schema=schema)
    made = sa.select(there.c.sql).where(there.c.type == "table", there.c.name.collate("NOCASE") == table)
    return bool(_SQLITE_REPLACES.search(_SQLITE_NO_KEYWORD.sub(" ", connection.scalar(made) or "")))


def _engines_below(connection: Connection, view: str, schema: str | None) -> dict[str, str]:
    """The engines of the tables that ``view`` reads, by their names; those of views that it reads too."""
    engines, views = dict[str, str](), list[tuple[str | None, str]]([(schema, view)])
    for seen in views:
        definition = connection.scalar(_MYSQL_VIEW, {"schema": seen[0], "table": seen[1]}) or ""
        names = {tuple(part.replace("``", "`") for part in found) for found in _MYSQL_NAMES.findall(definition) if found[0]}
        for of, name, engine in connection.execute(_MYSQL_TABLES, {"names": sorted(names)}) if names else ():
            if engine:
                engines[name] = engine
            elif (of, name) not in views:
                views.append((of, name))
    return engines
