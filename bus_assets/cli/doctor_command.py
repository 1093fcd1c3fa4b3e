"""``bus doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from bus_assets.cli.output import AsJson, Module, notice, print_json, say


def doctor(
    route: Annotated[str | None, typer.Argument(metavar="[ROUTE]", help="Only this route.")] = None,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong, since when, where, and the next command. Exits 1 if something is."""
    from bus_assets.cli.loading import load, open_bus, open_depot
    from bus_assets.doctor import findings

    loaded, depot = load(module), open_depot()
    found = []
    for one in [loaded.route(route)] if route else loaded.routes.values():
        with open_bus(loaded, one) as bus:
            found += findings(depot, one, bus.systems)
    if as_json:
        print_json(found)
    for finding in () if as_json else found:
        say(f"{finding.route}: {finding.wrong}" + (f", since {finding.since:%Y-%m-%d %H:%M} UTC" if finding.since else ""))
        say(f"    → {finding.advice}")
    if found:
        raise typer.Exit(1)
    notice("nothing is wrong")
