"""``python -m bus_assets.demo drive|archive|up|setup|serve``: the demo world, and the routes in it."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from bus_assets.demo.airports_service import running, serve
from bus_assets.demo.events import BUCKET, LEAST_MONTHS, ROUTE, bucket, on_stdout, prepare, tell_story
from bus_assets.demo.world import MONTHS, set_up
from bus_assets.settings import settings
from bus_assets.up.town import CLOUD_PORT, HOST, UI_PORT, Plan, Town
from bus_assets.up.town import running as town_running
from resources.errors import BusError, Misconfigured

WORKERS = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bus_assets.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make the legacy files, feed and database below BUS_HOME")
    commands.add_parser("serve", help="set up, then answer as the airports service until interrupted")
    drive = commands.add_parser("drive", help="start everything, let a year of files land, print the account, end everything")
    choices = range(LEAST_MONTHS, len(MONTHS) + 1)
    drive.add_argument("--months", type=int, default=len(MONTHS), choices=choices, help="how many of the year's first; default: all")
    archive = commands.add_parser("archive", help="drive the route flights_archive once, without messages, and print its account")
    archive.add_argument("--month", help="'01' to '12'; default: all")
    up = commands.add_parser("up", help="start everything with the demo's systems beside it, until Ctrl-C")
    up.add_argument("--port", type=int, default=UI_PORT)
    up.add_argument("--workers", type=int, default=WORKERS, help="0: a new process for each run")
    given = parser.parse_args(arguments)
    work: dict[str, Callable[[], int]] = {
        "setup": lambda: 0,
        "serve": _serve,
        "drive": lambda: _drive(given.months),
        "archive": lambda: _archive(given.month),
        "up": lambda: _up(given.port, given.workers),
    }
    try:
        set_up(settings().home)
        return work[given.command]()
    except BusError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _serve() -> int:
    print(f"demo: airports at {settings().airports_url}/airports; Ctrl-C ends it", file=sys.stderr)
    serve(settings().airports_url)
    return 0


def _archive(month: str | None) -> int:
    with running(settings().airports_url):
        chosen = ["--set", f"month={month}"] if month else []
        return _bus("drive", "flights_archive", "--recount", *chosen)


def _drive(months: int) -> int:
    """The story, with everything that one machine needs started for it and ended afterwards."""
    with _town(_free(UI_PORT), _free(CLOUD_PORT), WORKERS, _quiet) as town:
        on_stdout(f"demo: everything is up: queue, bucket, web server, daemon, {WORKERS} warm workers; their log is {town.log}")
        runs = tell_story(settings().home / "demo" / "landing", _redrive, on_stdout, months)
        code = _bus("account", ROUTE)
        print("\nruns:", *runs, sep="\n  ")
    print(f"\nThe lineage, the checks and every figure in the UI: `make up`, then http://{HOST}:{UI_PORT}")
    return code


def _redrive() -> None:
    if _bus("redrive", ROUTE, "--from-dead-letters", "--reason", "the consumer is mended"):
        raise Misconfigured("the dead letters could not be redriven, see above")


def _up(port: int, workers: int) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _town(port, CLOUD_PORT, workers, on_stdout) as town:
        place = bucket()
        place.open()
        place.tell_of_objects()
        on_stdout(f"demo: the UI is at {town.url}; files that land in s3://{BUCKET} are driven; Ctrl-C ends it")
        town.wait()
    return 0


@contextmanager
def _town(port: int, cloud_port: int, workers: int, tell: Callable[[str], None]) -> Iterator[Town]:
    """What runs, the airports service beside it, and this process part of it."""
    with running(settings().airports_url) as airports_url:
        os.environ["BUS_AIRPORTS_URL"] = airports_url
        with town_running(Plan(workers=workers, port=port, cloud_port=cloud_port, on_cloud=prepare), tell) as town:
            os.environ.update(town.environment)
            yield town


def _free(port: int) -> int:
    """``port``, or any other if somebody has it: a demo must not fail because another one is up."""
    for wanted in (port, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, wanted))
            return probe.getsockname()[1]
    return port


def _quiet(line: str) -> None:
    """Nothing of the processes' lines: they are in the log."""


def _bus(*arguments: str) -> int:
    return subprocess.call([sys.executable, "-m", "bus_assets.cli", *arguments])


if __name__ == "__main__":
    sys.exit(main())
