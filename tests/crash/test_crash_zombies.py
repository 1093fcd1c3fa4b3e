"""A process that stops, is taken for dead, and wakes up when its trip was driven again by another: it changes nothing."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.batches import made
from tests.crash.campaign import MIXED, SQLITE, towns
from tests.crash.town import Town
from tests.crash.zombies import Zombie, haunt

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("crash")]
ROWS = 15_000
TRIES = 6


@pytest.fixture
def town(request: pytest.FixtureRequest, tmp_path: Path, postgres_url: str) -> Iterator[Town]:
    with towns(tmp_path, postgres_url, (getattr(request, "param", MIXED),)) as makers:
        yield makers[0][1]()


def stopped(town: Town, moment: str, seed: int, *, with_a_lock: bool = False) -> Zombie:
    """A zombie that was stopped in time: on a busy machine the first may have been too quick."""
    delivered = []
    for number in range(1, TRIES + 1):
        rng = random.Random(seed + number)
        batch = made(rng, number, ROWS)
        town.land(batch)
        zombie = haunt(town, "sales", batch, moment, rng, delivered)
        if zombie.stopped and (zombie.held_a_lock or not with_a_lock):
            return zombie
        assert not zombie.problems
        delivered.append(("sales", batch))
    pytest.fail(f"of {TRIES} processes none could be stopped at {moment!r}")


@pytest.mark.parametrize("town", [SQLITE], indirect=True)
def test_a_zombie_stopped_while_it_picks_up_changes_nothing_when_it_wakes(town: Town):
    zombie = stopped(town, "claimed", 10)
    assert zombie.problems == []
    assert zombie.end is not None


def test_a_zombie_stopped_between_gate_and_publishing_changes_nothing_when_it_wakes(town: Town):
    zombie = stopped(town, "judged", 20)
    assert zombie.problems == []


@pytest.mark.parametrize("town", [MIXED, pytest.param(SQLITE, marks=pytest.mark.long)], indirect=True)
def test_a_zombie_stopped_in_its_transaction_makes_the_taker_wait_in_bounds_and_lands_once(town: Town):
    zombie = stopped(town, "publishing", 30, with_a_lock=True)
    assert zombie.problems == []
