"""The documents' examples run: every file of the tutorial is written where it says, every command is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The tutorial's files in an empty directory, and an environment as after `pip install`."""
    home = tmp_path_factory.mktemp("tutorial")
    for _, name, text in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()):
        if name:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BUS_", "DAGSTER_"))}
    environment |= {
        "PYTHONPATH": f"{ROOT}:{home}",
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "BUS_MODULE": "my_bus.definitions",
    }
    return home, environment


def run(tutorial, command):
    home, environment = tutorial
    if command.startswith("bus "):
        command = f"{sys.executable} -m bus_assets.cli {command[4:]}"
    return subprocess.run(command, shell=True, cwd=home, env=environment, capture_output=True, text=True, check=False)


def test_the_tutorial_lands_the_clean_orders(tutorial):
    done = run(tutorial, "bus drive shop")
    assert done.returncode == 0, done.stderr
    listed = run(tutorial, "bus quarantine list --route shop --json")
    for line in ("4", "5", "6"):
        assert f'"position": {line}' in listed.stdout, listed.stdout + listed.stderr
    assert "carla@example.org" not in listed.stdout + done.stdout + done.stderr
    rows = run(
        tutorial,
        "python -c \"import sqlite3; print(sqlite3.connect('warehouse.db').execute('SELECT * FROM orders ORDER BY 1').fetchall())\"",
    )
    assert "('O-1001', '2026-01-03', '39.80'), ('O-1002', '2026-01-03', '5.00'), ('O-1005', '2026-01-05', '3.96')" in rows.stdout


@pytest.mark.parametrize(
    "command",
    [line for kind, _, text in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()) if kind == "bash" for line in text.splitlines()],
)
def test_every_command_of_the_tutorial_runs(tutorial, command):
    if command.startswith("export "):
        return
    done = run(tutorial, command)
    assert done.returncode == 0, done.stderr


def test_every_make_target_that_the_documents_name_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"`make ([a-z]+)", document.read_text()):
            assert target in targets, f"{document.name} names `make {target}`"
