"""A DuckDB is used again where that is safe, and what one user made in it the next does not see."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import pytest

from bus_assets import duck as module
from bus_assets.duck import duck


@pytest.fixture(autouse=True)
def _none_at_rest():
    module._end()
    yield
    module._end()


def at_rest() -> list[duckdb.DuckDBPyConnection]:
    return [opened.database for opened in module._at_rest]


def test_one_at_rest_is_used_again_and_shows_nothing_of_before():
    with duck() as connection:
        connection.execute("CREATE TEMP VIEW mine AS SELECT 1")
        connection.execute("SET TimeZone = 'Europe/Berlin'")
    (first,) = at_rest()
    with duck() as connection:
        assert at_rest() == []
        with pytest.raises(duckdb.CatalogException):
            connection.execute("SELECT * FROM mine")
        assert connection.execute("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]
    assert at_rest() == [first]


def test_two_at_once_are_two():
    with duck() as one, duck() as other:
        one.execute("CREATE TABLE shared AS SELECT 1")
        with pytest.raises(duckdb.CatalogException):
            other.execute("SELECT * FROM shared")
    assert len(at_rest()) == 1


def test_after_an_error_it_is_not_used_again():
    with pytest.raises(duckdb.Error), duck() as connection:
        connection.execute("SELECT nonsense")
    assert at_rest() == []


def test_who_stops_reading_gives_it_back():
    def rows():
        with duck() as connection:
            yield from connection.execute("SELECT * FROM range(10)").fetchall()

    reading = rows()
    next(reading)
    reading.close()
    assert len(at_rest()) == 1


def test_after_long_use_it_is_closed(monkeypatch):
    monkeypatch.setattr(module, "SHORT_SECONDS", -1.0)
    with duck():
        pass
    assert at_rest() == []


def test_spilled_rows_are_for_this_user_only_and_gone_at_rest():
    for _ in range(2):
        with duck() as connection:
            spill = Path(connection.execute("SELECT current_setting('temp_directory')").fetchall()[0][0])
            assert spill.stat().st_mode & 0o777 == 0o700
        assert not spill.exists()


def test_a_child_process_opens_its_own():
    with duck():
        pass
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert at_rest() == []
            with duck() as connection:
                assert connection.execute("SELECT 1").fetchall() == [(1,)]
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


OPENS = """
import sys
from bus_assets.duck import duck
with duck() as connection:
    print(connection.execute("SELECT current_setting('temp_directory')").fetchone()[0], flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_has_spilled_is_removed_and_what_one_at_work_has_is_not(tmp_path, monkeypatch):
    folder = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": folder}
    killed, working = (subprocess.Popen([sys.executable, "-c", OPENS], **pipes) for _ in range(2))
    left, used = (Path(process.stdout.readline().strip()) for process in (killed, working))
    (left / "spilled").write_bytes(bytes(1000))
    killed.kill()
    killed.communicate()
    for spilled in (left, used):
        os.utime(spilled, (1, 1))
    young = tmp_path / f"{module.SPILLS}young"
    young.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{module.SPILLS}link").symlink_to(elsewhere)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with duck():
        pass
    assert not left.exists()
    assert used.exists()
    assert young.exists()
    assert elsewhere.exists()
    working.communicate("")
    assert not used.exists()
