"""``bus up`` and ``bus worker``."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Annotated

import typer

from bus_assets.settings import settings


def up(
    workers: Annotated[int, typer.Option(min=0, help="How many runs are driven at a time; 0: a new process for each run.")] = 2,
    port: Annotated[int, typer.Option(help="Of the UI, on 127.0.0.1.")] = 3000,
    cloud_port: Annotated[int, typer.Option(help="Of the embedded cloud, on 127.0.0.1.")] = 4566,
) -> None:
    """Start everything on this machine. Web server, daemon, warm workers and, without AWS, an embedded cloud; Ctrl-C ends it."""
    from bus_assets.up import Plan, running

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with running(Plan(workers=workers, port=port, cloud_port=cloud_port), tell=_on_terminal) as town:
            _say(f"up       | everything is ready: {town.url}; log {town.log}; Ctrl-C ends it")
            town.wait()
    except KeyboardInterrupt:
        _say("up       | ended")
        raise typer.Exit(130) from None


def worker(
    runs: Annotated[int, typer.Option(min=1, help="How many runs it drives at a time, each in a process of its own.")] = 2,
    name: Annotated[str, typer.Option(help="Tells workers on one machine apart.")] = "runs",
) -> None:
    """Be a worker. Drives what the daemon and the UI send by SQS, as DAGSTER_HOME/dagster.yaml says; SIGTERM ends it after its runs."""
    from bus_assets.up.command_line import worker_command

    command = worker_command(settings().run_queue, runs, name)
    os.execv(command[0], command)  # noqa: S606 - a worker is Celery's own process, whose signals reach it directly


def _on_terminal(line: str) -> None:
    print(line, flush=True)


def _say(line: str) -> None:
    with suppress(OSError):  # nobody may read it any more: that ends no town
        _on_terminal(line)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
