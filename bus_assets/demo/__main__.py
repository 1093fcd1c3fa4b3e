"""``python -m bus_assets.demo setup|drive|serve|ui``: the demo world, and the route ``flights`` in it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bus_assets.demo.airports_service import running, serve
from bus_assets.demo.world import set_up
from bus_assets.settings import settings
from resources.errors import BusError

UI_HOST, UI_PORT = "127.0.0.1", 3000
END_SECONDS = 20


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bus_assets.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make the legacy files, feed and database below BUS_HOME")
    commands.add_parser("serve", help="set up, then answer as the airports service until interrupted")
    drive = commands.add_parser("drive", help="set up, serve, drive the route once and print its account")
    drive.add_argument("--month", help="'01' to '12'; default: all")
    ui = commands.add_parser("ui", help="set up, serve, and open the Dagster UI's web server")
    ui.add_argument("--port", type=int, default=UI_PORT)
    given = parser.parse_args(arguments)
    work: dict[str, Callable[[], int]] = {
        "setup": lambda: 0,
        "serve": _serve,
        "drive": lambda: _drive(given.month),
        "ui": lambda: _ui(given.port),
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


def _drive(month: str | None) -> int:
    with running(settings().airports_url):
        chosen = ["--set", f"month={month}"] if month else []
        code = subprocess.call([sys.executable, "-m", "bus_assets.cli", "drive", "flights", "--recount", *chosen])
    if code == 0:
        print(f"\nThe lineage, the checks and every figure in the UI: `make ui`, then http://{UI_HOST}:{UI_PORT}")
    return code


def _ui(port: int) -> int:
    """Dagster's web server and daemon in a process group of their own: ending the parent alone would leave its children."""
    home = _dagster_home()
    command = [sys.executable, "-m", "dagster", "dev", "-m", settings().module, "-h", UI_HOST, "-p", str(port)]
    with running(settings().airports_url):
        print(f"demo: the UI will be at http://{UI_HOST}:{port} in some seconds; Ctrl-C ends it", file=sys.stderr)
        started = subprocess.Popen(command, env=os.environ | {"DAGSTER_HOME": str(home)}, start_new_session=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            return started.wait()
        finally:
            _end(started)


def _dagster_home() -> Path:
    """DAGSTER_HOME with a dagster.yaml: the project's own, if there is none yet."""
    home = settings().dagster_home
    home.mkdir(parents=True, exist_ok=True)
    ours = Path(__file__).resolve().parents[2] / "dagster.yaml"
    if ours.is_file() and not (home / "dagster.yaml").exists():
        shutil.copyfile(ours, home / "dagster.yaml")
    return home


def _end(started: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(started.pid, sign)
            started.wait(END_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())
