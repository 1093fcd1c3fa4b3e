"""The short form of the campaign with messages: seeded kills of dispatchers and workers. The long one is `make crash`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.message_campaign import POSTGRES, SQLITE, besieged, message_towns, twins
from tests.crash.message_town import MessageTown
from tests.crash.message_traffic import MessageTally, Plan, told
from tests.crash.message_windows import RUN_WINDOWS, TICK_WINDOWS

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("crash")]
PLANS = {SQLITE: Plan(140, 14, poisons=1, most_seconds=150), POSTGRES: Plan(100, 10, poisons=1, replay=False, most_seconds=150)}
SEEDS = {SQLITE: 1, POSTGRES: 2}


@pytest.fixture
def build(tmp_path: Path, postgres_url: str) -> Iterator[Callable[[str], MessageTown]]:
    with message_towns(tmp_path, postgres_url) as made:
        yield made


@pytest.mark.parametrize("kind", [pytest.param(SQLITE, marks=pytest.mark.long), POSTGRES])
def test_messages_land_exactly_once_and_in_order_whoever_is_killed(build, kind: str):
    tally = MessageTally()
    besieged(kind, build(kind), SEEDS[kind], PLANS[kind], tally)
    report = told(tally, 0)
    print(report)
    assert not tally.problems, report
    assert tally.kills >= PLANS[kind].kills, report
    assert any(tally.by_window[name] for name in RUN_WINDOWS), report
    assert any(tally.by_window[name] for name in TICK_WINDOWS), report


@pytest.mark.long
def test_two_dispatchers_on_one_queue_and_one_depot_double_nothing(build):
    assert twins(build(SQLITE), 150, seed=5) == []
