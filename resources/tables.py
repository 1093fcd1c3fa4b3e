"""Tables of a destination: what they are called, how they are made, and whether one that exists can take what is promised."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.elements import quoted_name

from resources.column_types import behind_domain, ddl, loss, makes_now_of_null, sql_type
from resources.errors import Misconfigured
from resources.obstacles import in_sql, obstacles
from resources.table_names import checked_identifier, name_parts

_BEHIND_DOMAINS = sa.text("""
WITH RECURSIVE behind AS (
    SELECT attname, atttypid AS type, atttypmod AS modifier FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attnum > 0
    UNION ALL SELECT attname, typbasetype, typtypmod FROM behind JOIN pg_type ON oid = type WHERE typtype = 'd'
)
SELECT attname, format_type(type, modifier) FROM behind JOIN pg_type ON oid = type WHERE typtype <> 'd'
""")
"""What the columns of a table are made of, as Postgres writes it, whatever domains are between."""


@dataclass(frozen=True)
class Column:
    """A column as it is dropped: ``type`` is the Arrow type of the rows."""

    name: str
    type: pa.DataType
    nullable: bool = True


@dataclass(frozen=True)
class TablePlan:
    """What a drop-off expects of a table. ``name`` is 'orders' or 'schema.orders'; a part with a dot in it is written in double quotes.

    ``key`` needs a primary key, unique constraint or unique index on exactly these columns. ``create``: make it if it is not there.
    ``fills``: rows are put in, so every column that must have a value must be among ``columns``. ``newest``: a column by which rows
    are compared, so it must be of a type that compares as theirs. ``sums``: columns that are added up, so they must be of a type that is.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    create: bool = False
    fills: bool = True
    newest: str | None = None
    sums: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableName:
    schema: str | None
    name: str
    text: str = field(compare=False)

    def quoted(self) -> tuple[quoted_name, quoted_name | None]:
        return quoted_name(self.name, True), quoted_name(self.schema, True) if self.schema else None


def table_name(text: str, default_schema: str | None) -> TableName:
    """``text`` taken apart; Misconfigured as in :func:`~resources.table_names.name_parts`."""
    *schema, name = name_parts(text)
    return TableName(schema=schema[0] if schema else default_schema, name=name, text=text)


class Unfit(Misconfigured):
    """Tables that cannot take the rows; ``places`` are theirs among the plans that were compared."""

    def __init__(self, message: str, places: Sequence[int]):
        super().__init__(message)
        self.places = tuple(places)


def prepare_tables(connection: Connection, plans: Sequence[TablePlan], default_schema: str | None, where: str) -> None:
    """Create what is missing and may be created. Raises as :func:`compare_tables`; then nothing was created."""
    for table in compare_tables(connection, plans, default_schema, where):
        table.create(connection, checkfirst=True)


def compare_tables(connection: Connection, plans: Sequence[TablePlan], default_schema: str | None, where: str) -> list[sa.Table]:
    """The tables that are missing and may be created. One :class:`Unfit` lists every difference of every table."""
    missing, differences, places = list[sa.Table](), list[str](), list[int]()
    for place, plan in enumerate(plans):
        name = table_name(plan.name, default_schema)
        found = _inspected(connection, name, plan)
        if unlike := list(_differences(connection, plan, name, found)):
            differences += unlike
            places.append(place)
        elif found is None:
            missing.append(definition(plan, name, connection.dialect))
    if differences:
        raise Unfit(f"{where} cannot take the rows: " + "; ".join(differences), places)
    return missing


def definition(plan: TablePlan, name: TableName, dialect: Dialect) -> sa.Table:
    """The table that ``plan`` describes, in the exact types of ``dialect``."""
    table, schema = name.quoted()
    columns = []
    for column in plan.columns:
        checked_identifier(column.name, f"table {plan.name!r}, column")
        in_key = column.name in plan.key
        kind = sql_type(column.type, dialect, in_key=in_key)
        quoted = quoted_name(column.name, True)
        columns.append(sa.Column(quoted, kind, nullable=column.nullable and not in_key, primary_key=in_key, autoincrement=False))
    options: dict[str, Any] = {
        "mysql_engine": "InnoDB",
        "mariadb_engine": "InnoDB",
        "mysql_charset": "utf8mb4",
        "mariadb_charset": "utf8mb4",
    }
    # The primary key's columns stand in the key's order, not the table's: an index on (order_id, line) finds an order's lines.
    ordered = [c for k in plan.key for c in columns if c.name == k]
    return sa.Table(table, sa.MetaData(), *columns, *([sa.PrimaryKeyConstraint(*ordered)] if ordered else []), schema=schema, **options)


@dataclass(frozen=True)
class _Found:
    columns: dict[str, dict[str, Any]]
    has_key: bool
    obstacles: tuple[str, ...]


def _inspected(connection: Connection, name: TableName, plan: TablePlan) -> _Found | None:
    """What is there. No more is asked than ``plan`` needs: each question is a query of milliseconds, in every trip."""
    inspector = sa.inspect(connection)
    table, schema = name.quoted()
    try:
        columns = columns_there(connection, inspector, table, schema)
    except exc.NoSuchTableError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exc.SAWarning)  # expression indexes: not ours to judge
        return _Found(
            columns={str(column["name"]): column for column in columns},
            has_key=not plan.key or frozenset(plan.key) in _unique(inspector, table, schema),
            obstacles=tuple(obstacles(inspector, table, schema, plan.key, fills=plan.fills)),
        )


def columns_there(connection: Connection, inspector: sa.Inspector, table: str, schema: str | None) -> list[dict[str, Any]]:
    """The columns as SQLAlchemy finds them, a domain of Postgres as the type behind it; NoSuchTableError if there is no table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exc.SAWarning)  # types of extensions: passed on as they are
        columns = [dict(column) for column in inspector.get_columns(table, schema)]
    domains = [column for column in columns if isinstance(column["type"], postgresql.DOMAIN)]
    if domains:
        written = dict(connection.execute(_BEHIND_DOMAINS, {"name": in_sql(connection, table, schema)}).tuples().all())
        for column in domains:
            column["type"] = behind_domain(column["type"], written.get(column["name"], ""))
    return columns


def _unique(inspector: sa.Inspector, table: str, schema: str | None) -> Iterator[frozenset[str]]:
    yield frozenset(inspector.get_pk_constraint(table, schema).get("constrained_columns") or ())
    for constraint in inspector.get_unique_constraints(table, schema):
        yield frozenset(constraint["column_names"])
    for index in inspector.get_indexes(table, schema):
        options = index.get("dialect_options", {})
        if index["unique"] and None not in index["column_names"] and not any(option.endswith("_where") for option in options):
            yield frozenset(str(name) for name in index["column_names"])


def _differences(connection: Connection, plan: TablePlan, name: TableName, found: _Found | None) -> Iterator[str]:
    dialect = connection.dialect
    if found is None and plan.create:
        if name.schema and not sa.inspect(connection).has_schema(name.schema):
            yield f"table {plan.name!r}: there is no schema {name.schema!r} to make it in; create that, or correct the name"
        return
    if found is None:
        statement = str(CreateTable(definition(plan, name, dialect)).compile(dialect=dialect)).strip()
        yield f"table {plan.name!r} does not exist; set create=True, or run: {' '.join(statement.split())}"
        return
    for difference in _unlike(plan, found, dialect):
        yield f"table {plan.name!r}: {difference}"


def _unlike(plan: TablePlan, found: _Found, dialect: Dialect) -> Iterator[str]:
    for column in plan.columns:
        if column.name not in found.columns:
            yield f"column {column.name!r} is missing; add it ({ddl(sql_type(column.type, dialect), dialect)}) or leave it out of columns="
        elif lost := loss(column.type, found.columns[column.name]["type"], dialect):
            existing = ddl(found.columns[column.name]["type"], dialect)
            yield f"column {column.name!r} is {existing}, the rows have {column.type}: {lost}; change the column or the contract"
        elif column.name == plan.newest and _compares_as_text(column.type, found.columns[column.name]["type"]):
            existing = ddl(found.columns[column.name]["type"], dialect)
            yield f"column {column.name!r} is {existing}, in which 9 is newer than 10; change the column, or leave out newest="
        elif column.nullable and makes_now_of_null(found.columns[column.name]):
            said = "is TIMESTAMP NOT NULL, which makes the time of loading of a null"
            yield f"column {column.name!r} {said}; make the field required, or the column NULL"
        elif column.name in plan.sums and _adds_as_text(column.type, found.columns[column.name]["type"], dialect):
            existing = ddl(found.columns[column.name]["type"], dialect)
            yield f"column {column.name!r} is {existing}, in which 5 and 6 add up to 56; make it a number, or take it out of sums="
    planned = {column.name for column in plan.columns}
    for name, column in found.columns.items():
        if plan.fills and name not in planned and _must_be_given(column, dialect):
            yield f"column {name!r} must have a value and has no default; drop it too, or give it a default"
    if not found.has_key:
        yield f"no unique index on exactly ({', '.join(plan.key)}); create one, or change key="
    yield from found.obstacles


def _compares_as_text(kind: pa.DataType, column: Any) -> bool:
    return isinstance(column, sa.String) and (pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _adds_as_text(kind: pa.DataType, column: Any, dialect: Dialect) -> bool:
    """SQLite's decimals are text, and are added by functions of our own (:mod:`resources.decimals`)."""
    return isinstance(column, sa.String) and not (dialect.name == "sqlite" and pa.types.is_decimal(kind))


def _must_be_given(column: dict[str, Any], dialect: Dialect) -> bool:
    if column["nullable"] or column.get("default") is not None or column.get("identity") or column.get("computed"):
        return False
    is_rowid = dialect.name == "sqlite" and column.get("primary_key") and isinstance(column["type"], sa.Integer)
    return not is_rowid and column.get("autoincrement") is not True
