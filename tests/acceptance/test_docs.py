"""The documents' examples run: every file of the tutorial is written where it says, every command is run, in the order of the text.
The reference has every parameter that there is, with its default.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

import bus_assets
from bus_assets import Contract, DropOff, Field, PickUp, Route, Table
from bus_assets.account import account
from resources.database import Database
from resources.errors import Misconfigured
from resources.files import LocalFiles
from resources.http_paging import checked_paging
from resources.records import Records
from tests.world import World

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?( changed)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHANGES = {
    'Field("quantity"': re.compile(r'^ +Field\("quantity".*\n', re.MULTILINE),
    'Field("qty"': re.compile(r'^ +Field\("qty".*\n', re.MULTILINE),
    "Transform(": re.compile(r"^ +Transform\(.*\n", re.MULTILINE),
}
"""What a changed block begins with, and what it takes the place of."""


def write(path, text, *, changed):
    path.parent.mkdir(parents=True, exist_ok=True)
    if changed:
        replaced = next(pattern for start, pattern in CHANGES.items() if text.lstrip().startswith(start))
        text, count = replaced.subn(lambda _: text, path.read_text())
        assert count == 1
    path.write_text(text)


def run(command, home, environment):
    command = re.sub(r"^bus ", f"{sys.executable} -m bus_assets.cli ", command)
    command = re.sub(r"^dagster ", f"{sys.executable} -m dagster ", command)
    command = re.sub(r"^python ", f"{sys.executable} ", command)
    done = subprocess.run(command, shell=True, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout + done.stderr


def test_the_tutorial_does_what_it_says(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BUS_", "DAGSTER_"))}
    environment |= {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONWARNINGS": ""}
    said, landed = "", []
    for _, name, changed, text in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()):
        if name:
            write(tmp_path / name, text, changed=bool(changed))
            continue
        for line in text.splitlines():
            if line.startswith("export "):
                environment |= dict([line.removeprefix("export ").split("=", 1)])
            else:
                said += run(line, tmp_path, environment)
        if (tmp_path / "warehouse.db").exists():
            with sqlite3.connect(tmp_path / "warehouse.db") as connection:
                landed.append(dict(connection.execute("SELECT order_id, total FROM orders")))
    assert landed[0] == {"O-1001": "39.80", "O-1002": "5.00", "O-1005": "3.96"}
    assert landed[-1] == landed[0] | {"O-1003": "0.00"}
    for place in ("line 4", "line 5", "line 6"):
        assert place in said
    assert "@example.org" not in said


@pytest.mark.long
def test_messages_start_trips_as_the_tutorial_says(tmp_path, aws):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BUS_", "DAGSTER_", "AWS_"))}
    environment |= {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONWARNINGS": "", **aws.environment}
    said, landed = "", []
    for _, name, changed, text in BLOCK.findall((ROOT / "docs" / "messages.md").read_text()):
        if name:
            write(tmp_path / name, text, changed=bool(changed))
            continue
        for line in text.splitlines():
            if line.startswith("export "):
                environment |= dict([line.removeprefix("export ").split("=", 1)])
            else:
                said += run(line, tmp_path, environment)
        if (tmp_path / "warehouse.db").exists():
            with sqlite3.connect(tmp_path / "warehouse.db") as connection:
                landed.append(sorted(connection.execute("SELECT order_key, total FROM order_lines")))
    first = [("body:O-1", "4.50"), ("body:O-2", "9.00"), ("body:O-4", "4.50")]
    assert landed[0] == first
    assert landed[1] == [*first, ("body:O-5", "9.00")]
    assert landed[-1] == sorted([*landed[1], ("body:O-3", "0.00")])
    assert "3 duplicates" in said or "duplicates 3" in said


REFERENCE = (ROOT / "docs" / "reference.md").read_text()
SECTION = re.compile(r"^### `(\w+)`(?: \(`([\w.]+)`\))?\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
PARAMETER = re.compile(r"^\| `(\w+)` \| (?:`(.+?)` )?\| ", re.MULTILINE)
REQUIRED = object()


def parameters(made):
    """The names and defaults with which ``made``, a declaration, a resource or a function, is called."""
    if dataclasses.is_dataclass(made):
        fields = dataclasses.fields(made)
        found = {field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory() for field in fields}
    elif hasattr(made, "model_fields"):
        found = {name: REQUIRED if field.is_required() else field.default for name, field in made.model_fields.items()}
    else:
        found = {name: parameter.default for name, parameter in inspect.signature(made).parameters.items()}
    return [(name, REQUIRED if default in (dataclasses.MISSING, inspect.Parameter.empty) else default) for name, default in found.items()]


@pytest.mark.parametrize(("name", "module", "text"), [pytest.param(*found, id=found[0]) for found in SECTION.findall(REFERENCE)])
def test_the_reference_has_every_parameter_with_its_default(name, module, text):
    known = {name: getattr(bus_assets, name) for name in bus_assets.__all__}
    told = [(name, eval(default, known) if default else REQUIRED) for name, default in PARAMETER.findall(text)]
    assert told == parameters(getattr(importlib.import_module(module or "bus_assets"), name))


def test_the_reference_has_everything_that_an_author_writes():
    assert {name for name, module, _ in SECTION.findall(REFERENCE) if not module} == set(bus_assets.__all__) - {"Misdeclared"}


def test_the_reference_has_every_key_of_every_kind_of_paging():
    kinds = []
    for example in map(ast.literal_eval, re.findall(r"^\| `(\{\"kind\".*?\})` \|", REFERENCE, re.MULTILINE)):
        assert checked_paging(example).keys() == example.keys()
        least = checked_paging({key: value for key, value in example.items() if key in ("kind", "limit")})
        assert {key: value for key, value in least.items() if value is not None}.items() <= example.items()
        kinds.append(example["kind"])
    with pytest.raises(Misconfigured, match=f"known are {', '.join(kinds)}$"):
        checked_paging({"kind": "?"})


def test_the_example_of_the_reference_builds_what_it_says():
    names: dict = {}
    (example,) = (text for _, _, _, text in BLOCK.findall(REFERENCE))
    exec(example, names)
    assets = {spec.key.to_user_string(): spec for spec in names["defs"].resolve_all_asset_specs()}
    assert {"sales/sold", "sales/all_sales", "dbt/refunds"} <= assets.keys()
    assert (assets["dbt/refunds"].group_name, assets["sales/all_sales"].group_name) == ("finance", "sales")
    assert (assets["sales/sold"].owners, assets["dbt/refunds"].owners) == (["team:web"], ["team:shop", "anna@example.org"])
    assert names["defs"].resolve_job_def("sales").executor_def is dg.multiprocess_executor


def test_the_example_of_a_source_of_ones_own_drives(tmp_path):
    names: dict = {"__name__": "host_routes"}
    (example,) = (text for _, _, _, text in BLOCK.findall((ROOT / "docs" / "extending.md").read_text()))
    exec(example, names)
    good = "".join(f"{number:08}{number:10}\n" for number in range(20))
    write(tmp_path / "bookings.txt", good + "00000020\n", changed=False)
    world = World(tmp_path)
    world.bus.systems.update({"host": LocalFiles(root=str(tmp_path)), "ledger": Database(url=world.warehouse_url)})
    drive = world.drive(names["bookings"])
    assert [(key, float(amount)) for key, amount in world.rows("bookings")] == [(f"{number:08}", number) for number in range(20)]
    (bad,) = world.depot.quarantined()
    assert (bad.origin, bad.position, bad.reasons[0].message) == ("bookings.txt", 21, "it has 8 characters, expected 18")
    made = account(world.bus, names["bookings"], drive.trip.id)
    assert made.balanced
    assert {recount.status for recount in made.recounts} == {"agrees"}
    assert names["defs"].resolve_job_def("bookings")


def own(tmp_path, *given):
    """Drives a route whose source yields what is given."""
    source = type(
        "Own", (), {"system": "host", "fields": {}, "read": lambda *_: iter(given), "recount": int, "address": str, "templates": tuple}
    )()
    world = World(tmp_path)
    world.bus.systems["host"] = None
    world.drive(Route("own", (PickUp("read", source, Contract((Field("n"),))), DropOff("d", Table("warehouse", "d", create=True)))))


def test_a_source_of_ones_own_that_gives_something_else_is_told(tmp_path):
    with pytest.raises(Misconfigured, match=r"route 'own', stop 'read': the source gave a list; .*resources\.records\.Records"):
        own(tmp_path, ["a"])
    batch = pa.RecordBatch.from_pylist([{"n": "1"}, {"n": "2"}])
    with pytest.raises(Misconfigured, match=r"a\.txt: the source gave 1 positions for 2 records"):
        Records(batch, "a.txt", pa.array([1], pa.int64()), "line")


def test_every_make_target_that_the_documents_name_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"`make ([a-z]+)", document.read_text()):
            assert target in targets, f"{document.name} names `make {target}`"
