"""How much slower the depot's inbox gets from a thousand to a million kept messages: ``python -m bench.depot_size [sqlite|postgres]``."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import sqlalchemy as sa

from resources.depot import schema
from resources.depot.mail import Arrival
from resources.depot.store import Depot
from tests.servers import fresh_database, postgres_server

SIZES = (1_000, 1_000_000)
ROUNDS = 15
BATCH = 100
LIVE = 300
"""Messages that wait all the time, beside those kept."""
ROUTE = "orders"

_NUMBERS = {
    "postgresql": "SELECT n FROM generate_series(1, :size) AS s(n)",
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < :size) SELECT n FROM s",
}
_KEPT = """
INSERT INTO depot_messages
    (route, key, generation, part, state, body, sent_at, subject, sequencer, attributes, trip, received_at, changed_at, duplicates,
     rows_rejected, to_dead_letters)
SELECT :route, 'kept-' || n, 0, '', CASE WHEN n % 1000 = 0 THEN 'stranded' ELSE 'delivered' END, :body, :then, 'subject-' || n % 5000,
    CAST(1000000 + n AS text), '{{}}', 'trip-' || n / 500, :then, :then, 0, 0, false
FROM ({numbers}) AS numbers
"""
_TRIPS = """
INSERT INTO depot_trips (id, route, trigger, parameters, created_at, state)
SELECT 'trip-' || n, :route, 'queue', '{{}}', :then, 'delivered' FROM ({numbers}) AS numbers
"""


def depot_size(url: str, size: int) -> dict[str, float]:
    """Median seconds of each step in a depot that keeps ``size`` messages; ``url`` leads to an empty database."""
    depot = Depot(url)
    depot.upgrade()
    _fill(depot, size)
    took: dict[str, list[float]] = defaultdict(list)
    depot.inbox.board(ROUTE, [Arrival(f"live-{number}", b"x" * 200) for number in range(LIVE)])
    for number in range(ROUNDS):
        for name, seconds in _round(depot, number).items():
            took[name].append(seconds)
    depot.close()
    return {name: median(seconds) for name, seconds in took.items()}


def ratios(url_of: Callable[[int], str]) -> dict[str, tuple[float, float, float]]:
    """Per step: seconds at the small size, at the big one, and the ratio. ``url_of(size)`` leads to an empty database."""
    small, big = (depot_size(url_of(size), size) for size in SIZES)
    return {name: (small[name], big[name], big[name] / small[name]) for name in small}


def _fill(depot: Depot, size: int) -> None:
    with depot._connections.writing() as connection:
        numbers = _NUMBERS[connection.dialect.name]
        then = "2026-01-01 00:00:00.000000" + ("+00" if connection.dialect.name == "postgresql" else "")
        values = {"route": ROUTE, "then": then}
        connection.execute(sa.text(_KEPT.format(numbers=numbers)), values | {"size": size, "body": b"x" * 200})
        connection.execute(sa.text(_TRIPS.format(numbers=numbers)), values | {"size": max(size // 500, 1)})
        connection.execute(sa.insert(schema.routes).values(route=ROUTE, received=size, delivered=size - size // 1000))
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")  # as autovacuum does; nobody does on SQLite


def _round(depot: Depot, number: int) -> dict[str, float]:
    inbox = depot.inbox
    arrivals = [Arrival(f"new-{number}-{n}", b"x" * 200, subject=f"subject-{n}", sequencer=f"9{number:06}") for n in range(BATCH)]
    known = [Arrival(f"kept-{n}", b"x") for n in range(1, BATCH)]
    steps: dict[str, Callable[[], object]] = {
        "board": lambda: inbox.board(ROUTE, arrivals),
        "board duplicates": lambda: inbox.board(ROUTE, known),
        "live": lambda: inbox.live(ROUTE),
        "form": lambda: inbox.form(ROUTE, batch=BATCH, max_wait_seconds=0, max_trips=1),
        "depart": lambda: inbox.depart(ROUTE, max_in_flight=1, limit=1),
        "underway": lambda: inbox.underway(ROUTE),
        "counts": lambda: inbox.counts(ROUTE),
        "dead letters": lambda: inbox.dead_letters(ROUTE, 10),
        "list waiting": lambda: inbox.messages(ROUTE, "waiting", limit=50),
    }
    took = {name: _seconds(step) for name, step in steps.items()}
    [one] = inbox.underway(ROUTE)
    took["messages of a trip"] = _seconds(lambda: inbox.messages_of(one.trip.id))
    took["retry"] = _seconds(lambda: inbox.retry(one.trip.id, 0, spent=None))
    inbox.depart(ROUTE, max_in_flight=1, limit=1)
    took["delivered"] = _seconds(lambda: inbox.delivered(one.trip.id, {}, {}))
    depot.finish_trip(one.trip.id, "delivered")
    return took


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _show(found: dict[str, tuple[float, float, float]]) -> None:
    for name, (small, big, ratio) in found.items():
        print(f"{name:20} {1000 * small:8.2f} ms {1000 * big:8.2f} ms   x {ratio:.2f}")


def main(kind: str) -> None:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            _show(ratios(lambda size: f"sqlite:///{folder}/{size}.db"))
        return
    with postgres_server() as server, fresh_database(server) as small, fresh_database(server) as big:
        _show(ratios({SIZES[0]: small, SIZES[1]: big}.__getitem__))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite")
