"""The Dagster instance of ``bus up``: the deployment's own ``dagster.yaml``, and what warm runs need where it says nothing.

The file in DAGSTER_HOME stays as it is, so that ``dagster dev`` on it goes on starting runs by itself, without workers. Processes of
``bus up`` get a DAGSTER_HOME of their own, whose storage is the same: both see the same runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus_assets.up.runs import MAX_RUNTIME_SECONDS, celery_launcher
from resources.errors import Misconfigured

if TYPE_CHECKING:
    from bus_assets.settings import Settings

FILE = "dagster.yaml"
TICK_DAYS = {"skipped": 1, "failure": 30, "success": 30, "started": 30}
LONGEST_BACKLOG_SECONDS = 24 * 3600
"""A run that waits for a worker is 'starting'. Whoever waits longer than this fails, so it must be longer than any backlog."""
MONITOR_SECONDS = 5


def warm_instance(here: Settings, threads: int, *, workers: bool) -> tuple[Path, bool]:
    """Write the instance for ``bus up`` and return its folder, and whether its runs go to Celery workers.

    What the deployment's own dagster.yaml says stands; a launcher that it names is used. Raises Misconfigured if it cannot be read.
    """
    said = _own(here.dagster_home / FILE)
    made = _defaults(here, threads, workers=workers) | said
    home = here.home / "up"
    home.mkdir(parents=True, exist_ok=True)
    _write(home / FILE, made, here.dagster_home / FILE)
    return home, "CeleryRunLauncher" in str(made.get("run_launcher", {}).get("class"))


def _own(path: Path) -> dict[str, Any]:
    import yaml

    try:
        said = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise Misconfigured(f"cannot be read: {error}", place=str(path)) from error
    if not isinstance(said, dict):
        raise Misconfigured("is not a mapping of settings, as dagster.yaml must be", place=str(path))
    return said


def _defaults(here: Settings, threads: int, *, workers: bool) -> dict[str, Any]:
    ticks = {"purge_after_days": TICK_DAYS}
    at_once = {"use_threads": True, "num_workers": threads, "num_submit_workers": threads}
    kept = str(here.dagster_home)
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        "storage": {"sqlite": {"base_dir": kept}},
        "local_artifact_storage": _class("dagster._core.storage.root", "LocalArtifactStorage", base_dir=kept),
        # Capturing what steps print costs a run of four steps 0.1 to 0.2 s of its 0.5; it stands in the town's log instead.
        "compute_logs": _class("dagster._core.storage.noop_compute_log_manager", "NoOpComputeLogManager"),
        "run_coordinator": _class("dagster._core.run_coordinator", "DefaultRunCoordinator"),
        "run_monitoring": {
            "enabled": True,
            "start_timeout_seconds": LONGEST_BACKLOG_SECONDS,
            "max_runtime_seconds": MAX_RUNTIME_SECONDS,
            "poll_interval_seconds": MONITOR_SECONDS,
            "free_slots_after_run_end_seconds": 300,
        },
        "sensors": at_once,
        "schedules": at_once,
        "retention": {"sensor": ticks, "schedule": ticks},
        "concurrency": {"pools": {"granularity": "op"}},
    } | ({"run_launcher": celery_launcher(here)} if workers else {})


def _class(module: str, name: str, **config: Any) -> dict[str, Any]:
    return {"module": module, "class": name} | ({"config": config} if config else {})


def _write(path: Path, content: dict[str, Any], own: Path) -> None:
    import yaml

    head = f"# Made by `bus up` at each start: what {own} says, and what warm runs need besides. Changes here are lost; make them there.\n"
    path.write_text(head + yaml.safe_dump(content, sort_keys=False))
