"""Commands that are the first in a DAGSTER_HOME, at the same time: Dagster's tables are made once, and nobody fails."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bus_assets.cli.loading import open_instance

TOGETHER = """
import sys, time
from pathlib import Path
from bus_assets.cli.loading import open_instance
import dagster
home = Path(sys.argv[1])
home.with_name(f"ready-{sys.argv[2]}").touch()
until = time.monotonic() + 60
while len(list(home.parent.glob("ready-*"))) < int(sys.argv[3]) and time.monotonic() < until:
    time.sleep(0.001)
open_instance().dispose()
"""
COMMANDS = 4


def marked_in(home: Path) -> list[int]:
    """How many marks of a migration each database of Dagster's has: one, or the next process takes it for one of an older version."""
    counts = []
    for name in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
        with closing(sqlite3.connect(home / name)) as database:
            counts += database.execute("SELECT count(*) FROM alembic_version").fetchone()
    return counts


def test_several_commands_at_once_in_a_new_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "dagster"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    started = [
        subprocess.Popen([sys.executable, "-c", TOGETHER, str(home), str(number), str(COMMANDS)], stderr=subprocess.PIPE, text=True)
        for number in range(COMMANDS)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0] * COMMANDS, said
    assert marked_in(home) == [1, 1, 1]


def test_each_instance_made_in_a_process_of_these_tests_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Crash tests make one before they start processes in it, which would fail each other if they had to."""
    for home in (tmp_path / "one", tmp_path / "another"):
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        open_instance().dispose()
        assert marked_in(home) == [1, 1, 1]
