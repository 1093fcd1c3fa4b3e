"""Run a route's Dagster job in this process, as the UI would run it elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bus_assets.causes import causes, innermost
from bus_assets.cli.loading import Loaded, one_of, open_instance
from bus_assets.progress import Progress, watching
from bus_assets.route import Route
from bus_assets.stops import DropOff
from resources.depot.entries import Trip
from resources.depot.store import Depot
from resources.errors import Misconfigured, Refused


@dataclass(frozen=True)
class Wish:
    """What to drive. ``given`` are parameters as texts; ``select`` stops, none for all; ``trip`` an existing trip to drive (again)."""

    given: Mapping[str, str] = field(default_factory=dict)
    trip: str | None = None
    take_over: bool = False
    select: Sequence[str] = ()
    verbose: bool = False


@dataclass(frozen=True)
class Driven:
    """What came of it: the run, the trip that it drove (None if it got none), and the error that ended it, with how it came about."""

    run: str | None
    trip: Trip | None
    error: str | None
    interrupted: bool = False
    traceback: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.error is None and not self.interrupted


def drive_route(loaded: Loaded, route: Route, wish: Wish, watcher: Callable[[Progress], None]) -> Driven:
    """Drive ``route`` and wait. A failure is in the answer; Misconfigured and Refused are raised before anything starts."""
    from bus_assets.drive import TRIP_TAG

    depot = depot_of(loaded)
    parameters = _parameters(depot, route, wish)
    tags = {TRIP_TAG.format(route=route.name): wish.trip} if wish.trip else {}
    tags |= {"bus/take_over": "true"} if wish.take_over else {}
    selection = _selection(route, wish.select)
    job = loaded.defs.resolve_job_def(route.name)
    with open_instance() as instance, watching(watcher):
        before = {run.run_id for run in instance.get_runs(limit=1)}
        try:
            result = job.execute_in_process(
                run_config=_run_config(route, parameters, wish.verbose),
                instance=instance,
                tags=tags,
                raise_on_error=False,
                asset_selection=selection,
            )
        except (KeyboardInterrupt, _interrupted()):
            newest = [run.run_id for run in instance.get_runs(limit=1) if run.run_id not in before]
            return _driven(depot, route, wish, newest[0] if newest else None, "interrupted", interrupted=True)
        error, traceback = (None, None) if result.success else _error(result)
        driven = _driven(depot, route, wish, result.run_id, error, interrupted=_was_interrupted(result))
        return replace(driven, traceback=traceback)


def depot_of(loaded: Loaded) -> Depot:
    """The depot that a run of this module writes to."""
    from bus_assets.cli.loading import depot_resource

    with depot_resource(loaded) as bound:
        return bound.depot()


def _driven(depot: Depot, route: Route, wish: Wish, run: str | None, error: str | None, *, interrupted: bool = False) -> Driven:
    trip = depot.trip(wish.trip) if wish.trip else depot.trip_of_run(route.name, run) if run else None
    attempt = depot.newest_attempt(trip.id) if trip and interrupted else None
    if trip and attempt and attempt.run == run and trip.state == "driving":
        # Between two stops nobody but Dagster sees the interrupt.
        trip = depot.finish_trip(trip.id, "failed", "the run was interrupted", attempt=attempt.attempt)
    told = trip.error if trip and trip.error and error and not interrupted else error
    return Driven(run, trip, told, interrupted)


def _interrupted() -> type[BaseException]:
    from dagster import DagsterExecutionInterruptedError

    return DagsterExecutionInterruptedError


def _was_interrupted(result: Any) -> bool:
    kinds = {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}
    errors = [event.event_specific_data.error for event in result.all_events if getattr(event.event_specific_data, "error", None)]
    return any(found.cls_name in kinds for error in errors for found in causes(error))


def _parameters(depot: Depot, route: Route, wish: Wish) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in route.parameters}
    if wish.trip:
        trip = depot.trip(wish.trip)
        if trip.route != route.name:
            raise Refused(f"trip {trip.id} belongs to route '{trip.route}', not '{route.name}'")
        if wish.given:
            raise Refused(f"trip {trip.id} keeps the parameters it was started with; leave out --set, or start a new trip without --trip")
        return _kept(route, trip)
    for name in wish.given:
        one_of(name, known, "parameter", f"route '{route.name}'")
    open_ones = [name for name, parameter in known.items() if parameter.default is None and name not in wish.given]
    if open_ones:
        said = ", ".join(f"{name} ({known[name].type})" for name in open_ones)
        raise Misconfigured(f"route '{route.name}' needs {said}: add {' '.join(f'--set {name}=…' for name in open_ones)}")
    return {name: known[name].value(text) for name, text in wish.given.items()}


def _kept(route: Route, trip: Trip) -> dict[str, Any]:
    """What the run's configuration takes. The trip's own is what counts, and what it lacks the run says, as a sensor's run does."""
    from bus_assets.boarding import kept_parameters, unfit_parameter

    kept = kept_parameters(route, trip)
    if any(parameter.name not in kept and parameter.default is None for parameter in route.parameters) and (
        error := unfit_parameter(route, trip)
    ):
        raise error.at(route=route.name)
    return kept


def _selection(route: Route, select: Sequence[str]) -> list[Any] | None:
    """Asset keys. Drop-offs into one database are published together or not at all, so one of them stands for all."""
    from bus_assets.build.keys import stop_key

    if not select:
        return None
    names = [one_of(name, [stop.name for stop in route.stops], "stop", f"route '{route.name}'") for name in select]
    databases = {stop.into.database for stop in map(route.__getitem__, names) if isinstance(stop, DropOff)}
    names += [drop.name for drop in route.drop_offs if drop.into.database in databases]
    return [stop_key(route, name) for name in dict.fromkeys(names)]


def _run_config(route: Route, parameters: Mapping[str, Any], verbose: bool) -> dict[str, Any]:
    from bus_assets.build.keys import PARAMETERS

    config: dict[str, Any] = {}
    if not verbose:
        config["loggers"] = {"console": {"config": {"log_level": "CRITICAL"}}}
    if route.parameters:
        config["resources"] = {PARAMETERS.format(route=route.name): {"config": dict(parameters)}}
    return config


def _error(result: Any) -> tuple[str, str | None]:
    """The first failure that the run tells of, as a person should read it, and its traceback; a gate that says no has none."""
    from bus_assets.build.wordless import CAME_ABOUT

    for event in result.all_events:
        error = getattr(event.event_specific_data, "error", None)
        if event.is_step_failure and (told := event.step_failure_data.user_failure_data) and told.description:
            if wordless := told.metadata.get(CAME_ABOUT):
                return told.description, wordless.value
            return told.description, error.cause.to_string() if error and error.cause else None
        if (event.is_step_failure or event.is_failure) and error:
            return innermost(error).message.strip(), None if error.cls_name == "DagsterAssetCheckFailedError" else error.to_string()
    return "the run failed; `bus drive --verbose` shows Dagster's own log", None
