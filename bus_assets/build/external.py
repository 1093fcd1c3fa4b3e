"""What routes read, as Dagster's external assets, so that lineage begins where the data does. Nothing is asked of the systems."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dagster import AssetKey, AssetSpec, EnvVar, MetadataValue

from bus_assets.build.keys import source_key
from bus_assets.queues import Bodies, Json, Queue
from bus_assets.route import Route
from bus_assets.stops import PickUp
from resources.queue import SqsQueue

_KINDS = {
    "Bodies": "sqs",
    "TextFile": "csv",
    "JsonLines": "json",
    "ParquetFile": "parquet",
    "XmlFeed": "xml",
    "Endpoint": "api",
    "Query": "sql",
}
_BODIES = {"json": "its JSON body", "s3": "the S3 object that it tells of", "text": "its body as text"}
_QUEUE_NAME = re.compile(r"(https?://[^/@?]+/[^@?]+/)?[A-Za-z0-9_.-]+")
"""A queue's name or URL, and nothing that could hold a secret."""


def source_specs(routes: Iterable[Route], resources: Mapping[str, Any]) -> list[AssetSpec]:
    """One for each place, however many stops read it: it tells of them all."""
    readers: dict[AssetKey, list[tuple[Route, PickUp]]] = {}
    for route in routes:
        for stop in route.pick_ups:
            readers.setdefault(source_key(stop), []).append((route, stop))
    return [_spec(key, reading, resources) for key, reading in readers.items()]


def kind_of(stop: PickUp) -> str:
    return _KINDS.get(type(stop.source).__name__, "source")


def said_of_bodies(source: Bodies) -> str:
    """What the stop ``messages`` makes of its queue's messages."""
    decode, message = source.decode, f"message of the queue bound as `{source.system}`"
    if isinstance(decode, Json) and decode.records:
        return f"A row for each item of `{decode.records}` in the JSON body of a {message}."
    return f"A row for each {message}: {_BODIES[decode.kind]}."


def _spec(key: AssetKey, reading: Sequence[tuple[Route, PickUp]], resources: Mapping[str, Any]) -> AssetSpec:
    """A line for each way in which the place is read, and which stops do so."""
    said: list[str] = []
    metadata: dict[str, Any] = {}
    ways: dict[str, list[str]] = {}
    for route, stop in reading:
        if isinstance(stop.source, Bodies) and route.queue:
            described, metadata = _queue(route, route.queue, resources)
            said.append(described)
        else:
            way = f"{type(stop.source).__name__} `{stop.source.address()}` on {stop.source.system}"
            ways.setdefault(way, []).append(f"{route.name}/{stop.name}")
    said += [f"{way}, read by {', '.join(stops)}" for way, stops in ways.items()]
    kinds = {kind_of(stop) for _, stop in reading}
    return AssetSpec(key, group_name="sources", kinds=kinds, description="\n\n".join(said), metadata=metadata)


def _queue(route: Route, queue: Queue, resources: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A queue in words, and its names as far as they are known without asking AWS."""
    bound, name = resources[queue.system], _name(resources[queue.system])
    metadata: dict[str, Any] = {"resource": queue.system}
    if name:
        metadata["queue"] = name
    if isinstance(bound, SqsQueue):
        if name and not isinstance(bound.name, EnvVar) and bound.name != name:
            metadata["URL"] = MetadataValue.url(bound.name)
        if bound.region:
            metadata["region"] = _by_name(bound.region)
    dead = "there is no queue for dead letters: what is stranded waits in the depot alone"
    if queue.dead_letters:
        dead = f"dead letters go to {_called(queue.dead_letters, resources)}"
        metadata["dead letters"] = _name(resources[queue.dead_letters]) or queue.dead_letters
    return f"{_called(queue.system, resources)}: its messages start trips of route {route.name}; {dead}.", metadata


def _called(system: str, resources: Mapping[str, Any]) -> str:
    bound, name = resources[system], _name(resources[system])
    kind = "SQS queue" if isinstance(bound, SqsQueue) else f"queue of kind {type(bound).__name__}"
    return f"{kind} `{name}` (resource {system})" if name else f"{kind} (resource {system})"


def _name(bound: Any) -> str:
    """A queue's own name; empty where it is not known, or no name of a queue."""
    if not isinstance(bound, SqsQueue):
        return ""
    if isinstance(bound.name, EnvVar):
        return _by_name(bound.name)
    return bound.name.rpartition("/")[2] if _QUEUE_NAME.fullmatch(bound.name) else ""


def _by_name(value: str) -> str:
    return f'EnvVar("{value.env_var_name}")' if isinstance(value, EnvVar) else value
