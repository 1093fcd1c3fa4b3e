"""The command line, on a small world of its own: real processes where a process matters, ``main()`` elsewhere."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from bus_assets import build_definitions
from bus_assets.cli import main
from bus_assets.cli.drive_command import finish
from bus_assets.cli.driving import Driven
from bus_assets.cli.loading import Loaded, note_other_depot, open_depot
from resources.depot.resource import DepotResource
from resources.errors import Refused

# One world, driven once: its tests stay in one process.
pytestmark = pytest.mark.xdist_group("cli")
ROOT = Path(__file__).parents[2]
ROUTES = """
import time
from pathlib import Path

import pandas as pd

from bus_assets import Contract, DropOff, Field, Parameter, PickUp, Route, Table, TextFile, Transform, build_definitions
from resources.database import Database
from resources.files import LocalFiles

HERE = Path(__file__).parent
ORDERS = Contract(
    (
        Field("order_id", required=True, unique=True, pattern=(HERE / "pattern.txt").read_text()),
        Field("qty", "integer", minimum=1),
        Field("card", sensitive=True),
    ),
    max_rejected=0.9,
)


def slow(orders: pd.DataFrame) -> pd.DataFrame:
    (HERE / "slow.started").touch()
    for _ in range(600):
        time.sleep(0.05)
    return orders


shop = Route(
    name="shop",
    description="Orders of the shop",
    parameters=(Parameter("day", "integer", default=1),),
    stops=(
        PickUp("orders", TextFile("landing", "orders-{params.day}.csv"), ORDERS),
        Transform("doubled", "SELECT order_id, qty * 2 AS qty FROM orders", Contract((Field("order_id"), Field("qty", "integer")))),
        DropOff("totals", Table("warehouse", "totals", key="order_id", create=True), of="doubled"),
        DropOff("log", Table("warehouse", "log", create=True), of="orders", where="qty < 100", columns=("order_id", "qty")),
    ),
)
strict = Route(
    name="strict",
    stops=(
        PickUp("orders", TextFile("landing", "orders-1.csv"), Contract(ORDERS.fields, max_rejected=0)),
        DropOff("log", Table("warehouse", "strict_log", create=True)),
    ),
)
lazy = Route(
    name="lazy",
    parameters=(Parameter("week", "integer"),),
    stops=(
        PickUp("orders", TextFile("landing", "orders-1.csv"), ORDERS),
        Transform("slowly", slow, ORDERS),
        DropOff("log", Table("warehouse", "lazy_log", create=True)),
    ),
)
ROUTES = (shop, strict, lazy)
defs = build_definitions(
    ROUTES, resources={"landing": LocalFiles(root=str(HERE / "landing")), "warehouse": Database(url=f"sqlite:///{HERE}/warehouse.db")}
)
"""
ORDERS = "order_id,qty,card\nO-1,2,4111\nO-2,500,4222\nX-3,1,4333\nO-1,1,4444\nO-5,1,4555,a,b\n"
COMMANDS = [
    (),
    ("routes",),
    ("map",),
    ("drive",),
    ("trips",),
    ("trip",),
    ("account",),
    ("quarantine",),
    *[("quarantine", name) for name in ("list", "counts", "show", "export", "discard", "release", "unrelease")],
]


class Place:
    """A folder with routes, files and a depot; ``bus`` in a process of its own, ``call`` in this one."""

    def __init__(self, root: Path):
        self.root = root
        (root / "landing").mkdir(parents=True)
        (root / "landing" / "orders-1.csv").write_text(ORDERS)
        (root / "pattern.txt").write_text("^O-")
        (root / "cli_routes.py").write_text(ROUTES)
        paths = {"BUS_HOME": str(root / "home"), "DAGSTER_HOME": str(root / "home" / "dagster"), "BUS_MODULE": "cli_routes"}
        self.environment = {**paths, "BUS_DEPOT_URL": "", "BUS_STAGING_URL": ""}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, **self.environment, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "bus_assets.cli", *arguments]
        return subprocess.Popen(command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def bus(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def rows(self, sql: str) -> list[tuple]:
        with sqlite3.connect(self.root / "warehouse.db") as connection:
            return connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One delivered trip of 'shop', driven by a process of its own."""
    made = Place(tmp_path_factory.mktemp("cli"))
    made.driven = made.bus("drive", "shop", "--json")
    made.trip = json.loads(made.driven[1])["trip"]
    patch = pytest.MonkeyPatch()
    for name, value in made.environment.items():
        patch.setenv(name, value)
    patch.chdir(made.root)
    patch.syspath_prepend(str(made.root))
    yield made
    patch.undo()
    sys.modules.pop("cli_routes", None)


@pytest.fixture
def call(place, capsys):
    """Run a command here; its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def parsed(answer):
    code, out, _ = answer
    assert code == 0
    return json.loads(out)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(call, command):
    code, out, err = call(*command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: bus {' '.join(command)}".strip() in out


@pytest.mark.parametrize("command", [(), ("drive",)], ids=" ".join)
def test_help_loads_nothing_heavy(command):
    """Which is why it takes less than 0.3 s: see bench/RESULTS.md, "Start"."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bus_assets.cli", *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in process.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"dagster", "pandas", "pyarrow", "sqlalchemy", "duckdb", "boto3", "numpy", "alembic"}


def test_a_drive_in_a_process_of_its_own_delivers_and_tells_nothing_but_json(place):
    code, out, err = place.driven
    answer = json.loads(out)
    assert (code, answer["state"], answer["error"]) == (0, "delivered", None)
    assert answer["account"]["balanced"]
    assert "✓ orders: 5 rows, 3 rejected" in err
    assert "dagster" not in err.lower().replace(str(place.root), "")
    assert (place.root / "home" / "dagster" / "dagster.yaml").exists()


def test_a_drive_shows_in_the_instance_that_the_ui_reads(place):
    from dagster import DagsterInstance

    with DagsterInstance.get() as instance:
        runs = {run.run_id: run.job_name for run in instance.get_runs()}
    assert runs[json.loads(place.driven[1])["run"]] == "shop"


def test_routes_are_listed(call):
    code, out, _ = call("routes")
    assert code == 0
    assert "Orders of the shop" in out
    made = parsed(call("routes", "--json"))
    assert [route["route"] for route in made] == ["shop", "strict", "lazy"]
    assert made[0]["databases"] == ["warehouse"]


def test_a_map_is_drawn_as_text_mermaid_and_json(call):
    assert "└─ totals · drop-off · warehouse: totals (upsert by order_id)" in call("map", "shop")[1]
    assert call("map", "shop", "--mermaid")[1].startswith("flowchart LR\n")
    assert parsed(call("map", "shop", "--json"))["stops"][0]["stop"] == "orders"


def test_without_a_module_an_unknown_route_says_that_it_is_the_demo_that_answers(call, monkeypatch):
    monkeypatch.delenv("BUS_MODULE")
    assert "module bus_assets.definitions, the demo, as BUS_MODULE is not set, has no route 'shop'" in call("drive", "shop")[2]


def test_a_variable_that_is_not_set_is_named_with_its_resource(call, monkeypatch, tmp_path):
    module = """
import dagster as dg
from bus_assets import Contract, DropOff, Field, PickUp, Route, Table, TextFile, build_definitions
from resources.database import Database
from resources.files import LocalFiles
stops = (PickUp("a", TextFile("landing", "*.csv"), Contract((Field("x"),))), DropOff("b", Table("warehouse", "b", create=True)))
ROUTES = (Route(name="unset", stops=stops),)
defs = build_definitions(ROUTES, {"landing": LocalFiles(root="."), "warehouse": Database(url=dg.EnvVar("WAREHOUSE_THAT_IS_NOT_SET"))})
"""
    (tmp_path / "unset_routes.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    said = "route 'unset': resource 'warehouse': url is the environment variable WAREHOUSE_THAT_IS_NOT_SET, which is not set; export it"
    assert f"error: {said}\n" in call("drive", "unset", "--module", "unset_routes")[2]
    assert said.removeprefix("route 'unset': ") in call("doctor", "--module", "unset_routes")[1]


def test_the_doctor_tells_the_newest_trip_that_failed_until_a_later_one_delivers(call):
    assert call("drive", "strict")[0] == 1
    code, out, _ = call("doctor")
    assert code == 1
    assert "strict: its newest trip, " in out
    assert "→ mend that, then `bus drive strict --trip " in out


def test_an_unknown_route_names_the_nearest(call):
    code, out, err = call("map", "shp")
    assert (code, out) == (1, "")
    assert err == "error: module cli_routes has no route 'shp'; did you mean 'shop'?\n"


def test_a_module_that_is_not_there_or_is_no_routes_module_says_what_to_do(call):
    assert "there is no module nowhere; name one with --module or BUS_MODULE" in call("routes", "-m", "nowhere")[2]
    assert "module json has no defs and no ROUTES" in call("routes", "-m", "json")[2]


def test_a_module_that_fails_to_import_is_told_in_a_line(call, place):
    (place.root / "broken_routes.py").write_text("import nothing_of_that_name\n")
    code, _, err = call("routes", "-m", "broken_routes")
    assert (code, err) == (1, "error: module broken_routes fails to import: No module named 'nothing_of_that_name'\n")


def test_a_module_that_ends_the_process_is_told_and_what_it_prints_is_no_answer(call, place):
    (place.root / "leaving_routes.py").write_text("import sys\nprint('hello')\nsys.exit(3)\n")
    code, out, err = call("routes", "-m", "leaving_routes", "--json")
    assert (code, out) == (1, "")
    assert err == "hello\nerror: leaving_routes.py, line 3: module leaving_routes ends the process when it is imported\n"


def test_a_line_that_fails_in_a_module_of_routes_is_told(call, place):
    (place.root / "misspelt_routes.py").write_text("from bus_assets import Field\n\nField('a', reqired=True)\n")
    (place.root / "failing_routes.py").write_text("import misspelt_name\n")
    (place.root / "misspelt_name.py").write_text("from bus_assets import build_definitions\nbuild_definitions((), resource={})\n")
    code, _, err = call("routes", "-m", "misspelt_routes")
    assert code == 1
    assert err.startswith("error: misspelt_routes.py, line 3: Field 'a' has no option 'reqired'; did you mean 'required'? There are name, ")
    said = "TypeError: build_definitions() got an unexpected keyword argument 'resource'"
    code, _, err = call("routes", "-m", "failing_routes")
    assert (code, err) == (1, f"error: misspelt_name.py, line 2: module failing_routes fails to import: {said}\n")


def test_debug_shows_the_traceback(place, capsys):
    assert main(["map", "shp", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


RAISING = """
from bus_assets import Contract, DropOff, Field, PickUp, Route, Table, TextFile, Transform, build_definitions
from cli_routes import HERE
from resources.database import Database
from resources.files import LocalFiles


def halved(orders):
    return orders.assign(qty=half_of(orders.card))


def half_of(values):
    return values.map(lambda value: {{}}[value])


ORDERS = Contract((Field("order_id"), Field("qty"), Field("card", sensitive={sensitive})), max_rejected=0.9)
ROUTES = (Route(name="raising", stops=(PickUp("orders", TextFile("landing", "orders-1.csv"), ORDERS), Transform("made", halved, ORDERS))),)
defs = build_definitions(ROUTES, {{"landing": LocalFiles(root=str(HERE / "landing"))}})
"""


@pytest.mark.parametrize("sensitive", [True, False])
def test_debug_shows_where_a_transform_raised_and_of_sensitive_values_nothing(place, capsys, sensitive):
    (place.root / f"raising_{sensitive}.py").write_text(RAISING.format(sensitive=sensitive))
    assert main(["drive", "raising", "-m", f"raising_{sensitive}", "--debug"]) == 1
    told = capsys.readouterr().err
    assert "in half_of\n    return values.map(lambda value: {}[value])" in told
    assert "in halved\n    return orders.assign(qty=half_of(orders.card))" in told
    assert "KeyError" in told.split("error: ")[0]
    assert ("4111" in told, "What the exceptions say is left out: it may quote rows" in told) == (not sensitive, sensitive)


def test_without_debug_a_failure_is_told_in_lines_and_a_gate_has_no_traceback(call, place, capsys):
    (place.root / "raising_plainly.py").write_text(RAISING.format(sensitive=False))
    assert "Stack Trace" not in call("drive", "raising", "-m", "raising_plainly")[2]
    assert main(["drive", "strict", "--debug"]) == 1
    assert "Stack Trace" not in capsys.readouterr().err


def test_called_wrongly_exits_2(call):
    for arguments in (
        ("drive",),
        ("fly",),
        ("trips", "--state", "odd"),
        ("drive", "shop", "--set", "day"),
        ("drive", "shop", "--take-over"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, ""), arguments
        assert "Usage: bus" in err


@pytest.mark.parametrize("password", ["", ":pass%2Fword"])
def test_a_depot_is_elsewhere_only_if_it_is(monkeypatch, capsys, password):
    """Also where Dagster does not show its URL, which has a password, or knows it as a variable."""
    from dagster import EnvVar

    url = f"postgresql://bus{password}@db.example/depot"
    monkeypatch.setenv("BUS_DEPOT_URL", url)
    for given, is_elsewhere in ((url, False), (EnvVar("BUS_DEPOT_URL"), False), (f"{url}2", True)):
        note_other_depot(Loaded("mine", build_definitions((), {}, depot=DepotResource(url=given)), {}))
        assert ("module mine keeps a depot of its own" in capsys.readouterr().err) is is_elsewhere


def test_without_a_depot_the_way_to_one_is_told(call, monkeypatch, tmp_path):
    monkeypatch.setenv("BUS_HOME", str(tmp_path / "elsewhere"))
    code, _, err = call("trips")
    assert code == 1
    assert "there is no depot at" in err
    assert "drive a route first" in err
    assert not (tmp_path / "elsewhere").exists()


def test_trips_are_listed_filtered_and_shown(call, place):
    listed = parsed(call("trips", "shop", "--state", "delivered", "--json"))
    assert place.trip in [trip["id"] for trip in listed]
    assert parsed(call("trips", "strict", "--state", "stuck", "--json")) == []
    assert "no trips of route 'shp'; the depot has trips of" in call("trips", "shp")[2]
    assert place.trip in call("trips")[1]
    code, out, _ = call("trip", place.trip)
    assert code == 0
    assert "published in 'warehouse'" in out
    made = parsed(call("trip", place.trip, "--json"))
    assert [verdict["stop"] for verdict in made["verdicts"]] == ["orders", "doubled"]


def test_an_unknown_trip_is_an_error_in_a_line(call):
    assert call("trip", "nosuch") == (1, "", "error: the depot has no trip 'nosuch'\n")
    code, out, said = call("account", "nosuch")
    assert (code, out) == (1, "")
    assert said.startswith("error: the depot has no trip 'nosuch', and module ")
    assert said.endswith("; there are shop, strict, lazy\n")


def test_an_account_balances_and_says_so(call, place):
    code, out, _ = call("account", place.trip)
    assert code == 0
    assert "✓ the account balances, and the recount agrees: 5 rows picked up, 3 rejected, 3 dropped off" in out
    made = parsed(call("account", place.trip, "--json", "--no-recount"))
    assert (made["balanced"], made["recounts"]) == (True, [])


def test_an_account_that_differs_exits_1_and_shows_where(call, place):
    orders = place.root / "landing" / "orders-1.csv"
    orders.write_text(ORDERS + "O-9,1,4999\n")
    try:
        code, out, _ = call("account", place.trip)
        assert code == 1
        assert "✗ DIFFERS: has the source changed since" in out
        assert "✗ the account does not balance" in out
        assert call("account", place.trip, "--json")[0] == 1
    finally:
        orders.write_text(ORDERS)


def test_a_failed_drive_tells_its_error_once_and_how_to_go_on(call):
    code, out, err = call("drive", "strict")
    assert (code, out) == (1, "")
    assert err.count("more than max_rejected") == 1
    assert "`bus drive strict --trip" in err
    assert "✗ orders: 5 rows, 3 rejected" in err


def test_how_to_drive_a_trip_again_is_told_once(call, place, capsys):
    trip = SimpleNamespace(id="t1", trigger="cron", state="failed")
    for error in ("somebody else holds a lock; `bus drive shop --trip t1` tries the trip again", "no such column"):
        with pytest.raises(typer.Exit):
            finish(SimpleNamespace(name="shop"), Driven("r1", trip, error))  # pyright: ignore[reportArgumentType]
        said = capsys.readouterr().err
        assert said.count("`bus drive shop --trip t1`") == 1
        assert "trip t1 is failed, nothing of it is dropped off" in said


def test_a_failed_trip_is_driven_again_by_its_id(call, place):
    day = place.root / "landing" / "orders-7.csv"
    code, out, _ = call("drive", "shop", "--set", "day=7", "--json")
    failed = json.loads(out)
    assert (code, failed["state"]) == (1, "failed")
    assert "no file matches 'orders-7.csv'" in failed["error"]
    day.write_text("order_id,qty,card\nO-71,1,1\n")
    again = parsed(call("drive", "shop", "--trip", failed["trip"], "--json"))
    assert (again["trip"], again["state"]) == (failed["trip"], "delivered")
    assert place.rows("SELECT qty FROM totals WHERE order_id = 'O-71'") == [(2,)]
    assert "keeps the parameters it was started with" in call("drive", "shop", "--trip", failed["trip"], "--set", "day=1")[2]


def test_a_trip_without_messages_is_cancelled_and_said_to_be_over(call):
    depot = open_depot()
    trip, release = (depot.start_trip("strict", trigger, {}).id for trigger in ("cron", "release"))
    depot.claim(trip, "run", lease_seconds=60)
    assert "asked to stop; a run drives it now" in call("cancel", trip, "--reason", "not today")[1]
    depot.finish_trip(trip, "failed", "the bus broke down", attempt=1)
    assert f"ends as cancelled with `bus cancel {trip} --reason …`" in call("trip", trip)[2]
    code, out, err = call("cancel", trip, "--reason", "again", "--module", "no_such_module_anywhere")
    assert (code, out, f"nobody knows where to ask whether trip {trip} is committed, so it is not cancelled" in err) == (1, "", True)
    assert call("cancel", trip, "--reason", "again")[1] == f"trip {trip} is cancelled: it cannot be driven again\n"
    code, out, err = call("trip", trip)
    assert (code, "error: not today" in out, "drives it again" in err) == (0, True, False)
    assert f"`bus quarantine unrelease {release}` holds again" in call("cancel", release, "--reason", "not today")[1]


def test_parameters_are_typed_and_named(call):
    assert "'x' does not read as integer" in call("drive", "shop", "--set", "day=x")[2]
    assert "has no parameter 'dya'; did you mean 'day'?" in call("drive", "shop", "--set", "dya=1")[2]
    assert "route 'lazy' needs week (integer): add --set week=…" in call("drive", "lazy")[2]


def test_a_selection_without_what_comes_before_is_a_rehearsal(call, place):
    before = place.rows("SELECT count(*) FROM totals")
    code, _, err = call("drive", "shop", "--select", "doubled")
    assert code == 0
    assert "is rehearsed" in err
    assert place.rows("SELECT count(*) FROM totals") == before
    assert "has no stop 'duobled'; did you mean 'doubled'?" in call("drive", "shop", "--select", "duobled")[2]
    assert "has no rows of its own trip to drop" in call("drive", "shop", "--select", "totals")[2]


def test_ctrl_c_fails_the_trip_and_says_how_to_drive_it_again(place):
    process = place.start("drive", "lazy", "--set", "week=1")
    deadline = time.monotonic() + 60
    while not (place.root / "slow.started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "error: interrupted" in err
    assert "`bus drive lazy --trip" in err
    with sqlite3.connect(place.root / "home" / "depot.db") as connection:
        assert connection.execute("SELECT state FROM depot_trips WHERE route = 'lazy'").fetchall() == [("failed",)]


def held(call, place):
    rows = parsed(call("quarantine", "list", "--trip", place.trip, "--state", "all", "--json"))
    return {row["position"]: row["id"] for row in rows}


def test_quarantine_lists_places_and_reasons_but_no_content(call, place):
    rows = parsed(call("quarantine", "list", "--trip", place.trip, "--state", "all", "--json"))
    assert [(row["position"], row["reasons"][0]["rule"]) for row in rows] == [
        (6, "readable"),
        (4, "order_id: pattern ^O-"),
        (5, "order_id: unique"),
    ]
    assert "4333" not in json.dumps(rows)
    code, out, _ = call("quarantine", "list", "--trip", place.trip, "--state", "all", "--rule", "unique")
    assert code == 0
    assert "orders-1.csv, line 5" in out
    assert "orders-1.csv, line 4" not in out


@pytest.mark.parametrize("command", ["list", "counts"])
def test_a_slip_in_a_route_or_stop_is_no_empty_quarantine(call, command):
    def refused(*arguments):
        code, _, err = call("quarantine", command, *arguments)
        assert code == 1
        return err

    assert "has no route 'shpo'; did you mean 'shop'?" in refused("--route", "shpo")
    assert "route 'shop' has no stop 'order'; did you mean 'orders'?" in refused("--route", "shop", "--stop", "order")
    assert "has no stop 'doubld'; did you mean 'doubled'?" in refused("--stop", "doubld")
    assert call("quarantine", command, "--route", "shop", "--stop", "doubled")[0] == 0
    assert call("quarantine", command, "--route", "shpo", "--module", "no_such_module")[0] == 0


def test_quarantine_is_counted_by_rule(call, place):
    made = parsed(call("quarantine", "counts", "--trip", place.trip, "--state", "all", "--json"))
    assert {count["rule"]: count["rows"] for count in made} == {"order_id: pattern ^O-": 1, "order_id: unique": 1, "readable": 1}
    assert "order_id: unique" in call("quarantine", "counts", "--state", "all")[1]


def test_a_row_is_shown_without_its_sensitive_fields_unless_asked(call, place):
    row = str(held(call, place)[4])
    code, out, _ = call("quarantine", "show", row)
    assert code == 0
    assert "X-3" in out
    assert "•••" in out
    assert "4333" not in out
    assert parsed(call("quarantine", "show", row, "--json", "--reveal-sensitive"))["payload"]["card"] == "4333"
    assert "there is no row 99999 in quarantine" in call("quarantine", "show", "99999")[2]


def test_a_raw_line_may_hold_a_sensitive_field_and_is_not_shown(call, place):
    assert "4555" not in call("quarantine", "show", str(held(call, place)[6]))[1]


@pytest.mark.parametrize("name", ["rejected.csv", "rejected.jsonl"])
def test_an_export_has_content_reasons_and_place_and_masks(call, place, tmp_path, name):
    arguments = ("quarantine", "export", "--route", "shop", "--stop", "orders", "--state", "all", str(tmp_path / name))
    assert parsed(call(*arguments, "--json"))["rows"] >= 3
    text = (tmp_path / name).read_text()
    assert "X-3" in text
    assert "'X-3' does not match ^O-" in text
    assert "4333" not in text
    assert "4555" not in text
    assert (tmp_path / name).stat().st_mode & 0o077 == 0
    assert "the file is there already" in call(*arguments)[2]
    revealed = call(*arguments[:-1], "--reveal-sensitive", str(tmp_path / f"all-{name}"))
    assert revealed[0] == 0
    assert "4333" in (tmp_path / f"all-{name}").read_text()


def test_an_export_to_another_kind_of_file_or_stop_is_refused(call, tmp_path):
    assert call("quarantine", "export", "--route", "shop", "--stop", "orders", str(tmp_path / "rows.xlsx"))[0] == 2
    code, _, err = call("quarantine", "export", "--route", "shop", "--stop", "order", str(tmp_path / "rows.csv"))
    assert (code, "did you mean 'orders'?" in err) == (1, True)


def test_rows_are_discarded_with_a_reason(call, place):
    row = str(held(call, place)[6])
    assert call("quarantine", "discard", row)[0] == 2
    assert call("quarantine", "discard", row, "--reason", " ")[0] == 1
    assert parsed(call("quarantine", "discard", row, "--reason", "cut off in the export", "--json"))["discarded"] == [int(row)]
    assert "discarded: cut off in the export" in call("quarantine", "list", "--state", "discarded")[1]
    assert "not held" in call("quarantine", "discard", row, "--reason", "again")[2]


def test_a_release_that_may_overwrite_newer_rows_says_so_before_it_drives(call, place, monkeypatch):
    def no_drive(*_):
        raise Refused("not today")

    monkeypatch.setattr("bus_assets.cli.drive_command.drive_and_tell", no_drive)
    code, _, err = call("quarantine", "release", "--route", "shop", "--stop", "orders", str(held(call, place)[4]))
    (trip,) = open_depot().undelivered_releases("shop")
    call("quarantine", "unrelease", trip.id)
    call("cancel", trip.id, "--reason", "of a test")
    assert code == 1
    assert err.startswith("table warehouse: totals: a released row overwrites the row of its key, newer or not; Table(…, newest=COLUMN)")
    assert "table warehouse: log" not in err


@pytest.mark.long
def test_release_after_a_fix_in_a_process_of_its_own(call, place):
    row = held(call, place)[4]
    (place.root / "pattern.txt").write_text("^[OX]-")
    code, out, err = place.bus("quarantine", "release", "--route", "shop", "--stop", "orders", "--all", "--json")
    assert code == 0, err
    (made,) = json.loads(out)
    assert made["state"] == "delivered"
    assert "left in quarantine: 1 rows" in err
    assert place.rows("SELECT qty FROM totals WHERE order_id = 'X-3'") == [(2,)]
    assert place.rows("SELECT count(*) FROM log WHERE order_id = 'X-3'") == [(1,)]
    assert f"released in trip {made['trip']}" in call("quarantine", "list", "--state", "released")[1]
    assert "is not held" in call("quarantine", "release", "--route", "shop", "--stop", "orders", str(row))[2]
    assert parsed(call("account", made["trip"], "--json"))["balanced"]
    assert "and cannot be held again" in call("quarantine", "unrelease", made["trip"])[2]


def test_release_needs_to_know_which_rows(call):
    assert call("quarantine", "release", "--route", "shop", "--stop", "orders")[0] == 2
    assert call("quarantine", "release", "--route", "shop", "--stop", "orders", "--all", "1")[0] == 2
    assert "did you mean 'orders'?" in call("quarantine", "release", "--route", "shop", "--stop", "order", "--all")[2]


def test_unrelease_of_an_unknown_trip_is_refused(call):
    assert call("quarantine", "unrelease", "nosuch") == (1, "", "error: the depot has no trip 'nosuch'\n")


def test_control_characters_of_data_do_not_reach_the_terminal(call, place):
    (place.root / "landing" / "orders-8.csv").write_text("order_id,qty,card\nO-81,1,1\n\x1b[31mred,1,1\n")
    assert call("drive", "shop", "--set", "day=8", "--json")[0] == 0
    out = call("quarantine", "list", "--rule", "pattern", "--state", "all")[1]
    assert "red" in out
    assert "\x1b" not in out
