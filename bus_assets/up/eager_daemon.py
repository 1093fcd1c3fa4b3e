"""``python -m bus_assets.up.eager_daemon``: dagster-daemon, which starts a sensor again sooner, and tells our errors in a line.

Dagster looks every 5 s which sensors are due, and no setting changes that. A sensor that long-polls a queue is deaf from the moment when
it returns a message until then: 2.5 s of the mean time from message to run. Where a later Dagster has no such constant, this is the
plain daemon. A smaller ``minimum_interval_seconds`` of a sensor counts here; others keep theirs.

Of a tick that failed Dagster logs two tracebacks, eighty lines. An error of ours says in one what is wrong and what to do.

Dagster asks whether a run's process is there once the run has started; one whose process died before that would be 'starting' for a day,
as a run may wait so long for a worker. Here it is asked about those too.
"""

import logging
import time
from typing import Any

from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.dagster_run import RunRecord
from dagster._daemon import sensor
from dagster._daemon.cli import main
from dagster._daemon.monitoring import run_monitoring
from dagster._daemon.utils import DaemonErrorCapture
from dagster._utils.error import serializable_error_info_from_exc_info

from bus_assets.causes import innermost

LOOK_SECONDS = 0.5
OURS = "resources.errors."
AGAIN_SECONDS = 60.0
"""How long an error that comes again, tick after tick, is not said again; the ticks in the UI have it each time."""

TASK_TAG = "dagster-celery/task_id"
DIED_STARTING = "the process that took this run died before it had started; nothing of it was driven"

_said: dict[str, float] = {}
_dagsters_look = run_monitoring.monitor_starting_run


def told(exc_info: Any, logger: logging.Logger, log_message: str) -> Any:
    """Instead of Dagster's ``process_exception``: the same, but that an error of ours is logged without its tracebacks."""
    if not (ours := our_error(exc_info[1])):
        return DaemonErrorCapture.default_process_exception(exc_info, logger, log_message)
    if time.monotonic() - _said.get(ours, float("-inf")) > AGAIN_SECONDS:
        _said[ours] = time.monotonic()
        logger.error(f"{log_message}: {ours}")
    return serializable_error_info_from_exc_info(exc_info)


def our_error(error: BaseException | None) -> str | None:
    """What the error of ours says that ended a tick in the code server; None if there is none."""
    for info in getattr(error, "user_code_process_error_infos", ()):
        kind, _, said = innermost(info).message.strip().partition(": ")
        if kind.startswith(OURS):
            return said
    return None


def look_at_starting(instance: DagsterInstance, record: RunRecord, logger: logging.Logger) -> None:
    """Instead of Dagster's ``monitor_starting_run``: a worker's run fails too if the results say that whoever took it is dead."""
    run = record.dagster_run
    if run.status == DagsterRunStatus.STARTING and TASK_TAG in run.tags:
        is_dead = instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
        now = instance.get_run_by_id(run.run_id) if is_dead else None
        if now and now.status == DagsterRunStatus.STARTING:
            logger.info(f"run {run.run_id}: {DIED_STARTING}")
            instance.report_run_failed(now, DIED_STARTING)
            return
    _dagsters_look(instance, record, logger)


if __name__ == "__main__":
    run_monitoring.monitor_starting_run = look_at_starting
    if hasattr(sensor, "MIN_INTERVAL_LOOP_TIME"):
        sensor.MIN_INTERVAL_LOOP_TIME = LOOK_SECONDS
    DaemonErrorCapture.process_exception = staticmethod(told)  # type: ignore[assignment]
    main()
