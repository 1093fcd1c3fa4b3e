"""``bus routes`` and ``bus map``."""

from __future__ import annotations

from typing import Annotated

import typer

from bus_assets.cli.output import AsJson, Module, print_json, print_table, say

RouteName = Annotated[str, typer.Argument(metavar="ROUTE", help="A route's name; `bus routes` lists them.")]


def routes(module: Module = None, as_json: AsJson = False) -> None:
    """List the routes. What starts them, how many stops they have, where they drop off."""
    from bus_assets.cli.loading import load
    from bus_assets.mapped import json_map, triggers

    loaded = load(module)
    if as_json:
        print_json([json_map(route) for route in loaded.routes.values()])
        return
    rows = [(r.name, ", ".join(triggers(r)), len(r.stops), ", ".join(r.databases), r.description) for r in loaded.routes.values()]
    print_table(("route", "triggers", "stops", "databases", "description"), rows, numbers=("stops",), empty="the module lists no routes")


def map_route(
    route: RouteName,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="A Mermaid flowchart, for a README or a wiki.")] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Draw a route. Its stops, where rows come from, and where they go."""
    from bus_assets.cli.loading import load
    from bus_assets.mapped import json_map, mermaid_map, text_map

    found = load(module).route(route)
    if as_json:
        print_json(json_map(found) | ({"mermaid": mermaid_map(found)} if mermaid else {}))
        return
    say(mermaid_map(found) if mermaid else text_map(found))
