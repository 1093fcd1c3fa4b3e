"""The only asset decorators of the project: a stop becomes an asset, the drop-offs into one database become one step."""

import inspect
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

from dagster import (
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    Backoff,
    Failure,
    Jitter,
    JobDefinition,
    MaterializeResult,
    RetryPolicy,
    multi_asset,
)

from bus_assets.boarding import board, failed, finished
from bus_assets.build.external import kind_of, said_of_bodies
from bus_assets.build.keys import DEPOT, PARAMETERS, STAGING, op_name, publish_name, source_key, stop_key, stops_of
from bus_assets.build.lineage import column_schema
from bus_assets.build.shown import (
    COLUMNS_COME_FROM,
    accounted,
    accounted_spec,
    check_results,
    check_specs,
    drop_conserved,
    drop_metadata,
    inbox_metadata,
    lineage_table,
    stop_metadata,
)
from bus_assets.build.wordless import wordless
from bus_assets.contract import TableKey
from bus_assets.drive import TRIP_TAG, Boarding, Bus, Drive, Ended, NothingToDo
from bus_assets.halting import pick_up, problem_of, transform
from bus_assets.publish import Dropped, publish
from bus_assets.queues import MESSAGES, Bodies
from bus_assets.route import Route
from bus_assets.stops import DropOff, PickUp, Transform
from resources.depot.entries import AttemptLive, TripOver
from resources.errors import BusError, Poison, Transient

NOTHING_TO_DO = (NothingToDo, AttemptLive, TripOver)
"""What a run of messages meets whose trip is somebody else's, or over: it was asked for twice, or long ago."""
RETRY_DELAY_SECONDS = 2.0
IN_ONE_PROCESS = ("in_process", "execute_in_process_executor")
"""Dagster's executors that start no process for a step."""

T = TypeVar("T")


def route_assets(route: Route) -> list[AssetsDefinition]:
    """All assets of a route, in driving order."""
    carrying = [stop_asset(route, stop) for stop in route.stops if not isinstance(stop, DropOff)]
    return carrying + [publishing(route, database) for database in route.databases]


def stop_asset(route: Route, stop: PickUp | Transform) -> AssetsDefinition:
    """A pick-up or transform as an asset: stage, gate, verdict."""
    key = stop_key(route, stop.name)
    upstream = [stop_key(route, name) for name in route.needs(stop.name)]
    spec = AssetSpec(
        key,
        deps=[source_key(stop), *upstream] if isinstance(stop, PickUp) else upstream,
        group_name=route.group or route.name,
        kinds=_kinds(stop),
        owners=list(stop.owners or route.owners),
        description=_described(stop),
        metadata={"dagster/column_schema": column_schema(stop.contract), COLUMNS_COME_FROM: lineage_table(route, stop.name)},
    )

    is_first = isinstance(stop, PickUp) and isinstance(stop.source, Bodies)

    @multi_asset(
        name=op_name(route, stop.name),
        specs=[spec.replace_attributes(skippable=True) if is_first else spec],
        check_specs=[*check_specs(key, stop), *([accounted_spec(key)] if is_first else [])],
        required_resource_keys=_resources(route, stop),
        retry_policy=_retries(route),
        # Where nothing is to do, the first stop yields nothing, no check result either; Dagster then skips all that follow.
        can_subset=is_first,
    )
    def drive_stop(context: AssetExecutionContext) -> Iterator[MaterializeResult]:
        def halt(drive: Drive) -> MaterializeResult:
            stopped = pick_up(drive, stop) if isinstance(stop, PickUp) else transform(drive, stop)
            verdict = stopped.verdict
            context.log.info(f"{stop.name}: {verdict.picked_up} rows in, {verdict.kept} kept, {verdict.rejected} rejected")
            if stopped.unread:
                context.log.info(f"{stop.name}: columns of the source that no field reads: {', '.join(stopped.unread)}")
            results, metadata = check_results(key, stop, stopped), stop_metadata(drive, stopped)
            if is_first:
                results.append(accounted(key, drive))
                metadata |= inbox_metadata(drive)
            shown = MaterializeResult(asset_key=key, metadata=metadata, check_results=results)
            problem = problem_of(drive, stopped)
            if problem:
                failed(drive, stop.name, problem)
                # Dagster's own error names the check and no reason: whoever reads only the run's log must find it there.
                context.log.error(str(problem))
            else:
                finished(drive, stop.name)
            return shown

        try:
            yield _guarded(context, route, stop.name, halt)
        except NothingToDo as nothing:
            context.log.info(f"nothing to do: {nothing}")

    return drive_stop


def publishing(route: Route, database: str) -> AssetsDefinition:
    """All drop-offs into one database as one step, which yields its materialisations after the commit.

    It waits for every stop of the route: nothing is published before every gate has passed.
    """
    drops = [drop for drop in route.drop_offs if drop.into.database == database]
    waits = [stop_key(route, name) for name in _unwatched(route, drops)]
    if (position := route.databases.index(database)) > 0:
        waits.append(stop_key(route, next(drop.name for drop in route.drop_offs if drop.into.database == route.databases[position - 1])))

    @multi_asset(
        name=publish_name(route, database),
        specs=[_drop_spec(route, drop, waits) for drop in drops],
        check_specs=[AssetCheckSpec("conserved", asset=stop_key(route, drop.name), blocking=True) for drop in drops],
        required_resource_keys={DEPOT, STAGING, *route.databases, *_parameters(route)},
        retry_policy=_retries(route),
        can_subset=False,
    )
    def drop_rows(context: AssetExecutionContext) -> Iterator[MaterializeResult]:
        def halt(drive: Drive) -> list[MaterializeResult]:
            return [_dropped(context, drive, drop, done) for drop, done in zip(drops, publish(drive, database), strict=True)]

        yield from _guarded(context, route, drops[0].name, halt)

    return drop_rows


def _unwatched(route: Route, drops: list[DropOff]) -> list[str]:
    """Stops whose gate no drop-off of the step waits for by the rows it drops, directly or further up.

    Only these become dependencies of their own: with an edge from every stop to every drop-off nobody could read the graph.
    """
    carrying = [stop.name for stop in route.stops if not isinstance(stop, DropOff)]
    watched = {name for drop in drops for name in route.upstream(drop.name)} | {needed for name in carrying for needed in route.needs(name)}
    return [name for name in carrying if name not in watched]


def _dropped(context: AssetExecutionContext, drive: Drive, drop: DropOff, done: Dropped) -> MaterializeResult:
    key = stop_key(drive.route, drop.name)
    context.log.info(f"{drop.name}: {done.rows} rows in {drop.into}" + (", published by an earlier attempt" if done.already else ""))
    return MaterializeResult(asset_key=key, metadata=drop_metadata(drive, drop, done), check_results=[drop_conserved(key, done)])


def _drop_spec(route: Route, drop: DropOff, waits: list[AssetKey]) -> AssetSpec:
    contract = route.contract_of(drop.name)
    return AssetSpec(
        stop_key(route, drop.name),
        deps=list(dict.fromkeys([stop_key(route, route.upstream(drop.name)[0]), *waits])),
        group_name=drop.group or route.group or route.name,
        kinds={"table", drop.into.database[:30]},
        owners=list(drop.owners or route.owners),
        description=drop.description or f"Rows of '{route.upstream(drop.name)[0]}' in table {drop.into.name} ({drop.into.mode}).",
        metadata={
            "dagster/column_schema": column_schema(contract, drop.mapping(contract), drop.into.key),
            "dagster/table_name": drop.into.name,
            COLUMNS_COME_FROM: lineage_table(route, drop.name),
        },
    )


def _guarded(context: AssetExecutionContext, route: Route, stop: str, halt: Callable[[Drive], T]) -> T:
    """Board, halt at the stop; on the way out the depot learns of failures, and Dagster is told which of them are worth a retry.

    Dagster keeps an error's causes with their texts. A driver's or pandas' text may quote a row, so where a route has sensitive fields
    causes are left out, and the lines of code that were run are kept without them.
    """
    drive = None
    try:
        drive = board(_bus(context, route), route, _boarding(context, route))
        return halt(drive)
    except NOTHING_TO_DO as error:
        if stop != MESSAGES or (drive is not None and not isinstance(error, NothingToDo)):
            raise Failure(str(error.at(route=route.name, stop=stop)), allow_retries=False) from error
        raise NothingToDo(error.message, route=route.name) from error
    except BusError as error:
        again = isinstance(error, Transient)
        if drive and not (again and context.retry_number < route.retries):
            failed(drive, stop, error)
        told = Failure(str(error.at(route=route.name, stop=stop)), metadata=wordless(route, error), allow_retries=again)
        raise told from (None if route.has_sensitive else error)
    except Exception as error:
        poison = Poison(f"{type(error).__name__}" if route.has_sensitive else f"{type(error).__name__}: {error}")
        if drive:
            failed(drive, stop, poison)
        said = str(poison.at(route=route.name, stop=stop))
        raise Failure(said, metadata=wordless(route, error), allow_retries=False) from (None if route.has_sensitive else error)
    except BaseException as error:
        if drive:
            failed(drive, stop, Ended(f"the run was ended ({type(error).__name__})"))
        # Dagster would try an interrupted step again wherever there is a retry policy: the run could not be stopped.
        raise Failure(f"route '{route.name}', stop '{stop}': the run was ended", allow_retries=False) from error


def _bus(context: AssetExecutionContext, route: Route) -> Bus:
    systems = {name: getattr(context.resources, name) for name in route.systems if hasattr(context.resources, name)}
    return Bus(getattr(context.resources, DEPOT).depot(), getattr(context.resources, STAGING).open(), systems)


def _boarding(context: AssetExecutionContext, route: Route) -> Boarding:
    run, tags = context.run, context.run.tags
    resumed = tags.get("dagster/is_resume_retry") == "true" or "dagster/step_selection" in tags or bool(run.step_keys_to_execute)
    return Boarding(
        run=run.run_id,
        selected=_selected(context, route),
        trigger="cron" if "dagster/schedule_name" in tags else tags.get("bus/trigger", "person"),
        parameters=_given(context, route),
        scheduled=datetime.fromisoformat(tags["bus/scheduled"]) if "bus/scheduled" in tags else None,
        tagged=tags.get(TRIP_TAG.format(route=route.name)),
        resumed=run.parent_run_id if resumed or route.queue else None,
        run_is_over=lambda other: _is_over(context, other),
        take_over=tags.get("bus/take_over") == "true",
        one_process=in_one_process(context.job_def),
    )


def in_one_process(job: JobDefinition) -> bool:
    """Whether all steps of a run share the process; not where the launchpad may choose so."""
    return job.executor_def.name in IN_ONE_PROCESS


def _is_over(context: AssetExecutionContext, run_id: str) -> bool:
    run = context.instance.get_run_by_id(run_id)
    return run is not None and run.is_finished  # one that this instance never saw may be alive elsewhere


def _selected(context: AssetExecutionContext, route: Route) -> frozenset[str]:
    chosen = context.run.asset_selection
    stops = stops_of(route, chosen) if chosen else frozenset(stop.name for stop in route.stops)
    steps = context.run.step_keys_to_execute
    if not steps:
        return stops
    return frozenset(stop for stop in stops if _step(route, stop) in steps)


def _step(route: Route, stop: str) -> str:
    declared = route[stop]
    return publish_name(route, declared.into.database) if isinstance(declared, DropOff) else op_name(route, stop)


def _given(context: AssetExecutionContext, route: Route) -> dict[str, Any]:
    if not route.parameters:
        return {}
    given = getattr(context.resources, PARAMETERS.format(route=route.name))
    return {parameter.name: getattr(given, parameter.name) for parameter in route.parameters}


def _resources(route: Route, stop: PickUp | Transform) -> set[str]:
    tables = {field.references.database for field in stop.contract.fields if isinstance(field.references, TableKey)}
    source = {stop.source.system} if isinstance(stop, PickUp) else set()
    return {DEPOT, STAGING, *source, *tables, *route.databases, *_parameters(route)}


def _parameters(route: Route) -> set[str]:
    return {PARAMETERS.format(route=route.name)} if route.parameters else set()


def _retries(route: Route) -> RetryPolicy:
    return RetryPolicy(max_retries=route.retries, delay=RETRY_DELAY_SECONDS, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS)


def _kinds(stop: PickUp | Transform) -> set[str]:
    if isinstance(stop, PickUp):
        return {kind_of(stop), "parquet"}
    return {"duckdb" if stop.is_sql else "python", "parquet"}


def _described(stop: PickUp | Transform) -> str:
    """The author's words, then what the stop does: where it picks up, its SQL, its function's docstring."""
    if isinstance(stop, PickUp) and isinstance(stop.source, Bodies):
        does = said_of_bodies(stop.source)
    elif isinstance(stop, PickUp):
        does = f"Picked up from {stop.source.system}: `{stop.source.address()}`"
    elif isinstance(stop.how, str):
        does = f"```sql\n{inspect.cleandoc(stop.how)}\n```"
    else:
        does = inspect.getdoc(stop.how) or f"Made by {getattr(stop.how, '__name__', 'a function')}()."
    return f"{stop.description}\n\n{does}" if stop.description else does
