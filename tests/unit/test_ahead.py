"""Items made in another thread: their order, their errors, and that nothing is left behind."""

import threading
import time

import pytest

from resources.ahead import ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "bus-ahead"]


def test_all_items_come_in_order_from_another_thread():
    made = list(ahead((number, threading.current_thread().name) for number in range(100)))
    assert made == [(number, "bus-ahead") for number in range(100)]
    assert not threads()
    assert list(ahead([])) == []


def test_what_an_item_raises_comes_after_those_before_it():
    def items():
        yield 1
        yield 2
        raise ValueError("the third")

    taken = []
    with pytest.raises(ValueError, match="the third"):
        taken.extend(item for item in _each(ahead(items()), taken))
    assert taken == [1, 2]
    assert not threads()


def _each(items, taken):
    for item in items:
        taken.append(item)
    yield from ()


def test_no_more_is_made_ahead_than_asked_and_nothing_after_the_end():
    begun = []

    def items():
        for number in range(100):
            begun.append(number)
            yield number

    made = ahead(items(), 2)
    assert next(made) == 0
    time.sleep(0.05)
    assert len(begun) <= 3
    made.close()
    assert len(begun) <= 3
    assert not threads()


def test_closing_interrupts_the_item_in_the_making():
    interrupted = threading.Event()

    def items():
        yield 1
        interrupted.wait(20)
        yield 2

    made = ahead(items(), interrupt=interrupted.set)
    assert next(made) == 1
    started = time.monotonic()
    made.close()
    assert time.monotonic() - started < 5
    assert not threads()
