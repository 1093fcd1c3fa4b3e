"""Rows into a table, in each of the modes, inside a transaction that somebody else begins and commits.

Append and replace insert straight into the table. The other modes fill a temporary table, which has the rows' place in the order
beside them, and merge it set-wise: first the folding of rows with the same key, then UPDATE of what is there and INSERT of what is
not (:class:`Loader`, portable SQL only), or ``INSERT … ON CONFLICT`` (:class:`PostgresLoader`). No mode takes a lock that
makes a reader wait.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.sql.elements import quoted_name

from resources import decimals
from resources.blanks import uncut
from resources.choices import as_declared
from resources.column_types import exact_text
from resources.copying import copy_rows
from resources.engines import MYSQL_LIKE
from resources.errors import Misconfigured, Refused
from resources.fractions import unrounded
from resources.ordered import Ascending
from resources.packets import fitting
from resources.receipts import RACES, Applied, again_after_race, took_fewer
from resources.sql_errors import explained
from resources.sql_values import as_bound, as_rows, chosen, peeked, pieces, refuse_null_keys
from resources.tables import columns_there, table_name

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them

POSITION = "_bus_position"
"""The place of a row in the order in which it was handed over; the field names of contracts cannot begin with _bus_."""
POSITION_BYTES = 8
INNODB_KEY_BYTES = 3072
"""An index of InnoDB has at most so many in all columns (MariaDB's and MySQL's "InnoDB limitations")."""


_BEFORE_MERGING = sa.text(
    "SELECT relkind = 'p', CASE WHEN pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('128MB')"
    " THEN set_config('work_mem', '128MB', true) END FROM pg_class WHERE oid = to_regclass(:target)"
)
"""Whether the table has partitions; and memory, in which a million rows of a usual table are sorted: twice as fast as with 4 MB."""


@dataclass(frozen=True)
class _Staged:
    """Rows that wait in a temporary table, and what is to become of them."""

    table: sa.Table
    columns: tuple[str, ...]
    key: tuple[str, ...]
    sums: tuple[str, ...]
    schema: pa.Schema | None
    rows: int
    newest: str | None
    in_order: bool
    """The rows came in ascending order of their key, as bytes: no key is there twice."""
    unique: bool
    """No key is there twice, as the contract says."""
    as_is: bool
    """The temporary table keeps the keys as they came: two that differ are two there."""

    @property
    def others(self) -> tuple[str, ...]:
        """The columns that an update sets. A table of keys alone gets its key again, so that every row is counted."""
        return tuple(name for name in self.columns if name not in self.key) or self.key[:1]

    def is_decimal(self, name: str) -> bool:
        return self.schema is not None and pa.types.is_decimal(self.schema.field(name).type)

    def is_whole(self, name: str) -> bool:
        return self.schema is not None and pa.types.is_integer(self.schema.field(name).type)


class Loader:
    """The portable way, for every dialect that SQLAlchemy speaks; ``where`` is the database in words."""

    _merges = RACES
    """How often it is merged where rows are missing: a key that somebody inserts between UPDATE and INSERT gets neither."""

    def __init__(self, connection: Connection, schema: str | None, where: str):
        self._connection = connection.execution_options(preserve_rowcount=True)
        self._dialect = connection.dialect.name
        self._schema = schema
        self._where = where
        self._targets: dict[str, sa.Table] = {}

    def append(self, table: str, columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> Applied:
        return Applied(inserted=self._inserted(table, columns, (chosen(batch, columns, table) for batch in batches)))

    def replace(self, table: str, columns: Sequence[str], scope: Mapping[str, object], batches: Iterable[pa.RecordBatch]) -> Applied:
        if outside := [name for name in scope if name not in columns]:
            raise Misconfigured(f"table {table!r}: the scope names {outside}, which is not among the columns dropped: {list(columns)}")
        target = self._target(table)
        schema, rows = peeked(batches)
        conditions, has_text = [], False
        for name, value in scope.items():
            kind = schema.field(name).type if schema is not None and name in schema.names else None
            bound = as_bound(value, kind, self._dialect, f"table {table!r}, scope {name!r}")
            conditions.append(_same(target.c[name], bound, self._connection.dialect))
            has_text = has_text or _is_text(target.c[name], bound, self._connection.dialect)
        deleted = self._connection.execute(sa.delete(target).where(*conditions)).rowcount
        inserted = self._inserted(table, columns, _inside(scope, table, (chosen(batch, columns, table) for batch in rows)))
        if has_text and inserted and not self._connection.scalar(sa.select(sa.exists(sa.select(target).where(*conditions)))):
            raise Misconfigured(
                f"table {table!r} does not keep the scope ({', '.join(scope)}) as it is: its column cuts off blanks at the end, or writes "
                "letters in its own case; the next trip would not find these rows. Write the scope as the table does, or change the column"
            )
        return Applied(inserted=inserted, deleted=deleted)

    def upsert(
        self,
        table: str,
        columns: Sequence[str],
        key: Sequence[str],
        batches: Iterable[pa.RecordBatch],
        newest: str | None = None,
        unique: bool = False,
    ) -> Applied:
        staged = self._staged(table, columns, key, batches, newest=newest, unique=unique)
        return self._all_merged(table, staged) if staged.rows else Applied()

    def accumulate(
        self, table: str, columns: Sequence[str], key: Sequence[str], sums: Sequence[str], batches: Iterable[pa.RecordBatch]
    ) -> Applied:
        staged = self._staged(table, columns, key, batches, sums)
        return self._all_merged(table, staged) if staged.rows else Applied()

    def delete(self, table: str, key: Sequence[str], batches: Iterable[pa.RecordBatch]) -> Applied:
        staged = self._staged(table, key, key, batches)
        if not staged.rows:
            return Applied()
        target, gone = self._target(table), staged.table
        if self._dialect == "sqlite":  # has no DELETE … USING, but uses the index for IN
            there = sa.tuple_(*(target.c[name] for name in key)).in_(sa.select(*(gone.c[name] for name in key)))
        else:
            there = _same_key(target, gone, key)
        deleted = self._connection.execute(sa.delete(target).where(there)).rowcount
        return Applied(deleted=deleted, folded=staged.rows - self._distinct(staged))

    def count_matching(self, table: str, key: Sequence[str], batches: Iterable[pa.RecordBatch]) -> int:
        staged = self._staged(table, key, key, batches)
        target = self._target(table)
        asked = sa.select(*(staged.table.c[name] for name in key)).distinct().subquery()
        there = sa.exists(sa.select(sa.literal(1)).select_from(target).where(_same_key(target, asked, key)))
        return self._connection.scalar(sa.select(sa.func.count()).select_from(asked).where(there)) or 0

    def count_rows(self, table: str) -> int:
        return self._connection.scalar(sa.select(sa.func.count()).select_from(self._target(table))) or 0

    def _target(self, table: str) -> sa.Table:
        """The table with its columns as they are in the database; its constraints are not looked up, the database keeps them."""
        if table not in self._targets:
            quoted, schema = table_name(table, self._schema).quoted()
            with explained(self._where, f"looking at table {table!r}"):
                try:
                    found = columns_there(self._connection, sa.inspect(self._connection), quoted, schema)
                except exc.NoSuchTableError:
                    raise Misconfigured(f"there is no table {table!r} in {self._where}; create it, or set create=True") from None
            columns = [sa.Column(quoted_name(column["name"], True), column["type"]) for column in found]
            self._targets[table] = sa.Table(quoted, sa.MetaData(), *columns, schema=schema)
        return self._targets[table]

    def _staged(
        self,
        table: str,
        columns: Sequence[str],
        key: Sequence[str],
        batches: Iterable[pa.RecordBatch],
        sums: Sequence[str] = (),
        newest: str | None = None,
        unique: bool = False,
    ) -> _Staged:
        schema, rows = peeked(batches)
        # A table that is called so, of this transaction or of a trigger, would be hidden by it: nobody's is.
        name, target = f"bus_load_{uuid.uuid4().hex}", self._target(table)
        with explained(self._where, f"making a temporary table like table {table!r}"):
            temporary = self._temporary(name, target, columns, key)
        order = Ascending()
        kinds = [] if schema is None else [(schema.field(name).type, temporary.c[name].type) for name in key]
        order.holds = not any(pa.types.is_nested(kind) for kind, _ in kinds)
        filled = self._fill(temporary, (*columns, POSITION), _positioned(rows, columns, key, table, order), table)
        as_is = all(_as_is(kind, into) for kind, into in kinds)
        return _Staged(temporary, tuple(columns), tuple(key), tuple(sums), schema, filled, newest, order.holds, unique, as_is)

    def _temporary(self, name: str, target: sa.Table, columns: Sequence[str], key: Sequence[str]) -> sa.Table:
        kinds = {column.name: self._kind(column, target) for column in self._columns_of(target, columns)}
        like = [sa.Column(column, kind, nullable=column not in key) for column, kind in kinds.items()]
        # The key comes first in the index: folding reads it in that order, and merging looks it up. One that is long has no place there.
        fits = self._dialect not in MYSQL_LIKE or sum(_index_bytes(kinds[name]) for name in key) <= INNODB_KEY_BYTES - POSITION_BYTES
        index = sa.PrimaryKeyConstraint(*(key if fits else ()), POSITION)
        made = sa.Table(name, sa.MetaData(), *like, sa.Column(POSITION, sa.BigInteger, autoincrement=False), index, prefixes=["TEMPORARY"])
        made.create(self._connection, checkfirst=False)
        return made

    def _kind(self, column: sa.Column[Any], target: sa.Table) -> sa.types.TypeEngine[Any]:
        if not isinstance(column.type, sa.types.NullType):
            return column.type
        if self._dialect == "sqlite":
            return _Untyped()
        said = f"column {column.name!r} of table {target.name!r} in {self._where} has a type that is not known here"
        raise Misconfigured(f"{said}, so no temporary table can be made like it: leave it out by columns=, or append")

    def _columns_of(self, target: sa.Table, columns: Sequence[str]) -> list[sa.Column[Any]]:
        if missing := [name for name in columns if name not in target.c]:
            raise Misconfigured(f"table {target.name!r} in {self._where} has no column {missing}; it has {list(target.c.keys())}")
        return [target.c[name] for name in columns]

    def _inserted(self, table: str, columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> int:
        """How many rows the table took: all of them, else Refused. What a view's triggers make of rows is theirs to count."""
        target, sent = self._target(table), 0

        def counted() -> Iterator[pa.RecordBatch]:
            nonlocal sent
            for batch in batches:
                sent += batch.num_rows
                yield batch

        inserted = self._fill(target, columns, counted(), table)
        if inserted < sent and target.name not in sa.inspect(self._connection).get_view_names(target.schema):
            raise took_fewer(table, inserted, sent)
        return inserted

    def _fill(self, into: sa.Table, columns: Sequence[str], batches: Iterable[pa.RecordBatch], table: str) -> int:
        """Rows into ``into``, counted by the database; ``table`` is the destination in words."""
        targets = self._columns_of(into, columns)
        insert = sa.insert(into).values({column.name: sa.bindparam(f"p{at}") for at, column in enumerate(targets)})
        compiled = insert.compile(dialect=self._connection.dialect)
        inserted = sent = 0
        for batch in pieces(_unchanged(batches, targets, table, self._dialect)):
            rows: list[Any] = list(as_rows(batch, self._dialect))
            for run in self._fitting(rows, columns, table, str(compiled), sent + 1):
                if compiled.positional:
                    # Straight to the driver: SQLAlchemy would look at every value of every row.
                    done = self._connection.exec_driver_sql(str(compiled), run)
                else:
                    done = self._connection.execute(insert, [{f"p{at}": value for at, value in enumerate(row)} for row in run])
                inserted += done.rowcount if done.rowcount >= 0 else len(run)
            sent += len(rows)
        return inserted

    def _fitting(self, rows: list[Any], columns: Sequence[str], table: str, statement: str, first: int) -> Iterable[list[Any]]:
        if self._dialect not in MYSQL_LIKE:
            return (rows,)
        return fitting(rows, columns, table=table, statement=statement, most_bytes=self._packet_bytes, first=first)

    @cached_property
    def _packet_bytes(self) -> int:
        return self._connection.execute(sa.text("SELECT @@max_allowed_packet")).scalar_one()

    def _all_merged(self, table: str, staged: _Staged) -> Applied:
        """What became of the rows; Refused if the table took fewer than there are keys, which no folding explains."""
        target, taken, keys = self._target(table), 0, 0
        for left in reversed(range(self._merges)):
            savepoint = self._connection.begin_nested() if left else None
            done = self._merged(target, staged)
            taken = keys = done.inserted + done.updated
            if done.folded:
                keys = staged.rows if staged.unique or staged.in_order else self._distinct(staged)
            if taken >= keys or self._accounts_for(target, staged, keys, taken):
                if savepoint:
                    savepoint.commit()
                return done
            if savepoint:
                savepoint.rollback()
        raise took_fewer(table, taken, keys)

    def _merged(self, target: sa.Table, staged: _Staged) -> Applied:
        def update_then_insert() -> Applied:
            source = self._folded(staged)
            values = {name: self._new_value(target, source, staged, name) for name in staged.others}
            replaced = _same_key(target, source, staged.key) & _not_older(target, source, staged.newest)
            updated = self._connection.execute(sa.update(target).values(values).where(replaced)).rowcount
            there = target.alias("there")
            absent = ~sa.exists(sa.select(sa.literal(1)).select_from(there).where(_same_key(there, source, staged.key)))
            fresh = sa.select(*(source.c[name] for name in staged.columns)).where(absent).order_by(*(source.c[name] for name in staged.key))
            inserted = self._connection.execute(sa.insert(target).from_select(list(staged.columns), fresh)).rowcount
            return Applied(inserted=inserted, updated=updated, folded=staged.rows - inserted - updated)

        return again_after_race(self._connection, update_then_insert)

    def _folded(self, staged: _Staged) -> sa.FromClause:
        """One row per key: the last in order, with the sums of all."""
        t = staged.table
        key = [t.c[name] for name in staged.key]
        columns = self._summed(staged)
        rank = sa.func.row_number().over(partition_by=key, order_by=self._last_first(staged)).label("_bus_rank")
        ranked = sa.select(*columns, rank).subquery("ranked")
        return sa.select(*(ranked.c[name] for name in staged.columns)).where(ranked.c["_bus_rank"] == 1).subquery("folded")

    def _last_first(self, staged: _Staged) -> list[sa.ColumnElement[Any]]:
        t = staged.table
        newest = [] if staged.newest is None else [t.c[staged.newest].is_not(None).desc(), t.c[staged.newest].desc()]
        return [*newest, t.c[POSITION].desc()]

    def _summed(self, staged: _Staged) -> list[sa.ColumnElement[Any]]:
        """The columns, each of the sums over all rows of the key."""
        t = staged.table
        key = [t.c[name] for name in staged.key]
        return [self._sum(staged, name).over(partition_by=key).label(name) if name in staged.sums else t.c[name] for name in staged.columns]

    def _sum(self, staged: _Staged, name: str) -> Any:
        if self._dialect == "sqlite" and staged.is_decimal(name):
            return getattr(sa.func, decimals.SUM)(staged.table.c[name])
        return sa.func.sum(sa.func.coalesce(staged.table.c[name], 0))

    def _new_value(self, target: sa.Table, source: Any, staged: _Staged, name: str) -> Any:
        if name not in staged.sums:
            return source.c[name]
        if self._dialect == "sqlite" and staged.is_decimal(name):
            return getattr(sa.func, decimals.ADD)(target.c[name], source.c[name])
        if self._dialect == "sqlite" and staged.is_whole(name):
            return getattr(sa.func, decimals.ADD_WHOLE)(target.c[name], source.c[name])
        return sa.func.coalesce(target.c[name], 0) + sa.func.coalesce(source.c[name], 0)

    def _accounts_for(self, target: sa.Table, staged: _Staged, keys: int, taken: int) -> bool:
        """Whether the rows that the table did not take are newer there, or all stand there as they came: a trigger may save such writes."""
        source = self._folded(staged)
        newer = sa.not_(sa.func.coalesce(_not_older(target, source, staged.newest), sa.false()))
        compared = [name for name in staged.columns if not isinstance(target.c[name].type, sa.JSON)]  # Postgres's json has no equality
        same = sa.false() if staged.sums else sa.and_(*(target.c[name].is_not_distinct_from(source.c[name]) for name in compared))
        counts = sa.select(sa.func.coalesce(sa.func.sum(sa.case((newer, 1), else_=0)), 0), sa.func.count())
        there = sa.join(target, source, _same_key(target, source, staged.key) & (newer | same))
        kept, standing = self._connection.execute(counts.select_from(there)).one()
        return taken + int(kept) >= keys or standing >= keys

    def _distinct(self, staged: _Staged) -> int:
        keys = sa.select(*(staged.table.c[name] for name in staged.key)).distinct().subquery()
        return self._connection.scalar(sa.select(sa.func.count()).select_from(keys)) or 0


class _Untyped(sa.types.UserDefinedType[Any]):
    """SQLite's column without a type, in words that SQLAlchemy can write: values stay what they are."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "BLOB"


class PostgresLoader(Loader):
    """The fast way: COPY, and one ``INSERT … ON CONFLICT`` that folds, merges and counts; a plain INSERT where no key is there yet.
    A table with partitions is merged in the portable way."""

    _merges = 1

    def _fill(self, into: sa.Table, columns: Sequence[str], batches: Iterable[pa.RecordBatch], table: str) -> int:
        targets = self._columns_of(into, columns)
        types = {column.name: column.type for column in targets}
        place = [part for part in (into.schema, into.name) if part]
        doing = f"copying into table {table!r}"
        rows = _unchanged(batches, targets, table, self._dialect)
        return copy_rows(self._connection, place, columns, rows, types, where=self._where, doing=doing)

    def _temporary(self, name: str, target: sa.Table, columns: Sequence[str], key: Sequence[str]) -> sa.Table:
        """Made by SELECT: the target's column types whatever they are, none of its constraints."""
        like = sa.select(*self._columns_of(target, columns), sa.null().cast(sa.BigInteger).label(POSITION))
        body = like.compile(dialect=self._connection.dialect)
        self._connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS {body} WITH NO DATA")
        copies = [sa.Column(column.name, column.type) for column in self._columns_of(target, columns)]
        return sa.Table(name, sa.MetaData(), *copies, sa.Column(POSITION, sa.BigInteger), schema="pg_temp")

    def _all_merged(self, table: str, staged: _Staged) -> Applied:
        name = self._connection.dialect.identifier_preparer.format_table(self._target(table))
        if self._connection.scalar(_BEFORE_MERGING, {"target": name}):
            # Of rows that went into partitions Postgres tells no xmax, by which new ones are told from those that were there.
            return Loader(self._connection, self._schema, self._where)._all_merged(table, staged)
        return super()._all_merged(table, staged)

    def _merged(self, target: sa.Table, staged: _Staged) -> Applied:
        if not self._some_there(target, staged):
            # ON CONFLICT makes an insert take twice as long. Whoever is inserting the same key at this moment is waited for;
            # if they commit, this is undone and the keys are merged.
            with contextlib.suppress(exc.IntegrityError), self._connection.begin_nested():
                plain = sa.insert(target).from_select(list(staged.columns), self._folded_rows(staged))
                inserted = self._connection.execute(plain).rowcount
                return Applied(inserted=inserted, folded=staged.rows - inserted)
        return self._merged_on_conflict(target, staged)

    def _some_there(self, target: sa.Table, staged: _Staged) -> bool:
        if not self._connection.scalar(sa.select(sa.exists(sa.select(sa.literal(1)).select_from(target)))):
            return False
        one = sa.select(sa.literal(1)).select_from(target).where(_same_key(target, staged.table, staged.key))
        return bool(self._connection.scalar(sa.select(sa.exists(one))))

    def _merged_on_conflict(self, target: sa.Table, staged: _Staged) -> Applied:
        insert = postgresql.insert(target).from_select(list(staged.columns), self._folded_rows(staged))
        excluded = _Excluded(insert.excluded)
        values = {name: self._new_value(target, excluded, staged, name) for name in staged.others}
        replaced = _not_older(target, excluded, staged.newest)
        upsert = insert.on_conflict_do_update(index_elements=[target.c[name] for name in staged.key], set_=values, where=replaced)
        # A row that this statement inserted has no deleter or locker, one that it updated is locked by it.
        done = upsert.returning(sa.literal_column("xmax = 0", sa.Boolean).label("is_new")).cte("done")
        counts = sa.select(sa.func.count().filter(done.c.is_new), sa.func.count()).select_from(done)
        inserted, merged = self._connection.execute(counts).one()
        return Applied(inserted=inserted, updated=merged - inserted, folded=staged.rows - merged)

    def _folded_rows(self, staged: _Staged) -> sa.Select[Any]:
        t = staged.table
        if staged.in_order and staged.as_is and not staged.sums:
            # A temporary table is read from its beginning: nothing to sort, nothing to fold.
            return sa.select(*(t.c[name] for name in staged.columns))
        # Bytes, not the language's rules: several times faster, and the same order for every writer, so that none waits crosswise.
        key = [t.c[name].collate("C") if isinstance(t.c[name].type, sa.String) else t.c[name] for name in staged.key]
        return sa.select(*self._summed(staged)).distinct(*key).order_by(*key, *self._last_first(staged))


@dataclass(frozen=True)
class _Excluded:
    """The row that was not inserted, under the name that a source has elsewhere."""

    c: Any


def loader_for(connection: Connection, schema: str | None, where: str) -> Loader:
    is_psycopg = connection.dialect.name == "postgresql" and connection.dialect.driver == "psycopg"
    return (PostgresLoader if is_psycopg else Loader)(connection, schema, where)


def _same(column: sa.ColumnElement[Any], value: Any, dialect: Dialect) -> sa.ColumnElement[bool]:
    """Text to its bytes: a collation may take 'EU' and 'eu', or 'EU ', for the same."""
    if value is None:
        return column.is_(None)
    # Without the column's type: the value is in the driver's form already.
    untyped = sa.type_coerce(column, sa.types.NullType())
    same = untyped == sa.bindparam(None, value, type_=sa.types.NullType(), unique=True)
    if not _is_text(column, value, dialect):
        return same
    # A parameter of its own: in the comparison above Postgres takes it to be of the column's type. That one is left to an index.
    text = sa.literal(value, sa.Text())
    if dialect.name == "postgresql":
        return same & (sa.cast(column, sa.Text).collate("C") == text)
    exact = "BINARY" if dialect.name == "sqlite" else getattr(exact_text(dialect, None), "collation", None)
    return same & (untyped == sa.collate(text, exact)) if exact else same


def _is_text(column: sa.ColumnElement[Any], value: Any, dialect: Dialect) -> bool:
    """Whether they are compared as text. Of other types several texts may be one value, as of a uuid."""
    kinds = (sa.String, sa.types.NullType) if dialect.name == "sqlite" else sa.String
    return isinstance(value, str) and isinstance(column.type, kinds)


def _same_key(one: Any, other: Any, key: Sequence[str]) -> sa.ColumnElement[bool]:
    return sa.and_(*(one.c[name] == other.c[name] for name in key))


def _not_older(target: Any, source: Any, newest: str | None) -> sa.ColumnElement[bool]:
    """The condition under which a row of ``source`` replaces the one in ``target``; always without ``newest``."""
    return sa.true() if newest is None else target.c[newest].is_(None) | (target.c[newest] <= source.c[newest])


def _index_bytes(kind: Any) -> int:
    """At most so many bytes a column takes in an index of InnoDB: a character has up to four, a text without a length more than fit."""
    return 4 * (kind.length or INNODB_KEY_BYTES) if isinstance(kind, (sa.String, sa.types._Binary)) else 32  # decimal(65), the longest


def _as_is(kind: pa.DataType, into: Any) -> bool:
    """Whether a column keeps values as they are handed over: it rounds none, so that two that differ are two keys there too."""
    if pa.types.is_string(kind):
        return type(into) in (sa.TEXT, sa.VARCHAR)
    return (pa.types.is_integer(kind) and isinstance(into, sa.Integer)) or (pa.types.is_date32(kind) and type(into) is sa.DATE)


def _unchanged(batches: Iterable[pa.RecordBatch], columns: Sequence[sa.Column[Any]], table: str, dialect: str) -> Iterator[pa.RecordBatch]:
    """``batches``; Poison before the first one with a value that a column would alter and not refuse."""
    return as_declared(uncut(unrounded(batches, columns, table), columns, table, dialect), columns, table)


def _positioned(
    batches: Iterable[pa.RecordBatch], columns: Sequence[str], key: Sequence[str], table: str, order: Ascending
) -> Iterator[pa.RecordBatch]:
    position = 0
    for batch in batches:
        rows = chosen(batch, columns, table)
        refuse_null_keys(rows, key, table)
        order.add([rows.column(name) for name in key])
        places = pa.array(np.arange(position, position + rows.num_rows, dtype=np.int64))
        position += rows.num_rows
        yield pa.RecordBatch.from_arrays([*rows.columns, places], names=[*columns, POSITION])


def _inside(scope: Mapping[str, object], table: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """``batches``; Refused after the last one if rows were outside ``scope``: deleted again only with somebody else's scope."""
    outside = 0
    for batch in batches:
        is_inside = pa.array([True] * batch.num_rows, pa.bool_())
        for name, value in scope.items():
            is_inside = pc.and_(is_inside, _equal(batch.column(name), as_bound(value, batch.schema.field(name).type, "arrow", name)))
        outside += batch.num_rows - (pc.sum(is_inside).as_py() or 0)
        yield batch
    if outside:
        said = ", ".join(f"{name} = {value!r}" for name, value in scope.items())
        raise Refused(f"table {table!r}: {outside} rows are outside the scope ({said}) that they replace; filter them, or widen the scope")


def _equal(column: pa.Array, value: Any) -> pa.Array:
    if value is None:
        return pc.is_null(column)
    return pc.fill_null(pc.equal(column, pa.scalar(value, column.type)), False)
