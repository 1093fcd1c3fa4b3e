"""``bus trips``, ``bus trip`` and ``bus account``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus_assets.cli.output import AsJson, Module, notice, print_json, print_table, say
from resources.texts import shortened

if TYPE_CHECKING:
    from resources.depot.entries import Trip

TripId = Annotated[str, typer.Argument(metavar="TRIP", help="A trip's id; `bus trips` lists them.")]
STATES = ("formed", "departed", "driving", "delivered", "failed", "rehearsed", "stuck", "split", "stranded", "cancelled", "empty")


def trips(
    route: Annotated[str | None, typer.Argument(metavar="[ROUTE]", help="Only trips of this route.")] = None,
    state: Annotated[str | None, typer.Option(help=f"Only trips in this state: {', '.join(STATES)}.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List trips, the newest first."""
    from bus_assets.cli.loading import open_depot

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"'{state}' is none of {', '.join(STATES)}", param_hint="--state")
    depot = open_depot()
    found = depot.trips(route, state, limit)  # pyright: ignore[reportArgumentType]
    if route is not None and not found and not depot.trips(route, limit=1):
        others = sorted({trip.route for trip in depot.trips(limit=1000)})
        notice(f"no trips of route '{route}'; the depot has trips of {', '.join(others) or 'no route'}")
    if as_json:
        print_json(found)
        return
    rows = [(trip.id, trip.route, trip.state, trip.trigger, trip.created_at, _parameters(trip), _first_line(trip.error)) for trip in found]
    print_table(("trip", "route", "state", "trigger", "started (UTC)", "parameters", "error"), rows, empty="no trips")


def trip(trip_id: TripId, as_json: AsJson = False) -> None:
    """Show one trip. Its attempt, its stops with their verdicts, where it is published, what went wrong."""
    from bus_assets.cli.loading import open_depot

    depot = open_depot()
    found = depot.trip(trip_id)
    verdicts = sorted(depot.verdicts(trip_id).values(), key=lambda verdict: str(verdict.created_at))
    publications, attempt = depot.publications(trip_id), depot.newest_attempt(trip_id)
    if as_json:
        print_json({"trip": found, "attempt": attempt, "verdicts": verdicts, "publications": publications})
        return
    state = f"{found.state}, {found.tried_again}" if found.tried_again else found.state
    say(f"trip {found.id} of route '{found.route}': {state}, started {found.created_at:%Y-%m-%d %H:%M:%S} UTC by {found.trigger}")
    for what, text in (("parameters", _parameters(found)), ("parent trip", found.parent), ("error", found.error)):
        if text:
            say(f"{what}: {text}")
    if attempt:
        is_open = "failed; it is closed when the trip is driven again" if found.state in ("failed", "stuck") else "has not ended"
        said = f"{attempt.outcome} at {attempt.ended_at:%Y-%m-%d %H:%M:%S}" if attempt.ended_at else is_open
        say(f"attempt {attempt.attempt}: run {attempt.run} on {attempt.host}, {said}")
    rows = [(v.stop, "passed" if v.passed else "FAILED", v.picked_up, v.kept, v.rejected, v.attempt) for v in verdicts]
    print_table(
        ("stop", "gate", "picked up", "kept", "rejected", "attempt"),
        rows,
        numbers=("picked up", "kept", "rejected", "attempt"),
        empty="no stop has a verdict yet",
    )
    for publication in publications:
        say(f"published in '{publication.database}' at {publication.at:%Y-%m-%d %H:%M:%S} UTC by attempt {publication.attempt}")
    if found.state == "failed" and found.cancelled:
        how = (
            "the next tick of its sensor" if found.trigger == "queue" else f"`bus cancel {found.id} --reason …`, once its database answers"
        )
        notice(f"it was asked to stop, and ends as cancelled with {how}")
    elif found.state in ("failed", "stuck") and found.trigger != "rehearsal":
        notice(f"`bus drive {found.route} --trip {found.id}` drives it again")


def account(
    trip_id: Annotated[str, typer.Argument(metavar="TRIP|ROUTE", help="A trip's id, or a route whose messages to account for.")],
    recount: Annotated[
        bool, typer.Option("--recount/--no-recount", help="Count sources, staging, quarantine and destinations again, independently.")
    ] = True,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Account for every row of a trip, or every message of a route. Recounted independently; exits 1 if something differs."""
    from bus_assets.account import account as made
    from bus_assets.cli.account_view import account_of_messages, show_account
    from bus_assets.cli.loading import load, open_bus, open_depot
    from resources.depot.entries import NoSuchTrip
    from resources.errors import Refused

    loaded = load(module)
    if trip_id in loaded.routes:
        return account_of_messages(loaded, trip_id, recount=recount, as_json=as_json)
    try:
        route = loaded.route(open_depot().trip(trip_id).route)
    except NoSuchTrip as error:
        raise Refused(f"{error.message}, and module {loaded.name} no route of that name; there are {', '.join(loaded.routes)}") from None
    with open_bus(loaded, route) as bus:
        found = made(bus, route, trip_id, recount)
    if as_json:
        print_json(found.to_json())
    else:
        show_account(found)
    if not found.balanced:
        raise typer.Exit(1)
    return None


def _parameters(trip: Trip) -> str:
    return ", ".join(f"{name}={value}" for name, value in trip.parameters.items())


def _first_line(error: Any) -> str:
    return shortened((error or "").partition("\n")[0], 100)
