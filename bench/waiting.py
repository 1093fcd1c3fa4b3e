"""The benches of messages: how many a second, how soon, beside whom, and beside how many kept ones."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import sqlalchemy as sa

from bench import depot_size, town
from bench.messages import BATCH, TABLE, THREADS, fill, sqs
from bench.results import keep, machine, ratios, table, verdict
from bench.worker import Measured, measured
from tests.emulators import ministack
from tests.servers import fresh_database, postgres_server

MESSAGES = 10_000
TOWN = "`bus up`"
BARE, BY_HAND, ONE, TWO = "a bare loop", "by hand", "the product, 1 worker", "the product, 2 workers"
BARE_LIMIT, WORKERS_LIMIT, FLAT_LIMIT = 0.7, 1.7, 3.0
TRIPS, MESSAGES_A_TRIP = 24, 500
WARM_P50, WARM_P95, COLD_P50 = 1.5, 6.0, 6.0
ROUTES, WATCHED_SECONDS = 20, 40
GAP_LIMIT, ANSWER_LIMIT = 6.0, 1.0


def messages(rounds: int, _rows: int) -> None:
    """Messages that wait on a queue, into Postgres: beside a bare loop, and beside a consumer written by hand."""
    load, took = os.getloadavg()[0], defaultdict[str, list[Measured]](list)
    rows: dict[str, str] = {}
    with ministack() as cloud, postgres_server() as server:
        os.environ.update(cloud.environment)
        for number in range(rounds):
            for at, name in enumerate((BARE, BY_HAND, ONE, TWO)):
                with fresh_database(server) as url:
                    done, rows[name] = _delivered(cloud.url, url, f"bench_{number}_{at}", name)
                took[name].append(done)
    seconds = {name: [done.seconds for done in all_done] for name, all_done in took.items()}
    compared = []
    for ours, theirs, limit in ((ONE, BARE, BARE_LIMIT), (TWO, BARE, BARE_LIMIT), (ONE, BY_HAND, 1.0), (TWO, BY_HAND, 1.0)):
        best, middle = ratios(seconds[theirs], seconds[ours])
        compared.append((f"{ours} ÷ {theirs}", f"≥ {limit:g}", f"{best:.2f}", f"{middle:.2f}", verdict(middle, limit, at_least=True)))
    lines = [
        (
            name,
            f"{MESSAGES / min(of):,.0f}",
            f"{MESSAGES / median(of):,.0f}",
            f"{min(done.cpu_seconds for done in took[name]):.1f}",
            rows[name],
        )
        for name, of in seconds.items()
    ]
    with town.world(2, routes=1) as here:
        in_town = [town.waiting(here, MESSAGES) for _ in range(max(1, rounds // 2))]
    lines.append((TOWN, f"{MESSAGES / min(in_town):,.0f}", f"{MESSAGES / median(in_town):,.0f}", "", "as many"))
    said = f"""{MESSAGES:,} messages of 120 bytes wait on ministack, {rounds} rounds, contenders turn about, {THREADS} connections each.
The product is a dispatcher's process (the sensor's tick, called in a loop) beside worker processes that have driven a trip before; no
broker and no daemon. Trips of up to {BATCH:,} messages. Depot, Dagster's storage and target are in one Postgres; contract, gates and
receipts are on. The clock stops when all rows are in the table. `bus up` is everything: daemon, code server, web server, 2 Celery workers,
broker and queue on the same ministack, Dagster's storage in SQLite; its clock starts when the paused route is resumed.

ministack serves in one thread and looks through the whole queue at every call: it is most of a bare loop's time, and one of the two
cores. All the rest shares the other."""
    heads = ("contender", "messages/s, best", "median", "own CPU s", "rows, distinct keys")
    verdicts = table(("ratio of messages/s", "limit", "of the best", "median of rounds", ""), compared)
    keep("Messages", f"{machine(load)}\n\n{said}\n\n{verdicts}\n\n{table(heads, lines)}")


def _delivered(endpoint_url: str, url: str, queue: str, name: str) -> tuple[Measured, str]:
    engine = sa.create_engine(url)
    fill(endpoint_url, queue, MESSAGES)
    sqs(endpoint_url).create_queue(QueueName=f"{queue}-warm")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE orders ({TABLE})")
    values: dict[str, Any] = {"endpoint_url": endpoint_url, "queue": queue, "messages": MESSAGES}
    values |= {} if name == BARE else {"url": url, "table": "orders"}
    function = {BARE: "bare", BY_HAND: "by_hand"}.get(name, "product")
    with tempfile.TemporaryDirectory(prefix="bench-messages-") as home:
        values |= {"home": home, "workers": 1 if name == ONE else 2} if function == "product" else {}
        done = measured(f"bench.messages:{function}", **values)
    with engine.connect() as connection:
        rows, keys = connection.exec_driver_sql("SELECT count(*), count(DISTINCT order_id) FROM orders").one()
    engine.dispose()
    warm = values.get("workers", 0)  # each worker has driven the message with the first key before
    if name != BARE and (rows, keys) != (MESSAGES + warm, MESSAGES):
        raise RuntimeError(f"{name}: {rows} rows, {keys} keys")
    return done, "" if name == BARE else f"{rows - warm:,}, {keys:,}"


def workers(rounds: int, _rows: int) -> None:
    """Trips a second of two workers beside one."""
    load, took = os.getloadavg()[0], defaultdict[int, list[float]](list)
    with postgres_server() as server:
        for _ in range(rounds):
            for many in (1, 2):
                with fresh_database(server) as url, tempfile.TemporaryDirectory(prefix="bench-workers-") as home:
                    engine = sa.create_engine(url)
                    with engine.begin() as connection:
                        connection.exec_driver_sql(f"CREATE TABLE orders ({TABLE})")
                    engine.dispose()
                    values = {"url": url, "table": "orders", "home": home, "workers": many, "trips": TRIPS, "messages": MESSAGES_A_TRIP}
                    took[many].append(measured("bench.messages:trips", **values).seconds)
    best, middle = ratios(took[1], took[2])
    lines = [(many, f"{TRIPS / min(of):.2f}", f"{TRIPS / median(of):.2f}") for many, of in took.items()]
    said = (
        f"{TRIPS} trips of {MESSAGES_A_TRIP} messages, {rounds} rounds. Limit: two workers drive at least {WORKERS_LIMIT} times the trips"
    )
    said += f" of one, where the cores allow: {best:.2f} of the best, {middle:.2f} the median of rounds:"
    said += f" {verdict(middle, WORKERS_LIMIT, at_least=True)}. Postgres works on the same cores."
    keep("Workers", f"{machine(load)}\n\n{said}\n\n{table(('workers', 'trips/s, best', 'median'), lines)}")


def latency(rounds: int, _rows: int) -> None:
    """From a send to the committed row: everything up, the queue idle."""
    load, lines, judged = os.getloadavg()[0], [], []
    for name, many, limits in (("warm workers", 2, (WARM_P50, WARM_P95)), ("default launcher", 0, (COLD_P50, None))):
        with town.world(many, routes=1) as here:
            found = town.latency(here, 4 * rounds)
        for percent, limit in zip((50, 95), limits, strict=True):
            at = town.share(found["row seen"], percent)
            judged.append((name, f"p{percent}", f"{at:.2f}", f"≤ {limit:g}" if limit else "", verdict(at, limit) if limit else ""))
        lines.append((name, *(f"{median(of):.2f}" for of in found.values())))
        steps = list(found)
    said = f"""{4 * rounds} messages each, one at a time, at any moment of a poll; `bus up` with one route, depot and target in Postgres,
Dagster's storage in SQLite. The medians are of when a message came how far, in seconds since it was sent: received and kept in the depot
(poll), its trip departed (tick), claimed by a run (submit, broker, worker), published (the stops, and the commit)."""
    heads = table(("", "", "seconds", "limit", ""), judged)
    keep("Latency", f"{machine(load)}\n\n{said}\n\n{heads}\n\n{table(('', *steps), lines)}")


def neighbours(_rounds: int, _rows: int) -> None:
    """Twenty routes on one daemon: none waits for another's poll, and the UI answers."""
    load = os.getloadavg()[0]
    with town.world(2, ROUTES) as here:
        found = town.neighbours(here, WATCHED_SECONDS)
    lines = []
    for name, of, limit in (
        ("from a sensor's tick to its next", found.gaps, GAP_LIMIT),
        ("the UI's list of runs", found.answers, ANSWER_LIMIT),
        ("from a send to the messages kept", found.received, GAP_LIMIT),
        ("from a send to the row, 20 at once", found.rows, None),
    ):
        p50, p95 = town.share(of, 50), town.share(of, 95)
        lines.append((name, f"{p50:.2f}", f"{p95:.2f}", f"{max(of):.2f}", *((f"≤ {limit:g}", verdict(p95, limit)) if limit else ("", ""))))
    said = f"""`bus up` with {ROUTES} routes, a queue and a sensor each, 2 workers: {WATCHED_SECONDS} s of long polls of 10 s, then a
message to every queue at once. A sensor that had to wait for another's poll would stand still for 10 s. Twenty trips at once wait for
the workers. A tick that finds nothing costs code server and daemon {1000 * found.idle_tick_cpu:.0f} ms of CPU, their idling included."""
    heads = table(("seconds", "p50", "p95", "most", "limit of p95", ""), lines)
    keep("Twenty queues", f"{machine(load)}\n\n{said}\n\n{heads}")


def depot(_rounds: int, _rows: int) -> None:
    """The depot's inbox with a thousand and with a million kept messages."""
    load, parts = os.getloadavg()[0], []
    with postgres_server() as server, fresh_database(server) as small, fresh_database(server) as big:
        parts.append(("Postgres", _flat(dict(zip(depot_size.SIZES, (small, big), strict=True)).__getitem__)))
    with tempfile.TemporaryDirectory(prefix="bench-depot-") as folder:
        parts.append(("SQLite", _flat(lambda size: f"sqlite:///{folder}/{size}.db")))
    few, many = depot_size.SIZES
    said = f"Each step of the inbox beside {few:,} and {many:,} kept messages. Flat is: at most {FLAT_LIMIT:g} times."
    keep("Depot", f"{machine(load)}\n\n{said}\n\n" + "\n\n".join(f"{name}:\n\n{shown}" for name, shown in parts))


def _flat(url_of: Callable[[int], str]) -> str:
    found = depot_size.ratios(url_of)
    lines = [
        (name, f"{1000 * small:.1f}", f"{1000 * big:.1f}", f"{ratio:.2f}", verdict(ratio, FLAT_LIMIT))
        for name, (small, big, ratio) in found.items()
    ]
    small, big = depot_size.SIZES
    return table(("step", f"ms at {small:,}", f"ms at {big:,}", "ratio", ""), lines)
