"""The product in CI fashion: Dagster's own commands, without a DAGSTER_HOME, without a server."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.shop.corner_shop import sample
from tests.webserver import outside_environment

pytestmark = pytest.mark.timeout(240)

REPOSITORY = Path(__file__).resolve().parents[2]
SHOP = Path(__file__).parent / "shop"
DAGSTER = (sys.executable, "-m", "dagster")
EXECUTE = (*DAGSTER, "job", "execute", "-m", "corner_shop.definitions", "-j", "shop")


def run(*command: str, at: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = outside_environment(REPOSITORY, SHOP) if environment is None else environment
    return subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    sample.write(tmp_path)
    return tmp_path


def landed(home: Path) -> list[tuple]:
    if not (home / "warehouse.db").exists():
        return []
    with closing(sqlite3.connect(home / "warehouse.db")) as warehouse:
        return warehouse.execute("SELECT id, CAST(paid AS TEXT) FROM log ORDER BY 1").fetchall()


def test_a_job_that_lands_its_rows_exits_with_zero(home):
    done = run(*EXECUTE, at=home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert landed(home) == [("O-101", "5.00"), ("O-102", "3.20"), ("O-106", "25.00")]
    assert sample.SECRET not in done.stdout + done.stderr


def test_a_gate_that_says_no_exits_otherwise_and_says_which_rows_and_why(home):
    config = home / "february.json"
    config.write_text(json.dumps({"resources": {"shop_parameters": {"config": {"month": 2}}}}))
    done = run(*EXECUTE, "-c", str(config), at=home)
    assert done.returncode != 0
    said = done.stderr + done.stdout
    assert "route 'shop', stop 'orders': 2 of 3 rows were rejected, more than max_rejected (50 %)" in said
    assert "card: pattern ^[0-9]{16}$ ×2; first: orders-2.csv, line 2" in said
    assert landed(home) == []
    assert sample.SECRET not in said


def test_the_workspace_is_valid(tmp_path):
    for name in ("workspace.yaml", "dagster.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    environment = {**outside_environment(REPOSITORY), "DAGSTER_HOME": str(tmp_path)}
    done = run(*DAGSTER, "definitions", "validate", "-w", "workspace.yaml", at=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bus_assets.definitions" in done.stdout + done.stderr


def test_the_instance_that_is_shipped_can_launch_runs(tmp_path):
    """``dagster.yaml`` names classes as text, which nothing looks at until a person presses a button."""
    code = (
        "import dagster as dg, sys\n"
        "with dg.DagsterInstance.from_config(sys.argv[1]) as instance:\n"
        "    print(type(instance.run_coordinator).__name__, type(instance.run_launcher).__name__)\n"
    )
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    done = run(sys.executable, "-c", code, str(tmp_path), at=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "RunCoordinator" in done.stdout


def test_the_demos_assets_are_listed(tmp_path):
    done = run(*DAGSTER, "asset", "list", "-m", "bus_assets.definitions", at=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"flights/flown", "flights/warehouse_flights"} <= {line.strip() for line in done.stdout.splitlines()}
    assert list(tmp_path.iterdir()) == []


LOAD = """
import os, sys
seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, arguments):
    if event in ("sqlite3.connect", "socket.connect", "socket.bind", "socket.getaddrinfo"):
        seen.append(f"{event} {arguments}")
    if event == "open" and arguments[2] & WRITES and arguments[0] != os.devnull:
        seen.append(f"{event} {arguments}")

sys.addaudithook(watch)
import bus_assets.definitions
print(len(bus_assets.definitions.defs.resolve_all_asset_keys()))
sys.exit("; ".join(seen) or 0)
"""


def test_loading_the_definitions_opens_no_file_database_or_socket(tmp_path):
    """In an empty environment: what a code server does before anybody asks for a run."""
    done = run(sys.executable, "-B", "-c", LOAD, at=tmp_path, environment={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 10
    assert list(tmp_path.iterdir()) == []
