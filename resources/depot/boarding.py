"""The SQL of boarding: what arrived becomes messages. Every function runs in the caller's transaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from resources.depot import decisions, many, quarantine, routes
from resources.depot.connections import now
from resources.depot.mail import Arrival, Boarded, MessageState, Remembered, Taken
from resources.depot.many import among, looked_up
from resources.depot.messages import has_newer, stored, waiting_again
from resources.depot.quarantine import UPDATE_IDS, chunks
from resources.depot.schema import messages, storable

COMPARED_BYTES = 1 << 20
"""What SQS takes as a message; a larger body came by a claim check, and is not written anew on its way."""

CORRECTABLE: tuple[MessageState, ...] = ("waiting", "stranded", "quarantined", "held")
"""What neither rides nor has ended can still take another body."""


_Known = tuple[int, str, bytes | None, int, datetime | None]


@dataclass
class _Sorted:
    """What is to be done with the arrivals: ``fresh`` by key, ``redriven`` by id, ``duplicates`` of known ids, and which of those are
    ``others``, with another body. ``corrections`` by id are redriven with another body than was known; ``repeated`` by id came with the
    known one, after the message was sent round again."""

    fresh: dict[str, dict[str, Any]] = field(default_factory=dict)
    redriven: dict[int, dict[str, Any]] = field(default_factory=dict)
    duplicates: Counter[int] = field(default_factory=Counter)
    others: Counter[int] = field(default_factory=Counter)
    corrections: dict[int, Arrival] = field(default_factory=dict)
    repeated: dict[int, Arrival] = field(default_factory=dict)
    ignored: int = 0

    @property
    def keys(self) -> list[str]:
        """Of all that is not a duplicate."""
        return [*self.fresh, *(values["key"] for values in self.redriven.values())]

    @property
    def every_duplicate(self) -> int:
        return self.duplicates.total() + sum(values["duplicates"] for values in self.fresh.values())

    @property
    def every_other_body(self) -> int:
        return self.others.total() + sum(values["other_bodies"] for values in self.fresh.values())


def board(
    connection: sa.Connection,
    route: str,
    arrivals: Sequence[Arrival],
    horizon_seconds: float | None,
    reason: str | None,
) -> tuple[Boarded, list[Taken]]:
    """What became of the arrivals, and which of them the archive has to tell as corrections."""
    kept = routes.lock(connection, route)["horizon"]
    moment = now(connection)
    horizons = [kept] if kept else []
    if horizon_seconds is not None:
        horizons.append(moment - timedelta(seconds=horizon_seconds))
    found = _sorted(connection, route, arrivals, max(horizons, default=None))
    _insert(connection, route, found.fresh, moment)
    _redrive(connection, found.redriven, moment)
    _count_more(connection, messages.c.duplicates, found.duplicates)
    _count_more(connection, messages.c.other_bodies, found.others)
    if reason is not None:
        decisions.keep_of_keys(connection, route, found.keys, "from the dead letters", reason, moment)
    taken = _taken(connection, found, moment)
    superseded, replaced = _supersede(connection, route, found, moment)
    repeated = {"duplicates": found.every_duplicate, "other_bodies": found.every_other_body}
    more = {"received": len(found.fresh), "superseded": len(superseded) + replaced, **repeated}
    routes.count(connection, route, ignored=found.ignored, **more)
    states = Counter(values["state"] for key, values in found.fresh.items() if key not in superseded)
    fresh = superseded & found.fresh.keys()
    boarded = Boarded(
        waiting=states["waiting"],
        **repeated,
        redriven=len(found.redriven) - (len(superseded) - len(fresh)),
        superseded=len(superseded),
        quarantined=states["quarantined"],
        ignored=found.ignored,
        held=states["held"],
        replaced=replaced,
    )
    return boarded, taken


def rebuild(
    connection: sa.Connection, route: str, arrivals: Sequence[Arrival], remembered: Mapping[str, Remembered]
) -> dict[MessageState, int]:
    horizon, moment = routes.lock(connection, route)["horizon"], now(connection)
    known = _known(connection, route, (stored(arrival.key) for arrival in arrivals))
    found = _Sorted()
    for arrival in arrivals:
        key = stored(arrival.key)
        if key not in known and arrival.ignored is None:
            found.fresh.setdefault(key, _values(arrival, key) | _restored_state(arrival, horizon, remembered.get(arrival.key)))
    _insert(connection, route, found.fresh, moment)
    _catch_up(connection, known, remembered)
    superseded, replaced = _supersede(connection, route, found, moment)
    states = Counter[MessageState](values["state"] for key, values in found.fresh.items() if key not in superseded)
    more = {"delivered": states["delivered"], "superseded": len(superseded) + replaced}
    routes.count(connection, route, received=len(found.fresh), **more)
    return {**states, **({"superseded": len(superseded)} if superseded else {})}


def _catch_up(connection: sa.Connection, known: Mapping[str, _Known], remembered: Mapping[str, Remembered]) -> None:
    """A depot restored from before a message was delivered again: what is delivered again next has a receipt of its own, not that one."""
    parts = {stored(key): int(receipt.part or 0) for key, receipt in remembered.items()}
    for key, (number, state, _, generation, _) in known.items():
        if state == "delivered" and parts.get(key, 0) > generation:
            connection.execute(sa.update(messages).where(messages.c.id == number).values(generation=parts[key]))


def correct(connection: sa.Connection, route: str, number: int, generation: int, arrival: Arrival) -> bool:
    routes.lock(connection, route)
    unmoved = (messages.c.id == number) & (messages.c.generation == generation)
    if connection.scalar(sa.select(messages.c.id).where(unmoved, messages.c.state.in_(CORRECTABLE))) is None:
        return False
    moment = now(connection)
    found = _Sorted(redriven={number: _values(arrival, stored(arrival.key))})
    _redrive(connection, found.redriven, moment)
    decisions.keep(connection, messages.c.id == number, "corrected", "the archive has a newer body", moment)
    superseded, replaced = _supersede(connection, route, found, moment)
    routes.count(connection, route, superseded=len(superseded) + replaced)
    return True


def _restored_state(arrival: Arrival, horizon: datetime | None, receipt: Remembered | None) -> dict[str, Any]:
    fresh = _fresh_state(arrival, horizon)
    if receipt is None:
        return {"trip": None, "part": "", "generation": 0, **fresh}
    known = {"part": receipt.part, "generation": int(receipt.part or 0), "trip": receipt.trip}
    return {**fresh, **known, "state": "delivered" if receipt.trip else "waiting", "error": None}


def _sorted(connection: sa.Connection, route: str, arrivals: Sequence[Arrival], horizon: datetime | None) -> _Sorted:
    found = _Sorted(ignored=sum(arrival.ignored is not None for arrival in arrivals))
    keyed = [(stored(arrival.key), arrival) for arrival in arrivals if arrival.ignored is None]
    known = _known(connection, route, (key for key, _ in keyed))
    for key, arrival in keyed:
        number, state, body, generation, sent_at = known.get(key, (None, None, None, 0, None))
        if number is not None and generation and arrival.body == body and number not in found.redriven:
            found.repeated[number] = arrival
        if number is None:
            if key in found.fresh:
                found.fresh[key]["duplicates"] += 1
                found.fresh[key]["other_bodies"] += not says_the_same(arrival.body, found.fresh[key]["body"])
            else:
                found.fresh[key] = _values(arrival, key) | _fresh_state(arrival, horizon)
        elif (
            state in ("stranded", "quarantined")
            and arrival.problem is None
            and number not in found.redriven
            and (arrival.body == body or not _is_older(arrival, generation, sent_at))
        ):
            found.redriven[number] = _values(arrival, key)
            found.corrections |= {number: arrival} if arrival.body != body else {}
        else:
            found.duplicates[number] += 1
            known_body = found.redriven[number]["body"] if number in found.redriven else body
            found.others[number] += known_body is not None and not says_the_same(arrival.body, known_body)
    return found


def _is_older(arrival: Arrival, generation: int, sent_at: datetime | None) -> bool:
    """Whether a body that differs is one from before the known one, which corrected it: a copy among the dead letters, or a message that
    was kept, not deleted, and comes again. A copy is sent later than what it is a copy of, so of that its generation is the word."""
    if arrival.generation is not None:
        return arrival.generation < generation
    return arrival.sent_at is not None and sent_at is not None and arrival.sent_at < sent_at


def says_the_same(one: bytes, other: bytes) -> bool:
    """Whether two bodies are the same but for what JSON leaves open, blanks and the order of keys: EventBridge writes JSON anew."""
    if one == other:
        return True
    if max(len(one), len(other)) > COMPARED_BYTES:
        return False
    try:
        return _exact(one) == _exact(other)
    except (ValueError, RecursionError):
        return False


def _exact(body: bytes) -> Any:
    """With numbers as they are written, in a tuple, as nothing else in JSON is."""
    return json.loads(body, parse_float=lambda digits: (digits,), parse_int=lambda digits: (digits,))


def _known(connection: sa.Connection, route: str, keys: Iterable[str]) -> dict[str, _Known]:
    """By key: the id, the state, until it is purged the body, the generation, and when what was taken was sent."""
    known: dict[str, _Known] = {}
    of_route, told = messages.c.route == route, [messages.c[name] for name in ("key", "id", "state", "body", "generation", "sent_at")]
    for some in chunks(dict.fromkeys(keys), UPDATE_IDS):
        found = connection.execute(looked_up(connection, told, of_route, messages.c.key, some))
        known.update({row.key: (row.id, row.state, row.body, row.generation, row.sent_at) for row in found})
    return known


def _values(arrival: Arrival, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "body": arrival.body,
        "sent_at": arrival.sent_at,
        "event_at": arrival.event_at,
        "subject": None if arrival.subject is None else stored(arrival.subject),
        # AWS: of two sequencers the shorter one is padded with zeros on the right before they are compared as text.
        "sequencer": None if arrival.sequencer is None else storable(arrival.sequencer).rstrip("0"),
        "group": None if arrival.group is None else stored(arrival.group),
        "attributes": dict(arrival.attributes),
    }


def _fresh_state(arrival: Arrival, horizon: datetime | None) -> dict[str, Any]:
    state, error = "waiting", None
    if arrival.problem is not None:
        state, error = "quarantined", arrival.problem
    elif horizon is not None and arrival.sent_at is not None and arrival.sent_at < horizon:
        state = "held"
        error = f"sent before {horizon:%Y-%m-%d %H:%M} UTC: older than the keys that are kept, so it may have been delivered before"
    return {"state": state, "error": error, "duplicates": 0, "other_bodies": 0}


def _insert(connection: sa.Connection, route: str, fresh: dict[str, dict[str, Any]], moment: datetime) -> None:
    every = {"route": route, "part": "", "received_at": moment, "changed_at": moment}
    many.insert(connection, messages, [every | values for values in fresh.values()])


def _redrive(connection: sa.Connection, redriven: dict[int, dict[str, Any]], moment: datetime) -> None:
    if not redriven:
        return
    arrived = ("body", "sent_at", "event_at", "subject", "sequencer", "group", "attributes")
    new = {name: sa.bindparam(f"new_{name}", type_=messages.c[name].type) for name in arrived}
    # What comes back by a standard queue may have lost its group, but not its place in it.
    again = waiting_again(moment) | new | {"group": sa.func.coalesce(new["group"], messages.c.group)}
    statement = sa.update(messages).where(messages.c.id == sa.bindparam("number")).values(again)
    rows = [{"number": number, **{f"new_{name}": values[name] for name in arrived}} for number, values in redriven.items()]
    connection.execute(statement, rows)
    quarantine.discard_of_messages(connection, list(redriven), "message redriven: it arrived again")


def _taken(connection: sa.Connection, found: _Sorted, moment: datetime) -> list[Taken]:
    """The corrections, which are noted as decisions; and those whose body came again: who took it may have died before the archive knew."""
    if not found.corrections and not found.repeated:
        return []
    before = decisions.newest(connection, [*found.corrections, *found.repeated], "corrected")
    # Later than what they correct, even where the clock was set back.
    at = max([moment, *(before[number] + timedelta(microseconds=1) for number in found.corrections if number in before)])
    for some in chunks(found.corrections, UPDATE_IDS):
        decisions.keep(connection, among(connection, messages.c.id, some), "corrected", "it arrived again with another body", at)
    again = [Taken(arrival, before[number]) for number, arrival in found.repeated.items() if number in before]
    return again + [Taken(arrival, at) for arrival in found.corrections.values()]


def _count_more(connection: sa.Connection, counter: sa.Column[int], times_of: Counter[int]) -> None:
    """Add to a counter of the messages with these ids."""
    by_times: dict[int, list[int]] = {}
    for number, times in (+times_of).items():
        by_times.setdefault(times, []).append(number)
    for times, numbers in by_times.items():
        for some in chunks(numbers, UPDATE_IDS):
            counted = sa.update(messages).where(among(connection, messages.c.id, some))
            connection.execute(counted.values({counter.name: counter + times}))


def _supersede(connection: sa.Connection, route: str, found: _Sorted, moment: datetime) -> tuple[set[str], int]:
    """Of the subjects that arrived only the newest wait on: the keys that arrived too late, and how many waited in vain."""
    arrived = {values["key"]: values["subject"] for values in (*found.fresh.values(), *found.redriven.values())}
    late, waited = set[str](), 0
    for some in chunks({subject for subject in arrived.values() if subject is not None}, UPDATE_IDS):
        older = dict(_older(connection, route, some))
        for ids in chunks(older, UPDATE_IDS):
            connection.execute(sa.update(messages).where(messages.c.id.in_(ids)).values(state="superseded", changed_at=moment))
        late |= arrived.keys() & set(older.values())
        waited += len(set(older.values()) - arrived.keys())
    return late, waited


def _older(connection: sa.Connection, route: str, subjects: Sequence[str]) -> list[tuple[int, str]]:
    # The state stands in the statement itself: SQLite uses a partial index only then.
    waits = messages.c.state == sa.literal("waiting", literal_execute=True)
    query = sa.select(messages.c.id, messages.c.key).where(messages.c.route == route, waits, messages.c.subject.in_(subjects))
    return [(number, key) for number, key in connection.execute(query.where(has_newer()))]
