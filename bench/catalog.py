"""An XML feed through a pick-up, beside a bare lxml loop. Run by :mod:`bench.worker`; all tell how many rows, and a checksum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus_assets import Contract, Field, PickUp, Route, XmlFeed

PATHS = {
    "product_id": "@id",
    "name": "name",
    "price": "price",
    "currency": "price/@currency",
    "stock": "stock",
    "country": "origin/country",
    "updated": "updated",
}
PRODUCTS = Contract(
    (
        Field("product_id", required=True, unique=True, pattern=r"^P-\d{7}$"),
        Field("name", required=True),
        Field("price", "decimal(10,2)", required=True, minimum="0"),
        Field("currency", required=True, allowed=("EUR", "USD", "GBP")),
        Field("stock", "integer", required=True, minimum=0),
        Field("country", required=True),
        Field("updated", "date", required=True),
    )
)
Said = Callable[[], dict[str, Any]]


def bare_loop(file: str) -> Callable[[], Said]:
    """lxml as its documentation iterates over big files; nothing is done with the elements."""
    from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] - it has no stubs

    def loop() -> Said:
        rows = 0
        for _, element in etree.iterparse(file, tag="product"):
            rows += 1
            _forget(element)
        return lambda: {"rows": rows}

    return loop


def bare_values(file: str) -> Callable[[], Said]:
    """The same loop, and each row's values as a tuple of texts: what a script would begin with."""
    from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] - it has no stubs

    def loop() -> Said:
        rows = []
        for _, element in etree.iterparse(file, tag="product"):
            price = element.find("price")
            rows.append(
                (
                    element.get("id"),
                    element.findtext("name"),
                    price.text,
                    price.get("currency"),
                    element.findtext("stock"),
                    element.findtext("origin/country"),
                    element.findtext("updated"),
                )
            )
            _forget(element)
        return lambda: {"rows": len(rows), "checksum": sum(len(row[1]) + int(row[4]) for row in rows)}

    return loop


def _forget(element: Any) -> None:
    element.clear()
    while element.getprevious() is not None:
        del element.getparent()[0]


def reader(file: str) -> Callable[[], Said]:
    """The product's reader alone: Arrow batches of text with their places."""
    from resources.files import LocalFiles
    from resources.xmlfeed import read_xml

    files = LocalFiles(root=str(Path(file).parent))

    def read() -> Said:
        runs = list(read_xml(files, "*.xml", row="product", fields=PATHS))
        rows = sum(run.batch.num_rows for run in runs)
        return lambda: {"rows": rows, "checksum": sum(_checksum(run.batch) for run in runs)}

    return read


def picked_up(file: str, home: str) -> Callable[[], Said]:
    """A pick-up whole: read, cast, gate, stage, verify, verdict in the depot."""
    from bus_assets.boarding import board
    from bus_assets.drive import Boarding, Bus
    from bus_assets.halting import pick_up
    from resources.depot.store import Depot
    from resources.files import LocalFiles
    from resources.staging import LocalStaging

    bus = Bus(Depot(f"sqlite:///{home}/depot.db"), LocalStaging(f"{home}/staging"), {"feed": LocalFiles(root=str(Path(file).parent))})
    stop = PickUp("products", XmlFeed("feed", "*.xml", "product", fields=PATHS), PRODUCTS)
    route = Route(name="catalog", stops=(stop,))
    drive = board(bus, route, Boarding("bench", frozenset({"products"})))

    def halt() -> Said:
        stopped = pick_up(drive, stop)
        return lambda: {"rows": stopped.verdict.kept, "checksum": sum(_checksum(batch) for batch in stopped.passengers.batches())}

    return halt


def _checksum(batch: Any) -> int:
    return sum(len(name) + int(stock) for name, stock in zip(*(batch.column(at).to_pylist() for at in ("name", "stock")), strict=True))
