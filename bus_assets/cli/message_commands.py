"""``bus messages``, ``message``, ``redrive``, ``discard`` and ``replay``: see where messages are, send them round again, give them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus_assets.cli.output import AsJson, Module, notice, print_json, print_table, say
from bus_assets.cli.route_commands import RouteName
from resources.texts import shortened

if TYPE_CHECKING:
    from resources.depot.inbox import Inbox
    from resources.depot.mail import Boarded, Counts, Decision, Message

STATES = ("waiting", "aboard", "delivered", "quarantined", "stranded", "superseded", "held", "discarded")
WAIT_FOR_A_PERSON = ("stranded", "quarantined", "held")
REDRIVEN = (*WAIT_FOR_A_PERSON, "discarded")
ONCE_MORE = {"append": "adds its rows once more", "accumulate": "is added to the sums once more"}
"""What a message does that is delivered again, by the mode of a table."""
ERROR_CHARACTERS = 90
NO_REASON = "no reason was given"
DAYS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]

Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept.")]
Ids = Annotated[list[int] | None, typer.Option("--id", metavar="ID", help="This message; may come again. `bus messages` lists them.")]
Since = Annotated[datetime | None, typer.Option("--since", formats=DAYS, help="Received then or later (UTC).")]
Until = Annotated[datetime | None, typer.Option("--until", formats=DAYS, help="Received before then (UTC).")]
Everything = Annotated[bool, typer.Option("--all", help="Everything that is stranded, quarantined or held.")]


def messages(
    route: Annotated[str | None, typer.Argument(metavar="[ROUTE]", help="Only messages of this route.")] = None,
    state: Annotated[str | None, typer.Option(help=f"Only those in this state: {', '.join(STATES)}.")] = None,
    key: Annotated[str | None, typer.Option(help="Only the one with this key, its identity.")] = None,
    trip: Annotated[str | None, typer.Option(help="Only those that ride, or ended, in this trip.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, in the order in which they were boarded.")] = 50,
    after: Annotated[int, typer.Option(min=0, help="Only those with a higher id: the next page.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List messages, their number by state on top. Where each is, in which trip, and why it waits; `bus message ID` shows one whole."""
    from bus_assets.cli.loading import open_depot

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"'{state}' is none of {', '.join(STATES)}", param_hint="--state")
    inbox = open_depot().inbox
    counts = {name: inbox.counts(name) for name in inbox.routes() if route in (None, name)}
    if route is not None and not counts:
        notice(f"no messages of route '{route}'; the depot has messages of {', '.join(inbox.routes()) or 'no route'}")
    found = inbox.messages(route, state, key, trip, _utc(since), limit=limit, after=after)  # pyright: ignore[reportArgumentType]
    decided = inbox.decisions([one.id for one in found])
    if as_json:
        print_json({"counts": counts, "messages": [shown(one, decided) for one in found]})
        return
    for name, counted in counts.items():
        say(f"{name}: {_in_words(counted)}")
    rows = [(m.id, m.route, m.state, m.key, m.received_at, m.trip, m.rows_rejected or None, _why(m, decided)) for m in found]
    has_some = any(number for counted in counts.values() for number in counted.by_state.values())
    if has_some or not (counts or route):  # else it is said already
        header = ("id", "route", "state", "key", "received (UTC)", "trip", "rejected", "why")
        print_table(header, rows, numbers=("id",), empty="no such messages" if has_some else "no messages")
    if len(found) == limit:
        notice(f"there may be more: --after {found[-1].id}")


def message(
    message_id: Annotated[int, typer.Argument(metavar="ID", help="A message's id; `bus messages` lists them.")],
    body: Annotated[bool, typer.Option("--body", help="Its body too.")] = False,
    reveal: Annotated[
        bool, typer.Option("--reveal-sensitive", help="With --body, where the route has sensitive fields: show it all the same.")
    ] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Show one message whole: its identity, its standing, its attributes."""
    from bus_assets.cli.loading import open_depot
    from resources.errors import Refused

    inbox = open_depot().inbox
    found = inbox.messages(limit=1, after=message_id - 1)
    if not found or found[0].id != message_id:
        raise Refused(f"the depot has no message {message_id}; `bus messages` lists them")
    decided = inbox.decisions([message_id])
    said = shown(found[0], decided) | {"attributes": dict(found[0].attributes)}
    if body:
        said["body"] = _body(found[0], module, reveal)
    if as_json:
        print_json(said)
        return
    said["decisions"] = "; ".join(f"{one.at:%Y-%m-%d %H:%M} UTC {one.what}: {one.reason}" for one in decided.get(message_id, ()))
    for name, value in said.items():
        say(f"{name}: {'' if value is None else value}")


def redrive(
    route: RouteName,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept. Needed, but for --from-dead-letters.")] = "",
    ids: Ids = None,
    state: Annotated[list[str] | None, typer.Option(help=f"Those that are {', '.join(REDRIVEN)}; may come again.")] = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    from_dead_letters: Annotated[
        bool, typer.Option("--from-dead-letters", help="What lies on the route's queue for dead letters: it is moved into the depot.")
    ] = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Let messages ride again that were given up. Known by their identity: what was applied is not applied again."""
    from bus_assets.cli.loading import known_route, open_depot

    states = _states(state, REDRIVEN)
    if [bool(ids or state or since or until), everything, from_dead_letters].count(True) != 1:
        said = "say which: --id ID …, --state STATE …, --since and --until, --all, or --from-dead-letters"
        raise typer.BadParameter(said, param_hint="--id")
    if not from_dead_letters and not reason.strip():
        raise typer.BadParameter("a redrive needs a reason: it is kept", param_hint="--reason")
    if from_dead_letters:
        _redrive_dead_letters(route, reason.strip() or NO_REASON, module, as_json)
        return
    depot = open_depot()
    known_route(depot, route, module)
    done = depot.inbox.redrive(route, ids, states, since=_utc(since), until=_utc(until), reason=reason)
    if as_json:
        print_json({"route": route, "redriven": done.waiting, "superseded": done.superseded})
        return
    said = [f"{done.waiting:,} redriven, and waiting again"] if done.waiting else []
    said += [f"{done.superseded:,} superseded, as a newer message of the same subject has come since"] if done.superseded else []
    say(f"route '{route}': " + ("; ".join(said) or _nothing(state, since, until)))
    _note_paused(depot.inbox, route)


def discard(
    route: RouteName,
    reason: Reason,
    ids: Ids = None,
    state: Annotated[list[str] | None, typer.Option(help=f"Those that are {', '.join(WAIT_FOR_A_PERSON)}; may come again.")] = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Give messages up for good that wait for a person. They stay on record, with the reason, and do not ride if they come again.

    One that held its group lets it go on. `bus redrive ROUTE --id ID` takes it back, as long as it has its body.
    """
    from bus_assets.cli.loading import known_route, open_depot

    states = _states(state, WAIT_FOR_A_PERSON)
    if bool(ids or state or since or until) is everything:
        raise typer.BadParameter("say which: --id ID …, --state STATE …, --since and --until, or --all", param_hint="--id")
    depot = open_depot()
    known_route(depot, route, module)
    chosen = states or WAIT_FOR_A_PERSON
    number = depot.inbox.discard(route, ids, chosen, since=_utc(since), until=_utc(until), reason=reason)
    if as_json:
        print_json({"route": route, "discarded": number})
        return
    say(f"route '{route}': " + (f"{number:,} discarded: {reason}" if number else _nothing(state, since, until)))


def replay(
    route: RouteName,
    since: Since = None,
    until: Until = None,
    ids: Ids = None,
    again: Annotated[bool, typer.Option("--again", help="Deliver them once more; without it they are only listed.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, with --again; it is kept.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="List at most so many; --again takes all of them.")] = 50,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """List delivered messages that have their bodies still. They are applied, so only --again sends them round once more.

    Delivered again they are applied once more, under receipts of their own: twice in a table without a key, added again
    where a table accumulates, and with their older values where a table replaces or deletes rows, whatever newer messages
    have left there; Table(…, newest=COLUMN) lets the newer ones stay.
    """
    from bus_assets.cli.loading import known_route, open_depot

    if again and not (reason or "").strip():
        raise typer.BadParameter("delivering again needs a reason: it is kept", param_hint="--reason")
    if again and since is None and until is None and not ids:
        raise typer.BadParameter("say which: --since, --until, or --id ID …", param_hint="--again")
    depot = open_depot()
    known_route(depot, route, module)
    found = depot.inbox.replay(route, _utc(since), _utc(until), ids)
    _note_missing(ids or [], found)
    if found:
        _note_what_it_does(route, module)
    done = depot.inbox.again(found, reason or "") if again and found else 0
    if as_json:
        print_json({"route": route, "messages": found, "sent again": done})
        return
    if done:
        say(f"route '{route}': {done:,} sent round once more: {reason}")
        _note_paused(depot.inbox, route)
        return
    listed = [depot.inbox.messages(route, limit=1, after=number - 1)[0] for number in found[:limit]]
    rows = [(m.id, m.key, m.received_at, m.trip, m.generation) for m in listed]
    print_table(("id", "key", "received (UTC)", "trip", "generation"), rows, numbers=("id",), empty="no such messages")
    if found:
        say(f"{len(found):,} in all, every one applied: nothing is done without `--again --reason …`")


def _redrive_dead_letters(route: str, reason: str, module: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from bus_assets.cli.loading import load, open_queue
    from bus_assets.redriving import board_dead_letters

    with open_queue(load(module), route) as (bus, found, queue):
        told, took = board_dead_letters(bus, found, queue, reason), queue.dead_letters
    said = {name: number for name, number in asdict(told).items() if number}
    if as_json:
        print_json({"route": route, "from": took, **said})
        return
    say(f"from queue {took}: " + (_arrived(told) or "nothing lies there"))


def _arrived(told: Boarded) -> str:
    """What became of arrivals, in words."""
    others = f" ({told.other_bodies:,} with another body)" if told.other_bodies else ""
    left = "left as it is" if told.duplicates == 1 else "left as they are"
    numbers = {
        "redriven, and waiting again": told.redriven,
        "new, and waiting": told.waiting,
        f"duplicate{'s' * (told.duplicates != 1)}{others}, {left}": told.duplicates,
        "superseded, as newer ones came before": told.superseded,
        "quarantined": told.quarantined,
        "ignored": told.ignored,
        "held": told.held,
        "that waited replaced by newer ones": told.replaced,
    }
    said = [f"{number:,} {words}" for words, number in numbers.items() if number]
    return "; ".join(said)


def _note_missing(asked: list[int], found: list[int]) -> None:
    missing = sorted(set(asked) - set(found))
    if missing:
        said = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        notice(f"left out: {said}: not delivered, of another route, without a body, or replaced by a newer one; `bus message {missing[0]}`")


def _note_what_it_does(route: str, module: str | None) -> None:
    """Tables in which an older message undoes what newer ones have left, or counts twice. Of a route that does not load nobody knows
    them."""
    from bus_assets.cli.loading import load
    from resources.errors import BusError

    try:
        found = load(module).routes.get(route)
    except BusError:
        return
    for table in dict.fromkeys(drop.into for drop in found.drop_offs if drop.into.newest is None) if found else ():
        if table.mode in ONCE_MORE:
            notice(f"table {table.name}: a message that is delivered again {ONCE_MORE[table.mode]} ({table.mode})")
        else:
            undone = "takes away" if table.mode == "delete" else "overwrites"
            which = "replay those too" + ("" if table.mode != "upsert" else ", or let the newer ones stay by Table(…, newest=COLUMN)")
            notice(f"table {table.name}: a message that is delivered again {undone} what newer ones have left there; {which}")


def _note_paused(inbox: Inbox, route: str) -> None:
    if paused := inbox.paused(route):
        notice(f"the route is paused ({paused[1]}): `bus resume {route}` lets them depart")


def _body(message: Message, module: str | None, reveal: bool) -> str | None:
    """Refused where fields of the route are sensitive, or where nobody can tell, unless ``reveal``."""
    from bus_assets.cli.loading import load
    from resources.errors import Refused

    route = None if reveal else load(module).routes.get(message.route)
    if not reveal and route is None:
        raise Refused(f"the module has no route '{message.route}' that would say what is sensitive; --reveal-sensitive shows the body")
    if route and (sensitive := sorted({name for stop in route.stops for name in route.contract_of(stop.name).sensitive})):
        raise Refused(f"route '{message.route}' has sensitive fields ({', '.join(sensitive)}); --reveal-sensitive shows the body")
    return None if message.body is None else message.body.decode("utf-8", "backslashreplace")


def shown(message: Message, decided: Mapping[int, list[Decision]]) -> dict[str, Any]:
    """A message without its body, which may be sensitive; and what people ``decided`` about it, the newest last."""
    from dataclasses import asdict

    names = ("id", "route", "key", "generation", "state", "trip", "sent_at", "event_at", "received_at", "changed_at")
    more = ("subject", "group", "duplicates", "other_bodies", "rows_rejected", "error")
    size = None if message.body is None else len(message.body)
    return {name: getattr(message, name) for name in (*names, *more)} | {
        "body_bytes": size,
        "decisions": [asdict(one) for one in decided.get(message.id, ())],
    }


def _why(message: Message, decided: Mapping[int, list[Decision]]) -> str:
    """Why it waits for a person, else what a person last decided about it."""
    said = next((f"{one.what}: {one.reason}" for one in decided.get(message.id, ())[-1:]), None)
    return _short(said if message.state == "discarded" else message.error or said)


def _in_words(counts: Counts) -> str:
    said = [f"{number:,} {state}" for state, number in counts.by_state.items() if number] or ["no messages"]
    said += [f"{counts.duplicates:,} duplicate{'s' * (counts.duplicates != 1)}"] if counts.duplicates else []
    said += [f"{counts.ignored:,} ignored"] if counts.ignored else []
    said += [f"PAUSED since {counts.paused_at:%Y-%m-%d %H:%M} UTC: {_short(counts.paused_reason)}"] if counts.paused_at else []
    return ", ".join(said)


def _states(given: list[str] | None, may: Sequence[str]) -> Any:
    """None if none are given."""
    wrong = [name for name in given or () if name not in may]
    if wrong:
        raise typer.BadParameter(f"'{wrong[0]}' is none of {', '.join(may)}", param_hint="--state")
    return tuple(given) if given else None


def _nothing(state: list[str] | None, since: datetime | None, until: datetime | None) -> str:
    return f"nothing is {' or '.join(state or WAIT_FOR_A_PERSON)}" + (" and was received then" if since or until else "")


def _short(error: str | None) -> str:
    return shortened((error or "").partition("\n")[0], ERROR_CHARACTERS)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment
