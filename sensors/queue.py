"""The Dagster sensor of a queue: each tick dispatches, and asks for a run for each trip that is ready."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from dagster import DefaultSensorStatus, RunRequest, SensorEvaluationContext, SensorResult, sensor

from resources.errors import BusError
from sensors.dispatch import Tick

LAUNCH_TAG = "bus/launch"
"""The run tag that says which of a trip's launches this is."""
SHORTEST_INTERVAL_SECONDS = 1
"""Dagster's own daemon looks every five seconds all the same, that of `bus up` every half; a tick itself waits for messages."""
ERROR_SECONDS = 3.0
"""How long a tick that failed waits: the next one comes at once, and most often fails as well."""


def queue_sensor(
    name: str,
    job: Any,
    tag: str,
    needs: set[str],
    ticking: Callable[[SensorEvaluationContext], AbstractContextManager[Callable[[], Tick]]],
    description: str,
) -> Any:
    """A sensor that starts ``job`` for each departing trip, named by the run's ``tag``. Running as soon as the code is loaded.

    ``ticking`` opens what a tick works on. The run key only saves work: what keeps a trip from being driven twice is its claim. It is
    one for each departure: Dagster asks for no run whose key it has seen.
    """

    @sensor(
        name=name,
        job=job,
        minimum_interval_seconds=SHORTEST_INTERVAL_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
        required_resource_keys=needs,
        description=description,
    )
    def ticks(context: SensorEvaluationContext) -> SensorResult:
        with ticking(context) as tick:
            try:
                done = tick()
            except BusError as error:
                time.sleep(ERROR_SECONDS)
                raise error.with_traceback(None) from None  # what it says is for people, how it came about fills their log
        context.log.info(done.said)
        if not done.departures:
            return SensorResult(skip_reason=done.said, cursor=done.said)  # the UI's list of ticks shows the cursor, the reason on a click
        return SensorResult(run_requests=list(_requests(done, tag)), cursor=done.said)

    return ticks


def _requests(tick: Tick, tag: str) -> Iterator[RunRequest]:
    for departure in tick.departures:
        said = {tag: departure.trip, LAUNCH_TAG: str(departure.launch), "bus/trigger": "queue", "bus/messages": str(departure.messages)}
        yield RunRequest(run_key=f"{departure.trip}/{departure.launch}/{departure.at:%Y%m%dT%H%M%S.%f}", tags=said)
