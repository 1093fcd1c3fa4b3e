"""``make demo``: flights land in a bucket, messages tell of them, warm workers drive; each row against pandas'. A spring, and a year."""

import json
import os
import re
import sqlite3
import subprocess
import sys

import pandas as pd
import psutil
import pytest

from tests.acceptance.test_flights_demo import HERE, KEYS, REPOSITORY, expected_table, tables

pytestmark = [pytest.mark.xdist_group("towns"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    directory = tmp_path_factory.mktemp("oracle")
    command = [sys.executable, "-W", "error", str(HERE / "flights_oracle.py"), str(directory)]
    return json.loads(subprocess.check_output(command, text=True, timeout=100)), directory


@pytest.fixture(scope="module", params=[3, pytest.param(12, marks=pytest.mark.long)], ids="{} months".format)
def months(request):
    return request.param


@pytest.fixture(scope="module")
def home(tmp_path_factory, months):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def told(home, months):
    """What the demo prints."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("BUS_", "DAGSTER_", "AWS_"))}
    environment = given | {"BUS_HOME": str(home), "BUS_AIRPORTS_URL": "http://127.0.0.1:0"}
    command = [sys.executable, "-m", "bus_assets.demo", "drive", *(() if months == 12 else ("--months", str(months)))]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_every_flight_is_in_the_warehouse_once(told, home, months, expected):
    figures, directory = expected
    found = tables(f"sqlite:///{home}/warehouse.db")
    landed = sum(figures["flights_per_month"][f"{month:02}"] for month in range(1, months + 1))
    assert len(found["flights"]) == landed
    for name in KEYS:
        wanted = expected_table(directory, name)
        if name == "flights":
            wanted = wanted[wanted["flight_date"] < f"2013-{months + 1:02}"].reset_index(drop=True)
        pd.testing.assert_frame_equal(found[name], wanted)


def test_it_tells_of_the_poison_the_duplicate_and_the_redrive(told, months):
    assert re.search(rf"flights-2013-{months:02}\.csv\.gz +quarantined .*gzip", told)
    assert "counted as a duplicate" in told
    assert re.search(rf"flights-2013-{months - 1:02}\.csv +delivered", told)
    assert len(re.findall(r"delivered +[\d,]+ rows rejected", told)) == months


def test_the_runs_that_it_names_were_started_by_warm_workers(told, home, months):
    runs = re.findall(r"^  ([0-9a-f-]{36})$", told, re.MULTILINE)
    assert len(runs) >= (2 if months == 3 else 4)
    with sqlite3.connect(home / "dagster" / "history" / "runs.db") as history:
        bodies = dict(history.execute("SELECT run_id, run_body FROM runs"))
    for run in runs:
        assert "dagster-celery/task_id" in bodies[run] or "celery" in bodies[run], bodies[run][:2000]


def test_nothing_is_left_running(told, home):
    left = [process for process in psutil.process_iter(["cmdline"]) if str(home) in " ".join(process.info["cmdline"] or ())]
    assert left == []


def test_no_tick_of_its_sensor_failed(told, home):
    """The queue is there before the sensor looks for it: a stranger's first look shows no error."""
    with sqlite3.connect(home / "dagster" / "schedules" / "schedules.db") as ticks:
        states = {state for (state,) in ticks.execute("SELECT status FROM job_ticks")}
    assert "SUCCESS" in states
    assert "FAILURE" not in states
