"""Quarantined rows ride again: a trip of their own, which picks them up from quarantine at the stop that rejected them.

They pass that stop's gate as it is now, then everything that carries on that stop's rows; the other stops run as usual, to be
looked up. Only drop-offs that these rows reach are published. Each row leaves a receipt in the destination under its original trip
and row number, so that it is released at most once, also by a depot that was restored from yesterday.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from itertools import groupby
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from bus_assets.contract import Contract, Field
from bus_assets.route import Route
from bus_assets.stops import DropOff, Table, Transform
from resources.depot.entries import OVER, QuarantinedRow
from resources.depot.mail import WAIT_FOR_A_PERSON
from resources.errors import Refused

if TYPE_CHECKING:
    from resources.depot.entries import QuarantineCount, RowFilter, Trip
    from resources.depot.store import Depot
    from resources.records import Records

RELEASE_STOP = "bus.release_stop"
"""Beside a release trip's parameters: the stop whose rows ride again. No parameter of a route can have a dot in its name."""
ROWS_AT_A_TIME = 2_000
UNREADABLE = "readable"
WITH_ITS_MESSAGE = "message"
"""The rule of a row that was fine, and was set aside because of others of its message."""
_BETWEEN_ROWS = ("unique", "references")
"""Rules that are judged on rows that were read already: their payload is typed values as text, not the source's own text."""


@dataclass(frozen=True)
class Release:
    """Rows of one stop that can ride together, as their trips had the same parameters."""

    route: str
    stop: str
    ids: tuple[int, ...]
    trips: tuple[str, ...]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class LeftBehind:
    """A row that cannot ride again, and why."""

    id: int
    why: str


# Before it starts


def check_release(route: Route, stop: str) -> None:
    """:class:`Refused` if rows of ``stop`` cannot ride again without doubling or deleting what was dropped off."""
    declared = route[stop]
    if isinstance(declared, DropOff):
        raise _refused(route, stop, f"is a drop-off; rows wait at the stop that rejected them: '{route.upstream(stop)[0]}', say")
    reached = [drop for drop in route.drop_offs if stop in chain(route, drop.name)]
    if not reached:
        advice = _another_trip(route, stop, "drive the whole route again after the fix")
        raise _refused(route, stop, f"has no drop-off for its rows, they are only looked up: {advice}")
    for drop in reached:
        if needed := _left_behind(route, stop, drop.name):
            raise _refused(
                route,
                stop,
                f"needs rows of '{needed}', which released rows ride without, as they come with the message: after the fix "
                + _comes_again(route, stop),
            )
        table = drop.into
        if table.mode in ("replace", "delete"):
            raise _refused(
                route,
                stop,
                f"reaches table {table.name!r} in mode '{table.mode}', which is about whole loads: "
                + _another_trip(route, stop, "drive the route again instead"),
            )
        for name in _between(route, stop, drop.name):
            between = route[name]
            if isinstance(between, Transform) and between.grain == "changed" and table.mode != "accumulate":
                raise _refused(
                    route,
                    stop,
                    f"reaches table {table.name!r} through '{name}', which changes the grain: a few rows alone come out otherwise than "
                    f"with all of them: {_another_trip(route, stop, 'drive the route again')}, or let the table accumulate",
                )


def _left_behind(route: Route, stop: str, drop_off: str) -> str | None:
    """A stop of messages whose rows are looked up or referred to on the way: none of them are in a release."""
    way = _between(route, stop, drop_off)
    looked_up = [other for name in way for other in route.upstream(name)[1:]]
    referred_to = [other for name in (*way, stop) for other in route.references(name)]
    return next((other for other in (*looked_up, *referred_to) if route.from_messages(other)), None)


def _another_trip(route: Route, stop: str, advice: str) -> str:
    """``advice``, which is to drive again, where that brings nothing twice; else what to do instead. Nobody drives messages again."""
    if route.queue is not None:
        return f"after the fix {_comes_again(route, stop)}"
    if not (adding := _adding(route)):
        return advice
    return (
        f"another trip of the route adds to {adding} twice; `bus quarantine export` gives the rows out, to be put right by "
        "hand in the tables, and `bus quarantine discard` gives them up"
    )


def _comes_again(route: Route, stop: str) -> str:
    """How rows of a queue's route come again: with their messages, but for those that every trip picks up."""
    first = chain(route, stop)[-1]
    if not route.of_messages(first):
        return f"the next trip of route '{route.name}' picks up '{first}' anew; `bus quarantine discard` gives rows up"
    return (
        f"`bus redrive {route.name} --id MESSAGE --reason …` sends a message that is quarantined itself round again, all rows of it, and "
        f"`bus replay {route.name} --id MESSAGE --again --reason …` one that is delivered{_twice(route)}; `bus quarantine show` says which "
        f"message a row came in, `bus messages {route.name} --trip TRIP` which were aboard; `bus quarantine discard` gives rows up"
    )


def _adding(route: Route) -> str:
    """The tables to which what comes again is added again."""
    return " and ".join(dict.fromkeys(f"'{drop.into.name}'" for drop in route.drop_offs if drop.into.mode in ("append", "accumulate")))


def _twice(route: Route | None) -> str:
    return f", whose other rows are added to {adding} twice" if route and (adding := _adding(route)) else ""


def overwritten(route: Route, stop: str) -> tuple[Table, ...]:
    """Tables in which a released row of ``stop`` replaces the row of its key, also one that came since."""
    reached = (drop.into for drop in route.drop_offs if stop in chain(route, drop.name))
    return tuple(dict.fromkeys(table for table in reached if table.mode == "upsert" and table.newest is None))


def _refused(route: Route, stop: str, why: str) -> Refused:
    return Refused(f"rows of stop '{stop}' cannot be released: it {why}", route=route.name)


def choose(depot: Depot, route: Route, stop: str, ids: Sequence[int] | None = None) -> tuple[tuple[Release, ...], tuple[LeftBehind, ...]]:
    """The held rows of ``stop`` (only ``ids``, if given) that can ride again, one :class:`Release` for each set of parameters; and those
    that cannot. :class:`Refused` if one of ``ids`` is not held at that stop, or cannot ride."""
    check_release(route, stop)
    wanted, why_not = None if ids is None else set(ids), refusals(route, stop)
    fit: list[tuple[int, str]] = []
    left: list[LeftBehind] = []
    for row in rows_of(depot, route.name, stop, "waiting"):
        number = row.id or 0
        if wanted is not None and number not in wanted:
            continue
        why = why_not(row)
        if why:
            left.append(LeftBehind(number, why))
        else:
            fit.append((number, row.trip))
    if wanted is not None:
        _all_fit(route, stop, wanted, fit, left)
    return tuple(_grouped(depot, route, stop, fit)), tuple(left)


def _all_fit(route: Route, stop: str, wanted: set[int], fit: list[tuple[int, str]], left: list[LeftBehind]) -> None:
    if left:
        raise Refused(f"row {left[0].id} cannot be released: {left[0].why}; nothing was released", route=route.name, stop=stop)
    absent = sorted(wanted - {number for number, _ in fit})
    if absent:
        said = ", ".join(map(str, absent[:5])) + (", …" if len(absent) > 5 else "")
        raise Refused(
            f"row {said} is not held in quarantine at this stop; `bus quarantine list --route {route.name} --stop {stop}` shows what is",
            route=route.name,
            stop=stop,
        )


def refusals(route: Route | None, stop: str) -> Callable[[QuarantinedRow | QuarantineCount], str | None]:
    """Says of a row that ``stop`` rejected, or of rows that are counted together, why it cannot ride again; None if a release takes it.

    By the contract as it is now; without the ``route``, which is not known then, by the rules that were broken. What lacks a field, or
    holds bytes that are no text, is told of single rows only.
    """
    if route is not None and (never := _never(route, stop)):
        return lambda held: never
    contract = route.contract_of(stop) if route else None
    rules = {str(rule) for rule in contract.rules()} if contract else None
    fields = contract.fields if contract else ()
    bytes_in = [field.name for field in fields if "binary" in field.type]
    as_json = {f"{field.name}: type string" for field in fields if field.json}

    def why_not(held: QuarantinedRow | QuarantineCount) -> str | None:
        stand = [rule for rule in held.rules if (rules is None or rule in rules) and rule not in as_json]
        return (
            _by_standing(held, route)
            or _by_fields(held, contract, route)
            or _by_bytes(held, bytes_in, route)
            or _by_rules(held, stand, route)
        )

    return why_not


def _by_standing(held: QuarantinedRow | QuarantineCount, route: Route | None) -> str | None:
    if on_its_way(held):
        return f"release trip {held.released_trip} has it, and is {held.release_state}: {way_out(held)}"
    if held.state != "held":
        return f"it is {held.state}"
    if held.message_state in WAIT_FOR_A_PERSON:
        return (
            f"its message is {held.message_state}, not delivered, and brings its rows with it: `bus redrive {held.route} --id MESSAGE "
            "--reason …` sends it round again, `bus discard` gives it up; `bus quarantine show` says which it is"
        )
    if held.message_state not in (None, "delivered"):
        return f"its message is {held.message_state}, not delivered yet, and brings its rows with it"
    if UNREADABLE in held.rules:
        return f"it could not be taken apart, so there are no fields to put aboard; correct it in the source, and {_anew(held, route)}"
    if held.trip_state in OVER:
        return (
            f"its trip {held.trip} is {held.trip_state}, which dropped off nothing and stays so: what it had aboard comes with another "
            "trip, or not at all; `bus quarantine discard` gives the row up"
        )
    if held.trip_state != "delivered":
        return f"its trip {held.trip} is {held.trip_state}, not delivered: driving that trip again picks the row up anew"
    return None


def on_its_way(held: QuarantinedRow | QuarantineCount) -> bool:
    """Whether a release trip has it that is not delivered, or not yet."""
    return held.state == "released" and held.release_state not in (None, "delivered")


def way_out(held: QuarantinedRow | QuarantineCount) -> str:
    """What becomes of a row that is :func:`on_its_way`, or of one of those that are counted together."""
    return next_of_release(held.route, str(held.released_trip), str(held.release_state))


def next_of_release(route: str, trip: str, state: str) -> str:
    """What to do about a release trip that is not delivered."""
    again, held = f"`bus drive {route} --trip {trip}`", f"`bus quarantine unrelease {trip}` holds its rows again"
    if state == "cancelled":
        return held
    return f"{again} rolls it forward" if state == "stuck" else f"{again} drives it again, {held}"


def _by_fields(held: QuarantinedRow | QuarantineCount, contract: Contract | None, route: Route | None) -> str | None:
    """A field that is absent, not null: the contract has it, or calls it so, only since the row was read."""
    if contract is None or not isinstance(held, QuarantinedRow):
        return None
    if unread := [f"'{name}'" for name in contract.names if name not in held.payload]:
        which = "which was" if len(unread) == 1 else "which were"
        return f"the contract asks for {', '.join(unread)}, {which} not read when the row was quarantined; {_anew(held, route)}"
    return None


def _by_bytes(held: QuarantinedRow | QuarantineCount, bytes_in: Sequence[str], route: Route | None) -> str | None:
    payload = held.payload if isinstance(held, QuarantinedRow) else {}
    if unsaid := [name for name in bytes_in if "\\x" in (payload.get(name) or "")]:
        return f"field {unsaid[0]!r} holds bytes that are no text, which quarantine cannot give back; after the fix {_anew(held, route)}"
    return None


def _anew(held: QuarantinedRow | QuarantineCount, route: Route | None) -> str:
    """How the row comes again from where it came."""
    if held.message is not None:
        return (
            f"`bus replay {held.route} --id {held.message} --again --reason …` delivers its message once more, all rows of it"
            f"{_twice(route)}; `bus quarantine discard` gives the row up"
        )
    if route is None or route.queue is None:
        return "drive the route again"
    if not any(stop.name == held.stop for stop in route.stops):
        return "`bus quarantine discard` gives the row up"
    return _comes_again(route, held.stop)


def _by_rules(held: QuarantinedRow | QuarantineCount, rules: Sequence[str], route: Route | None) -> str | None:
    if wrong := [rule for rule in rules if rule.endswith(": type string")]:
        return f"it breaks '{wrong[0]}': what quarantine keeps of it is text, and would pass as such; after the fix {_anew(held, route)}"
    if twice := [rule for rule in rules if _kind(rule) == "unique"]:
        return (
            f"it breaks '{twice[0]}', and the row with the same key is delivered: alone it would pass the gate and overwrite or double "
            "that one; discard it, export it, or change the contract"
        )
    return None


def _never(route: Route, stop: str) -> str | None:
    if stop not in {declared.name for declared in route.stops}:
        return f"route '{route.name}' has no stop '{stop}' any more"
    try:
        check_release(route, stop)
    except Refused as error:
        return str(error)
    return None


def _grouped(depot: Depot, route: Route, stop: str, fit: Iterable[tuple[int, str]]) -> Iterator[Release]:
    groups: dict[str, tuple[dict[str, Any], list[int], dict[str, None]]] = {}
    of_trip: dict[str, str] = {}
    for number, trip in fit:
        if trip not in of_trip:
            parameters = {name: value for name, value in depot.trip(trip).parameters.items() if name != RELEASE_STOP}
            of_trip[trip] = json.dumps(parameters, sort_keys=True)
            groups.setdefault(of_trip[trip], (parameters, [], {}))
        _, numbers, trips = groups[of_trip[trip]]
        numbers.append(number)
        trips[trip] = None
    for parameters, numbers, trips in groups.values():
        yield Release(route.name, stop, tuple(numbers), tuple(trips), parameters)


def start_release(depot: Depot, release: Release) -> Trip:
    """The trip in which ``release`` rides, its rows tied to it. Drive it like any other trip; Refused if a row was taken meanwhile."""
    parameters = {**release.parameters, RELEASE_STOP: release.stop}
    trip = depot.start_trip(release.route, "release", parameters, parent=release.trips[-1])
    try:
        depot.mark_released(release.ids, trip.id)
    except Refused as error:
        depot.finish_trip(trip.id, "failed", str(error))
        raise
    return trip


# While it rides


def release_stop(trip: Trip) -> str | None:
    """The stop at which a release trip puts its rows aboard; None for any other trip."""
    return trip.parameters.get(RELEASE_STOP) if trip.trigger == "release" else None


def chain(route: Route, name: str) -> tuple[str, ...]:
    """``name`` and the stops whose rows it carries, itself first: a row of each is a row of the next."""
    found = [name]
    while upstream := route.upstream(found[-1])[:1]:
        found += upstream
    return tuple(found)


def _between(route: Route, stop: str, drop_off: str) -> tuple[str, ...]:
    names = chain(route, drop_off)
    return names[1 : names.index(stop)]


def reaches(route: Route, trip: Trip, name: str) -> bool:
    """Whether rows that ``trip`` moves come to stop ``name``: all do, but those of a release only follow their own chain."""
    stop = release_stop(trip)
    return stop is None or stop in chain(route, name)


def only_looked_up(route: Route, trip: Trip, name: str) -> str | None:
    """Why nobody is to see to the rows that ``name`` rejects in ``trip``; None where they wait for a person.

    They wait already, in the trip that was to drop them off: held here too, each could be released as often as it was looked up.
    """
    if reaches(route, trip, name):
        return None
    return (
        f"only looked up, for a release of stop '{release_stop(trip)}': what '{name}' rejects waits where it was to be dropped off, "
        f"in trip {trip.parent}, say"
    )


def contract_for(route: Route, trip: Trip, name: str) -> Contract:
    """The contract of ``name`` in ``trip``. Shares and counts are about whole loads: for a handful of released rows they do not hold.

    Of rows that are added up from messages none may be rejected: with a bad message's it would hold those of good ones back.
    """
    contract = route.contract_of(name)
    if release_stop(trip) is None or not reaches(route, trip, name):
        return replace(contract, max_rejected=0) if route.adds_up(name) else contract
    return replace(contract, max_rejected=1.0, min_rows=0)


def released_rows(depot: Depot, trip: Trip) -> Iterator[QuarantinedRow]:
    """The rows that ``trip`` releases, in the order of quarantine."""
    stop = release_stop(trip)
    if stop is not None:
        yield from (row for row in rows_of(depot, trip.route, stop, "released") if row.released_trip == trip.id)


def released_records(depot: Depot, route: Route, trip: Trip) -> Iterator[Records]:
    """The released rows as a source would give them: text as it was picked up, at the place where it was found. :class:`Refused` if one
    lacks a field of the contract, which has changed since the release began."""
    import pyarrow as pa

    from resources.records import Records

    contract = route.contract_of(str(release_stop(trip)))
    for (origin, unit), rows in groupby(released_rows(depot, trip), lambda row: (row.origin, row.unit)):
        while some := _some(rows):
            for row in some:
                if why := _by_fields(row, contract, route):
                    raise Refused(f"row {row.id} cannot ride: {why}. `bus quarantine unrelease {trip.id}` holds what this trip releases")
            texts = [_source_texts(row, contract) for row in some]
            columns = [pa.array([text[name] for text in texts], pa.string()) for name in contract.names]
            positions = pa.array([row.position or int(row.row_id) for row in some], pa.int64())
            batch = pa.RecordBatch.from_arrays(columns, names=list(contract.names))
            messages = pa.array([row.message for row in some], pa.int64())
            yield Records(batch, origin or f"trip {some[0].trip}", positions, unit or "row", messages=messages)


def rows_of(
    depot: Depot, route: str | None, stop: str | None, state: RowFilter | None, trip: str | None = None
) -> Iterator[QuarantinedRow]:
    """Quarantined rows, a page at a time."""
    after = 0
    while page := depot.quarantined(route, trip, stop, state, limit=ROWS_AT_A_TIME, after=after):
        yield from page
        after = page[-1].id or 0


def _some(rows: Iterator[QuarantinedRow]) -> list[QuarantinedRow]:
    from itertools import islice

    return list(islice(rows, ROWS_AT_A_TIME))


def _kind(rule: str) -> str:
    """'unique' of ``order_id: unique``."""
    return rule.partition(": ")[2].partition(" ")[0]


def _source_texts(row: QuarantinedRow, contract: Contract) -> dict[str, str | None]:
    was_read = all(reason.rule == WITH_ITS_MESSAGE or _kind(reason.rule) in _BETWEEN_ROWS for reason in row.reasons)
    texts = {field.name: row.payload.get(field.name) for field in contract.fields}
    if was_read:
        for field in contract.fields:
            text = texts[field.name]
            if field.format is not None and text is not None:
                texts[field.name] = _in_format(field, field.format, text)
    return texts


def _in_format(field: Field, layout: str, text: str) -> str:
    """ISO 8601 as the source would write it; as it is, where the contract's type changed and it is no such moment."""
    try:
        if field.parsed_type.kind == "time":
            return time.fromisoformat(text).strftime(layout)
        if field.parsed_type.kind == "date":
            return date.fromisoformat(text).strftime(layout)
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return (moment.astimezone(ZoneInfo(field.zone)) if field.zone and moment.tzinfo else moment).strftime(layout)
