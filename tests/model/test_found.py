"""Schedules that the model found, by hand."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from bus_assets import DropOff, Table
from bus_assets.boarding import failed, settle
from bus_assets.publish import publish
from resources.database import Database
from resources.errors import Refused, Transient
from tests.queue_world import QueueWorld, events, order


def copied(world, to):
    with sqlite3.connect(world.root / "depot.db") as source, sqlite3.connect(to) as target:
        source.backup(target)
    source.close()
    target.close()


def restored(world, copy):
    world.bus.depot.close()
    for leftover in world.root.glob("depot.db*"):
        leftover.unlink()
    shutil.copy(copy, world.root / "depot.db")


@pytest.fixture
def two_databases(tmp_path):
    drops = (
        DropOff("log", Table("warehouse", "log", create=True), of="messages"),
        DropOff("copy", Table("second", "copy", create=True), of="messages"),
    )
    return QueueWorld(tmp_path, events(stops=drops), second=Database(url=f"sqlite:///{tmp_path}/second.db"))


def second_down(drive, at):
    if at == "second":
        raise Transient("it is being moved")


@pytest.mark.parametrize("driven_before_the_copy", [False, True])
def test_a_depot_from_before_the_verdicts_rolls_forward_what_the_first_database_has(two_databases, driven_before_the_copy):
    """Its copy knows the trip, but no verdict of it, or one of an earlier attempt: other bytes than those that were published."""
    world = two_databases
    world.send(order(1))
    (departure,) = world.tick().departures
    copy = world.root / "copy"
    if driven_before_the_copy:
        world.run(departure, lambda drive, at: second_down(drive, "second" if at == "warehouse" else at))
        world.tick()
        world.hurry()
        (departure,) = world.tick().departures

    def drive_on(drive, at):
        if at == "messages":
            copied(world, copy)
        second_down(drive, at)

    world.run(departure, drive_on)
    restored(world, copy)
    world.deliver()
    assert world.states() == {"delivered": 1}
    assert world.logged() == ["O-1"]
    with sqlite3.connect(world.root / "second.db") as second:
        assert second.execute("SELECT order_id FROM copy").fetchall() == [("O-1",)]


def test_the_late_word_of_a_run_that_was_overtaken_is_no_failure_of_its_trip(tmp_path):
    """It came between revoking and deciding, counted as refused, and the route was paused."""
    world = QueueWorld(tmp_path, events(attempts=1))
    world.send(order(1))
    (departure,) = world.tick().departures

    class Asleep(BaseException):
        pass

    def fall_asleep(drive, at):
        if at == "warehouse":
            zombies.append(drive)
            raise Asleep

    zombies = []
    with pytest.raises(Asleep):
        world.run(departure, fall_asleep)
    (zombie,) = zombies
    settle(world.bus, world.route, zombie.trip, world.bus.depot.newest_attempt(zombie.trip.id))
    with pytest.raises(Refused) as late:
        publish(zombie, "warehouse")
    failed(zombie, "log", late.value)
    world.deliver()
    assert world.bus.depot.inbox.paused("events") is None
    assert world.logged() == ["O-1"]
