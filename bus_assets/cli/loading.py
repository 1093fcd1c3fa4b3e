"""Find what a command works on: the module with the routes, the depot, the systems that a route halts at."""

from __future__ import annotations

import difflib
import fcntl
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus_assets.cli.output import notice
from bus_assets.settings import DEMO, settings
from resources.errors import BusError, Misconfigured

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from bus_assets.drive import Bus
    from bus_assets.queues import Queue
    from bus_assets.route import Route
    from resources.depot.entries import Trip
    from resources.depot.resource import DepotResource
    from resources.depot.store import Depot

DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
sensors: &at_once
  use_threads: true
  num_workers: 32 # the sensor of every queue needs one to itself
  num_submit_workers: 32
schedules: *at_once
"""


@dataclass(frozen=True)
class Loaded:
    """A module's routes by name, and its Dagster definitions."""

    name: str
    defs: Any
    routes: dict[str, Route]

    def route(self, name: str) -> Route:
        is_demo = self.name == DEMO and not os.environ.get("BUS_MODULE")
        where = f"module {self.name}{', the demo, as BUS_MODULE is not set,' if is_demo else ''}"
        return self.routes[one_of(name, self.routes, "route", where)]


def load(module: str | None) -> Loaded:
    """Import ``module`` (default: the settings'); Misconfigured if it is not there, fails, or lacks ``defs`` or ``ROUTES``."""
    name = module or settings().module
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does; an installed `bus` starts without it
    found = _imported(name)
    missing = [what for what in ("defs", "ROUTES") if not hasattr(found, what)]
    if missing:
        raise Misconfigured(
            f"module {name} has no {' and no '.join(missing)}; it needs `ROUTES = (…)` and "
            "`defs = build_definitions(ROUTES, resources={…})`"
        )
    return Loaded(name, found.defs, {route.name: route for route in found.ROUTES})


def _imported(name: str) -> Any:
    try:
        with _nothing_collected(), redirect_stdout(sys.stderr):  # what it prints is no part of an answer
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise Misconfigured(f"module {name} fails to import: {error}") from error
        raise Misconfigured(f"there is no module {name}; name one with --module or BUS_MODULE, from the folder it is in") from error
    except BusError as error:
        error.at(place=_written_at(error))
        raise
    except SystemExit as error:
        raise Misconfigured(f"module {name} ends the process when it is imported", place=_written_at(error)) from error
    except Exception as error:  # the author's module may raise anything
        raise Misconfigured(f"module {name} fails to import: {type(error).__name__}: {error}", place=_written_at(error)) from error


def _written_at(error: BaseException) -> str | None:
    """The line of the author's own code in which ``error`` was raised: files in this folder, installed ones left out."""
    here = os.path.join(os.getcwd(), "")
    frames = reversed(traceback.extract_tb(error.__traceback__))
    mine = (frame for frame in frames if frame.filename.startswith(here) and "site-packages" not in frame.filename)
    return next((f"{frame.filename.removeprefix(here)}, line {frame.lineno}" for frame in mine), None)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Modules are no garbage: looking for some in them while Dagster is imported takes a fifth of that time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def one_of(name: str, known: Iterable[str], what: str, where: str) -> str:
    """``name`` if it is known, else Misconfigured that shows what is."""
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names) or 'none'}"
    raise Misconfigured(f"{where} has no {what} '{name}'; {hint}")


def open_depot() -> Depot:
    """The depot of the settings, to look into; it is not created by looking."""
    from resources.depot.store import Depot

    url = settings().depot_url
    file = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    if file is not None and not file.exists():
        raise Misconfigured(
            f"there is no depot at {file} yet: drive a route first (`bus drive ROUTE`), or say where it is by BUS_HOME or BUS_DEPOT_URL"
        )
    return Depot(url)


def known_route(depot: Depot, name: str, module: str | None) -> str:
    """``name`` if the depot has messages of that route, else if the module has it, else Misconfigured: a slip must not pause nothing.

    The depot first: a route whose module does not load any more can still be paused.
    """
    return name if name in depot.inbox.routes() else load(module).route(name).name


@contextmanager
def open_queue(loaded: Loaded, name: str) -> Iterator[tuple[Bus, Route, Queue]]:
    """A route whose trips are started by messages; Misconfigured for another."""
    route = loaded.route(name)
    if route.queue is None:
        raise Misconfigured(f"route '{name}' has no queue; `bus drive {name}` drives it")
    with open_bus(loaded, route) as bus:
        yield bus, route, route.queue


@contextmanager
def open_bus(loaded: Loaded, route: Route) -> Iterator[Bus]:
    """The module's depot, staging and the systems of ``route``, as a run gets them."""
    from dagster import build_resources

    from bus_assets.build.keys import DEPOT, STAGING
    from bus_assets.drive import Bus

    check_environment(loaded, route)
    resources = loaded.defs.resources or {}
    with build_resources({name: resources[name] for name in (DEPOT, STAGING, *route.systems)}) as bound:
        systems = {name: getattr(bound, name) for name in route.systems}
        yield Bus(getattr(bound, DEPOT).depot(), getattr(bound, STAGING).open(), systems)


@contextmanager
def open_trip(trip: Trip, module: str | None, undone: str) -> Iterator[tuple[Bus, Route]]:
    """What asks the databases of a trip whether it is committed; Misconfigured, with what is ``undone``, if the module lacks its route."""
    try:
        loaded = load(module)
        route = loaded.route(trip.route)
    except Misconfigured as error:
        error.message += f"; without its route nobody knows where to ask whether trip {trip.id} is committed, so {undone}"
        raise
    note_other_depot(loaded)
    with open_bus(loaded, route) as bus:
        yield bus, route


def check_environment(loaded: Loaded, route: Route) -> None:
    """Misconfigured if a resource that ``route`` needs is made from a variable that is not set: Dagster would say so at length."""
    from dagster import EnvVar

    from bus_assets.build.keys import DEPOT, STAGING

    for name in (DEPOT, STAGING, *route.systems):
        for option, value in getattr((loaded.defs.resources or {}).get(name), "__dict__", {}).items():
            if isinstance(value, EnvVar) and value.env_var_name not in os.environ:
                said = f"resource '{name}': {option} is the environment variable {value.env_var_name}, which is not set; export it"
                raise Misconfigured(said, route=route.name)


def open_instance() -> DagsterInstance:
    """The Dagster instance that the UI reads too; its folder is made if it is missing."""
    from dagster import DagsterInstance

    home = settings().dagster_home
    os.environ["DAGSTER_HOME"] = str(home)  # what Dagster itself and the processes it starts go by
    with _alone_in(home):  # of two processes that make its tables in SQLite at the same time, Dagster fails one
        try:
            if not (home / "dagster.yaml").exists():
                (home / "dagster.yaml").write_text(DAGSTER_YAML)
        except OSError as error:
            raise _unusable(home, error) from error
        return DagsterInstance.get()


@contextmanager
def _alone_in(home: Path) -> Iterator[None]:
    """Wait until no other process is in here with ``home``, which is made if it is missing. It may be one that cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = os.open(home, os.O_RDONLY)
    except OSError as error:
        raise _unusable(home, error) from error
    try:
        with suppress(OSError):  # a file system that knows no locks on folders, as NFS
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unusable(home: Path, error: OSError) -> Misconfigured:
    return Misconfigured(f"{error.strerror}; DAGSTER_HOME must be a folder that can be written", place=str(home))


def note_other_depot(loaded: Loaded) -> None:
    """Say so if a module keeps its depot elsewhere than where the other commands look."""
    if _depot_url(loaded) != settings().depot_url:
        notice(f"note: module {loaded.name} keeps a depot of its own; set BUS_DEPOT_URL to that one to see its trips")


@contextmanager
def depot_resource(loaded: Loaded) -> Iterator[DepotResource]:
    """What the module binds for its depot, as a run gets it."""
    from dagster import build_resources

    from bus_assets.build.keys import DEPOT

    with build_resources({DEPOT: (loaded.defs.resources or {})[DEPOT]}) as bound:
        yield getattr(bound, DEPOT)


def _depot_url(loaded: Loaded) -> str | None:
    """A URL with a password is bound so that Dagster does not show it: then only the resource itself, made, tells it."""
    from dagster import EnvVar, ResourceDefinition

    from bus_assets.build.keys import DEPOT

    bound = (loaded.defs.resources or {}).get(DEPOT)
    if isinstance(bound, ResourceDefinition):
        with depot_resource(loaded) as made:
            return made.url
    url = getattr(bound, "url", None)
    return url.get_value() if isinstance(url, EnvVar) else url
