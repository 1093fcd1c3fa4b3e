"""A queue route under plain ``dagster dev``, with the settings that are shipped: what its UI shows, and what people do to runs there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bus_up import REPOSITORY
from tests.emulators import ministack
from tests.letters import MODULE, Post
from tests.webserver import DAGSTER_DEV, OVER, Run, Webserver, until, webserver

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("letters"), pytest.mark.timeout(500)]

RUN_RETRIES = "run_retries: {enabled: true, max_retries: 1}\n"
FIRST = [f"letter {number}" for number in range(5)]
TERMINATED, MARKED, CANCELLED, BROKEN = "terminated", "marked", "cancelled", "broken"
MEETS = ((TERMINATED, "hold"), (MARKED, "deaf"), (CANCELLED, "hold"), (BROKEN, "break"))
SEEN_SECONDS = 150
_TICKS = """
query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor { sensorState { ticks(limit: 200) {
  cursor skipReason runIds logEvents { events { message } }
} } } } }"""
_MESSAGES = """
query($keys: [AssetKeyInput!]!) { assetNodes(assetKeys: $keys) {
  dependencies { asset { assetKey { path } isExecutable } }
  assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization { status } } } }
} }"""


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    with ministack() as cloud:
        yield Post(tmp_path_factory.mktemp("post"), cloud)


@pytest.fixture(scope="module")
def ui(post: Post) -> Iterator[Webserver]:
    shipped = (REPOSITORY / "dagster.yaml").read_text()
    with webserver(post.home, MODULE, post.environment, start=DAGSTER_DEV, settings=shipped + RUN_RETRIES) as served:
        yield served


@pytest.fixture(scope="module")
def first(ui: Webserver, post: Post) -> Run:
    """The run that the first letters start."""
    post.send(*FIRST)
    post.until_delivered()
    ((run, _, _),) = post.attempts(FIRST[0])
    return ui.over(run)


@pytest.fixture(scope="module")
def meddled(ui: Webserver, post: Post, first: Run) -> dict[str, str]:
    """The first run of each of four letters, all of which somebody has meddled with. All letters but the cancelled one are delivered."""
    for letter, what in MEETS:
        post.prepare(what, letter)
        post.send(letter)  # alone: the one before is aboard already
        until(lambda: post.states()["waiting"] == 0 and sum(post.states().values()) == len(post.sent), f"{letter} is aboard", SEEN_SECONDS)
    until(lambda: all(post.has_met(what, letter) for letter, what in MEETS), "all runs have met what they were to", SEEN_SECONDS)
    runs = {letter: post.attempts(letter)[0][0] for letter, _ in MEETS}
    bus(post, "cancel", post.trip(CANCELLED), "--reason", "sent by mistake")
    assert ui.terminate(runs[CANCELLED]) == ui.terminate(runs[TERMINATED]) == "TerminateRunSuccess"
    assert ui.terminate(runs[MARKED], "MARK_AS_CANCELED_IMMEDIATELY") == "TerminateRunSuccess"
    until(lambda: post.states() == {"delivered": len(post.sent) - 1, "stranded": 1}, "all but the cancelled one are delivered", 90)
    post.release("deaf", MARKED)
    return runs


def bus(post: Post, *arguments: str) -> str:
    command = [sys.executable, "-m", "bus_assets.cli", *arguments]
    return subprocess.check_output(command, cwd=post.home, env=post.environment, text=True, timeout=60)


def ticks(ui: Webserver) -> list[dict[str, Any]]:
    """As the sensor's page shows them."""
    sensor = {"repositoryLocationName": ui.location, "repositoryName": "__repository__", "sensorName": "letters_queue"}
    return ui.ask(_TICKS, s=sensor)["sensorOrError"]["sensorState"]["ticks"]


def test_a_tick_says_in_one_line_what_it_did(ui: Webserver, first: Run):
    (tick,) = [tick for tick in ticks(ui) if first.id in tick["runIds"]]
    assert tick["cursor"] == "boarded 5, departed 1"
    assert [event["message"] for event in tick["logEvents"]["events"]] == ["boarded 5, departed 1"]


def test_the_messages_asset_shows_its_queue_its_counts_and_the_account(ui: Webserver, first: Run):
    (node,) = ui.ask(_MESSAGES, keys=[{"path": ["letters", "messages"]}])["assetNodes"]
    upstream = [(one["asset"]["assetKey"]["path"], one["asset"]["isExecutable"]) for one in node["dependencies"]]
    assert upstream == [(["queue", "letters"], False)]
    checks = {check["name"]: check["executionForLatestMaterialization"] for check in node["assetChecksOrError"]["checks"]}
    assert checks["accounted"] == {"status": "SUCCEEDED"}
    shown = first.seen("messages")
    assert (shown["messages aboard"], shown["messages waiting"], shown["oldest waiting (seconds)"]) == (5, 0, 0.0)
    assert first.check("messages", "accounted")["metadata"]["received in all"] == 5


def test_a_terminated_run_ends_and_its_message_departs_again_by_itself(ui: Webserver, post: Post, meddled: dict[str, str]):
    assert ui.status(meddled[TERMINATED]) == "CANCELED"
    before, after = post.attempts(TERMINATED)
    assert before == (meddled[TERMINATED], "revoked", "died")
    assert after[1] == "published"
    assert post.rows("depot", "SELECT deaths, failures FROM depot_trips WHERE id = ?", post.trip(TERMINATED)) == [(1, 0)]


def test_a_run_that_goes_on_though_it_is_marked_as_canceled_is_overtaken(ui: Webserver, post: Post, meddled: dict[str, str]):
    before, after = post.attempts(MARKED)
    assert before == (meddled[MARKED], "revoked", "died")
    assert after[1] == "published"
    overtaken = f"attempt 1 of trip {post.trip(MARKED)} was "  # taken over, or revoked: where it finds out is chance
    until(lambda: overtaken in ui.over(meddled[MARKED]).errors, "the old run finds that it was overtaken", SEEN_SECONDS)
    cancelled = ui.over(meddled[MARKED]).of_type("RunCanceledEvent")
    assert any("forcibly marked as canceled" in event["message"] for event in cancelled)


def test_a_cancelled_trip_does_not_depart_again(ui: Webserver, post: Post, meddled: dict[str, str]):
    ((run, _, _),) = post.attempts(CANCELLED)
    assert run == meddled[CANCELLED]
    told = post.rows("depot", "SELECT state, cancelled FROM depot_trips WHERE id = ?", post.trip(CANCELLED))
    assert told == [("cancelled", "sent by mistake")]


def test_dagsters_own_retry_of_a_failed_run_doubles_nothing(ui: Webserver, post: Post, meddled: dict[str, str]):
    def retry() -> str | None:
        return next((run["status"] for run in ui.runs() if run["tags"].get("dagster/root_run_id") == meddled[BROKEN]), None)

    until(lambda: retry() in OVER, "Dagster's own retry is over", SEEN_SECONDS)
    assert [outcome for _, outcome, _ in post.attempts(BROKEN)].count("published") == 1
    assert [letter for letter, _ in post.landed()].count(BROKEN) == 1


def test_every_letter_is_in_the_table_once_whatever_is_executed_again(ui: Webserver, post: Post, first: Run, meddled: dict[str, str]):
    bus(post, "redrive", "letters", "--state", "stranded", "--reason", "it was right after all")
    again = [ui.again(first.id, "ALL_STEPS"), ui.again(meddled[TERMINATED], "FROM_FAILURE")]
    for run in map(ui.over, again):
        assert (run.status, run.errors) == ("SUCCESS", "")
        assert "published by an earlier attempt" in run.seen("log")["note"]
    post.until_delivered()
    until(lambda: all(run["status"] in OVER for run in ui.runs()), "all runs are over", SEEN_SECONDS)
    assert post.landed() == [(letter, 1) for letter in sorted(post.sent)]
