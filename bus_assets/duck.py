"""DuckDB for the rows of a stop. Opening one takes longer than most of what is asked of it, so one that is at rest is used again."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

MEMORY = "192MB"
"""DuckDB spills to disk above this, so that memory is bounded by the batch and not by the input."""


@dataclass(frozen=True)
class _Opened:
    database: duckdb.DuckDBPyConnection
    spill: str
    process: int = field(default_factory=os.getpid)


_at_rest: list[_Opened] = []
"""At most one of this process; what is here after a fork is the parent's, and must not be touched."""


@contextmanager
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of one's own: bounded memory, spilling beside the system's temporary files, no extensions fetched, UTC.

    What is made in it must be temporary: it may be somebody else's afterwards, who sees none of that.
    """
    import duckdb

    opened = _taken() or _open()
    connection = opened.database.cursor()
    try:
        yield connection
    except duckdb.Error:
        connection.close()
        _close(opened)  # after some errors a database cannot be used any more
        raise
    except BaseException:
        connection.close()
        _rest(opened)
        raise
    connection.close()
    _rest(opened)


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
    if opened.process == os.getpid():
        return opened
    _inherited.append(opened)
    return None


_inherited: list[_Opened] = []
"""Kept where nothing collects, and so closes, them."""


def _rest(opened: _Opened) -> None:
    if _at_rest:
        _close(opened)
    else:
        _at_rest.append(opened)


def _close(opened: _Opened) -> None:
    opened.database.close()
    shutil.rmtree(opened.spill, ignore_errors=True)


@atexit.register
def _end() -> None:
    if opened := _taken():
        _close(opened)
