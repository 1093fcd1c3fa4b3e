"""Which process is this, and is that one still there? Answered without a library, and never by guessing."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """``started`` tells two processes of one pid apart; None where the platform cannot say (not Linux)."""

    host: str
    pid: int
    started: str | None


def this_process() -> Process:
    """The calling process, as ``Depot.claim`` wants it."""
    return Process(socket.gethostname(), os.getpid(), _started(os.getpid()))


def is_gone(host: str | None, pid: int | None, started: str | None) -> bool:
    """Whether that process certainly exists no more. Another host, boot or pid namespace: False, only its lease can tell."""
    if host != socket.gethostname() or pid is None:
        return False
    if started is None or _machine() is None:
        return not _pid_exists(pid)
    if not started.startswith(f"{_machine()}/"):
        return False
    return _started(pid) != started


def _started(pid: int) -> str | None:
    """``BOOT/NAMESPACE/TICKS``, or None if there is no such process, or only its unreaped remains."""
    if _machine() is None:
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold blanks and brackets; the state and 19 fields later the start time follow the last one.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else f"{_machine()}/{rest[18]}"


@functools.cache
def _machine() -> str | None:
    """This boot and pid namespace: containers may share a host name, and pids mean nothing across namespaces."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
