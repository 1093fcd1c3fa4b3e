"""Whether what is bound to a name can do what the stops that name it ask of it.

Judged by the methods that it has, without calling one or reading a value: nothing connects, and no variable is resolved.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from dagster import ConfigurableResource, ResourceDefinition

from bus_assets.contract import TableKey
from bus_assets.declare import Misdeclared
from bus_assets.route import Route
from bus_assets.seams import DEAD_LETTERS, PUBLISHED, QUEUE, REFERRED, Seam
from bus_assets.stops import DropOff, PickUp

_MADE_LATER = (
    *("create_resource", "yield_for_execution", "get_resource_definition", "get_object_to_set_on_execution_context", "setup_for_execution"),
    *("__getattr__", "__getattribute__"),
)
"""A resource whose class has one of these of its own may hand out another object than itself, or have methods that show only when asked."""


def check_bound(route: Route, resources: Mapping[str, Any]) -> None:
    """:class:`Misdeclared` if a resource lacks a method that a stop of ``route`` calls, or is a class and no instance."""
    for who, system, seam in _asked(route):
        bound = resources[system]
        if isinstance(bound, type):
            said = f"is the class {bound.__name__}, and no instance of it"
        elif lacking := _lacking(bound, seam):
            said = f"is of kind {type(bound).__name__}, which has no {' and no '.join(f'{method}()' for method in lacking)}"
        else:
            continue
        raise Misdeclared(
            f"route {route.name!r}, {who} {seam.does}, and resource {system!r} {said}: name another resource there, or bind one that "
            f"fits ({', '.join(seam.kinds)}, or your own with {', '.join(f'{method}()' for method in seam.methods)}) in "
            f"build_definitions(…, resources={{{system!r}: {seam.kinds[0]}(…)}})"
        )


def _asked(route: Route) -> Iterator[tuple[str, str, Seam]]:
    """Who names a system, its name, and what is asked of it. What a source of an author's own calls, only that source knows."""
    if route.queue:
        yield f"trigger Queue({route.queue.system!r}, …)", route.queue.system, QUEUE
        if route.queue.dead_letters:
            yield f"Queue({route.queue.system!r}, dead_letters={route.queue.dead_letters!r})", route.queue.dead_letters, DEAD_LETTERS
    for stop in route.stops:
        me = f"stop {stop.name!r}:"
        if isinstance(stop, DropOff):
            yield f"{me} Table({stop.into.database!r}, {stop.into.name!r})", stop.into.database, PUBLISHED
            continue
        if isinstance(stop, PickUp) and isinstance(seam := getattr(stop.source, "seam", None), Seam):
            yield f"{me} {type(stop.source).__name__}({stop.source.system!r}, …)", stop.source.system, seam
        for field in stop.contract.fields:
            if isinstance(key := field.references, TableKey):
                yield f"{me} field {field.name!r}, which references TableKey({key.database!r}, …),", key.database, REFERRED


def _lacking(bound: Any, seam: Seam) -> list[str]:
    kind = type(bound)
    if isinstance(bound, ResourceDefinition):
        return []
    usual = {getattr(base, name, None) for base in (object, ConfigurableResource) for name in _MADE_LATER}
    if kind.__module__ != "builtins" and any(getattr(kind, name, None) not in usual for name in _MADE_LATER):
        return []
    return [method for method in seam.methods if inspect.getattr_static(bound, method, None) is None]
