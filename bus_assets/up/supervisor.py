"""Start processes in order, wait until each is ready, restart what dies, and end them all, process groups and all.

A library was looked for: honcho restarts nothing and knows no readiness, supervisor and circus bring a daemon, a protocol and a
configuration language of their own; all of them leave processes behind when they are killed themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bus_assets.up import guard
from bus_assets.up.log import UP, TownLog
from resources.errors import Misconfigured

POLL_SECONDS = 0.1
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 30.0
STEADY_SECONDS = 60.0
"""Who has been up so long starts again without the back-off of earlier deaths."""
CUT_SECONDS = 1.5
"""How long such a process has to end by itself."""
EX_CONFIG = 78
"""How a process says by its exit code that a person must change something (sysexits.h)."""

Ready = Callable[[], bool]


@dataclass(frozen=True)
class Process:
    """One process to keep up.

    ``ready``       true once it serves; asked every tenth of a second. May raise :class:`Misconfigured`: then everything ends.
    ``says``        instead: a text that it prints when it serves. Neither: it is ready at once.
    ``on_ready``    called each time it has become ready, after a restart too.
    ``serves``      where, for the line that tells that it is ready.
    ``waits_for``   names of processes that must be ready before it starts; they end after it, too.
    ``may_be_cut``  it keeps nothing that an end without warning would spoil: it is not waited for long.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    ready: Ready | None = None
    says: str | None = None
    on_ready: Callable[[], None] | None = None
    serves: str = ""
    waits_for: tuple[str, ...] = ()
    start_seconds: float = 90.0
    may_be_cut: bool = False


class Stopped(Misconfigured):
    """The processes have ended because one of them cannot work; the message says which, and its last words."""


class _Running:
    """One process through its restarts."""

    def __init__(self, process: Process, log: TownLog, told: Callable[[str], None]):
        self.process = process
        self.is_ready = False
        self.deaths_in_row = 0
        self.again_at: float | None = None
        self._log, self._told = log, told
        self._heard = threading.Event()
        self.popen = self._start()

    @property
    def name(self) -> str:
        return self.process.name

    def start_again(self) -> None:
        self.again_at = None
        self.is_ready = False
        self._heard.clear()
        self.popen = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.since = time.monotonic()
        try:
            popen = subprocess.Popen(
                self.process.command,
                env=dict(self.process.environment) or None,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Stopped(f"{self.name} cannot be started: {error.strerror}", place=str(self.process.command[0])) from error
        self._told(f"+{popen.pid}")
        heard = (self.name, popen.stdout, self._hear)
        threading.Thread(target=self._log.follow, args=heard, name=f"log-{self.name}", daemon=True).start()
        return popen

    def _hear(self, text: str) -> None:
        if self.process.says and self.process.says in text:
            self._heard.set()

    def look(self) -> bool:
        """Whether it has become ready just now."""
        if self.is_ready:
            return False
        says, ready = self.process.says, self.process.ready
        self.is_ready = (not says or self._heard.is_set()) and (ready is None or ready())
        return self.is_ready

    def signal(self, sign: int) -> None:
        """SIGKILL to the whole group; anything else to the process, which knows how to end its children in order."""
        try:
            if sign == signal.SIGKILL:
                os.killpg(self.popen.pid, sign)
            else:
                self.popen.send_signal(sign)
        except ProcessLookupError:
            return

    def gone(self) -> None:
        """Sweep up what a dead process left of its group, and let the guard forget it."""
        self.signal(signal.SIGKILL)
        self.popen.wait()
        self._told(f"-{self.popen.pid}")


class Supervisor:
    """Keeps ``processes`` up between :meth:`start` and :meth:`end`. A thread of its own looks after them."""

    def __init__(self, processes: Sequence[Process], log: TownLog, end_seconds: float):
        self._processes = processes
        self._log = log
        self._end_seconds = end_seconds
        self._running: list[_Running] = []
        self._ending = threading.Event()
        self._failure: Stopped | None = None
        self._over = threading.Event()
        self._lock = threading.RLock()
        self._guard = subprocess.Popen([sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE, start_new_session=True)
        self._watching = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def pids(self) -> dict[str, int]:
        """Process id, which is its group's too, by name; of those that run now."""
        return {running.name: running.popen.pid for running in self._running if running.popen.poll() is None}

    def start(self) -> None:
        """Start all, each once those it waits for are ready. Raises :class:`Stopped` if one is not; then nothing is left running."""
        began = time.monotonic()
        try:
            while len(self._running) < len(self._processes) or not all(running.is_ready for running in self._running):
                self._start_what_can()
                for running in self._running:
                    self._look_at_start(running, began)
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.end()
            raise
        self._watching.start()

    def _start_what_can(self) -> None:
        ready = {running.name for running in self._running if running.is_ready}
        started = {running.name for running in self._running}
        for process in self._processes:
            if process.name not in started and ready.issuperset(process.waits_for):
                self._running.append(_Running(process, self._log, self._tell_guard))

    def _look_at_start(self, running: _Running, began: float) -> None:
        if running.is_ready:
            if running.popen.poll() is not None:
                raise self._stopped(running, "ended while the others were starting")
        elif running.look():
            self._became_ready(running, began)
        elif running.popen.poll() is not None:
            raise self._stopped(running, "ended before it was ready")
        elif time.monotonic() - running.since > running.process.start_seconds:
            raise self._stopped(running, f"is not ready after {running.process.start_seconds:.0f} s")

    def wait(self, seconds: float | None = None) -> None:
        """Block until something ends the town. Raises :class:`Stopped` if it was a process that cannot work."""
        self._over.wait(seconds)
        if self._failure:
            raise self._failure

    def restart(self, name: str) -> None:
        """End one process as at the end of all, and start it again; returns once it is ready. Raises :class:`Stopped` as :meth:`wait`."""
        running = next(one for one in self._running if one.name == name)
        with self._lock:
            self._end_some([running])
            running.start_again()
        while not running.is_ready:
            self.wait(POLL_SECONDS)

    def end(self) -> None:
        """End all, those that others wait for last. Returns when no process of them is left. May be called twice."""
        self._ending.set()
        self._log.only_file()  # last gasps are for whoever looks into why, not for the terminal
        if self._watching.is_alive() and threading.current_thread() is not self._watching:
            self._watching.join()
        needed = {name for process in self._processes for name in process.waits_for}
        self._end_some([running for running in self._running if running.name not in needed])
        self._end_some([running for running in self._running if running.name in needed])
        if self._guard.stdin and not self._guard.stdin.closed:
            self._guard.stdin.close()
            self._guard.wait()
        self._over.set()

    def _end_some(self, some: Sequence[_Running]) -> None:
        for running in some:
            running.signal(signal.SIGTERM)
        began = time.monotonic()
        for running in some:
            seconds = CUT_SECONDS if running.process.may_be_cut else self._end_seconds
            try:
                running.popen.wait(max(0.0, began + seconds - time.monotonic()))
            except subprocess.TimeoutExpired:
                if not running.process.may_be_cut:
                    self._say(f"{running.name} does not end within {seconds:.0f} s: killed")
            running.gone()

    def _became_ready(self, running: _Running, began: float) -> None:
        if running.process.on_ready:
            running.process.on_ready()
        where = f" at {running.process.serves}" if running.process.serves else ""
        self._say(f"{running.name} ready{where} after {time.monotonic() - began:.0f} s (pid {running.popen.pid})")

    def _watch(self) -> None:
        try:
            while not self._ending.wait(POLL_SECONDS):
                with self._lock:
                    for running in self._running:
                        self._look_after(running)
        except Stopped as stopped:
            self._failure = stopped
        except BaseException as error:
            self._failure = Stopped(f"the supervisor failed: {type(error).__name__}: {error}")
            raise
        finally:
            if self._failure:
                self.end()

    def _look_after(self, running: _Running) -> None:
        now = time.monotonic()
        if running.again_at is not None:
            if now >= running.again_at:
                running.start_again()
        elif (code := running.popen.poll()) is not None:
            self._died(running, code)
        elif running.look():
            self._became_ready(running, running.since)
        elif running.is_ready and now - running.since > STEADY_SECONDS:
            running.deaths_in_row = 0

    def _died(self, running: _Running, code: int) -> None:
        running.gone()
        if code == EX_CONFIG:
            raise self._stopped(running, "says that it is set up wrongly")
        delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**running.deaths_in_row)
        running.deaths_in_row += 1
        running.again_at = time.monotonic() + delay
        self._say(f"{running.name} died ({_how(code)}); it starts again in {delay:.0f} s. Its last lines:")
        for line in self._log.last(running.name, 5):
            self._say(f"    {line}")

    def _stopped(self, running: _Running, why: str) -> Stopped:
        code = running.popen.poll()
        how = f" ({_how(code)})" if code is not None else ""
        time.sleep(POLL_SECONDS)  # its last lines may still be on their way through the pipe
        last = "\n    ".join(self._log.last(running.name))
        return Stopped(f"{running.name} {why}{how}. Its last lines:\n    {last}\nThe whole log: {self._log.path}")

    def _tell_guard(self, line: str) -> None:
        try:
            if self._guard.stdin and not self._guard.stdin.closed:
                self._guard.stdin.write(f"{line}\n".encode())
                self._guard.stdin.flush()
        except BrokenPipeError:
            return

    def _say(self, text: str) -> None:
        self._log.line(UP, text)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
