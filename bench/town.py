"""A whole town (``bus up``: cloud, code server, web server, daemon, workers) from outside: messages are sent, rows are waited for.

Depot and target in Postgres, Dagster's own storage as ``bus up`` makes it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.messages import TABLE, body, fill, sqs
from bus_assets.up import Plan, Town, running
from resources.depot.store import Depot
from tests.servers import free_port, fresh_database, postgres_server

WAIT_SECONDS = 120
LOOK_SECONDS = 0.01
_TICKS = """query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor { sensorState {
  ticks(limit: 30) { timestamp endTimestamp status } } } } }"""
_RUNS = "{ runsOrError(limit: 25) { ... on Runs { results { runId status jobName startTime } } } }"
_SPLIT = """
SELECT m.received_at, t.departed_at, a.claimed_at, p.at
FROM depot_messages m JOIN depot_trips t ON t.id = m.trip JOIN depot_attempts a ON a.trip = t.id
JOIN depot_publications p ON p.trip = t.id
WHERE m.id = (SELECT max(id) FROM depot_messages WHERE route = :route)
"""


@dataclass(frozen=True)
class World:
    routes: int
    town: Town
    engine: sa.Engine
    sqs: Any

    def send(self, route: int, number: int) -> None:
        url = self.sqs.get_queue_url(QueueName=f"queue_{route:02}")["QueueUrl"]
        self.sqs.send_message(QueueUrl=url, MessageBody=body(number))

    def rows(self, route: int) -> int:
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(f"SELECT count(*) FROM orders_{route:02}").scalar_one()

    def wait(self, route: int, rows: int) -> float:
        """When so many rows were there."""
        return self.wait_for_all({route: rows})[route]

    def wait_for_all(self, rows: dict[int, int]) -> dict[int, float]:
        """When so many rows of each route were there; looked for by one thread, which leaves the machine to what is measured."""
        counts = " UNION ALL ".join(f"SELECT {route}, count(*) FROM orders_{route:02}" for route in rows)
        until, found = time.monotonic() + WAIT_SECONDS, dict[int, float]()
        while True:
            with self.engine.connect() as connection:
                there = connection.exec_driver_sql(counts).all()
            found |= {route: time.time() for route, many in there if many >= rows[route] and route not in found}
            if len(found) == len(rows):
                return found
            if time.monotonic() > until:
                raise RuntimeError(f"{sorted(rows.keys() - found)} lack rows; the last lines: {self.town.log.read_text()[-3000:]}")
            time.sleep(LOOK_SECONDS * len(rows))

    def steps(self, route: int) -> dict[str, float]:
        """When the newest message of the route came how far, by the depot's clock."""
        names = ("received", "departed", "claimed", "published")
        with self.engine.connect() as connection:
            for _ in range(100):
                if found := connection.execute(sa.text(_SPLIT), {"route": f"orders_{route:02}"}).one_or_none():
                    return {name: at.timestamp() for name, at in zip(names, found, strict=True)}
                connection.rollback()
                time.sleep(0.05)
        raise RuntimeError("the depot does not know of the publication")

    def ticks(self, route: int, since: float) -> list[tuple[float, float]]:
        """Start and end of the sensor's ended ticks, oldest first."""
        selector = {"repositoryLocationName": "bench.town_routes", "repositoryName": "__repository__"}
        found = self.ask(_TICKS, s={**selector, "sensorName": f"orders_{route:02}_queue"})["sensorOrError"]["sensorState"]["ticks"]
        return sorted((t["timestamp"], t["endTimestamp"]) for t in found if t["endTimestamp"] and t["timestamp"] >= since)

    def cpu_seconds(self) -> float:
        """Of code server and daemon so far."""
        used = 0
        for name in ("code", "daemon"):
            fields = Path(f"/proc/{self.town.pids[name]}/stat").read_text().rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
        return used / os.sysconf("SC_CLK_TCK")

    def ask(self, query: str, **variables: Any) -> Any:
        said = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.town.url}/graphql", said, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]


@contextmanager
def world(workers: int, routes: int) -> Iterator[World]:
    """A town with so many workers (0: the default launcher) and routes with a queue each; at the end no process of it is left."""
    with postgres_server() as server, fresh_database(server) as url, tempfile.TemporaryDirectory(prefix="bench-town-") as home:
        kept = dict(os.environ)
        os.environ.pop("AWS_ENDPOINT_URL", None)  # the town brings a cloud along
        here = {"BUS_HOME": home, "BUS_MODULE": "bench.town_routes", "DAGSTER_HOME": f"{home}/dagster", "AWS_REGION": "eu-west-1"}
        os.environ.update(here | {"BUS_DEPOT_URL": url, "BUS_WAREHOUSE_URL": url, "BENCH_ROUTES": str(routes), "PYTHONPATH": os.getcwd()})
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            for route in range(routes):
                connection.exec_driver_sql(f"CREATE TABLE orders_{route:02} ({TABLE})")
        plan = Plan(workers=workers, port=free_port(), cloud_port=free_port())
        try:
            with running(plan, tell=lambda line: None) as town:
                os.environ.update({name: town.environment[name] for name in town.environment if name.startswith("AWS_")})
                client = sqs(str(town.cloud_url))
                for route in range(routes):
                    client.create_queue(QueueName=f"queue_{route:02}")
                yield World(routes, town, engine, client)
        finally:
            engine.dispose()
            os.environ.clear()
            os.environ.update(kept)


def latency(here: World, messages: int) -> dict[str, list[float]]:
    """Seconds from a send to a queue at rest until its row is committed, and to each step between; the first two are a warm-up."""
    found: dict[str, list[float]] = {}
    for number in range(messages + 2):
        time.sleep(random.uniform(1, 8))  # anywhere in a poll, or between two ticks
        sent = time.time()
        here.send(0, number)
        seen = here.wait(0, number + 1)
        if number > 1:
            for step, at in {**here.steps(0), "row seen": seen}.items():
                found.setdefault(step, []).append(at - sent)
    return found


def waiting(here: World, messages: int) -> float:
    """Seconds from when a route with so many messages on its queue is resumed until all rows are there."""
    depot = Depot(os.environ["BUS_DEPOT_URL"])
    before = here.rows(0)
    depot.inbox.pause("orders_00", "until the queue is full")
    time.sleep(15)  # what a tick that has begun receives would not be waited for
    fill(str(here.town.cloud_url), "queue_00", messages)
    began = time.time()
    depot.inbox.resume("orders_00")
    took = here.wait(0, before + messages) - began
    depot.close()
    return took


@dataclass(frozen=True)
class Neighbours:
    """Many queues on one daemon. Seconds from the end of a sensor's tick to the start of its next one, of the UI's answers, and from
    a send to every queue at once to each message in the depot and to each row; the CPU time of code server and daemon for a tick that
    finds nothing."""

    gaps: list[float]
    answers: list[float]
    received: list[float]
    rows: list[float]
    idle_tick_cpu: float


def neighbours(here: World, seconds: float) -> Neighbours:
    before = {route: here.rows(route) for route in range(here.routes)}
    for route in before:  # every run of a route is warm
        here.send(route, 1)
    for route, rows in before.items():
        here.wait(route, rows + 1)
    time.sleep(10)
    began, used, answers = time.time(), here.cpu_seconds(), []
    while time.time() < began + seconds:
        asked = time.monotonic()
        here.ask(_RUNS)
        answers.append(time.monotonic() - asked)
        time.sleep(0.5)
    used, ticks = here.cpu_seconds() - used, [here.ticks(route, began) for route in before]
    gaps = [later[0] - earlier[1] for of_one in ticks for earlier, later in itertools.pairwise(of_one)]
    sent = time.time()
    for route in before:
        here.send(route, 2)
    rows = [at - sent for at in here.wait_for_all({route: rows + 2 for route, rows in before.items()}).values()]
    received = [here.steps(route)["received"] - sent for route in before]
    return Neighbours(gaps, answers, received, rows, used / max(1, sum(map(len, ticks))))


def share(values: list[float], percent: int) -> float:
    """The value that so many percent of them are not above."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
