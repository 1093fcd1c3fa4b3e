"""The commands under one roof, and what happens to their errors."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from bus_assets.cli import (
    depot_commands,
    dispatch_commands,
    doctor_command,
    drive_command,
    message_commands,
    quarantine_commands,
    route_commands,
    trip_commands,
    up_command,
)
from bus_assets.cli.output import DEBUGGING, notice
from resources.errors import BusError

app = typer.Typer(
    name="bus",
    help="Drive routes, look at trips and messages, keep the account, and see to what waits in quarantine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich and its Markdown parser would be a third of the start-up time
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def everywhere(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False) -> None:
    pass


app.command("routes")(route_commands.routes)
app.command("map")(route_commands.map_route)
app.command("drive")(drive_command.drive)
app.command("trips")(trip_commands.trips)
app.command("trip")(trip_commands.trip)
app.command("account")(trip_commands.account)
app.command("messages")(message_commands.messages)
app.command("message")(message_commands.message)
app.command("redrive")(message_commands.redrive)
app.command("discard")(message_commands.discard)
app.command("replay")(message_commands.replay)
app.command("dispatch")(dispatch_commands.dispatch)
app.command("pause")(dispatch_commands.pause)
app.command("resume")(dispatch_commands.resume)
app.command("cancel")(dispatch_commands.cancel)
app.command("purge")(depot_commands.purge)
app.command("doctor")(doctor_command.doctor)
app.command("up")(up_command.up)
app.command("worker")(up_command.worker)
app.add_typer(depot_commands.app, name="depot")
app.add_typer(quarantine_commands.app, name="quarantine")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0: done, 1: it failed or an account differs, 2: it was called wrongly, 130: interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    DEBUGGING.set(debug)
    try:
        with warnings.catch_warnings():
            if not debug and not sys.warnoptions:
                warnings.simplefilter("ignore")
            app([word for word in given if word != "--debug"], prog_name="bus")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except BusError as error:
        return _told(str(error), debug)
    except Exception as error:  # the outermost seam: told in one line, and whole with --debug
        return _told(f"unexpected {type(error).__name__}: {error}; --debug shows where, please report it", debug)
    return 0


def _told(said: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    notice(f"error: {said}")
    return 1
