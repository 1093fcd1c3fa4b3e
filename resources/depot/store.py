"""The depot's seam. Every method is one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, get_args

from resources.depot import forgetting, quarantine, restoring, routes, trips
from resources.depot.connections import Connections, now
from resources.depot.entries import (
    Attempt,
    Forgotten,
    HeldAt,
    Kind,
    Outcome,
    Publication,
    QuarantineCount,
    QuarantinedRow,
    RowFilter,
    Trip,
    TripState,
    Verdict,
    checked_name,
    checked_trip_id,
)
from resources.depot.inbox import Inbox
from resources.depot.process import is_gone
from resources.errors import Misconfigured

_FINISHED: tuple[TripState, ...] = ("delivered", "failed", "rehearsed", "stuck")


class Depot:
    """The bus's durable record at ``url``: ``sqlite:////path/depot.db`` or ``postgresql://…``.

    Cheap to construct; connects on first use, and brings an old or empty database up to date then. Share one per process; it is
    safe in threads and after a fork. Every method raises Transient (locked for long, connection lost, disk full: nothing was
    written, except that a connection lost during the commit itself leaves it open: ask again), Misconfigured (unwritable,
    refused login, database newer than the code) and what its own text says. Times are aware UTC on the depot's own clock.
    """

    def __init__(self, url: str):
        self._connections = Connections(url)

    def __repr__(self) -> str:
        return f"Depot({self._connections.place})"

    def upgrade(self) -> None:
        """Bring the schema up to date now, under a lock, rather than on first use."""
        self._connections.upgrade()

    def close(self) -> None:
        """Give the connections back. The depot stays usable."""
        self._connections.close()

    def now(self) -> datetime:
        """The depot's clock: ages of what it keeps are told by it, whatever the clock here says."""
        with self._connections.reading() as connection:
            return now(connection)

    @cached_property
    def inbox(self) -> Inbox:
        """The messages: what waits, rides, was delivered or given up."""
        return Inbox(self._connections)

    # Trips

    def start_trip(
        self,
        route: str,
        trigger: str,
        parameters: Mapping[str, Any],
        *,
        partition: str | None = None,
        run: str | None = None,
        parent: str | None = None,
        trip_id: str | None = None,
    ) -> Trip:
        """A new trip, 'driving'; or, for a run that started a trip of this route already, that one (so two of its processes agree).

        ``trigger`` is a word: ui, cron, person, release, rehearsal. ``parameters`` are kept as JSON; dates and decimals come back as
        text. A ``trip_id`` that exists gives that trip, and Refused if it is another route's.
        """
        values = {
            "id": checked_trip_id(trip_id) if trip_id is not None else trips.new_trip_id(),
            "route": checked_name(route, "route"),
            "trigger": checked_name(trigger, "trigger"),
            "parameters": dict(parameters),
            "partition": partition,
            "run": run,
            "parent": parent,
        }
        with self._connections.writing() as connection:
            return trips.insert_trip(connection, values)

    def trip(self, trip: str) -> Trip:
        """The trip of that id, or NoSuchTrip."""
        with self._connections.reading() as connection:
            return trips.trip_of(connection, trip)

    def trip_of_run(self, route: str, run: str) -> Trip | None:
        """The trip of ``route`` that ``run`` started, or made an attempt at; None if it drove none."""
        with self._connections.reading() as connection:
            return trips.trip_of_run(connection, route, run)

    def trips(self, route: str | None = None, state: TripState | None = None, limit: int = 50) -> list[Trip]:
        """The newest first."""
        with self._connections.reading() as connection:
            return trips.list_trips(connection, route, state, limit)

    def last_passed_trip(self, route: str, stops: Iterable[str]) -> Trip | None:
        """The newest trip in which every one of ``stops`` has a passed verdict: what a rehearsal reads. None if there is none."""
        wanted = frozenset(stops)
        if not wanted:
            raise Misconfigured("last_passed_trip needs at least one stop")
        with self._connections.reading() as connection:
            return trips.last_passed(connection, route, wanted)

    def finish_trip(
        self,
        trip: str,
        state: TripState,
        error: str | None = None,
        *,
        attempt: int | None = None,
        kind: Kind | None = None,
        culprit: int | None = None,
    ) -> Trip:
        """Say how the trip stands; gives it back as it stands then, which may differ from what was asked.

        'delivered' is final, and so are split, stranded, cancelled and empty. 'failed' after a publication is kept as 'stuck': it can
        only roll forward. With ``attempt``, the word of one that was overtaken by a newer attempt, or whose trip is to depart again,
        changes nothing, unless it delivered. ``kind`` and ``culprit`` are kept with ``attempt``.
        """
        if state not in _FINISHED:
            raise Misconfigured(f"a trip ends delivered, failed, rehearsed or stuck, not {state!r}")
        with self._connections.writing() as connection:
            found = trips.finish(connection, trip, state, error, attempt)
            if attempt is not None:
                trips.explain(connection, trip, attempt, _why(kind, culprit))
            return found

    # Attempts

    def claim(
        self,
        trip: str,
        run: str,
        *,
        lease_seconds: float,
        host: str | None = None,
        pid: int | None = None,
        process_started: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        converted: Mapping[str, Any] | None = None,
    ) -> Attempt:
        """Make ``run`` the trip's driver, and the trip 'driving' (a 'stuck' one stays that). Of a race exactly one wins.

        A run that owns an attempt gets the same again, its lease renewed, its process noted anew; AttemptEnded if that was revoked
        or failed. AttemptLive if another run's has not ended: end it first if it is abandoned. TripOver if the trip was asked to stop,
        of its own run too, or is over without having been delivered. AlreadyDelivered; NoSuchTrip.
        ``host``, ``pid``, ``process_started`` come from ``process.this_process()``; leave the latter two out if the attempt outlives
        the process that claims (a multi-process executor): then only the lease tells.
        ``defaults`` become parameters of a trip that has none of that name, and stay; ``converted`` take the place of what it has. What
        an attempt begins with it keeps.
        """
        process = {"host": host, "pid": pid, "process_started": process_started}
        with self._connections.writing() as connection:
            return trips.claim(connection, trip, run, _lease(lease_seconds), process, defaults or {}, converted or {})

    def renew(self, trip: str, attempt: int, lease_seconds: float) -> bool:
        """Extend the lease from now on. False: the attempt was ended by somebody else, and the worker must stop."""
        with self._connections.writing() as connection:
            return trips.renew(connection, trip, attempt, _lease(lease_seconds))

    def end_attempt(
        self,
        trip: str,
        attempt: int,
        outcome: Outcome,
        error: str | None = None,
        *,
        kind: Kind | None = None,
        culprit: int | None = None,
    ) -> bool:
        """End the attempt, if it has not ended yet; whether this call did it. The trip's own state is ``finish_trip``'s.

        Without ``kind`` and ``culprit`` those stay that ``finish_trip`` has kept.
        """
        if outcome not in get_args(Outcome):
            raise Misconfigured(f"an attempt ends {', '.join(get_args(Outcome))}, not {outcome!r}")
        with self._connections.writing() as connection:
            return trips.end_attempt(connection, trip, attempt, outcome, error, _why(kind, culprit))

    def newest_attempt(self, trip: str) -> Attempt | None:
        with self._connections.reading() as connection:
            return trips.newest_attempt(connection, trip)

    def is_abandoned(self, attempt: Attempt) -> bool:
        """Whether a live attempt has nobody driving it: its lease ran out, or its process on this host is gone."""
        if attempt.ended_at is not None:
            return False
        if is_gone(attempt.host, attempt.pid, attempt.process_started):
            return True
        with self._connections.reading() as connection:
            return attempt.lease_until < now(connection)

    # Verdicts and publications

    def record_verdict(self, verdict: Verdict, quarantined: Iterable[QuarantinedRow] = (), discarded: str | None = None) -> int:
        """Commit a stop's verdict, the manifest it names and its rejected rows together; gives the number of those.

        Replaces this stop's verdict and its still held rows from earlier tries of the trip; released and discarded rows stay.
        ``discarded`` is why nobody is to see to the rejected rows: they are kept as discarded, for that reason.
        ``quarantined`` is streamed while the transaction is open: it must not use the depot. AttemptEnded if the attempt is not
        live: a zombie changes nothing.
        """
        checked_name(verdict.stop, "stop")
        with self._connections.writing() as connection:
            trip = trips.replace_verdict(connection, verdict)
            return quarantine.replace_held(connection, trip, verdict, quarantined, discarded)

    def verdicts(self, trip: str) -> dict[str, Verdict]:
        """The newest verdict per stop, passed or not."""
        with self._connections.reading() as connection:
            return trips.verdicts_of(connection, trip)

    def record_publication(self, trip: str, attempt: int, database: str, tables: Mapping[str, Any]) -> None:
        """Note that ``database`` has committed the trip. The first note stands: who rolls forward may say it again."""
        with self._connections.writing() as connection:
            trips.insert_publication(connection, trip, attempt, checked_name(database, "database"), tables)

    def publications(self, trip: str) -> list[Publication]:
        """Where the trip is committed, the earliest first."""
        with self._connections.reading() as connection:
            return list(trips.list_publications(connection, trip))

    def restore_trip(
        self, trip: str, route: str, trigger: str, parameters: Mapping[str, Any], *, attempt: int, run: str, verdicts: Sequence[Verdict]
    ) -> Trip:
        """A trip that this depot forgot and a destination remembers: 'stuck', committed by ``attempt``, to be rolled forward.

        One that the depot knows is given back as it is.
        """
        values = {"id": checked_trip_id(trip), "route": checked_name(route, "route"), "trigger": checked_name(trigger, "trigger")}
        with self._connections.writing() as connection:
            return restoring.restore(connection, {**values, "parameters": dict(parameters)}, attempt, run, verdicts)

    # Forgetting

    def forget_trips(self, route: str, before: datetime) -> Forgotten:
        """Forget trips that ended before ``before``: attempts, verdicts, publications, and their released and discarded rows.

        Those stay that are under way, failed (they can be driven again) or stuck, that a message or a held row is of, that a
        trip which stays is a part of, rehearses on or has released rows of; and a release that was not delivered, until its rows
        are held again. Runs in many small transactions.
        """
        return forgetting.forget(self._connections, checked_name(route, "route"), before)

    def forgettable_trips(self, route: str, before: datetime) -> Forgotten:
        """What ``forget_trips`` would take once ``Inbox.purge`` has forgotten the messages that ended before then."""
        with self._connections.reading() as connection:
            return forgetting.would_forget(connection, checked_name(route, "route"), before)

    # Quarantine

    def quarantined(
        self,
        route: str | None = None,
        trip: str | None = None,
        stop: str | None = None,
        state: RowFilter | None = "held",
        *,
        limit: int = 100,
        after: int = 0,
    ) -> list[QuarantinedRow]:
        """Rows in the order of their ids, ``limit`` at a time: ``after`` is the last id seen. Each carries the states of its trip,
        its message and its release trip."""
        with self._connections.reading() as connection:
            return quarantine.listed(connection, {"route": route, "trip": trip, "stop": stop, "state": state}, limit, after)

    def count_quarantined(
        self, route: str | None = None, trip: str | None = None, stop: str | None = None, state: RowFilter | None = "held"
    ) -> list[QuarantineCount]:
        """How many rows wait, those together that broke the same rules and stand alike, in the order of routes, stops and rules."""
        with self._connections.reading() as connection:
            return quarantine.counted(connection, {"route": route, "trip": trip, "stop": stop, "state": state})

    def held_at(self, route: str) -> list[HeldAt]:
        """The stops of ``route`` at which rows wait that neither their trip nor their message brings again."""
        with self._connections.reading() as connection:
            return quarantine.held_at(connection, checked_name(route, "route"))

    def undelivered_releases(self, route: str, limit: int = 50) -> list[Trip]:
        """Release trips that are not delivered, for whatever reason, and have rows: the newest first."""
        with self._connections.reading() as connection:
            return quarantine.undelivered_releases(connection, route, limit)

    def mark_released(self, ids: Sequence[int], trip: str) -> None:
        """Give these rows to the releasing ``trip``: all or, with Refused, none (one is not held, or its trip or message not delivered).

        Saying it again for the same trip is fine.
        """
        with self._connections.writing() as connection:
            routes.lock_known(connection, trips.trip_of(connection, trip).route)
            quarantine.release(connection, ids, trip)

    def unrelease(self, trip: str) -> int:
        """Hold again what ``trip`` was to release and did not deliver; how many rows. Refused if it did, or while an attempt is live."""
        with self._connections.writing() as connection:
            routes.lock_known(connection, trips.trip_of(connection, trip).route)
            trips.check_undelivered(connection, trip)
            return quarantine.unrelease(connection, trip)

    def discard(self, ids: Sequence[int], reason: str) -> None:
        """Give these held rows up for good, and keep why: all or, with Refused, none."""
        if not reason.strip():
            raise Misconfigured("discarding rows needs a reason: it is kept with them")
        with self._connections.writing() as connection:
            quarantine.discard(connection, ids, reason)


def _lease(seconds: float) -> timedelta:
    if seconds <= 0:
        raise Misconfigured(f"a lease of {seconds} s would have run out at once; it must be above zero")
    return timedelta(seconds=seconds)


def _why(kind: Kind | None, culprit: int | None) -> dict[str, Any]:
    if kind is not None and kind not in get_args(Kind):
        raise Misconfigured(f"an attempt fails {', '.join(get_args(Kind))}, not {kind!r}")
    return {name: value for name, value in (("kind", kind), ("culprit", culprit)) if value is not None}
