"""What a dispatcher decides, from plain values: who rides again, what is split, who is given up, when the route pauses."""

from __future__ import annotations

import math
from collections import Counter, deque
from datetime import UTC, datetime
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.depot.entries import Kind, Trip
from resources.depot.mail import Boarded, Riders
from sensors.dispatch import Told
from sensors.judging import DEATHS, LONGEST_DELAY_SECONDS, PATIENCE, Pause, Policy, Retry, Split, Strand, delay_seconds, halves, judge

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KINDS = get_args(Kind)
BLAMELESS = ("transient", "misconfigured", "checks", "refused", "conflict")
"""Failures that are no message's fault."""


def policy(**more) -> Policy:
    return Policy(**{"route": "r", "batch": 10, "max_wait_seconds": 0, "max_in_flight": 2, "attempts": 3, "halt_on_stranded": True, **more})


def suspected(messages, groups=None, **trip) -> tuple[Trip, Riders]:
    known = Trip("t", "r", "queue", {}, None, None, None, NOW, "failed", None, None)
    changed = Trip(**{**vars(known), **trip})
    return changed, Riders(tuple(messages), tuple(groups or [None] * len(messages)))


@st.composite
def aboard(draw, least=1):
    """Messages in riding order with their groups: of a FIFO queue in the order of their ids."""
    number = draw(st.integers(least, 60))
    groups = draw(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=number, max_size=number))
    return list(range(1, number + 1)), groups


spent = st.integers(0, 8)


# Halves


@given(aboard(), st.data())
def test_parts_are_smaller_and_each_message_is_in_one_of_them_or_waits(found, data):
    messages, groups = found
    parts = halves(messages, groups, data.draw(st.sampled_from([None, 0, *messages])))
    assert all(0 < len(part) < len(messages) for part in parts)
    assert max(Counter(message for part in parts for message in part).values(), default=1) == 1
    assert {message for part in parts for message in part} <= set(messages)
    assert bool(parts) == (len(messages) > 1)


@given(aboard(), st.data())
def test_a_group_keeps_its_order_in_one_part_or_rides_as_a_beginning(found, data):
    messages, groups = found
    parts = halves(messages, groups, data.draw(st.sampled_from([None, *messages])))
    of = dict(zip(messages, groups, strict=True))
    for group in set(groups) - {None}:
        riding = [[message for message in part if of[message] == group] for part in parts]
        riding = [some for some in riding if some]
        assert len(riding) <= 1
        if riding:
            whole = [message for message in messages if of[message] == group]
            assert riding[0] == whole[: len(riding[0])]


@given(aboard(least=2))
def test_only_a_lone_group_leaves_messages_waiting(found):
    messages, groups = found
    parts = halves(messages, groups, None)
    waits = set(messages) - {message for part in parts for message in part}
    assert not waits or (len(set(groups)) == 1 and None not in groups)


def driven_until_alone(messages, groups, poison, names_it):
    """How many trips fail until the poison stands alone, if everything else is delivered. A group's rest rides behind its beginning."""
    of = dict(zip(messages, groups, strict=True))
    trips, failures, delivered = deque([list(messages)]), 0, []
    while trips:
        trip = trips.popleft()
        if poison not in trip:
            delivered += trip
            continue
        if len(trip) == 1:
            assert sorted([*delivered, *[m for rest in trips for m in rest], poison]) == sorted(messages)
            return failures
        failures += 1
        parts = halves(trip, [of[message] for message in trip], poison if names_it else None)
        trips += [list(part) for part in parts]
        if waits := [message for message in trip if not any(message in part for part in parts)]:
            trips.append(waits)
    raise AssertionError("the poison is lost")


@given(aboard(), st.data())
def test_one_poison_is_found_in_few_failures(found, data):
    messages, groups = found
    poison = data.draw(st.sampled_from(messages))
    assert driven_until_alone(messages, groups, poison, names_it=False) <= 2 * math.ceil(math.log2(len(messages))) + 1


@given(aboard(), st.data())
def test_a_message_that_the_error_names_stands_alone_next(found, data):
    """Its group may have to be parted from the others first, and what is before it in the group rides before it."""
    messages, groups = found
    poison = data.draw(st.sampled_from(messages))
    of = dict(zip(messages, groups, strict=True))
    expected = 1 if of[poison] is None else 3
    assert driven_until_alone(messages, groups, poison, names_it=True) <= expected


class Compared(int):
    """A message's number that counts how often it is compared."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return int.__eq__(self, other)

    __hash__ = int.__hash__


def test_parting_a_trip_of_many_messages_compares_each_a_few_times():
    """Comparing parts with each other took 50 s for 100,000 messages."""
    messages = [Compared(number) for number in range(2_000)]
    first, second = halves(messages, [None] * len(messages), None)
    assert (len(first), len(second)) == (1_000, 1_000)
    halves(messages, [None] * len(messages), Compared(1_555))
    assert Compared.times < 10 * len(messages)


# Judging


@given(aboard(), st.sampled_from(BLAMELESS), spent, spent, spent)
def test_what_is_nobodys_fault_strands_nobody_and_splits_nothing(found, kind, failures, deaths, launches):
    decision = judge(*suspected(*found, failures=failures, deaths=deaths, launches=launches), kind, None, policy())
    assert isinstance(decision, Retry | Pause)


@given(aboard(), st.data(), spent, spent, spent)
def test_a_message_that_cannot_be_read_for_now_rides_without_the_others_after_a_few_launches(found, data, failures, deaths, launches):
    """Nobody is stranded, nothing is spent: the message alone rides again, later and later."""
    messages, groups = found
    culprit = data.draw(st.sampled_from(messages))
    decision = judge(*suspected(messages, groups, failures=failures, deaths=deaths, launches=launches), "transient", culprit, policy())
    if launches < PATIENCE or len(messages) == 1:
        assert decision == Retry(delay_seconds(launches), spent=None)
        return
    assert isinstance(decision, Split)
    assert decision.parts == halves(messages, groups, culprit)
    if groups[messages.index(culprit)] is None:
        assert (culprit,) in decision.parts
        assert sorted(message for part in decision.parts for message in part) == messages


@given(aboard(), st.sampled_from([None, 0]), st.integers(0, 30))
def test_while_nobody_can_be_read_the_trip_stays_together(found, culprit, launches):
    """No culprit is known, or one that has left the trip."""
    assert judge(*suspected(*found, launches=launches), "transient", culprit, policy()) == Retry(delay_seconds(launches))


@given(aboard(), spent)
def test_deaths_have_a_budget_of_their_own(found, failures):
    """However often the trip has failed before; and none of the budget of failures is spent."""
    for deaths in range(DEATHS - 1):
        decision = judge(*suspected(*found, failures=failures, deaths=deaths), "died", None, policy())
        assert decision == Retry(delay_seconds(deaths), "death")
    assert isinstance(judge(*suspected(*found, failures=failures, deaths=DEATHS - 1), "died", None, policy()), Split | Strand)


@given(aboard(), st.sampled_from(KINDS), spent, spent, st.integers(1, 5))
def test_only_a_message_alone_is_stranded_and_only_after_its_last_attempt(found, kind, failures, deaths, attempts):
    trip, riders = suspected(*found, failures=failures, deaths=deaths)
    decision = judge(trip, riders, kind, None, policy(attempts=attempts))
    if isinstance(decision, Strand):
        assert decision.messages == riders.messages
        assert len(riders.messages) == 1
        assert (kind == "died" and deaths + 1 >= DEATHS) or (kind == "poison" and failures + 1 >= attempts)


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_a_poison_alone_is_tried_as_often_as_the_route_says(attempts):
    decisions = [judge(*suspected([1], failures=failures), "poison", None, policy(attempts=attempts)) for failures in range(attempts)]
    assert all(isinstance(decision, Retry) and decision.spent == "failure" for decision in decisions[:-1])
    assert decisions[-1] == Strand((1,))


@given(st.integers(0, 10_000))
def test_back_off_grows_and_has_an_end(before):
    assert 1 <= delay_seconds(before) <= delay_seconds(before + 1) <= LONGEST_DELAY_SECONDS


@given(st.builds(Boarded, *[st.integers(0, 3)] * 8), *[st.integers(0, 3)] * 6)
def test_what_a_tick_says_counts_everything(boarded, departed, returned, split, stranded, forward, later):
    said = str(Told(boarded, departed, returned, split, stranded, forward, later))
    counted = sum(int(part.rpartition(" ")[2]) for part in said.split(", ")) if said != "nothing waits" else 0
    assert counted == sum(vars(boarded).values()) + departed + returned + split + stranded + forward + later
