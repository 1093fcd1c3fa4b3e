"""A DuckDB is used again where that is safe, and what one user made in it the next does not see."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import duckdb
import pytest

from bus_assets import Contract, Field, Transform
from bus_assets import duck as module
from bus_assets.cross_rows import cross_row
from bus_assets.duck import disk_full, duck
from bus_assets.transforms import run_transform
from bus_assets.verify import verify
from resources.errors import Poison, Transient


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


# Without room to spill


def test_no_room_to_spill_is_the_machines_fault():
    """DuckDB's own words for it: it says the same when the disk is full."""
    big = "CREATE TEMP TABLE big AS SELECT md5(range::VARCHAR) || md5((range + 7)::VARCHAR) AS text FROM range(200000)"
    with pytest.raises(Transient, match=r"the disk is full.*free space there, or set TMPDIR"), duck() as connection:
        connection.execute("SET memory_limit = '8MB'")
        connection.execute("SET max_temp_directory_size = '2MB'")
        connection.execute(big)
    assert at_rest() == []


def test_no_room_for_the_folder_is_too(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(Transient, match="the disk is full"), duck():
        pass


class Full:
    """A connection that has no room to spill."""

    def cursor(self):
        return self

    def execute(self, *_):
        raise duckdb.OutOfMemoryException("Out of Memory Error: failed to offload data block of size 256.0 KiB (1.9 MiB/1.9 MiB used).")

    sql = execute

    def close(self):
        pass


IDS = Contract((Field("id", unique=True),))


def check_keys():
    with cross_row(Full(), ["ids.parquet"], IDS, {}):
        pass


def recompute():
    verify(Full(), ["ids.parquet"], IDS, {}, picked_up=1, rejected=0)


def run_sql():
    list(run_transform(Transform("ids", "SELECT 'a' AS id", IDS, grain="changed"), [], {}))


@pytest.mark.parametrize("what", [check_keys, recompute, run_sql])
def test_whoever_asks_says_so_instead_of_blaming_the_rows(monkeypatch, what):
    monkeypatch.setattr("bus_assets.transforms.duck", lambda: nullcontext(Full()))
    with pytest.raises(Transient, match="the disk is full"):
        what()


@pytest.mark.parametrize("rows_before", [0, 150_000])
@pytest.mark.parametrize("text", ["write failed: quota exceeded", "No space left on device", "IO Error: No space left on device"])
def test_a_row_that_reads_like_a_full_disk_is_the_rows_fault(rows_before, text):
    """DuckDB quotes the row; after the first batch it is Arrow that tells of it."""
    said = f"CASE WHEN range < {rows_before} THEN '1' ELSE '{text}' END"
    sql = f"SELECT CAST({said} AS INTEGER)::VARCHAR AS id FROM range({rows_before + 1})"
    with pytest.raises(Poison, match="its SQL failed: Conversion Error") as told:
        list(run_transform(Transform("ids", sql, IDS, grain="changed"), [], {}))
    assert isinstance(told.value.__cause__, OSError if rows_before else duckdb.Error)


@pytest.mark.parametrize("full", ["IO Error: Could not write file: No space left on device", "Out of Memory Error: failed to offload data"])
def test_arrow_passes_a_full_disk_on(full):
    assert disk_full(OSError(full))


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
from bus_assets.duck import disk_full, duck
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
