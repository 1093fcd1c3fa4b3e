"""A sensitive value that makes something fail must not be in what Dagster keeps: events, errors with their causes, compute logs."""

import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from bus_assets import Check, Contract, DropOff, Endpoint, Field, PickUp, Route, Table, TextFile, Transform, build_definitions
from resources.database import Database
from resources.depot.resource import DepotResource
from resources.files import LocalFiles
from resources.http import WebService
from resources.staging import StagingArea
from tests.depots import dagsters_storage, sqlite_depot

SECRET = "hush7351"
ROWS = f"id,card,note\n1,{SECRET}-a,x\n2,{SECRET}-b,y\n3,{SECRET}-c,z\n"
CARDS = Contract((Field("id", "integer", required=True, unique=True), Field("card", sensitive=True), Field("note")), max_rejected=0)


def contract(**card: object) -> Contract:
    return Contract((Field("id", "integer"), Field("card", sensitive=True, **card), Field("note")), max_rejected=0)  # type: ignore[arg-type]


def raises(cards: pd.DataFrame) -> pd.DataFrame:
    raise ValueError(f"cannot make sense of {cards.card.tolist()}")


def raises_by_pandas(cards: pd.DataFrame) -> pd.DataFrame:
    return cards.assign(note=cards.card.astype("int64").astype("str"))


def raises_in_a_circle(cards: pd.DataFrame) -> pd.DataFrame:
    error = ValueError(cards.card.iloc[0])
    raise error from error


def ends_the_process(cards: pd.DataFrame) -> pd.DataFrame:
    raise SystemExit(cards.card.iloc[0])


def raises_in_a_generator(cards: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for frame in cards:
        yield frame
        raise KeyError(frame.card.iloc[0])


def mixes_types(cards: pd.DataFrame) -> pd.DataFrame:
    return cards.assign(note=[1, cards.card.iloc[0], None])


def pick_up(**how: object) -> PickUp:
    return PickUp("cards", TextFile("landing", "cards.csv"), **{"contract": CARDS, **how})  # type: ignore[arg-type]


def made(how: object, after: Contract = CARDS) -> tuple[PickUp, Transform]:
    return pick_up(), Transform("made", how, after)  # type: ignore[arg-type]


def dropped(table: str) -> tuple[PickUp, DropOff]:
    return pick_up(), DropOff("drop", Table("warehouse", table))


def cast(sql: str) -> tuple[PickUp, Transform]:
    return made(sql, Contract((*CARDS.fields, Field("n", "integer", sensitive=True))))


ANSWERS = {
    "cut": (200, f'[{{"id": 1, "card": "{SECRET}"'),
    "refused": (422, f'{{"detail": "not a card: {SECRET}", "card": "{SECRET}"}}'),
}


def served(name: str) -> tuple[PickUp]:
    return (PickUp("cards", Endpoint("service", name), CARDS),)


ROUTES = {
    "the gate rejects it for its type": (pick_up(contract=contract(type="integer")),),
    "the gate rejects it for its pattern": (pick_up(contract=contract(pattern="^[0-9]+$")),),
    "the gate rejects it as it is not allowed": (pick_up(contract=contract(allowed=("4000",))),),
    "the gate rejects it for its length": (pick_up(contract=contract(max_length=3)),),
    "the gate rejects it as a date": (pick_up(contract=contract(type="date", format="%d.%m.%Y")),),
    "a function raises it": made(raises),
    "pandas quotes it": made(raises_by_pandas),
    "a generator raises it": made(raises_in_a_generator),
    "a function raises it from itself": made(raises_in_a_circle),
    "a function ends the process with it": made(ends_the_process),
    "a frame mixes it with other types": made(mixes_types, contract(max_length=3)),
    "DuckDB quotes it": cast("SELECT *, card::BIGINT AS n FROM cards"),
    "DuckDB raises it": cast("SELECT *, error(card) AS n FROM cards"),
    "a check's SQL quotes it": (pick_up(checks=(Check("whole", "SELECT * FROM cards WHERE card::BIGINT > 1"),)),),
    "where= quotes it": (pick_up(), DropOff("drop", Table("warehouse", "t", create=True), where="card::BIGINT > 1")),
    "the destination has it already": dropped("unique_cards"),
    "the destination refuses it": dropped("checked_cards"),
    "an answer of a service is cut": served("cut"),
    "a service refuses it": served("refused"),
}


class Service(BaseHTTPRequestHandler):
    def do_GET(self):
        status, text = ANSWERS[self.path.strip("/")]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "cards.csv").write_text(ROWS)
    (dagsters_storage(tmp_path / "instance") / "dagster.yaml").write_text("telemetry: {enabled: false}")
    with sqlite3.connect(tmp_path / "warehouse.db") as warehouse:
        warehouse.execute("CREATE TABLE unique_cards (id INTEGER, card TEXT UNIQUE, note TEXT)")
        warehouse.execute("INSERT INTO unique_cards VALUES (9, ?, '')", (f"{SECRET}-b",))
        warehouse.execute("CREATE TABLE checked_cards (id INTEGER, card TEXT CHECK (card NOT LIKE '%-c'), note TEXT)")
    warehouse.close()
    return tmp_path


def failed_run(home: Path, stops: tuple, service: str = "http://127.0.0.1:9") -> str:
    """Drive the stops in Dagster until they fail; all that the instance kept of it, as text."""
    definitions = build_definitions(
        (Route(name="secret", stops=stops),),
        resources={
            "landing": LocalFiles(root=str(home / "landing")),
            "warehouse": Database(url=f"sqlite:///{home}/warehouse.db"),
            "service": WebService(base_url=service, attempts=1),
        },
        depot=DepotResource(url=sqlite_depot(home / "depot.db")),
        staging=StagingArea(url=str(home / "staging")),
    )
    with dg.DagsterInstance.from_config(str(home / "instance")) as instance:
        result = definitions.resolve_job_def("secret").execute_in_process(instance=instance, raise_on_error=False)
        assert not result.success
        events = "\n".join(str(entry) for entry in instance.all_logs(result.run_id))
    files = [Path(folder, name) for folder, _, names in os.walk(home / "instance") for name in names]
    return events + "\n".join(path.read_bytes().decode("latin-1") for path in files)


@pytest.mark.parametrize("case", ROUTES)
def test_a_sensitive_value_that_fails_a_trip_is_not_in_what_dagster_keeps(home, service, case):
    kept = failed_run(home, ROUTES[case], service)
    assert "STEP_FAILURE" in kept
    assert SECRET not in kept, [text[-300:] for text in re.findall(rf".{{0,300}}{SECRET}", kept)][:2]


def test_where_in_the_code_it_was_raised_is_kept_without_it(home):
    kept = failed_run(home, made(raises_by_pandas))
    assert "return cards.assign(note=cards.card.astype(" in kept
    assert "What the exceptions say is left out: it may quote rows" in kept


def test_the_search_would_find_it(home):
    """The same failures name a value that is not sensitive."""
    open_card = Contract((Field("id", "integer"), Field("card"), Field("note")), max_rejected=0)
    for how in (raises, "SELECT *, card::BIGINT AS n FROM cards"):
        after = Contract((*open_card.fields, Field("n", "integer"))) if isinstance(how, str) else open_card
        assert SECRET in failed_run(home, (pick_up(contract=open_card), Transform("made", how, after)))
