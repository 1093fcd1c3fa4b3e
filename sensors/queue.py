"""The Dagster sensor of a queue: each tick dispatches, and asks for a run for each trip that is ready."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from dagster import DefaultSensorStatus, RunRequest, SensorEvaluationContext, SensorResult, SkipReason, sensor

from sensors.dispatch import Tick

SHORTEST_INTERVAL_SECONDS = 1
"""Dagster's daemon looks every five seconds all the same; a tick itself waits for messages."""


def queue_sensor(
    name: str,
    job: Any,
    tag: str,
    needs: set[str],
    ticking: Callable[[SensorEvaluationContext], AbstractContextManager[Callable[[], Tick]]],
    description: str,
) -> Any:
    """A sensor that starts ``job`` for each departing trip, named by the run's ``tag``. Running as soon as the code is loaded.

    ``ticking`` opens what a tick works on. The run key only saves work: what keeps a trip from being driven twice is its claim.
    """

    @sensor(
        name=name,
        job=job,
        minimum_interval_seconds=SHORTEST_INTERVAL_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
        required_resource_keys=needs,
        description=description,
    )
    def ticks(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        with ticking(context) as tick:
            done = tick()
        context.log.info(done.said)
        if not done.departures:
            return SkipReason(done.said)
        return SensorResult(run_requests=list(_requests(done, tag)), cursor=done.said)

    return ticks


def _requests(tick: Tick, tag: str) -> Iterator[RunRequest]:
    for departure in tick.departures:
        said = {tag: departure.trip, "bus/trigger": "queue", "bus/messages": str(departure.messages)}
        yield RunRequest(run_key=f"{departure.trip}/{departure.launch}", tags=said)
