"""Reading a queue ahead: in order, nothing deleted that was not boarded, nothing left in hand."""

from __future__ import annotations

import threading

import pytest

from resources.errors import Transient
from resources.queue_seam import Outgoing
from sensors.ahead import Ahead
from tests.fakes import FakeQueue


def filled(messages: int, name: str = "orders") -> FakeQueue:
    queue = FakeQueue(name)
    queue.send([Outgoing(str(number), group="g" if queue.is_fifo else None) for number in range(messages)])
    return queue


def test_everything_comes_in_order_and_leaves():
    queue, seen = filled(25), []
    with Ahead(queue, 10) as ahead:
        while found := ahead.receive(1000, 0):
            seen += [int(message.body) for message in found]
            ahead.delete(found)
    assert seen == list(range(25))
    assert queue.depth().waiting + queue.depth().in_flight == 0


def test_the_next_are_received_while_the_last_are_in_hand():
    queue, is_asked_again = filled(25), threading.Event()
    receive, asked = queue.receive, []

    def noting(limit: int, wait_seconds: float = 0):
        asked.append(limit)
        if len(asked) == 2:
            is_asked_again.set()
        return receive(limit, wait_seconds)

    queue.receive = noting
    with Ahead(queue, 10) as ahead:
        ahead.receive(15, 0)
        assert is_asked_again.wait(10)
    assert asked == [10, 5]


def test_what_was_not_handed_over_is_not_deleted():
    queue = filled(25)
    with pytest.raises(Transient), Ahead(queue, 10) as ahead:
        ahead.delete(ahead.receive(1000, 0))
        ahead.receive(1000, 0)
        raise Transient("the depot is locked")
    assert len(queue.deleted) == 10
    assert queue.depth().in_flight == 15


def test_enough_hands_out_what_is_on_its_way_and_asks_for_no_more():
    queue = filled(50)
    with Ahead(queue, 10) as ahead:
        ahead.receive(1000, 0)
        assert len(ahead.receive(1000, 0, enough=True)) == 10
        assert ahead.receive(1000, 0, enough=True) == []
    assert queue.depth().waiting == 30


def test_that_nothing_more_comes_is_said_when_those_before_have_left():
    queue, may_leave = filled(5), threading.Event()
    delete = queue.delete

    def slow(received):
        may_leave.wait(10)
        return delete(received)

    queue.delete = slow
    with Ahead(queue, 10) as ahead:
        ahead.delete(ahead.receive(1000, 0))
        assert queue.deleted == []
        threading.Timer(0.2, may_leave.set).start()
        assert ahead.receive(1000, 0) == []
        assert len(queue.deleted) == 5


def test_deleting_that_fails_is_told_at_the_end():
    queue, error = filled(25), Transient("throttled")

    def failing(received):
        raise error

    with pytest.raises(Transient) as raised, Ahead(queue, 10) as ahead:
        found = ahead.receive(1000, 0)
        queue.delete = failing
        ahead.delete(found)
    assert raised.value is error


def test_a_fifo_queue_is_not_read_ahead():
    queue = filled(25, "orders.fifo")
    with Ahead(queue, 10) as ahead:
        ahead.delete(ahead.receive(1000, 0))
        assert len(queue.deleted) == 10
    assert queue.depth().waiting == 15
