"""What a declaration may leave open until a trip starts: ``{params.month}``, ``{trip}``, ``{scheduled}``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bus_assets.declare import Misdeclared

_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_.]*)\}")


@dataclass(frozen=True)
class TripValues:
    """What is known when a trip starts. ``scheduled`` is the tick of a cron trip, else the moment it was started (aware UTC)."""

    trip: str
    scheduled: datetime
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, placeholder: str) -> Any:
        if placeholder == "trip":
            return self.trip
        if placeholder == "scheduled":
            return self.scheduled.strftime("%Y-%m-%dT%H:%M:%SZ")
        if placeholder == "date":
            return self.scheduled.strftime("%Y-%m-%d")
        name = placeholder.removeprefix("params.")
        if name not in self.parameters:
            raise Misdeclared(f"trip {self.trip} has no parameter {name!r}; it is older than that parameter: start a new trip instead")
        return self.parameters[name]


def placeholders(template: Any) -> Iterator[str]:
    """Every placeholder in a text, or in the texts of a mapping."""
    if isinstance(template, str):
        yield from _PLACEHOLDER.findall(template)
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from placeholders(value)


def fill(template: Any, values: TripValues) -> Any:
    """``template`` with its placeholders filled in; one that is nothing but a placeholder keeps the value's type."""
    if isinstance(template, Mapping):
        return {key: fill(value, values) for key, value in template.items()}
    if not isinstance(template, str):
        return template
    if whole := _PLACEHOLDER.fullmatch(template):
        return values[whole.group(1)]
    return _PLACEHOLDER.sub(lambda found: str(values[found.group(1)]), template)


def refuse_placeholders(where: str, sql: str) -> None:
    """Raise :class:`Misdeclared` for placeholders in an author's SQL: nothing fills them in there, they would be compared as text."""
    if any(name in ("trip", "scheduled", "date") or name.startswith("params.") for name in placeholders(sql)):
        raise Misdeclared(
            f"{where}: placeholders do not belong in SQL text; take them as params in a transform's function, or bind them in a Query"
        )


def check_placeholders(where: str, template: Any, parameters: tuple[str, ...]) -> None:
    """Raise :class:`Misdeclared` for a placeholder that no trip could fill."""
    known = {"trip", "scheduled", "date", *(f"params.{name}" for name in parameters)}
    for name in placeholders(template):
        if name not in known:
            raise Misdeclared(f"{where}: {{{name}}} is not known; a route may use {', '.join(f'{{{k}}}' for k in sorted(known))}")
