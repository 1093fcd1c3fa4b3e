"""The fourth part of the campaign: nobody is killed, but everything is there twice, by mistake.

Two real ``dagster-daemon`` on one storage, whose workspace loads the same module under two names: four times at once messages are taken
from one queue into one depot, and runs are started. Dagster complains of the second daemon and lets both go on.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from tests.bus_up import REPOSITORY
from tests.emulators import ministack
from tests.letters import MODULE, Post
from tests.servers import free_port
from tests.webserver import until

LOCATIONS = ("post office", "the same post office")
DAEMONS = ("first daemon", "second daemon")
START_SECONDS, END_SECONDS = 120, 30
LEAST_AT_ONCE, SENDINGS, TWICE_SHARE, SEND_SECONDS = 10, 40, 0.2, 0.5
ALIVE = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.NOT_STARTED]
TICKS, WARNS = "Checking for new runs for sensor: letters_queue", "Another SENSOR daemon is still sending heartbeats"
_COUNTS = {
    "trips": "SELECT count(*) FROM depot_trips",
    "trips whose run was asked for more than once": "SELECT count(*) FROM depot_trips WHERE launches > 1",
    "deliveries known as duplicates": "SELECT coalesce(sum(duplicates), 0) FROM depot_messages",
}


@dataclass
class Doubled:
    """What came of it: ``problems``, and how often what happened."""

    problems: list[str] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        counts = [f"{count:>7,} {what}" for what, count in self.told.items()]
        return "\n".join([*counts, "", f"{len(self.problems)} differences from the oracle", *(f"  {problem}" for problem in self.problems)])


def doubled(home: Path, messages: int, seed: int, seconds: float) -> Doubled:
    """Send so many letters, some twice, while both daemons are up; wait until all have arrived, ``seconds`` at most."""
    rng, found, at_once = random.Random(seed), Doubled(), max(LEAST_AT_ONCE, messages // SENDINGS)
    with ministack() as cloud:
        post = Post(home, cloud)
        with daemons(post) as instance:
            while len(post.sent) < messages:
                letters = [f"letter {len(post.sent) + number}" for number in range(min(at_once, messages - len(post.sent)))]
                again = [rng.choice(post.sent or letters) for _ in letters if rng.random() < TWICE_SHARE]
                post.send(*letters, *again)
                found.told["sent twice"] += len(again)
                time.sleep(SEND_SECONDS)
            with suppress(AssertionError):  # what is missing then is told below
                until(lambda: is_quiet(post, instance), "all is quiet", seconds)
            found.problems += wrong(post, instance)
            for name in DAEMONS:
                found.told[f"ticks of the {name}"] = log(post, name).count(TICKS)
                found.told["times that one complained of the other"] += log(post, name).count(WARNS)
            for record in instance.get_run_records():
                found.told[f"runs of location '{record.dagster_run.tags['dagster/code_location']}'"] += 1
                found.told[f"runs {record.dagster_run.status.value}"] += 1
        found.told["messages"] = len(post.sent)
        for what, sql in _COUNTS.items():
            found.told[what] = post.rows("depot", sql)[0][0]
    return found


def is_quiet(post: Post, instance: DagsterInstance) -> bool:
    if any(post.on_queue()) or post.states() != {"delivered": len(post.sent)}:
        return False
    return not instance.get_runs_count(RunsFilter(statuses=ALIVE))


def wrong(post: Post, instance: DagsterInstance) -> Iterator[str]:
    if any(post.on_queue()):
        yield f"(waiting, in flight) {post.on_queue()} are still on the queue"
    if post.states() != {"delivered": len(post.sent)}:
        yield f"{len(post.sent)} were sent, and the depot has {dict(post.states())}"
    if unlike := post.unlike_the_oracle():
        yield f"rows too many or too few: {dict(unlike.most_common(5))}"
    ticked = {state.origin.repository_origin.code_location_origin.location_name for state in instance.all_instigator_state()}
    if ticked != set(LOCATIONS):
        yield f"only {ticked} have a sensor that ticked"


@contextmanager
def daemons(post: Post) -> Iterator[DagsterInstance]:
    """Both, ticking, with a code server for each location; at the end all are gone, and their runs."""
    dagster_home, workspace = post.home / "dagster", post.home / "workspace.yaml"
    dagster_home.mkdir()
    (dagster_home / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
    ports = {name: free_port() for name in LOCATIONS}
    loaded = [{"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": name}} for name, port in ports.items()]
    workspace.write_text(yaml.safe_dump({"load_from": loaded}))
    with DagsterInstance.from_config(str(dagster_home)) as instance, ExitStack() as stack:  # it makes the tables: two at once would fail
        for name, port in ports.items():
            code = ("dagster", "api", "grpc", "-m", MODULE, "-h", "127.0.0.1", "-p", str(port), "--location-name", name)
            stack.enter_context(_process(post, name, *code))
        until(lambda: all("Started Dagster code server" in log(post, name) for name in LOCATIONS), "code servers are up", START_SECONDS)
        for name in DAEMONS:
            stack.enter_context(_process(post, name, "dagster._daemon", "run", "-w", str(workspace)))
        until(lambda: all(TICKS in log(post, name) for name in DAEMONS), "both daemons tick", START_SECONDS)
        yield instance


@contextmanager
def _process(post: Post, name: str, *module: str) -> Iterator[None]:
    environment = {**post.environment, "DAGSTER_HOME": str(post.home / "dagster")}
    with (post.home / f"{name}.log").open("wb") as out:
        command = [sys.executable, "-m", *module]
        process = subprocess.Popen(command, cwd=post.home, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(END_SECONDS)


def log(post: Post, name: str) -> str:
    return (post.home / f"{name}.log").read_text(errors="replace")
