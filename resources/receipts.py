"""What a destination remembers of the trips that changed it: outcomes, receipts and counts, committed with the data they are about.

bus_outcomes   one row per (trip, attempt): 'published' or 'revoked', whichever transaction committed first
bus_receipts   one row per (route, key, part): this message's rows are applied
bus_applied    what each table of a trip got, from the database's own row counts
bus_plans      of a trip into several databases, in the first: all that is needed to roll it forward, should the depot forget it
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect

from resources.column_types import exact_text
from resources.errors import Refused

T = TypeVar("T")

PUBLISHED = "published"
KEY_CHARACTERS = 400
"""Longer keys are stored as their beginning and a digest: Postgres indexes at most 2704 bytes, InnoDB 768 characters in all columns."""
NAME_CHARACTERS = 120
KEYS_AT_ONCE = 500
"""Bound parameters in one statement; SQLite before 3.32 takes 999."""
RACES = 3
"""How often a lost race for keys is looked at again before the database's error counts."""


@dataclass(frozen=True)
class Applied:
    """What became of the rows for one table, from the database's row counts.

    ``inserted + updated + folded`` is the number of rows given (not for delete). ``folded``: rows of a key that came again later
    in the same load, that is newer in the table, or whose row stands there as it came; never rows that the table drops. ``deleted``:
    rows taken away, by delete or before a replace.
    """

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    folded: int = 0

    def __add__(self, other: Applied) -> Applied:
        return Applied(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class AppliedTo:
    """:class:`Applied`, with the table and mode it is about."""

    table: str
    mode: str
    rows: Applied


def took_fewer(table: str, taken: int, keys: int) -> Refused:
    """The error of a table that took fewer rows than there are different ones."""
    return Refused(
        f"table {table!r} took {taken} of {keys} rows that differ: a trigger or a rule of the table drops the others, or two keys are one "
        "in the type or collation of its columns; nothing was written. Let the table take every row, or leave such rows out by where="
    )


class AlreadySettled(Refused):
    """Another transaction has settled this attempt first; ``outcome`` is what it said. Nothing was written by this one."""

    def __init__(self, trip: str, attempt: int, outcome: str):
        super().__init__(f"attempt {attempt} of trip {trip} is settled already: {outcome}; this transaction must be given up")
        self.outcome = outcome


_made: dict[tuple[object, ...], sa.MetaData] = {}


def ledger_tables(dialect: Dialect, schema: str | None) -> sa.MetaData:
    """The four tables as ``dialect`` needs them; the same ones each time, so that their statements are compiled once."""
    wanted = (dialect.name, getattr(dialect, "is_mariadb", False), schema)
    return _made.get(wanted) or _made.setdefault(wanted, _ledger_tables(dialect, schema))


def _ledger_tables(dialect: Dialect, schema: str | None) -> sa.MetaData:
    made = sa.MetaData(schema=schema)

    def name(column: str, characters: int = NAME_CHARACTERS, *, primary_key: bool = False) -> sa.Column[str]:
        return sa.Column(column, exact_text(dialect, characters), nullable=False, primary_key=primary_key)

    def now() -> sa.Column[object]:
        return sa.Column("at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.current_timestamp())

    def number(column: str, *, primary_key: bool = False) -> sa.Column[int]:
        return sa.Column(column, sa.BigInteger, nullable=False, primary_key=primary_key, autoincrement=False)

    engine: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
    sa.Table(
        "bus_outcomes",
        made,
        name("trip", primary_key=True),
        number("attempt", primary_key=True),
        name("route"),
        name("outcome"),
        name("run"),
        now(),
        **engine,
    )
    sa.Table(
        "bus_receipts",
        made,
        name("route", primary_key=True),
        name("key", KEY_CHARACTERS, primary_key=True),
        name("part", primary_key=True),
        sa.Column("trip", exact_text(dialect, NAME_CHARACTERS), nullable=False, index=True),
        number("attempt"),
        now(),
        **engine,
    )
    sa.Table(
        "bus_applied",
        made,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("trip", exact_text(dialect, NAME_CHARACTERS), nullable=False, index=True),
        name("table", 2 * NAME_CHARACTERS),
        name("mode"),
        number("inserted"),
        number("updated"),
        number("deleted"),
        number("folded"),
        **engine,
    )
    sa.Table(
        "bus_plans",
        made,
        name("trip", primary_key=True),
        name("route"),
        sa.Column("plan", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"), nullable=False),
        now(),
        **engine,
    )
    return made


class Ledger:
    """The bookkeeping inside one transaction on ``connection``."""

    def __init__(self, connection: Connection, schema: str | None):
        self._connection = connection.execution_options(preserve_rowcount=True)
        tables = ledger_tables(connection.dialect, schema).tables
        prefix = f"{schema}." if schema else ""
        self._outcomes, self._receipts, self._applied = (tables[prefix + name] for name in ("bus_outcomes", "bus_receipts", "bus_applied"))
        self._plans = tables[f"{prefix}bus_plans"]

    def outcome(self, trip: str, attempt: int) -> str | None:
        t = self._outcomes
        return self._connection.scalar(sa.select(t.c.outcome).where(t.c.trip == trip, t.c.attempt == attempt))

    def published(self, trip: str) -> int | None:
        t = self._outcomes
        query = sa.select(sa.func.min(t.c.attempt)).where(t.c.trip == trip, t.c.outcome == PUBLISHED)
        return self._connection.scalar(query)

    def record_outcome(self, route: str, trip: str, attempt: int, outcome: str, run: str) -> None:
        row = {"route": route, "trip": trip, "attempt": attempt, "outcome": outcome, "run": run}
        if not self._inserted(self._outcomes, [row]):
            raise AlreadySettled(trip, attempt, self.outcome(trip, attempt) or "by a transaction that is not visible yet")

    def receipts(self, route: str, keys: Sequence[str], part: str = "") -> frozenset[str]:
        found = self._stored_receipts(route, [stored_key(key) for key in keys], part)
        return frozenset(key for key in keys if stored_key(key) in found)

    def receipt_trips(self, route: str, keys: Sequence[str], part: str = "") -> dict[str, str]:
        found = self._stored_receipts(route, [stored_key(key) for key in keys], part)
        return {key: found[stored_key(key)] for key in keys if stored_key(key) in found}

    def receipt_parts(self, route: str, keys: Sequence[str]) -> dict[str, dict[str, str]]:
        t, found = self._receipts, dict[str, dict[str, str]]()
        for chunk in _chunks(list(dict.fromkeys(stored_key(key) for key in keys))):
            query = sa.select(t.c.key, t.c.part, t.c.trip).where(t.c.route == route, t.c.key.in_(chunk))
            for key, part, trip in self._connection.execute(query):
                found.setdefault(key, {})[part] = trip
        return {key: found[stored_key(key)] for key in keys if stored_key(key) in found}

    def receipts_of(self, route: str, trip: str) -> list[tuple[str, str]]:
        t = self._receipts
        query = sa.select(t.c.part, t.c.key).where(t.c.route == route, t.c.trip == trip)
        return [(part, key) for part, key in self._connection.execute(query.order_by(t.c.part, t.c.key))]

    def record_plan(self, route: str, trip: str, plan: str) -> None:
        self._inserted(self._plans, [{"trip": trip, "route": route, "plan": plan}])

    def plan(self, trip: str) -> str | None:
        return self._connection.scalar(sa.select(self._plans.c.plan).where(self._plans.c.trip == trip))

    def record_receipts(self, route: str, keys: Sequence[str], *, part: str, trip: str, attempt: int) -> tuple[str, ...]:
        by_stored = {stored_key(key): key for key in keys}
        every = {"route": route, "part": part, "trip": trip, "attempt": attempt}
        # Sorted: two transactions that want the same keys wait for each other at the first, instead of colliding crosswise.
        fresh = self._inserted_keys(sorted(by_stored), every)
        return tuple(key for stored, key in by_stored.items() if stored not in fresh)

    def record_applied(self, trip: str, table: str, mode: str, rows: Applied) -> None:
        counts = {"inserted": rows.inserted, "updated": rows.updated, "deleted": rows.deleted, "folded": rows.folded}
        self._connection.execute(sa.insert(self._applied), {"trip": trip, "table": table, "mode": mode, **counts})

    def applied(self, trip: str) -> tuple[AppliedTo, ...]:
        t = self._applied
        query = sa.select(t.c.table, t.c.mode, t.c.inserted, t.c.updated, t.c.deleted, t.c.folded)
        rows = self._connection.execute(query.where(t.c.trip == trip).order_by(t.c.id))
        return tuple(AppliedTo(table, mode, Applied(*counts)) for table, mode, *counts in rows)

    def rows_left_in(self, table: str) -> int:
        t = self._applied
        return int(self._connection.scalar(sa.select(sa.func.sum(t.c.inserted - t.c.deleted)).where(t.c.table == table)) or 0)

    def forget(self, trip: str) -> None:
        """Take away the outcomes of ``trip``: for the probe's own."""
        self._connection.execute(sa.delete(self._outcomes).where(self._outcomes.c.trip == trip))

    def _inserted_keys(self, keys: Sequence[str], every: dict[str, Any]) -> set[str]:
        """Receipts for ``keys``, with the values of ``every``: those that were not there."""
        if self._connection.dialect.name == "postgresql":
            return self._inserted_at_once(keys, every)
        return {key for chunk in _chunks(keys) for key in self._inserted_where_absent(chunk, every)}

    def _inserted_at_once(self, keys: Sequence[str], every: dict[str, Any]) -> set[str]:
        # The keys are one value, an array: thousands of bound rows take the client longer than all the rest of a trip.
        t, key = self._receipts, sa.func.unnest(_array(keys)).column_valued("given")
        rows = sa.select(key, *(sa.literal(value, t.c[name].type) for name, value in every.items()))
        insert = postgresql.insert(t).from_select(["key", *every], rows).on_conflict_do_nothing()
        return set(self._connection.scalars(insert.returning(t.c.key)))

    def _inserted_where_absent(self, keys: Sequence[str], every: dict[str, Any]) -> set[str]:
        def insert_absent() -> set[str]:
            absent = set(keys) - self._stored_receipts(every["route"], keys, every["part"]).keys()
            if absent:
                self._connection.execute(sa.insert(self._receipts), [{**every, "key": key} for key in keys if key in absent])
            return absent

        return again_after_race(self._connection, insert_absent)

    def _inserted(self, table: sa.Table, rows: list[dict[str, object]]) -> bool:
        """Insert ``rows``; False if one is there. Waits for a transaction that is about to insert the same."""
        if self._connection.dialect.name in ("postgresql", "sqlite"):
            dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
            return self._connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows[0]).rowcount == len(rows)
        try:
            _in_savepoint(self._connection, lambda: self._connection.execute(sa.insert(table), rows))
        except exc.IntegrityError:
            return False
        return True

    def _stored_receipts(self, route: str, stored: Sequence[str], part: str) -> dict[str, str]:
        """By key, as it is stored: the trip that applied it."""
        t, found = self._receipts, dict[str, str]()
        query = sa.select(t.c.key, t.c.trip).where(t.c.route == route, t.c.part == part)
        if self._connection.dialect.name == "postgresql":
            return dict(self._connection.execute(query.where(t.c.key == sa.any_(_array(stored)))).tuples().all())
        for chunk in _chunks(stored):
            found.update((key, trip) for key, trip in self._connection.execute(query.where(t.c.key.in_(chunk))))
        return found


def again_after_race(connection: Connection, work: Callable[[], T]) -> T:
    """``work`` in a savepoint; once more if somebody inserted the same key between its look and its insert."""
    for _ in range(RACES - 1):
        try:
            return _in_savepoint(connection, work)
        except exc.IntegrityError:
            continue
    return _in_savepoint(connection, work)


def _in_savepoint(connection: Connection, work: Callable[[], T]) -> T:
    savepoint = connection.begin_nested()
    try:
        done = work()
    except exc.IntegrityError:
        savepoint.rollback()
        raise
    # Any other error ends the whole transaction. After a deadlock MariaDB and MySQL have forgotten the savepoint: rolling back to it
    # would fail, and hide the deadlock behind an error of its own.
    savepoint.commit()
    return done


def stored_key(key: str) -> str:
    """``key`` as it stands in the table: itself, or its beginning and its digest if it is too long for an index. Of what stands in the
    table that is itself: the depot keeps keys so, and gives them back."""
    if len(key) <= KEY_CHARACTERS:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{key[: KEY_CHARACTERS - len(digest) - 1]}#{digest}"


def _array(keys: Sequence[str]) -> sa.BindParameter[Any]:
    return sa.bindparam(None, list(keys), postgresql.ARRAY(sa.Text), unique=True)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), KEYS_AT_ONCE):
        yield items[start : start + KEYS_AT_ONCE]
