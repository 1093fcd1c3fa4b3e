"""One log for all processes: each line under the name of the process that said it."""

from __future__ import annotations

import logging
import logging.handlers
import re
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
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Tell = Callable[[str], None]


class TownLog:
    """Lines to ``tell`` (the terminal) and to a rotating file. Threads may write at the same time."""

    def __init__(self, path: Path, tell: Tell):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._tell = tell
        self._file = logging.handlers.RotatingFileHandler(path, maxBytes=MEGABYTES << 20, backupCount=KEPT_FILES, encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._last: dict[str, deque[str]] = {}
        self._lock = threading.Lock()
        self._only_file = False

    def line(self, name: str, text: str) -> None:
        """One line that process ``name`` said, or that is said about the town (``name`` is UP)."""
        plain = "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in _COLOUR.sub("", text).rstrip())
        shown = f"{name:<{NAME_WIDTH}} | {plain}"
        with self._lock:
            self._last.setdefault(name, deque(maxlen=LAST_LINES)).append(plain)
            self._file.emit(logging.LogRecord("up", logging.INFO, "", 0, shown, None, None))
            if name == UP or not (self._only_file or _ONLY_FILE.search(plain)):
                self._tell(shown)

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
        self._file.close()
