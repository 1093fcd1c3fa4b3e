"""DuckDB for the rows of a stop. Opening one takes longer than most of what is asked of it, so one that is at rest is used again."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

MEMORY = "192MB"
"""DuckDB spills to disk above this, so that memory is bounded by the batch and not by the input."""
SHORT_SECONDS = 1.0
"""Whoever took longer may have left much memory behind, which only closing gives back; and then opening one costs little beside it."""


@dataclass(frozen=True)
class _Opened:
    database: duckdb.DuckDBPyConnection
    spill: str
    """Where it spills: a folder that only this user can read, and that is there only while it is used."""


_at_rest: list[_Opened] = []
"""At most one."""


@contextmanager
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of one's own: bounded memory, spilling beside the system's temporary files, no extensions fetched, UTC.

    What is made in it must be temporary: it may be somebody else's afterwards, who sees none of that.
    """
    opened, began = _taken() or _open(), time.monotonic()
    connection = opened.database.cursor()
    try:
        yield connection
    except GeneratorExit:
        _leave(opened, connection, began)
        raise
    except BaseException:
        connection.close()
        _close(opened)  # after some errors a database cannot be used any more
        raise
    _leave(opened, connection, began)


def _open() -> _Opened:
    import duckdb

    spill = tempfile.mkdtemp(prefix="bus-duckdb-")
    settings = {"memory_limit": MEMORY, "temp_directory": spill, "autoinstall_known_extensions": False, "TimeZone": "UTC"}
    # Staged files are read once or twice: remembering their bytes would only take the memory.
    return _Opened(duckdb.connect(config={**settings, "enable_external_file_cache": False}), spill)


def _taken() -> _Opened | None:
    try:
        opened = _at_rest.pop()
    except IndexError:
        return None
    try:
        os.mkdir(opened.spill, 0o700)
    except OSError:
        opened.database.close()
        return None
    return opened


def _leave(opened: _Opened, connection: duckdb.DuckDBPyConnection, began: float) -> None:
    connection.close()
    if _at_rest or time.monotonic() - began > SHORT_SECONDS:
        _close(opened)
    else:
        shutil.rmtree(opened.spill, ignore_errors=True)
        _at_rest.append(opened)


def _close(opened: _Opened) -> None:
    opened.database.close()
    shutil.rmtree(opened.spill, ignore_errors=True)


@atexit.register
def _end() -> None:
    """Close the one at rest."""
    while _at_rest:
        _close(_at_rest.pop())


os.register_at_fork(before=_end)  # its threads would not be there in the child
