"""A Dagster instance that a worker keeps from run to run, and that keeps its connections to Postgres while a run lasts.

Making an instance takes a tenth of a second, most of it a look at the migrations of its storage. And Dagster's storages on Postgres open a
connection for every statement, about a hundred in a run of two stops, which is half of what a warm run costs. Its web server keeps
them, by a switch that is as good for whoever drives runs; on SQLite the switch does nothing. A run also asks dozens of times which tables
there are, and which columns one has: that changes by a migration only, after which workers are started anew, so once is enough.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import sqlalchemy as sa
from dagster import DagsterInstance
from dagster._core.storage.event_log import SqlEventLogStorage

from resources.engines import NO_LIMIT, ask_after_rest

RECYCLE_SECONDS = 3600


class HeldInstance:
    """In the place of ``DagsterInstance`` for those who only ``get`` it, one after the other: one instance for this process."""

    _kept: ClassVar[DagsterInstance | None] = None

    @classmethod
    @contextmanager
    def get(cls) -> Iterator[DagsterInstance]:
        if cls._kept is None:
            cls._kept = DagsterInstance.get()
            hold(cls._kept)
        try:
            yield cls._kept
        finally:
            release(cls._kept)


def hold(instance: DagsterInstance) -> None:
    """Keep connections to the storage from now on; where that is in doubt, one is asked whether it still lives before it is used again."""
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=RECYCLE_SECONDS, max_overflow=NO_LIMIT)
    for engine in _engines(instance):
        ask_after_rest(engine)
    storage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage):
        storage.has_asset_key_col = functools.cache(storage.has_asset_key_col)
        storage.has_table = functools.cache(storage.has_table)


def release(instance: DagsterInstance) -> None:
    """Close what is kept; whoever goes on with ``instance`` opens others, and keeps those."""
    for engine in _engines(instance):
        engine.dispose()


def _engines(instance: DagsterInstance) -> list[sa.Engine]:
    """Of the storages that are on Postgres."""
    storages = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    engines = [getattr(storage, "_engine", None) for storage in storages]
    return [engine for engine in engines if isinstance(engine, sa.Engine) and engine.dialect.name == "postgresql"]
