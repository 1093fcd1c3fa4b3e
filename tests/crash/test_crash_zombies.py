"""Zombies, and a depot restored from yesterday: whoever drives a trip a second time changes nothing."""

import random
from pathlib import Path

import pytest

from tests.crash.batches import made
from tests.crash.campaign import MIXED, SQLITE, towns
from tests.crash.zombies import haunt

pytestmark = pytest.mark.crash
ROWS = 20_000


@pytest.fixture(params=[MIXED, SQLITE])
def town(request, tmp_path: Path, postgres_url: str):
    with towns(tmp_path, postgres_url, (request.param,)) as makers:
        yield makers[0][1]()


def stopped(town, moment, seed):
    """A zombie that was stopped in time: on a busy machine the first may have been too quick."""
    delivered = []
    for number in range(1, 6):
        rng = random.Random(seed + number)
        batch = made(rng, number, ROWS)
        town.land(batch)
        zombie = haunt(town, "sales", batch, moment, rng, delivered)
        if zombie.stopped and (moment != "publishing" or zombie.held_a_lock):
            return zombie
        assert not zombie.problems
        delivered.append(("sales", batch))
    pytest.fail(f"no process could be stopped at {moment!r}")


def test_a_zombie_stopped_while_it_picks_up_changes_nothing_when_it_wakes(town):
    zombie = stopped(town, "claimed", 10)
    assert zombie.problems == []
    assert zombie.end is not None


def test_a_zombie_stopped_between_gate_and_publishing_changes_nothing_when_it_wakes(town):
    zombie = stopped(town, "judged", 20)
    assert zombie.problems == []


def test_a_zombie_stopped_in_its_transaction_makes_the_taker_wait_in_bounds_and_lands_once(town):
    zombie = stopped(town, "publishing", 30)
    assert zombie.problems == []
    assert zombie.held_a_lock
