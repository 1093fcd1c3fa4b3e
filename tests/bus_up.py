"""A ``bus up`` of one's own, started and ended as a person does it, and seen from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import free_port
from tests.webserver import Webserver, outside_environment, until

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = "main_street.definitions"
READY_SECONDS = 90


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
        return self.printed.read_text(errors="replace")

    def pids(self, name: str) -> list[int]:
        """All process ids that ``name`` has had, the newest last."""
        return [int(pid) for pid in re.findall(rf"\| {name} ready.*\(pid (\d+)\)", self.text)]

    @property
    def server(self) -> Webserver:
        return Webserver(f"http://127.0.0.1:{self.port}", self.environment["BUS_MODULE"], self.home, self.home / "up")


@contextmanager
def up(
    home: Path,
    *,
    port: int | None = None,
    cloud_port: int | None = None,
    printed: Path | None = None,
    module: str = MODULE,
    more: Mapping[str, str] | None = None,
) -> Iterator[Up]:
    """Killed at the end, and its processes with it. ``more`` of the environment: with AWS_ENDPOINT_URL the town brings no cloud along."""
    port, cloud_port, printed = port or free_port(), cloud_port or free_port(), printed or home / "printed"
    outside = outside_environment(REPOSITORY, REPOSITORY / "tests" / "acceptance" / "town")
    environment = {name: value for name, value in outside.items() if name != "AWS_ENDPOINT_URL"}
    environment |= {"BUS_HOME": str(home), "BUS_MODULE": module, **(more or {})}
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
