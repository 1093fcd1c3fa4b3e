"""The SQL of the quarantine. Every function runs in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa

from resources.depot.connections import now
from resources.depot.entries import HeldAt, QuarantineCount, QuarantinedRow, Reason, Trip, Verdict
from resources.depot.schema import messages, quarantine, storable, trips
from resources.errors import Misconfigured, Refused
from resources.texts import shortened

T = TypeVar("T")
releases = trips.alias("releases")

INSERT_ROWS = 2_000
"""Rows per round trip: 100,000 rows pass through as a stream, never as one list."""

UPDATE_IDS = 5_000
"""Ids per statement; SQLite takes at most 32,766 bound values."""
RULE_CHARACTERS = 60
"""The type of a nested field can be longer than a line, and what is wrong is told behind it."""


def replace_held(
    connection: sa.Connection, trip: Trip, verdict: Verdict, rows: Iterable[QuarantinedRow], discarded: str | None = None
) -> int:
    """Quarantine ``rows`` in the place of what this (trip, stop) still held; released and discarded ones stay.

    ``discarded`` is why nobody is to see to ``rows``: then they are in the place of those that were given up so before, too.
    """
    of_stop = (quarantine.c.trip == trip.id) & (quarantine.c.stop == verdict.stop)
    so_before = (quarantine.c.state == "discarded") & (quarantine.c.reason == discarded)
    connection.execute(sa.delete(quarantine).where(of_stop, (quarantine.c.state == "held") | so_before))
    every = {"route": trip.route, "trip": trip.id, "attempt": verdict.attempt, "stop": verdict.stop, "reason": discarded}
    every |= {"state": "discarded" if discarded else "held", "created_at": now(connection)}
    written = 0
    for some in chunks(rows, INSERT_ROWS):
        connection.execute(sa.insert(quarantine), [every | _values(row, verdict) for row in some])
        written += len(some)
    return written


def _values(row: QuarantinedRow, verdict: Verdict) -> dict[str, Any]:
    if (row.trip and row.trip != verdict.trip) or (row.stop and row.stop != verdict.stop):
        raise Misconfigured(f"a row of trip {row.trip}, stop {row.stop} came with the verdict of trip {verdict.trip}, stop {verdict.stop}")
    # Postgres reads the text of a reason when it counts them: a NUL in it would fail then. The payload is only handed back.
    reasons = [{"rule": storable(reason.rule), "message": storable(reason.message)} for reason in row.reasons]
    return {
        "row_id": row.row_id,
        "origin": row.origin,
        "unit": row.unit,
        "position": row.position,
        "reasons": reasons,
        "payload": dict(row.payload),
        "message": row.message,
    }


def listed(connection: sa.Connection, filters: Mapping[str, str | None], limit: int, after: int) -> list[QuarantinedRow]:
    of_page = sa.select(quarantine.c.id).where(quarantine.c.id > after).order_by(quarantine.c.id).limit(limit)
    # A page of each state by its index: with one condition for both, each page would sort all the rows that wait.
    pages = [of_page.select_from(_with_trips()).where(*these).subquery() for these in _either(filters)]
    ids = sa.union_all(*(sa.select(page.c.id) for page in pages))
    query = sa.select(quarantine, *_states()).select_from(_with_trips()).where(quarantine.c.id.in_(ids))
    query = query.order_by(quarantine.c.id).limit(limit)
    return [_row(row) for row in connection.execute(query).mappings()]


def _row(row: Mapping[Any, Any]) -> QuarantinedRow:
    values = dict(row)
    reasons = tuple(Reason(reason["rule"], reason["message"]) for reason in values.pop("reasons"))
    return QuarantinedRow(reasons=reasons, **values)


def counted(connection: sa.Connection, filters: Mapping[str, str | None]) -> list[QuarantineCount]:
    alike = (quarantine.c.route, quarantine.c.stop, _rules(connection).label("rules"), quarantine.c.state, *_states())
    either = sa.or_(*(sa.and_(sa.true(), *these) for these in _either(filters)))
    own = (quarantine.c.trip, quarantine.c.message, quarantine.c.released_trip)
    each = sa.select(*alike, *own).select_from(_with_trips()).where(either).subquery()
    by = [each.c[column.name] for column in alike]
    one = [sa.func.min(each.c[column.name]).label(column.name) for column in own]
    query = sa.select(*by, sa.func.count().label("rows"), *one).group_by(*by).order_by(*by)
    return [QuarantineCount(**{**row, "rules": tuple(json.loads(row["rules"] or "[]"))}) for row in connection.execute(query).mappings()]


def _rules(connection: sa.Connection) -> sa.ScalarSelect[str]:
    """The rules of a row's reasons, as the text of a JSON array."""
    on_sqlite = connection.dialect.name == "sqlite"
    reasons = (sa.func.json_each if on_sqlite else sa.func.json_array_elements)(quarantine.c.reasons).table_valued("value")
    rule = sa.func.json_extract(reasons.c.value, "$.rule") if on_sqlite else sa.func.json_extract_path_text(reasons.c.value, "rule")
    together = (sa.func.json_group_array if on_sqlite else sa.func.json_agg)(rule)
    return sa.select(sa.cast(together, sa.Text)).select_from(reasons).correlate(quarantine).scalar_subquery()


def by_message(connection: sa.Connection, trip: str) -> dict[int, tuple[int, str]]:
    """For each message with rows that the trip's stops hold or have let go: how many, and why the first of them was rejected."""
    query = sa.select(quarantine.c.message, sa.func.count(), sa.func.min(quarantine.c.id))
    found = connection.execute(query.where(quarantine.c.trip == trip, quarantine.c.message.is_not(None)).group_by(quarantine.c.message))
    counted = {message: (rows, first) for message, rows, first in found}
    why: dict[int, str] = {}
    for some in chunks((first for _, first in counted.values()), UPDATE_IDS):
        reasons = connection.execute(sa.select(quarantine.c.id, quarantine.c.reasons).where(quarantine.c.id.in_(some)))
        why |= {number: f"{shortened(reason[0]['rule'], RULE_CHARACTERS)}: {reason[0]['message']}" for number, reason in reasons}
    return {message: (rows, why[first]) for message, (rows, first) in counted.items()}


def _states() -> tuple[sa.Label[str], ...]:
    return trips.c.state.label("trip_state"), messages.c.state.label("message_state"), releases.c.state.label("release_state")


def _with_trips() -> sa.FromClause:
    with_trips = quarantine.outerjoin(trips, trips.c.id == quarantine.c.trip)
    with_trips = with_trips.outerjoin(releases, releases.c.id == quarantine.c.released_trip)
    return with_trips.outerjoin(messages, messages.c.id == quarantine.c.message)


def _either(filters: Mapping[str, str | None]) -> list[list[sa.ColumnElement[bool]]]:
    """The conditions for each state that is asked for."""
    given = [quarantine.c[name] == value for name, value in filters.items() if value not in (None, "waiting")]
    if filters.get("state") != "waiting":
        return [given]
    on_its_way = [quarantine.c.state == "released", releases.c.state != "delivered"]
    return [[*given, quarantine.c.state == "held"], [*given, *on_its_way]]


def held_at(connection: sa.Connection, route: str) -> list[HeldAt]:
    of_message = messages.c.state.is_(None) | (messages.c.state == "delivered")
    query = sa.select(quarantine.c.stop, sa.func.count().label("rows"), sa.func.min(quarantine.c.created_at).label("since"))
    query = query.select_from(_with_trips()).where(quarantine.c.route == route, quarantine.c.state == "held")
    query = query.where(trips.c.state == "delivered", of_message).group_by(quarantine.c.stop).order_by(quarantine.c.stop)
    return [HeldAt(**row) for row in connection.execute(query).mappings()]


def undelivered_releases(connection: sa.Connection, route: str, limit: int) -> list[Trip]:
    """The newest first. Those whose rows were held again have none any more."""
    has_rows = sa.exists().where(quarantine.c.released_trip == trips.c.id, quarantine.c.state == "released")
    query = sa.select(trips).where(trips.c.route == route, trips.c.trigger == "release", trips.c.state != "delivered", has_rows)
    query = query.order_by(trips.c.created_at.desc(), trips.c.id.desc()).limit(limit)
    return [Trip(**row) for row in connection.execute(query).mappings()]


def release(connection: sa.Connection, ids: Sequence[int], trip: str) -> None:
    _check_messages(connection, ids)
    delivered = sa.select(trips.c.id).where(trips.c.state == "delivered")
    is_releasable = (quarantine.c.state == "held") & quarantine.c.trip.in_(delivered)
    is_released = (quarantine.c.state == "released") & (quarantine.c.released_trip == trip)
    _change(connection, ids, is_releasable | is_released, {"state": "released", "released_trip": trip}, "held by a delivered trip")


def _check_messages(connection: sa.Connection, ids: Sequence[int]) -> None:
    """There is one way only for each row: while its message is not delivered, the message brings all of them."""
    for some in chunks(dict.fromkeys(ids), UPDATE_IDS):
        query = sa.select(messages.c.id, messages.c.route).where(quarantine.c.id.in_(some), quarantine.c.message == messages.c.id)
        whole = connection.execute(query.where(messages.c.state != "delivered").distinct().order_by(messages.c.id).limit(6)).all()
        if whole:
            raise Refused(
                f"the messages {brief([found.id for found in whole])} that these rows came in are not delivered: they are not "
                f"released row by row. `bus redrive {whole[0].route} --id {whole[0].id} --reason …` sends a message round again, "
                "`bus discard` gives it up; nothing was changed"
            )


def unrelease(connection: sa.Connection, trip: str) -> int:
    released = (quarantine.c.released_trip == trip) & (quarantine.c.state == "released")
    return connection.execute(sa.update(quarantine).where(released).values(state="held", released_trip=None)).rowcount


def discard(connection: sa.Connection, ids: Sequence[int], reason: str) -> None:
    _change(connection, ids, quarantine.c.state == "held", {"state": "discarded", "reason": reason}, "held")


def discard_of_messages(connection: sa.Connection, of: Sequence[int], reason: str) -> None:
    """Give up what is held of these messages: they come again, whole."""
    for some in chunks(of, UPDATE_IDS):
        held = (quarantine.c.message.in_(some)) & (quarantine.c.state == "held")
        connection.execute(sa.update(quarantine).where(held).values(state="discarded", reason=reason))


def check_none_rides(connection: sa.Connection, of: Sequence[int]) -> None:
    """Refused where a release that is not delivered has a row of these messages: it would land with its message, and by the release."""
    on_its_way = (quarantine.c.state == "released") & (releases.c.state != "delivered") & quarantine.c.message.in_(of)
    query = sa.select(quarantine.c.message, quarantine.c.route, releases.c.id, releases.c.state)
    query = query.join_from(quarantine, releases, releases.c.id == quarantine.c.released_trip).where(on_its_way).order_by(quarantine.c.id)
    if found := connection.execute(query.limit(1)).first():
        message, route, trip, state = found
        delivers = f"`bus drive {route} --trip {trip}` delivers it"
        holds = f"`bus quarantine unrelease {trip}` holds it again, to come with its message"
        ways = {"cancelled": holds, "stuck": delivers}.get(state, f"{delivers}, {holds}")
        said = f"a row of message {message} rides in release trip {trip}, which is {state}, and would land twice"
        raise Refused(f"{said}: {ways}; nothing was changed")


def discard_of_trip(connection: sa.Connection, trip: str, of: sa.Select[tuple[int]], reason: str) -> None:
    """Give up what ``trip`` holds of these messages."""
    held = (quarantine.c.trip == trip) & (quarantine.c.state == "held") & quarantine.c.message.in_(of)
    connection.execute(sa.update(quarantine).where(held).values(state="discarded", reason=reason))


def _change(connection: sa.Connection, ids: Sequence[int], may: sa.ColumnElement[bool], values: dict[str, Any], wanted: str) -> None:
    """Change all of ``ids``; if one may not be, Refused, and the transaction takes the others back."""
    for some in chunks(dict.fromkeys(ids), UPDATE_IDS):
        changed = connection.execute(sa.update(quarantine).where(quarantine.c.id.in_(some), may).values(values)).rowcount
        if changed != len(some):
            raise Refused(f"{len(some) - changed} of the {len(some)} rows {brief(some)} are not {wanted}; nothing was changed")


def brief(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", …" if len(ids) > 5 else "")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
