"""How runs travel to workers: the part of dagster.yaml that both the launcher and the workers go by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.errors import Misconfigured

if TYPE_CHECKING:
    from bus_assets.settings import Settings

LAUNCHER = ("dagster_celery.launcher", "CeleryRunLauncher")
BROKER = "sqs://"
MAX_RUNTIME_SECONDS = 12 * 3600
RESULTS_KEPT_SECONDS = 7 * 24 * 3600
"""Must be longer than any run: a run whose result is gone counts as dead."""
VISIBILITY_SECONDS = 30
"""A task is deleted from SQS when a process takes it, so this bounds how long one hides that nobody takes: fetched ahead by a busy
worker, or handed to the long poll of one that died. It then goes to another; Dagster ignores a run that comes again."""
POLL_SECONDS = 5
"""Long polls of SQS. Short, because the poll of a worker that died can still swallow a task."""
EMPTY_SECONDS = 0.1
"""Between two polls. With 0, kombu spins while all processes are busy."""


def celery_launcher(here: Settings) -> dict[str, Any]:
    """The ``run_launcher`` of dagster.yaml: broker SQS, results in a database. It holds no secret: the database is named by variable."""
    module, name = LAUNCHER
    secure = not (here.cloud_url or "").startswith("http://")
    return {
        "module": module,
        "class": name,
        "config": {
            "broker": BROKER,
            "backend": {"env": "BUS_RESULTS_URL"},
            "default_queue": here.run_queue,
            "config_source": celery_settings(here.region, secure=secure),
        },
    }


def celery_settings(region: str, *, secure: bool) -> dict[str, Any]:
    return {
        "broker_transport_options": {
            "region": region,
            "is_secure": secure,
            "visibility_timeout": VISIBILITY_SECONDS,
            "wait_time_seconds": POLL_SECONDS,
            "polling_interval": EMPTY_SECONDS,
        },
        "broker_connection_retry_on_startup": True,
        "worker_prefetch_multiplier": 1,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "result_expires": RESULTS_KEPT_SECONDS,
        "worker_enable_remote_control": False,  # it would need fan-out, which SQS has not
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def read_launcher(home: Path) -> dict[str, Any]:
    """The Celery launcher's config in ``home/dagster.yaml``, variables resolved. Misconfigured if there is none."""
    import yaml

    path = home / "dagster.yaml"
    try:
        said = (yaml.safe_load(path.read_text()) or {}).get("run_launcher") or {}
    except (OSError, yaml.YAMLError) as error:
        raise Misconfigured(f"cannot be read ({error}); workers go by its run_launcher", place=str(path)) from error
    if (said.get("module"), said.get("class")) != LAUNCHER:
        raise Misconfigured(f"its run_launcher is not {'.'.join(LAUNCHER)}: there is nothing for a worker to do", place=str(path))
    return {name: _resolved(value, path) for name, value in (said.get("config") or {}).items()}


def _resolved(value: Any, path: Path) -> Any:
    """``{env: NAME}``, as Dagster writes it, is the variable's value."""
    if not (isinstance(value, Mapping) and set(value) == {"env"}):
        return value
    try:
        return os.environ[value["env"]]
    except KeyError as missing:
        raise Misconfigured(f"names the variable {missing}, which is not set", place=str(path)) from missing
