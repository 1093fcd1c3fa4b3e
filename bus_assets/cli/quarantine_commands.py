"""``bus quarantine …``: rows that broke their contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus_assets.cli.output import AsJson, Module, notice, print_json, print_table, say

if TYPE_CHECKING:
    from bus_assets.route import Route
    from resources.depot.entries import QuarantineCount, QuarantinedRow
    from resources.depot.store import Depot

    Held = QuarantinedRow | QuarantineCount

REASONS_SHOWN = 20

app = typer.Typer(help="See to rows that broke their contract. Look, export, discard, release.", no_args_is_help=True)

ROW_STATES = ("held", "released", "discarded", "all")
RouteOption = Annotated[str | None, typer.Option("--route", help="Only rows of this route.")]
TripOption = Annotated[str | None, typer.Option("--trip", help="Only rows of this trip.")]
StopOption = Annotated[str | None, typer.Option("--stop", help="Only rows that this stop rejected.")]
StateOption = Annotated[
    str, typer.Option("--state", help=f"{', '.join(ROW_STATES)}. Held are also those of a release that is not delivered.")
]
OfRoute = Annotated[str, typer.Option("--route", help="The route.")]
OfStop = Annotated[str, typer.Option("--stop", help="The stop that rejected the rows.")]


@app.command("list")
def list_rows(
    route: RouteOption = None,
    trip: TripOption = None,
    stop: StopOption = None,
    state: StateOption = "held",
    rule: Annotated[str | None, typer.Option("--rule", help="Only rows that break a rule with this text in its name.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """List rows with their place and reasons, without their content: `show ID` has that."""
    from itertools import islice

    from bus_assets.cli.loading import open_depot
    from bus_assets.release import rows_of

    depot = open_depot()
    every = rows_of(depot, route, stop, _state(state), trip)
    rows = list(islice((row for row in every if rule is None or any(rule in reason.rule for reason in row.reasons)), limit))
    if not rows:
        _check_names(depot, route, stop, module)
    if as_json:
        may = _may_ride(rows, module)
        print_json([_brief(row, may) for row in rows])
        return
    print_table(
        ("id", "route", "stop", "trip", "place", "reasons", "state"),
        [(str(row.id), row.route, row.stop, row.trip, _place(row), _reasons(row), _standing(row)) for row in rows],
        numbers=("id",),
        empty="no such rows in quarantine",
    )
    if len(rows) == limit:
        notice(f"the first {limit}; --limit shows more, `bus quarantine counts` how many there are")


@app.command()
def counts(
    route: RouteOption = None,
    trip: TripOption = None,
    stop: StopOption = None,
    state: StateOption = "held",
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Count rows by route, stop and rule, and those that a release would take. A row that breaks two rules is counted under both."""
    from bus_assets.cli.loading import open_depot

    depot = open_depot()
    found = depot.count_quarantined(route, trip, stop, _state(state))
    if not found:
        _check_names(depot, route, stop, module)
    rows, releasable, may = Counter(), Counter(), _may_ride(found, module)
    for count in found:
        for rule in dict.fromkeys(count.rules):
            place = (count.route, count.stop, rule)
            rows[place] += count.rows
            releasable[place] += count.rows if may(count) else 0
    names = ("route", "stop", "rule", "rows", "releasable")
    told = [(*place, rows[place], releasable[place]) for place in sorted(rows)]
    if as_json:
        print_json([dict(zip(names, one, strict=True)) for one in told])
        return
    print_table(names, told, numbers=("rows", "releasable"), empty="nothing is in quarantine")


@app.command()
def show(
    row_id: Annotated[int, typer.Argument(metavar="ID", help="A row's id; `bus quarantine list` shows it.")],
    reveal: Annotated[bool, typer.Option("--reveal-sensitive", help="Show sensitive fields too.")] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Show one row with its content; sensitive fields are dots."""
    from bus_assets.cli.loading import load, open_depot
    from bus_assets.quarantine import masked, row_of
    from bus_assets.release import on_its_way, way_out

    depot = open_depot()
    row = row_of(depot, row_id)
    key = _key_of(depot, row.message)
    payload = dict(row.payload) if reveal else masked(row, load(module).routes.get(row.route))
    if as_json:
        print_json(_brief(row, _may_ride([row], module)) | {"message_key": key, "payload": payload})
        return
    say(f"row {row.id} of route '{row.route}', stop '{row.stop}', trip {row.trip}: {_standing(row)}")
    if on_its_way(row):
        say(f"next: {way_out(row)}")
    say(f"place: {_place(row)}")
    if row.message is not None:
        say(f"message: {row.message}" + (f", key {key}" if key else ", which the depot has forgotten"))
    for reason in row.reasons:
        say(f"reason: {reason.rule}: {reason.message}")
    print_table(("field", "value"), payload.items())


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file: .csv or .jsonl.")],
    route: OfRoute,
    stop: OfStop,
    state: StateOption = "held",
    reveal: Annotated[bool, typer.Option("--reveal-sensitive", help="Write sensitive fields too.")] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Write rows with their content, reasons and place to a file."""
    from bus_assets.cli.loading import load, one_of, open_depot
    from bus_assets.quarantine import export_rows
    from bus_assets.release import rows_of

    if file.suffix not in (".csv", ".jsonl"):
        raise typer.BadParameter(f"'{file}' must end in .csv or .jsonl", param_hint="FILE")
    found = load(module).route(route)
    one_of(stop, [declared.name for declared in found.stops], "stop", f"route '{route}'")
    written = export_rows(rows_of(open_depot(), route, stop, _state(state)), found, stop, file, reveal=reveal)
    if as_json:
        print_json({"file": str(file), "rows": written})
    else:
        say(f"{written:,} rows in {file}")


@app.command()
def discard(
    ids: Annotated[list[int], typer.Argument(metavar="ID…", help="The rows to give up.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept with the rows.")],
    as_json: AsJson = False,
) -> None:
    """Give rows up for good. They stay on record, with the reason."""
    from bus_assets.cli.loading import open_depot

    open_depot().discard(ids, reason)
    if as_json:
        print_json({"discarded": ids, "reason": reason})
    else:
        say(f"{len(ids):,} rows discarded: {reason}")


@app.command()
def release(
    route: OfRoute,
    stop: OfStop,
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID…]", help="The rows to release.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every row that this stop holds and that can ride.")] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Let rows ride again, after a fix: a new trip takes them through the gate and drops them off. Exits 1 if it fails."""
    from bus_assets.cli.driving import Driven, Wish, depot_of
    from bus_assets.cli.loading import load, one_of
    from bus_assets.release import choose, overwritten, start_release

    if bool(ids) == everything:
        raise typer.BadParameter("name the rows' ids, or all of them with --all", param_hint="ID")
    loaded = load(module)
    found = loaded.route(route)
    one_of(stop, [declared.name for declared in found.stops], "stop", f"route '{route}'")
    depot = depot_of(loaded)
    releases, left = choose(depot, found, stop, ids or None)
    example = {row.why: row.id for row in reversed(left)}
    for why, rows in Counter(row.why for row in left).most_common(REASONS_SHOWN):
        notice(f"left in quarantine: {rows:,} rows ({example[why]}, say): {why}")
    if len(example) > REASONS_SHOWN:
        notice(f"… and rows for {len(example) - REASONS_SHOWN:,} other reasons: `bus quarantine list --route {route} --stop {stop}`")
    if not releases:
        notice("no row can be released")
    for table in overwritten(found, stop) if releases else ():
        notice(
            f"table {table}: a released row overwrites the row of its key, newer or not; Table(…, newest=COLUMN) lets the newer one stay"
        )
    driven: list[Driven] = []
    for one in releases:
        from bus_assets.cli.drive_command import drive_and_tell

        trip = start_release(depot, one)
        notice(f"trip {trip.id} releases {len(one.ids):,} rows of stop '{stop}'")
        driven.append(drive_and_tell(loaded, found, Wish(trip=trip.id)))
        if not driven[-1].succeeded:
            break
    _show_releases(loaded, found, driven, as_json=as_json)


def _show_releases(loaded: Any, route: Any, driven: list[Any], *, as_json: bool) -> None:
    from bus_assets.cli.drive_command import answer, finish, show

    if as_json:
        print_json([answer(one) for one in driven])
    for one in driven:
        if not as_json:
            show(loaded, route, one, as_json=False)
        if not one.succeeded and one.trip and one.trip.state not in ("stuck", "delivered"):
            notice(f"or hold its rows again: `bus quarantine unrelease {one.trip.id}`")
        finish(route, one)


@app.command()
def unrelease(
    trip_id: Annotated[str, typer.Argument(metavar="TRIP", help="A release trip that was not delivered.")],
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Hold the rows again that a release trip took along, and cancel it. Its first database is asked before whether it is committed."""
    from bus_assets.boarding import unrelease as unreleased
    from bus_assets.cli.loading import open_depot, open_trip

    trip = open_depot().trip(trip_id)
    with open_trip(trip, module, "its rows are not held again") as (bus, route):
        held = unreleased(bus, route, trip)
    if as_json:
        print_json({"trip": trip_id, "held": held})
    else:
        say(f"{held:,} rows are held again")


def _check_names(depot: Depot, route: str | None, stop: str | None, module: str | None) -> None:
    """Nothing was found: Misconfigured if the route or the stop is a slip. What the depot knows is none, whatever the module has."""
    from bus_assets.cli.loading import load, one_of
    from resources.errors import BusError

    if (route is None and stop is None) or depot.quarantined(route, stop=stop, state=None, limit=1):
        return
    try:
        loaded = load(module)
    except BusError:
        return
    if route is not None and route not in depot.inbox.routes() and not depot.trips(route, limit=1):
        loaded.route(route)
    among = [found for name, found in loaded.routes.items() if route in (None, name)]
    if stop is not None and among:
        stops = dict.fromkeys(declared.name for found in among for declared in found.stops)
        one_of(stop, stops, "stop", f"route '{route}'" if route else f"module {loaded.name}")


def _state(state: str) -> Any:
    if state not in ROW_STATES:
        raise typer.BadParameter(f"'{state}' is none of {', '.join(ROW_STATES)}", param_hint="--state")
    return {"all": None, "held": "waiting"}.get(state, state)


def _may_ride(found: Sequence[Held], module: str | None) -> Callable[[Held], bool]:
    """Whether a release would take it, by the contracts of the module; where that does not load, by what the depot knows."""
    from bus_assets.release import refusals

    routes = _routes(module) if found else {}
    why_not = {place: refusals(routes.get(place[0]), place[1]) for place in {(one.route, one.stop) for one in found}}
    return lambda one: why_not[one.route, one.stop](one) is None


def _routes(module: str | None) -> dict[str, Route]:
    from bus_assets.cli.loading import load
    from resources.errors import BusError

    try:
        return load(module).routes
    except BusError as error:
        notice(f"what can be released is told without the contracts: {error}")
        return {}


def _brief(row: QuarantinedRow, may_ride: Callable[[Held], bool]) -> dict[str, Any]:
    names = ("id", "route", "stop", "trip", "row_id", "origin", "unit", "position", "state", "released_trip", "release_state", "reason")
    names = (*names, "created_at", "message")
    reasons = [{"rule": reason.rule, "message": reason.message} for reason in row.reasons]
    return {name: getattr(row, name) for name in names} | {"reasons": reasons, "releasable": may_ride(row)}


def _key_of(depot: Depot, message: int | None) -> str | None:
    """None without a message, and once a purge has forgotten it."""
    found = depot.inbox.messages(limit=1, after=message - 1) if message is not None else []
    return found[0].key if found and found[0].id == message else None


def _place(row: QuarantinedRow) -> str:
    from resources.records import place_of

    if row.origin:
        return place_of(row.origin, row.unit or "row", row.position or 0)
    return f"row {row.row_id}" + (f", of message {row.message}" if row.message is not None else "")


def _reasons(row: QuarantinedRow) -> str:
    return "; ".join(f"{reason.rule}: {reason.message}" for reason in row.reasons)


def _standing(row: QuarantinedRow) -> str:
    from bus_assets.release import on_its_way
    from resources.depot.mail import WAIT_FOR_A_PERSON

    if on_its_way(row):
        return f"in release trip {row.released_trip}, which is {row.release_state}"
    if row.state == "released":
        return f"released in trip {row.released_trip}"
    if row.state == "discarded":
        return f"discarded: {row.reason}"
    if row.message_state not in (None, "delivered"):
        said = f"held, its message {row.message} is {row.message_state}"
        again = f"`bus redrive {row.route} --id {row.message} --reason …`"
        return f"{said}: {again}, or `bus discard`" if row.message_state in WAIT_FOR_A_PERSON else said
    return "held" if row.trip_state == "delivered" else f"held (its trip is {row.trip_state})"
