"""``bus doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus_assets.cli.output import AsJson, Module, notice, plain, print_json, say

if TYPE_CHECKING:
    from bus_assets.cli.loading import Loaded
    from bus_assets.doctor import Finding
    from resources.depot.store import Depot


def doctor(
    route: Annotated[str | None, typer.Argument(metavar="[ROUTE]", help="Only this route; default: everything.")] = None,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong, since when, where, and the next command. Exits 1 if something is; rows that wait in quarantine are a note."""
    from bus_assets import doctor as doctors
    from bus_assets.cli.loading import known_route

    found, loaded = _loaded(module)
    depot = _depot(loaded)
    found += doctors.examined(_deployment(depot, loaded), doctors.OF_THE_DEPLOYMENT, "deployment")
    if not any(finding.where == "depot" for finding in found):
        routes = [known_route(depot, route, module)] if route else sorted({*depot.inbox.routes(), *(loaded.routes if loaded else ())})
        for name in routes:
            queue = loaded.routes[name].queue if loaded and name in loaded.routes else None
            missing_in = loaded.name if loaded and name not in loaded.routes else None
            looks = doctors.OF_A_LOST_ROUTE if missing_in else doctors.OF_A_ROUTE
            found += doctors.examined(doctors.OfRoute(depot, name, queue, missing_in), looks, name)
            found += _of_systems(depot, loaded, name)
    found = doctors.without_repeats(found)
    found.sort(key=lambda finding: finding.level == "note")
    wrong = sum(finding.level == "wrong" for finding in found)
    _tell(found, wrong, as_json)
    if wrong:
        raise typer.Exit(1)


def _tell(found: list[Finding], wrong: int, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for finding in found:
        since = f", since {finding.since:%Y-%m-%d %H:%M} UTC" if finding.since else ""
        note = "note: " if finding.level == "note" else ""
        say(plain(f"{note}{finding.where}: {finding.wrong}{since}"))
        say(plain(f"    → {finding.advice}"))
    notice("nothing is wrong" if not wrong else f"{wrong} findings" if wrong > 1 else "1 finding")


def _loaded(module: str | None) -> tuple[list[Finding], Loaded | None]:
    """The module; a finding if it does not load: then the depot tells all the same."""
    from bus_assets.cli.loading import load
    from bus_assets.doctor import Finding
    from resources.errors import BusError

    try:
        return [], load(module)
    except BusError as error:
        advice = "no run can start until it loads: mend it, or deploy the last good one; `python -m MODULE` shows where it fails"
        return [Finding("code location", error.message, advice)], None


def _depot(loaded: Loaded | None) -> Depot:
    """The module's own where it loads: its runs write there."""
    from bus_assets.cli.driving import depot_of
    from bus_assets.settings import settings
    from resources.depot.store import Depot

    return depot_of(loaded) if loaded else Depot(settings().depot_url)


def _deployment(depot: Depot, loaded: Loaded | None) -> Any:
    from bus_assets.doctor import Deployment
    from bus_assets.settings import settings

    here = settings()
    urls = [url for url in (here.staging_url, here.depot_url) if "://" not in url or url.startswith(("file:///", "sqlite:///"))]
    folders = [Path(url.removeprefix("sqlite:///").removeprefix("file://")) for url in urls]
    sensors = tuple(f"{name}_queue" for name, route in loaded.routes.items() if route.queue) if loaded else ()
    return Deployment(depot, _instance(), sensors, (here.home, here.dagster_home, *folders))


def _instance() -> Any:
    """Dagster's, if one is there already: looking makes none."""
    from bus_assets.cli.loading import open_instance
    from bus_assets.settings import settings

    return open_instance() if (settings().dagster_home / "dagster.yaml").exists() else None


def _of_systems(depot: Depot, loaded: Loaded | None, name: str) -> list[Finding]:
    from bus_assets.cli.loading import open_bus
    from bus_assets.doctor import OF_ITS_SYSTEMS, Finding, Systems, examined
    from resources.errors import Misconfigured

    if loaded is None or name not in loaded.routes:
        return []
    try:
        with open_bus(loaded, loaded.routes[name]) as bus:
            return examined(Systems(depot, loaded.routes[name], bus.systems), OF_ITS_SYSTEMS, name)
    except Misconfigured as error:
        return [Finding(name, error.message, "no run can start until then, here or where the runs are")]
