"""The short form of the campaign's part with two daemons. The long one is `make crash`."""

from pathlib import Path

import pytest

from tests.crash.two_daemons import doubled

pytestmark = [pytest.mark.long, pytest.mark.crash, pytest.mark.xdist_group("daemons"), pytest.mark.timeout(300)]


def test_two_daemons_and_two_code_locations_on_one_queue_double_and_lose_nothing(tmp_path: Path):
    found = doubled(tmp_path, 100, seed=3, seconds=200)
    print(found)
    assert not found.problems, found
