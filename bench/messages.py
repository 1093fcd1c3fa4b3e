"""Messages that wait on a queue become rows in Postgres: through a route, and by the loops that people would write instead.

Run by :mod:`bench.worker`, each contender in a process of its own, on a queue that was filled before the clock starts.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import sqlalchemy as sa
from botocore.config import Config

from bus_assets import Contract, DropOff, Field, Json, Queue, Route, Table

THREADS, BATCH = 4, 5_000
LOOK_SECONDS = 0.02
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
        triggers=(Queue(queue, Json(ORDER), batch=BATCH, max_in_flight=4),),
        stops=(DropOff("dropped", Table("warehouse", table), of="messages"),),
    )


@dataclass(frozen=True)
class Place:
    """Where the product's processes find everything: strings only, as they start anew."""

    endpoint_url: str
    queue: str
    url: str
    table: str
    home: str

    def systems(self) -> dict[str, Any]:
        from resources.database import Database
        from resources.queue import SqsQueue

        # Half of the threads, as the product receives and deletes at the same time.
        return {
            self.queue: SqsQueue(name=self.queue, endpoint_url=self.endpoint_url, threads=THREADS // 2),
            "warehouse": Database(url=self.url),
        }

    def depot(self) -> Any:
        from resources.depot.resource import DepotResource

        return DepotResource(url=self.url)

    def staging(self) -> Any:
        from resources.staging import StagingArea

        return StagingArea(url=f"{self.home}/staging")

    def instance(self) -> Any:
        from bench.driven import on_postgres

        return on_postgres(self.url, Path(self.home))


def drive_trips(place: Place, trips: Any, done: Any) -> None:
    """A warm worker's process: drives the trips that it is told of until it is told None, each as a run of the route's Dagster job."""
    import logging

    from bus_assets import build_definitions
    from bus_assets.drive import TRIP_TAG

    logging.disable(logging.INFO)  # a run's events are kept in Dagster's storage; on a console they are for people
    defs = build_definitions((route(place.queue, place.table),), place.systems(), depot=place.depot(), staging=place.staging())
    job, instance = defs.resolve_job_def("orders"), place.instance()
    done.put("ready")
    while trip := trips.get():
        done.put(job.execute_in_process(instance=instance, tags={TRIP_TAG.format(route="orders"): trip}).success)


class Workers:
    """So many processes of :func:`drive_trips`; each has driven one trip before the clock starts."""

    def __init__(self, place: Place, many: int):
        spawned = multiprocessing.get_context("spawn")
        self.trips, self.done = spawned.Queue(), spawned.Queue()
        place.instance()
        self._all = [spawned.Process(target=drive_trips, args=(place, self.trips, self.done)) for _ in range(many)]
        for process in self._all:
            process.start()
            self.done.get()

    def end(self) -> float:
        """CPU seconds that they took in all, imports included."""
        for _ in self._all:
            self.trips.put(None)
        for process in self._all:
            process.join()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


def product(endpoint_url: str, queue: str, messages: int, url: str, table: str, home: str, workers: int) -> Callable[[], Any]:
    """A dispatcher's process, this one, and warm workers': what the daemon's code server and the Celery workers do, without the broker.

    Depot, Dagster's storage and the target in Postgres; contract, gates and receipts on. Until all rows are in the target.
    """
    from bus_assets.build.dispatching import policy_of, protocol
    from bus_assets.drive import Bus
    from resources.queue_seam import Outgoing
    from sensors.dispatch import tick

    Path(home).mkdir(parents=True, exist_ok=True)
    place, made = Place(endpoint_url, queue, url, table, home), route(queue, table)
    systems, trigger = place.systems(), made.queue
    assert trigger is not None
    bus = Bus(place.depot().depot(), place.staging().open(), systems)
    bus.depot.upgrade()
    driving = Workers(place, workers)
    inbox, policy, above = bus.depot.inbox, policy_of(made, trigger), protocol(bus, made, trigger, place.instance())
    is_over, gone = threading.Event(), [0]

    def dispatch(queue: Any) -> None:
        while not is_over.is_set():
            for departure in tick(policy, inbox, queue, above, poll_seconds=1).departures:
                driving.trips.put(departure.trip)
                gone[0] += departure.messages

    warm = systems[queue].model_copy(update={"name": f"{queue}-warm"})
    for number in range(workers):  # one after the other, so that each worker gets one
        warm.send([Outgoing(body(number))])
        for departure in tick(policy, inbox, warm, above, poll_seconds=5).departures:
            driving.trips.put(departure.trip)
    for _ in range(workers):
        driving.done.get()
    engine, dispatcher = sa.create_engine(url), threading.Thread(target=dispatch, args=(systems[queue],))

    def run() -> Callable[[], dict[str, float]]:
        dispatcher.start()
        while gone[0] < messages or _rows(engine, table) < messages + workers:  # counting is not for free: only when all are under way
            if not dispatcher.is_alive() or any(not driving.done.get() for _ in range(driving.done.qsize())):
                raise RuntimeError("a dispatcher or a trip failed: its own lines say why")
            time.sleep(LOOK_SECONDS)
        return end

    def end() -> dict[str, float]:
        is_over.set()
        dispatcher.join()
        return {"workers' cpu": driving.end()}

    return run


def trips(url: str, table: str, home: str, workers: int, trips: int, messages: int) -> Callable[[], Any]:
    """So many trips of so many messages each, all boarded before the clock starts, driven by warm workers."""
    from resources.depot.mail import Arrival

    Path(home).mkdir(parents=True, exist_ok=True)
    place = Place("http://127.0.0.1:1", "unused", url, table, home)
    depot = place.depot().depot()
    depot.upgrade()
    driving = Workers(place, workers)

    def departing(number: int, first: int) -> list[str]:
        arrivals = [Arrival(f"sqs:{at}", body(at).encode()) for at in range(first, first + number * messages)]
        depot.inbox.board("orders", arrivals)
        depot.inbox.form("orders", batch=messages, max_wait_seconds=0, max_trips=1000)
        return [one.trip for one in depot.inbox.depart("orders", max_in_flight=1000, limit=1000)]

    for trip in departing(workers, 0):
        driving.trips.put(trip)
    for _ in range(workers):
        driving.done.get()
    waiting = departing(trips, workers * messages)

    def run() -> Callable[[], dict[str, float]]:
        for trip in waiting:
            driving.trips.put(trip)
        for _ in waiting:
            driving.done.get()
        return lambda: {"workers' cpu": driving.end()}

    return run


def _rows(engine: sa.Engine, table: str) -> int:
    with engine.connect() as connection:
        return connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
