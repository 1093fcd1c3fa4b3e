"""Input and declarations meant to break a promise, through whole routes."""

import datetime as dt
import json
import sqlite3
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus_assets import Check, Contract, DropOff, Field, Parameter, ParquetFile, PickUp, Query, Route, Table, TextFile, Transform
from bus_assets.account import account
from bus_assets.build import build_definitions
from bus_assets.declare import Misdeclared
from bus_assets.release import choose, start_release
from resources.database import Database
from resources.errors import Poison, Refused
from resources.files import LocalFiles
from tests.world import GOOD, World, shop

PAIR = Contract((Field("a"), Field("b", "integer")))
ANY = {"max_rejected": 1.0}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def route(*stops, **more):
    return Route(name="attacked", stops=stops, **more)


def text(contract=PAIR, name="orders"):
    return PickUp(name, TextFile("landing", "orders.csv"), contract)


def parquet(world, table, contract):
    pq.write_table(table, world.root / "landing" / "orders.parquet")
    return PickUp("orders", ParquetFile("landing", "orders.parquet"), contract)


def into(name="t", **table):
    return DropOff("drop", Table("warehouse", name, create=True, **table))


# Nothing is lost, nothing stays that should be gone


SCOPES = {
    "decimal(5,2)": ("1.00", "1.0"),
    "timestamp": ("2026-01-01 00:00:00", "2026-01-01T00:00:00"),
    "timestamptz": ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00"),
    "boolean": ("true", "true"),
    "integer": ("3", "3"),
}


@pytest.mark.parametrize("type_", SCOPES)
@pytest.mark.parametrize("why", ["where lets none pass", "none is picked up"])
def test_a_replace_with_no_rows_empties_its_scope(world, type_, why):
    value, scope = SCOPES[type_]
    contract = Contract((Field("m", type_), Field("b", "integer")))
    world.land(f"m,b\n{value},1\n")
    world.drive(route(text(contract), into(scope={"m": scope})))
    assert len(world.rows("t")) == 1
    if why == "none is picked up":
        world.land("m,b\n")
    drop = DropOff("drop", Table("warehouse", "t", scope={"m": scope}, create=True), where="b > 100" if why[0] == "w" else None)
    world.drive(route(text(contract), drop))
    assert world.rows("t") == []


def test_rows_of_typed_sources_and_transforms_ride_again_as_what_they_were(world):
    found = pa.table(
        {
            "k": ["kept", "late"],
            "whole": [1.0, 5.0],
            "tiny": pa.array([Decimal(1), Decimal(0)], pa.decimal128(20, 10)),
            "cents": pa.array([Decimal(1), Decimal(7)], pa.decimal128(20, 2)),
            "day": pa.array([dt.datetime(2026, 1, 1)] * 2, pa.timestamp("us")),
            "none": [1.0, float("nan")],
            "rate": [1.5, 1e-10],
            "list": [[Decimal(1)], [Decimal("1E-10")]],
        }
    )

    def contract(*allowed):
        key = Field("k", allowed=("kept", *allowed))
        numbers = (Field("whole", "integer"), Field("tiny", "decimal(20,10)"), Field("cents", "integer"), Field("day", "date"))
        return Contract(
            (key, *numbers, Field("none", "number"), Field("rate", "decimal(20,12)"), Field("list", "list<decimal(20,10)>")), **ANY
        )

    world.drive(route(parquet(world, found, contract()), into()))
    fixed = route(parquet(world, found, contract("late")), into())
    (release,), _ = choose(world.depot, fixed, "orders")
    world.drive(fixed, tagged=start_release(world.depot, release).id)
    late = ("late", 5, "0.0000000000", 7, "2026-01-01", None, "0.000000000100", '["0.0000000001"]')
    assert world.rows("t")[1] == late


def test_bytes_that_are_no_text_are_not_released_as_other_bytes(world):
    found = pa.table({"k": ["late"], "b": [b"\xff\x00"]})
    stop = parquet(world, found, Contract((Field("k", allowed=("kept",)), Field("b", "binary")), **ANY))
    drive = world.drive(route(stop, into()))
    assert world.depot.trip(drive.trip.id).state == "delivered"
    with pytest.raises(Refused, match="'b' holds bytes"):
        choose(world.depot, route(stop, into()), "orders", [world.depot.quarantined()[0].id])


def test_the_account_of_a_query_with_braces(world):
    with sqlite3.connect(world.root / "legacy.db") as connection:
        connection.execute("CREATE TABLE x AS SELECT '{red}' AS a, 1 AS b")
    world.bus.systems["legacy"] = Database(url=f"sqlite:///{world.root}/legacy.db")
    declared = route(PickUp("orders", Query("legacy", "SELECT a, b FROM x WHERE a = '{red}'"), PAIR), into())
    assert account(world.bus, declared, world.drive(declared).trip.id).balanced


def test_a_rehearsal_that_fails_is_over(world):
    world.land(GOOD)
    world.drive(shop())
    with pytest.raises(Refused, match="rehearses"):
        world.drive(shop(), select=["priced", "totals"])
    assert {trip.state for trip in world.depot.trips()} == {"delivered", "failed"}


# Data is what it was, or rejected


def made(world, kind, values, **field):
    """What becomes of ``values``, made by a function as objects; with the rows that are rejected."""

    def make(orders: pd.DataFrame) -> pd.DataFrame:
        return orders.assign(t=pd.Series(values, dtype=object, index=orders.index))

    world.land("a,b\nx,1\ny,2\nz,3\n")
    world.drive(route(text(), Transform("made", make, Contract((Field("a"), Field("t", kind, **field)), **ANY)), into()))
    return dict(world.rows("t")), {row.row_id for row in world.depot.quarantined()}


NOON = dt.datetime(2026, 6, 1, 12)


def test_wall_clocks_among_instants_are_read_one_by_one(world):
    kept, _ = made(world, "timestamptz", [NOON, NOON.replace(tzinfo=dt.UTC), None], zone="Europe/Berlin")
    assert kept == {"x": "2026-06-01 10:00:00.000000Z", "y": "2026-06-01 12:00:00.000000Z", "z": None}


def test_an_instant_among_wall_clocks_is_not_shifted(world):
    kept, rejected = made(world, "timestamp", [NOON, NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=5))), None])
    assert (kept, rejected) == ({"x": "2026-06-01 12:00:00.000000", "z": None}, {"2"})


def test_a_timestamp_among_dates_is_not_cut(world):
    kept, rejected = made(world, "date", [NOON.date(), NOON, None])
    assert (kept, rejected) == ({"x": "2026-06-01", "z": None}, {"2"})


def test_pandas_na_among_mixed_values_is_null(world):
    assert made(world, "integer", [1, "x", pd.NA]) == ({"x": 1, "z": None}, {"2"})


def test_objects_that_arrow_cannot_join_are_structs_all_the_same(world):
    kept, _ = made(world, "struct<n: integer>", [{"n": 1}, {"n": "2"}, None])
    assert [json.loads(value) if value else None for value in kept.values()] == [{"n": 1}, {"n": 2}, None]


def test_moments_that_python_cannot_say_wait_in_quarantine(world):
    found = pa.table({"a": ["x", "y"], "t": pa.array([0, 600_000_000_000], pa.timestamp("s")), "d": pa.array([0, 6_000_000], pa.date32())})
    contract = Contract((Field("a"), Field("t", "timestamp"), Field("d", "date")), **ANY)
    world.drive(route(parquet(world, found, contract), into()))
    assert [row[0] for row in world.rows("t")] == ["x"]
    assert world.depot.quarantined()[0].payload["t"].startswith("20983-03-30")


def test_the_end_of_a_day_is_no_time_in_sql_and_in_files_and_stays_none_when_it_is_released(world):
    contract = Contract((Field("a"), Field("t", "time"), Field("ts", "list<time>")), **ANY)
    times = pa.array([86_400_000_000, 36_000_000_000, 36_000_000_000], pa.int64()).view(pa.time64("us"))
    found = pa.table({"a": ["x", "y", "z"], "t": times, "ts": pa.ListArray.from_arrays([0, 0, 1, 2], times)})
    picked = parquet(world, found, contract)
    sql = "SELECT a, CASE a WHEN 'z' THEN TIME '24:00:00' ELSE t END AS t, ts FROM orders"
    declared = route(picked, Transform("made", sql, contract), into(), DropOff("kept", Table("warehouse", "k", create=True), of="orders"))
    world.drive(declared)
    assert [row[0] for row in world.rows("k")] == ["z"]
    assert world.rows("t") == []
    waiting = world.depot.quarantined()
    assert [(row.stop, [reason.rule for reason in row.reasons]) for row in waiting] == [
        ("orders", ["t: type time"]),
        ("orders", ["ts: type list<time>"]),
        ("made", ["t: type time"]),
    ]
    (release,), _ = choose(world.depot, declared, "orders", [row.id for row in waiting[:2]])
    world.drive(declared, tagged=start_release(world.depot, release).id)
    assert [row[0] for row in world.rows("k")] == ["z"]


def test_a_field_named_row_is_a_field_like_others(world):
    contract = Contract((Field("row", required=True, unique=True), Field("b", "integer")))
    world.land("row,b\nx,1\ny,2\n")
    world.drive(route(text(contract), Transform("made", lambda orders: orders.sort_values("row"), contract), into()))
    assert world.rows("t") == [("x", 1), ("y", 2)]


def test_many_keys_in_a_wide_file_are_verified_in_bounded_memory(world):
    names = [f"c{number}" for number in range(1, 401)]
    fields = tuple(Field(name, "integer", required=True, unique=at % 20 == 0) for at, name in enumerate(names))
    lines = [",".join(str(row * at) for at in range(1, 401)) for row in range(1, 301)]
    world.land(",".join(names) + "\n" + "\n".join(lines) + "\n")
    world.drive(route(text(Contract(fields)), into()))
    assert len(world.rows("t")) == 300


# What cannot mean what it says is refused


def test_names_of_a_struct_are_told_apart_without_case():
    with pytest.raises(Misdeclared, match="member 'A' appears twice"):
        Field("s", "list<struct<a: string, A: integer>>")


@pytest.mark.parametrize("where", ["where", "check", "transform"])
def test_placeholders_in_sql_that_nothing_fills_are_refused(where):
    sql = "SELECT * FROM orders WHERE a = '{params.a}'"
    stops = {
        "where": (text(), DropOff("drop", Table("warehouse", "t"), where="a = '{params.a}'")),
        "check": (PickUp("orders", TextFile("landing", "o.csv"), PAIR, checks=(Check("odd", sql),)),),
        "transform": (text(), Transform("made", sql, PAIR, grain="changed")),
    }
    with pytest.raises(Misdeclared, match="placeholders do not belong in SQL"):
        route(*stops[where], parameters=(Parameter("a"),))


@pytest.mark.parametrize(("kind", "given"), [("number", "nan"), ("number", "1e999"), ("boolean", 1), ("string", "\ud800")])
def test_values_that_no_parameter_can_have(kind, given):
    with pytest.raises(Misdeclared, match=f"does not read as {kind}"):
        Parameter("p", kind).value(given)


def test_a_number_that_the_database_has_not_is_told(world):
    with sqlite3.connect(world.root / "legacy.db") as connection:
        connection.execute("CREATE TABLE x (a, b)")
    world.bus.systems["legacy"] = Database(url=f"sqlite:///{world.root}/legacy.db")
    query = Query("legacy", "SELECT a, b FROM x WHERE b = :p", params={"p": "{params.p}"})
    with pytest.raises(Poison, match="a number is out of its column's range"):
        world.drive(route(PickUp("orders", query, PAIR), into(), parameters=(Parameter("p", "integer"),)), parameters={"p": 2**70})


CLASHES = {
    "'publish_warehouse' and database 'warehouse'": (text(name="publish_warehouse"), DropOff("drop", Table("warehouse", "t"))),
    "'w_h' and database 'w.h'": (text(), DropOff("one", Table("w_h", "t")), DropOff("two", Table("w.h", "t"))),
    "has the asset key of": (PickUp("orders", TextFile("attacked", "orders"), PAIR),),
}


@pytest.mark.parametrize("said", CLASHES)
def test_names_that_dagster_cannot_tell_apart_are_named(tmp_path, said):
    files, database = LocalFiles(root=str(tmp_path)), Database(url=f"sqlite:///{tmp_path}/w.db")
    with pytest.raises(Misdeclared, match=said):
        build_definitions(
            (route(*CLASHES[said]),), {"landing": files, "attacked": files, "warehouse": database, "w_h": database, "w.h": database}
        )


def test_a_resource_may_not_hide_the_parameters_of_a_route(tmp_path):
    stop = PickUp("orders", TextFile("attacked_parameters", "o.csv"), PAIR)
    with pytest.raises(Misdeclared, match="'attacked_parameters' is the platform's own"):
        build_definitions(
            (route(stop, parameters=(Parameter("p", default="x"),)),), {"attacked_parameters": LocalFiles(root=str(tmp_path))}
        )
