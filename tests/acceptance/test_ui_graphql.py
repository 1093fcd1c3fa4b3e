"""The promises as the UI sees them: every launch, selection and re-execution goes through a webserver's GraphQL."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.shop.corner_shop import sample
from tests.acceptance.shop.corner_shop.sample import SECRET
from tests.webserver import Run, Webserver, until

pytestmark = [pytest.mark.xdist_group("ui"), pytest.mark.timeout(300)]

CARRYING = ("customers", "prices", "orders", "priced")
DROP_OFFS = ("warehouse_orders", "warehouse_log")
EVERYTHING = CARRYING + DROP_OFFS


def keys(*stops: str) -> list[list[str]]:
    return [["shop", stop] for stop in stops]


def of_month(month: Any) -> dict[str, Any]:
    """Run config as the launchpad makes it."""
    return {"resources": {"shop_parameters": {"config": {"month": month}}}}


def rows(database: Path, sql: str, *values: Any) -> list[tuple]:
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        return connection.execute(sql, values).fetchall()


def warehouse(ui: Webserver, table: str, month: int) -> list[tuple]:
    key = "order_id" if table == "orders" else "id"
    return rows(ui.home / "warehouse.db", f"SELECT * FROM {table} WHERE {key} LIKE 'O-{month}%' ORDER BY 1")


def depot(ui: Webserver) -> Path:
    return ui.home / ".bus" / "depot.db"


@contextmanager
def write_lock(database: Path) -> Iterator[None]:
    """Everybody else who wants to write waits, as behind a slow writer."""
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def waiting_worker(ui: Webserver, run: str) -> int:
    """The pid of the run's process, once it has opened the warehouse, which somebody has locked."""

    def pid() -> int | None:
        found = rows(depot(ui), "SELECT pid FROM depot_attempts WHERE run = ?", run)
        return found[0][0] if found and has_open(found[0][0], ui.home / "warehouse.db") else None

    until(pid, f"run {run} waits for the warehouse", 90)
    return pid() or 0


def has_open(pid: int, file: Path) -> bool:
    opened = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            opened.append(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    return str(file) in opened


def launched_at_the_door(ui: Webserver, month: int) -> tuple[str, int]:
    """A run (and its process) whose gates have passed and that waits for the warehouse; call it with the warehouse locked."""
    run = ui.launch(assets=keys(*EVERYTHING), config=of_month(month))
    return run, waiting_worker(ui, run)


@pytest.fixture(scope="module")
def refused_february(ui: Webserver, january: Run) -> tuple[Run, list[tuple]]:
    """The second month, by 'Materialize all' in the asset graph: a gate refuses; what the warehouse had of it then."""
    run = ui.over(ui.launch(assets=keys(*EVERYTHING), config=of_month(2)))
    return run, warehouse(ui, "orders", 2) + warehouse(ui, "log", 2)


@pytest.fixture(scope="module")
def killed_march(ui: Webserver, january: Run) -> Run:
    """The third month: its process is killed in the drop-off, after the commit and before the depot has heard of it."""
    with ExitStack() as depot_lock:
        with write_lock(ui.home / "warehouse.db"):
            run, pid = launched_at_the_door(ui, 3)
            depot_lock.enter_context(write_lock(depot(ui)))
        until(lambda: len(warehouse(ui, "log", 3)) == 3, "the third month is committed")
        assert not rows(depot(ui), "SELECT 1 FROM depot_publications p JOIN depot_attempts a USING (trip) WHERE a.run = ?", run)
        os.kill(pid, signal.SIGKILL)
    return ui.over(run)


@pytest.fixture(scope="module")
def alone(ui: Webserver, january: Run) -> dict[str, Run]:
    """Selections without the stops before them, as the asset graph makes them, both at once."""
    runs = {"drop-offs": ui.launch(assets=keys(*DROP_OFFS)), "transform": ui.launch(assets=keys("priced"))}
    return {name: ui.over(run) for name, run in runs.items()}


def trips(ui: Webserver, state: str) -> set[str]:
    return {trip for (trip,) in rows(depot(ui), "SELECT id FROM depot_trips WHERE state = ?", state)}


# What a trip shows


def test_every_row_is_accounted_for_on_the_stops_pages(january):
    assert january.status == "SUCCESS"
    assert january.materialised == list(EVERYTHING)
    counts = {
        stop: (january.seen(stop)["picked up"], january.seen(stop)["dagster/row_count"], january.seen(stop)["rejected"])
        for stop in CARRYING
    }
    assert counts == {"customers": (3, 2, 1), "prices": (3, 3, 0), "orders": (6, 4, 2), "priced": (4, 4, 0)}
    log = january.seen("warehouse_log")
    assert (log["offered"], log["left out by where"], log["dagster/row_count"]) == (4, 1, 3)


def test_the_counts_shown_are_those_of_the_files_the_quarantine_and_the_tables(ui, january):
    """Recounted from outside: the file's lines, the depot's rows, the warehouse's rows."""
    lines = (ui.home / "landing" / "orders-1.csv").read_text().splitlines()[1:]
    held = rows(
        depot(ui), "SELECT position, reasons FROM depot_quarantine WHERE trip = ? AND stop = 'orders'", january.seen("orders")["trip"]
    )
    assert january.seen("orders")["picked up"] == len(lines)
    assert [position for position, _ in held] == [5, 6]
    assert len(warehouse(ui, "orders", 1)) == len(lines) - len(held) == january.seen("warehouse_orders")["dagster/row_count"]


def test_rejects_within_the_limit_are_yellow_and_do_not_block(january):
    check = january.check("orders", "contract")
    assert (check["success"], check["severity"]) == (False, "WARN")
    assert check["description"] == (
        "2 of 6 rows wait in quarantine, within the limit: quantity: type integer ×1, card: pattern ^[0-9]{16}$ ×1"
    )
    assert check["metadata"]["limit"] == "at most 50 % of the rows may be rejected"
    assert "quantity: type integer | 1 |" in january.seen("orders")["why rejected"]
    assert january.check("prices", "contract")["success"]


def test_conservation_is_a_check_of_its_own_on_every_stop(january):
    assert all(january.check(stop, "conserved")["success"] for stop in EVERYTHING)


def test_a_column_that_is_left_behind_is_told(january):
    assert january.seen("orders")["columns not read"] == "note"
    assert "columns not read" not in january.seen("priced")


def test_a_stop_shows_a_preview_without_sensitive_values(january):
    assert january.seen("orders")["preview"].splitlines()[2] == "| O-101 | 1 | tea | 2 | ••• |"


def test_the_schema_is_the_contract(january):
    columns = {column["name"]: column for column in january.seen("orders")["dagster/column_schema"]["columns"]}
    assert columns["order_id"]["constraints"] == {"nullable": False, "unique": True, "other": ["matches ^O-[0-9]+$"]}
    assert columns["customer_id"]["constraints"]["other"] == ["in customers.id"]
    assert columns["card"]["description"] == "the card that paid"


def test_column_lineage_leads_through_the_sql_to_the_source(january):
    def upstream(stop: str, column: str) -> list[tuple[str, str]]:
        found = {one["columnName"]: one["columnDeps"] for one in january.seen(stop)["dagster/column_lineage"]}
        return sorted(("/".join(dep["assetKey"]["path"]), dep["columnName"]) for dep in found[column])

    assert upstream("warehouse_log", "paid") == [("shop/priced", "total")]
    assert upstream("priced", "total") == [("shop/orders", "quantity"), ("shop/prices", "price")]
    assert upstream("customers", "email") == [("legacy/CUST", "MAIL")]


def test_the_graph_begins_at_the_systems_that_are_read(ui):
    nodes = ui.ask("""{ assetNodes {
        assetKey { path } isExecutable groupName kinds owners { ... on TeamAssetOwner { team } } dependencyKeys { path } description
    } }""")
    found = {"/".join(node["assetKey"]["path"]): node for node in nodes["assetNodes"]}
    upstream = {name: {"/".join(key["path"]) for key in node["dependencyKeys"]} for name, node in found.items()}
    sources = {name for name, node in found.items() if not node["isExecutable"]}
    assert sources == {name for name in found if not name.startswith("shop/")}
    assert len(sources) == 3
    assert upstream["shop/customers"] == {"legacy/CUST"}
    assert upstream["shop/priced"] == {"shop/orders", "shop/customers", "shop/prices"}
    assert upstream["shop/warehouse_log"] == {"shop/priced"}
    assert found["shop/orders"]["groupName"] == "shop"
    assert found["shop/orders"]["owners"] == [{"team": "corner-shop"}]
    assert {"csv", "xml", "sql", "duckdb", "table"} <= {kind for node in nodes["assetNodes"] for kind in node["kinds"]}
    assert all(node["description"] for node in nodes["assetNodes"])


# What starts trips


def test_the_schedule_ticks_in_its_zone_with_its_parameters(ui):
    where = {"repositoryLocationName": ui.location, "repositoryName": "__repository__", "scheduleName": "shop_schedule"}
    ask = """query($s: ScheduleSelector!) { scheduleOrError(scheduleSelector: $s) {
        ... on Schedule { cronSchedule executionTimezone pipelineName } } }"""
    assert ui.ask(ask, s=where)["scheduleOrError"] == {
        "cronSchedule": "15 6 * * *",
        "executionTimezone": "Europe/Berlin",
        "pipelineName": "shop",
    }
    dry = """mutation($s: ScheduleSelector!) { scheduleDryRun(selectorData: $s, timestamp: 1767244500) {
      ... on DryRunInstigationTick { evaluationResult { error { message } runRequests { runConfigYaml tags { key value } } } } } }"""
    result = ui.ask(dry, s=where)["scheduleDryRun"]["evaluationResult"]
    assert result["error"] is None
    (request,) = result["runRequests"]
    assert "month: 1" in request["runConfigYaml"]
    assert {tag["key"]: tag["value"] for tag in request["tags"]}["bus/scheduled"] == "2026-01-01T06:15:00+01:00"


@pytest.mark.parametrize("how", [{"job": "shop"}, {"assets": keys(*EVERYTHING)}], ids=["launchpad", "asset graph"])
def test_a_parameter_of_the_wrong_type_is_refused_before_a_run_begins(ui, how):
    answer = ui.try_launch(**how, config=of_month("January"))
    assert answer["__typename"] == "RunConfigValidationInvalid"
    assert "shop_parameters:config:month" in answer["errors"][0]["message"]


# Gates fail closed


def test_a_gate_that_says_no_publishes_nothing_and_says_why(refused_february):
    run, landed = refused_february
    assert run.status == "FAILURE"
    assert run.materialised == ["customers", "prices", "orders"]
    check = run.check("orders", "contract")
    assert (check["success"], check["severity"]) == (False, "ERROR")
    assert "2 of 3 rows were rejected, more than max_rejected (50 %)" in check["description"]
    assert any("orders-2.csv, line 2" in event.get("message", "") for event in run.of_type("LogMessageEvent"))
    assert landed == []


def test_the_refused_trip_goes_on_from_its_failure_once_the_file_is_corrected(ui, refused_february):
    run, _ = refused_february
    sample.orders(ui.home, 2)
    again = ui.over(ui.again(run.id, "FROM_FAILURE"))
    assert again.status == "SUCCESS"
    assert again.materialised == ["orders", "priced", *DROP_OFFS]
    assert again.seen("orders")["trip"] == run.seen("orders")["trip"]
    assert again.seen("orders")["attempt"] == 2
    assert (len(warehouse(ui, "orders", 2)), len(warehouse(ui, "log", 2))) == (4, 3)


def test_drop_offs_selected_alone_refuse_and_say_what_to_do(ui, alone):
    run = alone["drop-offs"]
    assert run.status == "FAILURE"
    assert run.materialised == []
    said = re.search(r"or tag the run bus/trip/shop=TRIP to publish a trip whose gates passed \(the newest: (\w+)\)", run.errors)
    assert said
    assert said[1] in trips(ui, "delivered")


def test_one_drop_off_cannot_be_taken_out_of_its_transaction(ui):
    answer = ui.try_launch(assets=keys("warehouse_log"))
    assert answer["__typename"] == "InvalidSubsetError"
    assert "warehouse_orders" in answer["message"]


def test_a_transform_selected_alone_rehearses_on_the_last_trip(ui, alone):
    run = alone["transform"]
    assert run.status == "SUCCESS"
    assert run.materialised == ["priced"]
    said = re.fullmatch(r"on rows of trip (\w+); nothing is published", run.seen("priced")["rehearsal"])
    assert said
    assert said[1] in trips(ui, "delivered")
    assert run.seen("priced")["trip"] in trips(ui, "rehearsed")


def test_a_verdict_deleted_between_gate_and_publish_refuses(ui, january):
    with write_lock(ui.home / "warehouse.db"):
        run, _ = launched_at_the_door(ui, 4)
        with closing(sqlite3.connect(depot(ui), timeout=30)) as connection, connection:
            connection.execute(
                "DELETE FROM depot_verdicts WHERE stop = 'orders' AND trip = (SELECT trip FROM depot_attempts WHERE run = ?)", (run,)
            )
    over = ui.over(run)
    assert over.status == "FAILURE"
    assert "stop 'orders' has no verdict" in over.errors
    assert warehouse(ui, "orders", 4) + warehouse(ui, "log", 4) == []


# Effects once


def test_a_run_killed_after_its_commit_is_finished_from_its_failure_and_applies_once(ui, killed_march):
    assert killed_march.status == "FAILURE"
    again = ui.over(ui.again(killed_march.id, "FROM_FAILURE"))
    assert again.status == "SUCCESS"
    assert again.seen("warehouse_log")["trip"] == killed_march.seen("orders")["trip"]
    assert again.seen("warehouse_log")["dagster/row_count"] == 3
    assert (len(warehouse(ui, "orders", 3)), len(warehouse(ui, "log", 3))) == (4, 3)
    (state,) = rows(depot(ui), "SELECT state FROM depot_trips WHERE id = ?", killed_march.seen("orders")["trip"])[0]
    assert state == "delivered"


def test_re_executing_all_of_a_persons_run_is_a_new_trip(ui, january):
    before, logged = warehouse(ui, "orders", 1), len(warehouse(ui, "log", 1))
    again = ui.over(ui.again(january.id, "ALL_STEPS"))
    assert again.status == "SUCCESS"
    assert again.seen("orders")["trip"] != january.seen("orders")["trip"]
    assert warehouse(ui, "orders", 1) == before
    assert len(warehouse(ui, "log", 1)) == logged + 3  # an append without a key: a new trip's rows are new rows


# Nothing sensitive, in all of the above


def test_no_sensitive_value_is_in_anything_that_dagster_keeps_or_answers(ui, january, refused_february, killed_march):
    runs = ui.ask("{ runsOrError { ... on Runs { results { runId } } } }")["runsOrError"]["results"]
    assert len(runs) >= 3
    for run in runs:
        assert SECRET not in str(ui.over(run["runId"]).events)
    kept = contents(ui)
    assert any(b"wait in quarantine, within the limit" in text for text in kept.values())
    assert [path for path, text in kept.items() if SECRET.encode() in text] == []


def contents(ui):
    """Every file that Dagster keeps."""
    while True:
        try:
            return {path: path.read_bytes() for path in (*ui.instance.rglob("*"), ui.home / "webserver.log") if path.is_file()}
        except FileNotFoundError:  # meanwhile the daemon's last connection folded SQLite's log into its database: look again
            continue


def test_the_broken_sensitive_values_were_really_there(ui, january, refused_february):
    """One address and one card in January; the two cards of February until its file was corrected."""
    assert rows(depot(ui), "SELECT count(DISTINCT payload) FROM depot_quarantine WHERE payload LIKE ?", f"%{SECRET}%")[0][0] >= 2
    assert refused_february[0].check("orders", "contract")["metadata"]["rejected"] == 2
