"""BENCH_ROUTES routes with a queue of their own each, into one Postgres: what :mod:`bench.town` measures."""

import os

from bench.messages import ORDER
from bus_assets import DropOff, Json, Queue, Route, Table, build_definitions
from bus_assets.settings import settings
from resources.database import Database
from resources.queue import SqsQueue

ROUTES = tuple(
    Route(
        name=f"orders_{number:02}",
        triggers=(Queue(f"queue_{number:02}", Json(ORDER), batch=5_000, max_in_flight=2),),
        stops=(DropOff(f"dropped_{number:02}", Table("warehouse", f"orders_{number:02}", create=True), of="messages"),),
    )
    for number in range(int(os.environ["BENCH_ROUTES"]))
)
_here = settings()
_queues = {name: SqsQueue(name=name, region=_here.region, endpoint_url=_here.cloud_url) for route in ROUTES for name in route.queue.systems}
defs = build_definitions(ROUTES, {"warehouse": Database(url=_here.warehouse_url), **_queues})
