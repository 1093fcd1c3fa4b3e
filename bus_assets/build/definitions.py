"""Routes and resources → Dagster definitions."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dagster import (
    AssetSelection,
    ConfigurableResource,
    Definitions,
    EnvVar,
    ExecutorDefinition,
    ResourceDefinition,
    ScheduleDefinition,
    define_asset_job,
    in_process_executor,
)
from pydantic import Field, create_model

from bus_assets.build.assets import route_assets
from bus_assets.build.bound import check_bound
from bus_assets.build.dispatching import route_sensor
from bus_assets.build.external import source_specs
from bus_assets.build.keys import DEPOT, PARAMETERS, STAGING, op_name, publish_name, source_key, stop_key
from bus_assets.declare import Misdeclared
from bus_assets.route import Cron, Route
from bus_assets.settings import settings
from bus_assets.stops import DropOff
from resources.depot.resource import DepotResource
from resources.staging import StagingArea
from sensors.schedule import cron_schedule


def build_definitions(
    routes: Iterable[Route],
    resources: Mapping[str, Any],
    *,
    depot: DepotResource | None = None,
    staging: StagingArea | None = None,
    executor: ExecutorDefinition | None = None,
) -> Definitions:
    """Dagster definitions of ``routes``: assets, checks, one job and the schedules of each, bound to ``resources`` by name.

    ``executor``  default: in process. Steps of a trip share one process then (0.3 s for four), instead of starting one each. With
    another one no process is the trip's: that it has died is seen only by the end of its run, or when its lease runs out.
    ``depot``, ``staging``  default: what :mod:`bus_assets.settings` says, where the ``bus`` command looks too.
    Raises :class:`Misdeclared` if a route needs a resource that is not bound, or is of a kind that a stop cannot use, or if two routes
    share a name or an asset key.
    """
    if isinstance(routes, Route):
        raise Misdeclared(f"build_definitions takes several routes, and got route {routes.name!r} alone; a comma makes a tuple: (route,)")
    routes = tuple(routes)
    if strangers := [route for route in routes if not isinstance(route, Route)]:
        raise Misdeclared(f"build_definitions takes routes, and got {strangers[0]!r:.100} among them; of a dict pass its values()")
    _check(routes, resources)
    bound = {
        **{name: _unshown(name, resource) for name, resource in resources.items()},
        **{PARAMETERS.format(route=route.name): _parameters_resource(route) for route in routes if route.parameters},
        DEPOT: _unshown(DEPOT, depot or DepotResource(url=settings().depot_url)),
        STAGING: staging or StagingArea(url=settings().staging_url),
    }
    jobs = {route.name: _job(route) for route in routes}
    return Definitions(
        assets=[*source_specs(routes, resources), *(asset for route in routes for asset in route_assets(route))],
        jobs=list(jobs.values()),
        schedules=[_schedule(route, jobs[route.name], cron, at) for route in routes for at, cron in enumerate(route.crons)],
        sensors=[route_sensor(route, jobs[route.name]) for route in routes if route.queue],
        resources=bound,
        executor=executor or in_process_executor,
    )


def _check(routes: tuple[Route, ...], resources: Mapping[str, Any]) -> None:
    names = [route.name for route in routes]
    for name in names:
        if names.count(name) > 1:
            raise Misdeclared(f"two routes are called {name!r}; a route's name is its job and its assets' prefix")
    keys: dict[Any, str] = {}
    for route in routes:
        for system in route.systems:
            if system not in resources:
                raise Misdeclared(
                    f"route {route.name!r} needs a resource {system!r}, which is not bound; bound are {', '.join(resources) or 'none'}: "
                    f"add it to build_definitions(…, resources={{{system!r}: …}})"
                )
        check_bound(route, resources)
        for stop in route.stops:
            key = stop_key(route, stop.name)
            if key in keys:
                raise Misdeclared(
                    f"asset key {key.to_user_string()!r} is made by {keys[key]} and by route {route.name!r}, stop {stop.name!r}"
                )
            keys[key] = f"route {route.name!r}, stop {stop.name!r}"
    _check_queues(routes)
    for reserved in (DEPOT, STAGING):
        if reserved in resources:
            raise Misdeclared(f"resource name {reserved!r} is the platform's own; pass it as depot=… or staging=… instead")
    for route in routes:
        if route.parameters and (taken := PARAMETERS.format(route=route.name)) in resources:
            raise Misdeclared(f"resource name {taken!r} is the platform's own, for the parameters of route {route.name!r}; choose another")
        _check_steps(route, keys)


def _check_queues(routes: tuple[Route, ...]) -> None:
    """Two routes on one queue would each get half of its messages, by chance; of dead letters nobody could tell whose they are."""
    of: dict[str, str] = {}
    for route in routes:
        for system in route.queue.systems if route.queue else ():
            if (other := of.setdefault(system, route.name)) != route.name:
                raise Misdeclared(
                    f"routes {other!r} and {route.name!r} both take messages from queue {system!r}, or send it dead letters; one queue "
                    "belongs to one route: let SNS fan out to a queue for each, and give each dead letters of its own"
                )


def _check_steps(route: Route, keys: Mapping[Any, str]) -> None:
    """No two steps of a job, and no source and stop, may have one name: Dagster's own error would not say which."""
    steps: dict[str, str] = {}
    named = [(op_name(route, stop.name), f"stop {stop.name!r}") for stop in route.stops if not isinstance(stop, DropOff)]
    for step, what in [*named, *((publish_name(route, database), f"database {database!r}") for database in route.databases)]:
        if (other := steps.setdefault(step, what)) is not what:
            raise Misdeclared(f"route {route.name!r}: {other} and {what} would both be step {step!r}; rename one of them")
    for stop in route.pick_ups:
        if (made_by := keys.get(source_key(stop))) is not None:
            raise Misdeclared(
                f"route {route.name!r}, stop {stop.name!r}: its source {source_key(stop).to_user_string()!r} has the asset key of "
                f"{made_by}; rename the resource {stop.source.system!r}, or that route or stop"
            )


def _job(route: Route) -> Any:
    return define_asset_job(
        route.name,
        selection=AssetSelection.assets(*(stop_key(route, stop.name) for stop in route.stops)),
        description=route.description or None,
    )


_PYTHON = {"string": str, "integer": int, "number": float, "boolean": bool}


_SECRETS = ("token", "password", "api_key", "headers")
_PASSWORD_IN_URL = re.compile(r"://[^/@]*:[^/@]+@")


def _unshown(name: str, resource: Any) -> Any:
    """``resource``, bound so that Dagster does not show its configuration where a secret was given in plain text.

    What a resource is constructed with becomes the default of its config schema, which the UI shows to everybody. An ``EnvVar``
    is shown by its name only, and stays as it is.
    """
    if not isinstance(resource, ConfigurableResource):
        return resource
    given = {field: getattr(resource, field) for field in type(resource).model_fields}
    by_name = [field for field, value in given.items() if isinstance(value, EnvVar)]
    plain = [field for field, value in given.items() if field not in by_name and _is_secret(field, value)]
    if not plain:
        return resource
    if by_name:
        raise Misdeclared(
            f"resource {name!r} gives {', '.join(by_name)} by EnvVar, but {', '.join(plain)} in plain text, which the UI would show; "
            "give both by EnvVar"
        )
    return ResourceDefinition.hardcoded_resource(resource, description=type(resource).__doc__)


def _is_secret(field: str, value: Any) -> bool:
    return bool(value) and (field in _SECRETS or (isinstance(value, str) and _PASSWORD_IN_URL.search(value) is not None))


def _parameters_resource(route: Route) -> Any:
    """A resource with one typed field per parameter: the launchpad shows it, and every stop of a run sees the same values."""
    for parameter in route.parameters:
        if hasattr(ConfigurableResource, parameter.name):
            raise Misdeclared(
                f"route {route.name!r}: parameter {parameter.name!r} is a word that Dagster's resources use; choose another name"
            )
    fields: Any = {
        p.name: (_PYTHON[p.type], Field(... if p.default is None else p.default, description=p.description or None))
        for p in route.parameters
    }
    made = create_model(f"{route.name.title().replace('_', '')}Parameters", __base__=ConfigurableResource, **fields)
    return made.configure_at_launch()


def _schedule(route: Route, job: Any, cron: Cron, number: int) -> ScheduleDefinition:
    config = {"resources": {PARAMETERS.format(route=route.name): {"config": dict(cron.parameters)}}} if cron.parameters else {}
    name = f"{route.name}_schedule" + (f"_{number + 1}" if number else "")
    return cron_schedule(name, job, cron.schedule, cron.zone, config)
