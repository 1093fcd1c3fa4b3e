"""The short form of the campaign: 20 seeded kills of the driving process, on Postgres and on SQLite. The long one is `make crash`."""

from pathlib import Path

import pytest

from tests.crash.campaign import MIXED, SQLITE, campaign, told, towns

KILLS = 10
SEEDS = {MIXED: 4, SQLITE: 7}
ROWS = (5_000, 9_000)


pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("crash")]


@pytest.mark.parametrize("kind", SEEDS)
def test_what_is_killed_at_any_moment_and_driven_again_lands_exactly_once(tmp_path: Path, postgres_url: str, kind: str):
    with towns(tmp_path, postgres_url, (kind,)) as made:
        tally = campaign(KILLS, SEEDS[kind], ROWS, made)
    assert not tally.problems, told(tally, 0)
    assert tally.kills >= KILLS
    assert tally.delivered >= 3
