"""Every dagster.yaml that the project ships or writes lets sensors tick at once: one that polls a queue stands in nobody's way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bus_assets.cli.loading import DAGSTER_YAML
from bus_assets.settings import settings
from bus_assets.up.instance import warm_instance
from bus_assets.up.town import THREADS

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path for folder in (".", "[!.]*/**") for path in REPOSITORY.glob(f"{folder}/dagster.yaml"))
AT_ONCE = {"use_threads": True, "num_workers": THREADS, "num_submit_workers": THREADS}


def texts(home: Path) -> Iterator[tuple[str, str]]:
    """Where each is from, and what it says."""
    yield from ((str(path.relative_to(REPOSITORY)), path.read_text()) for path in SHIPPED)
    yield "`bus drive` in an empty DAGSTER_HOME", DAGSTER_YAML
    made, _ = warm_instance(replace(settings(), home=home / "bus", dagster_home=home / "dagster"), THREADS, workers=False)
    yield "`bus up`", (made / "dagster.yaml").read_text()


def test_all_of_them_are_looked_at():
    assert {str(path.relative_to(REPOSITORY)) for path in SHIPPED} >= {"dagster.yaml", "deploy/dagster.yaml"}


@pytest.mark.parametrize("what", ["sensors", "schedules"])
def test_no_sensor_waits_for_another_ones_poll(tmp_path: Path, what: str):
    assert {where: yaml.safe_load(text).get(what) for where, text in texts(tmp_path)} == {where: AT_ONCE for where, _ in texts(tmp_path)}
