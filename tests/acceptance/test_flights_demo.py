"""The demo route that reads files from a directory, end to end, on real systems; every figure against pandas'."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from bus_assets.demo import airports_service, source, world
from resources.depot.store import Depot
from resources.errors import Misconfigured

pytestmark = [pytest.mark.xdist_group("flights_demo"), pytest.mark.timeout(240)]

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
KEYS = {
    "airlines": ["carrier"],
    "airports": ["faa"],
    "planes": ["tailnum"],
    "weather": ["origin", "observed_at"],
    "flights": ["flight_date", "carrier", "flight", "origin"],
}
INSTANTS = ("observed_at", "scheduled_departure", "departed", "scheduled_arrival", "arrived", "weather_hour")

DRIVE = """
import json, sys
from dagster import DagsterInstance
from bus_assets.definitions import defs

config = {"resources": {"flights_archive_parameters": {"config": {"month": sys.argv[1]}}}}
with DagsterInstance.ephemeral() as instance:
    result = defs.resolve_job_def("flights_archive").execute_in_process(instance=instance, run_config=config, raise_on_error=False)
    failures = [str(event.step_failure_data.error) for event in result.all_events if event.is_step_failure]
    made = [event for event in result.all_events if event.is_step_materialization]
    judged = [event.asset_check_evaluation_data for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
plain = lambda metadata: {name: value.value for name, value in metadata.items() if isinstance(value.value, (int, str))}
seen = {event.asset_key.path[-1]: plain(event.materialization.metadata) for event in made}
checks = {f"{check.asset_key.path[-1]}: {check.check_name}": check.passed for check in judged}
print(json.dumps({"success": result.success, "failures": failures, "seen": seen, "checks": checks}))
"""


@dataclass(frozen=True)
class Driven:
    """One run: what Dagster was told of each stop, and what the warehouse held afterwards."""

    said: dict
    tables: dict[str, pd.DataFrame]

    def seen(self, stop: str) -> dict:
        return self.said["seen"][stop]

    @property
    def trip(self) -> str:
        return self.seen("flights")["trip"]


def drive(home: Path, airports_url: str, warehouse_url: str, month: str = "*") -> Driven:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("BUS_", "DAGSTER_"))},
        "BUS_HOME": str(home),
        "BUS_AIRPORTS_URL": airports_url,
        "BUS_WAREHOUSE_URL": warehouse_url,
    }
    command = [sys.executable, "-c", DRIVE, month]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["success"], said["failures"]
    return Driven(said, tables(warehouse_url))


def tables(warehouse_url: str) -> dict[str, pd.DataFrame]:
    engine = sa.create_engine(warehouse_url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            return {name: tidy(pd.read_sql_query(sa.text(f"SELECT * FROM {name}"), connection), key) for name, key in KEYS.items()}
    finally:
        engine.dispose()


def tidy(table: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """``table`` in the order of its key, with types that do not depend on the database it comes from."""
    made = table.copy()
    for column in made.columns:
        if column in INSTANTS:
            made[column] = pd.to_datetime(made[column], utc=True, format="ISO8601").astype("datetime64[us, UTC]")
        elif column == "flight_date":
            made[column] = made[column].astype(str)
        elif pd.api.types.is_numeric_dtype(made[column]) or made[column].isna().all():
            made[column] = made[column].astype("float64")
        else:
            made[column] = made[column].astype("str")
    return made[sorted(made.columns)].sort_values(key).reset_index(drop=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the independent script says: (figures, directory with its tables)."""
    directory = tmp_path_factory.mktemp("oracle")
    command = [sys.executable, "-W", "error", str(HERE / "flights_oracle.py"), str(directory)]
    return json.loads(subprocess.check_output(command, text=True, timeout=100)), directory


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("home")
    world.set_up(made, tell=lambda line: None)
    return made


@pytest.fixture(scope="module")
def airports_url():
    with airports_service.running("http://127.0.0.1:0") as url:
        yield url


@pytest.fixture(scope="module")
def driven(home, airports_url):
    return drive(home, airports_url, f"sqlite:///{home}/warehouse.db")


def expected_table(directory: Path, name: str) -> pd.DataFrame:
    return tidy(pd.read_parquet(directory / f"{name}.parquet"), KEYS[name])


@pytest.fixture(scope="module")
def quarantined(driven, home):
    """The rows that the first drive left behind, by stop."""
    rows, after = {}, 0
    depot = Depot(f"sqlite:///{home}/depot.db")
    while page := depot.quarantined(trip=driven.trip, limit=20_000, after=after):
        for row in page:
            rows.setdefault(row.stop, []).append(row)
        after = page[-1].id
    depot.close()
    return rows


@pytest.mark.long
def test_nothing_else_waits_in_quarantine(quarantined, expected):
    figures, _ = expected
    assert {stop: len(rows) for stop, rows in quarantined.items()} == figures["rejected"]


@pytest.mark.long
def test_every_stop_picks_up_and_rejects_what_pandas_counts(driven, expected):
    figures, _ = expected
    for stop, count in figures["picked_up"].items():
        rejected = figures["rejected"].get(stop, 0)
        seen = driven.seen(stop)
        assert (seen["picked up"], seen["rejected"], seen["dagster/row_count"]) == (count, rejected, count - rejected), stop
    assert driven.seen("flown")["dagster/row_count"] == figures["tables"]["flights"]
    assert driven.seen("fleet")["dagster/row_count"] == figures["tables"]["planes"]


@pytest.mark.long
@pytest.mark.parametrize("name", KEYS)
def test_every_row_of_the_warehouse_is_what_pandas_says(driven, expected, name):
    figures, directory = expected
    table = driven.tables[name]
    assert len(table) == figures["tables"][name] == driven.seen(f"warehouse_{name}")["dagster/row_count"]
    pd.testing.assert_frame_equal(table, expected_table(directory, name))


@pytest.mark.long
def test_sums_and_extremes_of_the_flights_are_those_of_pandas(driven, expected):
    figures, _ = expected
    flights = driven.tables["flights"]
    assert flights["distance"].sum() == figures["distance"]
    assert flights["departed"].min() == pd.Timestamp(figures["first_departed"])
    assert flights["arrived"].max() == pd.Timestamp(figures["last_arrived"])
    assert flights["flight_date"].str[5:7].value_counts().to_dict() == figures["flights_per_month"]


@pytest.mark.long
@pytest.mark.parametrize("stop", ["airports", "weather", "flights"])
def test_the_quarantine_holds_the_rejected_rows_with_place_and_reasons(quarantined, expected, stop):
    _, directory = expected
    rows = quarantined[stop]
    found = {(row.origin, row.position): sorted(reason.rule for reason in row.reasons) for row in rows}
    assert len(found) == len(rows)
    rejected = pd.read_parquet(directory / f"rejected-{stop}.parquet")
    places = zip(rejected["origin"], rejected["position"], strict=True)
    assert found == dict(zip(places, (sorted(reasons.split("; ")) for reasons in rejected["reasons"]), strict=True))


@pytest.mark.long
def test_a_quarantined_flight_is_the_very_line_of_its_file(quarantined, home):
    rows = quarantined["flights"]
    lines = {}
    for row in rows[:: len(rows) // 500]:
        text = lines.setdefault(row.origin, (home / "demo" / "landing" / row.origin).read_text().splitlines())
        fields = [None if field == "NA" else field for field in text[row.position - 1].split("|")]
        assert [row.payload[name] for name in text[0].split("|")] == fields


@pytest.mark.long
def test_the_hour_that_happened_twice_and_the_impossible_wind_say_why_they_wait(quarantined):
    said = {reason.message for row in quarantined["weather"] for reason in row.reasons}
    assert any("ambiguous in America/New_York" in message for message in said), said
    assert any("1048.36" in message and "253" in message for message in said), said


@pytest.mark.long
def test_one_flight_whose_clock_was_skipped_only_warns(driven):
    checks = driven.said["checks"]
    assert checks["flown: departure_clock_agrees"]
    assert checks["flown: arrives_after_flying"]
    assert not checks["flown: arrival_clock_agrees"]
    assert checks["warehouse_flights: conserved"]


@pytest.mark.long
def test_a_second_drive_changes_no_table_and_takes_one_month_by_parameter(driven, home, airports_url):
    """A new trip for one month: picked up again, upserted onto the same rows."""
    again = drive(home, airports_url, f"sqlite:///{home}/warehouse.db", month="03")
    assert again.trip != driven.trip
    with (home / "demo" / "landing" / "flights-2013-03.csv").open() as march:
        assert again.seen("flights")["picked up"] == sum(1 for _ in march) - 1
    for name, table in driven.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)


@pytest.mark.long
def test_postgres_gets_the_same_rows(driven, home, airports_url, postgres_url):
    told = drive(home, airports_url, postgres_url, month="11").tables
    november = driven.tables["flights"]["flight_date"].str.startswith("2013-11")
    pd.testing.assert_frame_equal(told.pop("flights"), driven.tables["flights"][november].reset_index(drop=True))
    for name, table in told.items():
        pd.testing.assert_frame_equal(table, driven.tables[name])


def test_setting_up_again_writes_nothing(home):
    before = {path: path.stat().st_mtime_ns for path in (home / "demo").rglob("*")}
    assert not world.set_up(home, tell=lambda line: None).made
    assert {path: path.stat().st_mtime_ns for path in (home / "demo").rglob("*")} == before


@pytest.mark.long
def test_a_world_with_a_cut_file_is_made_again(home, tmp_path):
    shutil.copytree(home / "demo", tmp_path / "demo")
    march = tmp_path / "demo" / "landing" / "flights-2013-03.csv"
    whole = march.read_bytes()
    march.write_bytes(whole[:1000])
    assert world.set_up(tmp_path, tell=lambda line: None).made
    assert march.read_bytes() == whole
    assert not list((tmp_path / "demo").rglob(".*"))


def test_the_legacy_files_hold_every_row_and_no_utc_hour(home):
    files = sorted((home / "demo" / "landing").glob("flights-2013-*.csv"))
    assert sum(len(file.read_text().splitlines()) - 1 for file in files) == sum(1 for _ in source.rows("flights"))
    assert not any("T" in file.read_text().splitlines()[0] or "time_hour" in file.read_text()[:400] for file in files)
    with sqlite3.connect(f"file:{home}/demo/legacy.db?mode=ro", uri=True) as legacy:
        assert legacy.execute("SELECT count(*), count(MFR_YEAR) FROM AIRCRAFT").fetchone() == (3322, 3252)
        assert legacy.execute("SELECT count(*), typeof(TEMP_F) FROM WEATHER_OBS").fetchone() == (26115, "real")


def test_the_service_pages_and_refuses_what_it_does_not_have(airports_url):
    def ask(path):
        with urllib.request.urlopen(airports_url + path) as answer:
            return json.load(answer)

    pages = [ask(f"/airports?page={number}&per_page=500") for number in (1, 2, 3, 4)]
    assert [len(page["data"]) for page in pages] == [500, 500, 458, 0]
    assert {page["total_pages"] for page in pages} == {3}
    for path, status in (("/airports?page=0", 400), ("/airports?per_page=9999", 400), ("/airports?page=x", 400), ("/planes", 404)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(path)
        refused.value.close()
        assert refused.value.code == status


def test_a_service_that_runs_already_is_used_and_a_stranger_on_the_port_is_named(airports_url):
    with airports_service.running(airports_url) as url:
        assert url == airports_url
    with urllib.request.urlopen(airports_url) as answer:
        assert json.load(answer)["service"] == "airports"
    with stranger() as taken, pytest.raises(Misconfigured, match="BUS_AIRPORTS_URL"), airports_service.running(taken):
        pass


@contextmanager
def stranger():
    """Another web server, which has never heard of airports."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
