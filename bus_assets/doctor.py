"""What is wrong, since when, where, and what to do next: one small function for each kind of finding.

To add one: write a generator of :class:`Finding` and put it into the list that it belongs to. What it cannot look at is a finding too.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from bus_assets.boarding import why_unsettled
from bus_assets.causes import in_a_line, is_unreachable
from bus_assets.queues import Queue
from bus_assets.release import next_of_release, release_stop
from bus_assets.route import Route
from resources.depot.entries import Trip
from resources.depot.mail import WAIT_FOR_A_PERSON, Message, Underway
from resources.depot.process import is_gone
from resources.depot.store import Depot
from resources.errors import BusError, Transient
from resources.texts import shortened
from sensors.dispatch import backing_off, holds_all

UNCLAIMED_SECONDS = 60
OLD_SECONDS = 300
SILENT_SECONDS = 120
"""The daemon says twice a minute that it lives."""
LAUNCHES = 4
MANY = 1_000
EXAMPLES = 200
"""Messages come with their bodies."""
LOCK_SECONDS = 1.0
"""How long it waits for a lock before it says that somebody holds it."""
HALTS = REASONS = 3
LINE_CHARACTERS = 400
"""Of an error: where it is, what was expected and what to do."""
FAILED = 10
TICKS = 3
LEAST_FREE_BYTES, LEAST_FREE_SHARE = 1 << 30, 0.03

Patient = TypeVar("Patient")


@dataclass(frozen=True)
class Finding:
    """``where`` is a route, or a part of the deployment; ``advice`` is the next command, or the next thing to look at. A 'note' is
    something to know: nothing is ``wrong``. ``trip``: the one that nobody drives."""

    where: str
    wrong: str
    advice: str
    since: datetime | None = None
    level: Literal["wrong", "note"] = "wrong"
    trip: str | None = None


@dataclass(frozen=True)
class Deployment:
    """``instance`` is Dagster's, None where it cannot be opened; ``sensors`` are the names of the queues' sensors of loaded routes;
    ``folders`` those in which something grows."""

    depot: Depot
    instance: Any
    sensors: tuple[str, ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class OfRoute:
    """A route as the depot knows it. ``queue`` as it is declared; None if it has none, or its module does not load. ``missing_in``: the
    module that loads, where it has no route of that name: then :data:`OF_A_LOST_ROUTE` is looked at."""

    depot: Depot
    name: str
    queue: Queue | None = None
    missing_in: str | None = None

    @property
    def halts(self) -> bool:
        """Whether a stranded message holds its group."""
        return self.queue is None or self.queue.on_stranded == "halt"

    @property
    def max_wait(self) -> timedelta:
        """How long a message may wait for a trip to fill."""
        return timedelta(seconds=self.queue.max_wait_seconds if self.queue else 0)


@dataclass(frozen=True)
class Systems:
    """A loaded route and what it halts at."""

    depot: Depot
    route: Route
    systems: Mapping[str, Any]


def examined(patient: Patient, looks: Iterable[Callable[[Patient], Iterator[Finding]]], where: str) -> list[Finding]:
    """Everything that is wrong, the gravest first."""
    found = []
    for look in looks:
        try:
            found += look(patient)
        except BusError as error:
            said = Finding(where, f"cannot look: {error}", "see to that first, then ask again")
            found += [said] if said not in found else []
    return found


def without_repeats(found: Sequence[Finding]) -> list[Finding]:
    """Of a trip that nobody drives what was found last: a look into its database knows better than one into the depot how it goes on."""
    last = {finding.trip: finding for finding in found}
    return [finding for finding in found if finding.trip is None or last[finding.trip] is finding]


# The deployment


def _depot(seen: Deployment) -> Iterator[Finding]:
    try:
        seen.depot.trips(limit=1)
    except BusError as error:
        yield Finding("depot", str(error), "nothing runs without it: start it, or correct BUS_DEPOT_URL; `bus depot upgrade`")


def _disk(seen: Deployment) -> Iterator[Finding]:
    for folder in dict.fromkeys(seen.folders):
        there = next((at for at in (folder, *folder.parents) if at.exists()), None)
        if there is not None and _is_nearly_full(disk := shutil.disk_usage(there)):
            said = f"{folder} has {disk.free / (1 << 30):.1f} GiB left of {disk.total / (1 << 30):.0f}"
            yield Finding("disk", said, "`bus purge --older-than 7d --dry-run` says what can go, without --dry-run it goes")


def _is_nearly_full(disk: Any) -> bool:
    return disk.free < LEAST_FREE_BYTES or disk.free < LEAST_FREE_SHARE * disk.total


def _daemon(seen: Deployment) -> Iterator[Finding]:
    """Only sensors need it. Dagster keeps when each part of it last said that it lives; who never had one may do by `bus dispatch`."""
    if seen.instance is None or not seen.sensors:
        return
    beat = seen.instance.get_daemon_heartbeats().get("SENSOR")
    last = datetime.fromtimestamp(beat.timestamp, UTC) if beat else None
    if last is None and any(seen.depot.inbox.live(name) for name in seen.depot.inbox.routes()):
        yield Finding(
            "daemon",
            "no Dagster daemon has ever looked at the sensors here",
            "`bus up`, or `dagster-daemon run`; `bus dispatch ROUTE` does without",
        )
    elif last is not None and _seconds_since(last) > SILENT_SECONDS:
        yield Finding(
            "daemon", "the Dagster daemon is silent", "`bus up`, or `dagster-daemon run`; `bus dispatch ROUTE` does without", last
        )


def _sensors(seen: Deployment) -> Iterator[Finding]:
    """Switched off, or failing tick after tick."""
    if seen.instance is None:
        return
    for state in seen.instance.all_instigator_state():
        if state.name not in seen.sensors:
            continue
        if state.status.value == "STOPPED":
            said = "the sensor is switched off: messages stay on their queue"
            yield Finding(state.name, said, "switch it on in the UI, under Automation", _last_tick(state))
            continue
        ticks = list(seen.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=TICKS))
        if len(ticks) == TICKS and all(tick.status.value == "FAILURE" for tick in ticks):
            said = in_a_line(ticks[0].error)
            since = datetime.fromtimestamp(ticks[-1].timestamp, UTC)
            advice = "mend that; the sensor goes on by itself"
            if is_unreachable(ticks[0].error):
                advice = "the code server does not answer: restart `dagster dev`, or `bus up`"
            yield Finding(state.name, f"its last {TICKS} ticks failed: {said}", advice, since)


def _last_tick(state: Any) -> datetime | None:
    """Dagster does not keep when it was switched off; since its last tick nobody has looked."""
    at = getattr(state.instigator_data, "last_tick_timestamp", None)
    return datetime.fromtimestamp(at, UTC) if at else None


# A route, as the depot knows it


def _paused(seen: OfRoute) -> Iterator[Finding]:
    """By a person or by the bus, which the depot does not tell apart: the advice is for both."""
    if paused := seen.depot.inbox.paused(seen.name):
        yield Finding(seen.name, f"paused: {paused[1]}", f"once that is seen to, `bus resume {seen.name}`", paused[0])


def _stuck(seen: OfRoute) -> Iterator[Finding]:
    for trip in seen.depot.trips(seen.name, "stuck", MANY):
        said = f"trip {trip.id} is committed in one database and not in all: {_line(trip.error) or 'its process died'}"
        again = "; the sensor of its queue tries that each minute" if trip.trigger == "queue" else ""
        advice = f"{_whole(trip)}mend that, then `bus drive {seen.name} --trip {trip.id}` rolls it forward{again}"
        yield Finding(seen.name, said, advice, trip.created_at)


def _failed(seen: OfRoute) -> Iterator[Finding]:
    """The newest trip of each set of parameters that no message started; what failed before a later one like it delivered is history.

    A rehearsal is no drive, and whoever rehearses sees what comes of it; releases are told by themselves.
    """
    newest: dict[tuple[Any, ...], Trip] = {}
    for trip in seen.depot.trips(seen.name, limit=MANY):
        if trip.trigger not in ("queue", "release", "rehearsal"):
            alike = (trip.partition, json.dumps(trip.parameters, sort_keys=True, default=str))
            newest.setdefault(alike, trip)
    failed = [trip for trip in newest.values() if trip.state == "failed"]
    for trip in failed[:FAILED]:
        given = [f"{name}={value}" for name, value in trip.parameters.items()] or (
            [f"partition {trip.partition}"] if trip.partition else []
        )
        of = f" with {_line(', '.join(given))}" if given else ""
        said = f"its newest trip{of}, {trip.id}, failed: {_line(trip.error) or 'its process died'}"
        advice = f"{_whole(trip)}mend that, then `bus drive {seen.name} --trip {trip.id}`; `bus cancel {trip.id} --reason …` gives it up"
        yield Finding(seen.name, said, advice, trip.ended_at or trip.created_at)
    if more := failed[FAILED:]:
        said = f"trips with {len(more):,} other sets of parameters failed too"
        yield Finding(seen.name, said, f"`bus trips {seen.name} --state failed` lists them", more[-1].created_at)


def _unreleased(seen: OfRoute) -> Iterator[Finding]:
    """Releases that failed, were cancelled, only rehearsed or lost their process, with rows that wait; stuck ones are told above."""
    for trip in seen.depot.undelivered_releases(seen.name, MANY):
        if trip.state == "stuck" or (trip.state == "driving" and not _has_nobody(seen, trip)):
            continue
        came_to = {"failed": "failed", "cancelled": "was cancelled", "rehearsed": "was only rehearsed"}.get(
            trip.state, "has nobody driving it"
        )
        why = f": {line}" if (line := _line(trip.cancelled or trip.error)) else ""
        said = f"trip {trip.id}, which releases rows of stop '{release_stop(trip)}', {came_to}{why}"
        advice = ("" if trip.cancelled else _whole(trip)) + next_of_release(seen.name, trip.id, trip.state)
        yield Finding(seen.name, said, advice, trip.ended_at or trip.created_at)


def _has_nobody(seen: OfRoute, trip: Trip) -> bool:
    attempt = seen.depot.newest_attempt(trip.id)
    return seen.depot.is_abandoned(attempt) if attempt else _seconds_since(trip.created_at) > UNCLAIMED_SECONDS


def _undeclared(seen: OfRoute) -> Iterator[Finding]:
    """Messages of a route that was renamed or taken away: no sensor looks after them."""
    states = ("waiting", "aboard")
    oldest = [message for state in states for message in seen.depot.inbox.messages(seen.name, state, limit=1)]
    since = min((message.changed_at for message in oldest), default=None)
    if _seconds_since(since) > OLD_SECONDS:
        counts = seen.depot.inbox.counts(seen.name).by_state
        number = sum(counts.get(state, 0) for state in states)
        said = f"{_messages(number)} not over, and module {seen.missing_in} has no route of that name: nobody looks after them"
        advice = "was it renamed? Give it its name back until they are delivered; `bus cancel TRIP` gives up what is aboard"
        yield Finding(seen.name, said, advice, since)


def _underway(seen: OfRoute) -> Iterator[Finding]:
    for found in seen.depot.inbox.underway(seen.name):
        if found.trip.state == "departed" and found.departed_seconds > UNCLAIMED_SECONDS:
            before = f"; before that: {why}" if (why := _line(found.trip.error)) else ""
            said = f"nobody drives trip {found.trip.id}, whose run was asked for{before}"
            yield Finding(
                seen.name,
                said,
                f"{_whole(found.trip)}is a worker up? `bus up`, `bus worker`, or `bus drive {seen.name} --trip {found.trip.id}`",
                found.trip.departed_at,
                trip=found.trip.id,
            )
        elif found.attempt and found.attempt.ended_at is None and seen.depot.is_abandoned(found.attempt):
            yield Finding(seen.name, *_abandoned(seen, found), found.attempt.claimed_at, trip=found.trip.id)


def _abandoned(seen: OfRoute, found: Underway) -> tuple[str, str]:
    trip, attempt = found.trip, found.attempt
    assert attempt is not None
    advice = f"the sensor's next tick settles it; without a daemon `bus dispatch {seen.name}`"
    if trip.state == "failed":  # the attempt is ended by the tick that settles it
        return f"trip {trip.id} failed, and no tick has settled it: {_line(trip.error)}", f"{_whole(trip)}{advice}"
    gone = is_gone(attempt.host, attempt.pid, attempt.process_started)
    why = "its process is gone" if gone else f"its lease ran out at {attempt.lease_until:%Y-%m-%d %H:%M} UTC"
    return f"trip {trip.id} has nobody driving it: {why} ({attempt.host or 'unknown host'})", advice


def _failing(seen: OfRoute) -> Iterator[Finding]:
    for state in ("formed", "failed"):
        for trip in seen.depot.trips(seen.name, state, MANY):
            if trip.trigger == "queue" and trip.launches >= LAUNCHES:
                attempt = seen.depot.newest_attempt(trip.id)
                why = _line(trip.error or (attempt.error if attempt else None))
                again = f", {trip.tried_again}" if trip.tried_again else ""
                said = f"trip {trip.id} fails again and again ({trip.launches} runs{again}): {why or 'see its runs'}"
                yield Finding(
                    seen.name, said, f"`bus trip {trip.id}` tells more; `bus cancel {trip.id} --reason …` gives it up", trip.created_at
                )


def _given_up(seen: OfRoute) -> Iterator[Finding]:
    """Messages that wait for a person, most frequent reason first."""
    counts = seen.depot.inbox.counts(seen.name)
    for state in WAIT_FOR_A_PERSON:
        if number := counts.by_state.get(state, 0):
            waiting = seen.depot.inbox.messages(seen.name, state, limit=EXAMPLES)
            reasons = Counter(_line(message.error) or "no reason is kept" for message in waiting)
            named = reasons.most_common(REASONS)
            why = "; ".join(f"{times:,} × {reason}" for reason, times in named)
            if others := len(waiting) - sum(times for _, times in named):
                why += f"; and {others:,} for other reasons"
            more = f" (of the first {EXAMPLES:,})" if number > len(waiting) else ""
            which = f"{seen.name} --state {state}"
            cut = next((message.id for message in waiting if _is_cut(message.error) and _line(message.error) in dict(named)), None)
            whole = f"`bus message {cut}` tells its error whole; " if cut else ""
            advice = f"{whole}`bus messages {which}`, then `bus redrive {which} --reason …`, or for good `bus discard {which} --reason …`"
            since = min(message.changed_at for message in waiting)
            yield Finding(seen.name, f"{_messages(number)} {state}: {why}{more}{_corrected_too_early(waiting)}", advice, since)


def _corrected_too_early(given_up: Sequence[Message]) -> str:
    again = [message.id for message in given_up if message.other_bodies]
    if not again:
        return ""
    which = f"message {again[0]}" + (f", and {len(again) - 1:,} more of them," if len(again) > 1 else "")
    return f"; {which} came with another body before that, which a redrive does not bring: was it a correction? Then send it once more"


def _halted(seen: OfRoute) -> Iterator[Finding]:
    """Groups that a stranded message holds."""
    if seen.halts and (halts := seen.depot.inbox.halts(seen.name)):
        each = ", ".join(f"{halt.behind:,} behind message {halt.message}" for halt in halts[:HALTS])
        more = f", and more in {len(halts) - HALTS:,} other groups" if len(halts) > HALTS else ""
        said = f"{_messages(sum(halt.behind for halt in halts))} waiting behind stranded ones of their groups: {each}{more}"
        which = f"{seen.name} --id {halts[0].message} --reason …"
        again = f"`bus redrive {which}` after a fix: it rides again, and its group after it"
        yield Finding(seen.name, said, f"{again}; or `bus discard {which}`: the group alone", min(halt.since for halt in halts))


def _waiting(seen: OfRoute) -> Iterator[Finding]:
    """For longer than a trip may take to fill. What other trips hold is told of as that; of those that wait behind another message of
    their group that one is told: it is stranded, or aboard a trip that fails."""
    inbox, flight = seen.depot.inbox, seen.queue.max_in_flight if seen.queue else None
    if flight is not None and holds_all(backing_off(inbox, seen.name, flight), flight):
        said = "every trip failed and is tried again, and all other messages wait for them: is what they read, or write to, down for all?"
        advice = (
            f"`bus trips {seen.name} --state formed` lists them; `bus cancel TRIP --reason …` gives one up, and lets others ride; those of "
            "`--state stuck` can only roll forward, once that is mended"
        )
        yield Finding(seen.name, said, advice)
        return
    number, oldest = inbox.boardable(seen.name, halt_on_stranded=seen.halts)
    if not inbox.paused(seen.name) and _seconds_since(oldest) > OLD_SECONDS + seen.max_wait.total_seconds():
        said = f"{_messages(number)} waiting for a trip"
        yield Finding(seen.name, said, f"is the sensor on, and the daemon up? `bus dispatch {seen.name}` does without", oldest)


def _rows_held(seen: OfRoute) -> Iterator[Finding]:
    """A note: the contract let their trips go on without them. Rows of messages that wait for a person are told with those."""
    if held := seen.depot.held_at(seen.name):
        rows = sum(stop.rows for stop in held)
        at = ", ".join(f"{stop.rows:,} at stop '{stop.stop}'" for stop in held)
        said = f"{rows:,} row{'s' * (rows != 1)} that trips were delivered without wait{'s' * (rows == 1)} in quarantine: {at}"
        advice = (
            f"`bus quarantine counts --route {seen.name}` says why and `list` which; `release` lets them ride after a fix, `discard` gives "
            "them up"
        )
        yield Finding(seen.name, said, advice, min(stop.since for stop in held), "note")


# What a loaded route halts at


def _unreachable(seen: Systems) -> Iterator[Finding]:
    for name in seen.route.databases:
        try:
            seen.systems[name].prepare(())
        except BusError as error:
            yield Finding(seen.route.name, f"database '{name}': {error}", "start it, or correct its URL or its rights")


def _held(seen: Systems) -> Iterator[Finding]:
    """Trips that nobody drives, and that no tick can settle: a session that was left open holds their lock."""
    for found in seen.depot.inbox.underway(seen.route.name):
        trip, attempt = found.trip, found.attempt
        if attempt is None or attempt.ended_at is not None or not (trip.state == "failed" or seen.depot.is_abandoned(attempt)):
            continue
        if why := why_unsettled(seen.systems, seen.route, trip, attempt, LOCK_SECONDS):
            said, _, advice = why.partition("; ")
            said = f"trip {trip.id} cannot be settled: {said}"
            yield Finding(seen.route.name, said, f"{advice}; the next tick settles it then", attempt.claimed_at, trip=trip.id)


def _queues(seen: Systems) -> Iterator[Finding]:
    """Unreachable, or full while the depot has room: then nobody boards."""
    queue, inbox = seen.route.queue, seen.depot.inbox
    for name in queue.systems if queue else ():
        try:
            depth = seen.systems[name].depth()
        except BusError as error:
            advice = "create it, or correct its name, its rights or the credentials"
            if isinstance(error, Transient):
                advice = "each tick tries again; if it stays so: is its endpoint right, up, and reachable from here?"
            yield Finding(seen.route.name, f"queue '{name}': {error}", advice)
            continue
        if (
            queue
            and name == queue.system
            and depth.waiting > queue.batch
            and not inbox.paused(seen.route.name)
            and not inbox.live(seen.route.name)
        ):
            said = f"about {_messages(depth.waiting)} on queue '{name}', and none is aboard"
            yield Finding(seen.route.name, said, f"is the sensor on, and the daemon up? `bus dispatch {seen.route.name}` does without")
        if queue and name == queue.dead_letters and depth.waiting:
            said = f"about {_messages(depth.waiting)} on queue '{name}', the one for dead letters: copies of stranded ones, or SQS's own"
            advice = f"after a fix `bus redrive {seen.route.name} --from-dead-letters --reason …` sends both round again, not the discarded"
            yield Finding(seen.route.name, said, advice)


def _unsent(seen: Systems) -> Iterator[Finding]:
    unsent = seen.depot.inbox.dead_letters(seen.route.name, EXAMPLES)
    if unsent and seen.route.queue and seen.route.queue.dead_letters:
        old = min(message.changed_at for message in unsent)
        if _seconds_since(old) > UNCLAIMED_SECONDS:
            least = "at least " if len(unsent) == EXAMPLES else ""
            said = f"{least}{_messages(len(unsent))} stranded, and not among the dead letters yet"
            yield Finding(seen.route.name, said, f"the sensor sends them: is it on? `bus dispatch {seen.route.name}` does without", old)


def _messages(number: int) -> str:
    return "1 message is" if number == 1 else f"{number:,} messages are"


def _line(text: str | None) -> str:
    return shortened((text or "").partition("\n")[0], LINE_CHARACTERS)


def _is_cut(text: str | None) -> bool:
    return _line(text) != (text or "").rstrip()


def _whole(trip: Trip) -> str:
    """How to see the trip's error whole, where :func:`_line` cuts it: what is cut may be the statement to run."""
    return f"`bus trip {trip.id}` tells the whole error; " if _is_cut(trip.error) else ""


def _seconds_since(moment: datetime | None) -> float:
    return (datetime.now(UTC) - moment) / timedelta(seconds=1) if moment else 0.0


OF_THE_DEPLOYMENT = (_depot, _disk, _daemon, _sensors)
OF_A_ROUTE = (_paused, _stuck, _failed, _unreleased, _underway, _failing, _given_up, _halted, _waiting, _rows_held)
OF_A_LOST_ROUTE = (_paused, _stuck, _failed, _unreleased, _undeclared, _failing, _given_up, _halted, _rows_held)
OF_ITS_SYSTEMS = (_unreachable, _held, _queues, _unsent)
