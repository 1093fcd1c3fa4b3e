"""Which physical line each record of a delimited text file starts on, and the proof that no line got lost.

Arrow's reader tells neither lines nor blank lines apart, so the text is marked on its way in: a blank line gets a token that
comes back as a record of its own (or, inside quotes, is taken out of the value again), and the last line is a token of ours.
That one missing at the end means that a quote is still open. NUL travels as a token too: behind one, Arrow 26, where it cuts
blocks, overlooks a quote in the same eight bytes. Tokens are random: no file can contain them on purpose.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from resources.errors import Poison
from resources.records import Records, Unreadable, place_of
from resources.textstream import Utf8Stream, count_breaks, count_pairs

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them

MAX_RAGGED_AT_START = 100_000
"""So many records that do not fit before the first that does: the declaration is wrong; holding more costs memory."""
_BEFORE_BLANK = re.compile(rb"(?>\r\n|\r|\n)(?=[\r\n])")


@dataclass(frozen=True)
class Shape:
    """What is known of a file before its first record.

    ``columns`` how many there are; ``wanted`` the index of each output column; ``first_line`` the physical line after the header.
    """

    delimiter: str
    quote: str
    columns: int
    wanted: dict[str, int]
    first_line: int
    block_bytes: int
    blank: str = field(init=False)
    end: str = field(init=False)
    nul: str = field(init=False)

    def __post_init__(self) -> None:
        for name in ("blank", "end", "nul"):
            token = "".join(char for char in secrets.token_hex(12) if char not in self.delimiter + self.quote)
            object.__setattr__(self, name, token)


class MarkedText:
    """What Arrow reads: the text after the header, blank lines marked, with a last line of our own."""

    closed = False

    def __init__(self, stream: Utf8Stream, first: bytes, shape: Shape):
        self.has_marks = False
        self.at_end = False
        self._stream = stream
        self._first = first
        self._block_bytes = shape.block_bytes
        self._blank = shape.blank.encode()
        self._end = shape.end.encode()
        self._nul = shape.nul.encode()
        self._at_line_start = True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """A block. ``size`` is not obeyed: a block must not begin between CR and LF."""
        if self.at_end:
            return b""
        data, self._first = self._first or self._stream.read(self._block_bytes), b""
        if data:
            return self._marked(data)
        self.at_end = True
        return (b"" if self._at_line_start else b"\n") + self._end + b"\n"

    def close(self) -> None:
        self.at_end = True

    def _marked(self, data: bytes) -> bytes:
        if b"\0" in data:
            data, self.has_marks = data.replace(b"\0", self._nul), True
        begins_blank = self._at_line_start and data.startswith((b"\r", b"\n"))
        self._at_line_start = data.endswith((b"\r", b"\n"))
        if count_pairs(data, b"\n\n") or (b"\r" in data and (count_pairs(data, b"\n\r") or count_pairs(data, b"\r\r"))):
            data, self.has_marks = _BEFORE_BLANK.sub(rb"\g<0>" + self._blank, data), True
        if begins_blank:
            data, self.has_marks = self._blank + data, True
        return data


@dataclass(frozen=True)
class _Odd:
    """A record that Arrow could not fit into the columns, at its ordinal among all records; blank lines come this way too."""

    ordinal: int
    found: int
    text: str


class Ledger:
    """Every physical line of one file is accounted for here: header, record, unreadable or blank.

    ``text`` is what Arrow reads, ``refuse`` its handler of rows that do not fit; ``account`` turns Arrow's batches, in order, into
    :class:`Records` of the wanted columns; ``close`` compares the sum with the lines that the stream counted.
    """

    def __init__(self, stream: Utf8Stream, first: bytes, shape: Shape):
        self.good = 0
        self.bad = 0
        self.first_bad: _Odd | None = None
        self.gave_up = False
        self.line = shape.first_line
        self.text = MarkedText(stream, first, shape)
        self._stream = stream
        self._blank, self._end, self._nul = shape.blank, shape.end, shape.nul
        self._delimiter, self._quote = shape.delimiter, shape.quote
        self._wanted = shape.wanted
        self.expected = shape.columns
        self._ordinal = 1
        self._odd: deque[_Odd] = deque()
        self._ended = False

    @property
    def name(self) -> str:
        return self._stream.name

    def refuse(self, row: Any) -> str:
        """Arrow's ``invalid_row_handler``; it may run ahead of the batches, hence the ordinals."""
        self._odd.append(_Odd(row.number, row.actual_columns, row.text))
        if self.good == 0 and len(self._odd) > MAX_RAGGED_AT_START and row.text != self._blank:
            self.first_bad = next((odd for odd in self._odd if odd.text != self._blank), None)
            self.gave_up = True
            return "error"
        return "skip"

    def account(self, batch: pa.RecordBatch) -> Records:
        """The records of ``batch`` and the unreadable ones among and right behind them."""
        if self.text.at_end and batch.num_rows:
            self._check_last(batch)
        spans = _spans(batch)
        odd, at = self._due(batch.num_rows)
        if odd:
            spans = np.insert(spans, at, [1 + count_breaks(row.text.encode()) for row in odd])
        starts = self.line + np.cumsum(spans) - spans
        self.line += int(spans.sum())
        self._ordinal += len(spans)
        odd_at = np.asarray(at, dtype=np.int64) + np.arange(len(odd))
        unreadable = [self._unreadable(row, int(line)) for row, line in zip(odd, starts[odd_at], strict=True)]
        batch, positions = self._without_marks(batch, np.delete(starts, odd_at) if odd else starts)
        self.good += batch.num_rows
        return Records(
            pa.RecordBatch.from_arrays([batch.column(index) for index in self._wanted.values()], names=list(self._wanted)),
            self.name,
            pa.array(positions, pa.int64()),
            "line",
            tuple(bad for bad in unreadable if bad is not None),
        )

    def rest(self) -> Records:
        """What came after the last batch: unreadable records, or nothing."""
        nothing = [pa.array([], pa.string())] * self.expected
        return self.account(pa.RecordBatch.from_arrays(nothing, names=[str(index) for index in range(self.expected)]))

    def close(self) -> None:
        """Poison if a line was neither read nor refused nor blank."""
        accounted = self.line - 2 if self._ended else self.line - 1
        if not self._ended or accounted != self._stream.lines or self._odd:
            said = f"{self._stream.lines} lines were counted but {accounted} are accounted for"
            raise Poison(f"{said}; nothing of this file may be used, please report it with the file", place=self.name)

    def _due(self, good: int) -> tuple[list[_Odd], list[int]]:
        """Refused records that lie between the next ``good`` ones or right behind, and how many good ones precede each."""
        odd, at = [], []
        while self._odd and (before := self._odd[0].ordinal - self._ordinal - len(odd)) <= good:
            odd.append(self._odd.popleft())
            at.append(before)
        return odd, at

    def _unreadable(self, row: _Odd, line: int) -> Unreadable | None:
        if row.text == self._end:
            self._ended = True
            return None
        if row.text == self._blank:
            return None
        if self._end in row.text:
            raise open_quote(self.name, line + (quote_left_open(row.text, self._delimiter, self._quote) or 0))
        self.bad += 1
        self.first_bad = self.first_bad or row
        raw = row.text.replace(self._blank, "").replace(self._nul, "\0")
        return Unreadable(line, raw, f"expected {_fields(self.expected)}, found {row.found}")

    def _check_last(self, batch: pa.RecordBatch) -> None:
        """Poison if the last line of ours was swallowed by a quote that nobody closed."""
        last = [column[-1].as_py() or "" for column in batch.columns]
        for index, value in enumerate(last):
            if self._end in value and value != self._end:
                raise open_quote(self.name, self._last_line(batch) + sum(count_breaks(text.encode()) for text in last[:index]))

    def _last_line(self, batch: pa.RecordBatch) -> int:
        """The line on which the last record of a batch that is not accounted for yet starts."""
        before = [row for k, row in enumerate(self._odd) if row.ordinal - self._ordinal - k < batch.num_rows]
        return self.line + int(_spans(batch)[:-1].sum()) + sum(1 + count_breaks(row.text.encode()) for row in before)

    def _without_marks(self, batch: pa.RecordBatch, positions: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
        if batch.num_columns == 1 and (self.text.has_marks or self.text.at_end):
            batch, positions = self._without_mark_rows(batch, positions)
        if not self.text.has_marks:
            return batch, positions
        columns = [self._unmarked(column) for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, names=batch.schema.names), positions

    def _without_mark_rows(self, batch: pa.RecordBatch, positions: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
        """In a file of one column the tokens fit, so they come as records."""
        column = batch.column(0)
        ends = pc.fill_null(pc.equal(column, self._end), False)
        self._ended = self._ended or pc.any(ends, min_count=0).as_py()
        keep = pc.invert(pc.or_(ends, pc.fill_null(pc.equal(column, self._blank), False)))
        return batch.filter(keep), positions[keep.to_numpy(zero_copy_only=False)]

    def _unmarked(self, column: pa.Array) -> pa.Array:
        """``column`` with its NULs, and with blank lines inside quotes, as they were."""
        text = _text_of(column)
        for mark, meant in ((self._blank, ""), (self._nul, "\0")):
            if mark.encode() in text:
                column = pc.replace_substring(column, mark, meant)
        return column


def _spans(batch: pa.RecordBatch) -> np.ndarray:
    """How many physical lines each record takes; looks inside the values only where there is a break at all."""
    spans = np.ones(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if not _may_break(column):
            continue
        text = _text_of(column)
        has_cr = b"\r" in text
        if has_cr or b"\n" in text:
            spans += _count(column, "\n")
        if has_cr:
            spans += _count(column, "\r") - _count(column, "\r\n")
    return spans


def _may_break(column: pa.Array) -> bool:
    """Whether there is any control character at all: one look at the bytes as they lie there."""
    data = column.buffers()[2]
    return bool(data) and bool(data.size) and int(np.frombuffer(data, np.uint8).min()) <= ord("\r")


def _count(column: pa.Array, what: str) -> np.ndarray:
    return pc.fill_null(pc.count_substring(column, what), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _text_of(column: pa.Array) -> bytes:
    data = column.buffers()[2]
    return data.to_pybytes() if data is not None else b""


def _fields(count: int) -> str:
    return f"{count} field{'' if count == 1 else 's'}"


def quote_left_open(text: str, delimiter: str, quote: str) -> int | None:
    """How many line breaks precede the quote in ``text`` that is never closed; None if every quote is."""
    if not quote:
        return None
    d, q = re.escape(delimiter), re.escape(quote)
    one = re.compile(f"(?:{q}(?:[^{q}]++|{q}{q})*+{q}[^{d}\r\n]*+|(?!{q})[^{d}\r\n]*+)(?:{d}|\r\n|\r|\n|$)")
    at = 0
    while at < len(text):
        found = one.match(text, at)
        if not found or found.end() == at:
            return count_breaks(text[:at].encode())
        at = found.end()
    return None


def open_quote(name: str, line: int) -> Poison:
    said = "a quote that opens in the record here is never closed, so where the record ends cannot be told"
    return Poison(f"{said}; correct the file, or set quote='' if it does not quote", place=place_of(name, "line", line))
