"""The SQL of messages: reading, sending round again, forgetting. Every function runs in the caller's transaction, but for ``purge``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, get_args

import sqlalchemy as sa

from resources.depot import decisions, quarantine, routes, schema
from resources.depot.connections import Connections, now
from resources.depot.mail import ENDED, Aboard, Counts, Halt, Message, MessageState, Purged, Redriven
from resources.depot.quarantine import UPDATE_IDS, brief, chunks
from resources.depot.schema import messages, storable
from resources.errors import Refused
from resources.receipts import stored_key

Riding = TypeVar("Riding", bound=Any)

COUNTED: tuple[MessageState, ...] = ("delivered", "superseded")
"""States that most messages end in: how many there are is kept in the route's row, never counted."""
BACK_IN_PLACE = (
    "a superseded one rides no more: where the newer one is bad, and the older version of the object is still there, copy that version "
    "over the object (`aws s3api copy-object`), which is a new event"
)
INSTEAD_OF_DISCARDING = {
    "waiting": "waits for a trip; once it is aboard, `bus cancel TRIP --reason …` strands it, and then it can be discarded",
    "aboard": "rides in trip {trip}; `bus cancel {trip} --reason …` strands it first, unless the trip publishes",
    "delivered": "is delivered: its rows are in the destination, and can be deleted only there",
    "superseded": "is superseded: a newer one of its subject is here, and it does not ride any more",
    "discarded": "is discarded already",
}


@dataclass(frozen=True)
class Wanted:
    route: str | None
    state: MessageState | None
    key: str | None
    trip: str | None
    since: datetime | None


def stored(text: str) -> str:
    """A key, subject or group as it is kept: storable, and shortened as receipts shorten keys."""
    return stored_key(storable(text))


def has_newer() -> sa.ColumnElement[bool]:
    """Whether a message with a higher sequencer is known for the message's subject, and not given up for good."""
    other = messages.alias("newer")
    same = (other.c.route == messages.c.route) & (other.c.subject == messages.c.subject)
    return sa.exists().where(same, other.c.sequencer > messages.c.sequencer, other.c.state != "discarded")


def in_riding_order(aboard: Iterable[Riding]) -> list[Riding]:
    """By event time, sequencer and id; a trip in which groups ride keeps the order in which they were boarded."""
    by_id = sorted(aboard, key=lambda one: one.id)
    if any(one.group is not None for one in by_id):
        return by_id
    return sorted(by_id, key=lambda one: (one.event_at or one.sent_at or one.received_at, one.sequencer or ""))


def live(connection: sa.Connection, route: str) -> int:
    query = sa.select(sa.func.count()).where(messages.c.route == route, messages.c.state.in_(("waiting", "aboard")))
    return connection.execute(query).scalar_one()


def moving(connection: sa.Connection, route: str) -> int:
    """As :func:`live`, without those that wait behind a stranded message of their group."""
    halted = (messages.c.state == "waiting") & _is_behind_stranded(route)
    query = sa.select(sa.func.count()).where(messages.c.route == route, messages.c.state.in_(("waiting", "aboard")), ~halted)
    return connection.execute(query).scalar_one()


def _is_behind_stranded(route: str) -> sa.ColumnElement[bool]:
    stranded = messages.alias("stranded")
    same_group = (stranded.c.route == route) & (stranded.c.state == "stranded") & (stranded.c.group == messages.c.group)
    return sa.exists(sa.select(sa.literal(1)).select_from(stranded).where(same_group, stranded.c.id < messages.c.id))


def halts(connection: sa.Connection, route: str) -> list[Halt]:
    first, of_route = sa.func.min(messages.c.id).label("first"), messages.c.route == route
    halting = sa.select(messages.c.group, first).where(of_route, messages.c.state == "stranded", messages.c.group.is_not(None))
    each = halting.group_by(messages.c.group).subquery()
    behind = sa.select(each.c.first, sa.func.count(), sa.func.min(messages.c.received_at)).join(each, each.c.group == messages.c.group)
    waiting = (
        behind.where(of_route, messages.c.state == "waiting", messages.c.id > each.c.first).group_by(each.c.first).order_by(each.c.first)
    )
    return [Halt(*row) for row in connection.execute(waiting)]


def aboard(connection: sa.Connection, trip: str) -> list[Message]:
    query = sa.select(messages).where(messages.c.trip == trip, messages.c.state == "aboard")
    return in_riding_order(_read(connection, query))


def keys_aboard(connection: sa.Connection, trip: str) -> list[Aboard]:
    query = sa.select(messages.c.id, messages.c.key, messages.c.part).where(messages.c.trip == trip, messages.c.state == "aboard")
    return [Aboard(*row) for row in connection.execute(query.order_by(messages.c.id))]


def listed(connection: sa.Connection, wanted: Wanted, limit: int, after: int) -> list[Message]:
    equal = {"route": wanted.route, "state": wanted.state, "trip": wanted.trip, "key": wanted.key and stored(wanted.key)}
    query = sa.select(messages).where(messages.c.id > after)
    query = query.where(*[messages.c[name] == value for name, value in equal.items() if value is not None])
    if wanted.since is not None:
        query = query.where(messages.c.received_at >= wanted.since)
    return _read(connection, query.order_by(messages.c.id).limit(limit))


def _read(connection: sa.Connection, query: sa.Select[Any]) -> list[Message]:
    rows = connection.execute(query)
    names = list(rows.keys())
    return [Message(**dict(zip(names, row, strict=True))) for row in rows]


def states(connection: sa.Connection, route: str, keys: Sequence[str]) -> dict[str, MessageState]:
    found: dict[str, MessageState] = {}
    for some in chunks(dict.fromkeys(stored(key) for key in keys), UPDATE_IDS):
        query = sa.select(messages.c.key, messages.c.state).where(messages.c.route == route, messages.c.key.in_(some))
        found.update(connection.execute(query).tuples().all())
    return {key: found[stored(key)] for key in keys if stored(key) in found}


def counts(connection: sa.Connection, route: str) -> Counts:
    every: tuple[MessageState, ...] = get_args(MessageState)
    row = connection.execute(_standing(route, [state for state in every if state not in COUNTED])).mappings().one_or_none() or {}
    told = ("received", "oldest_waiting", "ignored", "duplicates", "other_bodies", "failures_in_row", "paused_at", "paused_reason")
    return Counts({state: row.get(state, 0) for state in every}, **{name: row[name] for name in told if row})


def _standing(route: str, rare: Sequence[MessageState]) -> sa.Select[Any]:
    """The route's row and its messages in ``rare`` states, counted: one statement, so that all of it is of one moment."""
    of_route = messages.c.route == route
    counted = [sa.select(sa.func.count()).where(of_route, messages.c.state == state).scalar_subquery().label(state) for state in rare]
    oldest = sa.select(messages.c.received_at).where(of_route, messages.c.state == "waiting").order_by(messages.c.id).limit(1)
    return sa.select(schema.routes, *counted, oldest.scalar_subquery().label("oldest_waiting")).where(schema.routes.c.route == route)


# Dead letters


def dead_letters(connection: sa.Connection, route: str, limit: int) -> list[Message]:
    query = sa.select(messages).where(messages.c.route == route, _is_dead_letter()).order_by(messages.c.id).limit(limit)
    return _read(connection, query)


def _is_dead_letter() -> sa.ColumnElement[bool]:
    # As in the index, letter by letter: SQLite uses a partial index only then.
    return sa.text("to_dead_letters = true")  # pyright: ignore[reportReturnType]


def sent_to_dead_letters(connection: sa.Connection, ids: Sequence[int]) -> None:
    for some in chunks(ids, UPDATE_IDS):
        connection.execute(sa.update(messages).where(messages.c.id.in_(some)).values(to_dead_letters=False))


# Round again


@dataclass(frozen=True)
class Span:
    """Received from ``since`` until before ``until``; None: without that end."""

    since: datetime | None = None
    until: datetime | None = None

    def has(self) -> sa.ColumnElement[bool]:
        ends = [messages.c.received_at >= self.since] if self.since else []
        return sa.and_(sa.true(), *ends, *([messages.c.received_at < self.until] if self.until else []))


def given_up(connection: sa.Connection, route: str, states: Sequence[MessageState], received: Span) -> list[int]:
    """Those in ``states``."""
    return _ids(connection, None, (messages.c.route == route) & messages.c.state.in_(states) & received.has())


def redrive(
    connection: sa.Connection, route: str, ids: Sequence[int], states: Sequence[MessageState], received: Span, reason: str, *, all_of: bool
) -> Redriven:
    routes.lock(connection, route)
    may = (messages.c.route == route) & messages.c.state.in_(states) & messages.c.body.is_not(None) & received.has()
    within = " and were received then" if received != Span() else ""
    wanted = f"{' or '.join(states)} messages of route '{route}' that have their bodies{within}"
    found = _all_of(connection, ids, may, wanted) if all_of else _ids(connection, ids, may)
    moment, replaced = now(connection), 0
    for some in chunks(found, UPDATE_IDS):
        quarantine.discard_of_messages(connection, some, f"message redriven: {reason}")
        old = sa.update(messages).where(messages.c.id.in_(some), has_newer())
        gone = connection.execute(old.values(waiting_again(moment) | {"state": "superseded"})).rowcount
        rest = sa.update(messages).where(messages.c.id.in_(some), messages.c.state != "superseded")
        connection.execute(rest.values(waiting_again(moment)))
        decisions.keep(connection, messages.c.id.in_(some), "redriven", reason, moment)
        replaced += gone
    routes.count(connection, route, superseded=replaced)
    return Redriven(len(found) - replaced, replaced)


def discard(
    connection: sa.Connection, route: str, ids: Sequence[int], states: Sequence[MessageState], received: Span, reason: str, *, all_of: bool
) -> int:
    routes.lock(connection, route)
    may = (messages.c.route == route) & messages.c.state.in_(states) & received.has()
    if all_of:
        _check_given_up(connection, route, ids)
        within = " that were received then" if received != Span() else ""
        found = _all_of(connection, ids, may, f"{' or '.join(states)} messages of route '{route}'{within}")
    else:
        found = _ids(connection, ids, may)
    moment = now(connection)
    for some in chunks(found, UPDATE_IDS):
        quarantine.discard_of_messages(connection, some, f"message discarded: {reason}")
        given_up = {"state": "discarded", "to_dead_letters": False, "changed_at": moment}
        connection.execute(sa.update(messages).where(messages.c.id.in_(some)).values(given_up))
        decisions.keep(connection, messages.c.id.in_(some), "discarded", reason, moment)
    return len(found)


def _check_given_up(connection: sa.Connection, route: str, ids: Sequence[int]) -> None:
    """Refused for the first of ``ids`` that is not given up yet, or has ended, with what to do instead."""
    query = sa.select(messages.c.id, messages.c.state, messages.c.trip).where(messages.c.route == route)
    query = query.where(messages.c.state.in_(INSTEAD_OF_DISCARDING)).order_by(messages.c.id).limit(1)
    for some in chunks(dict.fromkeys(ids), UPDATE_IDS):
        for number, state, trip in connection.execute(query.where(messages.c.id.in_(some))):
            said = INSTEAD_OF_DISCARDING[state].format(trip=trip)
            raise Refused(f"message {number} of route '{route}' cannot be discarded: it {said}; nothing was changed")


def replayable(connection: sa.Connection, route: str, received: Span, ids: Sequence[int] | None) -> list[int]:
    may = (messages.c.route == route) & (messages.c.state == "delivered") & messages.c.body.is_not(None) & ~has_newer()
    return _ids(connection, ids, may & received.has())


def again(connection: sa.Connection, ids: Sequence[int], reason: str) -> int:
    for route in _routes_of(connection, ids):
        routes.lock(connection, route)
    may = (messages.c.state == "delivered") & messages.c.body.is_not(None)
    found = _all_of(connection, ids, may, "delivered messages that have their bodies")
    moment = now(connection)
    part = sa.cast(messages.c.generation + 1, sa.Text)
    for some in chunks(found, UPDATE_IDS):
        # Nothing is released or held again between the two: that takes the route's lock, too. In this order, as what a release rejects
        # anew is held before the release is delivered.
        quarantine.check_none_rides(connection, some)
        quarantine.discard_of_messages(connection, some, f"message delivered again: {reason}")
        _count_off(connection, some)
        connection.execute(sa.update(messages).where(messages.c.id.in_(some)).values({**waiting_again(moment), "part": part}))
        decisions.keep(connection, messages.c.id.in_(some), "delivered again", reason, moment)
    return len(found)


def waiting_again(moment: datetime) -> dict[str, Any]:
    """What changes in a message that is sent round again."""
    return {
        "state": "waiting",
        "generation": messages.c.generation + 1,
        "trip": None,
        "error": None,
        "rows_rejected": 0,
        "to_dead_letters": False,
        "changed_at": moment,
    }


def _all_of(connection: sa.Connection, ids: Sequence[int] | None, may: sa.ColumnElement[bool], wanted: str) -> list[int]:
    found = _ids(connection, ids, may)
    missing = sorted(set(ids or ()) - set(found))
    if missing:
        said = f"{len(missing)} of the {len(set(ids or ()))} messages ({brief(missing)}) are not {wanted}; nothing was changed"
        raise Refused(said + (f"; {BACK_IN_PLACE}" if _ids(connection, missing, messages.c.state == "superseded") else ""))
    return found


def _ids(connection: sa.Connection, ids: Sequence[int] | None, may: sa.ColumnElement[bool]) -> list[int]:
    query = sa.select(messages.c.id).where(may)
    if ids is None:
        return list(connection.scalars(query.order_by(messages.c.id)))
    return sorted(
        number for some in chunks(dict.fromkeys(ids), UPDATE_IDS) for number in connection.scalars(query.where(messages.c.id.in_(some)))
    )


def _routes_of(connection: sa.Connection, ids: Sequence[int]) -> list[str]:
    """Sorted: two transactions that lock several routes do it in one order."""
    return sorted(_by_route(connection, ids))


def _count_off(connection: sa.Connection, ids: Sequence[int]) -> None:
    for route, number in _by_route(connection, ids).items():
        routes.count(connection, route, delivered=-number)


def _by_route(connection: sa.Connection, ids: Sequence[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for some in chunks(dict.fromkeys(ids), UPDATE_IDS):
        query = sa.select(messages.c.route, sa.func.count()).where(messages.c.id.in_(some)).group_by(messages.c.route)
        for route, number in connection.execute(query):
            found[route] = found.get(route, 0) + number
    return found


# Forgetting


def purge(connections: Connections, route: str, before: datetime, keep_keys_after: datetime) -> Purged:
    """Runs transactions of its own, each over a range of ids."""
    with connections.writing() as connection:
        # First: once a key is gone, an old message that arrives must be held.
        routes.forget_keys(connection, route, keep_keys_after)
        lowest, highest = _range(connection, route)
    bodies = gone = 0
    for start in range(lowest, highest + 1, UPDATE_IDS):
        with connections.writing() as connection:
            routes.lock(connection, route)
            some = (messages.c.route == route) & messages.c.id.between(start, start + UPDATE_IDS - 1)
            gone += _forget(connection, route, some & (messages.c.changed_at < keep_keys_after))
            bodies += _empty(connection, some & (messages.c.changed_at < before))
    return Purged(bodies, gone)


def purgeable(connection: sa.Connection, route: str, before: datetime, keep_keys_after: datetime) -> Purged:
    ended = (messages.c.route == route) & messages.c.state.in_(ENDED)
    old, kept = messages.c.changed_at < keep_keys_after, messages.c.changed_at >= keep_keys_after
    gone = sa.select(sa.func.count()).where(ended, old)
    bodies = sa.select(sa.func.count()).where(ended, kept, messages.c.changed_at < before, messages.c.body.is_not(None))
    return Purged(connection.execute(bodies).scalar_one(), connection.execute(gone).scalar_one())


def _range(connection: sa.Connection, route: str) -> tuple[int, int]:
    query = sa.select(sa.func.min(messages.c.id), sa.func.max(messages.c.id)).where(messages.c.route == route)
    lowest, highest = connection.execute(query).one()
    return (lowest, highest) if lowest is not None else (0, -1)


def _forget(connection: sa.Connection, route: str, old: sa.ColumnElement[bool]) -> int:
    decisions.forget(connection, old & messages.c.state.in_(ENDED))
    gone = {state: connection.execute(sa.delete(messages).where(old, messages.c.state == state)).rowcount for state in ENDED}
    routes.count(connection, route, received=-sum(gone.values()), **{state: -gone[state] for state in COUNTED})
    return sum(gone.values())


def _empty(connection: sa.Connection, old: sa.ColumnElement[bool]) -> int:
    ended = sa.update(messages).where(old, messages.c.state.in_(ENDED), messages.c.body.is_not(None))
    return connection.execute(ended.values(body=None)).rowcount
