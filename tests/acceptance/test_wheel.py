"""The wheel beside a repository of somebody else's: what is not in it is missed here, as the checkout is out of reach."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.shop.corner_shop import sample
from tests.webserver import outside_environment

pytestmark = pytest.mark.timeout(240)

REPOSITORY = Path(__file__).resolve().parents[2]
SHOP = Path(__file__).parent / "shop" / "corner_shop"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout by its own build backend, in this environment: nothing is downloaded."""
    if importlib.util.find_spec("hatchling") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the wheel's build backend is not installed: pip install hatchling")
    source, out = tmp_path_factory.mktemp("source") / "bus-assets", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    for package in ("bus_assets", "sensors", "resources"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=source, env=outside_environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, alone: its dependencies are this environment's."""
    installed = tmp_path_factory.mktemp("target")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--target", str(installed), str(wheel)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return installed


def test_the_wheel_holds_the_product_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"bus_assets", "sensors", "resources"}
    assert "resources/depot/migrations/versions/0001_trips.py" in names
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]


def test_a_foreign_repository_drives_its_routes_on_the_wheel(target, tmp_path):
    sample.write(tmp_path)
    shutil.copytree(SHOP, tmp_path / "corner_shop", ignore=shutil.ignore_patterns("__pycache__"))
    environment = outside_environment(target, tmp_path)
    where = [
        sys.executable,
        "-c",
        "import bus_assets, resources, sensors; print(bus_assets.__file__, resources.__file__, sensors.__file__)",
    ]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(file.startswith(str(target)) for file in found.split())

    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "corner_shop.definitions", "-j", "shop"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with closing(sqlite3.connect(tmp_path / "warehouse.db")) as warehouse:
        assert warehouse.execute("SELECT count(*) FROM log").fetchone() == (3,)
    with closing(sqlite3.connect(tmp_path / ".bus" / "depot.db")) as depot:
        assert depot.execute("SELECT state FROM depot_trips").fetchall() == [("delivered",)]


def test_the_installed_command_knows_the_foreign_routes(target, tmp_path):
    shutil.copytree(SHOP, tmp_path / "corner_shop", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**outside_environment(target, tmp_path), "BUS_MODULE": "corner_shop.definitions"}
    command = [sys.executable, str(target / "bin" / "bus"), "routes", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert '"shop"' in done.stdout
