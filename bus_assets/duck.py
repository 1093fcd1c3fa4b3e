"""DuckDB for the rows of a stop. Opening one takes longer than most of what is asked of it, so one that is at rest is used again."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resources.errors import BusError, Transient

if TYPE_CHECKING:
    import duckdb

MEMORY = "192MB"
"""DuckDB spills to disk above this, so that memory is bounded by the batch and not by the input."""
SWEEP_AFTER_SECONDS = 60.0
"""A folder that is younger may have been made and not be locked yet."""
SHORT_SECONDS = 1.0
"""Whoever took longer may have left much memory behind, which only closing gives back; and then opening one costs little beside it."""
SPILLS = "bus-spill-"
"""What the folders for spilling begin with, beside the system's temporary files."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_OF_THE_MACHINE = ("IO Error", "Out of Memory Error")
"""What DuckDB's texts about disk and memory begin with, also where Arrow passes them on. The texts of its other errors quote rows."""


class _Spill:
    """A folder that only this user can read, there only while it is used; locked meanwhile, so that one that a killed process left
    behind is told from one in use, whatever container its process was in."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix=SPILLS)
        self._lock = _locked(self.path)

    def again(self) -> bool:
        """Make it anew; False if that is not possible."""
        try:
            os.mkdir(self.path, 0o700)
            self._lock = _locked(self.path)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(folder: str) -> int | None:
    """Hold ``folder`` for this process: what is returned is open, and the lock ends with it. None if somebody else holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _sweep() -> None:
    """Remove what killed processes of this user have spilled."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SPILLS}*"):
        with suppress(OSError):  # somebody else removes it at this moment
            seen = folder.lstat()
            is_ours = seen.st_uid == os.getuid() and stat.S_ISDIR(seen.st_mode)
            if is_ours and time.time() - seen.st_mtime > SWEEP_AFTER_SECONDS and (handle := _locked(str(folder))) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


@dataclass(frozen=True)
class _Opened:
    database: duckdb.DuckDBPyConnection
    spill: _Spill


_at_rest: list[_Opened] = []
"""At most one."""


def disk_full(error: Exception) -> Transient | None:
    """What to raise if ``error`` says that there was no room beside the system's temporary files: that is the machine's fault, and
    not the rows'. None if it says something else."""
    text = str(error)
    by_duckdb = text.startswith(_OF_THE_MACHINE) and any(said in text for said in ("No space left", "quota exceeded", "failed to offload"))
    if not by_duckdb and not (isinstance(error, OSError) and error.errno in _FULL):
        return None
    where = tempfile.gettempdir()
    return Transient("the disk is full: no room for rows that do not fit into memory; free space there, or set TMPDIR", place=where)


@contextmanager
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of one's own: bounded memory, spilling beside the system's temporary files, no extensions fetched, UTC.

    What is made in it must be temporary: it may be somebody else's afterwards, who sees none of that.
    :class:`Transient` if there is no room to spill to.
    """
    try:
        opened, began = _taken() or _open(), time.monotonic()
    except OSError as error:
        raise disk_full(error) or error from error
    connection = opened.database.cursor()
    try:
        yield connection
    except GeneratorExit:
        _leave(opened, connection, began)
        raise
    except BaseException as error:
        connection.close()
        _close(opened)  # after some errors a database cannot be used any more
        if isinstance(error, Exception) and not isinstance(error, BusError) and (full := disk_full(error)):
            raise full from error  # where whoever asked had no words of his own for it
        raise
    _leave(opened, connection, began)


def _open() -> _Opened:
    import duckdb

    _sweep()
    spill = _Spill()
    settings = {"memory_limit": MEMORY, "temp_directory": spill.path, "autoinstall_known_extensions": False, "TimeZone": "UTC"}
    try:
        # Staged files are read once or twice: remembering their bytes would only take the memory.
        return _Opened(duckdb.connect(config={**settings, "enable_external_file_cache": False}), spill)
    except BaseException:
        spill.remove()
        raise


def _taken() -> _Opened | None:
    try:
        opened = _at_rest.pop()
    except IndexError:
        return None
    if not opened.spill.again():
        opened.database.close()
        return None
    return opened


def _leave(opened: _Opened, connection: duckdb.DuckDBPyConnection, began: float) -> None:
    connection.close()
    if _at_rest or time.monotonic() - began > SHORT_SECONDS:
        _close(opened)
    else:
        opened.spill.remove()
        _at_rest.append(opened)


def _close(opened: _Opened) -> None:
    try:
        opened.database.close()
    finally:
        opened.spill.remove()


@atexit.register
def _end() -> None:
    """Close the one at rest."""
    while _at_rest:
        _close(_at_rest.pop())


os.register_at_fork(before=_end)  # its threads would not be there in the child
