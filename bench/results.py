"""Figures as tables, printed and kept in ``RESULTS.md``, one section for each bench."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

KEPT = Path(__file__).parent / "RESULTS.md"
TITLE = "# Speed and memory, side by side\n\nMade by `python -m bench`; each section by the run that its first line tells of.\n\n"
LIBRARIES = ("dagster", "pyarrow", "duckdb", "psycopg", "dlt", "pandas", "lxml")


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """(best ÷ best, the median of the rounds' own ratios). Verdicts are of the second: who runs within a round meets the same minutes,
    while the best of two contenders may come from different ones, on machines whose speed changes by half within minutes.
    """
    return min(ours) / min(theirs), median(mine / other for mine, other in zip(ours, theirs, strict=False))


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    drawn = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([drawn[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *drawn[1:]])


def verdict(found: float, limit: float, *, at_least: bool = False) -> str:
    return "met" if (found >= limit if at_least else found <= limit) else "MISSED"


def machine(load_before: float) -> str:
    """The circumstances of a run, without a word about whose machine it is."""
    with_versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    load = f"load average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after (0 before would be a quiet machine)"
    return f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores, {load}. {with_versions}."


def keep(name: str, body: str) -> None:
    """Print a section and put it in the place of the one of that name."""
    print(f"\n## {name}\n\n{body}\n", flush=True)
    kept = KEPT.read_text() if KEPT.exists() else TITLE
    _, *sections = re.split(r"(?m)^(?=## )", kept)
    others = [section for section in sections if not section.startswith(f"## {name}\n")]
    KEPT.write_text(TITLE + "\n\n".join(sorted(section.rstrip() for section in [*others, f"## {name}\n\n{body}"])) + "\n")
