"""However many rows are rejected, the memory that takes is bounded by the batch."""

import tracemalloc
from dataclasses import replace
from functools import partial

import pytest

from bus_assets import Contract, DropOff, Field, PickUp, Table, TextFile, Transform
from bus_assets.stage import Stager
from resources.depot.store import Depot
from tests.world import World, shop

BATCH = 100


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    from resources import staging

    monkeypatch.setattr("resources.staging.read_batches", partial(staging.read_batches, batch_rows=BATCH))
    monkeypatch.setattr("bus_assets.transforms.BATCH_ROWS", BATCH)
    monkeypatch.setattr("bus_assets.halting.ROWS_AT_A_TIME", BATCH)
    monkeypatch.setattr("bus_assets.cross_rows.ROWS_AT_A_TIME", BATCH)
    monkeypatch.setattr("resources.depot.quarantine.INSERT_ROWS", BATCH)


@pytest.fixture(autouse=True)
def peaks(monkeypatch):
    """What Python takes at most, for each stop: from when all of its rows were read, to when its verdict is recorded."""
    found, judged, record = [], Stager._judged, Depot.record_verdict

    def watched(self, *problems):
        tracemalloc.start()
        return judged(self, *problems)

    def recorded(self, *what):
        record(self, *what)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    monkeypatch.setattr(Stager, "_judged", watched)
    monkeypatch.setattr(Depot, "record_verdict", recorded)
    yield found
    tracemalloc.stop()


A, B = Field("a", "integer"), Field("b", "integer")
TWO_KEYS = Contract((replace(A, unique=True), replace(B, unique=True)), max_rejected=1.0)
DANGLING = Contract((replace(A, references="goods.id"),), max_rejected=1.0)


def route(contract, *more):
    stops = (
        PickUp("goods", TextFile("landing", "goods.csv"), Contract((Field("id", "integer"),))),
        PickUp("orders", TextFile("landing", "orders.csv"), contract),
        *more,
        DropOff("log", Table("warehouse", "log", create=True)),
    )
    return shop(stops=stops)


REJECTING = {
    "by two keys": (route(TWO_KEYS), 0.5),
    "by a reference, of a transform": (route(Contract((A, B)), Transform("made", "SELECT a FROM orders", DANGLING)), 1.0),
}


def drive(root, rejecting, rows):
    """A trip that picks up so many ``rows``, each value in them there twice."""
    route, share = rejecting
    root.mkdir()
    world = World(root)
    world.land("id\n", "goods.csv")
    world.land("a,b\n" + "".join(f"{row % (rows // 2)},{row % (rows // 2)}\n" for row in range(rows)))
    driven = world.drive(route)
    assert sum(verdict.rejected for verdict in driven.verdicts().values()) == rows * share
    assert world.depot.quarantined(limit=1)[0].origin == "orders.csv"


@pytest.mark.parametrize("case", REJECTING)
def test_ten_times_the_rejected_rows_take_no_more_memory(tmp_path, peaks, case):
    most = []
    for rows in (BATCH, 300, 3_000):  # the first time it is imported what it takes
        peaks.clear()
        drive(tmp_path / str(rows), REJECTING[case], rows)
        most.append(max(peaks))
    _, few, many = most
    assert many < 2 * few
