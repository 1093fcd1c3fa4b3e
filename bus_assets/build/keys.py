"""The one place where names become Dagster keys."""

import re
from collections.abc import Iterable

from dagster import AssetKey

from bus_assets.queues import Bodies
from bus_assets.route import Route
from bus_assets.stops import DropOff, PickUp

DEPOT, STAGING = "bus_depot", "bus_staging"
"""The resources that every stop needs."""
PARAMETERS = "{route}_parameters"
"""The resource that carries a route's typed parameters into a run."""


def stop_key(route: Route, stop: str) -> AssetKey:
    """[route, stop], unless a drop-off names a key of its own."""
    declared = route[stop]
    if isinstance(declared, DropOff) and declared.key:
        return AssetKey(list(declared.key))
    return AssetKey([route.name, stop])


def source_key(stop: PickUp) -> AssetKey:
    """The external asset that a pick-up reads: [system, address]; of messages, their queue."""
    if isinstance(stop.source, Bodies):
        return AssetKey(["queue", stop.source.system])
    return AssetKey([stop.source.system, slug(stop.source.address())])


def slug(address: str) -> str:
    """``address`` as a part of an asset key: placeholders by their names, what is neither letter nor digit one underscore."""
    named = re.sub(r"\{(?:params\.)?(\w+)\}", r"\1", address)
    return re.sub(r"[^A-Za-z0-9.\-]+", "_", named).strip("_")[:100] or "source"


def stops_of(route: Route, keys: Iterable[AssetKey]) -> frozenset[str]:
    """The stops of ``route`` whose assets are among ``keys``."""
    wanted = set(keys)
    return frozenset(stop.name for stop in route.stops if stop_key(route, stop.name) in wanted)


def op_name(route: Route, stop: str) -> str:
    return f"{route.name}__{stop}"


def publish_name(route: Route, database: str) -> str:
    return f"{route.name}__publish_{slug(database).replace('.', '_').replace('-', '_')}"
