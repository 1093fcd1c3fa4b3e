"""An author's SELECT, read with sqlglot: is it one, what does it read, does it keep the grain, where does a column come from?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.lineage import lineage
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import build_scope

from bus_assets.declare import Misdeclared
from resources.texts import nearest

DIALECT = "duckdb"
KEPT = 1_000
"""So many answers about statements are remembered: a worker asks the same in every trip, and reading SQL takes long."""
UNTRACEABLE = (SqlglotError, ValueError, KeyError, RecursionError)
"""What sqlglot raises of a statement or a column that it cannot trace."""

_Sources = tuple[tuple[tuple[str, str], ...], bool]


def parsed(sql: str) -> exp.Query:
    """``sql`` as a tree, if it is one SELECT; else :class:`Misdeclared` with what was not understood."""
    try:
        statements = sqlglot.parse(sql, dialect=DIALECT)
    except SqlglotError as error:
        first = (getattr(error, "errors", None) or [{}])[0]
        near = f" near {first['highlight']!r}, line {first['line']}" if first.get("highlight") else ""
        raise Misdeclared(f"its SQL is not understood{near}: {first.get('description') or error}") from None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise Misdeclared("its SQL must be exactly one SELECT")
    return statements[0]


def tables(query: exp.Query) -> frozenset[str]:
    """The tables that ``query`` reads, its own CTEs left out. Functions that read files are refused: stops read sources."""
    own = {cte.alias_or_name for cte in query.find_all(exp.CTE)}
    found = set()
    for table in query.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier) or table.db:
            raise Misdeclared(f"its SQL reads {table.sql(dialect=DIALECT)!r}; SQL reads only the stops in after=, by name")
        found.add(table.name)
    return frozenset(found - own)


def check(sql: str, after: tuple[str, ...], stops: Collection[str], *, keeps_grain: bool) -> None:
    """Raise :class:`Misdeclared` if ``sql`` reads what is not in ``after``, or cannot keep the grain that it promises.

    ``stops``: those that could be in ``after``.
    """
    query = parsed(sql)
    for stranger in sorted(tables(query) - set(after)):
        if stranger in stops:
            wanted = ", ".join(repr(name) for name in (*after, stranger))
            raise Misdeclared(f"its SQL reads {stranger}, but it comes after {', '.join(after)}; add it: after=({wanted})")
        raise Misdeclared(f"its SQL reads {stranger!r}, and no other stop with rows has that name; {nearest(stranger, stops)}")
    if keeps_grain:
        carrying(sql, after[0], "_bus_row")


def casts(sql: str) -> tuple[str, ...]:
    """What ``sql`` casts and fails at where it cannot: in the order in which it is written, each once."""
    found = (cast for cast in parsed(sql).find_all(exp.Cast, exp.StrToTime, bfs=False) if not isinstance(cast, exp.TryCast))
    return tuple(dict.fromkeys(cast.sql(dialect=DIALECT) for cast in found))


@lru_cache(KEPT)
def carrying(sql: str, first: str, row: str) -> str:
    """``sql`` with the identity column of the ``first`` stop added to what it selects, through subqueries and CTEs."""
    query = parsed(sql)
    ctes = {cte.alias_or_name: cte.this for cte in query.find_all(exp.CTE)}
    _carry(query, first, row, ctes, set())
    return query.sql(dialect=DIALECT)


def _carry(query: Any, first: str, row: str, ctes: Mapping[str, Any], done: set[int]) -> None:
    if id(query) in done:
        return
    done.add(id(query))
    advice = "declare grain='changed' if it filters, multiplies or aggregates rows"
    if not isinstance(query, exp.Select):
        raise Misdeclared(f"its SQL combines several SELECTs, so rows lose their identity; {advice}")
    if query.args.get("group") or query.args.get("distinct") or query.args.get("limit") or _aggregates(query):
        raise Misdeclared(f"its SQL groups, limits or makes rows distinct, which changes the grain; {advice}")
    source = query.args.get("from_") or query.args.get("from")
    this = source.this if source else None
    if isinstance(this, exp.Subquery):
        _carry(this.this, first, row, ctes, done)
    elif isinstance(this, exp.Table) and this.name in ctes:
        _carry(ctes[this.name], first, row, ctes, done)
    elif not isinstance(this, exp.Table) or this.name != first:
        raise Misdeclared(f"its SQL must select FROM {first} (rows belong to the first stop in after=) and join the others; or {advice}")
    stars = [p for p in query.expressions if isinstance(p, exp.Star) or (isinstance(p, exp.Column) and isinstance(p.this, exp.Star))]
    named = {projection.alias_or_name for projection in query.expressions}
    alias = this.alias_or_name
    if row in named or any(isinstance(star, exp.Star) or star.table == alias for star in stars):
        return
    query.select(exp.column(row, table=alias or None), copy=False)


def _aggregates(query: exp.Select) -> bool:
    """Whether a projection aggregates over rows; a window function does not, it keeps them."""
    return any(
        not aggregate.find_ancestor(exp.Window) and aggregate.find_ancestor(exp.Select) is query
        for projection in query.expressions
        for aggregate in projection.find_all(exp.AggFunc)
    )


def column_sources(
    sql: str, columns: tuple[str, ...], schema: Mapping[str, tuple[str, ...]], *, untold: tuple[tuple[str, str], ...] = ()
) -> dict[str, tuple[tuple[str, str], ...]]:
    """For each output column the (stop, field) pairs that it is computed from; ``schema`` is stop → its fields.

    ``untold``: added where it cannot be told of all that is in a column where it comes from.
    """
    traced = _traced(sql, columns, tuple(schema.items()))
    return {column: found if all_told else tuple(dict.fromkeys(found + untold)) for column, (found, all_told) in traced.items()}


@lru_cache(KEPT)
def _traced(sql: str, columns: tuple[str, ...], schema: tuple[tuple[str, tuple[str, ...]], ...]) -> Mapping[str, _Sources]:
    """The pairs that were found for each of ``columns``, and whether they are all. To read and resolve ``sql`` takes longest: once."""
    shape = {stop: dict.fromkeys(names, "varchar") for stop, names in schema}
    try:
        query = parsed(sql)
        _ask_for_any_row(query)
        all_told = not any(union.args.get("by_name") for union in query.find_all(exp.SetOperation))  # sqlglot pairs by position
        scope = build_scope(qualify(query, dialect=DIALECT, schema=dict(shape), validate_qualify_columns=False, identify=False))
    except UNTRACEABLE:
        return dict.fromkeys(columns, ((), False))
    return {column: _sources(column, scope, shape, all_told=all_told) for column in columns}


def _sources(column: str, scope: Any, shape: dict[str, dict[str, str]], *, all_told: bool) -> _Sources:
    try:
        root = lineage(column, scope.expression, schema=dict(shape), scope=scope, dialect=DIALECT, trim_selects=False, copy=False)
    except UNTRACEABLE:
        return (), False
    found = []
    for node in root.walk():
        all_told = all_told and not _takes_unnamed(node.source if isinstance(node.source, exp.UDTF) else node.expression)
        if not node.downstream and isinstance(node.source, (exp.Table, exp.Placeholder)):
            name, fields = node.name.rsplit(".", 1)[-1].strip('"'), shape.get(node.source.name, {})
            real = next((field for field in fields if field.lower() == name.lower()), None)
            all_told = all_told and real is not None
            if real:
                found.append((node.source.name, real))
    return tuple(dict.fromkeys(found)), all_told


def _ask_for_any_row(query: exp.Query) -> None:
    """Select ``1`` for ``*`` in every ``EXISTS (SELECT * …)`` of ``query``: it asks whether there is a row, and not what is in it."""
    for exists in query.find_all(exp.Exists):
        if isinstance(asked := exists.this, exp.Select):
            asked.set("expressions", [exp.Literal.number(1) if made.is_star else made for made in asked.expressions])


def _takes_unnamed(made: Any) -> bool:
    """Whether ``made`` takes columns that it does not name: a whole row, ``COLUMNS(…)``, ``#2``, a star that counts nothing."""
    has_star = any(not isinstance(star.parent, exp.Count) for star in made.find_all(exp.Star))
    return has_star or made.find(exp.TableColumn, exp.PositionalColumn, exp.Columns) is not None
