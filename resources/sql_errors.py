"""What a database's own errors mean here: one table per dialect, from its code to what to do next.

Nothing a row says may reach a message: what a database writes about a *value* ("invalid input syntax …: '4711'", "Key (…)=(…)
already exists") is replaced by words of our own, and the foreign error is not chained to a :class:`Poison`, because whoever
prints the chain would print the value. Errors about objects, access and connections keep the database's text: it names no value.

**While rows are written** a code that no table here knows is about a row: :class:`Poison`, so that the message it came in is found. A
trigger, a function or an assertion raised it, with a code of its author's choice (SQLSTATE 45000 or BU001, error 1644) and a text that may
quote anything. What says of itself that it is about something else is listed, and stays what it is wherever it arises: SQLSTATE classes
08, 40, 53, 55, 57, 58, 72 and XX are connections, collisions and the server's own troubles; 03, 0A, 0B, 0L, 0P, 24 to 26, 28, 2B, 2D, 34,
3B, 3D, 3F, 42, F0 and HV are statements, rights, missing objects, and transactions that may not write. MariaDB and MySQL have numbers
instead of classes; those below 1000 are about the server's own files and memory. In any other statement, one that reads or makes tables,
an unknown code is about the statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import exc

from resources.errors import BusError, Locked, Misconfigured, Poison, Transient


@dataclass(frozen=True)
class Meaning:
    """What one of a database's codes means: which of our errors, in words, and what to do."""

    kind: type[BusError]
    words: str
    advice: str = ""
    is_lost: bool = False


_AGAIN = "try again later"
LOST = Meaning(Transient, "the connection was lost", _AGAIN, is_lost=True)
LOCKED = Meaning(Locked, "somebody else holds a lock for too long", f"{_AGAIN}; if it goes on, find who holds the lock")
DEADLOCK = Meaning(Transient, "it collided with another transaction", _AGAIN)
TIMED_OUT = Meaning(Transient, "it took longer than allowed", f"{_AGAIN}; if it goes on, raise the time-out or make the statement cheaper")
DISK_FULL = Meaning(Transient, "the database's disk is full", f"free space there, then {_AGAIN}")
BUSY_SERVER = Meaning(Transient, "the server cannot serve it now", _AGAIN)
REFUSED_LOGIN = Meaning(Misconfigured, "the login was refused", "check user, password and the server's access rules")
NO_DATABASE = Meaning(Misconfigured, "there is no such database", "check the URL or create the database")
DENIED = Meaning(Misconfigured, "permission denied", "grant it to the user in the URL")
BAD_STATEMENT = Meaning(Misconfigured, "the statement does not fit the database", "check names and syntax")
READ_ONLY = Meaning(Misconfigured, "nothing may be written here", "reading changes nothing; for writing check the server's or file's mode")
NOT_A_DATABASE = Meaning(Misconfigured, "the file cannot be used as a database", "check the path and the file")
NUL_IN_TEXT = Meaning(Poison, "a text has a character that the database cannot store (NUL or broken encoding)")
TOO_LONG = Meaning(Poison, "a value is too long for its column")
ROW_TOO_LARGE = Meaning(Poison, "a row is larger than the server takes", "raise its max_allowed_packet, or write less")
TEXT_OR_SUM_TOO_LARGE = Meaning(Poison, "a value is too long for its column, or a sum out of its range")
OUT_OF_RANGE = Meaning(Poison, "a number is out of its column's range")
NOT_NULL = Meaning(Poison, "a null is in a column that must have a value")
NOT_UNIQUE = Meaning(Poison, "a value is there already that must be unique")
NO_PARENT = Meaning(Poison, "a foreign key is broken")
CHECK_BROKEN = Meaning(Poison, "a check of the table is broken")
WRONG_TYPE = Meaning(Poison, "a value does not read as its column's type")
BAD_VALUE = Meaning(Poison, "a value was refused")
ROW_REFUSED = Meaning(Poison, "a row was refused", "look at the triggers, functions and partitions of the table")

_POSTGRES = {  # https://www.postgresql.org/docs/current/errcodes-appendix.html; the longest prefix counts
    "08": LOST, "57P01": LOST, "57P02": LOST, "57P03": BUSY_SERVER, "57P05": LOST, "25P03": LOST,
    "55P03": LOCKED, "40P01": DEADLOCK, "40": DEADLOCK, "57014": TIMED_OUT, "25P04": TIMED_OUT,
    "53100": DISK_FULL, "53": BUSY_SERVER, "58": BUSY_SERVER, "XX": BUSY_SERVER, "57": BUSY_SERVER, "55": BUSY_SERVER,
    "55000": BAD_STATEMENT,
    "28": REFUSED_LOGIN, "3D": NO_DATABASE, "42501": DENIED, "42": BAD_STATEMENT, "3F": BAD_STATEMENT, "0A": BAD_STATEMENT,
    "26": BAD_STATEMENT, "34": BAD_STATEMENT, "25006": READ_ONLY, "25": BAD_STATEMENT, "54011": BAD_STATEMENT, "54023": BAD_STATEMENT,
    "03": BAD_STATEMENT, "0B": BAD_STATEMENT, "0L": BAD_STATEMENT, "0P": BAD_STATEMENT, "24": BAD_STATEMENT, "2B": BAD_STATEMENT,
    "2D": BAD_STATEMENT, "3B": BAD_STATEMENT, "F0": BAD_STATEMENT, "HV": BAD_STATEMENT, "72": BUSY_SERVER,
    "22021": NUL_IN_TEXT, "22P05": NUL_IN_TEXT, "22001": TOO_LONG, "54": TOO_LONG, "22003": OUT_OF_RANGE, "22P02": WRONG_TYPE,
    "22007": WRONG_TYPE, "22008": OUT_OF_RANGE, "22": BAD_VALUE, "P0": ROW_REFUSED,
    "21": BAD_VALUE, "23502": NOT_NULL, "23505": NOT_UNIQUE, "23503": NO_PARENT, "23514": CHECK_BROKEN, "44": CHECK_BROKEN, "23": BAD_VALUE,
}  # fmt: skip
_SQLITE = {  # https://www.sqlite.org/rescode.html
    "SQLITE_BUSY": LOCKED, "SQLITE_LOCKED": LOCKED, "SQLITE_PROTOCOL": LOCKED, "SQLITE_FULL": DISK_FULL, "SQLITE_IOERR": BUSY_SERVER,
    "SQLITE_NOMEM": BUSY_SERVER, "SQLITE_INTERRUPT": TIMED_OUT, "SQLITE_CANTOPEN": NOT_A_DATABASE, "SQLITE_NOTADB": NOT_A_DATABASE,
    "SQLITE_CORRUPT": NOT_A_DATABASE, "SQLITE_READONLY": READ_ONLY, "SQLITE_PERM": DENIED, "SQLITE_AUTH": DENIED,
    "SQLITE_CONSTRAINT_NOTNULL": NOT_NULL, "SQLITE_CONSTRAINT_UNIQUE": NOT_UNIQUE, "SQLITE_CONSTRAINT_PRIMARYKEY": NOT_UNIQUE,
    "SQLITE_CONSTRAINT_FOREIGNKEY": NO_PARENT, "SQLITE_CONSTRAINT_CHECK": CHECK_BROKEN, "SQLITE_CONSTRAINT_DATATYPE": WRONG_TYPE,
    "SQLITE_CONSTRAINT": BAD_VALUE, "SQLITE_MISMATCH": WRONG_TYPE, "SQLITE_TOOBIG": TEXT_OR_SUM_TOO_LARGE, "SQLITE_ERROR": BAD_STATEMENT,
}  # fmt: skip
_MYSQL = {  # https://mariadb.com/kb/en/mariadb-error-code-reference/
    1205: LOCKED, 1213: DEADLOCK, 1020: DEADLOCK, 1969: TIMED_OUT, 3024: TIMED_OUT, 1317: TIMED_OUT, 1021: DISK_FULL, 1114: DISK_FULL,
    1040: BUSY_SERVER, 1203: BUSY_SERVER, 1053: LOST, 1927: LOST, 2002: LOST, 2003: LOST, 2006: LOST, 2013: LOST, 0: LOST,
    1045: REFUSED_LOGIN, 1698: REFUSED_LOGIN, 1044: DENIED, 1142: DENIED, 1143: DENIED, 1227: DENIED, 1049: NO_DATABASE,
    1792: READ_ONLY, 1290: READ_ONLY, 1836: READ_ONLY,
    1062: NOT_UNIQUE, 1048: NOT_NULL, 1364: NOT_NULL, 1406: TOO_LONG, 1264: OUT_OF_RANGE, 1690: OUT_OF_RANGE, 1366: WRONG_TYPE,
    1292: WRONG_TYPE, 1265: WRONG_TYPE, 1451: NO_PARENT, 1452: NO_PARENT, 4025: CHECK_BROKEN, 3819: CHECK_BROKEN,
    1369: CHECK_BROKEN, 1526: ROW_REFUSED, 1153: ROW_TOO_LARGE,
    1152: LOST, 1154: LOST, 1155: LOST, 1156: LOST, 1157: LOST, 1158: LOST, 1159: LOST, 1160: LOST, 1161: LOST, 1184: LOST,
    1412: DEADLOCK, 1615: DEADLOCK, 1192: LOCKED, 1206: LOCKED, 1223: LOCKED, 1015: BUSY_SERVER, 1024: BUSY_SERVER, 1026: BUSY_SERVER,
    1030: BUSY_SERVER, 1037: BUSY_SERVER, 1038: BUSY_SERVER, 1041: BUSY_SERVER, 1047: BUSY_SERVER, 1135: BUSY_SERVER, 1180: BUSY_SERVER,
    1181: BUSY_SERVER, 1226: BUSY_SERVER, 1297: BUSY_SERVER, 1429: BUSY_SERVER, 1637: BUSY_SERVER,
    1129: REFUSED_LOGIN, 1130: REFUSED_LOGIN, 1251: REFUSED_LOGIN, 1275: REFUSED_LOGIN, 1820: REFUSED_LOGIN, 1862: REFUSED_LOGIN,
    1370: DENIED, 1449: DENIED, 1036: READ_ONLY, 1207: READ_ONLY,
} | dict.fromkeys((
    1016, 1017, 1018, 1031, 1033, 1034, 1035, 1046, 1050, 1051, 1052, 1054, 1055, 1056, 1057, 1058, 1059, 1060, 1065, 1066, 1093, 1096,
    1099, 1100, 1104, 1106, 1107, 1108, 1109, 1115, 1116, 1122, 1123, 1126, 1127, 1128, 1136, 1140, 1141, 1144, 1147, 1148, 1175, 1176,
    1193, 1194, 1195, 1197, 1221, 1222, 1241, 1247, 1248, 1250, 1253, 1267, 1270, 1271, 1273, 1288, 1295, 1298, 1305, 1318, 1336, 1347,
    1348, 1356, 1393, 1394, 1395, 1422, 1423, 1431, 1432, 1433, 1435, 1442, 1443, 1446, 1457, 1459, 1462, 1471, 1735, 1906, 3105, 4078,
    4079,
), BAD_STATEMENT)  # fmt: skip
_MYSQL_SERVER = range(1000, 2000)
"""What the server says about a statement."""
_MYSQL_NOT_OF_ROWS = frozenset({*range(1, 1000), *range(2000, 3000)})
"""What the server says about its own files and memory ("Error on delete of …"), and the client about the connection; every other number is
about a statement, or one that a trigger chose."""
_MYSQL_DRIVERS = ("pymysql", "MySQLdb", "mysql", "mariadb")
_BY_CLASS: tuple[tuple[type[exc.DBAPIError], Meaning], ...] = (
    (exc.IntegrityError, BAD_VALUE),
    (exc.DataError, BAD_VALUE),
    (exc.ProgrammingError, BAD_STATEMENT),
    (exc.NotSupportedError, BAD_STATEMENT),
    (exc.OperationalError, BUSY_SERVER),
    (exc.InterfaceError, LOST),
)
_BY_TEXT = (  # where the driver gives no code: libpq's own connection errors, and sqlite3's decoder
    (re.compile(r"authentication failed|no password supplied|no pg_hba|role .* does not exist|not permitted to log"), REFUSED_LOGIN),
    (re.compile(r"database .* does not exist"), NO_DATABASE),
    (re.compile(r"could not translate host name|failed to resolve host|[Nn]ame or service not known"),
     Meaning(Misconfigured, "the server's name is not known", "check the URL")),
    (re.compile(r"Could not decode to UTF-8|NUL \(0x00\)|surrogates not allowed"), NUL_IN_TEXT),
    (re.compile(r"too large to convert|int too large"), OUT_OF_RANGE),
)  # fmt: skip
_SQLITE_VALUES = re.compile(r"integer overflow|malformed JSON|user-defined function raised exception")
"""What SQLite finds in values only once a statement runs, under the code that it has for statements too."""
_NAMED = re.compile(r"constraint failed: .*|for (?:column|key) [^ ]+|[Cc]olumn '[^']+' cannot be null|CONSTRAINT [^ ]+")
"""Where an error names a column or constraint. The last place counts: values stand before, and may say anything."""


@contextmanager
def explained(where: str, doing: str, *, writes_rows: bool = False) -> Iterator[None]:
    """Turn what SQLAlchemy raises inside into one of ours; ``doing`` is the work in words ("append to 'orders'")."""
    try:
        yield
    except (exc.SQLAlchemyError, OverflowError, UnicodeEncodeError) as error:  # drivers raise the last two for values, unwrapped
        raise_explained(error, where, doing, writes_rows=writes_rows)


def raise_explained(error: BaseException, where: str, doing: str, *, writes_rows: bool = False) -> None:
    """Raise the one of our errors that ``error``, SQLAlchemy's or the driver's own, means."""
    ours = _ours(error, where, doing, writes_rows)
    raise ours from (None if isinstance(ours, Poison) else error)


def meaning(error: BaseException, *, writes_rows: bool = False) -> Meaning:
    """What ``error`` says, by its code if it has one, else by its text, else by its class."""
    original = getattr(error, "orig", None) or error
    unknown = ROW_REFUSED if writes_rows else BAD_STATEMENT
    return _by_code(original, unknown) or _by_text(original) or _by_class(error, original)


def _ours(error: BaseException, where: str, doing: str, writes_rows: bool) -> BusError:
    if isinstance(error, exc.SQLAlchemyError) and not isinstance(error, exc.DBAPIError):
        return Misconfigured(f"{doing} in {where}: {_first_line(error)}; check the statement and its parameters")
    found = meaning(error, writes_rows=writes_rows)
    original = getattr(error, "orig", None) or error
    said = _columns_of(original) if issubclass(found.kind, Poison) else f" ({_first_line(original)})"
    advice = f"; {found.advice}" if found.advice else ""
    return found.kind(f"{doing} in {where}: {found.words}{said}{advice}")


def _by_code(original: BaseException, unknown: Meaning) -> Meaning | None:
    """``unknown`` is what a code means that no table has."""
    if (number := _mysql_number(original)) is not None:  # they have an SQLSTATE too, but a vague one
        is_free = type(original).__name__ in ("OperationalError", "InternalError")  # the driver has no class for it either
        is_told = number in _MYSQL_SERVER if unknown is BAD_STATEMENT else number not in _MYSQL_NOT_OF_ROWS
        return _MYSQL.get(number, unknown if is_free and is_told else None)
    state = getattr(original, "sqlstate", None)
    if isinstance(state, str):
        return next((_POSTGRES[state[:n]] for n in (5, 2) if state[:n] in _POSTGRES), unknown)
    name = getattr(original, "sqlite_errorname", None)
    if name == "SQLITE_ERROR" and (found := _SQLITE_VALUES.search(str(original))):
        return OUT_OF_RANGE if found.group(0) == "integer overflow" else BAD_VALUE
    return _SQLITE.get(name) or _SQLITE.get("_".join(name.split("_")[:2])) if isinstance(name, str) else None


def _mysql_number(original: BaseException) -> int | None:
    is_mysql = type(original).__module__.split(".")[0] in _MYSQL_DRIVERS
    number = original.args[0] if is_mysql and original.args else None
    return number & 0xFFFF if isinstance(number, int) else None  # PyMySQL reads one beyond 32,767 as negative


def _by_text(original: BaseException) -> Meaning | None:
    return next((found for pattern, found in _BY_TEXT if pattern.search(str(original))), None)


def _by_class(error: BaseException, original: BaseException) -> Meaning:
    if getattr(error, "connection_invalidated", False):
        return LOST
    for kind, found in _BY_CLASS:
        if isinstance(error, kind) or type(original).__name__ == kind.__name__:
            return LOST if kind is exc.OperationalError and type(original).__module__.startswith("psycopg") else found
    return BUSY_SERVER


def _columns_of(original: BaseException) -> str:
    """Which column or constraint it was, where the database says so apart from the value."""
    diagnosis = getattr(original, "diag", None)
    if diagnosis is not None:
        copied = re.search(r"^COPY [^:\n]*?, column ([^:\n]+)", diagnosis.context or "", re.MULTILINE)
        column = diagnosis.column_name or (copied.group(1) if copied else None)
        named = ((column, "column"), (diagnosis.constraint_name, "constraint"))
        parts = [f"{what} {name!r}" for name, what in named if name] + [f"SQLSTATE {getattr(original, 'sqlstate', None) or 'unknown'}"]
        return f" ({', '.join(parts)})"
    number = _mysql_number(original)
    if getattr(original, "sqlite_errorname", None) == "SQLITE_CONSTRAINT_TRIGGER" or (number is not None and number not in _MYSQL):
        said = None  # the text is a trigger's
    else:
        said = [*_NAMED.finditer(str(original.args[-1] if original.args else original))]
    if said:
        # Without the table: it may be a temporary one, and the work in words has the destination's.
        return f" ({re.sub(r'(`[^`]*`[.])+', '', said[-1].group(0))})"
    return f" (error {number})" if number is not None else ""


def _first_line(error: BaseException) -> str:
    """The first line of what was said; further ones quote the statement, its parameters or a row."""
    text = str(error.args[-1] if error.args else error).strip()
    return text.splitlines()[0].rstrip(".;") if text else type(error).__name__
