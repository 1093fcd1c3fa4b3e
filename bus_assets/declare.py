"""How a declaration is made: a frozen value that checks itself whole when it is constructed.

A declaration that does not hold raises :class:`Misdeclared`, whose text names the line of the author's module, the route, stop and
field as far as they are known, and says what to do. Declarations import neither dagster nor boto3 nor pandas: a route is cheap to
import.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import keyword
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from resources.errors import BusError, Misconfigured
from resources.texts import meant_by, nearest

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
"""Names of routes, stops and fields: Dagster asset keys, SQL identifiers and file names at once (63 bytes: Postgres)."""


class Misdeclared(Misconfigured):
    """A declaration contradicts itself; nothing was built."""


@contextmanager
def about(me: str) -> Iterator[None]:
    """What a parser refuses within is told of ``me``, as :class:`Misdeclared`."""
    try:
        yield
    except Misconfigured as error:
        raise Misdeclared(f"{me}: {error.message}") from None


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def declaration(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen pydantic dataclass whose errors are :class:`Misdeclared`, in one sentence each."""
    made: Any = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=False, arbitrary_types_allowed=True))(cls)
    init = made.__init__

    @functools.wraps(init)
    def explained(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise Misdeclared(_sentences(made, args, kwargs, error), place=_written_at()) from None

    made.__init__ = explained
    return made


def _written_at() -> str:
    """The line of the author's module that makes the declaration which is being refused."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__") == "dataclasses":  # its replace() makes one for the author
        frame = frame.f_back
    file, here = frame.f_code.co_filename, os.path.join(os.getcwd(), "")
    return f"{file.removeprefix(here)}, line {frame.f_lineno}"


def _sentences(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], error: ValidationError) -> str:
    names = [field.name for field in dataclasses.fields(cls)]
    given = dict(zip(names, args, strict=False)) | kwargs
    name = next((one for one in (given.get("name"), given.get("path"), *args[:1]) if isinstance(one, str) and one), None)
    me = f"{cls.__name__}{f' {name!r}' if name else ''}"
    said, declarations = list[str](), dict[str, list[str]]()
    told = 0  # so many of ``args`` need no word of their own any more
    for problem in error.errors():
        first, *rest = problem["loc"] or ("",)
        if isinstance(first, int) and first < told:
            continue
        argument = names[first] if isinstance(first, int) and first < len(names) else str(first)
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, Exception):
            said.append(cause.message if isinstance(cause, BusError) else str(cause))
        elif problem["type"] == "dataclass_type":
            what = f"{me}: {'.'.join([argument, *(str(part) for part in rest if isinstance(part, int))])} is {problem['input']!r:.100}"
            declarations.setdefault(what, []).append(f"{problem.get('ctx', {})['class_name']}(…)")
        elif problem["type"] == "tuple_type":
            meant = tuple(itertools.takewhile(dataclasses.is_dataclass, args[first:])) if isinstance(first, int) else ()
            told = first + len(meant) if isinstance(first, int) else told
            said.append(f"{me}: {argument} is {_one_or_more(argument, meant or (problem['input'],))}")
        elif problem["type"] == "unexpected_keyword_argument":
            said.append(f"{me} has no option {argument!r}; {nearest(argument, names)}")
        elif problem["type"] == "literal_error":
            word, known = _word(problem["input"]), re.findall("'([^']+)'", problem.get("ctx", {})["expected"])
            said.append(f"{me}: {argument} {word!r} is not known; {nearest(word, known)}")
        elif problem["type"] == "string_type" and isinstance(problem["input"], type):
            meant = " or ".join(map(repr, meant_by(_word(problem["input"]))))
            said.append(f"{me}: {argument} is Python's class {_word(problem['input'])}; write {meant or 'a word in quotes'}")
        else:
            said.append(f"{me}: {'.'.join([argument, *map(str, rest)])}: {problem['msg'].lower()}")
    said += [f"{what}; expected {' or '.join(expected)}" for what, expected in declarations.items()]
    return "; ".join(dict.fromkeys(said))


def _one_or_more(argument: str, given: tuple[Any, ...]) -> str:
    """What was given to ``argument`` instead of the tuple of it, and how that is written."""
    inside = [f"{type(one).__name__}(…)" if dataclasses.is_dataclass(one) else f"{one!r:.100}" for one in given]
    if len(given) == 1:
        return f"{inside[0]}, which is no tuple, as a comma is missing: write {argument}=({inside[0]},)"
    return f"no tuple, as its parentheses are missing: write {argument}=({', '.join(inside)})"


def _word(given: Any) -> str:
    return given.__name__ if isinstance(given, type) else str(given)


def checked_name(value: str, what: str) -> str:
    """``value`` if it is a usable name, else an error that says which characters are. Dagster takes no word of Python's as a job's name."""
    if keyword.iskeyword(value):
        raise Misdeclared(f"{what} {value!r} is a word of Python's, which Dagster takes for no name; call it {value + 's'!r}, say")
    if not NAME.fullmatch(value):
        raise Misdeclared(
            f"{what} {value!r} is not a usable name: lower-case letters, digits and underscores, starting with a letter, at most 63"
        )
    return value
