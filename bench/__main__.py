"""``python -m bench [WHAT …|all] [--rounds N] [--rows N]``: measure, print, keep in RESULTS.md. ``--help`` lists what there is."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

from bench.contest import Contest, orders_contest
from bench.data import catalog_file, orders_file
from bench.driven import forget, workshop
from bench.results import keep, machine, ratios, table, verdict
from bench.waiting import depot, latency, messages, neighbours, workers
from bench.worker import REPOSITORY, Measured, measured
from tests.servers import fresh_database, postgres_server

MEGABYTE = 1 << 20
MEMORY_LIMIT_MEGABYTES = 500
MEMORY_GROWTH_LIMIT = 1.2
ADDED_LIMIT_SECONDS = 1.0
HELP_LIMIT_SECONDS = 0.3
CATALOG_ROWS = 200_000


def orders(rounds: int, rows: int) -> None:
    """The file into Postgres: the product beside psql, dlt and pandas."""
    load = os.getloadavg()[0]
    with postgres_server() as server, fresh_database(server) as url:
        found = orders_contest(url, orders_file(rows), rounds)
    said = f"""{rows:,} rows x 8 columns, {rounds} rounds, contenders turn about.
The route is driven as a warm worker drives it in production: depot and Dagster's storage in Postgres, and a small trip before."""
    keep("Orders", f"{machine(load)}\n\n{said}\n\n{_orders_tables(found)}")


def _orders_tables(found: Contest) -> str:
    limits = [
        ("append", "psql append", 1.5, False),
        ("upsert, empty table", "psql upsert, empty table", 1.5, False),
        ("upsert, half is there", "psql upsert, half is there", 1.5, False),
        ("upsert, empty table", "dlt merge", 2.0, True),
        ("append", "pandas to_sql", 10.0, True),
    ]
    compared = []
    for ours, theirs, limit, faster in limits:
        mine, other = found.seconds[ours], found.seconds[theirs]
        best, middle = ratios(other, mine) if faster else ratios(mine, other)
        what = f"{'≥' if faster else '≤'} {limit:g}"
        judged = verdict(middle, limit, at_least=faster)
        compared.append((f"{theirs} ÷ {ours}" if faster else f"{ours} ÷ {theirs}", what, f"{best:.2f}", f"{middle:.2f}", judged))
    times = [
        (
            name,
            f"{min(took):.2f}",
            f"{median(took):.2f}",
            found.cpu(name),
            found.peak(name),
            f"{found.marks[name][0]:,}",
            found.marks[name][1],
        )
        for name, took in found.seconds.items()
    ]
    heads = ("contender", "best s", "median s", "own CPU s", "peak MB", "rows in the table", "checksum")
    same = "All targets hold the same rows." if found.all_the_same else "THE TARGETS DIFFER."
    return f"{table(('ratio', 'limit', 'of the best', 'median of rounds', ''), compared)}\n\n{table(heads, times)}\n\n{same}"


def xml(rounds: int, _rows: int) -> None:
    """The feed: rows per second beside a bare loop."""
    load, file = os.getloadavg()[0], str(catalog_file(CATALOG_ROWS))
    took: dict[str, list[Measured]] = defaultdict(list)
    for _ in range(rounds):
        for name in ("bare_loop", "bare_values", "reader", "picked_up"):
            home = workshop()
            took[name].append(measured(f"bench.catalog:{name}", file=file, **({"home": str(home)} if name == "picked_up" else {})))
            forget(home)
    seconds = {name: [done.seconds for done in all_done] for name, all_done in took.items()}
    lines = [
        (
            name,
            f"{CATALOG_ROWS / min(of):,.0f}",
            *(f"{ratios(seconds[bare], of)[1]:.2f}" for bare in ("bare_loop", "bare_values")),
            _said(took, name),
        )
        for name, of in seconds.items()
    ]
    heads = ("what", "rows/s, best", "÷ bare loop, median", "÷ bare loop with values, median", "rows, checksum")
    met = verdict(ratios(seconds["bare_values"], seconds["picked_up"])[1], 0.5, at_least=True)
    said = f"{CATALOG_ROWS:,} products, 7 fields each. Limit: the pick-up (gate and staging included) at least half of a bare loop"
    said += f" that has rows, so takes the values out of its elements: {met}. The bare loop without values counts elements and has no rows."
    keep("XML", f"{machine(load)}\n\n{said}\n\n{table(heads, lines)}")


def _said(took: dict[str, list[Measured]], name: str) -> str:
    return ", ".join(f"{value:,}" for value in took[name][-1].said.values())


def overhead(rounds: int, _rows: int) -> None:
    """A small trip beside Dagster's own empty assets."""
    load, home = os.getloadavg()[0], workshop()
    pairs = measured("bench.small_trip:trips", home=str(home), rounds=rounds).said["pairs"]
    forget(home)
    empty, trip = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    added = min(trip) - min(empty)
    lines = [("four empty assets", f"{min(empty):.2f}", f"{median(empty):.2f}"), ("the trip", f"{min(trip):.2f}", f"{median(trip):.2f}")]
    lines.append(("added", f"{added:.2f}", f"{median(mine - other for other, mine in pairs):.2f}"))
    said = "Four gates of 40 rules each and a drop-off into SQLite, warm, in process. Limit: the best trip adds under"
    said += f" {ADDED_LIMIT_SECONDS:g} s to the best run of Dagster's own four empty assets: {verdict(added, ADDED_LIMIT_SECONDS)}."
    keep("Small trip", f"{machine(load)}\n\n{said}\n\n{table(('', 'best s', 'median s'), lines)}")


def memory(_rounds: int, rows: int) -> None:
    """The driving process at ``rows`` and ten times as many."""
    load = os.getloadavg()[0]
    peaks = []
    with postgres_server() as server, fresh_database(server) as url:
        for many in (rows, 10 * rows):
            found = orders_contest(url, orders_file(many), 1, only=("append", "upsert, empty table"))
            peaks.append([max(done.peak_bytes for done in found.measured[name]) / MEGABYTE for name in found.measured])
    lines = [
        (name, *(f"{peak[at]:.0f}" for peak in peaks), f"{peaks[1][at] / peaks[0][at]:.2f}") for at, name in enumerate(("append", "upsert"))
    ]
    small, growth = max(peaks[0]), max(many / few for few, many in zip(*peaks, strict=True))
    said = "Peak resident memory of the driving process, imports included. Limits: under"
    said += f" {MEMORY_LIMIT_MEGABYTES} MB at {rows:,} rows: {verdict(small, MEMORY_LIMIT_MEGABYTES)};"
    said += f" at {10 * rows:,} at most {MEMORY_GROWTH_LIMIT} x that: {verdict(growth, MEMORY_GROWTH_LIMIT)}."
    heads = ("mode", f"MB at {rows:,}", f"MB at {10 * rows:,}", "growth")
    keep("Memory", f"{machine(load)}\n\n{said}\n\n{table(heads, lines)}")


def start(rounds: int, _rows: int) -> None:
    """``bus --help`` beside a Python that does nothing."""
    load = os.getloadavg()[0]
    commands = {"python -c pass": ["-c", "pass"], "bus --help": ["-c", "from bus_assets.cli import main; main()", "--help"]}
    took: dict[str, list[float]] = defaultdict(list)
    for _ in range(2 * rounds):
        for name, arguments in commands.items():
            took[name].append(_run([sys.executable, *arguments]))
    lines = [(name, f"{min(of):.3f}", f"{median(of):.3f}") for name, of in took.items()]
    met = verdict(min(took["bus --help"]), HELP_LIMIT_SECONDS)
    keep(
        "Start",
        f"{machine(load)}\n\nLimit: `bus --help` under {HELP_LIMIT_SECONDS} s: {met}.\n\n{table(('', 'best s', 'median s'), lines)}",
    )


def _run(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    return time.perf_counter() - started


BENCHES: dict[str, Callable[[int, int], None]] = {
    "orders": orders,
    "xml": xml,
    "overhead": overhead,
    "memory": memory,
    "start": start,
    "messages": messages,
    "workers": workers,
    "latency": latency,
    "neighbours": neighbours,
    "depot": depot,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*BENCHES, "all"], default=["all"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    for name in BENCHES if "all" in asked.what else asked.what:
        BENCHES[name](asked.rounds, asked.rows)


if __name__ == "__main__":
    main()
