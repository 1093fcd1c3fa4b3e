"""A trip's progress on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bus_assets.cli.output import console, notice
from bus_assets.progress import Progress

PLAIN_EVERY_SECONDS = 5.0


@contextmanager
def progress_view() -> Iterator[Callable[[Progress], None]]:
    """A watcher for :func:`bus_assets.progress.watching`, for as long as the block lasts."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield PlainLines()
        return
    with screen.status("starting …") as status:
        lines = PlainLines(every_seconds=float("inf"), write=lambda text: screen.print(text, markup=False))

        def watch(progress: Progress) -> None:
            status.update(f"{progress.stop}: {progress.rows:,} rows")
            lines(progress)

        yield watch


@dataclass
class PlainLines:
    """One line when a stop is done, and now and then while it is under way."""

    every_seconds: float = PLAIN_EVERY_SECONDS
    write: Callable[[str], None] = notice
    _said: float = field(default_factory=time.monotonic)

    def __call__(self, progress: Progress) -> None:
        if progress.passed is not None:
            rejected = f", {progress.rejected:,} rejected" if progress.rejected else ""
            self._write(f"{'✓' if progress.passed else '✗'} {progress.stop}: {progress.rows:,} rows{rejected}")
        elif time.monotonic() - self._said >= self.every_seconds:
            self._write(f"  {progress.stop}: {progress.rows:,} rows so far")

    def _write(self, text: str) -> None:
        self._said = time.monotonic()
        try:
            self.write(text)
        except OSError:
            # Whoever read stderr has gone; the trip goes on.
            self.write = lambda text: None
