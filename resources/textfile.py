"""Delimited text files as columns of text, every record with the line it starts on.

Arrow's reader takes the records apart; what it does not do (encodings, lines, quotes that nobody closed, proof that nothing got
lost) is in resources.textstream and resources.linecount.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.csv as arrow_csv

from resources.errors import Misconfigured, Poison
from resources.files_seam import Files, Listed, matching
from resources.linecount import Ledger, Shape, open_quote, quote_left_open
from resources.records import Records, place_of, unread_of
from resources.textstream import Utf8Stream, break_lines, check_encoding, opened, utf8

DELIMITERS = (",", ";", "\t", "|", ":", "\x01")
"""What is suggested where the declared delimiter does not fit."""
SIMILAR = 0.6
"""As difflib measures: a name this near to a wanted one is suggested, and shows that the line is a header."""
BLOCK_BYTES = 1 << 20
"""Also the longest record that is sure to be read. Arrow reads up to 32 blocks ahead: 5 million orders took 100 MB with blocks of
1 MiB and 480 MB with 8 MiB, at the same speed."""


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    quote: str
    header: bool
    columns: tuple[str, ...]
    null_values: tuple[str, ...]
    block_bytes: int

    def __post_init__(self) -> None:
        for what, char in (("delimiter", self.delimiter), ("quote", self.quote or "'")):
            if len(char) != 1 or not char.isascii() or char in "\r\n\0":
                raise Misconfigured(f"{what} {char!r} is not one ASCII character" + (" or ''" if what == "quote" else ""))
        if self.delimiter == self.quote:
            raise Misconfigured(f"delimiter and quote are both {self.quote!r}; fields could not be told apart")
        if self.header == bool(self.columns):
            raise Misconfigured("columns names the columns of a file without a header: give columns with header=False, or neither")
        if any("\n" in value or "\r" in value for value in self.null_values):
            raise Misconfigured("null_values may not contain line breaks")

    def rows(self, lines: Iterator[str]) -> Iterator[list[str]]:
        quoting = csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE
        return csv.reader(lines, delimiter=self.delimiter, quotechar=self.quote or None, quoting=quoting)


def read_text(
    files: Files,
    pattern: str,
    *,
    fields: Mapping[str, str],
    delimiter: str = ",",
    quote: str = '"',
    header: bool = True,
    columns: Sequence[str] = (),
    encoding: str = "utf-8",
    compression: str = "infer",
    null_values: Sequence[str] = ("",),
    longest_record_bytes: int = BLOCK_BYTES,
) -> Iterator[Records]:
    """The records of every file that matches, in name order, as text.

    ``fields``       output column → the column's name in the file; several files may have them in different places.
    ``quote``        doubled inside quotes; '' if the file does not quote.
    ``columns``      the names in order, for files without a header.
    ``null_values``  texts that mean null, quoted or not; ``()``: nothing is null, '' is a text of no characters.
    ``compression``  'infer' (gzip if the name ends in .gz), 'gzip' or 'none'.
    ``longest_record_bytes``  also the size of the blocks in which the file is read.

    A record with too many or too few fields is ``Unreadable``; blank lines are skipped; positions are physical lines, the
    header's first is 1. A file without records gives one empty run. Raises Misconfigured (no file, no such column, an ambiguous
    column, a delimiter that no record follows), Poison (wrong encoding, cut gzip, open quote, no header, a record of more than
    ``longest_record_bytes``, lines unaccounted for), and what ``files`` raises. Memory is bounded by some 50 blocks, whatever the
    file's size.
    """
    dialect = _Dialect(delimiter, quote, header, tuple(columns), tuple(null_values), longest_record_bytes)
    check_encoding(encoding, compression)
    if not fields:
        raise Misconfigured("fields is empty: name at least one column to read")
    return _read(files, pattern, dict(fields), dialect, encoding, compression)


def count_text(
    files: Files,
    pattern: str,
    *,
    fields: Mapping[str, str] | None = None,
    delimiter: str = ",",
    quote: str = '"',
    header: bool = True,
    columns: Sequence[str] = (),
    encoding: str = "utf-8",
    compression: str = "infer",
    null_values: Sequence[str] = ("",),
    longest_record_bytes: int = BLOCK_BYTES,
) -> int:
    """How many records there are, unreadable ones included: counted by Python's csv module, sharing nothing with the reader.

    Takes the options of :func:`read_text` so that both can be called alike; ``fields`` and ``null_values`` do not matter.
    """
    dialect = _Dialect(delimiter, quote, header, tuple(columns), tuple(null_values), longest_record_bytes)
    check_encoding(encoding, compression)
    csv.field_size_limit(max(csv.field_size_limit(), 2 * longest_record_bytes))  # the process's limit, 128 KiB unless raised
    return sum(_count_file(files, listed, dialect, encoding, compression) for listed in matching(files, pattern))


def _count_file(files: Files, listed: Listed, dialect: _Dialect, encoding: str, compression: str) -> int:
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    try:
        with (
            opened(files, listed, compression) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig" if is_utf8 else encoding, newline="") as text,
        ):
            rows = sum(1 for row in dialect.rows(text) if row)
    except (UnicodeError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
        raise Poison(f"the file cannot be counted: {error}", place=listed.name) from error
    return rows - 1 if dialect.header and rows else rows


def _read(files: Files, pattern: str, fields: dict[str, str], dialect: _Dialect, encoding: str, compression: str) -> Iterator[Records]:
    for listed in matching(files, pattern):
        with utf8(files, listed, encoding, compression) as stream:
            yield from _read_file(stream, fields, dialect)


def _read_file(stream: Utf8Stream, fields: dict[str, str], dialect: _Dialect) -> Iterator[Records]:
    first = stream.read(dialect.block_bytes)
    header, names = _header(stream, first, dialect) if dialect.header else (b"", list(dialect.columns))
    wanted = _wanted(names, fields, header, stream.name, dialect)
    line = 1 + sum(1 for _ in break_lines(header))
    shape = Shape(dialect.delimiter, dialect.quote, len(names), wanted, line, dialect.block_bytes)
    ledger = Ledger(stream, first[len(header) :], shape)
    unread = unread_of(names, fields)
    runs = 0
    for batch in _batches(ledger, shape, dialect):
        run = ledger.account(batch)
        if run.batch.num_rows or run.unreadable:
            runs += 1
            yield replace(run, unread=unread)
    run = ledger.rest()
    _check_fits(ledger, dialect)
    if run.unreadable or not runs:
        yield replace(run, unread=unread)
    ledger.close()


def _batches(ledger: Ledger, shape: Shape, dialect: _Dialect) -> Iterator[pa.RecordBatch]:
    names = [str(index) for index in range(shape.columns)]
    # Only one thread numbers the rows that do not fit. Blank lines never reach Arrow: see linecount.
    read = arrow_csv.ReadOptions(block_size=dialect.block_bytes, use_threads=False, column_names=names)
    parse = arrow_csv.ParseOptions(
        delimiter=dialect.delimiter,
        quote_char=dialect.quote or False,
        newlines_in_values=bool(dialect.quote),
        ignore_empty_lines=False,
        invalid_row_handler=ledger.refuse,
    )
    # Every column is converted, wanted or not: a line break in an unwanted one moves the lines of all that follow.
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=bool(dialect.null_values),
        null_values=[value.replace("\0", shape.nul) for value in dialect.null_values],
        check_utf8=False,
    )
    try:
        with arrow_csv.open_csv(ledger.text, read_options=read, parse_options=parse, convert_options=convert) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        ledger.text.close()
        if not ledger.gave_up:
            raise _cannot_go_on(ledger, dialect, error) from error
    finally:
        ledger.text.close()
    if ledger.gave_up:  # not in the handler above: Arrow's own words quote the record
        _check_fits(ledger, dialect)


def _cannot_go_on(ledger: Ledger, dialect: _Dialect, error: pa.ArrowInvalid) -> Poison:
    ledger.rest()  # so that the line is the first that was not read
    said = f"the file cannot be taken apart from here on: {error}"
    if "straddling" in str(error):
        size = f"{dialect.block_bytes / (1 << 20):g} MiB"
        likely = "most likely a quote that opens in it is never closed"
        said = f"the record here is longer than {size}: {likely}; if not, raise longest_record_bytes"
    return Poison(said, place=place_of(ledger.name, "line", ledger.line))


def _header(stream: Utf8Stream, first: bytes, dialect: _Dialect) -> tuple[bytes, list[str]]:
    """The bytes up to the end of the header, blank lines before it included, and the names in it."""
    used: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in break_lines(first):
            used.append(line)
            yield line.decode("utf-8", "replace")

    try:
        names = next((row for row in dialect.rows(lines()) if row), None)
    except csv.Error as error:
        raise Poison(f"the header cannot be read: {error}", place=place_of(stream.name, "line", 1)) from error
    header = b"".join(used)
    if names is None:
        raise Poison("the file is empty: not even a header; have it sent again", place=stream.name)
    left_open = quote_left_open(header.decode("utf-8", "replace"), dialect.delimiter, dialect.quote)
    if left_open is not None:
        raise open_quote(stream.name, 1 + left_open)
    if "\0" in "".join(names):
        raise Poison("the header contains NUL characters; the encoding may be utf-16-le or utf-16-be", place=stream.name)
    return header, names


def _wanted(names: Sequence[str], fields: dict[str, str], header: bytes, file: str, dialect: _Dialect) -> dict[str, int]:
    times = Counter(names)
    for column in fields.values():
        if times[column] > 1:
            said = f"column {column!r} is wanted but appears {times[column]} times in the header"
            raise Misconfigured(f"{said}; rename one of them, or read the file with header=False and columns", place=file)
        if column not in times:
            is_header = any(_like(name, wanted) for name in names for wanted in fields.values())
            raise Misconfigured(_no_column(column, names, header, dialect, is_header=is_header), place=file)
    return {output: list(names).index(column) for output, column in fields.items()}


def _like(name: str, wanted: str) -> bool:
    """Whether ``name`` may be meant for ``wanted``, or hold it under another delimiter."""
    name, wanted = name.strip().casefold(), wanted.strip().casefold()
    held = re.search(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9])", name)
    return held is not None or difflib.SequenceMatcher(None, name, wanted).ratio() >= SIMILAR


def _no_column(column: str, names: Sequence[str], header: bytes, dialect: _Dialect, *, is_header: bool) -> str:
    # A first line without any of the names is likely a row of data, which no error may quote.
    shown = (
        ", ".join(map(repr, names))
        if is_header
        else f"none of the {len(names)} fields of line 1 is like a wanted name; is the header missing?"
    )
    said = f"there is no column {column!r}; {'there is ' if is_header else ''}{shown}"
    likely = _likely_delimiter(header.decode("utf-8", "replace"), dialect.delimiter)
    if len(names) == 1 and likely:
        return f"{said}; the delimiter is declared as {dialect.delimiter!r} but is probably {likely!r}"
    folded = {name.strip().casefold(): name for name in names}
    near = difflib.get_close_matches(column.strip().casefold(), folded, n=3, cutoff=SIMILAR)
    return f"{said}; did you mean {' or '.join(repr(folded[name]) for name in near)}?" if near and is_header else said


def _check_fits(ledger: Ledger, dialect: _Dialect) -> None:
    """Misconfigured if no record has as many fields as declared. One bad record alone is bad data, if it is delimited at all."""
    first = ledger.first_bad
    if ledger.good or first is None or (ledger.bad == 1 and not ledger.gave_up and dialect.delimiter in first.text):
        return
    likely = _likely_delimiter(first.text, dialect.delimiter)
    hint = f"the delimiter is probably {likely!r}" if likely else "check delimiter, quote, header and columns"
    said = f"no record has the {ledger.expected} fields that were expected; the first has {first.found}"
    raise Misconfigured(f"{said}; delimiter is declared as {dialect.delimiter!r}: {hint}", place=ledger.name)


def _likely_delimiter(text: str, declared: str) -> str | None:
    found = {char: text.count(char) for char in DELIMITERS if char != declared and char in text}
    return max(found, key=lambda char: found[char], default=None)
