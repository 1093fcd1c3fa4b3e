"""A SQL database: read from by queries, written to in one transaction with everything that is known about the trip.

No ``from __future__ import annotations`` here: Dagster reads the annotations of the resource when the class is made.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
import sqlalchemy as sa
from pydantic import Field, PrivateAttr
from sqlalchemy import exc
from sqlalchemy.engine import URL, Connection, Engine

from resources.engines import MYSQL_LIKE, OwnEngine, Waiting, connected, in_words, make_engine, parsed, sqlite_file
from resources.errors import BusError, Misconfigured, Transient
from resources.loading import loader_for
from resources.receipts import AlreadySettled, Applied, AppliedTo, Ledger, ledger_tables
from resources.records import Records, unread_of
from resources.sql_errors import explained, meaning, raise_explained
from resources.sql_values import Columns
from resources.system import System
from resources.tables import TablePlan, compare_tables, prepare_tables, table_name

BATCH_ROWS = 65_536
PREPARE_LOCK = 4_720_811_530_219
"""The advisory lock of everybody who prepares tables; any number that nobody else uses."""
LEDGER_SECONDS = 30.0
"""How long this project's own tables, once seen, are taken to be there: a trip asks several times, a database can be restored."""
PROBE_SECONDS = 0.2
"""How long the probe's second writer is watched: one that does not wait for the first is done long before."""
MYSQL_FLOAT = 4
"""The type of a result's column in the protocol of MariaDB and MySQL: MYSQL_TYPE_FLOAT."""
WRITING = """SELECT a.pid, a.state, a.xact_start, host(a.client_addr) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = CAST(:name AS regclass) AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND l.mode = ANY (ARRAY['RowExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'])
AND l.granted AND a.pid <> pg_backend_pid() ORDER BY l.mode = 'RowExclusiveLock', a.xact_start LIMIT 1"""
"""Who has written there and is not done; before all others who has locked the whole table against writing."""
KNOWN_GOOD = ("postgresql", "sqlite")
"""Dialects that hold the probe's promises by construction; the conformance suite runs the probe on them too."""


class Transaction:
    """One write transaction. Every method raises Transient for locks, time-outs and lost connections, Misconfigured for missing tables,
    columns and permissions, Poison for values that the table does not take; after any of them only a rollback is left.

    ``batches`` may be consumed once and only during the call; what they raise themselves passes unchanged.
    """

    def __init__(self, connection: Connection, schema: str | None, where: str):
        self._where = where
        self._ledger = Ledger(connection, schema)
        self._loader = loader_for(connection, schema, where)

    def _doing(self, what: str) -> AbstractContextManager[None]:
        return explained(self._where, what)

    def _writing(self, what: str) -> AbstractContextManager[None]:
        return explained(self._where, what, writes_rows=True)

    def outcome(self, trip: str, attempt: int) -> str | None:
        """'published', 'revoked' …, or None if the attempt is not settled."""
        with self._doing("looking up an outcome"):
            return self._ledger.outcome(trip, attempt)

    def published(self, trip: str) -> int | None:
        """The attempt that published ``trip`` here, None if none did."""
        with self._doing("looking up an outcome"):
            return self._ledger.published(trip)

    def record_outcome(self, route: str, trip: str, attempt: int, outcome: str, run: str) -> None:
        """Settle (trip, attempt). Waits for whoever is settling it at this moment; AlreadySettled if they commit first."""
        with self._doing("recording an outcome"):
            self._ledger.record_outcome(route, trip, attempt, outcome, run)

    def receipts(self, route: str, keys: Sequence[str], part: str = "") -> frozenset[str]:
        """Which of ``keys`` have their rows here already."""
        with self._doing("looking up receipts"):
            return self._ledger.receipts(route, keys, part)

    def receipt_trips(self, route: str, keys: Sequence[str], part: str = "") -> dict[str, str]:
        """Of those of ``keys`` that have their rows here already: by which trip."""
        with self._doing("looking up receipts"):
            return self._ledger.receipt_trips(route, keys, part)

    def receipt_parts(self, route: str, keys: Sequence[str]) -> dict[str, dict[str, str]]:
        """Of those of ``keys`` that have any receipt here: the trip that left it, by part."""
        with self._doing("looking up receipts"):
            return self._ledger.receipt_parts(route, keys)

    def receipts_of(self, route: str, trip: str) -> list[tuple[str, str]]:
        """(part, key) of every receipt that ``trip`` left here; long keys as they are stored."""
        with self._doing("looking up receipts"):
            return self._ledger.receipts_of(route, trip)

    def record_plan(self, route: str, trip: str, plan: str) -> None:
        """Keep what rolls ``trip`` forward into further databases; the first plan of a trip stands."""
        with self._doing("recording a plan"):
            self._ledger.record_plan(route, trip, plan)

    def plan(self, trip: str) -> str | None:
        """What :meth:`record_plan` kept, None if it kept nothing."""
        with self._doing("looking up a plan"):
            return self._ledger.plan(trip)

    def record_receipts(self, route: str, keys: Sequence[str], *, part: str = "", trip: str, attempt: int) -> tuple[str, ...]:
        """Insert receipts; the keys that were there before, in order: if there are any, the caller must give up the transaction."""
        with self._doing("recording receipts"):
            return self._ledger.record_receipts(route, keys, part=part, trip=trip, attempt=attempt)

    def record_applied(self, trip: str, table: str, mode: str, rows: Applied) -> None:
        """Keep what ``table`` got from ``trip``, for the account."""
        with self._doing("recording counts"):
            self._ledger.record_applied(trip, table, mode, rows)

    def applied(self, trip: str) -> tuple[AppliedTo, ...]:
        """What was kept by :meth:`record_applied`, in that order."""
        with self._doing("looking up counts"):
            return self._ledger.applied(trip)

    def rows_left_in(self, table: str) -> int:
        """How many rows ``table`` has of all trips, by what was kept by :meth:`record_applied`."""
        with self._doing("looking up counts"):
            return self._ledger.rows_left_in(table)

    def append(self, table: str, columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> Applied:
        """Insert every row. Refused if the table takes fewer."""
        with self._writing(f"appending to table {table!r}"):
            return self._loader.append(table, columns, batches)

    def upsert(
        self,
        table: str,
        columns: Sequence[str],
        key: Sequence[str],
        batches: Iterable[pa.RecordBatch],
        *,
        newest: str | None = None,
        unique: bool = False,
    ) -> Applied:
        """Insert rows with a new key, set ``columns`` of the others. Of several rows with one key the last counts. ``unique``: there are
        none such. Refused if the table takes fewer rows than there are keys.

        ``newest``: the one with the greatest value there counts, the last of equal ones; null is less than any. It must not be less
        than the value in the table either. Rows that do not count are ``folded``.
        """
        with self._writing(f"upserting into table {table!r}"):
            return self._loader.upsert(table, columns, key, batches, newest, unique)

    def replace(self, table: str, columns: Sequence[str], scope: Mapping[str, object], batches: Iterable[pa.RecordBatch]) -> Applied:
        """Delete the rows whose columns equal ``scope`` (``{}``: all), insert these. Refused if some of these are outside ``scope``."""
        with self._writing(f"replacing rows of table {table!r}"):
            return self._loader.replace(table, columns, scope, batches)

    def delete(self, table: str, key: Sequence[str], batches: Iterable[pa.RecordBatch]) -> Applied:
        """Delete the rows with these keys; keys that are not there are no error."""
        with self._writing(f"deleting from table {table!r}"):
            return self._loader.delete(table, key, batches)

    def accumulate(
        self, table: str, columns: Sequence[str], key: Sequence[str], sums: Sequence[str], batches: Iterable[pa.RecordBatch]
    ) -> Applied:
        """Like upsert, but ``sums`` are added to what is there, and rows with one key are summed; null counts as 0."""
        with self._writing(f"accumulating in table {table!r}"):
            return self._loader.accumulate(table, columns, key, sums, batches)

    def count_matching(self, table: str, key: Sequence[str], batches: Iterable[pa.RecordBatch]) -> int:
        """How many different keys of ``batches`` the table has."""
        with self._doing(f"counting rows of table {table!r}"):
            return self._loader.count_matching(table, key, batches)

    def count_rows(self, table: str) -> int:
        with self._doing(f"counting rows of table {table!r}"):
            return self._loader.count_rows(table)


class Database(System):
    """Any database that SQLAlchemy speaks, by ``url``; ``postgresql://`` means psycopg 3.

    ``schema_name``  where tables are whose name says no schema, this project's own three included.
    Errors: Misconfigured for the URL, the login, permissions, unknown tables and columns, syntax; Transient for locks, time-outs,
    full disks and lost connections. ``statement_timeout_seconds`` is kept by Postgres and MariaDB; 0 is none.
    """

    url: str = Field(repr=False)
    schema_name: str | None = None
    statement_timeout_seconds: float = 0
    lock_timeout_seconds: float = 30
    connect_timeout_seconds: float = 10

    # A copy of this object shares both, whatever is changed in it.
    _engines: dict[tuple[str, Waiting], OwnEngine] = PrivateAttr(default_factory=dict)
    _has_ledger_until: dict[tuple[str, str | None], float] = PrivateAttr(default_factory=dict)
    _called: str | None = PrivateAttr(default=None)
    _probed: ClassVar[set[tuple[int, str]]] = set()

    def be_called(self, name: str) -> None:
        """Be told of by ``name`` where the URL does not read, so that there is no ``where`` to tell."""
        self._called = name

    @property
    def where(self) -> str:
        """The database in words, without user or password."""
        return in_words(self._parsed())

    def read(
        self,
        sql: str,
        *,
        params: Mapping[str, Any] | None = None,
        fields: Mapping[str, str] | None = None,
        name: str,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[Records]:
        """The rows of one SELECT, through a server-side cursor in a read-only transaction; ``params`` are bound (``:month``).

        ``fields`` maps the names wanted to the result's columns; none: all columns. A list as parameter fits ``IN :ids``.
        At least one batch, empty if there are no rows. Errors, as for the class, come while the rows are consumed.
        """
        statement, bound = _statement(sql, params or {}, name)
        with self._reading() as connection:
            with explained(self.where, f"query {name!r}"):
                result = connection.execution_options(stream_results=True, yield_per=batch_rows).execute(statement, bound)
                there = list(result.keys())
            wanted = dict(fields) if fields else {column: column for column in there}
            at = _places(wanted, there, name)
            if connection.dialect.name in MYSQL_LIKE and (short := _printed_short(result, at)):
                raise Misconfigured(
                    f"query {name!r}: column {short} is FLOAT, of which {connection.dialect.name} gives 6 digits and rounds the others; "
                    "write CAST(… AS DOUBLE) in the SELECT, or AS DECIMAL(p,s) with the digits that are meant, or leave it out by fields="
                )
            columns = Columns(list(wanted), connection.dialect.name)
            first = 1
            for rows in _fetched(result, batch_rows, self.where, f"query {name!r}"):
                for batch in columns.batches(rows, at):
                    positions = pa.array(range(first, first + batch.num_rows), pa.int64())
                    yield Records(batch=batch, origin=name, positions=positions, unit="row", unread=unread_of(there, wanted))
                    first += batch.num_rows

    def count(self, sql: str, params: Mapping[str, Any] | None = None) -> int:
        """How many rows the SELECT has, counted by the database."""
        # A line of its own for the bracket: the statement may end in a comment.
        counting = f"SELECT count(*) FROM (\n{sql.rstrip().rstrip(';')}\n) AS bus_counted"  # noqa: S608 - the author's own statement
        statement, bound = _statement(counting, params or {}, "count")
        with self._reading() as connection, explained(self.where, "counting the rows of a query"):
            return connection.execute(statement, bound).scalar_one()

    def column_keys(self, table: str, column: str) -> Iterator[pa.Array]:
        """The distinct values of a column, nulls left out, in pieces; where the database types values, each may have a type of its own."""
        quoted, schema = table_name(table, self.schema_name).quoted()
        values: sa.ColumnElement[Any] = sa.column(sa.sql.quoted_name(column, True))
        source = sa.table(quoted, values, schema=schema)  # pyright: ignore[reportArgumentType]
        query = sa.select(values).select_from(source).where(values.is_not(None)).distinct()
        with self._reading() as connection:
            with explained(self.where, f"reading the keys {table}.{column}"):
                result = connection.execution_options(stream_results=True, yield_per=BATCH_ROWS).execute(query)
            found = Columns([column], connection.dialect.name)
            for rows in _fetched(result, BATCH_ROWS, self.where, f"reading the keys {table}.{column}"):
                yield from (batch.column(0) for batch in found.batches(rows, [0]))

    def prepare(self, tables: Sequence[TablePlan]) -> None:
        """Make sure that everything a publication needs is there, before it begins: this project's own tables, and ``tables``.

        Each table is created if its plan says so, or compared. One Misconfigured lists all differences of all tables, or shows the
        CREATE TABLE to run. A dialect that is not known to keep its promises must pass :meth:`probe`, once per process.
        """
        place = (self.url, self.schema_name)
        has_ledger = time.monotonic() < self._has_ledger_until.get(place, 0)
        if has_ledger and not tables:
            return
        with self._writing() as connection, explained(self.where, "preparing tables"):
            with _alone(connection, self.lock_timeout_seconds):
                if not has_ledger:
                    ledger_tables(connection.dialect, self.schema_name).create_all(connection)
                prepare_tables(connection, tables, self.schema_name, self.where)
                connection.commit()
            known_good = connection.dialect.name in KNOWN_GOOD
        if not known_good and (os.getpid(), self.url) not in self._probed:
            self.probe()
            self._probed.add((os.getpid(), self.url))
        if not has_ledger:
            self._has_ledger_until[place] = time.monotonic() + LEDGER_SECONDS

    def compare(self, tables: Sequence[TablePlan]) -> None:
        """Raise what :meth:`prepare` would say of ``tables`` as they are now. Nothing is made, no lock is taken."""
        file = sqlite_file(self._parsed())
        # One that is not there yet is compared as it would be made: empty.
        opened = self._reading() if file is None or file.exists() else sa.create_engine("sqlite://").connect()
        with opened as connection, explained(self.where, "looking at tables"):
            compare_tables(connection, tables, self.schema_name, self.where)

    @contextmanager
    def transaction(self, *, reading: bool = False) -> Iterator[Transaction]:
        """A transaction: committed at the end of the block, rolled back if it raises. ``reading``: nothing can be written, nobody waits.

        Transient "… outcome unknown …" if the connection is lost while it commits: look the outcome up before trying again.
        """
        with (self._reading if reading else self._writing)() as connection:
            yield Transaction(connection, self.schema_name, self.where)
            if not reading:
                self._commit(connection)

    def hurried(self, lock_seconds: float) -> "Database":
        """The same database, for who waits for a lock no longer than that; a second at least on MariaDB."""
        return self.model_copy(update={"lock_timeout_seconds": lock_seconds})

    def who_settles(self) -> str:
        """Which session keeps attempts from being settled, in words, and how it is ended: one that has locked the table, else the one that
        has been settling an attempt for the longest time."""
        try:
            with self._reading() as connection, explained(self.where, "looking who holds a lock"):
                if connection.dialect.name == "postgresql":
                    tables = ledger_tables(connection.dialect, self.schema_name).tables.values()
                    name = connection.dialect.identifier_preparer.format_table(next(t for t in tables if t.name == "bus_outcomes"))
                    if found := connection.execute(sa.text(WRITING), {"name": name}).first():
                        pid, state, since, client = found
                        began = f" since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if since else ""
                        said = f"session {pid} ({state or 'unknown to this user'}{began}, from {client or 'the same machine'})"
                        return (
                            f"{said}; if whoever drove it is gone, `SELECT pg_terminate_backend({pid})` ends it (pg_stat_activity shows it)"
                        )
        except BusError:
            pass
        return "a session; find out which, and end it if whoever drove it is gone"

    def probe(self) -> None:
        """Let two connections race to settle the same attempt. Misconfigured if both win, or if a rollback leaves something."""
        with self._writing() as connection, explained(self.where, "preparing the probe"):
            ledger_tables(connection.dialect, self.schema_name).create_all(connection)
            connection.commit()
        trip = f"probe-{uuid.uuid4()}"
        try:
            if not (self._loser_sees(trip, "published") and self._rollback_frees(trip)):
                raise Misconfigured(
                    f"{self.where} let two transactions settle the same attempt, or kept what was rolled back; "
                    "use a database (or a table engine) with real transactions and unique keys"
                )
        finally:
            with self._writing() as connection, explained(self.where, "cleaning up after the probe"):
                Ledger(connection, self.schema_name).forget(trip)
                connection.commit()

    def _loser_sees(self, trip: str, outcome: str) -> bool:
        """Whether a second writer waits for the first and then finds what it committed."""
        with ThreadPoolExecutor(1) as other, self._writing() as connection:
            with explained(self.where, "probing"):
                Ledger(connection, self.schema_name).record_outcome("bus-probe", trip, 1, outcome, "first")
            second = other.submit(self._settles, trip, 1)
            wait((second,), timeout=PROBE_SECONDS)
            if second.done():
                return False
            with explained(self.where, "probing"):
                connection.commit()
            return second.result() == outcome

    def _rollback_frees(self, trip: str) -> bool:
        with self._writing() as connection, explained(self.where, "probing"):
            Ledger(connection, self.schema_name).record_outcome("bus-probe", trip, 2, "rolled back", "first")
            connection.rollback()
        return self._settles(trip, 2) is None

    def _settles(self, trip: str, attempt: int) -> str | None:
        """None if this connection could settle the attempt, else the outcome it found."""
        with self._writing() as connection:
            try:
                with explained(self.where, "probing"):
                    Ledger(connection, self.schema_name).record_outcome("bus-probe", trip, attempt, "second", "second")
                    connection.commit()
            except AlreadySettled as settled:
                return settled.outcome
            return None

    def _commit(self, connection: Connection) -> None:
        try:
            connection.commit()
        except exc.SQLAlchemyError as error:
            if meaning(error).is_lost:
                raise Transient(
                    f"the connection to {self.where} was lost at COMMIT: outcome unknown; look up the trip's outcome before trying again"
                ) from error
            raise_explained(error, self.where, "committing", writes_rows=True)

    def _parsed(self) -> URL:
        try:
            return parsed(self.url)
        except Misconfigured as error:
            raise error.at(place=f"resource '{self._called}'" if self._called else None) from None

    def _reading(self) -> AbstractContextManager[Connection]:
        file = sqlite_file(self._parsed())
        if file is not None and not file.exists():
            raise Misconfigured(f"{self.where}: there is no such file; check the path")
        return connected(self._lazy_engine(), self.where, self._waiting(), reading=True)

    def _writing(self) -> AbstractContextManager[Connection]:
        file = sqlite_file(self._parsed())
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Misconfigured(f"{self.where}: its folder cannot be made ({error.strerror}); check the path") from error
        return connected(self._lazy_engine(), self.where, self._waiting())

    def _waiting(self) -> Waiting:
        return Waiting(self.statement_timeout_seconds, self.lock_timeout_seconds, self.connect_timeout_seconds)

    def _lazy_engine(self) -> Engine:
        waiting = self._waiting()
        postgres = self._parsed().get_backend_name() == "postgresql"
        # There each transaction says how long it waits.
        what = (self.url, Waiting(connect=waiting.connect) if postgres else waiting)
        if what not in self._engines:
            self._engines[what] = OwnEngine(partial(make_engine, self._parsed(), waiting))
        return self._engines[what]()


@contextmanager
def _alone(connection: Connection, lock_timeout_seconds: float) -> Iterator[None]:
    """Nobody else prepares tables meanwhile. SQLite's write lock does that by itself; DDL ends no transaction there or on Postgres."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(PREPARE_LOCK)))
        yield
    elif connection.dialect.name in MYSQL_LIKE:
        if not connection.scalar(sa.select(sa.func.get_lock("bus_prepare", lock_timeout_seconds))):
            raise Transient("somebody else is preparing tables; try again later")
        try:
            yield
        finally:
            connection.execute(sa.select(sa.func.release_lock("bus_prepare")))
    else:
        yield


def _fetched(result: sa.CursorResult[Any], batch_rows: int, where: str, doing: str) -> Iterator[Sequence[Any]]:
    """The rows in lists of ``batch_rows``, at least one list."""
    first, is_done = 1, False
    while not is_done:
        with explained(where, f"{doing}, from row {first}"):
            rows = result.fetchmany(batch_rows)
        is_done = len(rows) < batch_rows
        if rows or first == 1:
            yield rows
        first += len(rows)


def _statement(sql: str, params: Mapping[str, Any], name: str) -> tuple[sa.TextClause, dict[str, Any]]:
    """``sql`` with its parameters; Misconfigured that names those missing and those not asked for."""
    statement = sa.text(sql)
    asked = set(statement.compile().params)
    if asked != set(params):
        missing, extra = sorted(asked - set(params)), sorted(set(params) - asked)
        said = [f"the statement asks for {missing}"] if missing else []
        said += [f"it has no place for {extra}"] if extra else []
        raise Misconfigured(f"query {name!r}: {', '.join(said)}; bind :name by params={{'name': …}}, write a colon in text as \\:")
    lists = [sa.bindparam(key, expanding=True) for key, value in params.items() if isinstance(value, (list, tuple, set, frozenset))]
    return (statement.bindparams(*lists) if lists else statement), dict(params)


def _printed_short(result: sa.CursorResult[Any], at: Sequence[int]) -> list[str]:
    """Which of the columns at these places the server prints with fewer digits than it has."""
    described: Sequence[Any] = result.cursor.description if result.cursor is not None else ()
    return [described[place][0] for place in at if described[place][1] == MYSQL_FLOAT]


def _places(wanted: Mapping[str, str], there: list[str], name: str) -> list[int]:
    missing = [column for column in wanted.values() if column not in there]
    if missing:
        raise Misconfigured(
            f"query {name!r}: the result has no column {missing}; it has {there}; add it to the SELECT or map it with fields="
        )
    return [there.index(column) for column in wanted.values()]
