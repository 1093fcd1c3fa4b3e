"""The next item in the making while one is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """``items`` in order; each is made in a thread of its own while the one before it is used, and at most one waits.

    For what waits for others, or needs no interpreter lock most of the time: a reader, a server, an engine. What making one raises is
    raised where its turn comes. A generator is closed in that thread, also when nobody wants the rest.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="bus-prefetch") as maker:
        coming = maker.submit(_next, source)
        try:
            while found := coming.result():
                coming = maker.submit(_next, source)
                yield found[0]
        finally:
            _finished(maker, coming, source)


def _next(source: Iterator[T]) -> tuple[T] | None:
    for item in source:
        return (item,)
    return None


def _finished(maker: ThreadPoolExecutor, coming: Future[tuple[T] | None], source: Iterator[T]) -> None:
    """Until what is on its way has come; then the source is closed, if it can be."""
    coming.exception()
    if close := getattr(source, "close", None):
        maker.submit(close).result()
