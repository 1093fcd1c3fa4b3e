"""A route drawn from its declaration: as text, as Mermaid, as JSON. Reads nothing but the route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bus_assets.contract import Contract
from bus_assets.queues import Bodies
from bus_assets.route import Cron, Route
from bus_assets.stops import DropOff, PickUp, Stop, Transform


def json_map(route: Route) -> dict[str, Any]:
    """The route as plain values: triggers, parameters, databases, and its stops in driving order."""
    return {
        "route": route.name,
        "description": route.description,
        "triggers": triggers(route),
        "parameters": [{"name": p.name, "type": p.type, "default": p.default} for p in route.parameters],
        "databases": list(route.databases),
        "stops": [_stop(route, route[name]) for name in route.order],
    }


def text_map(route: Route) -> str:
    """The route as a tree: below each stop what its rows go on to. A stop that only looks rows up says so behind '⋯'."""
    lines = [f"{route.name}{f': {route.description}' if route.description else ''}"]
    lines.append(f"triggers: {', '.join(triggers(route))}")
    if route.parameters:
        lines.append("parameters: " + ", ".join(f"{p.name} ({p.type}, {_default(p.default)})" for p in route.parameters))
    lines.append("")
    roots = [stop.name for stop in route.pick_ups if not route.upstream(stop.name)]
    for root in roots:
        lines += [_line(route, root), *_branches(route, root, "")]
    return "\n".join(lines)


def mermaid_map(route: Route) -> str:
    """The route as a Mermaid flowchart: solid arrows carry rows, dotted ones are looked up or referred to."""
    lines = ["flowchart LR"]
    for name in route.order:
        lines += [f"  {line}" for line in _mermaid_stop(route, route[name])]
    for name in route.order:
        lines += [f"  {line}" for line in _mermaid_edges(route, name)]
    return "\n".join(lines)


def triggers(route: Route) -> list[str]:
    """What starts a trip, in words; a person always may."""
    queue = [f"queue {route.queue.system}, up to {route.queue.batch} messages a trip"] if route.queue else []
    return [*(_cron(trigger) for trigger in route.crons), *queue, "person"]


def carried_to(route: Route, stop: str) -> tuple[str, ...]:
    """The stops that the rows of ``stop`` go on to: transforms whose first stop it is, its drop-offs, what is read for each message."""
    return tuple(s.name for s in route.stops if route.upstream(s.name)[:1] == (stop,))


def looked_up_by(route: Route, stop: str) -> tuple[str, ...]:
    """The stops that read rows of ``stop`` without carrying them on: further inputs of transforms, and references."""
    return tuple(s.name for s in route.stops if stop in (*route.upstream(s.name)[1:], *route.references(s.name)))


def _default(value: Any) -> str:
    return "required" if value is None else f"default {value}"


def _cron(trigger: Cron) -> str:
    return f"cron {trigger.schedule} ({trigger.zone})"


def _branches(route: Route, stop: str, indent: str) -> Iterator[str]:
    found = carried_to(route, stop)
    for name in found:
        last = name == found[-1]
        yield f"{indent}{'└─' if last else '├─'} {_line(route, name)}"
        yield from _branches(route, name, indent + ("   " if last else "│  "))


def _line(route: Route, name: str) -> str:
    said = f"{name} · {' · '.join(_said(route, route[name]))}"
    looked_up = [*route.upstream(name)[1:], *route.references(name)]
    return f"{said} ⋯ looks up {', '.join(dict.fromkeys(looked_up))}" if looked_up else said


def _said(route: Route, stop: Stop) -> list[str]:
    """Kind, where from or to, size."""
    if isinstance(stop, PickUp):
        return ["pick-up", source_of(stop), size_of(stop.contract)]
    if isinstance(stop, Transform):
        return ["transform", source_of(stop), f"grain {stop.grain}", size_of(stop.contract)]
    where = [f"where {stop.where}"] if stop.where else []
    return ["drop-off", _destination(stop), f"{len(stop.mapping(route.contract_of(stop.name)))} columns", *where]


def kind_of(stop: Stop) -> str:
    return "pick-up" if isinstance(stop, PickUp) else "transform" if isinstance(stop, Transform) else "drop-off"


def source_of(stop: PickUp | Transform) -> str:
    """Where a stop's rows come from, in words: the source and its system, or the code."""
    if isinstance(stop, PickUp):
        return " ".join(_source(stop))
    return "SQL" if isinstance(stop.how, str) else f"{getattr(stop.how, '__name__', 'function')}()"


def _source(stop: PickUp) -> tuple[str, str, str]:
    source = stop.source
    if isinstance(source, Bodies):
        return "messages", f"of queue {source.system}", f"as {type(source.decode).__name__}"
    return type(source).__name__, source.address(), f"on {source.system}"


def size_of(contract: Contract) -> str:
    fields, rules = len(contract.fields), sum(1 for _ in contract.rules())
    return f"{fields} field{'s' * (fields != 1)}, {rules} rule{'s' * (rules != 1)}"


def _destination(stop: DropOff) -> str:
    table = stop.into
    key = f" by {', '.join(table.key)}" if table.key else ""
    newest = f", the newest {table.newest}" if table.newest else ""
    return f"{table} ({table.mode}{key}{newest})"


def _stop(route: Route, stop: Stop) -> dict[str, Any]:
    contract = route.contract_of(stop.name)
    said: dict[str, Any] = {
        "stop": stop.name,
        "kind": kind_of(stop),
        "after": list(route.upstream(stop.name)),
        "references": list(route.references(stop.name)),
        "fields": len(contract.fields),
    }
    if isinstance(stop, DropOff):
        table = stop.into
        said |= {"database": table.database, "table": table.name, "mode": table.mode, "key": list(table.key), "where": stop.where}
        return said | {"columns": list(stop.mapping(contract))}
    said |= {"source": source_of(stop), "rules": [str(rule) for rule in contract.rules()], "max_rejected": contract.max_rejected}
    return said | ({"grain": stop.grain} if isinstance(stop, Transform) else {})


def _mermaid_stop(route: Route, stop: Stop) -> Iterator[str]:
    node = _node(stop.name)
    if isinstance(stop, DropOff):
        yield f"{node}[/{_label(stop.name, _destination(stop))}/]"
        return
    if isinstance(stop, PickUp):
        yield f"{node}_source[({_label(*_source(stop))})]"
        yield f"{node}[{_label(stop.name, size_of(stop.contract))}]"
        return
    yield f"{node}[[{_label(stop.name, source_of(stop), size_of(stop.contract))}]]"


def _mermaid_edges(route: Route, name: str) -> Iterator[str]:
    node, upstream = _node(name), route.upstream(name)
    if isinstance(route[name], PickUp):
        yield f"{node}_source --> {node}"
    for other in upstream[:1]:
        yield f"{_node(other)} --> {node}"
    for other in dict.fromkeys((*upstream[1:], *route.references(name))):
        yield f"{_node(other)} -.-> {node}"


def _node(name: str) -> str:
    """A prefix: 'end' and 'graph' are words of Mermaid's own."""
    return f"stop_{name}"


def _label(*lines: str) -> str:
    safe = (line.replace("&", "&amp;").replace('"', "#quot;").replace("<", "&lt;").replace("\n", " ") for line in lines)
    return '"' + "<br/>".join(safe) + '"'
