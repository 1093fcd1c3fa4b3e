"""What the clock starts. Called with plain arguments: knows nothing of routes."""

from collections.abc import Mapping
from typing import Any

from dagster import DefaultScheduleStatus, RunRequest, ScheduleDefinition, ScheduleEvaluationContext, schedule


def cron_schedule(name: str, job: Any, cron: str, zone: str, run_config: Mapping[str, Any]) -> ScheduleDefinition:
    """A schedule that starts ``job`` at every tick of ``cron`` in ``zone``. Stopped until a person turns it on, as is Dagster's way.

    The tick's time travels as the run's scheduled time, so that a trip knows which tick it is for, however late it starts.
    """

    @schedule(name=name, job=job, cron_schedule=cron, execution_timezone=zone, default_status=DefaultScheduleStatus.STOPPED)
    def tick(context: ScheduleEvaluationContext) -> RunRequest:
        at = context.scheduled_execution_time
        return RunRequest(run_key=at.isoformat(), run_config=dict(run_config), tags={"bus/scheduled": at.isoformat()})

    return tick
