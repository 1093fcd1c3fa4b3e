"""One log for all processes: each line under the name of the process that said it."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

MEGABYTES, KEPT_FILES = 10, 3
LAST_LINES = 40
"""How many lines of each process are kept to tell why it died."""
NAME_WIDTH = 8
UP = "up"
"""Under which name lines about the town stand."""
_ONLY_FILE = re.compile(r" - DEBUG - |SensorDaemon - INFO - (Checking for new runs for sensor|Sensor \S+ skipped): | - nothing waits$")
"""What the file alone gets: every event of every run, and of every queue's ticks, one in ten seconds, those that did nothing; what
the others did, the code server says."""
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""What writing to a terminal says whose other end is gone for good."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Tell = Callable[[str], None]


class TownLog:
    """Lines to ``tell`` (the terminal) and to a rotating file. Threads may write at the same time.

    Neither ends the other, nor whoever writes, when it takes no line: a process whose output nobody reads any more stands still. A
    terminal that is gone is given up; one that fails otherwise is tried again with the next line, as the file is. What was lost is told
    once it is over.
    """

    def __init__(self, path: Path, tell: Tell):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._tell = tell
        self._is_gone = self._missed = False
        self._file = _File(path, maxBytes=MEGABYTES << 20, backupCount=KEPT_FILES, encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._last: dict[str, deque[str]] = {}
        self._lock = threading.Lock()
        self._only_file = False

    def line(self, name: str, text: str) -> None:
        """One line that process ``name`` said, or that is said about the town (``name`` is UP)."""
        plain = "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in _COLOUR.sub("", text).rstrip())
        shown = _named(name, plain)
        with self._lock:
            self._last.setdefault(name, deque(maxlen=LAST_LINES)).append(plain)
            self._keep(shown)
            if name == UP or not (self._only_file or _ONLY_FILE.search(plain)):
                self._show(shown)

    def only_file(self) -> None:
        """From now on the terminal gets only what is said about the town."""
        self._only_file = True

    def last(self, name: str, lines: int = 12) -> list[str]:
        with self._lock:
            return list(self._last.get(name, ()))[-lines:]

    def follow(self, name: str, said: Iterable[bytes], heard: Callable[[str], None]) -> None:
        """Log all that a process says until it closes its output; ``heard`` gets each line too."""
        for raw in said:
            text = raw.decode("utf-8", "replace")
            self.line(name, text)
            heard(text)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._file.failed(error)
        if self._file.lost:
            self._show(_named(UP, self._file.said()))

    def _keep(self, shown: str) -> None:
        lost = self._file.lost
        self._file.keep(shown)
        if lost and self._file.lost == lost:
            said = _named(UP, self._file.said())
            self._file.lost = 0
            self._file.keep(said)
            self._show(said)

    def _show(self, shown: str) -> None:
        if self._is_gone:
            return
        try:
            if self._missed:
                self._tell(_named(UP, f"lines may be missing here, as they could not be written; {self.path} has them"))
            self._missed = False
            self._tell(shown)
        except Exception as error:  # whatever a terminal says
            self._missed = True
            self._is_gone = isinstance(error, OSError) and error.errno in _GONE


class _File(logging.handlers.RotatingFileHandler):
    """Counts what it could not write. ``lost``: how many lines, since it was told last."""

    lost = 0
    _why = ""

    def keep(self, line: str) -> None:
        self.emit(logging.LogRecord("up", logging.INFO, "", 0, line, None, None))

    def handleError(self, record: logging.LogRecord) -> None:
        self.failed(sys.exc_info()[1])

    def failed(self, error: BaseException | None) -> None:
        self.lost += 1
        self._why = str(error)

    def said(self) -> str:
        return f"{self.baseFilename} could not be written, {self.lost} lines may be missing there: {self._why}"


def _named(name: str, text: str) -> str:
    return f"{name:<{NAME_WIDTH}} | {text}"
