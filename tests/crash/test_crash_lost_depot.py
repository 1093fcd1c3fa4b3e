"""The depot is lost and restored from an earlier copy; the same trip is driven again and changes nothing in the tables."""

import random
import sqlite3
from pathlib import Path

import pytest

from resources.depot.store import Depot
from tests.crash import oracle
from tests.crash.aims import Aim, Ridden
from tests.crash.batches import made
from tests.crash.campaign import MIXED, SQLITE, towns

pytestmark = pytest.mark.crash
ROWS = 8_000


@pytest.fixture(params=[MIXED, SQLITE])
def town(request, tmp_path: Path, postgres_url: str):
    with towns(tmp_path, postgres_url, (request.param,)) as makers:
        yield makers[0][1]()


def copied(town) -> Path:
    copy = town.place.depot_file.with_suffix(".copy")
    with sqlite3.connect(town.place.depot_file) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
    return copy


def restored(town, copy: Path) -> None:
    for leftover in town.place.root.glob("depot.db*"):
        leftover.unlink()
    copy.rename(town.place.depot_file)


def killed(town, batch, moment):
    with Aim(town, random.Random(3)).taken(moment, Ridden("takings", batch.file, 0)) as wait:
        ride = town.start("takings", batch)
        wait(ride)
        ride.kill()
    town.quiet()
    return town.trip("takings", batch)


def drive_delivered_trip_with(town, batch, trip, copy):
    """Deliver, restore the copy, drive the trip again as often as somebody would press the button."""
    assert town.start("takings", batch, trip).end().success
    before = town.everything(depot=False)
    assert not list(oracle.when_delivered(town, "takings", batch, town.trip("takings", batch), [("takings", batch)]))
    restored(town, copy)
    ends = [town.start("takings", batch, trip).end() for _ in range(2)]
    assert town.everything(depot=False) == before
    return ends


@pytest.mark.parametrize("moment", ["claimed", "judged", "committed"])
def test_a_depot_from_before_the_publication_changes_nothing_in_the_tables(town, moment):
    batch = made(random.Random(5), 1, ROWS)
    town.land(batch)
    trip = killed(town, batch, moment)
    ends = drive_delivered_trip_with(town, batch, trip.id, copied(town))
    assert ends[-1].success, ends
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
