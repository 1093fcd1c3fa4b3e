"""Second eyes on an XML feed: expat looks for declared entities before lxml parses, and counts rows independently of it."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO
from xml.parsers import expat

from resources.errors import Poison
from resources.files_seam import Files, Listed
from resources.records import place_of
from resources.xmlpaths import RowPath

CHUNK_BYTES = 1 << 17
MAX_PATHS = 1000
"""Different element paths that a survey tells apart: a feed with more has no regular shape to describe."""
_BLANK = " \t\r\n"
_EXPAT_KNOWS = frozenset({"utf-8", "utf-16", "iso8859-1", "ascii"})
_DECLARED = re.compile(rb"""^<\?xml[^>]{0,200}?\bencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def chunks(files: Files, listed: Listed) -> Iterator[bytes]:
    """The file's bytes, decompressed if its name ends in ``.gz``; Poison if the gzip is cut or broken."""
    with files.open(listed.name, listed.version) as raw:
        stream: BinaryIO = raw
        if listed.name.lower().endswith(".gz"):
            stream = gzip.GzipFile(fileobj=raw)  # pyright: ignore[reportAssignmentType]
        try:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
        except EOFError as error:
            raise Poison("the gzip ends too early; the file was cut, have it sent again", place=listed.name) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise Poison(f"the file is named .gz but is not sound gzip ({error}); have it sent again", place=listed.name) from error


class Scanner:
    """expat over one file, fed chunk by chunk. Any declared entity is Poison that names it, before it could be used.

    ``root`` is the root element's Clark name once it has been seen.
    """

    def __init__(self, name: str):
        self.root: str | None = None
        self._name = name
        self._parser: expat.XMLParserType | None = None
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, chunk: bytes, *, last: bool = False) -> None:
        parser = self._parser or self._begin(chunk)
        try:
            parser.Parse(self._decoder.decode(chunk, last).encode() if self._decoder else chunk, last)
        except expat.ExpatError as error:
            said = f"the XML is cut or broken: {expat.ErrorString(error.code)}; have the feed sent again"
            raise Poison(said, place=place_of(self._name, "line", error.lineno)) from error
        except (UnicodeError, ValueError) as error:
            raise Poison(f"the feed's bytes are not in the encoding that it declares: {error}", place=self._name) from error

    def _begin(self, head: bytes) -> expat.XMLParserType:
        """expat knows four encodings; what is declared in another is decoded for it."""
        declared = _DECLARED.match(head)
        if declared:
            try:
                codec = codecs.lookup(declared.group(1).decode("ascii"))
                if codec.name not in _EXPAT_KNOWS:
                    self._decoder = codec.incrementaldecoder() if codec.incrementaldecoder else None
            except LookupError as error:
                raise Poison(f"the feed declares an encoding that is not known: {error}", place=self._name) from error
        parser = expat.ParserCreate("utf-8" if self._decoder else None, namespace_separator="}")
        parser.EntityDeclHandler = self._entity
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        self._parser = parser
        return parser

    def _entity(self, name: str, is_parameter: bool, value: str | None, base: str | None, system: str | None, *_: str | None) -> None:
        what = f"external entity {name!r} (SYSTEM {system!r})" if value is None else f"entity {name!r}"
        said = f"the feed declares the {what}; entities are neither expanded nor fetched: have the feed sent without them"
        raise Poison(said, place=place_of(self._name, "line", self._parser.CurrentLineNumber if self._parser else 1))

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = f"{{{name}" if "}" in name else name
        self.root = self.root or tag
        self.started(tag, attributes)

    def _end(self, name: str) -> None:
        self.ended()

    def _text(self, text: str) -> None:
        self.said(text)

    def started(self, tag: str, attributes: dict[str, str]) -> None: ...
    def ended(self) -> None: ...
    def said(self, text: str) -> None: ...


class _RootSeen(Exception):
    """The declarations are over."""


class Prolog(Scanner):
    """Reads up to the root element and leaves everything after it to others."""

    def feed(self, chunk: bytes, *, last: bool = False) -> None:
        with contextlib.suppress(_RootSeen):
            super().feed(chunk, last=last)

    def started(self, tag: str, attributes: dict[str, str]) -> None:
        raise _RootSeen


class _Counter(Scanner):
    def __init__(self, name: str, row: RowPath):
        super().__init__(name)
        self.rows = 0
        self._row = row
        self._open: list[str] = []
        self._row_depth = 0

    def started(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._row_depth and self._row.matches(tag, tuple(self._open)):
            self.rows += 1
            self._row_depth = len(self._open) + 1
        self._open.append(tag)

    def ended(self) -> None:
        if len(self._open) == self._row_depth:
            self._row_depth = 0
        self._open.pop()


@dataclass
class Survey(Scanner):
    """Which elements a feed has, for the message when none of them is a row."""

    name: str
    paths: Counter[tuple[str, ...]] = field(default_factory=Counter)
    says_nothing: bool = True

    def __post_init__(self) -> None:
        super().__init__(self.name)
        self._open: list[str] = []

    def started(self, tag: str, attributes: dict[str, str]) -> None:
        self._open.append(tag)
        if len(self._open) > 1 and attributes:
            self.says_nothing = False
        if len(self.paths) < MAX_PATHS or tuple(self._open) in self.paths:
            self.paths[tuple(self._open)] += 1

    def ended(self) -> None:
        self._open.pop()

    def said(self, text: str) -> None:
        if len(self._open) > 1 and text.strip(_BLANK):
            self.says_nothing = False

    def may_be_empty(self, row: RowPath) -> bool:
        """Whether no rows is the truth and not a wrong name: nothing is said below the root, or the rows' parent is there, empty."""
        if self.says_nothing and not self._namesakes(row):
            return True
        holder = row.parents
        return bool(holder) and holder in self.paths and not any(path[:-1] == holder for path in self.paths)

    def _namesakes(self, row: RowPath) -> list[tuple[str, ...]]:
        return [path for path in self.paths if _local(path[-1]) == _local(row.tag)]

    def explain(self, row: RowPath) -> str:
        """What the feed has instead of ``row``, and what to write to read it."""
        below_root = [path for path in self.paths if len(path) > 1] or list(self.paths)
        path = (self._namesakes(row) or [max(below_root, key=lambda path: (self.paths[path], -len(path)))])[0]
        uri = path[-1][1:].partition("}")[0] if path[-1].startswith("{") else ""
        declare = f"namespaces={{'n': {uri!r}}} and row='n:{_local(path[-1])}'" if uri else f"row={_spelt(path, row)!r}"
        others = ", ".join(f"{tag} {times}x" for tag, times in self._by_name().most_common(5))
        return (
            f"no element is {row.text!r}: the feed has {path[-1]} {self.paths[path]} times: declare {declare} (there are: {others}). If "
            f"the feed may have no rows, name them by their path from the root, as in 'catalog/products/product'"
        )

    def _by_name(self) -> Counter[str]:
        names: Counter[str] = Counter()
        for path, times in self.paths.items():
            names[path[-1]] += times
        return names


def count_xml(files: Files, listed: Listed, row: RowPath) -> int:
    """Rows of one feed by expat, which shares no code with lxml."""
    counter = _Counter(listed.name, row)
    _drive(counter, files, listed)
    return counter.rows


def survey(files: Files, listed: Listed) -> Survey:
    """A pass over the whole feed; memory is bounded by the number of different paths."""
    seen = Survey(listed.name)
    _drive(seen, files, listed)
    return seen


def _drive(scanner: Scanner, files: Files, listed: Listed) -> None:
    for chunk in chunks(files, listed):
        scanner.feed(chunk)
    scanner.feed(b"", last=True)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _spelt(path: tuple[str, ...], row: RowPath) -> str:
    return path[-1] if row.parents is None else "/".join(map(_local, path))
