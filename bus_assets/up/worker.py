"""The Celery application of the workers, for ``celery -A bus_assets.up.worker worker``: dagster-celery's tasks, and the routes with them.

All that a run needs is imported before the worker forks, so that every process it starts is warm at once and shares that memory. Nothing
is opened before the fork: no client, no engine, no DuckDB.
"""

import contextlib
import importlib
import json
import os
import socket
from typing import Any

from celery.backends.database import DatabaseBackend
from celery.exceptions import WorkerLostError
from celery.signals import celeryd_init, worker_process_shutdown, worker_ready
from dagster_celery import tasks
from dagster_celery.config import DEFAULT_CONFIG
from dagster_celery.make_app import make_app
from kombu.transport import TRANSPORT_ALIASES

from bus_assets.settings import settings
from bus_assets.up.held import HeldInstance
from bus_assets.up.runs import read_launcher

READY = "takes runs now"
LAZY = ("pandas", "pyarrow.parquet", "pyarrow.compute", "duckdb", "sqlalchemy", "dagster._core.execution.api")
"""What stops import when they first halt."""

tasks.DagsterInstance = HeldInstance  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
TRANSPORT_ALIASES["sqs"] = "bus_assets.up.patient_sqs:Transport"
_here = settings()
_launcher = read_launcher(_here.dagster_home)

app = make_app(
    {
        "broker": _launcher.get("broker"),
        "backend": _launcher.get("backend"),
        "include": [_here.module],
        "config_source": {**DEFAULT_CONFIG, **(_launcher.get("config_source") or {})},
        "task_default_queue": _launcher.get("default_queue") or "dagster",
    }
)
execute_job = tasks.create_execute_job_task(app)
resume_job = tasks.create_resume_job_task(app)


@celeryd_init.connect
def _warm(**_: Any) -> None:
    """Before the fork: import, and build every job once."""
    for name in LAZY:
        importlib.import_module(name)
    importlib.import_module(_here.module).defs.resolve_all_job_defs()
    _close_abandoned()


@worker_ready.connect
def _tell(sender: Any, **_: Any) -> None:
    print(f"{sender.hostname} {READY}", flush=True)


@worker_process_shutdown.connect
def _forget_old_results(**_: Any) -> None:
    """Each process that is recycled sweeps: results have no other end."""
    app.backend.cleanup()


def _close_abandoned() -> None:
    """Runs whose process died with its whole worker on this machine count as failed: nobody else is left to say so.

    A process that is still there (another worker's) is left alone.
    """
    backend = app.backend
    if not isinstance(backend, DatabaseBackend):
        return
    session = backend.ResultSession()
    with contextlib.closing(session):
        rows = session.query(backend.task_cls).filter(backend.task_cls.status == "STARTED")
        started: list[tuple[Any, Any]] = [(row.task_id, row.result) for row in rows]
    for task, result in started:
        if _died_here(json.loads(result or "{}")):
            backend.store_result(task, WorkerLostError("the worker died while it drove this run"), "FAILURE")


def _died_here(where: Any) -> bool:
    host = str(where.get("hostname", "")).rpartition("@")[2]
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(where["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
