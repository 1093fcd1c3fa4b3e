"""``bus purge`` and ``bus depot …``: retention, and the depot itself."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus_assets.cli.output import AsJson, Module, notice, print_json, print_table, say

if TYPE_CHECKING:
    from bus_assets.cli.loading import Loaded
    from bus_assets.purging import Taken
    from bus_assets.rebuild import Rebuilt
    from bus_assets.route import Route

app = typer.Typer(help="See to the depot, the bus's own record. Bring it up to date, rebuild it.", no_args_is_help=True)

EXAMPLES = 5
UNITS = {"h": 1, "d": 24, "w": 168}
OfRoute = Annotated[str | None, typer.Argument(metavar="[ROUTE]", help="Only this route; default: every route of the module.")]


def purge(
    older_than: Annotated[str, typer.Option("--older-than", metavar="AGE", help="What ended before that: 30d, 2w, 36h.")],
    route: OfRoute = None,
    keys: Annotated[
        str,
        typer.Option(
            "--keys", metavar="AGE", help="Forget delivered messages whole, keys included, and trips that ended before that; at least 28d."
        ),
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be taken away.")] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Take away what is old. Bodies, staged rows and archives of what has ended, trips whole, and the Dagster runs with their logs.

    Never what waits for a person, rides or may have to roll forward, never receipts, and no key that could still come again: a message
    may lie 14 days on its queue and 14 more among the dead letters.
    """
    from dataclasses import asdict

    from bus_assets.cli.driving import depot_of
    from bus_assets.cli.loading import load, open_bus, open_instance
    from bus_assets.purging import horizon
    from bus_assets.purging import purge as purged

    ages = _age(older_than, "--older-than"), _age(keys, "--keys")
    loaded = load(module)
    upto = horizon(depot_of(loaded), *ages, dry_run=dry_run)
    taken = []
    with open_instance() as instance:
        for one in _routes(loaded, route):
            with open_bus(loaded, one) as bus:
                taken.append(purged(bus, one, instance, upto))
    if as_json:
        print_json({"before": upto.before, "keys_before": upto.keys_before, "dry_run": dry_run, "routes": [asdict(one) for one in taken]})
    else:
        say(f"{'would take' if dry_run else 'took'} away what ended before {upto.before:%Y-%m-%d %H:%M} UTC:")
        _show_taken(taken)
    for one in taken:
        _note_left(one)


def _show_taken(taken: list[Taken]) -> None:
    header = ("route", "bodies", "messages with their keys", "archive files", "staged files", "of trips", "trips whole", "Dagster runs")
    rows = [(t.route, t.bodies, t.messages, t.archive_files, t.staged_files, t.trips, t.forgotten_trips, t.runs) for t in taken]
    print_table(header, rows, numbers=header[1:])


def _note_left(taken: Taken) -> None:
    if taken.unknown:
        notice(
            f"{taken.route}: {taken.unknown:,} archived messages are not in the depot, so neither key nor trip was forgotten and the "
            f"archive stays; `bus depot rebuild {taken.route}` brings them back"
        )
    if taken.unknown_trips:
        trips = "1 trip" if taken.unknown_trips == 1 else f"{taken.unknown_trips:,} trips"
        more = f" and {taken.unknown_trips - EXAMPLES:,} more; --json lists them" if taken.unknown_trips > EXAMPLES else ""
        folders = f"{', '.join(taken.unknown_folders[:EXAMPLES])}{more}"
        notice(f"{taken.route}: staged rows of {trips} stay that the depot does not know: {taken.unknown_why}: {folders}")
    for trip, why in list(taken.needed.items())[:EXAMPLES]:
        notice(f"{taken.route}: staged rows of trip {trip} stay, which failed: {why}")
    if (more := len(taken.needed) - EXAMPLES) > 0:
        notice(f"{taken.route}: so do those of {more:,} more; --json lists them")


@app.command()
def rebuild(route: OfRoute = None, module: Module = None, as_json: AsJson = False) -> None:
    """Bring back a lost depot, or yesterday's. Messages come from the archive; what the destination has a receipt of is delivered.
    Known messages that were corrected since wait with the newest body.

    Safe to do twice, and while messages flow; pause a FIFO route first if order matters. Not brought back: trips, and rejected rows
    of messages that were delivered without them.
    """
    from dataclasses import asdict

    from bus_assets.cli.loading import load, note_other_depot, open_bus
    from bus_assets.rebuild import rebuild as rebuilt

    loaded = load(module)
    note_other_depot(loaded)
    done = []
    for one in _routes(loaded, route):
        if one.queue or route:
            with open_bus(loaded, one) as bus:
                done.append(rebuilt(bus, one))
    if as_json:
        print_json([asdict(one) for one in done])
        return
    rows = [(one.route, one.archived, one.known, sum(one.by_state.values()), _states(one.by_state), one.corrected) for one in done]
    header = ("route", "in the archive", "known", "brought back", "as", "corrected")
    print_table(header, rows, numbers=(*header[1:4], header[5]), empty="no route of the module has a queue")
    for one in done:
        _note_outdated(one)


def _note_outdated(rebuilt: Rebuilt) -> None:
    if rebuilt.outdated:
        more = f" and {len(rebuilt.outdated) - EXAMPLES:,} more" if len(rebuilt.outdated) > EXAMPLES else ""
        notice(
            f"{rebuilt.route}: corrected since, but riding or over with an older body: {', '.join(rebuilt.outdated[:EXAMPLES])}{more}; "
            f"rebuild again if they are set aside. The newest bodies are in the archive, in *.corrected.jsonl"
        )


@app.command()
def upgrade(as_json: AsJson = False) -> None:
    """Bring the depot's tables up to date now, rather than on first use; makes a new depot if there is none."""
    from bus_assets.settings import settings
    from resources.depot.schema import REVISION
    from resources.depot.store import Depot

    depot = Depot(settings().depot_url)
    depot.upgrade()
    place = str(depot).removeprefix("Depot(depot ").removesuffix(")")
    if as_json:
        print_json({"depot": place, "revision": REVISION})
    else:
        say(f"{place} is at revision {REVISION}")


def _routes(loaded: Loaded, name: str | None) -> list[Route]:
    return [loaded.route(name)] if name else list(loaded.routes.values())


def _states(by_state: Any) -> str:
    return ", ".join(f"{number:,} {state}" for state, number in by_state.items())


def _age(text: str, option: str) -> timedelta:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit()) or unit not in UNITS or len(number) > 6:
        raise typer.BadParameter(f"'{text}' is no age: a number and a unit, as 30d, 2w or 36h", param_hint=option)
    return timedelta(hours=int(number) * UNITS[unit])
