"""Make the next items while the last one is worked on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], most: int = 2, *, interrupt: Callable[[], None] = lambda: None) -> Iterator[T]:
    """``items`` in order, at most ``most`` of them made ahead, in a thread of their own: for work that needs no interpreter lock.

    What making an item raises comes where the item would have come. When the iterator is closed early, ``interrupt`` is called,
    the item in the making is waited for, and no other is begun.
    """
    made: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    room, given_up = threading.Semaphore(most), threading.Event()

    def make() -> None:
        source = iter(items)
        while room.acquire() and not given_up.is_set():
            try:
                made.put((next(source), None))
            except BaseException as error:
                made.put((None, error))
                return

    thread = threading.Thread(target=make, name="bus-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType] - without an error there is an item
            room.release()
    finally:
        given_up.set()
        room.release()
        if thread.is_alive():
            interrupt()
        thread.join()
