"""Accounts as tables on stdout: of a trip's rows, of a route's messages."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from bus_assets.account import Account, DropSum, Recount
from bus_assets.cli.output import print_coloured, print_json, print_table, say

if TYPE_CHECKING:
    from bus_assets.cli.loading import Loaded
    from bus_assets.counted_messages import Counted, MessagesAccount


def show_account(account: Account) -> None:
    """Stops, drop-offs, recounts, and whether it balances."""
    say(f"trip {account.trip} of route '{account.route}': {account.state}")
    if account.error:
        print_coloured(f"error: {account.error}", "red")
    if account.messages:
        say("messages: " + ", ".join(f"{number:,} {state}" for state, number in account.messages.items()))
    print_table(
        ("stop", "from", "came in", "picked up", "kept", "rejected", "why rejected", "kept rows went"),
        [(s.stop, s.source, s.came_in, s.picked_up, s.kept, s.rejected, _reasons(s.reasons), s.fate) for s in account.stops],
        numbers=("came in", "picked up", "kept", "rejected"),
        empty="no stop has been driven",
    )
    for stop in account.stops:
        if stop.grain == "changed" and stop.came_in is not None:
            say(f"{stop.stop} changes the grain: {stop.came_in:,} rows of its first stop became {stop.picked_up:,}")
    if account.drop_offs:
        print_table(
            ("drop-off", "table", "of", "offered", "left out", "folded", "inserted", "updated", "deleted", ""),
            [(d.stop, d.table, d.of, *_figures(d)) for d in account.drop_offs],
            numbers=("offered", "left out", "folded", "inserted", "updated", "deleted"),
        )
    if account.recounts:
        say("recounted, independently of the platform's counters:")
        print_table(
            ("stop", "what", "counted by", "account", "recount", ""),
            [(r.stop, r.what, r.counted_by, r.expected, r.found, _status(r)) for r in account.recounts],
            numbers=("account", "recount"),
        )
    _verdict(account)


def _figures(drop: DropSum) -> tuple[int | str | None, ...]:
    if drop.state != "dropped":
        return (None,) * 6 + ("not published" if drop.state == "open" else "not reached by the released rows",)
    note = f"{drop.missing:,} keys were not there" if drop.missing else ""
    return (drop.offered, drop.left_out, drop.folded, drop.inserted, drop.updated, drop.deleted, note)


def _reasons(reasons: object) -> str:
    assert isinstance(reasons, dict)
    return "; ".join(f"{rule} ×{rows:,}" for rule, rows in reasons.items())


def _status(recount: Recount | Counted) -> object:
    from rich.text import Text

    from bus_assets.cli.output import plain

    style = {"agrees": "green", "differs": "bold red", "not counted": "yellow"}[recount.status]
    sign = {"agrees": "✓", "differs": "✗ DIFFERS", "not counted": "not counted"}[recount.status]
    return Text(plain(f"{sign}: {recount.note}" if recount.note else sign), style)


def _verdict(account: Account) -> None:
    for problem in account.problems:
        print_coloured(f"✗ {problem}", "bold red")
    totals = account.totals
    said = f"{totals['picked_up']:,} rows picked up, {totals['rejected']:,} rejected, {totals['dropped_off']:,} dropped off"
    said += f" at {len(account.drop_offs)} drop-offs" if len(account.drop_offs) > 1 else ""
    skipped = sum(recount.status == "not counted" for recount in account.recounts)
    recounted = ", and the recount agrees" + (f" ({skipped} not counted)" if skipped else "") if account.recounts else ""
    if account.balanced:
        print_coloured(f"✓ the account balances{recounted}: {said}", "green")
    else:
        print_coloured(f"✗ the account does not balance: {said}", "bold red")


def account_of_messages(loaded: Loaded, name: str, *, recount: bool, as_json: bool) -> None:
    """``bus account ROUTE``."""
    from bus_assets.cli.loading import open_bus
    from bus_assets.counted_messages import messages_account

    route = loaded.route(name)
    with open_bus(loaded, route) as bus:
        found = messages_account(bus, route, recount)
    if as_json:
        print_json({**asdict(found), "balanced": found.balanced})
    else:
        _show_messages(found)
    if not found.balanced:
        raise typer.Exit(1)


def _show_messages(found: MessagesAccount) -> None:
    others = f" ({found.other_bodies:,} with another body)" if found.other_bodies else ""
    besides = f"{found.duplicates:,} duplicate{'s' * (found.duplicates != 1)}{others}, {found.ignored:,} ignored"
    say(f"route '{found.route}': {found.received:,} messages received; besides, {besides}")
    say(f"{found.in_states:,} = " + " + ".join(f"{number:,} {state}" for state, number in found.by_state.items()))
    for name, depth in found.on_queues.items():
        say(f"queue {name}: {depth}")
    if found.recounts:
        say("recounted, message by message:")
        print_table(
            ("what", "counted by", "account", "recount", ""),
            [(r.what, r.counted_by, r.expected, r.found, _status(r)) for r in found.recounts],
            numbers=("account", "recount"),
        )
    if found.received != found.in_states:
        print_coloured(f"✗ {found.received:,} were received, but {found.in_states:,} are in a state", "bold red")
    if found.balanced:
        print_coloured("✓ the account balances" + (", and the recount agrees" if found.recounts else ""), "green")
    else:
        print_coloured("✗ the account does not balance", "bold red")
