"""``bus messages``, ``redrive``, ``replay``, ``cancel``, ``pause``, ``resume`` and ``dispatch``: what a person does about messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus_assets.cli.output import AsJson, Module, notice, print_json, print_table, say
from bus_assets.cli.route_commands import RouteName
from bus_assets.cli.trip_commands import TripId

if TYPE_CHECKING:
    from bus_assets.cli.loading import Loaded
    from bus_assets.drive import Bus
    from bus_assets.queues import Queue
    from bus_assets.route import Route
    from resources.depot.mail import Message

STATES = ("waiting", "aboard", "delivered", "quarantined", "stranded", "superseded", "held")
WAIT_FOR_A_PERSON = ("stranded", "quarantined", "held")
ERROR_CHARACTERS = 90

Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept.")]
Ids = Annotated[list[int] | None, typer.Option("--id", metavar="ID", help="Only this message; may come again. `bus messages` lists them.")]


def messages(
    route: Annotated[str | None, typer.Argument(metavar="[ROUTE]", help="Only messages of this route.")] = None,
    state: Annotated[str | None, typer.Option(help=f"Only those in this state: {', '.join(STATES)}.")] = None,
    key: Annotated[str | None, typer.Option(help="Only the one with this key.")] = None,
    trip: Annotated[str | None, typer.Option(help="Only those of this trip.")] = None,
    message: Annotated[int | None, typer.Option("--id", help="Show one message whole, without its body.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, in the order in which they were boarded.")] = 50,
    after: Annotated[int, typer.Option(min=0, help="Only those with a higher id.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List messages. Where each is, in which trip, how many of its rows were rejected, and why it waits."""
    from bus_assets.cli.loading import open_depot

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"'{state}' is none of {', '.join(STATES)}", param_hint="--state")
    if message is not None:
        limit, after = 1, message - 1
    inbox = open_depot().inbox
    found = inbox.messages(route, state, key, trip, limit=limit, after=after)  # pyright: ignore[reportArgumentType]
    found = [one for one in found if message in (None, one.id)]
    if as_json:
        print_json([_shown(one) for one in found])
        return
    if route and message is None:
        counts = inbox.counts(route)
        say(", ".join(f"{number:,} {name}" for name, number in counts.by_state.items() if number) or "no messages")
    if message is not None:
        for one in found:
            for name, value in _shown(one).items():
                say(f"{name}: {value}")
        return
    rows = [(m.id, m.route, m.state, m.key, m.received_at, m.trip, m.rows_rejected or None, _short(m.error)) for m in found]
    print_table(("id", "route", "state", "key", "received (UTC)", "trip", "rejected", "why"), rows, numbers=("id",), empty="no messages")
    if len(found) == limit:
        notice(f"there may be more: --after {found[-1].id}")


def redrive(
    route: RouteName,
    reason: Reason,
    ids: Ids = None,
    state: Annotated[list[str] | None, typer.Option(help="Only those that are stranded, quarantined or held; may come again.")] = None,
    from_dead_letters: Annotated[
        bool, typer.Option("--from-dead-letters", help="Board what lies on the route's queue for dead letters instead.")
    ] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Let messages ride again that were given up. Known by their identity: what was applied is not applied again."""
    from bus_assets.cli.loading import open_depot

    wrong = [name for name in state or () if name not in WAIT_FOR_A_PERSON]
    if wrong:
        raise typer.BadParameter(f"'{wrong[0]}' is none of {', '.join(WAIT_FOR_A_PERSON)}", param_hint="--state")
    if from_dead_letters:
        with _queue_route(route, module) as (_, bus, found, queue):
            boarded = _board_dead_letters(bus, found, queue)
        return _told({"route": route, **boarded}, as_json)
    number = open_depot().inbox.redrive(route, ids, tuple(state or WAIT_FOR_A_PERSON), reason=reason)  # pyright: ignore[reportArgumentType]
    _told({"route": route, "redriven": number}, as_json)
    return None


def replay(
    route: RouteName,
    since: Annotated[datetime | None, typer.Option(help="Received then or later.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Received before then.")] = None,
    ids: Ids = None,
    again: Annotated[bool, typer.Option("--again", help="Deliver them once more; without it they are only listed.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, with --again; it is kept.")] = "",
    as_json: AsJson = False,
) -> None:
    """List delivered messages that could be delivered again. They are applied already, so only --again does it."""
    from bus_assets.cli.loading import open_depot

    if again and not reason.strip():
        raise typer.BadParameter("delivering again needs a reason: it is kept", param_hint="--reason")
    inbox = open_depot().inbox
    found = inbox.replay(route, _utc(since), _utc(until), ids)
    done = inbox.again(found, reason) if again and found else 0
    _told({"route": route, "messages": found, "sent again": done}, as_json)


def cancel(trip_id: TripId, reason: Reason, as_json: AsJson = False) -> None:
    """Stop a trip of messages for good. Its messages are stranded, and can be redriven; a run that drives it stops at its next rows."""
    from bus_assets.cli.loading import open_depot

    found = open_depot().inbox.cancel(trip_id, reason)
    _told({"trip": found.id, "state": found.state, "cancelled": found.cancelled}, as_json)


def pause(route: RouteName, reason: Reason, as_json: AsJson = False) -> None:
    """Let no more trips of a route depart. Its messages stay on their queue."""
    from bus_assets.cli.loading import open_depot

    open_depot().inbox.pause(route, reason)
    _told({"route": route, "paused": reason}, as_json)


def resume(route: RouteName, as_json: AsJson = False) -> None:
    """Let trips of a paused route depart again."""
    from bus_assets.cli.loading import open_depot

    open_depot().inbox.resume(route)
    _told({"route": route, "paused": False}, as_json)


def dispatch(
    route: RouteName,
    wait: Annotated[float, typer.Option(min=0, max=20, help="Seconds to wait for a first message.")] = 2.0,
    module: Module = None,
) -> None:
    """Do what the queue's sensor does, once, and drive the trips that depart in this process. For CI, and without a daemon."""
    from bus_assets.build.dispatching import policy_of, protocol
    from bus_assets.cli.drive_command import drive_and_tell
    from bus_assets.cli.driving import Wish
    from bus_assets.cli.loading import open_instance
    from sensors.dispatch import tick

    with _queue_route(route, module) as (loaded, bus, found, queue), open_instance() as instance:
        above, dead = protocol(bus, found, queue, instance), bus.systems[queue.dead_letters] if queue.dead_letters else None
        source, policy = bus.systems[queue.system], policy_of(found, queue)
        done = tick(policy, bus.depot.inbox, source, above, dead_letters=dead, poll_seconds=wait)
    say(done.said)
    failed = 0
    for departure in done.departures:
        driven = drive_and_tell(loaded, found, Wish(trip=departure.trip))
        say(f"trip {departure.trip}: " + ("delivered" if driven.succeeded else str(driven.error)))
        failed += not driven.succeeded
    if failed:
        raise typer.Exit(1)


@contextmanager
def _queue_route(name: str, module: str | None) -> Iterator[tuple[Loaded, Bus, Route, Queue]]:
    from bus_assets.cli.loading import load, open_bus
    from resources.errors import Misconfigured

    loaded = load(module)
    route = loaded.route(name)
    if route.queue is None:
        raise Misconfigured(f"route '{name}' has no queue; `bus drive {name}` drives it")
    with open_bus(loaded, route) as bus:
        yield loaded, bus, route, route.queue


def _board_dead_letters(bus: Bus, route: Route, queue: Queue) -> dict[str, int]:
    """The depot first, then the queue, as with any other message."""
    from dataclasses import asdict

    from bus_assets import archive
    from resources.errors import Misconfigured
    from sensors.envelopes import unwrap

    if queue.dead_letters is None:
        raise Misconfigured(f"route '{route.name}' names no queue for dead letters; without --from-dead-letters the depot is asked")
    dead, told = bus.systems[queue.dead_letters], dict[str, int]()
    while received := dead.receive(500, 1):
        arrivals = [arrival for one in received for arrival in unwrap(one, queue.decode.kind, queue.identity)]
        archive.keep(bus.staging, route.name, arrivals)
        boarded = asdict(bus.depot.inbox.board(route.name, arrivals))
        dead.delete(received)
        told = {name: told.get(name, 0) + number for name, number in boarded.items()}
    return {name: number for name, number in told.items() if number} or {"boarded": 0}


def _shown(message: Message) -> dict[str, Any]:
    """A message without its body, which may be sensitive."""
    names = ("id", "route", "key", "generation", "state", "trip", "sent_at", "event_at", "received_at", "changed_at")
    more = ("subject", "group", "duplicates", "rows_rejected", "error")
    return {name: getattr(message, name) for name in (*names, *more)} | {"body_bytes": len(message.body or b"")}


def _short(error: str | None) -> str:
    text = (error or "").partition("\n")[0]
    return text if len(text) <= ERROR_CHARACTERS else text[: ERROR_CHARACTERS - 1] + "…"


def _utc(moment: datetime | None) -> datetime | None:
    from datetime import UTC

    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def _told(said: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(said)
    else:
        say(", ".join(f"{name}: {value}" for name, value in said.items()))
