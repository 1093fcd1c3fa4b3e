"""The product as its users run it: a Dagster job over a Route, with depot, staging and event log on disk."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.data import cache


def workshop() -> Path:
    """A new directory for depot, staging and event log, on the disk where the input is."""
    return Path(tempfile.mkdtemp(prefix="work-", dir=cache()))


def on_postgres(url: str, home: Path) -> Any:
    """A Dagster instance as workers in production keep one: its storage in Postgres, its connections held from run to run."""
    from dagster import DagsterInstance

    from bus_assets.up.held import hold

    driver = url.replace("postgresql+psycopg:", "postgresql+psycopg2:")
    storage = {"postgres": {"postgres_url": driver}}
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(json.dumps({"storage": storage, "telemetry": {"enabled": False}}))
    instance = DagsterInstance.from_config(str(home))
    hold(instance)
    return instance


def job(route: Any, systems: dict[str, Any], home: Path, instance: Any = None, depot: str | None = None) -> Callable[[], None]:
    """What drives ``route`` once, as a job in this process; raises if the run fails. Depot and Dagster's storage are SQLite by default."""
    from dagster import DagsterInstance

    from bus_assets import build_definitions
    from resources.depot.resource import DepotResource
    from resources.staging import StagingArea

    home.mkdir(parents=True, exist_ok=True)
    definitions = build_definitions(
        [route],
        systems,
        depot=DepotResource(url=depot or f"sqlite:///{home}/depot.db"),
        staging=StagingArea(url=str(home / "staging")),
    )
    job_def = definitions.resolve_job_def(route.name)
    known = instance or DagsterInstance.local_temp(str(home))

    def drive() -> None:
        job_def.execute_in_process(instance=known, raise_on_error=True)

    return drive


def forget(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
