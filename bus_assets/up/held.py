"""A Dagster instance that a worker keeps from run to run, and that keeps its connections to Postgres while a run lasts.

Making an instance takes a tenth of a second, most of it a look at the migrations of its storage. And Dagster's storages on Postgres open a
connection for every statement, about a hundred in a run of two stops, which is half of what a warm run costs. Its web server keeps
them, by a switch that is as good for whoever drives runs; on SQLite the switch does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from dagster import DagsterInstance

RECYCLE_SECONDS = 3600
NO_LIMIT = -1


class HeldInstance:
    """In the place of ``DagsterInstance`` for those who only ``get`` it, one after the other: one instance for this process."""

    _kept: ClassVar[DagsterInstance | None] = None

    @classmethod
    @contextmanager
    def get(cls) -> Iterator[DagsterInstance]:
        if cls._kept is None:
            cls._kept = DagsterInstance.get()
        hold(cls._kept)  # anew for each run: the server may have been restarted since the last one
        yield cls._kept


def hold(instance: DagsterInstance) -> None:
    """Open new connections to the storage, and keep them."""
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=RECYCLE_SECONDS, max_overflow=NO_LIMIT)
