"""One webserver for all tests that look at the UI, with one trip driven: starting both takes longer than most of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.shop.corner_shop import sample
from tests.webserver import Run, Webserver, outside_environment, webserver

REPOSITORY = Path(__file__).resolve().parents[2]
SHOP = Path(__file__).parent / "shop"


@pytest.fixture(scope="session")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    """The corner shop's code location in a real webserver."""
    home = tmp_path_factory.mktemp("ui")
    sample.write(home)
    with webserver(home, "corner_shop.definitions", outside_environment(REPOSITORY, SHOP)) as served:
        yield served


@pytest.fixture(scope="session")
def january(ui: Webserver) -> Run:
    """The route's job, launched from its launchpad with the default month."""
    return ui.over(ui.launch("shop"))
