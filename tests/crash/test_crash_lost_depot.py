"""The depot is lost and restored from an earlier copy; the same trip is driven again and changes nothing in the tables."""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.depot.store import Depot
from tests.crash import oracle
from tests.crash.aims import Aim, Ridden
from tests.crash.batches import Batch, made
from tests.crash.campaign import MIXED, SQLITE, towns
from tests.crash.town import End, Town, Trip

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("crash")]
ROWS = 8_000


@pytest.fixture
def town(request: pytest.FixtureRequest, tmp_path: Path, postgres_url: str) -> Iterator[Town]:
    with towns(tmp_path, postgres_url, (getattr(request, "param", MIXED),)) as makers:
        yield makers[0][1]()


def copied(town: Town) -> Path:
    copy = town.place.depot_file.with_suffix(".copy")
    with sqlite3.connect(town.place.depot_file) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
    return copy


def restored(town: Town, copy: Path) -> None:
    for leftover in town.place.root.glob("depot.db*"):
        leftover.unlink()
    copy.rename(town.place.depot_file)


def killed(town: Town, batch: Batch, moment: str) -> Trip:
    with Aim(town, random.Random(3)).taken(moment, Ridden("takings", batch.file, 0)) as wait:
        ride = town.start("takings", batch)
        wait(ride)
        ride.kill()
    town.quiet()
    trip = town.trip("takings", batch)
    assert trip is not None
    return trip


def drive_delivered_trip_with(town: Town, batch: Batch, trip: str, copy: Path) -> list[End]:
    """Deliver, restore the copy, drive the trip again as often as somebody would press the button."""
    assert town.start("takings", batch, trip).end().success
    before = town.everything(depot=False)
    assert not list(oracle.when_delivered(town, "takings", batch, town.trip("takings", batch), [("takings", batch)]))
    restored(town, copy)
    ends = [town.start("takings", batch, trip).end() for _ in range(2)]
    assert town.everything(depot=False) == before
    return ends


@pytest.mark.parametrize(
    ("town", "moment"), [pytest.param(MIXED, "judged", marks=pytest.mark.long), (SQLITE, "committed")], indirect=["town"]
)
def test_a_depot_from_before_the_publication_was_noted_learns_that_the_trip_is_delivered(town, moment):
    batch = made(random.Random(5), 1, ROWS)
    town.land(batch)
    trip = killed(town, batch, moment)
    ends = drive_delivered_trip_with(town, batch, trip.id, copied(town))
    assert ends[0].success, ends
    assert town.trip("takings", batch).state == "delivered"


def test_a_depot_from_before_the_verdicts_says_that_the_trip_is_committed_already(town):
    batch = made(random.Random(5), 1, ROWS)
    town.land(batch)
    trip = killed(town, batch, "claimed")
    assert not trip.passed
    ends = drive_delivered_trip_with(town, batch, trip.id, copied(town))
    assert all("is committed already" in str(end.errors) for end in ends), ends
    assert town.trip("takings", batch).state == "delivered"


def test_a_depot_from_before_the_first_claim_changes_nothing_in_the_tables(town):
    batch = made(random.Random(6), 1, ROWS)
    town.land(batch)
    depot = Depot(town.place.depot_url)
    trip = depot.start_trip("takings", "person", {"file": batch.file}).id
    depot.close()
    ends = drive_delivered_trip_with(town, batch, trip, copied(town))
    assert ends[-1].success, ends
    assert town.trip("takings", batch).state == "delivered"
