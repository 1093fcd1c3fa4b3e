"""A small world whose trips are started by messages: a fake queue, a dispatcher, runs that are made one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus_assets import Contract, DropOff, Field, Json, Queue, Route, Table, Transform
from bus_assets.build.dispatching import policy_of, protocol
from bus_assets.drive import Drive, NothingToDo
from resources.depot.entries import AttemptLive, TripOver
from resources.depot.mail import Departure, Message
from resources.errors import BusError
from resources.queue_seam import Outgoing
from sensors.dispatch import Tick, tick
from tests.fakes import FakeQueue
from tests.world import World

ORDER = Contract(
    (
        Field("order_id", required=True, pattern="^O-"),
        Field("qty", "integer", required=True, minimum=1),
        Field("price", "decimal(10,2)", required=True),
    )
)
TOTAL = Contract((Field("order_id", required=True), Field("total", "decimal(14,2)", required=True)))


class Boom(Exception):
    """What an author's function raises."""


def priced(messages: Any) -> Any:
    """An author's function that a certain order is too much for."""
    if (messages["order_id"] == "O-666").any():
        raise Boom("666 is too much for me")
    return messages.assign(total=messages["qty"] * messages["price"])


def events(**more: Any) -> Route:
    """Order events → a total each → an append-only table without a key, so that whatever comes twice shows."""
    queue = {name: more.pop(name) for name in list(more) if name in Queue.__dataclass_fields__}
    queue = {"decode": Json(ORDER), "batch": 100, **queue}
    values: dict[str, Any] = {
        "name": "events",
        "triggers": (Queue("order_events", **queue),),
        "stops": (Transform("priced", priced, TOTAL), DropOff("log", Table("warehouse", "log", create=True), of="priced")),
    }
    return Route(**{**values, **more})


@dataclass
class Runs:
    """What the dispatcher asks of Dagster's runs."""

    over: set[str] = field(default_factory=set)

    def get_run_by_id(self, run: str) -> Any:
        return _Run(run in self.over)

    def get_runs(self, filters: Any = None, limit: int | None = None) -> list[Any]:
        return []

    def report_run_failed(self, run: Any, said: str) -> None:
        run.is_finished = True


@dataclass
class _Run:
    is_finished: bool


class QueueWorld(World):
    """``send`` messages, ``tick`` the dispatcher, ``run`` what departs; ``deliver`` does it until nothing more happens."""

    def __init__(self, root: Path, route: Route | None = None, *, fifo: bool = False, **more: Any):
        self.queue, self.dead = FakeQueue("order-events.fifo" if fifo else "order-events"), FakeQueue("dead")
        super().__init__(root, order_events=self.queue, dead=self.dead, **more)
        self.route, self.runs = route or events(), Runs()
        self.bus.depot.upgrade()

    def send(self, *bodies: Any, group: str | None = None, **attributes: str) -> None:
        texts = [body if isinstance(body, str) else json.dumps(body) for body in bodies]
        self.queue.send([Outgoing(text, attributes, group) for text in texts])

    def tick(self) -> Tick:
        queue = self.route.queue
        assert queue is not None
        above, policy = protocol(self.bus, self.route, queue, self.runs), policy_of(self.route, queue)
        dead = self.dead if queue.dead_letters else None
        return tick(policy, self.bus.depot.inbox, self.queue, above, dead_letters=dead, poll_seconds=0)

    def run(self, departure: Departure, before: Callable[[Drive, str], None] = lambda drive, at: None) -> str:
        """Make the run that was asked for; how it ended."""
        run = f"{departure.trip}-{departure.launch}"
        try:
            self.drive(self.route, run=run, tagged=departure.trip, before=before)
            return "success"
        except (NothingToDo, AttemptLive, TripOver):
            return "nothing to do"
        except BusError:
            return "failure"
        finally:
            self.runs.over.add(run)

    def deliver(self, ticks: int = 60, before: Callable[[Drive, str], None] = lambda drive, at: None) -> list[str]:
        """Tick and run until nothing waits; what the ticks said. Back-off is not waited for."""
        said = []
        for _ in range(ticks):
            self.hurry()
            done = self.tick()
            said.append(done.said)
            for departure in done.departures:
                self.run(departure, before)
            if not done.departures and not self.alive():
                break
        return said

    def hurry(self) -> None:
        """No trip has to wait for its back-off."""
        self.sql("UPDATE depot_trips SET not_before = NULL WHERE state IN ('formed', 'stuck')")

    def alive(self) -> int:
        return self.bus.depot.inbox.live(self.route.name) + self.queue.depth().waiting

    def sql(self, statement: str, **values: Any) -> None:
        import sqlalchemy as sa

        engine = sa.create_engine(f"sqlite:///{self.root}/depot.db")
        with engine.begin() as connection:
            connection.execute(sa.text(statement), values)
        engine.dispose()

    def messages(self, state: Any = None) -> list[Message]:
        return self.bus.depot.inbox.messages(self.route.name, state, limit=10_000)

    def states(self) -> dict[str, int]:
        return {state: number for state, number in self.bus.depot.inbox.counts(self.route.name).by_state.items() if number}

    def logged(self) -> list[str]:
        return sorted(row[0] for row in self.rows("log"))


def order(number: int, qty: int = 1, price: str = "1.50") -> dict[str, Any]:
    return {"order_id": f"O-{number}", "qty": qty, "price": price}


def orders(numbers: Iterable[int]) -> list[dict[str, Any]]:
    return [order(number) for number in numbers]
