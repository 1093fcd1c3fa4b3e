"""Paths in an XML feed: which elements are rows, and where in a row each field is found. Compiled once, walked for every row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from resources.errors import Misconfigured

_NAME = re.compile(r"(?:[\w.-]+:)?(?!\.+$)[\w.-]+")
_PREDEFINED = {"xml": "http://www.w3.org/XML/1998/namespace"}


def clark(name: str, namespaces: Mapping[str, str], *, attribute: bool = False) -> str:
    """``n:product`` as ``{http://x}product``. The prefix '' is the namespace of elements written without one."""
    namespaces = {**_PREDEFINED, **namespaces}
    if not _NAME.fullmatch(name):
        raise Misconfigured(f"{name!r} is not the name of an element or attribute; paths look like 'price/amount' or 'price/@currency'")
    prefix, colon, local = name.rpartition(":")
    if colon and prefix not in namespaces:
        raise Misconfigured(f"prefix {prefix!r} in {name!r} is not declared; add it to namespaces={{{prefix!r}: 'http://…'}}")
    uri = "" if attribute and not colon else namespaces.get(prefix, "")
    return f"{{{uri}}}{local}" if uri else local


@dataclass(frozen=True)
class RowPath:
    """Which elements are rows. ``parents``: names from the root down to the row's parent; None: wherever ``tag`` stands.

    A row inside a row is part of the outer one.
    """

    text: str
    tag: str
    parents: tuple[str, ...] | None

    @classmethod
    def parse(cls, row: str, namespaces: Mapping[str, str]) -> RowPath:
        *parents, tag = (clark(step, namespaces) for step in row.removeprefix("/").split("/"))
        return cls(row, tag, tuple(parents) if parents or row.startswith("/") else None)

    def matches(self, tag: str, parents: tuple[str, ...]) -> bool:
        return tag == self.tag and self.parents in (None, parents)


class Step(NamedTuple):
    """What to take from an element, by slot, and from the elements in it. ``lone_text``: the slot if it is one single text only.

    ``items``: slots of lists of which each such element makes one item, whatever is found in it.
    """

    texts: tuple[int, ...]
    attributes: tuple[tuple[str, int], ...]
    inner: Mapping[Any, Step]
    items: tuple[int, ...]
    lone_text: int | None


@dataclass(frozen=True)
class Plan:
    names: tuple[str, ...]
    paths: tuple[str, ...]
    many: tuple[bool, ...]
    row: Step


def plan_of(fields: Mapping[str, str], namespaces: Mapping[str, str]) -> Plan:
    """``fields`` (output name → path in the row) compiled; Misconfigured that names a path that does not read."""
    if not fields:
        raise Misconfigured("no fields are asked for; name at least one, as in fields={'name': 'name'}")
    paths = [_path(text, namespaces) for text in fields.values()]
    many = tuple(path.item is not None for path in paths)
    return Plan(tuple(fields), tuple(fields.values()), many, _step(list(enumerate(paths)), 0))


class _Path(NamedTuple):
    """``item``: how many elements down the one is that makes items of a list."""

    elements: tuple[str, ...]
    attribute: str | None
    item: int | None


def _path(text: str, namespaces: Mapping[str, str]) -> _Path:
    if text == ".":
        return _Path((), None, None)
    *before, last = text.split("/")
    elements, attribute = (before, last[1:]) if last.startswith("@") else ([*before, last], None)
    repeated = [depth for depth, step in enumerate(elements, 1) if step.endswith("[]")]
    elements = [step.removesuffix("[]") for step in elements]
    if len(repeated) > 1 or any("[" in step for step in elements):
        raise Misconfigured(
            f"field path {text!r}: [] stands once, behind the element that is repeated: 'tags/tag[]', 'tag[]/@id', 'tag[]/name'"
        )
    names = tuple(clark(step, namespaces) for step in elements)
    attribute = clark(attribute, namespaces, attribute=True) if attribute is not None else None
    return _Path(names, attribute, repeated[0] if repeated else None)


def _step(paths: list[tuple[int, _Path]], depth: int) -> Step:
    """What is to be taken from an element at ``depth`` below the row, from where ``paths`` (by slot) lead on."""
    ends = [(slot, path) for slot, path in paths if not path.elements]
    texts = tuple(slot for slot, path in ends if path.attribute is None)
    attributes = tuple((path.attribute, slot) for slot, path in ends if path.attribute is not None)
    items = tuple(slot for slot, path in paths if path.item == depth)
    further: dict[str, list[tuple[int, _Path]]] = {}
    for slot, path in paths:
        if path.elements:
            further.setdefault(path.elements[0], []).append((slot, path._replace(elements=path.elements[1:])))
    inner = {tag: _step(rest, depth + 1) for tag, rest in further.items()}
    is_lone = len(texts) == 1 and not attributes and not inner and not items
    return Step(texts, attributes, inner, items, texts[0] if is_lone else None)
