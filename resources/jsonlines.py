"""JSON objects, one a line, as columns of text; and the same for objects that came another way (a web service's answers).

Text is kept as it stood: ``12.50`` stays ``12.50``, because a number that passed through a float may be another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from resources.errors import Misconfigured, Poison
from resources.files_seam import Files, matching
from resources.records import NESTED, Records, Unreadable, place_of
from resources.textstream import Utf8Stream, check_encoding, utf8

BATCH_ROWS = 65536
BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 64 << 20
"""A longer line is no record but a file that is not JSON lines; it is refused before it fills the memory."""
MAX_BATCH_BYTES = 32 << 20
"""A batch ends here, however few records that is."""
MAX_DEPTH = 100
"""Objects and lists inside one another. Real data has a handful; what goes deeper is meant to exhaust the reader."""


class _Number(str):
    """A JSON number's digits as they were written."""

    __slots__ = ()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_no_constant)


def loads_exact(text: str) -> Any:
    """``text`` as Python values, numbers as ``str`` with their digits as written (other strings cannot be mistaken for them
    by :func:`text_columns`). Of a key that appears twice, the last counts.

    Raises Poison for what is not JSON, NaN and Infinity included, nested deeper than ``MAX_DEPTH``, or has half a surrogate pair.
    """
    try:
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(text)
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:
            _json_text(value).encode()
    except UnicodeEncodeError as error:
        raise Poison("not readable: half of a surrogate pair is no character") from error
    except json.JSONDecodeError as error:
        raise Poison(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:
        raise Poison(f"not JSON: {error}") from error
    return value


def _check_depth(text: str) -> None:
    """ValueError if brackets outside strings go deeper than allowed. Runs before the parser, which would recurse."""
    depth, in_string, skip = 0, False, False
    for char in text:
        if skip:
            skip = False
        elif in_string:
            skip, in_string = char == "\\", char != '"'
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        elif char in "]}":
            depth -= 1


@dataclass(frozen=True)
class _Astray:
    """In the place of a value: why its path does not lead to one."""

    why: str


def text_columns(
    objects: Sequence[Mapping[str, Any]], fields: Mapping[str, str]
) -> tuple[pa.RecordBatch, dict[str, dict[int, str]], dict[str, dict[int, str]]]:
    """One column of text for each of ``fields``: output column → dotted path (``address.city``; a key that contains the dot wins).

    Strings as they are, numbers as written (if read by :func:`loads_exact`), ``true`` and ``false``, lists and objects as compact
    JSON text; null where there is nothing or null, on the way there too. Lists are not entered by a path. Beside them
    :attr:`Records.nested` and :attr:`Records.astray`.
    """
    columns, nested, astray = [], {}, {}
    for name, path in fields.items():
        values = list(map(_getter(path), objects))
        kinds = set(map(type, values))
        if _Astray in kinds:
            astray[name] = {row: value.why for row, value in enumerate(values) if isinstance(value, _Astray)}
            values = [None if isinstance(value, _Astray) else value for value in values]
        columns.append(pa.array(list(map(_text, values)), pa.string()))
        if not NESTED.keys().isdisjoint(kinds):
            nested[name] = {row: NESTED[type(value)] for row, value in enumerate(values) if type(value) in NESTED}
    return pa.RecordBatch.from_arrays(columns, names=list(fields)), nested, astray


def _getter(path: str) -> Callable[[Mapping[str, Any]], Any]:
    if "." not in path:
        return lambda item: item.get(path)
    return lambda item: item[path] if path in item else _inside(item, path)


def _inside(item: Any, path: str) -> Any:
    keys = path.split(".")
    for depth, key in enumerate(keys):
        if item is None:
            return None
        if not isinstance(item, dict):
            parent = ".".join(keys[:depth])
            return _Astray(f"cannot be read at {path!r}: {parent!r} is {_json_kind(item)}, not an object")
        item = item.get(key)
    return item


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else _json_text(value)


def _json_text(value: Any) -> str:
    """``value`` as compact JSON, numbers with their digits as written."""
    if isinstance(value, _Number):
        return value
    if isinstance(value, dict):
        return "{" + ",".join([f"{_json_text(key)}:{_json_text(item)}" for key, item in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_json_text(item) for item in value]) + "]"
    return json.dumps(value, ensure_ascii=False)


def read_json_lines(
    files: Files,
    pattern: str,
    *,
    fields: Mapping[str, str],
    encoding: str = "utf-8",
    compression: str = "infer",
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Records]:
    """The objects in every file that matches, in name order, as :func:`text_columns`; positions are lines, blank ones skipped.

    A line that is not a JSON object is ``Unreadable``. A file without records gives one empty run. Raises Misconfigured (no file),
    Poison (wrong encoding, cut gzip, a line of more than ``MAX_LINE_BYTES``), and what ``files`` raises.
    """
    check_encoding(encoding, compression)
    if not fields:
        raise Misconfigured("fields is empty: name at least one path to read")
    return _read(files, pattern, dict(fields), encoding, compression, batch_rows)


def count_json_lines(files: Files, pattern: str, *, encoding: str = "utf-8", compression: str = "infer", **_: Any) -> int:
    """How many lines are not blank, unreadable ones included."""
    check_encoding(encoding, compression)
    count = 0
    for listed in matching(files, pattern):
        with utf8(files, listed, encoding, compression) as stream:
            count += sum(1 for _, line in _lines(stream) if line)
    return count


def _read(files: Files, pattern: str, fields: dict[str, str], encoding: str, compression: str, batch_rows: int) -> Iterator[Records]:
    for listed in matching(files, pattern):
        with utf8(files, listed, encoding, compression) as stream:
            yield from _read_file(stream, fields, batch_rows)


def _read_file(stream: Utf8Stream, fields: dict[str, str], batch_rows: int) -> Iterator[Records]:
    run, runs, number = _Run(), 0, 0
    for number, line in _lines(stream):
        if line:
            run.add(number, line)
        if run.rows >= batch_rows or run.size_bytes >= MAX_BATCH_BYTES:
            runs += 1
            yield run.records(stream.name, fields)
            run = _Run()
    if number != stream.lines:
        said = f"{stream.lines} lines were counted but {number} were read"
        raise Poison(f"{said}; nothing of this file may be used, please report it with the file", place=stream.name)
    if run.rows or not runs:
        yield run.records(stream.name, fields)


@dataclass
class _Run:
    """Records on their way into one batch."""

    objects: list[dict[str, Any]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def rows(self) -> int:
        return len(self.objects) + len(self.unreadable)

    def add(self, number: int, line: bytes) -> None:
        text = line.decode()
        self.size_bytes += len(line)
        try:
            value = loads_exact(text)
        except Poison as error:
            self.unreadable.append(Unreadable(number, text, error.message))
            return
        if isinstance(value, dict):
            self.objects.append(value)
            self.positions.append(number)
        else:
            self.unreadable.append(Unreadable(number, text, f"expected an object, found {_json_kind(value)}"))

    def records(self, name: str, fields: Mapping[str, str]) -> Records:
        positions = pa.array(self.positions, pa.int64())
        batch, nested, astray = text_columns(self.objects, fields)
        return Records(batch, name, positions, "line", tuple(self.unreadable), nested=nested, astray=astray)


def _json_kind(value: Any) -> str:
    if isinstance(value, _Number):
        return "a number"
    return {**NESTED, str: "a string", bool: "true or false"}.get(type(value), "null")


def _lines(stream: Utf8Stream) -> Iterator[tuple[int, bytes]]:
    """Number and content of every physical line, without the blanks around it. CR alone ends a line too, as in text files."""
    number, tail = 0, b""
    while block := stream.read(BLOCK_BYTES):
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = block.split(b"\n")
        if whole:
            whole[0] = tail + whole[0]
            tail = b""
        tail += rest
        for line in whole:
            number += 1
            yield number, line.strip()
        if len(tail) > MAX_LINE_BYTES:
            said = f"the line here is longer than {MAX_LINE_BYTES >> 20} MiB"
            raise Poison(f"{said}; JSON lines have one object a line", place=place_of(stream.name, "line", number + 1))
    if tail:
        yield number + 1, tail.strip()
