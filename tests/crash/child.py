"""What a killed process runs: one Dagster run of one route, in process, with unmodified product code.

The process is forked from a server that has imported all this (a fresh interpreter would spend 5 s on it for every kill) and has
opened nothing: no connection, no engine, no file.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

from dagster import DagsterInstance

from bus_assets.drive import TRIP_TAG
from tests.crash import routes

LATE_IMPORTS = (
    "alembic.command",
    "bus_assets.transforms",
    "dagster._core.storage.event_log",
    "dagster._core.storage.legacy_storage",
    "dagster._core.storage.noop_compute_log_manager",
    "dagster._core.storage.runs",
    "dagster._core.storage.schedules",
    "duckdb",
    "fsspec.implementations.local",
    "pandas",
    "psycopg",
    "resources.depot.migrate",
    "resources.staging.parquet",
    "resources.textfile",
    "sqlalchemy.dialects.postgresql.psycopg",
    "upath",
    "watchdog.observers",
)
"""What a run imports on its way, before the fork instead: otherwise most kills would hit an import."""

for _name in LATE_IMPORTS:
    importlib.import_module(_name)


def drive(place: routes.Place, route: str, file: str, trip: str | None, take_over: bool, report: Path) -> None:
    """One run. ``report`` gets the run's end as JSON: ``{"success": …, "errors": […]}``; a killed process writes none."""
    os.environ["DAGSTER_HOME"] = str(place.dagster_home)
    with report.with_suffix(".log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    tags = {TRIP_TAG.format(route=route): trip} if trip else {}
    if take_over:
        tags["bus/take_over"] = "true"
    config = {"resources": {f"{route}_parameters": {"config": {"file": file}}}}
    job = routes.definitions(place).resolve_job_def(route)
    with DagsterInstance.get() as instance:
        result = job.execute_in_process(run_config=config, tags=tags, instance=instance, raise_on_error=False)
    errors = [str(event.step_failure_data.error) for event in result.all_events if event.is_step_failure]
    report.write_text(json.dumps({"success": result.success, "errors": errors}))
