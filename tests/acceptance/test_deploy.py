"""A changed route is deployed while its trips wait, and the processes that drive it are killed: each letter once, by one version."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus_assets.up import Plan, Town, running
from tests.bus_up import belonging
from tests.emulators import ministack
from tests.letters import CODE, MODULE, Post
from tests.servers import free_port
from tests.webserver import OVER, Webserver, until

pytest.importorskip("celery", reason="pip install 'bus-assets[demo]'")
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("deploy"), pytest.mark.timeout(300)]

WORKERS = 2
SEEN_SECONDS = 60


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    """The post office's code in a folder of its own, where it can be changed."""
    home = tmp_path_factory.mktemp("deploy")
    with ministack() as cloud:
        yield Post(home, cloud, Path(shutil.copytree(CODE, home / "code")))


@pytest.fixture(scope="module")
def town(post: Post) -> Iterator[Town]:
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - post.environment.keys():
            patch.delenv(name)
        for name, value in post.environment.items():
            patch.setenv(name, value)
        with running(Plan(workers=WORKERS, port=free_port(), end_seconds=3), tell=lambda _: None) as started:
            yield started
    assert belonging(post.home) == []


def test_a_route_that_is_deployed_while_trips_wait_lands_each_row_once_by_one_version(town: Town, post: Post):
    holding = [f"holding {number}" for number in range(WORKERS)]
    for letter in holding:
        meets(post, "hold", letter)
    waiting = send(post, "departed", 10)
    until(lambda: post.rows("depot", "SELECT 1 FROM depot_trips WHERE state = 'departed'"), "a trip waits for a worker", SEEN_SECONDS)
    bus(post, "pause", "letters", "--reason", "a deploy")
    waiting += send(post, "paused", 10)
    deploy(post, 2)
    town.restart("code")
    bus(post, "resume", "letters")
    for letter in holding:
        post.release("hold", letter)
    post.until_delivered()
    landed = dict(post.landed())
    assert {landed[letter] for letter in [*holding, *waiting]} == {1}  # the old workers took them all
    meets(post, "hold", "interrupted")
    town.restart("workers")
    later = send(post, "later", 10)
    post.until_delivered()
    assert not post.unlike_the_oracle()
    assert {version for letter, version in post.landed() if letter in ("interrupted", *later)} == {2}


def test_a_worker_that_is_killed_with_messages_aboard_loses_and_doubles_none(town: Town, post: Post):
    meets(post, "hold", "aboard of a killed one")
    ((pid,),) = post.rows("depot", "SELECT pid FROM depot_attempts WHERE ended_at IS NULL")
    assert parent(pid) == town.pids["workers"]
    os.kill(pid, signal.SIGKILL)
    post.until_delivered()
    assert not post.unlike_the_oracle()
    assert [kind for _, _, kind in post.attempts("aboard of a killed one")] == ["died", None]


def test_terminate_does_not_reach_a_worker_and_marking_its_run_as_canceled_has_the_trip_ride_again_beside_it(town: Town, post: Post):
    ui, letter = Webserver(town.url, MODULE, post.home, post.home / "up"), "marked as canceled"
    meets(post, "hold", letter)
    ((run, _, _),) = post.attempts(letter)
    ui.terminate(run)
    assert ui.status(run) not in OVER
    assert ui.terminate(run, "MARK_AS_CANCELED_IMMEDIATELY") == "TerminateRunSuccess"
    post.until_delivered()
    assert post.attempts(letter)[0] == (run, "revoked", "died")
    assert post.has_met("hold", letter)  # the old run is still there
    post.release("hold", letter)
    overtaken = f"attempt 1 of trip {post.trip(letter)} was "  # taken over, or revoked: where it finds out is chance
    until(lambda: overtaken in ui.over(run).errors, "the old run finds that it was overtaken", SEEN_SECONDS)
    assert not post.unlike_the_oracle()


def send(post: Post, name: str, count: int) -> list[str]:
    letters = [f"{name} {number}" for number in range(count)]
    post.send(*letters)
    return letters


def meets(post: Post, what: str, letter: str) -> None:
    """Send a letter alone, and wait until a run that sorts it has met this."""
    post.prepare(what, letter)
    post.send(letter)
    until(lambda: post.has_met(what, letter), f"the run of {letter} has met {what}", SEEN_SECONDS)


def deploy(post: Post, version: int) -> None:
    module = post.code / "post_office" / "definitions.py"
    text = module.read_text()
    assert "VERSION = 1\n" in text
    module.write_text(text.replace("VERSION = 1\n", f"VERSION = {version}\n"))


def bus(post: Post, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "bus_assets.cli", *arguments], cwd=post.home, env=post.environment, check=True, timeout=60)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
