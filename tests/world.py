"""A small world to drive in: files, a depot, staging and a warehouse in one directory. Shared by tests of the core."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bus_assets import Contract, DropOff, Field, PickUp, Route, Table, TextFile, Transform
from bus_assets.boarding import board, failed, finished
from bus_assets.drive import Boarding, Bus, Drive
from bus_assets.halting import pick_up, problem_of, transform
from bus_assets.publish import publish
from resources.database import Database, Transaction
from resources.depot.store import Depot
from resources.errors import BusError, Transient
from resources.files import LocalFiles
from resources.staging import LocalStaging
from tests.depots import sqlite_depot

ORDERS = Contract(
    (
        Field("order_id", required=True, unique=True, pattern="^O-"),
        Field("qty", "integer", minimum=1),
        Field("price", "decimal(10,2)", required=True),
    ),
    max_rejected=0.5,
)
PRICED = Contract((Field("order_id", required=True, unique=True), Field("total", "decimal(14,2)", required=True)))
GOOD = "order_id,qty,price\nO-1,2,3.50\nO-2,1,1.00\nO-3,5,0.10\n"


def shop(**more: Any) -> Route:
    """One text file → one SQL transform → two tables of one database, one of them without a key."""
    values: dict[str, Any] = {
        "name": "shop",
        "stops": (
            PickUp("orders", TextFile("landing", "orders*.csv"), ORDERS),
            Transform("priced", "SELECT order_id, qty * price AS total FROM orders", PRICED),
            DropOff("totals", Table("warehouse", "totals", key="order_id", create=True), of="priced"),
            DropOff("log", Table("warehouse", "log", create=True), of="orders"),
        ),
    }
    return Route(**{**values, **more})


class World:
    """``land`` files, ``drive`` routes run by run, ``rows`` of a table. Everything below ``root``."""

    def __init__(self, root: Path, warehouse_url: str | None = None, **systems: Any):
        self.root = root
        (root / "landing").mkdir(parents=True, exist_ok=True)
        self.warehouse_url = warehouse_url or f"sqlite:///{root}/warehouse.db"
        self.depot = Depot(sqlite_depot(root / "depot.db"))
        self.staging = LocalStaging(str(root / "staging"))
        systems = {"landing": LocalFiles(root=str(root / "landing")), "warehouse": Database(url=self.warehouse_url), **systems}
        self.bus = Bus(self.depot, self.staging, systems)
        self._runs = (f"run-{number}" for number in itertools.count(1))

    def land(self, text: str | bytes, name: str = "orders.csv") -> Path:
        path = self.root / "landing" / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def board(self, route: Route, *, select: Iterable[str] | None = None, run: str | None = None, **boarding: Any) -> Drive:
        selected = frozenset(select or (stop.name for stop in route.stops))
        return board(self.bus, route, Boarding(run or next(self._runs), selected, **boarding))

    def drive(self, route: Route, *, before: Callable[[Drive, str], None] = lambda drive, stop: None, **boarding: Any) -> Drive:
        """All selected stops in order, as a run does. ``before(drive, stop or database)`` is called ahead of each."""
        drive = self.board(route, **boarding)
        return self.go_on(drive, before=before)

    def go_on(self, drive: Drive, *, before: Callable[[Drive, str], None] = lambda drive, stop: None) -> Drive:
        route, at = drive.route, ""
        try:
            for at in route.order:
                stop = route[at]
                if at in drive.selected and not isinstance(stop, DropOff):
                    before(drive, at)
                    stopped = pick_up(drive, stop) if isinstance(stop, PickUp) else transform(drive, stop)
                    if problem := problem_of(drive, stopped):
                        raise problem
                    finished(drive, at)
            for at in route.databases:
                if any(drop.name in drive.selected for drop in route.drop_offs if drop.into.database == at):
                    before(drive, at)
                    publish(drive, at)
        except BusError as error:
            failed(drive, at, error)
            raise
        return drive

    def drive_again(self, route: Route, table: str = "log") -> list[tuple[Any, ...]]:
        """The rows of ``table`` when the newest trip, which failed, was driven again and then, for nothing, once more.

        A table without a key: what landed twice would show.
        """
        trip = self.depot.trips(limit=1)[0]
        assert trip.state == "failed"
        self.drive(route, tagged=trip.id)
        assert self.depot.trip(trip.id).state == "delivered"
        self.drive(route, tagged=trip.id)
        return self.rows(table)

    def rows(self, table: str, order: str = "1") -> list[tuple[Any, ...]]:
        engine = sa.create_engine(self.warehouse_url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as connection:
            try:
                found = connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY {order}")).fetchall()
            except (sa.exc.OperationalError, sa.exc.ProgrammingError):
                return []
        engine.dispose()
        return [tuple(row) for row in found]


def lose_a_reply(patch: pytest.MonkeyPatch, meanwhile: Callable[[], object] = lambda: None) -> None:
    """The next transaction that writes into a destination commits, and its run does not learn it. ``meanwhile``: right before that."""
    real, lost = Database.transaction, list[str]()

    @contextmanager
    def transaction(self: Database, *, reading: bool = False) -> Iterator[Transaction]:
        loses = not reading and not lost
        with real(self, reading=reading) as opened:
            yield opened
            if loses:
                meanwhile()
        if loses:
            lost.append(self.url)
            raise Transient("the connection was lost at COMMIT: outcome unknown")

    patch.setattr(Database, "transaction", transaction)
