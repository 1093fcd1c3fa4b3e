"""``bus up`` with real processes: runs start warm, what dies comes back, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.webserver import Webserver, outside_environment, until

pytest.importorskip("celery", reason="pip install 'bus-assets[demo]'")
pytest.importorskip("ministack", reason="pip install 'bus-assets[demo]'")

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = "main_street.definitions"
READY_SECONDS, END_SECONDS, SEEN_SECONDS = 90, 15, 45
pytestmark = pytest.mark.xdist_group("town")


@dataclass(frozen=True)
class Up:
    """A ``bus up`` command, and what it has printed so far."""

    popen: subprocess.Popen[bytes]
    home: Path
    port: int
    printed: Path
    environment: Mapping[str, str]

    @property
    def text(self) -> str:
        return self.printed.read_text()

    def pids(self, name: str) -> list[int]:
        """All process ids that ``name`` has had, the newest last."""
        return [int(pid) for pid in re.findall(rf"\| {name} ready.*\(pid (\d+)\)", self.text)]

    @property
    def server(self) -> Webserver:
        return Webserver(f"http://127.0.0.1:{self.port}", MODULE, self.home, self.home / "up")


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
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in listening.splitlines() if any(f"pid={pid}," in line for pid in belonging(town.home))]
    assert len(ours) >= 3
    assert all(re.search(r"\s(\[::ffff:127\.0\.0\.1\]|127\.0\.0\.1):\d+\s", line) for line in ours), ours


def test_a_run_whose_process_is_killed_is_seen_as_failed(town: Up):
    run = launch_slow(town)
    os.kill(int((town.home / "slow.pid").read_text()), signal.SIGKILL)
    until(lambda: town.server.status(run) == "FAILURE", "the run is seen as failed", SEEN_SECONDS)


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


def test_nothing_outlives_a_killed_one(home: Path):
    with up(home, printed=home / "again") as again:
        wait_until_ready(again)
        again.popen.kill()
        again.popen.wait()
        until(lambda: belonging(home) == [], "no process is left", 5)


def test_what_cannot_work_ends_all_and_says_why(tmp_path: Path):
    with up(tmp_path, module="no_such_street") as started:
        assert started.popen.wait(READY_SECONDS) == 1
        assert "ended before it was ready" in started.text
        assert "no_such_street" in started.text
        assert belonging(tmp_path) == []


@contextmanager
def up(
    home: Path, *, port: int | None = None, cloud_port: int | None = None, printed: Path | None = None, module: str = MODULE
) -> Iterator[Up]:
    port, cloud_port, printed = port or free_port(), cloud_port or free_port(), printed or home / "printed"
    outside = outside_environment(REPOSITORY, REPOSITORY / "tests" / "acceptance" / "town")
    environment = {name: value for name, value in outside.items() if name != "AWS_ENDPOINT_URL"}
    environment |= {"BUS_HOME": str(home), "BUS_MODULE": module}
    command = [sys.executable, "-m", "bus_assets.cli", "up", "--port", str(port), "--cloud-port", str(cloud_port)]
    with printed.open("wb") as out:
        popen = subprocess.Popen(command, cwd=home, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield Up(popen, home, port, printed, environment)
    finally:
        popen.kill()
        popen.wait()


def wait_until_ready(started: Up) -> None:
    def settled() -> bool:
        return "everything is ready" in started.text or started.popen.poll() is not None

    until(settled, "the town is ready", READY_SECONDS)
    assert started.popen.poll() is None, started.text


def launch_slow(town: Up) -> str:
    (town.home / "slow.pid").unlink(missing_ok=True)
    run = town.server.launch("slow")
    until((town.home / "slow.pid").exists, "the slow run drives", SEEN_SECONDS)
    time.sleep(0.2)
    return run


def belonging(home: Path) -> list[int]:
    """Every live process whose environment names this BUS_HOME, except `bus up` itself and zombies."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"BUS_HOME={home}".encode() in environment and command and b"bus_assets.cli" not in command:
            found.append(int(process.name))
    return found


def of_process(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
