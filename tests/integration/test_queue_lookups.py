"""A service is asked once for each message, and does not answer for all of them: who is held up by that, and who is not."""

from __future__ import annotations

import http.server
import json
import threading
from collections import Counter

import pytest

from bus_assets import Contract, DropOff, Endpoint, Field, Json, PickUp, Table
from resources.http import WebService
from sensors.judging import PATIENCE
from tests.queue_world import QueueWorld, events

NAMED = Contract((Field("id", "integer", required=True),))
LOOKED_UP = Contract((Field("order_id", required=True),))


class Service(http.server.ThreadingHTTPServer):
    """``/orders/N`` answers with that order; with 500 if N is in ``broken``, or if ``is_down``."""

    daemon_threads = True

    def __init__(self):
        self.broken: set[int] = set()
        self.is_down = False
        self.asked = Counter[int]()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_GET(self):
        number = int(self.path.rpartition("/")[2])
        self.server.asked[number] += 1
        broken = self.server.is_down or number in self.server.broken
        body = b"" if broken else json.dumps([{"order_id": f"O-{number}"}]).encode()
        self.send_response(500 if broken else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service():
    server = Service()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def a_world(root, service, *, fifo=False, **more):
    stops = (
        PickUp("looked_up", Endpoint("crm", "/orders/{message.id}"), LOOKED_UP),
        DropOff("log", Table("warehouse", "log", create=True), of="looked_up"),
    )
    crm = WebService(base_url=f"http://127.0.0.1:{service.server_port}", attempts=1, backoff_seconds=0.01)
    return QueueWorld(root, events(decode=Json(NAMED), stops=stops, **more), fifo=fifo, crm=crm)


def numbered(*numbers):
    return [{"id": number} for number in numbers]


@pytest.mark.parametrize("broken", [{4}, {0, 1, 5}, *(pytest.param(one, marks=pytest.mark.long) for one in ({0}, {7}))], ids=str)
def test_a_message_that_a_service_does_not_answer_for_holds_up_nobody_else(tmp_path, service, broken):
    world = a_world(tmp_path, service, attempts=1, dead_letters="dead")
    service.broken = broken
    world.send(*numbered(*range(8)))
    said = world.deliver(ticks=PATIENCE * (len(broken) + 1) + 12)
    assert world.logged() == [f"O-{number}" for number in range(8) if number not in broken]
    assert world.states() == {"delivered": 8 - len(broken), "aboard": len(broken)}
    assert not any("stranded" in one or "paused" in one for one in said)
    assert all(trip.failures == trip.deaths == 0 for trip in world.bus.depot.trips("events", limit=100))
    assert world.bus.depot.inbox.counts("events").failures_in_row == 0
    world.send(*numbered(8))
    world.deliver(ticks=3)
    assert "O-8" in world.logged()
    service.broken = set()
    world.deliver()
    assert world.logged() == [f"O-{number}" for number in range(9)]


def test_that_it_rides_without_the_others_is_nobodys_failure(tmp_path, service):
    """Else a few of them would pause the route."""
    world = a_world(tmp_path, service)
    service.broken = {1}
    world.send(*numbered(0, 1, 2))
    for _ in range(PATIENCE):
        (departure,) = world.tick().departures
        world.run(departure)
        world.tick()
        world.hurry()
    first, *parts = sorted(world.bus.depot.trips("events"), key=lambda trip: trip.created_at)
    assert (first.state, len(parts)) == ("split", 2)
    assert world.bus.depot.inbox.counts("events").failures_in_row == 0


def test_while_a_service_is_down_a_trip_stays_together(tmp_path, service):
    """Else an outage would leave a trip for each message behind."""
    world = a_world(tmp_path, service)
    service.is_down = True
    world.send(*numbered(*range(8)))
    world.deliver(ticks=PATIENCE + 5)
    (trip,) = world.bus.depot.trips("events")
    assert (trip.state, trip.launches > PATIENCE) == ("formed", True)
    assert max(service.asked.values()) <= trip.launches  # of the others one at a time was tried
    service.is_down = False
    world.deliver()
    assert len(world.logged()) == 8
    assert len(world.bus.depot.trips("events")) == 1


def test_behind_a_message_that_a_service_does_not_answer_for_its_group_waits_in_order(tmp_path, service):
    world = a_world(tmp_path, service, fifo=True)
    service.broken = {2}
    for number, group in ((1, "a"), (2, "a"), (3, "a"), (11, "b"), (12, "b")):
        world.send(*numbered(number), group=group)
    world.deliver(ticks=PATIENCE * 3 + 8)
    assert world.logged() == ["O-1", "O-11", "O-12"]
    assert world.states() == {"delivered": 3, "aboard": 1, "waiting": 1}
    service.broken = set()
    world.deliver()
    assert [row[0] for row in world.rows("log", "rowid") if row[0] not in ("O-11", "O-12")] == ["O-1", "O-2", "O-3"]
