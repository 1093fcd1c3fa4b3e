"""What the publishing step waits for in Dagster: every gate of the route, though the graph only shows the rows' own ways."""

import sqlite3
from contextlib import closing

import dagster as dg
import pytest

from bus_assets import Contract, DropOff, Field, PickUp, Route, Table, TextFile, Transform, build_definitions
from resources.database import Database
from resources.depot.resource import DepotResource
from resources.files import LocalFiles
from resources.staging import StagingArea

NUMBERS = Contract((Field("n", "integer", required=True),), max_rejected=0)
GOOD, BAD = TextFile("landing", "good.csv"), TextFile("landing", "bad.csv")


def to(database, name, of):
    return DropOff(f"{database}_{name}", Table(database, name, create=True), of=of)


ROUTES = {
    "that nobody reads": (PickUp("good", GOOD, NUMBERS), PickUp("looked_at", BAD, NUMBERS), to("first", "t", "good")),
    "further up": (
        PickUp("good", GOOD, NUMBERS),
        PickUp("bad", BAD, NUMBERS),
        Transform("both", "SELECT good.n FROM good LEFT JOIN bad ON bad.n = good.n", NUMBERS, after=("good", "bad")),
        to("first", "t", "good"),
        to("first", "u", "both"),
    ),
    "that only the second database gets": (
        PickUp("good", GOOD, NUMBERS),
        PickUp("bad", BAD, NUMBERS),
        to("first", "t", "good"),
        to("second", "t", "bad"),
    ),
}


@pytest.fixture
def defs(tmp_path):
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "good.csv").write_text("n\n1\n2\n")
    (tmp_path / "landing" / "bad.csv").write_text("n\nx\n")

    def made(stops):
        systems = {name: Database(url=f"sqlite:///{tmp_path}/{name}.db") for name in ("first", "second")}
        return build_definitions(
            (Route(name="waits", stops=stops),),
            resources={"landing": LocalFiles(root=str(tmp_path / "landing")), **systems},
            depot=DepotResource(url=f"sqlite:///{tmp_path}/depot.db"),
            staging=StagingArea(url=str(tmp_path / "staging")),
        )

    return made


@pytest.mark.parametrize("case", ROUTES)
def test_publishing_does_not_begin_when_a_gate_says_no_at_a_stop(tmp_path, defs, case):
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs(ROUTES[case]).resolve_job_def("waits").execute_in_process(instance=instance, raise_on_error=False)
    (failed,) = [event.step_key for event in result.all_events if event.is_step_failure]
    assert failed in ("waits__bad", "waits__looked_at")
    assert not [event for event in result.all_events if event.is_step_start and "publish" in str(event.step_key)]
    assert not (tmp_path / "first.db").exists()


def test_the_second_database_follows_the_first(tmp_path, defs):
    (tmp_path / "landing" / "bad.csv").write_text("n\n3\n")
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs(ROUTES["that only the second database gets"]).resolve_job_def("waits").execute_in_process(instance=instance)
    done = [event.step_key for event in result.all_events if event.is_step_success]
    assert done[-2:] == ["waits__publish_first", "waits__publish_second"]
    with closing(sqlite3.connect(tmp_path / "second.db")) as second:
        assert second.execute("SELECT n FROM t").fetchall() == [(3,)]


def test_the_graph_has_an_edge_only_where_rows_go(defs):
    graph = defs(ROUTES["further up"]).resolve_asset_graph()
    upstream = {key.path[-1]: {parent.path[-1] for parent in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()}
    assert upstream["first_t"] == {"good"}
    assert upstream["first_u"] == {"both"}
