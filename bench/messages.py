"""Messages that wait on a queue become rows in Postgres: through a route, and by the loops that people would write instead.

Run by :mod:`bench.worker`, each contender in a process of its own, on a queue that was filled before the clock starts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
from botocore.config import Config

from bus_assets import Contract, DropOff, Field, Json, Queue, Route, Table

THREADS, BATCH = 4, 5_000
CURRENCIES = ("EUR", "USD", "GBP")
ORDER = Contract(
    (
        Field("order_id", required=True, pattern=r"^O-\d{8}$"),
        Field("customer_id", "integer", required=True, minimum=1),
        Field("amount", "decimal(12,2)", required=True, minimum="0"),
        Field("currency", required=True, allowed=CURRENCIES),
        Field("ordered_at", "timestamptz", required=True),
    )
)
TABLE = """order_id text NOT NULL, customer_id bigint NOT NULL, amount numeric(12,2) NOT NULL, currency text NOT NULL,
ordered_at timestamptz NOT NULL"""


def body(number: int) -> str:
    said = {"order_id": f"O-{number:08d}", "customer_id": number % 997 + 1, "amount": f"{number % 10_000}.50"}
    return json.dumps({**said, "currency": CURRENCIES[number % 3], "ordered_at": "2026-01-02T03:04:05Z"})


def sqs(endpoint_url: str) -> Any:
    config = Config(max_pool_connections=2 * THREADS)
    return boto3.client("sqs", endpoint_url=endpoint_url, config=config)


def fill(endpoint_url: str, queue: str, messages: int) -> None:
    """Send them all, ten at a time on several threads."""
    client = sqs(endpoint_url)
    url = client.create_queue(QueueName=queue)["QueueUrl"]

    def send(start: int) -> None:
        entries = [{"Id": str(number), "MessageBody": body(number)} for number in range(start, min(start + 10, messages))]
        assert not client.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(send, range(0, messages, 10)))


def _loop(endpoint_url: str, queue: str, messages: int, use: Callable[[list[Any]], None]) -> Callable[[], None]:
    """Threads that receive, ``use`` and delete until all were seen."""
    client = sqs(endpoint_url)
    url = client.get_queue_url(QueueName=queue)["QueueUrl"]
    left, lock = [messages], threading.Lock()

    def work(_: int) -> None:
        while left[0] > 0:
            found = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=0).get("Messages", [])
            if found:
                use(found)
                entries = [{"Id": str(at), "ReceiptHandle": one["ReceiptHandle"]} for at, one in enumerate(found)]
                client.delete_message_batch(QueueUrl=url, Entries=entries)
            with lock:
                left[0] -= len(found)

    def run() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))

    return run


def bare(endpoint_url: str, queue: str, messages: int) -> Callable[[], None]:
    """Receives and deletes, and does nothing else."""
    return _loop(endpoint_url, queue, messages, lambda found: None)


def by_hand(endpoint_url: str, queue: str, messages: int, url: str, table: str) -> Callable[[], None]:
    """The consumer that people write: a row per message, committed before the delete; no checks, duplicates as they come."""
    import sqlalchemy as sa

    engine = sa.create_engine(url, pool_size=THREADS)
    insert = sa.text(f"INSERT INTO {table} VALUES (:order_id, :customer_id, :amount, :currency, :ordered_at)")
    for _ in range(THREADS):
        engine.connect().close()

    def use(found: list[Any]) -> None:
        for one in found:
            with engine.begin() as connection:
                connection.execute(insert, json.loads(one["Body"]))

    return _loop(endpoint_url, queue, messages, use)


def route(queue: str, table: str) -> Route:
    return Route(
        name="orders",
        triggers=(Queue(queue, Json(ORDER), batch=BATCH, max_in_flight=2),),
        stops=(DropOff("dropped", Table("warehouse", table), of="messages"),),
    )


def product(endpoint_url: str, queue: str, messages: int, url: str, table: str, home: str) -> Callable[[], Any]:
    """The dispatcher and the route's Dagster job in one process, depot in Postgres, contract, gates and receipts on.

    Until every message is delivered. Warm: a first message has been driven before the clock starts.
    """
    from pathlib import Path

    from dagster import DagsterInstance

    from bus_assets import build_definitions
    from bus_assets.build.dispatching import policy_of, protocol
    from bus_assets.drive import TRIP_TAG, Bus
    from resources.database import Database
    from resources.depot.resource import DepotResource
    from resources.queue import SqsQueue
    from resources.queue_seam import Outgoing
    from resources.staging import StagingArea
    from sensors.dispatch import tick

    Path(home).mkdir(parents=True, exist_ok=True)
    made = route(queue, table)
    waiting, warm = (
        SqsQueue(name=queue, endpoint_url=endpoint_url, threads=THREADS),
        SqsQueue(name=f"{queue}-warm", endpoint_url=endpoint_url),
    )
    systems = {queue: waiting, "warehouse": Database(url=url)}
    depot, staging = DepotResource(url=url), StagingArea(url=f"{home}/staging")
    defs = build_definitions((made,), systems, depot=depot, staging=staging)
    job, instance = defs.resolve_job_def("orders"), DagsterInstance.local_temp(home)
    bus = Bus(depot.depot(), staging.open(), systems)
    trigger = made.queue
    assert trigger is not None
    above, policy = protocol(bus, made, trigger, instance), policy_of(made, trigger)

    def until(queue: Any, delivered: int) -> None:
        while bus.depot.inbox.counts("orders").by_state["delivered"] < delivered:
            for departure in tick(policy, bus.depot.inbox, queue, above, poll_seconds=1).departures:
                job.execute_in_process(instance=instance, tags={TRIP_TAG.format(route="orders"): departure.trip})

    warm.send([Outgoing(body(0))])
    until(warm, 1)
    return lambda: until(waiting, messages + 1)
