"""The two routes that killed processes drive, and the definitions they drive them with: the product as a user would bind it.

``sales``    text file → gate → SQL → an append-only table without a key, and an upsert table, in one database.
``takings``  text file → gate → SQL that aggregates → an append-only table, and a table that accumulates, in one database.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bus_assets import Contract, DropOff, Field, PickUp, Route, Table, TextFile, Transform
from bus_assets.build.definitions import build_definitions
from bus_assets.route import Parameter
from resources.database import Database
from resources.depot.resource import DepotResource
from resources.files import LocalFiles
from resources.staging import StagingArea

LOCK_SECONDS = 1.0
"""How long the warehouse is waited for: short, because a stopped process holds its locks until it is killed."""

ORDERS = Contract(
    (
        Field("batch", "integer", required=True),
        Field("order_id", required=True, unique=True, pattern="^O-"),
        Field("customer", required=True),
        Field("qty", "integer", minimum=1, required=True),
        Field("price", "decimal(10,2)", required=True),
        Field("note"),
    ),
    max_rejected=0.5,
)
PRICED = Contract(
    (Field("batch", "integer"), Field("order_id", required=True, unique=True), Field("total", "decimal(14,2)", required=True))
)
TAKINGS = Contract((Field("customer", required=True, unique=True), Field("orders", "integer"), Field("amount", "decimal(18,2)")))
PICKED_UP = PickUp("orders", TextFile("landing", "{params.file}"), ORDERS)
LOGGED = DropOff("log", Table("warehouse", "log", create=True), of="orders")


def sales(retries: int = 0) -> Route:
    return Route(
        name="sales",
        parameters=(Parameter("file"),),
        retries=retries,
        stops=(
            PICKED_UP,
            Transform("priced", "SELECT batch, order_id, qty * price AS total FROM orders", PRICED),
            LOGGED,
            DropOff("totals", Table("warehouse", "totals", key="order_id", create=True), of="priced"),
        ),
    )


def takings(retries: int = 0) -> Route:
    by_customer = "SELECT customer, count(*) AS orders, sum(qty * price) AS amount FROM orders GROUP BY customer"
    accounts = Table("warehouse", "accounts", key="customer", mode="accumulate", sums=("orders", "amount"), create=True)
    return Route(
        name="takings",
        parameters=(Parameter("file"),),
        retries=retries,
        stops=(
            PICKED_UP,
            Transform("by_customer", by_customer, TAKINGS, grain="changed"),
            LOGGED,
            DropOff("accounts", accounts, of="by_customer"),
        ),
    )


ROUTES = {"sales": sales(), "takings": takings()}


@dataclass(frozen=True)
class Place:
    """Where one world has its things: files, staging and Dagster's own records below ``root``, the databases by URL."""

    root: Path
    warehouse_url: str
    depot_url: str

    @property
    def landing(self) -> Path:
        return self.root / "landing"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster"

    @property
    def depot_file(self) -> Path:
        """Where the depot is a SQLite file: that file."""
        return Path(self.depot_url.removeprefix("sqlite:///"))


def definitions(place: Place) -> Any:
    return build_definitions(
        ROUTES.values(),
        {
            "landing": LocalFiles(root=str(place.landing)),
            "warehouse": Database(url=place.warehouse_url, lock_timeout_seconds=LOCK_SECONDS),
        },
        depot=DepotResource(url=place.depot_url),
        staging=StagingArea(url=str(place.staging)),
    )
