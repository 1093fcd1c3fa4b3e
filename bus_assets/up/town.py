"""What runs on one machine, and how to start it: the plan, and the town that comes of it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bus_assets.settings import Settings, settings
from bus_assets.up import cloud
from bus_assets.up.instance import warm_instance
from bus_assets.up.log import UP, Tell, TownLog
from bus_assets.up.supervisor import Process, Supervisor
from resources.errors import Misconfigured

HOST = "127.0.0.1"
UI_PORT, CLOUD_PORT = 3000, 4566
THREADS = 32
"""Of the daemon for sensors and schedules each, started as they are needed: the sensor of every queue has one to itself nearly all the
time, while it waits for a message. The code server has twice as many, as the UI asks it too."""

_KNOWN_WARNINGS = ("Task name 'execute_job' is already", "You're running the worker with superuser")
"""dagster-celery registers its task at each launch; what workers read is JSON, so root is no more dangerous than elsewhere."""

_LOCATIONS = """{ workspaceOrError { __typename ... on PythonError { message } ... on Workspace { locationEntries {
  name locationOrLoadError { __typename ... on PythonError { message } } } } } }"""


@dataclass(frozen=True)
class Plan:
    """What to start.

    ``workers``      how many runs are driven at a time; 0: none, the launcher of dagster.yaml starts a process for each run.
    ``others``       more processes, from the environment that all of them get; each starts once the cloud is ready.
    ``on_cloud``     called with that environment when the embedded cloud is ready, before anything starts that looks for queues in it.
    ``end_seconds``  how long a process may take to end before it is killed.
    """

    workers: int = 2
    port: int = UI_PORT
    cloud_port: int = CLOUD_PORT
    others: Callable[[Mapping[str, str]], tuple[Process, ...]] = lambda _: ()
    on_cloud: Callable[[Mapping[str, str]], None] = lambda _: None
    end_seconds: float = 10.0


@dataclass(frozen=True)
class Town:
    """What runs. ``environment`` is what a process must have to be part of it: put it into ``os.environ`` or give it to children.

    ``url``        the UI.
    ``cloud_url``  where AWS clients must go; None: AWS itself.
    """

    url: str
    cloud_url: str | None
    environment: Mapping[str, str]
    log: Path
    supervisor: Supervisor

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name: ``cloud``, ``code``, ``web``, ``daemon``, ``workers`` and the others."""
        return self.supervisor.pids

    def wait(self) -> None:
        """Block as long as the town is up. Raises :class:`~bus_assets.up.supervisor.Stopped` if a process cannot work."""
        self.supervisor.wait()

    def restart(self, name: str) -> None:
        """End one process and start it anew, as after a deploy; returns once it is ready."""
        self.supervisor.restart(name)


@contextmanager
def running(plan: Plan | None = None, tell: Tell = print) -> Iterator[Town]:
    """The town as :mod:`bus_assets.settings` says, up and ready, while the block runs; afterwards no process of it is left.

    ``tell`` gets every line of the log. Raises :class:`~resources.errors.Misconfigured` if it cannot be started: a port is taken,
    another town is up in the same BUS_HOME, a process ends at once.
    """
    plan = plan or Plan()
    with ExitStack() as stack:
        here = _located(settings(), plan)
        stack.enter_context(_only_one(here.home / "up" / "lock"))
        log = TownLog(here.home / "logs" / "up.log", tell)
        stack.callback(log.close)
        _check_ports(plan, embedded=_is_embedded())
        home, warm = warm_instance(here, THREADS, workers=plan.workers > 0)
        environment = _environment(here, home)
        supervisor = Supervisor(_processes(here, plan, environment, workers=warm and plan.workers > 0), log, plan.end_seconds)
        supervisor.start()
        stack.callback(supervisor.end)
        if _is_embedded():
            exported = " ".join(f"{name}={environment[name]}" for name in cloud.FOR_A_SHELL)
            log.line(UP, f"the cloud is reached from a shell by: export {exported}")
        yield Town(f"http://{HOST}:{plan.port}", here.cloud_url, environment, log.path, supervisor)


def _is_embedded() -> bool:
    here = settings()
    if here.cloud not in ("embedded", "aws"):
        raise Misconfigured(f"BUS_CLOUD is {here.cloud!r}; it must be 'embedded' or 'aws'")
    return here.cloud == "embedded" and not here.cloud_url


def _located(here: Settings, plan: Plan) -> Settings:
    return replace(here, cloud_url=f"http://{cloud.HOST}:{plan.cloud_port}") if _is_embedded() else here


def _environment(here: Settings, home: Path) -> dict[str, str]:
    """What every process gets. It is also the only way in which secrets reach them: none stands in an argument or a file."""
    given = dict(os.environ)
    if _is_embedded():
        assert here.cloud_url
        given = cloud.reachable(given, here.cloud_url, here.region)
    return given | {
        "BUS_HOME": str(here.home),
        "BUS_RESULTS_URL": here.results_url,
        "DAGSTER_HOME": str(home),
        "DAGSTER_GRPC_MAX_WORKERS": str(2 * THREADS),
        "NO_PROXY": ",".join(filter(None, (given.get("NO_PROXY"), HOST, "localhost"))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": ",".join(filter(None, (given.get("PYTHONWARNINGS"), *(f"ignore:{text}" for text in _KNOWN_WARNINGS)))),
    }


def _processes(here: Settings, plan: Plan, environment: Mapping[str, str], *, workers: bool) -> list[Process]:
    code_port = _free_port()
    workspace = _workspace(here, code_port)
    first = [_cloud(here, plan, environment)] if _is_embedded() else []
    after_cloud = tuple(process.name for process in first)
    url = f"http://{HOST}:{plan.port}"
    return [
        *first,
        Process(
            "code",
            _module("dagster", "api", "grpc", "-m", here.module, "-h", HOST, "-p", str(code_port), "--location-name", here.module),
            environment,
            says="Started Dagster code server",
            waits_for=after_cloud,
            may_be_cut=True,  # at any moment of a tick; what it received comes again
        ),
        *([_workers(here, plan.workers, environment, after_cloud)] if workers else []),
        Process(
            "web",
            _module("dagster_webserver", "-h", HOST, "-p", str(plan.port), "-w", str(workspace)),
            environment,
            ready=lambda: _loaded(url),
            serves=url,
            waits_for=("code",),
        ),
        Process(
            "daemon",
            _module("bus_assets.up.eager_daemon", "run", "-w", str(workspace)),
            environment,
            says="Instance is configured with the following daemons",
            waits_for=("code",),
            may_be_cut=True,  # it would wait for its sensors' long polls
        ),
        *(replace(process, waits_for=process.waits_for + after_cloud) for process in plan.others(environment)),
    ]


def _cloud(here: Settings, plan: Plan, environment: Mapping[str, str]) -> Process:
    made = cloud.embedded(plan.cloud_port, here.home / "cloud", environment, here.region)
    return replace(made, on_ready=lambda: plan.on_cloud(environment))


def _workers(here: Settings, runs: int, environment: Mapping[str, str], waits_for: tuple[str, ...]) -> Process:
    from bus_assets.up.command_line import worker_command

    return Process("workers", worker_command(here.run_queue, runs), environment, says="takes runs now", waits_for=waits_for)


def _workspace(here: Settings, code_port: int) -> Path:
    """One code server for web server and daemon: each would start its own otherwise, and load the routes again."""
    path = here.home / "up" / "workspace.yaml"
    location = {"host": HOST, "port": code_port, "location_name": here.module}
    path.write_text(json.dumps({"load_from": [{"grpc_server": location}]}))  # JSON is YAML
    return path


def _loaded(url: str) -> bool:
    """Whether the web server answers and has loaded the routes. Misconfigured if they cannot be loaded."""
    body = json.dumps({"query": _LOCATIONS}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310 - our own address
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            said = json.load(answer)["data"]["workspaceOrError"]
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
        return False
    found: list[Any] = [entry["locationOrLoadError"] for entry in said.get("locationEntries", ())]
    return bool(found) and all(one and one["__typename"] == "RepositoryLocation" for one in found)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock of this BUS_HOME; Misconfigured, with the holder's pid, if another town holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            file.seek(0)
            raise Misconfigured(
                f"`bus up` runs here already (pid {file.read().strip() or 'unknown'}); end that one, or set BUS_HOME to another folder",
                place=str(path.parent.parent),
            ) from taken
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _check_ports(plan: Plan, *, embedded: bool) -> None:
    wanted = {"the UI": (plan.port, "--port")} | ({"the embedded cloud": (plan.cloud_port, "--cloud-port")} if embedded else {})
    for what, (port, option) in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise Misconfigured(
                    f"port {port}, which {what} needs, cannot be had: {error.strerror}. Does another `bus up` run? End it, or choose "
                    f"another port with {option}",
                    place=f"{HOST}:{port}",
                ) from error


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return free.getsockname()[1]


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]
