"""The depot's seam for messages: from a queue's delivery to the trip that delivers, and back. Every method is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from resources.depot import boarding, decisions, forming, messages, quarantine, restoring, routes, settling
from resources.depot.connections import Connections
from resources.depot.entries import Trip, checked_name
from resources.depot.mail import (
    WAIT_FOR_A_PERSON,
    Aboard,
    Arrival,
    BackingOff,
    Boarded,
    Counts,
    Decision,
    Departure,
    Halt,
    Message,
    MessageState,
    Purged,
    Redriven,
    Remembered,
    Riders,
    Spent,
    Taken,
    Underway,
)
from resources.depot.quarantine import chunks
from resources.errors import Misconfigured

REDRIVEN: tuple[MessageState, ...] = (*WAIT_FOR_A_PERSON, "discarded")
Done = TypeVar("Done")

DECIDED_AT_ONCE = 5_000
"""A second or two on Postgres."""


class Inbox:
    """The messages of the depot, reached as ``depot.inbox``. Safe in threads, in many processes, and with many dispatchers at once.

    Every method raises what :class:`resources.depot.store.Depot` says (Transient, Misconfigured) and what its own text says.
    Whatever moves messages of a route locks that route's row first, so two dispatchers take turns: no message is put into two
    trips, no trip departs twice. What settles a trip (``retry``, ``split``, ``strand``) says whether *this* call did it: no if
    somebody else settled it first (it is formed or over, or stands at another ``launch``), if an attempt is live, or if the trip
    was asked to stop (then ``cancel`` settles it). After its first publication a trip is neither split nor stranded: Refused.
    """

    def __init__(self, connections: Connections):
        self._connections = connections

    # Boarding

    def board(
        self,
        route: str,
        arrivals: Sequence[Arrival],
        horizon_seconds: float | None = None,
        *,
        dead_letters: str | None = None,
        corrected: Callable[[Sequence[Taken]], None] | None = None,
    ) -> Boarded:
        """Keep ``arrivals``, all in one transaction; afterwards they may be deleted from their queue.

        A known key is a duplicate and only counted, unless it is stranded or quarantined and can be decoded now: then it waits
        again with what arrived, in the next generation, and its held rows are discarded; coming without a group it keeps its own. The
        second of two with one key in one call is a duplicate. A new key sent before ``horizon_seconds`` ago, or before keys were
        purged, is held: nobody can tell any more whether it was delivered. One older than a known message of its subject is
        superseded; those of its subject that wait and are older become superseded. ``dead_letters``: a person brings them back from
        there, for this reason; it is kept. ``corrected`` is told, after the commit, of those that wait again with another body, and is
        told again when that body comes again: what it raises is raised, and then the arrivals must not be deleted.
        """
        checked_name(route, "route")
        with self._connections.writing() as connection:
            boarded, taken = boarding.board(connection, route, arrivals, horizon_seconds, dead_letters)
        if taken and corrected is not None:
            corrected(taken)
        return boarded

    def rebuild(self, route: str, arrivals: Sequence[Arrival], remembered: Mapping[str, Remembered]) -> dict[MessageState, int]:
        """Keep those of ``arrivals`` whose keys this depot does not know, as ``board`` does; how many came to be in which state.

        ``remembered`` by key: what the destination says; a message that is there in every database is 'delivered' at once. Known
        keys stay as they are and are not counted, so that saying it again, and while others board, changes nothing.
        """
        checked_name(route, "route")
        with self._connections.writing() as connection:
            return boarding.rebuild(connection, route, arrivals, remembered)

    def correct(self, message: Message, arrival: Arrival) -> bool:
        """Let ``message`` wait again with what ``arrival`` says, as if it arrived now; whether it does.

        Not one that rides, was delivered, superseded or discarded, nor one that was sent round again since it was read.
        """
        with self._connections.writing() as connection:
            return boarding.correct(connection, message.route, message.id, message.generation, arrival)

    def routes(self) -> list[str]:
        """The routes of which this depot has, or had, messages."""
        with self._connections.reading() as connection:
            return routes.known(connection)

    def states(self, route: str, keys: Sequence[str]) -> dict[str, MessageState]:
        """How the messages with these keys stand; a key that is not known is not in it."""
        with self._connections.reading() as connection:
            return messages.states(connection, route, keys)

    def live(self, route: str) -> int:
        """How many messages wait or ride: whether there is room to receive more."""
        with self._connections.reading() as connection:
            return messages.live(connection, route)

    def moving(self, route: str) -> int:
        """As ``live``, but for messages that wait behind a stranded one of their group: those leave room for others."""
        with self._connections.reading() as connection:
            return messages.moving(connection, route)

    def boardable(self, route: str, *, halt_on_stranded: bool = True) -> tuple[int, datetime | None]:
        """How many messages wait for nothing but a trip, and when the first of them was received: ``form`` would put them aboard."""
        with self._connections.reading() as connection:
            return forming.boardable(connection, route, halt_on_stranded)

    def halts(self, route: str) -> list[Halt]:
        """The stranded messages behind which others of their group wait, by id."""
        with self._connections.reading() as connection:
            return messages.halts(connection, route)

    # Dispatching

    def form(
        self,
        route: str,
        *,
        batch: int,
        max_wait_seconds: float,
        max_trips: int,
        aside: int = 0,
        halt_on_stranded: bool = True,
        parameters: Mapping[str, Any] | None = None,
    ) -> int:
        """Put waiting messages into new trips ('formed', trigger 'queue', with ``parameters``), oldest first; how many trips.

        ``batch`` messages per trip; fewer only once the oldest of them was received ``max_wait_seconds`` ago. The route has at most
        ``max_trips`` trips that are formed, departed, driving, failed or stuck, but for those that ``backing_off`` sets ``aside``. None
        while the route is paused. Of a group no message boards while one is aboard, nor, with ``halt_on_stranded``, while one is
        stranded.
        """
        checked_name(route, "route")
        _at_least_one(batch, "batch")
        with self._connections.writing() as connection:
            limits = forming.Limits(batch, max_wait_seconds, max_trips, aside, halt_on_stranded)
            return forming.form(connection, route, limits, dict(parameters or {}))

    def backing_off(self, route: str, *, aside: int) -> BackingOff:
        """Trips of which an attempt failed, or that wait for their ``not_before``: formed, departed, driving, failed anew or stuck.

        Set aside are all that fail while others ride: they were split off another one, or one that was formed later is delivered; of the
        rest the ``aside`` first.
        """
        with self._connections.reading() as connection:
            return forming.backing_off(connection, route, aside)

    def form_for_run(
        self, route: str, run: str, batch: int, *, halt_on_stranded: bool = True, parameters: Mapping[str, Any] | None = None
    ) -> Trip | None:
        """A person's run that names no trip: a trip of up to ``batch`` messages that wait, already 'departed'; None if none may board.

        A run that has a trip of this route gets that one again. Paused routes and the number of trips do not matter: a person asks.
        """
        checked_name(route, "route")
        _at_least_one(batch, "batch")
        with self._connections.writing() as connection:
            return forming.form_for_run(connection, route, run, batch, halt_on_stranded, dict(parameters or {}))

    def depart(self, route: str, *, max_in_flight: int, limit: int) -> list[Departure]:
        """Trips to ask a run for now, at most ``limit``: each is 'departed' then, one launch further, and not given out again.

        Formed trips whose ``not_before`` has come, and stuck ones that nobody drives, longest ready first, as long as fewer than
        ``max_in_flight`` are departed, driving or stuck and asked for or driven. Stuck ones stay stuck and may depart again in a minute.
        Of those in flight trips that failed before are half while new ones are ready, and those that fail while others ride in any case;
        where one trip rides at a time, they have a turn each minute. None while the route is paused.
        """
        with self._connections.writing() as connection:
            return forming.depart(connection, route, max_in_flight, limit)

    def underway(self, route: str) -> list[Underway]:
        """What settling looks at: trips of messages that are departed, driving, failed or stuck, oldest first."""
        with self._connections.reading() as connection:
            return settling.underway(connection, route)

    def riders(self, trip: str, launch: int) -> Riders | None:
        """The messages aboard and their groups, in the order of ``messages_of``: what is judged when that launch of the trip has failed.

        None if the trip is not under way any more, or with another launch: somebody else has settled it.
        """
        with self._connections.reading() as connection:
            return settling.riders(connection, trip, launch)

    def messages_of(self, trip: str) -> list[Message]:
        """The messages aboard, in riding order: by event (or sending, or receiving) time, sequencer and id; with groups, by id."""
        with self._connections.reading() as connection:
            return messages.aboard(connection, trip)

    def aboard(self, trip: str) -> list[Aboard]:
        """The messages aboard by id, without their bodies: a tenth of what ``messages_of`` costs."""
        with self._connections.reading() as connection:
            return messages.keys_aboard(connection, trip)

    def rejected_rows(self, trip: str) -> dict[int, tuple[int, str]]:
        """How many rows of each message the trip's gates rejected, and why the first; a message without any is not in it."""
        with self._connections.reading() as connection:
            return quarantine.by_message(connection, trip)

    # Settling

    def retry(self, trip: str, delay_seconds: float, *, spent: Spent | None, launch: int | None = None, error: str | None = None) -> bool:
        """Let the same messages ride again in ``delay_seconds``: the trip is 'formed' and ``spent`` is counted; whether this call did it.

        ``error``: why, where no attempt has said it; it stands until the trip is claimed. A trip that has published somewhere is 'stuck'
        instead, and departs again after the delay.
        """
        if spent not in (None, "failure", "death"):
            raise Misconfigured(f"a retry spends a failure, a death or nothing, not {spent!r}")
        with self._connections.writing() as connection:
            return settling.retry(connection, trip, delay_seconds, spent, launch, error)

    def split(self, trip: str, parts: Sequence[Sequence[int]], *, launch: int | None = None) -> list[str]:
        """End the trip as 'split' and put each part of its messages into a new formed trip (parent ``trip``, its parameters).

        Gives the new trips, in the order of ``parts``; none if this call did not settle the trip. Messages in no part wait again.
        Misconfigured, and nothing changed, if a part is empty, a message is not aboard or in two parts, or a group's order would
        be lost (in two parts, or in a part without its earlier messages). Held rows of the messages that move are discarded.
        """
        with self._connections.writing() as connection:
            return settling.split(connection, trip, parts, launch)

    def strand(
        self,
        trip: str,
        messages: Sequence[int],
        error: str,
        *,
        to_dead_letters: bool,
        halt_on_stranded: bool = True,
        launch: int | None = None,
    ) -> bool:
        """Give ``messages`` up, with the reason; whether this call did it.

        The others ride on in one new trip, and this one is 'split'; without others it is 'stranded'. With ``halt_on_stranded``
        later messages of a stranded one's group do not ride on, but wait.
        """
        with self._connections.writing() as connection:
            return settling.strand(connection, trip, messages, settling.Stranding(error, to_dead_letters, halt_on_stranded), launch)

    def delivered(self, trip: str, rejected: Mapping[int, int], quarantined: Mapping[int, str], *, kept: bool = True) -> int:
        """The trip is published: every message aboard is delivered, with its number of ``rejected`` rows, or quarantined for a reason.

        The route's failures in a row are over; unless nothing of the trip was ``kept``: then it is one of them itself, if more than one
        message is aboard. How many there are now. Saying it again changes nothing. The trip's own state is ``Depot.finish_trip``'s.
        """
        with self._connections.writing() as connection:
            return settling.delivered(connection, trip, rejected, quarantined, kept=kept)

    def applied(self, trip: str, ids: Sequence[int]) -> int:
        """These were found applied by an earlier trip: delivered, and off this trip. How many are left aboard; if none, it is 'empty'."""
        with self._connections.writing() as connection:
            return settling.applied(connection, trip, ids)

    def ride_in(self, trip: str, other: str, ids: Sequence[int]) -> int:
        """These were found applied by ``other``, which is not in every database yet: they ride in that trip, which rolls forward.

        How many are left aboard ``trip``; if none, it is 'empty'.
        """
        with self._connections.writing() as connection:
            return restoring.ride_in(connection, trip, other, ids)

    def cancel(self, trip: str, reason: str) -> Trip:
        """Ask a trip to stop; gives it as it stands then.

        While an attempt is live, the trip only notes it: ``Depot.renew`` says no, nobody may claim, the attempt's own run neither, and who
        settles the ended attempt cancels again; if it publishes before it sees the note, that is void. It is live until somebody ends it,
        also after the trip has failed: so nothing is 'cancelled' whose commit nobody has looked for. Else its messages are stranded with
        the reason, not for dead letters, and the trip is 'cancelled'. Refused for a trip that has published, or is over in another
        way; a release that was only rehearsed is not.
        """
        _reason(reason, "cancelling a trip")
        with self._connections.writing() as connection:
            return settling.cancel(connection, trip, reason)

    # Dead letters

    def dead_letters(self, route: str, limit: int) -> list[Message]:
        """Stranded messages that are still to be sent to the queue for dead letters, oldest first."""
        with self._connections.reading() as connection:
            return messages.dead_letters(connection, route, limit)

    def sent_to_dead_letters(self, ids: Sequence[int]) -> None:
        with self._connections.writing() as connection:
            messages.sent_to_dead_letters(connection, ids)

    # The route

    def failed_in_row(self, route: str, *, at_most: int | None = None) -> int:
        """Count a failed trip, though not beyond ``at_most``; how many in a row there are. ``delivered``, if something was kept, and
        ``resume`` begin anew."""
        with self._connections.writing() as connection:
            return routes.failed_in_row(connection, checked_name(route, "route"), at_most)

    def pause(self, route: str, reason: str) -> None:
        """Form and depart no trips until ``resume``. The first reason stands."""
        _reason(reason, "pausing a route")
        with self._connections.writing() as connection:
            routes.pause(connection, checked_name(route, "route"), reason)

    def resume(self, route: str) -> None:
        """Let trips depart again. Failures in a row are counted anew, and so are runs that end before they claim their trip."""
        with self._connections.writing() as connection:
            routes.resume(connection, checked_name(route, "route"))

    def paused(self, route: str) -> tuple[datetime, str] | None:
        """Since when and why, or None."""
        with self._connections.reading() as connection:
            return routes.paused(connection, route)

    # By a person

    def redrive(
        self,
        route: str,
        ids: Sequence[int] | None = None,
        states: Sequence[MessageState] | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        reason: str,
    ) -> Redriven:
        """Let messages in ``states`` wait again, in their next generation; their held rows are discarded, the reason is kept. How many.

        One that a newer message of its subject has replaced becomes superseded. With ``ids`` all or,
        with Refused, none (one is another route's, in another state, or its body is purged); without, every one that has its body.
        Only those received from ``since`` until before ``until``. Discarded ones only if ``ids`` or ``states`` name them. Without ``ids``
        many short transactions: nobody waits long, and what broke off is said again.
        """
        _reason(reason, "a redrive")
        states = (WAIT_FOR_A_PERSON if ids is None else REDRIVEN) if states is None else states
        if not states or set(states) - set(REDRIVEN):
            raise Misconfigured(f"messages are redriven from {', '.join(REDRIVEN)}, not {', '.join(states) or 'nothing'}")
        return sum(self._decided(messages.redrive, route, ids, states, messages.Span(since, until), reason), Redriven())

    def discard(
        self,
        route: str,
        ids: Sequence[int] | None = None,
        states: Sequence[MessageState] = WAIT_FOR_A_PERSON,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        reason: str,
    ) -> int:
        """Give messages in ``states`` up for good, with their held rows; the reason is kept. How many.

        They hold their group no longer, are not sent to the dead letters any more, and do not wake when they arrive again, from there
        neither; a ``redrive`` that names them takes it back. With ``ids`` all or, with Refused, none (one is another route's, or in another
        state). Only those received from ``since`` until before ``until``. Without ``ids`` in many transactions, as ``redrive``.
        """
        _reason(reason, "discarding messages")
        if not states or set(states) - set(WAIT_FOR_A_PERSON):
            raise Misconfigured(f"messages are discarded from {', '.join(WAIT_FOR_A_PERSON)}, not {', '.join(states) or 'nothing'}")
        return sum(self._decided(messages.discard, route, ids, states, messages.Span(since, until), reason))

    def _decided(
        self,
        decide: Callable[..., Done],
        route: str,
        ids: Sequence[int] | None,
        states: Sequence[MessageState],
        received: messages.Span,
        reason: str,
    ) -> Iterator[Done]:
        """``decide`` for ``ids`` at once, else for all that are in ``states``, some at a time: it holds the route's row."""
        checked_name(route, "route")
        if ids is not None:
            with self._connections.writing() as connection:
                done = decide(connection, route, ids, states, received, reason, all_of=True)
            yield done
            return
        with self._connections.reading() as connection:
            every = messages.given_up(connection, route, states, received)
        for some in chunks(every, DECIDED_AT_ONCE):
            with self._connections.writing() as connection:
                done = decide(connection, route, some, states, received, reason, all_of=False)
            yield done

    def replay(
        self, route: str, since: datetime | None = None, until: datetime | None = None, ids: Sequence[int] | None = None
    ) -> list[int]:
        """What ``again`` could send: delivered messages that have their bodies, received from ``since`` until before ``until``, by id.

        Left out are those that a newer message of their subject has replaced.
        """
        with self._connections.reading() as connection:
            return messages.replayable(connection, route, messages.Span(since, until), ids)

    def again(self, ids: Sequence[int], reason: str) -> int:
        """Deliver delivered messages once more, under a receipt of their own (``Message.part``); the reason is kept. How many.

        All or, with Refused, none: one is not delivered, its body is purged, or a release that is not delivered has rows of it.
        """
        _reason(reason, "delivering again")
        with self._connections.writing() as connection:
            return messages.again(connection, ids, reason)

    def messages(
        self,
        route: str | None = None,
        state: MessageState | None = None,
        key: str | None = None,
        trip: str | None = None,
        since: datetime | None = None,
        limit: int = 50,
        after: int = 0,
    ) -> list[Message]:
        """In the order of their ids, ``limit`` at a time: ``after`` is the last id seen. ``since``: received then or later."""
        with self._connections.reading() as connection:
            return messages.listed(connection, messages.Wanted(route, state, key, trip, since), limit, after)

    def decisions(self, ids: Sequence[int]) -> dict[int, list[Decision]]:
        """What people decided about these messages, the newest last; a message about which nobody did is not in it."""
        with self._connections.reading() as connection:
            return decisions.of_messages(connection, ids)

    def counts(self, route: str) -> Counts:
        with self._connections.reading() as connection:
            return messages.counts(connection, route)

    def purge(self, route: str, before: datetime, keep_keys_after: datetime) -> Purged:
        """Take the bodies of messages that ended before ``before``, and forget those that ended before ``keep_keys_after``, keys
        included: from then on older new ones are held.

        Ended is delivered, superseded or discarded; stranded, quarantined and held ones wait for a person and keep all. Runs in many small
        transactions: whoever boards meanwhile does not wait for it. Misconfigured if ``keep_keys_after`` is later than ``before``.
        """
        _longer_than_bodies(route, before, keep_keys_after)
        return messages.purge(self._connections, route, before, keep_keys_after)

    def purgeable(self, route: str, before: datetime, keep_keys_after: datetime) -> Purged:
        """What ``purge`` would take now."""
        _longer_than_bodies(route, before, keep_keys_after)
        with self._connections.reading() as connection:
            return messages.purgeable(connection, route, before, keep_keys_after)

    def horizon(self, route: str) -> datetime | None:
        """Keys of messages that ended before this may have been purged; None if none were."""
        with self._connections.reading() as connection:
            return (routes.row_of(connection, route) or {}).get("horizon")


def _longer_than_bodies(route: str, before: datetime, keep_keys_after: datetime) -> None:
    checked_name(route, "route")
    if keep_keys_after > before:
        raise Misconfigured(f"keys are kept longer than bodies: {keep_keys_after:%Y-%m-%d} is later than {before:%Y-%m-%d}")


def _reason(reason: str, what: str) -> None:
    if not reason.strip():
        raise Misconfigured(f"{what} needs a reason: it is kept")


def _at_least_one(number: int, what: str) -> None:
    if number < 1:
        raise Misconfigured(f"{what} must be at least 1, not {number}")
