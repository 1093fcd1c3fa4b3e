"""One message, several tables: what is delivered of it where its lines break their contract; and, of a FIFO group, what waits behind it.
docs/messages.md says what these tests show.
"""

from __future__ import annotations

import json

import pytest

from bus_assets import Check, Contract, DropOff, Field, Json, Queue, Route, Table, Transform
from bus_assets.release import choose, start_release
from tests.queue_world import QueueWorld

INVOICE = (Field("no", required=True), Field("lines", "list<struct<sku: string, qty: integer>>", required=True))
JUDGED = Transform(
    "judged",
    "SELECT *, len(list_filter(lines, lambda line: line.qty IS NULL OR line.qty < 1)) AS bad_lines FROM messages",
    Contract((*INVOICE, Field("bad_lines", "integer", maximum=0))),
    after=("messages",),
)
HEADS = Contract((Field("no", required=True), Field("lines", "integer", required=True)))


def lines(max_rejected: float, least: int = 1) -> Contract:
    fields = (Field("no", required=True), Field("sku", required=True), Field("qty", "integer", required=True, minimum=least))
    return Contract(fields, max_rejected=max_rejected)


def drops(of: str) -> tuple[DropOff, DropOff]:
    tables = (Table("warehouse", "heads", create=True), Table("warehouse", "invoice_lines", create=True))
    return DropOff("head_table", tables[0], of="heads"), DropOff("line_table", tables[1], of=of)


def invoices(first: str = "messages", max_rejected: float = 0.1, least: int = 1) -> Route:
    """Heads and lines, both made of the stop ``first``."""
    unnested = f"SELECT no, line.sku AS sku, line.qty AS qty FROM (SELECT no, unnest(lines) AS line FROM {first})"
    stops = (
        *((JUDGED,) if first == "judged" else ()),
        Transform("heads", f"SELECT no, len(lines) AS lines FROM {first}", HEADS, after=(first,)),
        Transform("lines", unnested, lines(max_rejected, least), after=(first,), grain="changed", combine="alone"),
        *drops("lines"),
    )
    return Route(name="invoices", triggers=(Queue("order_events", Json(Contract(INVOICE))),), stops=stops)


def of_lines(max_rejected: float = 0) -> Route:
    """The rows of ``messages`` are the lines; heads are made of them."""
    body = Json(lines(max_rejected), fields={"no": "@body.no"}, records="lines")
    heads = Transform(
        "heads",
        "SELECT no, count(*) AS lines FROM messages GROUP BY no",
        HEADS,
        after=("messages",),
        grain="changed",
        combine="alone",
    )
    return Route(name="invoices", triggers=(Queue("order_events", body),), stops=(heads, *drops("messages")))


def delivered(tmp_path, route: Route) -> QueueWorld:
    """Three invoices: all lines are good, one of ten is bad, all are bad."""
    world = QueueWorld(tmp_path, route)
    for no, quantities in {"good": [1, 2], "tenth": [*[1] * 9, 0], "bad": [0, 0]}.items():
        world.send({"no": no, "lines": [{"sku": "tea", "qty": qty} for qty in quantities]})
    world.deliver()
    return world


def states(world: QueueWorld, name: str = "no") -> dict[str, str]:
    return {json.loads(message.body)[name]: message.state for message in world.messages()}


def landed(world: QueueWorld) -> tuple[list[str], list[str]]:
    return [row[0] for row in world.rows("heads")], sorted({row[0] for row in world.rows("invoice_lines")})


@pytest.mark.parametrize(("max_rejected", "with_lines", "held"), [(0.1, ["good", "tenth"], 3), (0, ["good"], 12)])
def test_each_stop_judges_a_message_by_itself_and_a_head_whose_lines_are_held_is_delivered(tmp_path, max_rejected, with_lines, held):
    world = delivered(tmp_path, invoices(max_rejected=max_rejected))
    assert landed(world) == (["bad", "good", "tenth"], with_lines)
    assert set(states(world).values()) == {"delivered"}
    assert [row.stop for row in world.depot.quarantined()] == ["lines"] * held
    world.route = invoices(max_rejected=max_rejected, least=0)
    releases, left = choose(world.depot, world.route, "lines")
    assert not left
    for release in releases:
        world.drive(world.route, run="release", tagged=start_release(world.depot, release).id)
    assert landed(world) == (["bad", "good", "tenth"], ["bad", "good", "tenth"])
    assert len(world.rows("invoice_lines")) == 14


@pytest.mark.parametrize("route", [invoices("judged"), of_lines()], ids=["a stop that counts bad lines", "lines are the first stop's rows"])
def test_lines_judged_before_the_paths_part_set_the_whole_message_aside(tmp_path, route):
    world = delivered(tmp_path, route)
    assert landed(world) == (["good"], ["good"])
    assert states(world) == {"good": "delivered", "tenth": "quarantined", "bad": "quarantined"}


ENTRY = (Field("id", required=True), Field("amount", "integer"))


def ledger(*, checked: bool) -> Route:
    """Bookings whose amount must be positive, by a contract or by a check."""
    sound = Contract(ENTRY) if checked else Contract((ENTRY[0], Field("amount", "integer", minimum=1)))
    checks = (Check("positive", "SELECT * FROM sound WHERE amount < 1"),) if checked else ()
    return Route(
        name="ledger",
        triggers=(Queue("order_events", Json(Contract(ENTRY)), identity="id", dead_letters="dead"),),
        stops=(
            Transform("sound", "SELECT * FROM messages", sound, after=("messages",), checks=checks),
            DropOff("log", Table("warehouse", "log", create=True), of="sound"),
        ),
    )


@pytest.mark.parametrize(("checked", "order"), [(False, ["1", "3", "2"]), (True, ["1", "2", "3"])], ids=["contract", "check"])
def test_what_breaks_a_contract_lets_its_group_go_on_and_what_breaks_a_check_holds_it(tmp_path, checked, order):
    world = QueueWorld(tmp_path, ledger(checked=checked), fifo=True)
    for number in "123":
        world.send({"id": number, "amount": 0 if number == "2" else int(number)}, group="account")
    world.deliver()
    state, behind = ("stranded", "waiting") if checked else ("quarantined", "delivered")
    assert states(world, "id") == {"1": "delivered", "2": state, "3": behind}
    world.send({"id": "2", "amount": 2}, group="account")
    world.deliver()
    assert [row[0] for row in world.rows("log", "rowid")] == order
    assert world.states() == {"delivered": 3}
