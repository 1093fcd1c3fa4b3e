"""What commands print: data on stdout (JSON or a table), everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from datetime import date, datetime
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable: JSON on stdout, and nothing else there.")]
Module = Annotated[
    str | None,
    typer.Option("-m", "--module", metavar="MODULE", help="The module with `defs` and `ROUTES`. Default: BUS_MODULE, or the demo's."),
]
DEBUGGING: ContextVar[bool] = ContextVar("DEBUGGING", default=False)
"""Whether the command was given ``--debug``."""
PIPE_WIDTH = 240
"""Columns of a table that nobody's terminal limits: lines stay whole for grep."""


def notice(text: str) -> None:
    """A line for the person, on stderr."""
    print(plain(text, lines=True), file=sys.stderr, flush=True)


def say(text: str = "") -> None:
    """A line of the answer, on stdout."""
    print(plain(text, lines=True))


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=_plain_value))


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = (), empty: str = "none") -> None:
    """Rows as a table; ``numbers`` are the columns set to the right. None shows as nothing."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in header:
        right = name in numbers
        table.add_column(name, justify="right" if right else "left", no_wrap=right or name == "trip", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell_text(cell)) for cell in row))
    if not table.row_count:
        notice(empty)
        return
    console().print(table)


def print_coloured(text: str, style: str) -> None:
    from rich.text import Text

    console().print(Text(plain(text), style), soft_wrap=True)


def console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if is_terminal else PIPE_WIDTH)


def cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return plain(str(value))


def plain(text: str, *, lines: bool = False) -> str:
    """``text`` without control characters: data from outside must not steer the terminal. ``lines``: line breaks may stay."""
    return "".join(c if c.isprintable() or (lines and c in "\n\t") else c.encode("unicode_escape").decode() for c in text)


def _plain_value(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.isoformat() if isinstance(value, date) else str(value)
