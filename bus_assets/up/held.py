"""A Dagster instance that keeps its connections to Postgres while a run lasts.

Dagster's storages there open a connection for every statement, about a hundred in a run of two stops, which is half of what a warm run
costs. Its web server keeps them, by a switch that is as good for whoever drives runs; on SQLite the switch does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from dagster import DagsterInstance

RECYCLE_SECONDS = 3600
NO_LIMIT = -1


class HeldInstance:
    """In the place of ``DagsterInstance`` for those who only ``get`` it."""

    @staticmethod
    @contextmanager
    def get() -> Iterator[DagsterInstance]:
        with DagsterInstance.get() as instance:
            hold(instance)
            yield instance


def hold(instance: DagsterInstance) -> None:
    """Keep connections from now on; they are closed with the instance."""
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=RECYCLE_SECONDS, max_overflow=NO_LIMIT)
