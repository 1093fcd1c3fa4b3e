"""Rows that move renew the lease of who drives them, and a trip that is cancelled stops at its next rows, or before it commits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bus_assets.drive import LEASE_SECONDS, Overtaken, check_not_cancelled
from bus_assets.progress import watching
from tests.queue_cli import CliWorld
from tests.queue_world import orders


@pytest.fixture
def calm(tmp_path, monkeypatch, capsys):
    """Ten messages that come aboard in five batches, before any lease has to be renewed."""
    monkeypatch.setattr("bus_assets.aboard.BODIES_AT_A_TIME", 2)
    world = CliWorld(tmp_path, monkeypatch, capsys)
    world.send(*orders(range(10)))
    return world


@pytest.fixture
def world(calm, monkeypatch):
    """The lease is renewed at each batch."""
    monkeypatch.setattr("bus_assets.drive.RENEW_SECONDS", 0)
    return calm


def until(world, departure):
    return world.bus.depot.newest_attempt(departure.trip).lease_until


def test_each_batch_renews_the_lease_at_every_stop_and_while_publishing(world):
    """As if each batch took a quarter of an hour: without renewal the attempt would count as dead."""
    (departure,) = world.tick().departures
    renewed, ran_out = [], "2001-01-01 00:00:00.000000"

    def a_batch_later(progress):
        if progress.passed is None:
            if until(world, departure).year > 2001:
                renewed.append(progress.stop)
            world.sql("UPDATE depot_attempts SET lease_until = :then", then=ran_out)

    with watching(a_batch_later):
        assert world.run(departure) == "success"
    # A batch is told of before it renews: the first sees the lease of the claim, every other one what the batch before it left.
    assert renewed.count("messages") == 5
    assert {"messages", "priced", "log"} <= set(renewed)
    left = until(world, departure) - datetime.now(UTC)
    assert timedelta(0) < left <= timedelta(seconds=LEASE_SECONDS)
    assert len(world.logged()) == 10


def test_between_two_renewals_the_depot_is_left_alone(world, monkeypatch):
    monkeypatch.setattr("bus_assets.drive.RENEW_SECONDS", 3600)
    (departure,) = world.tick().departures
    seen = set()
    with watching(lambda progress: seen.add(until(world, departure))):
        world.run(departure)
    assert len(seen) == 1


@pytest.mark.parametrize(("stop", "rows"), [("messages", 4), ("priced", 10), ("log", 10)])
def test_a_running_trip_that_is_cancelled_between_two_batches_stops_there(world, stop, rows):
    (departure,) = world.tick().departures
    seen = []

    def a_person_cancels(progress):
        seen.append((progress.stop, progress.rows))
        if (progress.stop, progress.rows, progress.passed) == (stop, rows, None):
            assert "was asked to stop" in world.bus_says("cancel", departure.trip, "--reason", "wrong prices")[1]

    with watching(a_person_cancels), pytest.raises(Overtaken, match=r"asked to stop \(wrong prices\)"):
        world.drive(world.route, run="run", tagged=departure.trip)
    assert seen[-1] == (stop, rows)  # nothing was read, made or written after that
    world.runs.over.add("run")
    has_stopped(world, departure)


def has_stopped(world, departure):
    """Nothing is published, the messages are stranded with the person's reason, and can be redriven."""
    assert world.logged() == []
    assert "stranded 10" in world.tick().said
    assert world.bus.depot.trip(departure.trip).state == "cancelled"
    assert {(message.state, message.error) for message in world.messages()} == {("stranded", "wrong prices")}
    world.bus_says("redrive", "events", "--all", "--reason", "right prices")
    world.deliver()
    assert len(world.logged()) == 10


def test_a_trip_whose_stops_are_short_stops_before_it_commits(calm):
    """Cancelled while its last table is written: no lease is due for another ten seconds."""
    (departure,) = calm.tick().departures

    def a_person_cancels(progress):
        if (progress.stop, progress.passed) == ("log", None):
            calm.bus_says("cancel", departure.trip, "--reason", "wrong prices")

    with watching(a_person_cancels), pytest.raises(Overtaken, match=r"asked to stop \(wrong prices\)"):
        calm.drive(calm.route, run="run", tagged=departure.trip)
    calm.runs.over.add("run")
    has_stopped(calm, departure)


def test_a_request_that_comes_in_the_moment_of_the_commit_is_too_late_and_said_so(calm, monkeypatch):
    (departure,) = calm.tick().departures

    def looked(drive):
        check_not_cancelled(drive)
        said.append(calm.bus_says("cancel", departure.trip, "--reason", "wrong prices")[1])

    said = []
    monkeypatch.setattr("bus_assets.publish.check_not_cancelled", looked)
    assert calm.run(departure) == "success"
    assert "unless it is committing at this moment" in said[0]
    assert (len(calm.logged()), calm.states()) == (10, {"delivered": 10})
    assert "delivered" in calm.bus_says("trip", departure.trip)[1]
    assert "nothing left to cancel" in calm.refused("cancel", departure.trip, "--reason", "wrong prices")
