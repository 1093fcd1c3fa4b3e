"""A queue read ahead: while some messages are boarded the next are on their way, and those boarded before leave the queue."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from resources.queue_seam import MessageQueue, Received


class Ahead:
    """``receive`` and ``delete`` of ``queue`` for one caller, ``at_once`` messages at a time. Leave the block: what was begun ends first.

    Order is the queue's, and nothing is deleted that was not handed to ``delete``. What was received ahead and never taken (an error
    came between) shows again on the queue after its visibility time-out. A FIFO queue is not read ahead: a group with a message in
    flight gives no other.
    """

    def __init__(self, queue: MessageQueue, at_once: int):
        self._queue, self._at_once = queue, at_once
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ahead")
        self._next: Future[list[Received]] | None = None
        self._leaving: Future[int] | None = None

    def receive(self, room: int, wait_seconds: float, *, enough: bool = False) -> list[Received]:
        """Messages for which there is ``room``. ``enough``: ask for no more, only hand out what is on its way.

        None are handed out only once those before have left their queue: whoever then sets trips on their way waits for nothing more.
        """
        if self._next is not None:
            found, self._next = self._next.result(), None
        else:
            found = [] if enough else self._queue.receive(min(room, self._at_once), wait_seconds)
        if not found:
            self._left()
        left = min(room - len(found), self._at_once)
        if len(found) == self._at_once and left > 0 and not enough and not self._queue.is_fifo:
            self._next = self._pool.submit(self._queue.receive, left, 0)
        return found

    def delete(self, received: Sequence[Received]) -> None:
        """They are boarded. Raises what deleting them, or the ones before, raised: here or at the end of the block."""
        self._left()
        if self._queue.is_fifo:
            self._queue.delete(received)  # until then their groups give no other
        else:
            self._leaving = self._pool.submit(self._queue.delete, received)

    def _left(self) -> None:
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            leaving.result()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._left()
