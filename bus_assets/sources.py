"""Where a pick-up reads: pure declarations, each of one kind of source. ``system`` is the name of a bound resource.

In all of them ``fields`` says where each contract field is found (``{"supplier_id": "@id"}``); a field that is not listed is
found under its own name. Texts may hold placeholders (``orders-{params.month}.csv``), see :mod:`bus_assets.values`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from bus_assets.declare import Misdeclared, about, declaration
from bus_assets.seams import FILES, QUERIED, SERVICE, Seam
from bus_assets.values import TripValues, fill, fill_pattern, fill_url
from resources.http_paging import checked_paging
from resources.xmlpaths import RowPath, plan_of

if TYPE_CHECKING:
    from resources.records import Records

MOST_BYTES_OF_A_RECORD = 1 << 30
"""Arrow counts the bytes of a block in 32 bits, and reads many blocks ahead."""


@runtime_checkable
class Source(Protocol):
    """What a pick-up needs of a source; write your own by having these.

    ``read`` yields :class:`~resources.records.Records` whose columns are the keys of ``fields``. ``recount`` counts the records
    again, by other means where there are any, for ``bus account``. ``address`` is where a person would look, never a secret.
    A class variable ``unit`` ('line', 'element', 'record'; default 'row') says what positions count; another, ``seam``, what is called
    on the system, so that one of another kind is refused when definitions are built (:mod:`bus_assets.seams`).
    """

    system: str
    fields: Mapping[str, str]

    def read(self, system: Any, fields: Mapping[str, str], values: TripValues) -> Iterator[Records]: ...
    def recount(self, system: Any, values: TripValues) -> int: ...
    def address(self) -> str: ...
    def templates(self) -> tuple[Any, ...]: ...


@declaration
class TextFile:
    """Delimited text: one file or a glob (``orders/*.csv``), from a local directory or S3, plain or gzip.

    ``header=False`` needs ``columns``, the names in order. ``null_values`` are texts that mean 'no value'.
    ``longest_record_bytes``  a longer record fails the file; memory grows with it (about 32 of them are read ahead).
    Rows with too many or too few fields go to quarantine with their line; a file that cannot be read at all fails the stop.
    """

    unit: ClassVar[str] = "line"
    seam: ClassVar[Seam] = FILES

    system: str
    path: str
    delimiter: str = ","
    quote: str = '"'
    header: bool = True
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    compression: Literal["infer", "gzip", "none"] = "infer"
    null_values: tuple[str, ...] = ("",)
    longest_record_bytes: int = 1 << 20
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_sign(self.delimiter) or self.delimiter == '"':
            raise Misdeclared(f"TextFile {self.path!r}: delimiter {self.delimiter!r} must be one character of ASCII")
        if (self.quote and not _is_sign(self.quote)) or self.quote == self.delimiter:
            raise Misdeclared(
                f"TextFile {self.path!r}: quote {self.quote!r} must be one character of ASCII, or '' for none, and not the delimiter"
            )
        if any("\n" in value or "\r" in value for value in self.null_values):
            raise Misdeclared(f"TextFile {self.path!r}: null_values may not contain line breaks")
        if not 1 <= self.longest_record_bytes <= MOST_BYTES_OF_A_RECORD:
            raise Misdeclared(
                f"TextFile {self.path!r}: longest_record_bytes is {self.longest_record_bytes}; it must be 1 to {MOST_BYTES_OF_A_RECORD}"
            )
        if not self.header and not self.columns:
            raise Misdeclared(f"TextFile {self.path!r}: without a header, columns=(…) must name the columns in order")
        if self.header and self.columns:
            raise Misdeclared(f"TextFile {self.path!r}: columns is for files without a header; to rename columns use fields={{…}}")
        _check_encoding(f"TextFile {self.path!r}", self.encoding)

    def read(self, system: Any, fields: Mapping[str, str], values: TripValues) -> Iterator[Records]:
        from resources.textfile import read_text

        return read_text(system, fill_pattern(self.path, values), fields=fields, **self._options())

    def recount(self, system: Any, values: TripValues) -> int:
        from resources.textfile import count_text

        return count_text(system, fill_pattern(self.path, values), **self._options())

    def _options(self) -> dict[str, Any]:
        names = ("delimiter", "quote", "header", "columns", "encoding", "compression", "null_values", "longest_record_bytes")
        return {name: getattr(self, name) for name in names}

    def address(self) -> str:
        return self.path

    def templates(self) -> tuple[Any, ...]:
        return (self.path,)


@declaration
class JsonLines:
    """One JSON object a line; ``fields`` are dotted paths (``address.city``). Of lists and objects see ``Field``."""

    unit: ClassVar[str] = "line"
    seam: ClassVar[Seam] = FILES

    system: str
    path: str
    encoding: str = "utf-8"
    compression: Literal["infer", "gzip", "none"] = "infer"
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_encoding(f"JsonLines {self.path!r}", self.encoding)

    def read(self, system: Any, fields: Mapping[str, str], values: TripValues) -> Iterator[Records]:
        from resources.jsonlines import read_json_lines

        return read_json_lines(system, fill_pattern(self.path, values), fields=fields, encoding=self.encoding, compression=self.compression)

    def recount(self, system: Any, values: TripValues) -> int:
        from resources.jsonlines import count_json_lines

        return count_json_lines(system, fill_pattern(self.path, values), encoding=self.encoding, compression=self.compression)

    def address(self) -> str:
        return self.path

    def templates(self) -> tuple[Any, ...]:
        return (self.path,)


@declaration
class ParquetFile:
    """Parquet files, with the types that they have."""

    unit: ClassVar[str] = "row"
    seam: ClassVar[Seam] = FILES

    system: str
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)

    def read(self, system: Any, fields: Mapping[str, str], values: TripValues) -> Iterator[Records]:
        from resources.parquetfile import read_parquet

        return read_parquet(system, fill_pattern(self.path, values), fields=fields)

    def recount(self, system: Any, values: TripValues) -> int:
        from resources.parquetfile import count_parquet

        return count_parquet(system, fill_pattern(self.path, values))

    def address(self) -> str:
        return self.path

    def templates(self) -> tuple[Any, ...]:
        return (self.path,)


@declaration
class XmlFeed:
    """An XML feed, streamed, from files, S3 or a web service. ``row`` is the element of a record: 'product', 'n:product' or a path.

    ``fields`` are paths in the row: 'name', 'price/amount', '@id', 'price/@currency', '.' (the row's own text), and 'tags/tag[]'
    for repeated children as a list; 'variant[]/@sku' and 'variant[]/price' have an item for each variant, null where it has none.
    Prefixes come from ``namespaces``. Entities are never expanded, nothing external is loaded.
    """

    unit: ClassVar[str] = "element"
    seam: ClassVar[Seam] = FILES

    system: str
    path: str
    row: str
    namespaces: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with about(f"XmlFeed {self.path!r}"):
            RowPath.parse(self.row, self.namespaces)
            if self.fields:
                plan_of(self.fields, self.namespaces)

    def read(self, system: Any, fields: Mapping[str, str], values: TripValues) -> Iterator[Records]:
        from resources.xmlfeed import read_xml

        return read_xml(system, fill_pattern(self.path, values), row=self.row, fields=fields, namespaces=self.namespaces)

    def recount(self, system: Any, values: TripValues) -> int:
        from resources.xmlfeed import count_xml

        return count_xml(system, fill_pattern(self.path, values), row=self.row, namespaces=self.namespaces)

    def address(self) -> str:
        return self.path

    def templates(self) -> tuple[Any, ...]:
        return (self.path,)


@declaration
class Endpoint:
    """JSON over HTTP. ``records`` is the dotted path to the list in each body (none: the body is the list).

    ``paging`` says how one page leads to the next: ``{"kind": "page"}``, ``"offset"``, ``"cursor"``, ``"next_url"``,
    ``"link_header"`` or ``"none"``; the keys of each are in :mod:`resources.http_paging`.
    """

    unit: ClassVar[str] = "record"
    seam: ClassVar[Seam] = SERVICE

    system: str
    path: str
    records: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    paging: Mapping[str, Any] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with about(f"Endpoint {self.path!r}"):
            checked_paging(self.paging)

    def read(self, system: Any, fields: Mapping[str, str], values: TripValues) -> Iterator[Records]:
        return system.records(
            fill_url(self.path, values), fields=fields, params=fill(self.params, values), records=self.records, paging=self.paging
        )

    def recount(self, system: Any, values: TripValues) -> int:
        return system.count(fill_url(self.path, values), params=fill(self.params, values), records=self.records, paging=self.paging)

    def address(self) -> str:
        return self.path

    def templates(self) -> tuple[Any, ...]:
        return (self.path, self.params)


@declaration
class Query:
    """A SELECT on a database, streamed by a server-side cursor; ``params`` are bound (``:month``), never pasted into the text."""

    unit: ClassVar[str] = "row"
    seam: ClassVar[Seam] = QUERIED

    system: str
    sql: str
    params: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if "{" in self.sql and any(mark in self.sql for mark in ("{params.", "{trip}", "{scheduled}", "{date}")):
            raise Misdeclared(
                "Query: placeholders do not belong in the SQL text; write :month there and params={'month': '{params.month}'}"
            )

    def read(self, system: Any, fields: Mapping[str, str], values: TripValues) -> Iterator[Records]:
        return system.read(self.sql, params=fill(self.params, values), fields=fields, name=self.address())

    def recount(self, system: Any, values: TripValues) -> int:
        return system.count(self.sql, params=fill(self.params, values))

    def address(self) -> str:
        return self.name or " ".join(self.sql.split())[:80]

    def templates(self) -> tuple[Any, ...]:
        return (self.params,)


def _is_sign(text: str) -> bool:
    """Whether Arrow takes ``text`` for a delimiter or a quote."""
    return len(text) == 1 and text.isascii() and text not in "\r\n\0"


def _check_encoding(me: str, encoding: str) -> None:
    try:
        "".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError):
        raise Misdeclared(f"{me}: encoding {encoding!r} is not known; examples: utf-8, latin-1, cp1252") from None
