"""How far a trip is, told to whoever watches in this process: the command line shows it. Nobody watching costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """``rows`` so far at ``stop``. ``passed`` is None while it is under way, then whether its gate let it pass."""

    stop: str
    rows: int
    passed: bool | None = None
    rejected: int = 0


_watchers: list[Callable[[Progress], None]] = []


@contextmanager
def watching(watcher: Callable[[Progress], None]) -> Iterator[None]:
    """Call ``watcher`` on the thread of the trip, for as long as the block lasts. It must be quick, and not raise."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tell(progress: Progress) -> None:
    for watcher in _watchers:
        watcher(progress)
