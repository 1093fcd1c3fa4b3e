"""JSON from strangers: parsed strictly, numbers untouched, and parts of it exactly as they were written.

The rules are those of :func:`resources.jsonlines.loads_exact`, which a test compares; this one needs neither pyarrow nor Dagster.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 100
"""Objects and lists inside one another; what goes deeper is meant to exhaust the reader."""

_SPACE = re.compile(r"[ \t\n\r]*")


class Digits(str):
    """A number as it was written: ``12.50`` stays that, and a number of 10,000 digits is no attack."""

    __slots__ = ()


class NotJson(Exception):
    """What is wrong and where, never quoting the text."""


def parse(text: str) -> Any:
    """``text`` as Python values, numbers as :class:`Digits`; of a key that appears twice, the last counts.

    Raises NotJson for everything else: NaN and Infinity, deeper nesting than ``MAX_DEPTH``, half of a surrogate pair.
    """
    try:
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(value)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        text.encode()
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except UnicodeEncodeError:
        raise NotJson("not readable: half of a surrogate pair is no character") from None
    except RecursionError:
        raise NotJson(f"not JSON: nested deeper than {MAX_DEPTH} levels") from None
    return value


def member(text: str, name: str) -> str:
    """The value of ``name`` in the object ``text``, which :func:`parse` took, as it was written there: ``{"a": 1.50}`` → ``1.50``."""
    found = ""
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        if key == name:
            found = text[start:end]
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def at_path(value: Any, path: str) -> Any:
    """What is at the dotted path, None if nothing is. A key that contains the dot wins; lists are not entered."""
    if isinstance(value, dict) and path in value:
        return value[path]
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for outer in level for item in _inside(outer) if isinstance(item, (dict, list))]
        if not level:
            return
    raise RecursionError


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refuse(name: str) -> Any:
    raise NotJson(f"not JSON: {name} is no JSON value")


_DECODER = json.JSONDecoder(parse_float=Digits, parse_int=Digits, parse_constant=_refuse)
