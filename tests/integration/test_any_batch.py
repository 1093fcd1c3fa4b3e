"""Which messages share a trip is chance, and decides nothing: random routes deliver the same rows, and tell the same of each message,
with one message a trip, with two and with all together."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from bus_assets import Contract, DropOff, Field, Json, PickUp, Table, TextFile, Transform
from bus_assets.route import Misdeclared, Route
from bus_assets.stops import Stop
from tests.queue_world import QueueWorld, events

LIMITS = (0, 0.3, 0.5, 1, 2, 1.0)
IDS = "abcd"
VALUES = [*IDS, ""], ["0", "1", "2", "3", "x", ""], ["1", "2", ""]
"""Of a line's id, q and v."""


def looked_up(lines: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    known = other.dropna(subset=["id"]).drop_duplicates("id").set_index("id")["v"]
    return lines.assign(v=lines["id"].map(known).astype("Int64"))


def in_another_order(lines: pa.Table, other: pa.Table) -> pa.Table:
    known = {row["id"]: row["v"] for row in reversed(other.to_pylist()) if row["id"] is not None}
    rows = [row | {"v": known.get(row["id"])} for row in reversed(lines.to_pylist())]
    return pa.Table.from_pylist(rows, lines.schema)


def in_pieces(lines: Iterator[pd.DataFrame], other: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for some in lines:
        yield looked_up(some, other)


def multiplied(lines: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    return lines[["id", "q"]].merge(other[["id", "v"]], on="id")


KEPT = (
    looked_up,
    in_another_order,
    in_pieces,
    "SELECT {a}.id, {a}.q, (SELECT min(o.v) FROM {b} o WHERE o.id = {a}.id) AS v FROM {a}",
    "SELECT {a}.id, {a}.q, o.v FROM {a} LEFT JOIN (SELECT id, max(v) AS v FROM {b} GROUP BY id) o ON o.id = {a}.id",
)
ALONE = (
    multiplied,
    "SELECT {a}.id, {a}.q, o.v FROM {a} JOIN {b} o ON o.id = {a}.id",
    "SELECT max({a}.id) AS id, CAST(sum({a}.q) AS BIGINT) AS q, CAST(count(*) AS BIGINT) AS v FROM {a} CROSS JOIN {b}",
)
ADDED_UP = "SELECT coalesce(id, '?') AS id, CAST(sum(q) AS BIGINT) AS q FROM {a} GROUP BY ALL"
SUMS = Table("warehouse", "sums", key="id", mode="accumulate", sums=("q",), create=True)


def _contract(rng: random.Random, known: Sequence[str]) -> Contract:
    reference = f"{rng.choice(known)}.id" if rng.random() < 0.5 else None
    fields = (
        Field("id", required=rng.random() < 0.4, references=reference),
        Field("q", "integer", minimum=rng.choice([None, 0, 2])),
        Field("v", "integer"),
    )
    return Contract(fields, unique=rng.choice([(), (("id",),), (("id", "q"),)]), max_rejected=rng.choice(LIMITS))


def _stops(rng: random.Random) -> tuple[Stop, ...]:
    goods = PickUp("goods", TextFile("landing", "goods.csv"), Contract((Field("id"), Field("v", "integer"))))
    stops, brought = list[Stop]([goods]), list[str]()
    for name in ("lines", "prices"):
        stops.append(PickUp(name, TextFile("landing", f"{{message.key}}-{name}.csv"), _contract(rng, ["messages", "goods", *brought])))
        brought.append(name)
    for number in range(rng.randint(1, 3)):
        first = rng.choice(brought)
        other = rng.choice([name for name in ("messages", "goods", *brought) if name != first])
        kept = rng.random() < 0.5
        how = rng.choice(KEPT if kept else ALONE)
        form: Any = how.format(a=first, b=other) if isinstance(how, str) else how
        grain: dict[str, Any] = {} if kept else {"grain": "changed", "combine": "alone"}
        contract = _contract(rng, ["messages", "goods", *brought])
        stops.append(Transform(f"made_{number}", form, contract, after=(first, other), **grain))
        brought.append(f"made_{number}")
    dropped = {brought[-1], *rng.sample(brought, 2)}
    stops += (DropOff(f"log_{of}", Table("warehouse", f"log_{of}", create=True), of=of) for of in sorted(dropped))
    if rng.random() < 0.4:
        contract = Contract((Field("id", required=True), Field("q", "integer")))  # a bound of sums would be one of a trip
        of = rng.choice(brought)
        stops.append(Transform("sums", ADDED_UP.format(a=of), contract, after=(of,), grain="changed", combine="accumulate"))
        stops.append(DropOff("added_up", SUMS, of="sums"))
    return tuple(stops)


def _made_up(seed: int) -> tuple[random.Random, Json, tuple[Stop, ...]]:
    """The first that constructs: not all that is made up so is a route."""
    rng = random.Random(seed)
    while True:
        head = Contract(
            (Field("key"), Field("id", required=rng.random() < 0.5), Field("v", "integer", minimum=rng.choice([None, 1]))),
            max_rejected=rng.choice(LIMITS),
        )
        try:
            stops = _stops(rng)
            _route(Json(head), stops, 1)
        except Misdeclared:
            continue
        return rng, Json(head), stops


def _route(decode: Json, stops: tuple[Stop, ...], batch: int) -> Route:
    return events(decode=decode, batch=batch, attempts=1, stops=stops)


def _messages(rng: random.Random) -> tuple[list[Any], dict[str, str]]:
    """Bodies, some of which are none, and the files that they name, some of which are empty or not there."""
    bodies, files = list[Any](), {"goods.csv": "id,v\na,0\nb,1\nc,2\n"}
    for number in range(rng.randint(3, 6)):
        key = f"k{number}"
        good = {"key": key, "id": rng.choice(IDS), "v": rng.choice([0, 1, 2])}
        bodies.append(rng.choice([good] * 6 + [{"key": key, "id": None, "v": "x"}, {"key": key}, "no JSON"]))
        for name in ("lines", "prices"):
            rows = rng.choice([0, 1, 1, 2, 3, 5])
            lines = [",".join(map(rng.choice, VALUES)) for _ in range(rows)]
            if rng.random() > 0.08:
                files[f"{key}-{name}.csv"] = "\n".join(["id,q,v", *lines, ""])
    return bodies, files


def _delivered(folder: Path, route: Route, bodies: Sequence[Any], files: dict[str, str]) -> tuple[Any, ...]:
    folder.mkdir()
    world = QueueWorld(folder, route)
    for name, text in files.items():
        world.land(text, name)
    for body in bodies:
        world.send(body)
    ticks = len(world.deliver(100))
    assert ticks < 100
    assert world.bus.depot.inbox.paused("events") is None
    fates = [message.state for message in sorted(world.messages(), key=lambda message: message.id)]
    tables = {drop.into.name: sorted(map(str, world.rows(drop.into.name))) for drop in route.drop_offs if "delivered" in fates}
    return fates, tables


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 100))])
def test_the_same_is_delivered_whichever_messages_share_a_trip(tmp_path: Path, seed: int):
    rng, decode, stops = _made_up(seed)
    bodies, files = _messages(rng)
    alone, by_two, together = (_delivered(tmp_path / f"{n}", _route(decode, stops, n), bodies, files) for n in (1, 2, 100))
    assert alone == by_two == together
