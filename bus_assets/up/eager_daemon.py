"""``python -m bus_assets.up.eager_daemon``: dagster-daemon, which starts a sensor again sooner, and tells our errors in a line.

Dagster looks every 5 s which sensors are due, and no setting changes that. A sensor that long-polls a queue is deaf from the moment when
it returns a message until then: 2.5 s of the mean time from message to run. Where a later Dagster has no such constant, this is the
plain daemon. A smaller ``minimum_interval_seconds`` of a sensor counts here; others keep theirs.

Of a tick that failed Dagster logs two tracebacks, eighty lines. An error of ours says in one what is wrong and what to do.
"""

import logging
import time
from typing import Any

from dagster._daemon import sensor
from dagster._daemon.cli import main
from dagster._daemon.utils import DaemonErrorCapture
from dagster._utils.error import serializable_error_info_from_exc_info

from bus_assets.causes import innermost

LOOK_SECONDS = 0.5
OURS = "resources.errors."
AGAIN_SECONDS = 60.0
"""How long an error that comes again, tick after tick, is not said again; the ticks in the UI have it each time."""

_said: dict[str, float] = {}


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


if __name__ == "__main__":
    if hasattr(sensor, "MIN_INTERVAL_LOOP_TIME"):
        sensor.MIN_INTERVAL_LOOP_TIME = LOOK_SECONDS
    DaemonErrorCapture.process_exception = staticmethod(told)  # type: ignore[assignment]
    main()
