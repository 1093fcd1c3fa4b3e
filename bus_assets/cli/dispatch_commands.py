"""``bus dispatch``, ``pause``, ``resume`` and ``cancel``: let trips of messages depart, or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus_assets.cli.message_commands import Reason
from bus_assets.cli.output import AsJson, Module, notice, print_json, say
from bus_assets.cli.route_commands import RouteName
from bus_assets.cli.trip_commands import TripId

if TYPE_CHECKING:
    from bus_assets.cli.loading import Loaded
    from bus_assets.drive import Bus
    from bus_assets.queues import Queue
    from bus_assets.route import Route
    from resources.depot.entries import Trip
    from resources.depot.store import Depot
    from sensors.dispatch import Tick

BACK_OFF_SECONDS = 0.5
LIVE = ("formed", "departed", "driving", "failed")
MANY = 1_000


def dispatch(
    route: RouteName,
    wait: Annotated[float, typer.Option(min=0, max=20, help="Seconds to wait for a first message.")] = 2.0,
    until_quiet: Annotated[bool, typer.Option("--until-quiet", help="Go on until nothing comes and no trip is left to drive.")] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Do once what the queue's sensor does, and drive the trips that depart here. For CI, and without a daemon.

    One tick: messages are received and kept, failed trips seen to, trips formed. Exits 1 if a trip failed; the next tick, whoever
    does it, tries again, splits or gives up. With --until-quiet also if something is left that waits for no decision about a message:
    the route is paused, a trip that is stuck is tried again later, or a body was not fetched.
    """
    from bus_assets.cli.loading import load, open_instance, open_queue

    loaded, said, driven, unread = load(module), list[str](), list[dict[str, Any]](), False
    with open_queue(loaded, route) as (bus, found, queue), open_instance() as instance:
        while True:
            done = _tick(bus, found, queue, instance, wait)
            said.append(done.said)
            unread |= done.unread
            if not as_json:
                say(done.said)
            driven += _driven(loaded, found, done, as_json)
            if not until_quiet or (not done.departures and not _is_live(bus.depot, found, queue)):
                break
            if not done.departures:
                time.sleep(max(0.0, BACK_OFF_SECONDS - wait))  # a failed trip waits for its turn
        undelivered = _undelivered(bus.depot, driven)
        left = _left(bus, found, queue, unread=unread) if until_quiet else None
    if as_json:
        print_json({"route": route, "ticks": said, "trips": driven})
    if left:
        notice(f"not everything is done: {left}; `bus doctor {route}` says what to do about it")
    elif undelivered:
        notice(f"`bus doctor {route}` says what to do about {', '.join(undelivered)}")
    if left or undelivered:
        raise typer.Exit(1)


def _tick(bus: Bus, route: Route, queue: Queue, instance: Any, wait: float) -> Tick:
    from bus_assets.build.dispatching import policy_of, protocol
    from sensors.dispatch import tick

    wait = 0.0 if bus.depot.inbox.paused(route.name) else wait  # a tick would wait until it is resumed
    above, dead = protocol(bus, route, queue, instance), bus.systems[queue.dead_letters] if queue.dead_letters else None
    return tick(policy_of(route, queue), bus.depot.inbox, bus.systems[queue.system], above, dead_letters=dead, poll_seconds=wait)


def _driven(loaded: Loaded, route: Route, done: Tick, as_json: bool) -> Iterator[dict[str, Any]]:
    from bus_assets.cli.drive_command import answer, drive_and_tell
    from bus_assets.cli.driving import Wish
    from resources.errors import BusError

    refused: BusError | None = None
    for departure in done.departures:
        try:
            driven = drive_and_tell(loaded, route, Wish(trip=departure.trip))
        except BusError as error:  # nothing started; the others departed too, and nobody else drives them
            refused = refused or error
            continue
        told = answer(driven) | {"trip": departure.trip, "messages": departure.messages}
        if not as_json:
            error = f": {driven.error}" if driven.error else ""
            say(f"trip {departure.trip} (messages: {departure.messages:,}): {told['state'] or 'not driven'}{error}")
        yield told
        if driven.interrupted:
            raise KeyboardInterrupt
    if refused:
        raise refused


def _is_live(depot: Depot, route: Route, queue: Queue) -> bool:
    """Whether another tick may have something to do: not while the route is paused, nor about what a person rehearsed or released.

    Messages wait as long as their queue says for a trip to fill, but behind trips that are stuck nobody knows how long."""
    if depot.inbox.paused(route.name):
        return False
    if any(trip.trigger == "queue" for state in LIVE for trip in depot.trips(route.name, state, MANY)):
        return True
    boardable, _ = depot.inbox.boardable(route.name, halt_on_stranded=queue.on_stranded == "halt")
    return boardable > 0 and not _stuck(depot, route)


def _left(bus: Bus, route: Route, queue: Queue, *, unread: bool) -> str | None:
    """What is left to do where nothing more happens now, but for what waits for a person to decide about a message.

    ``unread``: messages came whose bodies were not fetched; if they did not come again since, the queue hides them still."""
    inbox = bus.depot.inbox
    paused, moving = inbox.paused(route.name), inbox.moving(route.name)
    if not paused and not moving and not unread:
        return None  # the queue was asked, and had nothing
    depth = bus.systems[queue.system].depth()
    on_queue = depth.waiting + depth.in_flight + depth.delayed
    if not moving and not on_queue:
        return None
    stuck = _stuck(bus.depot, route)
    said = [f"the route is paused ({paused[1]})"] if paused else []
    said += [f"{stuck:,} trips stuck, which are tried again"] if stuck else []
    said += [f"{moving:,} messages aboard or waiting"] if moving else []
    said += ["bodies were not fetched"] if unread else []
    return ", ".join([*said, f"about {on_queue:,} on the queue"])


def _stuck(depot: Depot, route: Route) -> int:
    """How many trips of messages are stuck: a release, say, takes no place of theirs."""
    return sum(trip.trigger == "queue" for trip in depot.trips(route.name, "stuck", MANY))


def _undelivered(depot: Depot, driven: list[dict[str, Any]]) -> list[str]:
    """The trips that are left in need of somebody; one that was split or driven again is judged by what came of it."""
    states = {told["trip"]: depot.trip(told["trip"]).state for told in driven}
    return [trip for trip, state in states.items() if state in ("formed", "failed", "stuck", "stranded", "driving")]


def pause(route: RouteName, reason: Reason, module: Module = None, as_json: AsJson = False) -> None:
    """Let no more trips of a route depart. Trips that are under way end; messages stay on their queue and lose nothing."""
    from bus_assets.cli.loading import known_route, open_depot

    depot = open_depot()
    known_route(depot, route, module)
    depot.inbox.pause(route, reason)
    since, stands = depot.inbox.paused(route) or (None, reason)
    if as_json:
        print_json({"route": route, "paused_at": since, "reason": stands})
        return
    say(f"route '{route}' is paused since {since:%Y-%m-%d %H:%M} UTC: {stands}; `bus resume {route}` ends it")
    if stands != reason:
        notice("it was paused before: the first reason stands")


def resume(route: RouteName, module: Module = None, as_json: AsJson = False) -> None:
    """Let trips of a paused route depart again."""
    from bus_assets.cli.loading import known_route, open_depot

    depot = open_depot()
    known_route(depot, route, module)
    paused = depot.inbox.paused(route)
    depot.inbox.resume(route)
    if as_json:
        print_json({"route": route, "was_paused_at": paused[0] if paused else None, "reason": paused[1] if paused else None})
        return
    say(
        f"route '{route}' departs again; it was paused since {paused[0]:%Y-%m-%d %H:%M} UTC"
        if paused
        else f"route '{route}' was not paused"
    )


def cancel(trip_id: TripId, reason: Reason, module: Module = None, as_json: AsJson = False) -> None:
    """Stop a trip for good. Its messages are stranded, and can be redriven or discarded.

    A run that drives it stops at its next rows or its next stop, and before it commits; its messages are stranded once it has ended. If it
    commits in the very moment of the request, publishing wins: then the trip is delivered. Of a failed trip without messages the first
    database of its route, which the module has, is asked before: one that is committed there only rolls forward.
    """
    from bus_assets.cli.loading import open_depot

    depot = open_depot()
    trip = depot.trip(trip_id)
    found = _settled(trip, reason, module) if _is_nobodys(depot, trip) else depot.inbox.cancel(trip_id, reason)
    if as_json:
        print_json({"trip": found.id, "state": found.state, "cancelled": found.cancelled})
        return
    if found.state == "cancelled":
        say(f"trip {found.id} is cancelled{_what_becomes_of_it(found)}")
    else:
        say(
            f"trip {found.id} was asked to stop; a run drives it now, and stops before it publishes, unless it is committing at this "
            f"moment: `bus trip {found.id}` says what it came to, cancelled or delivered"
        )


def _is_nobodys(depot: Depot, trip: Trip) -> bool:
    """Whether neither a run nor a tick ends the trip, which is not over."""
    if trip.trigger == "queue" or trip.state not in ("driving", "failed"):
        return False
    attempt = depot.newest_attempt(trip.id)
    return trip.state == "failed" or attempt is None or attempt.ended_at is not None


def _settled(trip: Trip, reason: str, module: str | None) -> Trip:
    from bus_assets.boarding import cancel as cancelled
    from bus_assets.cli.loading import open_trip

    with open_trip(trip, module, "it is not cancelled") as (bus, route):
        return cancelled(bus, route, trip, reason)


def _what_becomes_of_it(trip: Trip) -> str:
    if trip.trigger == "queue":
        return f", its messages stranded; `bus redrive {trip.route} --state stranded --reason …` sends them on, `bus discard` gives them up"
    if trip.trigger == "release":
        return f"; `bus quarantine unrelease {trip.id}` holds again the rows that it was to release"
    return ": it cannot be driven again"
