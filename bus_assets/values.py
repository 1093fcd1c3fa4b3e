"""What a declaration may leave open until a trip starts: ``{params.month}``, ``{trip}``, ``{scheduled}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from bus_assets.declare import Misdeclared
from resources.errors import Poison

_PLACEHOLDER = re.compile(r"\{([a-z_][A-Za-z0-9_.]*)\}")
OF_MESSAGE = "message."


@dataclass(frozen=True)
class TripValues:
    """What is known when a trip starts. ``scheduled`` is the tick of a cron trip, else the moment it was started (aware UTC).

    ``message``: the row of the one message for which a pick-up reads, None for a pick-up that reads once.
    """

    trip: str
    scheduled: datetime
    parameters: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] | None = field(default=None, repr=False)

    def __getitem__(self, placeholder: str) -> Any:
        if placeholder == "trip":
            return self.trip
        if placeholder == "scheduled":
            return self.scheduled.strftime("%Y-%m-%dT%H:%M:%SZ")
        if placeholder == "date":
            return self.scheduled.strftime("%Y-%m-%d")
        if placeholder.startswith(OF_MESSAGE):
            return self._of_message(placeholder.removeprefix(OF_MESSAGE))
        name = placeholder.removeprefix("params.")
        if name not in self.parameters:
            raise Misdeclared(f"trip {self.trip} has no parameter {name!r}; it is older than that parameter: start a new trip instead")
        return self.parameters[name]

    def _of_message(self, name: str) -> Any:
        if self.message is None or self.message.get(name) is None:
            raise Poison(f"the message has no value for {name!r}, which says what to read")
        return self.message[name]


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
    return _filled(template, values, str)


def fill_pattern(template: str, values: TripValues) -> str:
    """``template`` as a pattern for files: what a message says stands for itself there, whatever wildcards are in it."""
    return _filled(template, values, lambda value: re.sub(r"[*?[]", r"[\g<0>]", str(value)))


def fill_url(template: str, values: TripValues) -> str:
    """``template`` as the path of a URL: what a message says is one part of it, with no sign that a URL reads otherwise."""
    return _filled(template, values, lambda value: quote(str(value), safe=""))


def _filled(template: str, values: TripValues, said: Callable[[Any], str]) -> str:
    """``said``: how what a message says is written; what trip and parameters say is the team's own, and stands as it is."""

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        return said(values[name]) if name.startswith(OF_MESSAGE) else str(values[name])

    return _PLACEHOLDER.sub(value, template)


def reads_messages(templates: tuple[Any, ...]) -> bool:
    """Whether a pick-up with these templates reads once for each message."""
    return any(name.startswith(OF_MESSAGE) for template in templates for name in placeholders(template))


def refuse_placeholders(where: str, sql: str) -> None:
    """Raise :class:`Misdeclared` for placeholders in an author's SQL: nothing fills them in there, they would be compared as text."""
    if any(name in ("trip", "scheduled", "date") or name.startswith(("params.", OF_MESSAGE)) for name in placeholders(sql)):
        raise Misdeclared(
            f"{where}: placeholders do not belong in SQL text; take them as params in a transform's function, or bind them in a Query"
        )


def check_placeholders(where: str, template: Any, parameters: tuple[str, ...], messages: tuple[str, ...] = ()) -> None:
    """Raise :class:`Misdeclared` for a placeholder that no trip could fill. ``messages``: the fields of a queue route's messages."""
    known = {"trip", "scheduled", "date", *(f"params.{name}" for name in parameters), *(OF_MESSAGE + name for name in messages)}
    for name in placeholders(template):
        if name not in known:
            raise Misdeclared(f"{where}: {{{name}}} is not known; a route may use {', '.join(f'{{{k}}}' for k in sorted(known))}")
