"""The two routes whose trips are started by messages while their processes are killed, and what must come of each message.

``events``   standard queue → an append-only table without a key, and a table that accumulates, in one database.
``lines``    FIFO queue → an append-only table whose rows are numbered as they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bus_assets import Contract, DropOff, Field, Json, Queue, Route, Table, Transform
from bus_assets.build.definitions import build_definitions
from resources.database import Database
from resources.depot.resource import DepotResource
from resources.queue import SqsQueue
from resources.staging import StagingArea

LOCK_SECONDS = 2.0
VISIBILITY_SECONDS = 3
"""What a killed dispatcher had received comes again so soon."""
QUEUES = {"events": "events", "lines": "lines.fifo"}
LAST_STOP = {"events": "per_item", "lines": "messages"}
TABLES = ("log", "sums", "lines", "bus_outcomes", "bus_receipts", "bus_applied")

EVENT = Contract((Field("id", required=True), Field("item", required=True), Field("qty", "integer", required=True, minimum=1)))
PER_ITEM = Contract((Field("item", required=True, unique=True), Field("messages", "integer"), Field("qty", "integer")))
LINE = Contract((Field("id", required=True), Field("place", required=True), Field("number", "integer", required=True)))


class Broken(Exception):
    """What an author's function raises until it is mended."""


@dataclass(frozen=True)
class Place:
    """Where a town of messages has its things: staging and Dagster's records below ``root``; the rest by URL.

    ``batch``, ``in_flight``: how many messages share a trip, and how many trips of a route go at a time.
    """

    root: Path
    warehouse_url: str
    depot_url: str
    cloud_url: str
    batch: int = 12
    in_flight: int = 3

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster"

    @property
    def mended(self) -> Path:
        """Once this file is there, the author's function has been mended."""
        return self.root / "mended"


def routes(place: Place) -> dict[str, Route]:
    def per_item(messages: Any) -> Any:
        if (messages["item"] == "poison").any() and not place.mended.exists():
            raise Broken("poison is too much for me")
        return messages.groupby("item", as_index=False).agg(messages=("id", "count"), qty=("qty", "sum"))

    size = {"batch": place.batch, "max_in_flight": place.in_flight}
    events = Route(
        name="events",
        triggers=(Queue("events", decode=Json(EVENT), identity="id", attempts=1, dead_letters="dead_letters", **size),),
        stops=(
            Transform("per_item", per_item, PER_ITEM, grain="changed", combine="accumulate"),
            DropOff("log", Table("warehouse", "log", create=True), of="messages"),
            DropOff(
                "sums", Table("warehouse", "sums", key="item", mode="accumulate", sums=("messages", "qty"), create=True), of="per_item"
            ),
        ),
    )
    lines = Route(
        name="lines",
        triggers=(Queue("lines", decode=Json(LINE), identity="id", **size),),
        stops=(DropOff("lines", Table("warehouse", "lines"), of="messages"),),
    )
    return {"events": events, "lines": lines}


def systems(place: Place) -> dict[str, Any]:
    def queue(name: str) -> SqsQueue:
        return SqsQueue(name=name, endpoint_url=place.cloud_url, visibility_seconds=VISIBILITY_SECONDS)

    return {
        "events": queue("events"),
        "lines": queue("lines.fifo"),
        "dead_letters": queue("dead-letters"),
        "warehouse": Database(url=place.warehouse_url, lock_timeout_seconds=LOCK_SECONDS),
    }


def definitions(place: Place) -> Any:
    depot, staging = DepotResource(url=place.depot_url), StagingArea(url=str(place.staging))
    return build_definitions(routes(place).values(), systems(place), depot=depot, staging=staging)
