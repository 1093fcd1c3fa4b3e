"""The product as its users run it: a Dagster job over a Route, with depot, staging and event log on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.data import cache


def workshop() -> Path:
    """A new directory for depot, staging and event log, on the disk where the input is."""
    return Path(tempfile.mkdtemp(prefix="work-", dir=cache()))


def job(route: Any, systems: dict[str, Any], home: Path) -> Callable[[], None]:
    """What drives ``route`` once, as a job in this process; raises if the run fails."""
    from dagster import DagsterInstance

    from bus_assets import build_definitions
    from resources.depot.resource import DepotResource
    from resources.staging import StagingArea

    home.mkdir(parents=True, exist_ok=True)
    definitions = build_definitions(
        [route], systems, depot=DepotResource(url=f"sqlite:///{home}/depot.db"), staging=StagingArea(url=str(home / "staging"))
    )
    job_def = definitions.resolve_job_def(route.name)
    instance = DagsterInstance.local_temp(str(home))

    def drive() -> None:
        job_def.execute_in_process(instance=instance, raise_on_error=True)

    return drive


def forget(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
