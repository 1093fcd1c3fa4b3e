"""Which trip a run drives, whether it may, and how an attempt ends. Knows nothing of Dagster.

A trip survives its attempts. Taking one over means first committing 'revoked' for the earlier attempt in the trip's first
database, under the same key that publishing uses: whichever commit comes first wins, and a zombie's publishing is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from bus_assets.aboard import tell_fates
from bus_assets.declare import Misdeclared
from bus_assets.drive import (
    LEASE_SECONDS,
    SCHEDULED,
    TRIP_TAG,
    AppliedBefore,
    Boarding,
    Bus,
    Drive,
    Ended,
    Mode,
    Overtaken,
    ledger_id,
)
from bus_assets.queues import MESSAGES, Queue
from bus_assets.route import Route
from resources.depot.entries import AlreadyDelivered, Attempt, AttemptEnded, AttemptLive, Kind, Trip, TripOver
from resources.depot.process import this_process
from resources.errors import BusError, ChecksFailed, Locked, Misconfigured, Poison, Refused, Transient
from resources.receipts import AlreadySettled


def board(bus: Bus, route: Route, boarding: Boarding) -> Drive:
    """Find or start the run's trip and claim it. The same run boarding again (each stop does) gets the same attempt.

    Raises :class:`Refused` (or a subclass) when somebody else drives the trip, or when the selection cannot be driven.
    """
    try:
        trip = _trip(bus, route, boarding)
        missing, rehearses = _missing(bus, route, trip, boarding.selected), trip.trigger == "rehearsal"
        if boarding.tagged or boarding.resumed:
            if rehearses and boarding.selected & {drop.name for drop in route.drop_offs}:
                raise Refused(f"trip {trip.id} is a rehearsal, which never publishes; `bus drive {route.name}` starts a trip that does")
            if missing:
                raise Refused(f"trip {trip.id} has no passed gate for {_list(missing)}; select it too, or all stops of the route")
        return _claimed(bus, route, trip, boarding, "rehearsal" if missing or rehearses else "driving")
    except BusError as error:
        raise error.at(route=route.name) from error.__cause__


def _trip(bus: Bus, route: Route, boarding: Boarding) -> Trip:
    if boarding.tagged:
        trip = bus.depot.trip(boarding.tagged)
        if trip.route != route.name:
            raise Refused(f"trip {trip.id} belongs to route '{trip.route}', not '{route.name}'")
        return trip
    if boarding.resumed and (resumed := bus.depot.trip_of_run(route.name, boarding.resumed)):
        return resumed
    if existing := bus.depot.trip_of_run(route.name, boarding.run):
        return existing
    if route.queue and MESSAGES in boarding.selected:
        return _trip_of_messages(bus, route, route.queue, boarding)
    missing = tuple(dict.fromkeys(n for s in route.order if s in boarding.selected for n in route.needs(s) if n not in boarding.selected))
    if not missing:
        values = _parameters(route, boarding.parameters)
        if boarding.scheduled:
            values[SCHEDULED] = boarding.scheduled.isoformat()
        return bus.depot.start_trip(route.name, boarding.trigger, values, run=boarding.run)
    parent = bus.depot.last_passed_trip(route.name, missing)
    if parent is None:
        raise Refused(f"the selection leaves out {_list(missing)}, and no earlier trip has rows of it; select all stops of the route")
    only_drops = all(name in {drop.name for drop in route.drop_offs} for name in boarding.selected)
    if only_drops:
        raise Refused(
            f"{_list(tuple(sorted(boarding.selected)))} alone has no rows of its own trip to drop. Select all stops of the route for a "
            f"new trip, or tag the run {TRIP_TAG.format(route=route.name)}=TRIP to publish a trip whose gates passed "
            f"(the newest: {parent.id})"
        )
    return bus.depot.start_trip(route.name, "rehearsal", dict(parent.parameters), run=boarding.run, parent=parent.id)


def _trip_of_messages(bus: Bus, route: Route, queue: Queue, boarding: Boarding) -> Trip:
    """What a person gets who asks for a trip of a queue route: the messages that wait now."""
    values = _parameters(route, boarding.parameters)
    halt = queue.on_stranded == "halt"
    trip = bus.depot.inbox.form_for_run(route.name, boarding.run, queue.batch, halt_on_stranded=halt, parameters=values)
    if trip is None:
        if waiting := bus.depot.inbox.counts(route.name).by_state.get("waiting", 0):
            raise Refused(
                f"no message can board a trip now: the {waiting:,} that wait do so behind others of their groups, which are aboard another "
                f"trip or stranded; `bus doctor {route.name}` and `bus trips {route.name}` say which"
            )
        raise Refused(f"no message waits for a trip; send one to {queue.system}, or turn its sensor on: it boards what the queue has")
    return trip


def _parameters(route: Route, given: Mapping[str, Any]) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in route.parameters}
    for name in given:
        if name not in known:
            raise Misconfigured(f"parameter {name!r} is not declared; the route has {', '.join(known) or 'none'}")
    values = {}
    for name, parameter in known.items():
        value = given.get(name) if given.get(name) is not None else parameter.default
        if value is None:
            raise Misconfigured(
                f"parameter {name!r} ({parameter.type}) has no default: set it, with `bus drive {route.name} --set {name}=…`"
            )
        values[name] = parameter.value(value)
    return values


def _missing(bus: Bus, route: Route, trip: Trip, selected: frozenset[str]) -> tuple[str, ...]:
    """Stops that the selection needs, does not include, and that have not passed in this trip."""
    needed = {n for stop in selected for n in route.needs(stop) if n not in selected}
    passed = {stop for stop, verdict in bus.depot.verdicts(trip.id).items() if verdict.passed} if needed else set()
    return tuple(stop for stop in route.order if stop in needed - passed)


def _claimed(bus: Bus, route: Route, trip: Trip, boarding: Boarding, mode: Mode) -> Drive:
    def drive(attempt: int, how: Mode) -> Drive:
        return Drive(bus, route, trip, attempt, boarding.run, how, boarding.selected)

    before = bus.depot.newest_attempt(trip.id)
    if before and before.run != boarding.run:
        if before.ended_at is None:
            _take_over(bus, route, trip, before, boarding)
        caught_up(bus, route, trip)
    process = this_process()
    dies_with = {"pid": process.pid, "process_started": process.started} if boarding.one_process else {}
    # A trip may be older than a parameter of its route, or than its type, as those that wait, are split or released are.
    defaults = {parameter.name: parameter.default for parameter in route.parameters if parameter.default is not None}
    converted = {name: value for name, value in kept_parameters(route, trip).items() if type(value) is not type(trip.parameters[name])}
    try:
        attempt = bus.depot.claim(
            trip.id, boarding.run, lease_seconds=LEASE_SECONDS, host=process.host, defaults=defaults, converted=converted, **dies_with
        )
    except AlreadyDelivered as delivered:
        return Drive(bus, route, delivered.trip, before.attempt if before else 1, boarding.run, "delivered", boarding.selected)
    except TripOver as over:
        # One that is over stays what it is.
        _end_if_asked(bus, route, bus.depot.finish_trip(trip.id, "failed", over.message))
        raise
    how = "delivered" if attempt.outcome == "published" else "forward" if bus.depot.publications(trip.id) else mode
    trip = bus.depot.trip(trip.id)
    if how == mode and (error := unfit_parameter(route, trip)):
        said = str(error.at(route=route.name))
        bus.depot.finish_trip(trip.id, "failed", said, attempt=attempt.attempt, kind=kind_of(route, error))
        raise error
    return Drive(bus, route, trip, attempt.attempt, boarding.run, how, boarding.selected)


def kept_parameters(route: Route, trip: Trip) -> dict[str, Any]:
    """What ``trip`` keeps for the parameters of its route, as of their types by now; without values that do not read as these."""
    kept: dict[str, Any] = {}
    for parameter in route.parameters:
        if parameter.name in trip.parameters:
            with suppress(Misdeclared):
                kept[parameter.name] = parameter.value(trip.parameters[parameter.name])
    return kept


def unfit_parameter(route: Route, trip: Trip) -> Misconfigured | None:
    """Why ``trip`` cannot be driven with what it keeps for the parameters of its route, which were changed since it was started."""
    kept = kept_parameters(route, trip)
    for parameter in route.parameters:
        name, kind = parameter.name, f"{'an' if parameter.type == 'integer' else 'a'} {parameter.type}"
        if name in kept:
            continue
        if name in trip.parameters:
            said = f"parameter {name!r} is {kind} by now, and trip {trip.id} keeps {trip.parameters[name]!r} for it, which is none"
            return Misconfigured(f"{said}. Let it be of its old type until the trip is delivered, or {_given_up(route, trip, name)}")
        if parameter.default is None:
            said = f"parameter {name!r} ({parameter.type}) has no default, and trip {trip.id} is from before the route had it"
            return Misconfigured(f"{said}. Give it one, or {_given_up(route, trip, name)}")
    return None


def _given_up(route: Route, trip: Trip, parameter: str) -> str:
    if trip.trigger == "release":
        return f"hold the trip's rows again: `bus quarantine unrelease {trip.id}`"
    anew = f"`bus drive {route.name} --set {parameter}=…` starts another"
    anew = f"`bus redrive {route.name} --reason …` lets its messages ride anew, with the default" if trip.trigger == "queue" else anew
    return f"give the trip up: `bus cancel {trip.id} --reason …`, then {anew}"


def _take_over(bus: Bus, route: Route, trip: Trip, attempt: Attempt, boarding: Boarding) -> None:
    """End an attempt that is not ours: only if it failed, its run or process is gone, or a person insists."""
    over = trip.state in ("failed", "stuck") or boarding.take_over or boarding.run_is_over(attempt.run) or bus.depot.is_abandoned(attempt)
    if not over:
        raise AttemptLive(attempt)
    settle(bus, route, trip, attempt)


def settle(bus: Bus, route: Route, trip: Trip, attempt: Attempt) -> str:
    """End ``attempt`` for good: commit 'revoked' where publishing commits. Returns what the outcome is: the first commit wins."""
    outcome = "revoked"
    if route.databases:
        database = bus.systems[route.databases[0]]
        database.prepare(())
        try:
            with database.transaction() as transaction:
                transaction.record_outcome(route.name, trip.id, attempt.attempt, "revoked", attempt.run)
        except AlreadySettled as settled:
            outcome = settled.outcome
        except Locked as locked:
            raise _held(database, trip, attempt) from locked
    if outcome == "published":
        bus.depot.end_attempt(trip.id, attempt.attempt, "published")
    else:
        bus.depot.end_attempt(trip.id, attempt.attempt, "revoked", kind=attempt.kind or "died")
    return outcome


def why_unsettled(systems: Mapping[str, Any], route: Route, trip: Trip, attempt: Attempt, lock_seconds: float) -> str | None:
    """Why ``attempt`` cannot be settled now, if somebody holds its lock. Nothing is changed."""
    if not route.databases:
        return None
    database = systems[route.databases[0]].hurried(lock_seconds)
    try:
        with database.transaction() as transaction:
            transaction.record_outcome(route.name, trip.id, attempt.attempt, "revoked", attempt.run)
            raise _OnlyLooked
    except (_OnlyLooked, AlreadySettled):
        return None
    except Locked:
        return _held(database, trip, attempt).message


class _OnlyLooked(Exception):
    """Rolls back."""


def _held(database: Any, trip: Trip, attempt: Attempt) -> Locked:
    return Locked(f"the lock of attempt {attempt.attempt} of trip {trip.id} in {database.where} is held by {database.who_settles()}")


def turned_out_published(bus: Bus, route: Route, trip: Trip) -> bool:
    """Settle a trip that nobody drives; whether it is committed in its first database, as :func:`caught_up`."""
    attempt = bus.depot.newest_attempt(trip.id)
    if attempt is not None and attempt.ended_at is None:
        settle(bus, route, trip, attempt)
    return caught_up(bus, route, trip)


def cancel(bus: Bus, route: Route, trip: Trip, reason: str) -> Trip:
    """Cancel a trip without messages that nobody drives. It is settled first, as no tick does that: the reply to its commit may be lost.

    :class:`Refused` if it turns out to be committed: then it is 'delivered', or 'stuck'. If the database does not answer, nothing changes.
    """
    undone = f"it is not cancelled before that is known: `bus cancel {trip.id} --reason …` once more"
    _is_committed(bus, route, trip, undone)
    return bus.depot.inbox.cancel(trip.id, reason)


def unrelease(bus: Bus, route: Route, trip: Trip) -> int:
    """Hold the rows again that a release took along; how many. It is cancelled with that, and settled before: who drives it at this
    moment, or finds its staged rows later, publishes nothing of them.

    :class:`Refused` if it turns out to be committed. If the database does not answer, nothing changes.
    """
    is_committed = _is_committed(bus, route, trip, "its rows are not held again before that is known")
    if not is_committed and bus.depot.trip(trip.id).state != "cancelled":
        bus.depot.inbox.cancel(trip.id, "its rows are held again")
    return bus.depot.unrelease(trip.id)


def _is_committed(bus: Bus, route: Route, trip: Trip, undone: str) -> bool:
    """As :func:`turned_out_published`; what it raises says that the trip may be committed, and what is ``undone`` for that."""
    try:
        return turned_out_published(bus, route, trip)
    except BusError as error:
        error.message += f"; trip {trip.id} may be committed there, so {undone}"
        raise error.at(route=route.name) from error.__cause__


def _end_if_asked(bus: Bus, route: Route, trip: Trip) -> None:
    """A trip that failed and was asked to stop ends here, unless it has messages: then the next tick settles it."""
    if trip.state == "failed" and trip.cancelled is not None and trip.trigger != "queue":
        cancel(bus, route, trip, trip.cancelled)


def caught_up(bus: Bus, route: Route, trip: Trip) -> bool:
    """Whether the trip is committed in its first database. If so the depot knows it afterwards: 'delivered', or 'stuck'."""
    attempt = published(bus, route, trip)
    if attempt is not None:
        _caught_up(bus, route, trip, attempt)
    return attempt is not None


def published(bus: Bus, route: Route, trip: Trip) -> int | None:
    """The attempt that committed this trip in the first database, if one did; asked of that database, not of the depot."""
    if not route.databases:
        return None
    database = bus.systems[route.databases[0]]
    database.prepare(())
    with database.transaction(reading=True) as transaction:
        return transaction.published(trip.id)


def _caught_up(bus: Bus, route: Route, trip: Trip, published: int) -> None:
    """The depot learns of a commit whose process died before it could say so."""
    done = {publication.database for publication in bus.depot.publications(trip.id)}
    for name in route.databases:
        if name in done:
            continue
        bus.systems[name].prepare(())
        with bus.systems[name].transaction(reading=True) as transaction:
            ledger = ledger_id(route, trip.id, name)
            if transaction.published(ledger) is not None:
                drops = [drop.name for drop in route.drop_offs if drop.into.database == name]
                counts = [asdict(applied.rows) for applied in transaction.applied(ledger)]
                bus.depot.record_publication(trip.id, published, name, dict(zip(drops, counts, strict=False)))
                done.add(name)
    if done >= set(route.databases):
        tell_fates(Drive(bus, route, trip, published, "", "delivered", frozenset()))
        bus.depot.finish_trip(trip.id, "delivered")
    else:
        bus.depot.finish_trip(trip.id, "stuck")


def failed(drive: Drive, stop: str, error: BusError) -> None:
    """Record that the trip failed at ``stop``; one whose rows are committed somewhere is stuck instead, and only rolls forward.

    ``error`` learns where it happened, which message it is about where only one is aboard, and who tries the trip again if that may help.
    """
    kind = kind_of(drive.route, error)
    if (
        isinstance(error, Poison)
        and kind == "poison"
        and drive.has_messages
        and len(aboard := drive.bus.depot.inbox.aboard(drive.trip.id)) == 1
    ):
        error.culprit = aboard[0].id
    state = "stuck" if drive.bus.depot.publications(drive.trip.id) else "failed"
    if isinstance(error, Transient) and drive.mode != "rehearsal":
        error.message += f"; {_who_tries_again(drive)}"
    if drive.mode != "delivered":
        said = str(error.at(route=drive.route.name, stop=stop))
        trip = drive.bus.depot.finish_trip(drive.trip.id, state, said, attempt=drive.attempt, kind=kind, culprit=error.culprit)
        try:
            _end_if_asked(drive.bus, drive.route, trip)
        except BusError as why:
            error.message += f"; {why.message}"


def _who_tries_again(drive: Drive) -> str:
    """Dagster has tried the stop again by now, as often as ``Route.retries`` says."""
    if drive.has_messages:
        return f"the sensor of its queue lets the trip depart again, as `bus dispatch {drive.route.name}` does"
    return f"`bus drive {drive.route.name} --trip {drive.trip.id}` tries the trip again"


def kind_of(route: Route, error: BusError) -> Kind:
    """What settling goes by. What rows of messages, or rows made of them, do not bear is about one of them, whichever it is; of other
    rows it is none's fault."""
    if isinstance(error, AppliedBefore):
        return "conflict"
    known = error.stop if error.stop in {stop.name for stop in route.stops} else None
    if isinstance(error, ChecksFailed):
        return "poison" if known and route.from_messages(known) else "checks"
    if isinstance(error, Poison) and known and route.queue and not route.from_messages(known):
        return "misconfigured"
    for kind, name in _KINDS:
        if isinstance(error, kind):
            return name
    return "poison"


_KINDS: tuple[tuple[type[BusError], Kind], ...] = (
    (Ended, "died"),
    (Overtaken, "died"),  # what the one who ended it says, too: it is no failure of the trip
    (AttemptEnded, "died"),
    (Transient, "transient"),
    (Poison, "poison"),
    (Misconfigured, "misconfigured"),
    (Refused, "refused"),
)


def finished(drive: Drive, stop: str) -> None:
    """A trip whose selection holds no drop-offs ends with its last stop; one with messages goes on waiting for a run of all stops."""
    selected = [name for name in drive.route.order if name in drive.selected]
    if drive.mode == "rehearsal" or (drive.mode == "driving" and not drive.selected & {d.name for d in drive.route.drop_offs}):
        verdicts = drive.bus.depot.verdicts(drive.trip.id)
        if selected and all(name in verdicts for name in selected):
            whole = drive.mode == "driving" and drive.selected >= {s.name for s in drive.route.stops}
            if drive.has_messages and not whole:
                drive.bus.depot.end_attempt(drive.trip.id, drive.attempt, "rehearsed")
                drive.bus.depot.inbox.retry(drive.trip.id, 0, spent=None)
                return
            if drive.has_messages:
                tell_fates(drive)
            drive.bus.depot.end_attempt(drive.trip.id, drive.attempt, "published" if whole else "rehearsed")
            drive.bus.depot.finish_trip(drive.trip.id, "delivered" if whole else "rehearsed")


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
