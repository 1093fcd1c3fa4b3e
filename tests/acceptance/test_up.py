"""``bus up`` with real processes: runs start warm, what dies comes back, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.bus_up import READY_SECONDS, Up, belonging, up, wait_until_ready
from tests.servers import free_port
from tests.webserver import until

pytest.importorskip("celery", reason="pip install 'bus-assets[demo]'")
pytest.importorskip("ministack", reason="pip install 'bus-assets[demo]'")

END_SECONDS, SEEN_SECONDS = 15, 45
pytestmark = pytest.mark.xdist_group("town")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("town")


@pytest.fixture(scope="module")
def town(home: Path) -> Iterator[Up]:
    with up(home) as started:
        wait_until_ready(started)
        yield started


def test_a_run_is_driven_by_a_process_that_was_there_before(town: Up):
    run = town.server.over(town.server.launch("quick"))
    assert run.status == "SUCCESS", run.errors
    seen = town.server.ask("query($r: ID!) { runOrError(runId: $r) { ... on Run { tags { key value } } } }", r=run.id)["runOrError"]
    shown = run.seen("quickly")
    assert shown["parent"] == town.pids("workers")[-1]
    assert "dagster-celery/task_id" in {tag["key"] for tag in seen["tags"]}


def test_all_listen_on_loopback_only(town: Up):
    found = [socket for pid in belonging(town.home) for socket in psutil.Process(pid).net_connections("tcp")]
    listening = [socket.laddr.ip for socket in found if socket.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_a_run_whose_process_is_killed_is_seen_as_failed(town: Up):
    run = launch_slow(town)
    os.kill(int((town.home / "slow.pid").read_text()), signal.SIGKILL)
    until(lambda: town.server.status(run) == "FAILURE", "the run is seen as failed", SEEN_SECONDS)


def test_a_run_whose_process_is_killed_before_it_has_started_is_seen_as_failed(town: Up):
    """A click's or a schedule's, too, which nobody asks for again."""
    run = town.server.launch("killed")
    until(lambda: town.server.status(run) == "FAILURE", "the run is seen as failed", SEEN_SECONDS)
    events = str(town.server.over(run).events)
    assert "died before it had started" in events
    assert "RunStartEvent" not in events


def test_a_killed_worker_comes_back_and_its_run_is_seen_as_failed(town: Up):
    run = launch_slow(town)
    before = town.pids("workers")
    os.kill(before[-1], signal.SIGKILL)
    until(lambda: len(town.pids("workers")) > len(before), "the worker is ready again", SEEN_SECONDS)
    assert "workers died (killed by SIGKILL); it starts again in 1 s" in town.text
    assert not Path(f"/proc/{(town.home / 'slow.pid').read_text()}").exists()
    until(lambda: town.server.status(run) == "FAILURE", "the run is seen as failed", SEEN_SECONDS)
    assert town.server.over(town.server.launch("quick")).status == "SUCCESS"


def test_a_task_that_comes_again_is_ignored(town: Up):
    """As after a redeploy, or a broker that delivers twice: the run is over, and stays as it ended."""
    run = town.server.over(town.server.launch("quick"))
    again = (
        "import sys; from dagster import DagsterInstance; from dagster._core.launcher import LaunchRunContext\n"
        "with DagsterInstance.get() as instance:\n"
        "    run = instance.get_run_by_id(sys.argv[1])\n"
        "    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))\n"
    )
    environment = {**town.environment, **of_process(town.pids("daemon")[-1])}
    subprocess.run([sys.executable, "-c", again, run.id], env=environment, check=True, timeout=60)
    ignored = "Ignoring a run worker that started after the run had already finished"
    until(lambda: ignored in str(town.server.over(run.id).events), "the second delivery is ignored", SEEN_SECONDS)
    later = town.server.over(run.id)
    assert (later.status, later.materialised) == ("SUCCESS", ["quickly"])


def test_a_second_one_says_who_is_there(town: Up, tmp_path: Path):
    with up(town.home, port=free_port(), cloud_port=free_port(), printed=tmp_path / "same home") as second:
        assert second.popen.wait(30) == 1
        assert f"`bus up` runs here already (pid {town.popen.pid})" in second.text
    with up(tmp_path, port=town.port, cloud_port=free_port()) as third:
        assert third.popen.wait(30) == 1
        assert f"port {town.port}, which the UI needs, cannot be had" in third.text


def test_sigterm_ends_all_within_seconds(town: Up):
    assert len(belonging(town.home)) > 6
    town.popen.send_signal(signal.SIGTERM)
    assert town.popen.wait(END_SECONDS) == 130
    assert belonging(town.home) == []
    assert "does not end within" not in town.text


def test_nothing_outlives_a_killed_one(home: Path):
    with up(home, printed=home / "again") as again:
        wait_until_ready(again)
        again.popen.kill()
        again.popen.wait()
        until(lambda: belonging(home) == [], "no process is left", 5)


@pytest.mark.long
def test_what_cannot_work_ends_all_and_says_why(tmp_path: Path):
    with up(tmp_path, module="no_such_street") as started:
        assert started.popen.wait(READY_SECONDS) == 1
        assert "ended before it was ready" in started.text
        assert "no_such_street" in started.text
        assert belonging(tmp_path) == []


def launch_slow(town: Up) -> str:
    (town.home / "slow.pid").unlink(missing_ok=True)
    run = town.server.launch("slow")
    until((town.home / "slow.pid").exists, "the slow run drives", SEEN_SECONDS)
    time.sleep(0.2)
    return run


def of_process(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)
