"""The life of messages and trips against a model in plain Python: whatever happens in whatever order, on SQLite and on Postgres."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from resources.depot import schema
from resources.depot.entries import AlreadyDelivered, AttemptLive, TripOver
from resources.depot.mail import Arrival, Purged, Remembered
from resources.depot.store import Depot
from resources.errors import Refused

ROUTE = "orders"
LIVE = ("formed", "departed", "driving", "failed", "stuck")
UNDERWAY = ("departed", "driving", "failed", "stuck")
KEYS = st.integers(0, 11)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def group_of(key):
    """Two groups, and some messages without."""
    return {0: "a", 1: "b"}.get(key % 4)


def arrival(key, **more):
    """Of the keys without a group some are about one subject, the higher the newer."""
    about = {"subject": "s", "sequencer": f"{key:02}"} if key % 4 == 2 else {}
    return Arrival(f"k{key}", b"x", group=group_of(key), **about, **more)


@dataclass
class Mail:
    id: int
    key: int
    state: str = "waiting"
    generation: int = 0
    part: str = ""
    trip: str | None = None
    duplicates: int = 0
    to_dead_letters: bool = False

    @property
    def group(self):
        return group_of(self.key)

    @property
    def has_subject(self):
        return self.key % 4 == 2


@dataclass
class Journey:
    state: str = "formed"
    launches: int = 0
    failures: int = 0
    deaths: int = 0
    asked_to_stop: bool = False
    published: bool = False
    attempts: list[str] = field(default_factory=list)
    """How each ended; 'live' is the newest that has not."""

    @property
    def is_driven(self):
        return self.attempts[-1:] == ["live"]

    @property
    def may_be_settled(self):
        return self.state in UNDERWAY and not self.is_driven and not (self.asked_to_stop and not self.published)


class Life(RuleBasedStateMachine):
    """Each rule does one thing to the depot and to the model, and compares what the depot said."""

    url: str

    def __init__(self):
        super().__init__()
        self.depot = Depot(self.url)
        self.inbox = self.depot.inbox
        self.depot.upgrade()
        wipe(self.depot)
        self.mail: dict[int, Mail] = {}
        self.trips: dict[str, Journey] = {}
        self.duplicates = self.ignored = self.runs = 0
        self.paused = self.purged = False
        self.orders: dict[str, list[int]] = {"a": [], "b": []}
        """Per group the ids in the order in which they first were delivered."""

    def teardown(self):
        self.depot.close()

    # The model's own words

    def aboard(self, trip):
        return [one for one in self.mail.values() if one.state == "aboard" and one.trip == trip]

    def of_state(self, *states):
        return [one for one in self.mail.values() if one.state in states]

    def trips_in(self, *states):
        return [trip for trip, journey in self.trips.items() if journey.state in states]

    def pick(self, data, trips):
        return data.draw(st.sampled_from(sorted(trips, key=list(self.trips).index)))

    def again(self, one):
        one.state, one.trip, one.generation, one.to_dead_letters = "waiting", None, one.generation + 1, False

    def is_replaced(self, one):
        others = [other for other in self.mail.values() if other.has_subject and other.state != "discarded"]
        return one.has_subject and any(other.key > one.key for other in others)

    def supersede(self, arrived):
        """Of a subject that arrived only the newest wait on: the keys that arrived too late, and how many waited in vain."""
        older = [one for one in self.of_state("waiting") if self.is_replaced(one)] if any(key % 4 == 2 for key in arrived) else []
        for one in older:
            one.state = "superseded"
        return {one.key for one in older if one.key in arrived}, sum(one.key not in arrived for one in older)

    def boardable(self, batch, halt):
        def is_in_the_way(other, one):
            return other.group == one.group is not None and (
                other.state == "aboard" or (halt and other.state == "stranded" and other.id < one.id)
            )

        waiting = self.of_state("waiting")
        return [one for one in waiting if not any(is_in_the_way(other, one) for other in self.mail.values())][:batch]

    # What happens

    @rule(keys=st.lists(KEYS, max_size=8), problem=st.booleans(), horizon=st.booleans())
    def board(self, keys, problem, horizon):
        arrivals, came = [], dict[int, str]()
        for key in keys:
            broken, old = problem and key == 11, key == 7
            arrivals.append(arrival(key, problem="broken" if broken else None, sent_at=LONG_AGO if old else None))
            known = self.mail_of(key)
            if known is None:
                came[key] = "quarantined" if broken else "held" if old and (horizon or self.purged) else "waiting"
                self.mail[key] = Mail(0, key, came[key])
            elif known.state in ("stranded", "quarantined") and not broken and key not in came:
                self.again(known)
                came[key] = "redriven"
            else:
                known.duplicates += 1
                self.duplicates += 1
        late, replaced = self.supersede(came)
        expected = Counter("superseded" if key in late else what for key, what in came.items())
        expected.update(duplicates=len(keys) - len(came), replaced=replaced)
        assert +Counter(asdict(self.inbox.board(ROUTE, arrivals, 86_400 if horizon else None))) == +expected
        self.learn_ids()

    @rule(keys=st.lists(KEYS, max_size=4), applied=st.sets(KEYS))
    def rebuild(self, keys, applied):
        """A key that is known stays as it is; what the destination has is delivered."""
        fresh = [key for key in dict.fromkeys(keys) if self.mail_of(key) is None]
        for key in fresh:
            self.mail[key] = Mail(0, key, "delivered" if key in applied else "waiting")
        late, _ = self.supersede(fresh)
        expected = Counter("superseded" if key in late else self.mail[key].state for key in fresh)
        remembered = {f"k{key}": Remembered("", "lost") for key in applied}
        assert self.inbox.rebuild(ROUTE, [arrival(key) for key in keys], remembered) == expected
        self.learn_ids()

    @precondition(lambda self: self.mail)
    @rule(data=st.data())
    def correct(self, data):
        """What neither rides nor has ended waits again with another body."""
        known = data.draw(st.sampled_from(sorted(self.mail.values(), key=lambda one: one.key)))
        [message] = self.inbox.messages(ROUTE, key=f"k{known.key}")
        may = known.state in ("waiting", "stranded", "quarantined", "held")
        assert self.inbox.correct(message, arrival(known.key)) is may
        assert self.inbox.correct(message, arrival(known.key)) is False
        if may:
            self.again(known)
            self.supersede([known.key])

    def learn_ids(self):
        for message in self.inbox.messages(limit=1000):
            self.mail[int(message.key[1:])].id = message.id

    @precondition(lambda self: self.of_state("delivered", "superseded", "discarded"))
    @rule()
    def purge(self):
        """What has ended is forgotten, keys included; who waits for a person is not."""
        ended, soon = self.of_state("delivered", "superseded", "discarded"), datetime.now(UTC) + timedelta(days=1)
        assert self.inbox.purge(ROUTE, soon, soon) == Purged(messages=len(ended))
        self.purged = True
        for one in ended:
            del self.mail[one.key]

    def mail_of(self, key):
        return self.mail.get(key)

    @rule()
    def ignore(self):
        self.inbox.board(ROUTE, [Arrival("test", b"", ignored="s3:TestEvent")])
        self.ignored += 1

    @rule(batch=st.integers(1, 6), max_trips=st.integers(1, 4), halt=st.booleans())
    def form(self, batch, max_trips, halt):
        before = {trip.id for trip in self.depot.trips(limit=1000)}
        formed = self.inbox.form(ROUTE, batch=batch, max_wait_seconds=0, max_trips=max_trips, halt_on_stranded=halt)
        new = sorted((trip for trip in self.depot.trips(limit=1000) if trip.id not in before), key=lambda trip: trip.created_at)
        expected = 0
        self.sort_mail()
        while not self.paused and len(self.trips_in(*LIVE)) < max_trips and (some := self.boardable(batch, halt)):
            assert expected < len(new), "a trip is missing"
            self.trips[new[expected].id] = Journey()
            for one in some:
                one.state, one.trip = "aboard", new[expected].id
            expected += 1
        assert formed == expected == len(new)

    def sort_mail(self):
        self.mail = dict(sorted(self.mail.items(), key=lambda pair: pair[1].id))

    @rule(batch=st.integers(1, 3), halt=st.booleans())
    def form_for_run(self, batch, halt):
        self.runs += 1
        trip = self.inbox.form_for_run(ROUTE, f"person-{self.runs}", batch, halt_on_stranded=halt)
        self.sort_mail()
        some = self.boardable(batch, halt)
        assert (trip is None) == (not some)
        if trip is not None:
            self.trips[trip.id] = Journey("departed", launches=1)
            for one in some:
                one.state, one.trip = "aboard", trip.id

    @rule(max_in_flight=st.integers(1, 3), limit=st.integers(1, 3))
    def depart(self, max_in_flight, limit):
        gone = self.inbox.depart(ROUTE, max_in_flight=max_in_flight, limit=limit)
        room = 0 if self.paused else min(limit, max_in_flight - len(self.trips_in("departed", "driving")))
        ready = [trip for trip in self.trips_in("formed", "stuck") if self.trips[trip].state == "formed" or not self.trips[trip].is_driven]
        expected = ready[: max(room, 0)]
        assert [one.trip for one in gone] == expected
        for one in gone:
            journey = self.trips[one.trip]
            journey.launches += 1
            assert one.launch == journey.launches
            assert one.messages == len(self.aboard(one.trip))
            if journey.state == "formed":
                journey.state = "departed"
        # A stuck trip may depart again in a minute; here at once.
        change(self.depot, sa.update(schema.trips).values(not_before=None))

    @precondition(lambda self: self.trips)
    @rule(data=st.data())
    def claim(self, data):
        trip = self.pick(data, self.trips)
        journey = self.trips[trip]
        self.runs += 1
        if journey.state in ("split", "stranded", "cancelled", "empty"):
            refusal = TripOver
        elif journey.state == "delivered":
            refusal = AlreadyDelivered
        elif journey.is_driven:
            refusal = AttemptLive
        elif journey.asked_to_stop and not journey.published:
            refusal = TripOver
        else:
            assert self.depot.claim(trip, f"run-{self.runs}", lease_seconds=60).attempt == len(journey.attempts) + 1
            journey.attempts.append("live")
            journey.state = "stuck" if journey.state == "stuck" else "driving"
            return
        with pytest.raises(refusal):
            self.depot.claim(trip, f"run-{self.runs}", lease_seconds=60)

    def driven(self):
        return [trip for trip, journey in self.trips.items() if journey.is_driven]

    @precondition(lambda self: self.driven())
    @rule(data=st.data(), ends=st.booleans())
    def fail(self, data, ends):
        """The run says that it failed; perhaps it ends its attempt too, perhaps settling must."""
        trip = self.pick(data, self.driven())
        journey = self.trips[trip]
        number = len(journey.attempts)
        found = self.depot.finish_trip(trip, "failed", "boom", attempt=number, kind="poison")
        if journey.state not in ("delivered", "split", "stranded", "cancelled", "empty"):
            journey.state = "stuck" if journey.published else "failed"
            journey.asked_to_stop &= not journey.published
        assert found.state == journey.state
        if ends:
            self.depot.end_attempt(trip, number, "failed", kind="poison")
            journey.attempts[-1] = "failed"

    @precondition(lambda self: self.driven())
    @rule(data=st.data())
    def renew(self, data):
        trip = self.pick(data, self.driven())
        journey = self.trips[trip]
        assert self.depot.renew(trip, len(journey.attempts), 60) is (not journey.asked_to_stop)

    @precondition(lambda self: self.driven())
    @rule(data=st.data())
    def revoke(self, data):
        trip = self.pick(data, self.driven())
        assert self.depot.end_attempt(trip, len(self.trips[trip].attempts), "revoked") is True
        self.trips[trip].attempts[-1] = "revoked"

    @precondition(lambda self: self.driven())
    @rule(data=st.data(), everywhere=st.booleans(), reject=st.booleans())
    def publish(self, data, everywhere, reject):
        """The pivot; ``everywhere``: in the other databases too."""
        trip = self.pick(data, self.driven())
        journey = self.trips[trip]
        if journey.state in ("empty", "delivered") or (journey.state == "failed" and not journey.published):
            return
        self.depot.record_publication(trip, len(journey.attempts), "warehouse", {})
        journey.published, journey.asked_to_stop = True, False
        if not everywhere:
            return
        riding = [message.id for message in self.inbox.messages_of(trip)]
        by_id = {one.id: one for one in self.mail.values()}
        quarantined = {riding[0]: "all rows"} if reject and riding else {}
        self.inbox.delivered(trip, {}, quarantined)
        self.depot.end_attempt(trip, len(journey.attempts), "published")
        assert self.depot.finish_trip(trip, "delivered").state == "delivered"
        journey.attempts[-1], journey.state = "published", "delivered"
        for number in riding:
            one = by_id[number]
            one.state = "quarantined" if number in quarantined else "delivered"
            if one.group and one.generation == 0:
                self.orders[one.group].append(number)

    @precondition(lambda self: self.trips_in(*UNDERWAY))
    @rule(data=st.data(), spent=st.sampled_from(["failure", "death", None]))
    def retry(self, data, spent):
        trip = self.pick(data, self.trips_in(*UNDERWAY))
        journey = self.trips[trip]
        assert self.inbox.retry(trip, 0, spent=spent, launch=journey.launches) is journey.may_be_settled
        if journey.may_be_settled:
            journey.state = "stuck" if journey.published or journey.state == "stuck" else "formed"
            journey.failures += spent == "failure"
            journey.deaths += spent == "death"
        change(self.depot, sa.update(schema.trips).values(not_before=None))  # else it departs behind those that were ready before

    @precondition(lambda self: any(self.aboard(trip) for trip in self.trips_in(*UNDERWAY)))
    @rule(data=st.data())
    def split(self, data):
        """By group; of every group and of the rest a prefix rides on, what follows waits."""
        trip = self.pick(data, [trip for trip in self.trips_in(*UNDERWAY) if self.aboard(trip)])
        journey, parts = self.trips[trip], []
        for group in ("a", "b", None):
            ids = sorted(one.id for one in self.aboard(trip) if one.group == group)
            if keep := ids[: data.draw(st.integers(0, len(ids)))]:
                parts.append(keep)
        if journey.published and journey.may_be_settled:
            with pytest.raises(Refused, match="rolls forward"):
                self.inbox.split(trip, parts)
            return
        made = self.inbox.split(trip, parts)
        if not journey.may_be_settled:
            assert made == []
            return
        assert len(made) == len(parts)
        journey.state = "split"
        self.move(trip, dict(zip(made, parts, strict=True)))

    def move(self, trip, parts):
        place = {number: made for made, part in parts.items() for number in part}
        self.trips |= {made: Journey() for made in parts}
        for one in self.aboard(trip):
            one.trip = place.get(one.id)
            one.state = "aboard" if one.trip else "waiting"

    @precondition(lambda self: any(self.aboard(trip) for trip in self.trips_in(*UNDERWAY)))
    @rule(data=st.data(), copy=st.booleans(), halt=st.booleans())
    def strand(self, data, copy, halt):
        trip = self.pick(data, [trip for trip in self.trips_in(*UNDERWAY) if self.aboard(trip)])
        journey, riding = self.trips[trip], sorted(self.aboard(trip), key=lambda one: one.id)
        given_up = data.draw(st.lists(st.sampled_from([one.id for one in riding]), min_size=1, unique=True))
        if journey.published and journey.may_be_settled:
            with pytest.raises(Refused, match="rolls forward"):
                self.inbox.strand(trip, given_up, "poison", to_dead_letters=copy)
            return
        before = {found.id for found in self.depot.trips(limit=1000)}
        done = self.inbox.strand(trip, given_up, "poison", to_dead_letters=copy, halt_on_stranded=halt)
        assert done is journey.may_be_settled
        if not journey.may_be_settled:
            return
        new = [found.id for found in self.depot.trips(limit=1000) if found.id not in before]
        others, halted = [], set()
        for one in riding:
            if one.id in given_up:
                one.state, one.to_dead_letters = "stranded", copy
                halted |= {one.group} - {None} if halt else set()
            elif one.group not in halted:
                others.append(one.id)
        assert len(new) == bool(others)
        journey.state = "split" if others else "stranded"
        self.move(trip, dict.fromkeys(new, others))

    @precondition(lambda self: any(self.aboard(trip) for trip in self.driven()))
    @rule(data=st.data())
    def applied(self, data):
        trip = self.pick(data, [trip for trip in self.driven() if self.aboard(trip)])
        riding = self.aboard(trip)
        some = data.draw(st.lists(st.sampled_from([one.id for one in riding]), unique=True))
        assert self.inbox.applied(trip, some) == len(riding) - len(some)
        journey = self.trips[trip]
        for one in riding:
            if one.id in some:
                one.state, one.trip = "delivered", None
                if one.group and one.generation == 0:
                    self.orders[one.group] = []  # an earlier trip's delivery: its moment is not known here
        if len(some) == len(riding) and not journey.published and journey.state != "stuck":
            journey.state = "empty"

    @precondition(lambda self: self.trips_in(*LIVE))
    @rule(data=st.data())
    def cancel(self, data):
        trip = self.pick(data, self.trips_in(*LIVE))
        journey = self.trips[trip]
        if journey.published or journey.state == "stuck":
            with pytest.raises(Refused, match="rolls forward"):
                self.inbox.cancel(trip, "stop")
            return
        found = self.inbox.cancel(trip, "stop")
        journey.asked_to_stop = True
        if not journey.is_driven:
            for one in self.aboard(trip):
                one.state = "stranded"
            journey.state = "cancelled"
        assert found.state == journey.state

    @rule(limit=st.integers(1, 3))
    def send_dead_letters(self, limit):
        """Killed before it is noted they are sent once more: nothing has changed here."""
        due = sorted(one.id for one in self.mail.values() if one.to_dead_letters)
        sent = [message.id for message in self.inbox.dead_letters(ROUTE, limit)]
        assert sent == due[:limit]
        self.inbox.sent_to_dead_letters(sent)
        for one in self.mail.values():
            one.to_dead_letters &= one.id not in sent

    @rule()
    def redrive(self):
        some = self.of_state("stranded", "quarantined", "held")
        for one in some:
            self.again(one)
            if self.is_replaced(one):
                one.state = "superseded"
        assert self.inbox.redrive(ROUTE, reason="fixed").waiting == sum(one.state == "waiting" for one in some)

    @precondition(lambda self: self.of_state("stranded", "quarantined", "held"))
    @rule(data=st.data())
    def discard(self, data):
        one = data.draw(st.sampled_from(sorted(self.of_state("stranded", "quarantined", "held"), key=lambda one: one.id)))
        assert self.inbox.discard(ROUTE, [one.id], reason="a test order") == 1
        one.state, one.to_dead_letters = "discarded", False

    @precondition(lambda self: self.of_state("discarded"))
    @rule(data=st.data())
    def take_back(self, data):
        one = data.draw(st.sampled_from(sorted(self.of_state("discarded"), key=lambda one: one.id)))
        self.again(one)
        if self.is_replaced(one):
            one.state = "superseded"
        assert self.inbox.redrive(ROUTE, [one.id], reason="it counts").waiting == (one.state == "waiting")

    @precondition(lambda self: self.of_state("delivered"))
    @rule(data=st.data())
    def deliver_again(self, data):
        one = data.draw(st.sampled_from(sorted(self.of_state("delivered"), key=lambda one: one.id)))
        assert self.inbox.again([one.id], "lost") == 1
        self.again(one)
        one.part = str(one.generation)

    @rule(pause=st.booleans())
    def pause_or_resume(self, pause):
        if pause:
            self.inbox.pause(ROUTE, "breaker")
        else:
            self.inbox.resume(ROUTE)
        self.paused = pause

    # What always holds

    @invariant()
    def every_message_stands_as_the_model_says(self):
        found = {message.id: message for message in self.inbox.messages(limit=1000)}
        assert len(found) == len(self.mail)
        for one in self.mail.values():
            message = found[one.id]
            for name in ("state", "generation", "part", "duplicates", "to_dead_letters"):
                assert getattr(message, name) == getattr(one, name), name
            assert message.trip == one.trip or one.state in ("delivered", "stranded", "quarantined", "discarded")

    @invariant()
    def every_trip_stands_as_the_model_says(self):
        found = {trip.id: trip for trip in self.depot.trips(limit=1000)}
        assert found.keys() == self.trips.keys()
        for trip, journey in self.trips.items():
            said = found[trip]
            assert (said.state, said.launches, said.failures, said.deaths, said.cancelled is not None) == (
                journey.state,
                journey.launches,
                journey.failures,
                journey.deaths,
                journey.asked_to_stop,
            )

    @invariant()
    def who_rides_rides_in_a_live_trip(self):
        trips = {trip.id: trip.state for trip in self.depot.trips(limit=1000)}
        for message in self.inbox.messages(limit=1000):
            if message.state == "aboard":
                assert trips[message.trip] in LIVE
            if message.state == "waiting":
                assert message.trip is None

    @invariant()
    def counts_add_up(self):
        counts = self.inbox.counts(ROUTE)
        assert {state: number for state, number in counts.by_state.items() if number} == Counter(one.state for one in self.mail.values())
        assert counts.is_balanced
        assert counts.received == len(self.mail)
        assert (counts.duplicates, counts.ignored) == (self.duplicates, self.ignored)
        assert (counts.paused_at is not None) is self.paused
        assert self.inbox.live(ROUTE) == len(self.of_state("waiting", "aboard"))

    @invariant()
    def of_a_group_one_trip_is_in_flight(self):
        for group in ("a", "b"):
            assert len({one.trip for one in self.of_state("aboard") if one.group == group}) <= 1

    @invariant()
    def groups_are_delivered_in_order(self):
        for delivered in self.orders.values():
            assert delivered == sorted(delivered)


def wipe(depot):
    with depot._connections.writing() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))


def change(depot, statement):
    with depot._connections.writing() as connection:
        connection.execute(statement)


LONGER = [pytest.param("sqlite", 200, marks=pytest.mark.long), pytest.param("postgres", 80, marks=pytest.mark.long)]


@pytest.mark.parametrize(("database", "examples"), [("sqlite", 25), ("postgres", 10), *LONGER])
def test_any_life_is_as_the_model_says(request, database, examples):
    class Here(Life):
        url = request.getfixturevalue(f"{database}_database_url")

    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
    long = settings(max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=quiet, print_blob=True)
    run_state_machine_as_test(Here, settings=long)
