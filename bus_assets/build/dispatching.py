"""A queue route's sensor: the declaration as a policy, the trip protocol passed down."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from dagster import DagsterRun, RunsFilter, SensorEvaluationContext

from bus_assets import archive
from bus_assets.boarding import caught_up, settle
from bus_assets.build.keys import DEPOT, STAGING
from bus_assets.causes import in_a_line
from bus_assets.drive import TRIP_TAG, Bus
from bus_assets.queues import Queue
from bus_assets.route import Route
from resources.depot.entries import Attempt, Trip, TripState
from sensors.dispatch import POLL_SECONDS, Above, Tick, tick
from sensors.envelopes import unwrap
from sensors.judging import LOST_RUNS, Policy, Unclaimed
from sensors.queue import LAUNCH_TAG, queue_sensor


def route_sensor(route: Route, job: Any) -> Any:
    """The sensor that boards the route's messages and starts its trips."""
    queue = route.queue
    assert queue is not None

    @contextmanager
    def ticking(context: SensorEvaluationContext) -> Iterator[Callable[[], Tick]]:
        systems = {name: getattr(context.resources, name) for name in (*queue.systems, *route.databases)}
        bus = Bus(getattr(context.resources, DEPOT).depot(), getattr(context.resources, STAGING).open(), systems)
        dead_letters = systems[queue.dead_letters] if queue.dead_letters else None
        above = protocol(bus, route, queue, context.instance)
        policy, inbox = policy_of(route, queue), bus.depot.inbox
        yield partial(tick, policy, inbox, systems[queue.system], above, dead_letters=dead_letters, poll_seconds=POLL_SECONDS)

    needs = {DEPOT, STAGING, *queue.systems, *route.databases}
    said = f"Boards messages of {queue.system}, starts trips of up to {queue.batch}, sees to those that failed."
    return queue_sensor(f"{route.name}_queue", job, TRIP_TAG.format(route=route.name), needs, ticking, said)


def policy_of(route: Route, queue: Queue) -> Policy:
    return Policy(
        route=route.name,
        batch=queue.batch,
        max_wait_seconds=queue.max_wait_seconds,
        max_in_flight=queue.max_in_flight,
        attempts=queue.attempts,
        halt_on_stranded=queue.on_stranded == "halt",
        parameters={parameter.name: parameter.default for parameter in route.parameters},
    )


def protocol(bus: Bus, route: Route, queue: Queue, instance: Any) -> Above:
    """What the dispatcher needs of the trip protocol and of Dagster's runs."""

    def end(trip: Trip, attempt: Attempt, lock_seconds: float) -> TripState | None:
        hurried = replace(bus, systems={**bus.systems, **{name: bus.systems[name].hurried(lock_seconds) for name in route.databases}})
        settle(hurried, route, trip, attempt)
        return bus.depot.trip(trip.id).state if caught_up(hurried, route, trip) else None

    def unclaimed(trip: Trip, attempt: Attempt | None) -> Unclaimed | None:
        ended = list[DagsterRun]()
        for run in instance.get_runs(RunsFilter(tags={TRIP_TAG.format(route=route.name): trip.id}), limit=LOST_RUNS):  # the newest first
            if attempt is not None and run.run_id == attempt.run:
                break
            if not run.is_finished:
                return None
            ended += [] if run.is_success else [run]  # one that had nothing to do ends well
        is_over = any(run.tags.get(LAUNCH_TAG) == str(trip.launches) for run in ended)
        forgiven = {str(launch) for launch in range(1, trip.launches_before_resume + 1)}
        counted = [run for run in ended if run.tags.get(LAUNCH_TAG) not in forgiven]
        return Unclaimed(len(counted), _why_it_ended(instance, ended[0])) if is_over else None

    def run_is_over(run_id: str) -> bool:
        run = instance.get_run_by_id(run_id)
        return run is not None and run.is_finished

    def report_dead(attempt: Attempt) -> None:
        run = instance.get_run_by_id(attempt.run) if bus.depot.is_abandoned(attempt) else None
        if run is not None and not run.is_finished:
            said = f"attempt {attempt.attempt} of trip {attempt.trip} was ended: its process is gone, or fell silent"
            instance.report_run_failed(run, said)

    return Above(
        unwrap=lambda received, fetch: unwrap(received, queue.decode.kind, queue.identity, fetch),
        fetch=bus.systems[queue.system].fetch,
        archive=partial(archive.keep, bus.staging, route.name),
        corrected=partial(archive.correct, bus.staging, route.name),
        end=end,
        unclaimed=unclaimed,
        run_is_over=run_is_over,
        abandoned=bus.depot.is_abandoned,
        report_dead=report_dead,
    )


def _why_it_ended(instance: Any, run: DagsterRun) -> str:
    """The first error that the run's log tells; else what it says of its end."""
    said = f"run {run.run_id} says no more than {run.status.value}"
    for entry in instance.all_logs(run.run_id):
        event = entry.dagster_event
        if event is not None and (error := getattr(event.event_specific_data, "error", None)):
            return in_a_line(error)
        if event is not None and (event.is_failure or event.event_type_value == "PIPELINE_CANCELED"):
            said = event.message or said
    return said
