from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from resources.prefetch import prefetched


def test_items_come_in_their_order_and_the_next_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    seen = []
    for number in prefetched(items()):
        if number < 3:
            assert made[number + 1].wait(5)
        if number < 2:
            time.sleep(0.02)
            assert not made[number + 2].is_set()  # one waits, no more
        seen.append(number)
    assert seen == [0, 1, 2, 3]


def test_none_and_no_items() -> None:
    assert list(prefetched([None, None])) == [None, None]
    assert list(prefetched([])) == []


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    seen = []
    with pytest.raises(ValueError, match="third"):
        for number in prefetched(items()):
            seen.append(number)
    assert seen == [1, 2]


def test_a_generator_is_closed_by_the_thread_that_ran_it_when_nobody_wants_the_rest() -> None:
    threads = []

    def items() -> Iterator[int]:
        try:
            for number in range(10):
                threads.append(threading.current_thread())
                yield number
        finally:
            threads.append(threading.current_thread())

    wanted = prefetched(items())
    assert next(wanted) == 0
    wanted.close()
    assert len(threads) == 3  # the first, the one that was on its way, the end
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()


def test_no_thread_outlives_the_last_item() -> None:
    before = threading.active_count()
    assert list(prefetched(range(3))) == [0, 1, 2]
    assert threading.active_count() == before
