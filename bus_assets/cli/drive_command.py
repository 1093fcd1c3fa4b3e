"""``bus drive``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus_assets.cli.output import DEBUGGING, AsJson, Module, notice, print_json
from bus_assets.cli.route_commands import RouteName

if TYPE_CHECKING:
    from bus_assets.account import Account
    from bus_assets.cli.driving import Driven, Wish
    from bus_assets.cli.loading import Loaded
    from bus_assets.route import Route

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def drive(
    route: RouteName,
    given: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the route; may come again.")
    ] = None,
    trip: Annotated[str | None, typer.Option("--trip", metavar="ID", help="Drive this trip (again) instead of starting a new one.")] = None,
    take_over: Annotated[bool, typer.Option("--take-over", help="With --trip: end the attempt that seems to drive it now.")] = False,
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="STOP", help="Only this stop; may come again. Without the stops before: a rehearsal."),
    ] = None,
    recount: Annotated[bool, typer.Option("--recount", help="Count again at the sources and destinations, as `bus account` does.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Dagster's own log too.")] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Drive a route now and print the account. Exits 1 if the trip fails."""
    from bus_assets.cli.driving import Wish
    from bus_assets.cli.loading import load, note_other_depot

    if take_over and not trip:
        raise typer.BadParameter("it says which attempt to end: name the trip with --trip", param_hint="--take-over")
    wish = Wish(_pairs(given or []), trip, take_over, tuple(select or ()), verbose)
    notice("loading …")
    loaded = load(module)
    found = loaded.route(route)
    note_other_depot(loaded)
    driven = drive_and_tell(loaded, found, wish)
    made = show(loaded, found, driven, as_json=as_json, recount=recount)
    finish(found, driven)
    if recount and made and not made.balanced:
        raise typer.Exit(1)


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"'{text}' is not of the form NAME=VALUE", param_hint="--set")
        pairs[name] = value
    return pairs


def drive_and_tell(loaded: Loaded, route: Route, wish: Wish) -> Driven:
    """Drive, with progress on stderr; with ``--debug`` followed by how a failure came about."""
    from bus_assets.cli.driving import drive_route
    from bus_assets.cli.loading import check_environment
    from bus_assets.cli.progress_view import progress_view

    check_environment(loaded, route)
    with progress_view() as watcher:
        driven = drive_route(loaded, route, wish, watcher)
    if driven.traceback and DEBUGGING.get():
        notice(driven.traceback)
    return driven


def show(loaded: Loaded, route: Route, driven: Driven, *, as_json: bool, recount: bool = False) -> Account | None:
    """The trip's account on stdout, as far as it got."""
    from bus_assets.account import account
    from bus_assets.cli.account_view import show_account
    from bus_assets.cli.loading import open_bus

    made = None
    if driven.trip:
        with open_bus(loaded, route) as bus:
            made = account(bus, route, driven.trip.id, recount=recount)
    if as_json:
        print_json(answer(driven) | {"account": made.to_json() if made else None})
    elif made and driven.succeeded:
        show_account(made)
    return made


def answer(driven: Driven) -> dict[str, Any]:
    trip = driven.trip
    return {"trip": trip.id if trip else None, "run": driven.run, "state": trip.state if trip else None, "error": driven.error}


def finish(route: Route, driven: Driven) -> None:
    """The last words on stderr, and the exit code."""
    trip = driven.trip
    if driven.succeeded and trip:
        notice(f"trip {trip.id} is {trip.state}: `bus account {trip.id}` recounts it from the sources and destinations")
        if trip.state == "delivered":
            notice(f"`bus quarantine list --trip {trip.id}` shows what was rejected, the UI the run {driven.run}")
        return
    notice(f"error: {'interrupted' if driven.interrupted else driven.error}")
    if trip and trip.state in ("failed", "stuck", "driving"):
        standing = (
            "dropped off in some of its databases, and only rolls forward"
            if trip.state == "stuck"
            else "nothing of it is dropped off as far as the depot knows"
        )
        again = f"`bus drive {route.name} --trip {trip.id}`"
        told = trip.trigger == "rehearsal" or again in (driven.error or "")
        notice(f"trip {trip.id} is {trip.state}, {standing}" + ("" if told else f"; {again} drives it again"))
        notice(f"`bus trip {trip.id}` and `bus account {trip.id}` show how far it came")
    raise typer.Exit(INTERRUPTED if driven.interrupted else 1)
