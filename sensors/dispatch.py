"""What a queue's sensor does at each tick: settle, board, dispatch. No Dagster here, and no route: plain values and a few functions.

    settle     attempts that failed, died or fell silent are ended first (revoked where publishing commits), then judged:
               ride again, split, be stranded, or pause the route
    board      receive, keep in the depot, commit, and only then delete from the queue
    dispatch   form trips of what waits, and say for which of them a run is to be asked

Every step is safe to do twice, and by two dispatchers at once: the depot's locks and the destination's keys decide.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from resources.depot.entries import Attempt, Trip, TripState
from resources.depot.inbox import Inbox
from resources.depot.mail import Arrival, BackingOff, Boarded, Departure, Message, Riders, Taken, Underway
from resources.errors import BusError, Locked, Misconfigured, Poison
from resources.queue_seam import MessageQueue, Outgoing, Received
from sensors.ahead import Ahead
from sensors.envelopes import NO_GROUP, Fetch, carried
from sensors.judging import BREAKER, PROBES, Decision, Pause, Policy, Retry, Split, Strand, Unclaimed, judge, judge_unclaimed, probe
from sensors.keeping import Keeping, Kept, total

CLAIM_SECONDS = 120.0
"""A run that was asked for and has not claimed its trip after so long is asked for again; the wait doubles with each that never came."""
RUN_SECONDS = 5.0
"""A run that has not claimed its trip after so long is looked up, once a tick: it may have ended before it could."""
POLL_SECONDS = 10.0
"""How long a tick waits for a first message. Some deployments end a tick after 15 s."""
BUSY_SECONDS = 4.0
"""How long a tick goes on receiving while messages come without a pause; then those it has leave: the more of them, the fewer trips."""
LONGEST_WAIT_SECONDS = 3600.0
LOCK_SECONDS, NEXT_LOCK_SECONDS = 2.0, 0.2
"""How long settling waits for a lock that somebody holds: the first one in a tick, and each further one. What held a trip goes on holding
it; the others are not to wait for that, nor the tick to be cut off for its length."""
LOOK_SECONDS = 1.0
"""How often a tick looks after trips that are under way."""
RECEIVE_AT_ONCE = 200
"""So many are committed, and then deleted, together: the fewer, the sooner they leave their queue; the more, the fewer commits."""
ROOM = 2
"""Messages are received as long as the depot holds fewer than so many times what fits in flight."""
ASIDE = 4
"""So many times what fits in flight may fail again and again without taking another trip's place, though none was delivered after them:
what each of them waits for may be something of its own, or something that is down for all."""
DEAD_LETTERS_AT_ONCE = 100
REFUSALS = 10
"""So many dead letters in a row that their queue refuses, and none that it takes, are not the fault of the messages."""


@dataclass(frozen=True)
class Above:
    """What is passed down from those who know routes and runs.

    ``unwrap``, ``fetch``, ``archive``  as in :class:`sensors.keeping.Keeping`.
    ``corrected``    note in the archive which messages the depot has taken instead of those that it had under their keys.
    ``end``          end an attempt for good, waiting so many seconds for a lock, then Locked; None, or what the trip is if it turned out
                     to have published: then the depot knows, and it is delivered, or stuck and only rolls forward.
    ``unclaimed``    of a trip that nobody has claimed, and its newest attempt: the runs since then, if the one that was asked for last
                     has ended and none may still claim it; else None.
    ``run_is_over``  whether the run that makes an attempt has ended.
    ``abandoned``    whether nobody makes an attempt any more: its process is gone, or its lease ran out.
    ``report_dead``  close the run of an attempt that was ended, where it still seems to run.
    """

    unwrap: Callable[[Received, Fetch], Sequence[Arrival]]
    fetch: Fetch
    archive: Callable[[Sequence[Arrival]], None]
    corrected: Callable[[Sequence[Taken]], None]
    end: Callable[[Trip, Attempt, float], TripState | None]
    unclaimed: Callable[[Trip, Attempt | None], Unclaimed | None]
    run_is_over: Callable[[str], bool]
    abandoned: Callable[[Attempt], bool]
    report_dead: Callable[[Attempt], None]


@dataclass
class Told:
    """What a tick did, for one line. ``held``: trips that it could not settle, as somebody holds a lock: it does not try them again."""

    boarded: Boarded = field(default_factory=Boarded)
    departed: int = 0
    returned: int = 0
    split: int = 0
    stranded: int = 0
    forward: int = 0
    later: int = 0
    notes: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        b = self.boarded
        counts = {
            "boarded": b.waiting,
            "duplicates": b.duplicates,
            "of them with another body": b.other_bodies,
            "redriven": b.redriven,
            "superseded": b.superseded + b.replaced,
            "quarantined": b.quarantined,
            "ignored": b.ignored,
            "held": b.held,
            "departed": self.departed,
            "returned": self.returned,
            "split": self.split,
            "stranded": self.stranded,
            "rolled forward": self.forward,
            "left on the queue for want of time": self.later,
        }
        said = [f"{name} {number}" for name, number in counts.items() if number]
        return ", ".join(said + self.notes) or "nothing waits"


# Settling


def settle(policy: Policy, inbox: Inbox, above: Above, told: Told, *, look_up_runs: bool = True) -> None:
    """See to every trip that is under way. What one trip raises does not keep the others from being settled; the first error is raised,
    but a lock that somebody holds is only told.

    ``look_up_runs``: also of trips that nobody has claimed yet.
    """
    errors: list[BusError] = []
    for found in inbox.underway(policy.route):
        try:
            if found.trip.state == "departed":
                _settle_departed(policy, inbox, above if look_up_runs else None, told, found)
            elif found.trip.id not in told.held:
                _settle_one(policy, inbox, above, told, found)
        except Locked as locked:
            told.held.add(found.trip.id)
            told.notes.append(f"trip {found.trip.id} cannot be settled now: {locked.message}")
        except BusError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _settle_departed(policy: Policy, inbox: Inbox, above: Above | None, told: Told, found: Underway) -> None:
    trip, waited = found.trip, found.departed_seconds
    ended = above.unclaimed(trip, found.attempt) if above and waited > RUN_SECONDS else None
    if ended is not None:
        _launch_again(policy, inbox, told, trip, ended)
    elif waited > _claim_seconds(trip, found.attempt):
        told.returned += inbox.retry(trip.id, 0, spent=None, launch=trip.launches)


def _launch_again(policy: Policy, inbox: Inbox, told: Told, trip: Trip, ended: Unclaimed) -> None:
    decision, error = judge_unclaimed(ended), f"its run ended before it claimed the trip: {ended.error}"
    delay = decision.delay_seconds if isinstance(decision, Retry) else 0
    if not inbox.retry(trip.id, delay, spent=None, launch=trip.launches, error=error):
        return
    told.returned += 1
    told.notes.append(f"trip {trip.id}: {error}")
    if isinstance(decision, Pause):
        inbox.pause(policy.route, f"trip {trip.id}, {ended.runs} times in a row: {error}")
        told.notes.append("paused the route")


def _settle_one(policy: Policy, inbox: Inbox, above: Above, told: Told, found: Underway) -> None:
    trip, attempt = found.trip, found.attempt
    if attempt is None or _is_alive(trip, attempt, above):
        return
    if trip.state == "stuck" and attempt.ended_at is not None:
        return  # it departs again when its time has come: until then its databases have nothing new to say
    if attempt.outcome != "revoked":
        published = above.end(trip, attempt, NEXT_LOCK_SECONDS if told.held else LOCK_SECONDS)
        above.report_dead(attempt)
        if published:
            told.forward += published == "delivered"
            return
    if trip.state == "stuck":
        return
    if trip.cancelled:
        riders = inbox.riders(trip.id, trip.launches)
        inbox.cancel(trip.id, trip.cancelled)
        told.stranded += len(riders.messages) if riders else 0
        return
    _decide(policy, inbox, told, found, attempt)


def _claim_seconds(trip: Trip, newest: Attempt | None) -> float:
    """How long a run may take to claim its trip. Runs that did claim it, however they ended, are no reason to wait longer."""
    unclaimed = trip.launches - (newest.attempt if newest else 0)
    return CLAIM_SECONDS * 2 ** max(0, min(unclaimed - 1, 6))


def _is_alive(trip: Trip, attempt: Attempt, above: Above) -> bool:
    if attempt.ended_at is not None or trip.state == "failed":
        return False
    return not above.run_is_over(attempt.run) and not above.abandoned(attempt)


def _decide(policy: Policy, inbox: Inbox, told: Told, found: Underway, attempt: Attempt) -> None:
    trip, kind = found.trip, attempt.kind or "died"
    if (riders := inbox.riders(trip.id, trip.launches)) is None:
        return
    error = trip.error or attempt.error or "the process that drove it died"
    decision = judge(trip, riders, kind, attempt.culprit, policy)
    if kind != "transient":
        decision = _breaker(policy, inbox, trip, riders, attempt.culprit, decision)
    if isinstance(decision, Retry):
        told.returned += inbox.retry(trip.id, decision.delay_seconds, spent=decision.spent, launch=trip.launches)
    elif isinstance(decision, Split):
        told.split += bool(inbox.split(trip.id, decision.parts, launch=trip.launches))
    elif isinstance(decision, Pause):
        inbox.pause(policy.route, f"trip {trip.id}: {error}")
        told.notes.append("paused the route")
        told.returned += inbox.retry(trip.id, 0, spent=None, launch=trip.launches)
    else:
        halt = policy.halt_on_stranded
        done = inbox.strand(trip.id, decision.messages, error, to_dead_letters=True, halt_on_stranded=halt, launch=trip.launches)
        told.stranded += len(decision.messages) * done


def _breaker(policy: Policy, inbox: Inbox, trip: Trip, riders: Riders, culprit: int | None, decision: Decision) -> Decision:
    """Where messages are suspected, count the trip's first failure; from :data:`BREAKER` in a row on strand nothing.

    Trips of several messages fail for one of them, however many do: they count up to there, and part with a single message that tells
    more. Those that fail by themselves count on, and after :data:`PROBES` the route is paused. A lone group rides on by its beginning:
    until that is one message, its failures in a row are one failure.
    """
    if isinstance(decision, Pause) or (isinstance(decision, Retry) and decision.spent != "failure"):
        return decision
    if isinstance(decision, Split) and len(decision.parts) == 1:
        return decision
    if trip.failures == 0:
        in_row = inbox.failed_in_row(policy.route, at_most=BREAKER if isinstance(decision, Split) else BREAKER + PROBES)
    else:
        in_row = inbox.counts(policy.route).failures_in_row
    if isinstance(decision, Split):
        return probe(riders) if in_row >= BREAKER and culprit is None else decision
    if isinstance(decision, Strand):
        return Pause() if in_row >= BREAKER or inbox.paused(policy.route) else decision
    return Pause() if in_row >= BREAKER + PROBES else decision


# Boarding


def room_for(policy: Policy, inbox: Inbox) -> int:
    """How many messages the depot may receive. Not exact where two dispatchers board at once: each may fill what it counted.

    What is aboard of trips that fail, or waits behind them in its group, takes no room until such trips hold every place: which groups
    can ride nobody knows before they are received.
    """
    held = inbox.moving(policy.route) if policy.halt_on_stranded else inbox.live(policy.route)
    flight = policy.batch * policy.max_in_flight
    room = ROOM * flight - held
    if room <= 0:
        found = backing_off(inbox, policy.route, policy.max_in_flight)
        room += found.alone + (0 if holds_all(found, policy.max_in_flight) else found.perhaps)
    return room


def backing_off(inbox: Inbox, route: str, max_in_flight: int) -> BackingOff:
    return inbox.backing_off(route, aside=ASIDE * max_in_flight)


def holds_all(found: BackingOff, max_in_flight: int) -> bool:
    """Whether trips that fail have taken every place: then no other is formed before one of them is over."""
    return found.trips - found.aside >= ROOM * max_in_flight


def board(policy: Policy, inbox: Inbox, queue: Ahead, above: Above, wait_seconds: float, room: int, *, enough: bool = False) -> Kept:
    """Receive once and keep what came, as far as there is ``room``. ``enough``: ask for no more."""
    if room <= 0:
        time.sleep(wait_seconds)
        return Kept()
    received = queue.receive(room, wait_seconds, enough=enough)
    boards = partial(inbox.board, policy.route, corrected=above.corrected)
    return Keeping(above.unwrap, above.fetch, above.archive, boards, queue.delete).keep(received)


# Dispatching


def dispatch(policy: Policy, inbox: Inbox, *, only_full: bool = False) -> list[Departure]:
    """Form trips of what waits, and give those to ask a run for. ``only_full``: more messages are just coming, wait for them."""
    inbox.form(
        policy.route,
        batch=policy.batch,
        max_wait_seconds=LONGEST_WAIT_SECONDS if only_full else policy.max_wait_seconds,
        max_trips=ROOM * policy.max_in_flight,
        aside=ASIDE * policy.max_in_flight,
        halt_on_stranded=policy.halt_on_stranded,
        parameters=policy.parameters,
    )
    return inbox.depart(policy.route, max_in_flight=policy.max_in_flight, limit=policy.max_in_flight)


def send_dead_letters(policy: Policy, inbox: Inbox, dead_letters: MessageQueue) -> list[str]:
    """Copy stranded messages to their queue. Killed between sending and noting it sends twice: who redrives both boards one.

    One that the queue does not take (too large, no text) keeps no other back: it stays stranded in the depot, without a copy. Returns
    what there is to say of those.
    """
    said = []
    while stranded := inbox.dead_letters(policy.route, DEAD_LETTERS_AT_ONCE):
        try:
            dead_letters.send([_dead_letter(message, dead_letters.is_fifo) for message in stranded])
            inbox.sent_to_dead_letters([message.id for message in stranded])
        except (Poison, Misconfigured):
            said += _sent_one_by_one(inbox, dead_letters, stranded)
    return said


def _sent_one_by_one(inbox: Inbox, dead_letters: MessageQueue, stranded: Sequence[Message]) -> list[str]:
    taken, refused = 0, dict[int, BusError]()
    for message in stranded:
        try:
            dead_letters.send([_dead_letter(message, dead_letters.is_fifo)])
            inbox.sent_to_dead_letters([message.id])
            taken += 1
        except (Poison, Misconfigured) as error:
            refused[message.id] = error
        wrong = [error for error in refused.values() if isinstance(error, Misconfigured)]
        if wrong and not taken and len(refused) == min(len(stranded), REFUSALS):
            raise wrong[0]  # what it says of every message is wrong with the queue
    inbox.sent_to_dead_letters(list(refused))
    return [f"message {number} has no copy among the dead letters: {error}" for number, error in refused.items()]


def _dead_letter(message: Message, is_fifo: bool) -> Outgoing:
    """With its identity and its group, so that it is known again however it comes back, and keeps its place."""
    said = carried(message.key, message.generation, message.event_at, message.group)
    body = (message.body or b"").decode("utf-8", "backslashreplace")
    if not is_fifo:
        return Outgoing(body, said)
    once = hashlib.sha256(f"{message.key}/{message.generation}".encode()).hexdigest()
    return Outgoing(body, said, group=message.group or NO_GROUP, deduplication_id=once)


# A tick


@dataclass(frozen=True)
class Tick:
    """What came of a tick: trips to ask a run for, and what happened in one line. ``unread``: messages came whose bodies could not be
    fetched, or not in time; they are hidden on their queue for a while."""

    departures: tuple[Departure, ...]
    said: str
    unread: bool = False


def tick(
    policy: Policy,
    inbox: Inbox,
    queue: MessageQueue,
    above: Above,
    *,
    dead_letters: MessageQueue | None = None,
    poll_seconds: float,
) -> Tick:
    """One tick: ends when a trip is ready to depart and nothing more comes at once, or when ``poll_seconds`` have brought nothing.

    While trips are under way it looks after them every :data:`LOOK_SECONDS`; else it just waits for a message. While the route is
    paused it waits as long, and receives nothing: messages are safe on their queue. Raises what the depot or the queue raises, with the
    route; a trip that cannot be settled, or a body that cannot be fetched, does not keep others from departing.
    """
    ticking = _Ticking(policy, inbox, above, poll_seconds)
    try:
        with Ahead(queue, RECEIVE_AT_ONCE) as ahead:
            ticking.until_ready(ahead)
        if dead_letters is not None:
            ticking.told.notes += send_dead_letters(policy, inbox, dead_letters)
    except BusError as error:
        ticking.failed = error
    try:
        return ticking.done()
    except BusError as error:
        raise error.at(route=policy.route) from error.__cause__


@dataclass
class _Ticking:
    """A tick under way. ``fresh``: messages that came since trips were formed. ``room``: for how many there is, counted anew when it is
    used up. ``failed``: what went wrong while the rest went on."""

    policy: Policy
    inbox: Inbox
    above: Above
    poll_seconds: float
    told: Told = field(default_factory=Told)
    departures: list[Departure] = field(default_factory=list)
    fresh: int = 0
    room: int = 0
    failed: BusError | None = None
    unread: bool = False
    has_looked_up_runs: bool = False

    def until_ready(self, queue: Ahead) -> None:
        """Settle, board and dispatch, until trips may depart and no more messages come, or time is up. A route that is paused only settles.

        Trips are not parted from messages that are just coming: not full ones depart when no more comes. The queue is asked once where
        trips depart anew, though no other may depart: such may be due in every tick.
        """
        policy, inbox = self.policy, self.inbox
        began, coming_since, more, asked = time.monotonic(), None, False, False
        self.settle()
        self.dispatch(only_full=False)
        while True:
            left = began + self.poll_seconds - time.monotonic()
            if paused := inbox.paused(policy.route):
                if more or self.departures or left <= 0:
                    self.told.notes.append(f"paused since {paused[0]:%Y-%m-%d %H:%M} UTC: {paused[1]}")
                    return
                self.wait_while_paused(min(left, LOOK_SECONDS))
                continue
            wait = 0.0 if coming_since or self.departures else _patience(policy, inbox, left)
            # Bodies that are slow to fetch fill the tick: what was received ahead is as much as it can do.
            enough = _is_enough(policy, self.departures, coming_since) or (more and self.told.later > 0)
            departs_anew = any(departure.launch > 1 for departure in self.departures)
            more = self.board(queue, wait, enough and (asked or not departs_anew))
            asked = True
            coming_since = (coming_since or time.monotonic()) if more else None
            if not more:
                self.settle()
            self.dispatch(only_full=more or (enough and bool(self.departures)))
            if not more and (self.departures or left <= 0):
                return

    def wait_while_paused(self, seconds: float) -> None:
        """As an idle tick waits for a message: the daemon is not to come back at once. Trips depart if the route was resumed meanwhile."""
        time.sleep(seconds)
        self.settle()
        self.dispatch(only_full=False)

    def settle(self) -> None:
        look_up, self.has_looked_up_runs = not self.has_looked_up_runs, True
        try:
            settle(self.policy, self.inbox, self.above, self.told, look_up_runs=look_up)
        except BusError as error:
            self.failed = error

    def board(self, queue: Ahead, wait_seconds: float, enough: bool) -> bool:
        """Whether messages came."""
        if self.room <= 0:
            self.room = room_for(self.policy, self.inbox)
        kept = board(self.policy, self.inbox, queue, self.above, wait_seconds, self.room, enough=enough)
        self.told.boarded, self.failed = total(self.told.boarded, kept.boarded), kept.failed or self.failed
        self.told.later += kept.later
        self.unread |= kept.failed is not None or kept.later > 0
        came = kept.boarded.waiting + kept.boarded.redriven
        self.fresh, self.room = self.fresh + came, self.room - came
        return kept.boarded != Boarded()

    def dispatch(self, *, only_full: bool) -> None:
        if only_full and self.fresh < self.policy.batch:
            return  # no trip can be full yet
        self.departures += dispatch(self.policy, self.inbox, only_full=only_full)
        self.fresh = 0

    def done(self) -> Tick:
        policy, told = self.policy, self.told
        if self.failed is not None and not self.departures:
            raise self.failed
        told.departed = len(self.departures)
        if not self.departures and policy.halt_on_stranded and (behind := self.inbox.live(policy.route) - self.inbox.moving(policy.route)):
            told.notes.append(f"{behind} wait behind stranded messages of their groups")
        if not self.departures and (found := backing_off(self.inbox, policy.route, policy.max_in_flight)).trips:
            if holds_all(found, policy.max_in_flight):
                told.notes.append(f"to be tried again {found.waiting}, and all others wait for them")
            elif found.waiting and not told.returned:
                told.notes.append(f"to be tried again {found.waiting}")
        said = str(told) + (f"; then: {self.failed}" if self.failed else "")
        return Tick(tuple(self.departures), said, self.unread)


def _is_enough(policy: Policy, departures: Sequence[Departure], coming_since: float | None) -> bool:
    """Whether trips are to leave now, though more messages come: nothing more may depart, or messages have come long enough."""
    waited = time.monotonic() - coming_since if coming_since else 0.0
    return len(departures) >= policy.max_in_flight or waited >= BUSY_SECONDS


def _patience(policy: Policy, inbox: Inbox, left: float) -> float:
    """How long to wait for a message: not beyond the next look at trips that are under way."""
    return max(0.0, min(left, LOOK_SECONDS) if inbox.live(policy.route) else left)
