"""Column types: which one keeps every value of an Arrow type, and whether one that is there would lose some."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect

from resources.errors import Misconfigured
from resources.fractions import MICROSECOND_DIGITS

MYSQL_KEY_CHARACTERS = 255
"""InnoDB indexes at most 3072 bytes, 768 characters of utf8mb4: three such columns."""
SQLITE_EXACT_DIGITS = 15
"""A double gives back decimals of up to 15 digits (DBL_DIG)."""
SQLITE_WHOLE_DIGITS = 18
"""Whole numbers of more digits need not fit 64 bits; SQLite makes doubles of those that do not."""


def sql_type(kind: pa.DataType, dialect: Dialect, *, in_key: bool = False) -> sa.types.TypeEngine[Any]:
    """The column type that keeps every value of Arrow type ``kind``; see :mod:`resources.sql_values` for what is stored as text."""
    if pa.types.is_decimal(kind):
        return sa.Text() if dialect.name == "sqlite" else sa.Numeric(kind.precision, kind.scale)
    if pa.types.is_timestamp(kind):
        if dialect.name in ("mysql", "mariadb"):
            return mysql.DATETIME(fsp=6)
        return sa.TIMESTAMP(timezone=kind.tz is not None)
    if pa.types.is_nested(kind):
        return {"postgresql": postgresql.JSONB(), "mysql": sa.JSON(), "mariadb": sa.JSON()}.get(dialect.name, sa.Text())
    if pa.types.is_time(kind):
        return mysql.TIME(fsp=6) if dialect.name in ("mysql", "mariadb") else sa.Time()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        if dialect.name in ("mysql", "mariadb"):
            return sa.VARBINARY(MYSQL_KEY_CHARACTERS) if in_key else mysql.LONGBLOB()
        return sa.LargeBinary()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return exact_text(dialect, MYSQL_KEY_CHARACTERS if in_key else None)
    for matches, made in _PLAIN:
        if matches(kind):
            return made
    raise Misconfigured(f"there is no column type for Arrow's {kind}")


_PLAIN: tuple[tuple[Any, sa.types.TypeEngine[Any]], ...] = (
    (pa.types.is_integer, sa.BigInteger()),
    (pa.types.is_floating, sa.Double()),
    (pa.types.is_boolean, sa.Boolean()),
    (pa.types.is_date, sa.Date()),
)


def exact_text(dialect: Dialect, characters: int | None) -> sa.types.TypeEngine[Any]:
    """Text that compares by its bytes: MariaDB's and MySQL's usual collations take 'a', 'A' and 'a ' for the same key."""
    if dialect.name not in ("mysql", "mariadb"):
        return sa.Text()
    collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
    return mysql.VARCHAR(characters, collation=collation) if characters else mysql.LONGTEXT(collation=collation)


def ddl(kind: sa.types.TypeEngine[Any], dialect: Dialect) -> str:
    if _is_name(kind, dialect):
        return 'name or "char"'
    try:
        return kind.compile(dialect=dialect)
    except exc.CompileError:
        return "of a type that is not known here"


def behind_domain(kind: Any, written: str) -> sa.types.TypeEngine[Any]:
    """The type that a domain of Postgres is made of; ``written``: as Postgres calls it, ``numeric(10,2)``. SQLAlchemy has no length,
    precision or scale of it."""
    while isinstance(kind, postgresql.DOMAIN):
        kind = kind.data_type
    told = re.search(r"\(([-\d,]+)\)", written)
    if told is None or not isinstance(kind, (sa.String, sa.Numeric, sa.DateTime, sa.Time, postgresql.INTERVAL)):
        return kind
    names = ("length",) if isinstance(kind, sa.String) else ("precision", "scale")
    return kind.adapt(type(kind), **dict(zip(names, map(int, told[1].split(",")), strict=False)))


def _is_name(kind: sa.types.TypeEngine[Any], dialect: Dialect) -> bool:
    """Whether it is one of the types of Postgres's own catalogue, which are the only ones that are reflected so."""
    return dialect.name == "postgresql" and type(kind) is sa.String


def loss(kind: pa.DataType, column: sa.types.TypeEngine[Any], dialect: Dialect) -> str:
    """What would be lost or refused if values of ``kind`` went into ``column``; '' if nothing.

    Text columns take everything but bytes. Types that SQLAlchemy does not know are left to the database. What can be told by the rows
    alone is looked for in them, by what :mod:`resources.loading` does before it hands them over.
    """
    if isinstance(column, (sa.types.NullType, sa.types.UserDefinedType)):
        return ""
    for matches, judged in _JUDGES:
        if matches(kind):
            is_text = isinstance(column, sa.String) and not pa.types.is_binary(kind)
            return (_as_text if is_text else judged)(kind, column, dialect)
    return ""


def _as_text(kind: pa.DataType, column: Any, dialect: Dialect) -> str:
    if isinstance(column, (mysql.ENUM, mysql.SET)) and not pa.types.is_string(kind):
        return "only text fits, a number is taken for the place of a value"
    if _is_name(column, dialect):
        return "it cuts texts to 63 bytes, or to one; TEXT keeps all"
    if dialect.name == "sqlite" and pa.types.is_floating(kind):
        return f"SQLite keeps {SQLITE_EXACT_DIGITS} digits of a number as text, REAL keeps all"
    return ""


_STRICT = (
    sa.Integer, sa.Numeric, sa.Float, sa.Boolean, sa.Date, sa.DateTime, sa.Time, sa.LargeBinary, sa.types._Binary, postgresql.ARRAY,
    mysql.YEAR, mysql.BIT, postgresql.MONEY,
)  # fmt: skip
"""Column types into which text would be converted."""


def _string(_kind: pa.DataType, column: Any, dialect: Dialect) -> str:
    if dialect.name == "sqlite" and isinstance(column, sa.JSON):
        return "SQLite makes a number of text that reads as one ('007' becomes 7), TEXT keeps it"
    if isinstance(column, postgresql.INTERVAL) and column.precision is not None and column.precision < MICROSECOND_DIGITS:
        return f"{column.precision} digits of a second are kept, others rounded"
    return "text does not fit" if isinstance(column, _STRICT) else ""


def _integer(kind: pa.DataType, column: Any, dialect: Dialect) -> str:
    if isinstance(column, sa.Float):
        return "a double keeps 53 of 64 bits"
    if isinstance(column, sa.Numeric) and (column.scale or 0) < 0:
        return f"the last {-(column.scale or 0)} digits would be rounded"
    return "" if isinstance(column, (sa.Integer, sa.Numeric)) else "whole numbers do not fit"


def _floating(_kind: pa.DataType, column: Any, dialect: Dialect) -> str:
    if isinstance(column, sa.Float):
        is_single = isinstance(column, sa.REAL) if dialect.name == "postgresql" else isinstance(column, mysql.FLOAT)
        if is_single:
            return "single precision loses digits"
        return "" if getattr(column, "scale", None) is None else "a fixed scale rounds"  # DOUBLE(10, 2) of MariaDB
    if isinstance(column, sa.Numeric):
        return "" if column.scale is None or dialect.name == "sqlite" else "a fixed scale rounds"
    return "numbers do not fit"


def _decimal(kind: Any, column: Any, dialect: Dialect) -> str:
    if dialect.name == "sqlite" and isinstance(column, (sa.Numeric, sa.Float)):
        too_many = kind.precision > SQLITE_EXACT_DIGITS
        return f"SQLite keeps {SQLITE_EXACT_DIGITS} digits in such a column, TEXT keeps all" if too_many else ""
    if isinstance(column, sa.Float):
        return "a double is not exact"
    if isinstance(column, sa.Integer):
        if kind.scale > 0:
            return "decimals would be cut"
        too_many = dialect.name == "sqlite" and kind.precision > SQLITE_WHOLE_DIGITS
        return f"SQLite keeps {SQLITE_WHOLE_DIGITS} digits in such a column, TEXT keeps all" if too_many else ""
    if not isinstance(column, sa.Numeric):
        return "decimals do not fit"
    if (column.scale or 0) < 0:
        return _integer(kind, column, dialect)
    if column.precision is not None and (column.scale or 0) < kind.scale:
        return f"{kind.scale} decimals would be rounded to {column.scale or 0}"
    return ""


def _boolean(_kind: pa.DataType, column: Any, dialect: Dialect) -> str:
    as_number = dialect.name != "postgresql" and isinstance(column, sa.Integer)
    return "" if isinstance(column, sa.Boolean) or as_number else "true and false do not fit"


def _date(_kind: pa.DataType, column: Any, _dialect: Dialect) -> str:
    zoned = isinstance(column, sa.DateTime) and column.timezone
    return "" if isinstance(column, (sa.Date, sa.DateTime)) and not zoned else "dates do not fit"


def _timestamp(kind: Any, column: Any, dialect: Dialect) -> str:
    if not isinstance(column, sa.DateTime):
        return "timestamps do not fit"
    if dialect.name == "postgresql" and bool(column.timezone) != (kind.tz is not None):
        return "the zone would be lost" if kind.tz is not None else "a wall clock would be taken for an instant"
    return ""


def _time(_kind: pa.DataType, column: Any, _dialect: Dialect) -> str:
    return "" if isinstance(column, sa.Time) else "times do not fit"


def _binary(_kind: pa.DataType, column: Any, _dialect: Dialect) -> str:
    return "" if isinstance(column, (sa.LargeBinary, sa.types._Binary)) else "bytes do not fit"


def _nested(_kind: pa.DataType, column: Any, _dialect: Dialect) -> str:
    return "" if isinstance(column, sa.JSON) else "lists and structs are written as JSON"


def makes_now_of_null(column: Mapping[str, Any]) -> bool:
    """Whether a reflected column has a null replaced by the moment in which it is loaded, as MariaDB does."""
    return isinstance(column["type"], mysql.TIMESTAMP) and not column["nullable"]


_JUDGES: tuple[tuple[Any, Any], ...] = (
    (lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind), _string),
    (pa.types.is_integer, _integer),
    (pa.types.is_floating, _floating),
    (pa.types.is_decimal, _decimal),
    (pa.types.is_boolean, _boolean),
    (pa.types.is_date, _date),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_time, _time),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind), _binary),
    (pa.types.is_nested, _nested),
)
