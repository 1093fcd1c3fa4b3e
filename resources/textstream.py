"""Text files as UTF-8 bytes: decompressed, decoded, without a byte-order mark, with their lines counted on the way.

What readers of text (delimited text, JSON lines) stand on. Streams; holds one block.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np

from resources.errors import Misconfigured, Poison, Transient
from resources.files_seam import Files, Listed
from resources.records import place_of

COMPRESSIONS = ("infer", "gzip", "none")
GZIP_MAGIC = b"\x1f\x8b"
SAMPLE_BYTES = 64
"""How much around a byte that cannot be decoded is tried in other encodings."""
PART_ITEMS = 1 << 16
LIKELY_ENCODINGS = ("utf-8", "cp1252", "utf-16")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BREAK = re.compile(rb"\r\n|\r|\n")


class Utf8Stream:
    """One file's text as UTF-8. ``read`` gives full blocks and never parts a CR from its LF.

    ``lines``  physical lines read so far: breaks (LF, CRLF or CR), and at the end a last line without one.
    Errors: Poison for bytes that are not ``encoding`` (line and byte named) and for gzip that is cut, broken or followed by
    something else; Misconfigured for a mark or a compression that contradicts the declaration.
    """

    def __init__(self, raw: BinaryIO, name: str, encoding: str):
        self.name = name
        self.lines = 0
        self.is_empty = True
        self._raw = raw
        self._encoding = encoding
        self._is_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        self._decoder = codecs.getincrementaldecoder("utf-8" if self._is_utf8 else encoding)()
        self._fed_bytes = 0
        self._held = b""
        self._ended = False
        self._open_line = False

    def read(self, size: int) -> bytes:
        """About ``size`` bytes (of the file), b'' only at the end."""
        while not self._ended:
            chunk = self._fill(size)
            self._ended = len(chunk) < size
            if self._fed_bytes == 0:
                self._check_start(chunk)
            text = self._held + self._decoded(chunk)
            self._held = b"\r" if text.endswith(b"\r") and not self._ended else b""
            text = text.removesuffix(self._held)
            self._count(text)
            if text:
                return text
        return b""

    def _count(self, text: bytes) -> None:
        if text:
            self.is_empty = False
            self.lines += count_breaks(text)
            self._open_line = not text.endswith((b"\n", b"\r"))
        if self._ended and self._open_line:
            self.lines += 1

    def _fill(self, size: int) -> bytes:
        """``size`` bytes, less only at the end: streams over a network hand out what has arrived."""
        parts, missing = [], size
        try:
            while missing and (part := self._raw.read(missing)):
                parts.append(part)
                missing -= len(part)
        except EOFError as error:
            raise Poison("the gzip ends too early; the file was cut, have it sent again", place=self.name) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            what = f"not gzip, broken, or followed by something that is not gzip ({error})"
            raise Poison(f"the file is {what}; have it sent again, or set compression", place=self.name) from error
        except OSError as error:
            raise Transient(f"reading failed: {error}", place=self.name) from error
        return b"".join(parts)

    def _decoded(self, chunk: bytes) -> bytes:
        start = self._fed_bytes
        self._fed_bytes += len(chunk)
        if self._is_utf8 and chunk.isascii() and not self._decoder.getstate()[0]:
            return chunk
        try:
            text = self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._undecodable(error) from error
        if start == 0:
            text = text.removeprefix("\ufeff")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise Poison(f"{self._encoding} gives half of a surrogate pair, which is no character", place=self.name) from error

    def _undecodable(self, error: UnicodeDecodeError) -> Poison:
        offset = self._fed_bytes - len(error.object) + error.start
        before = error.object[: error.start].decode(error.encoding, "replace").encode("utf-8", "replace")
        line = self.lines + count_breaks(self._held + before) + 1
        sample = error.object[max(0, error.start - SAMPLE_BYTES) : error.start + SAMPLE_BYTES]
        others = [name for name in LIKELY_ENCODINGS if codecs.lookup(name).name != error.encoding and _decodes(sample, name)]
        found = error.object[error.start : error.end].hex(" ")
        said = f"{found} at byte {offset + 1} is not {self._encoding} ({error.reason})"
        hint = f"the encoding may be {' or '.join(others)}" if others else "the file may be cut or not text"
        return Poison(f"{said}; {hint}", place=place_of(self.name, "line", line))

    def _check_start(self, chunk: bytes) -> None:
        if chunk.startswith(GZIP_MAGIC):
            raise Misconfigured("the file is gzip but is read as it stands; set compression='gzip'", place=self.name)
        for mark, encoding in _MARKS:
            if chunk.startswith(mark):
                if not _suits(encoding, codecs.lookup(self._encoding).name):
                    said = f"the file begins with the byte-order mark of {encoding}, declared is {self._encoding}"
                    raise Misconfigured(f"{said}; set encoding={encoding!r}", place=self.name)
                return

    def close(self) -> None:
        """Ends the stream: a read after it is at the end."""
        self._ended = True
        self._raw.close()


@contextmanager
def utf8(files: Files, listed: Listed, encoding: str, compression: str) -> Iterator[Utf8Stream]:
    """``listed`` opened, as UTF-8; closed at the end."""
    with opened(files, listed, compression) as raw:
        stream = Utf8Stream(raw, listed.name, encoding)
        try:
            yield stream
        finally:
            stream.close()


@contextmanager
def opened(files: Files, listed: Listed, compression: str) -> Iterator[BinaryIO]:
    """The bytes of ``listed``, decompressed as ``compression`` says; closed at the end."""
    with files.open(listed.name, listed.version) as raw:
        if compression == "gzip" or (compression == "infer" and listed.name.lower().endswith(".gz")):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield raw


def check_encoding(encoding: str, compression: str) -> None:
    """Misconfigured if Python has no such text encoding or there is no such compression."""
    try:
        "".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, TypeError) as error:
        raise Misconfigured(f"encoding {encoding!r} is not known; use a Python codec such as 'utf-8', 'cp1252' or 'utf-16'") from error
    if compression not in COMPRESSIONS:
        raise Misconfigured(f"compression {compression!r} is not known; known are {', '.join(COMPRESSIONS)}")


def count_breaks(text: bytes) -> int:
    """Line breaks in ``text``: LF, CRLF (one) and CR alone."""
    breaks = _count(text, b"\n")
    if b"\r" in text:
        breaks += _count(text, b"\r") - count_pairs(text, b"\r\n")
    return breaks


def _count(text: bytes, byte: bytes) -> int:
    """Five times as fast as ``bytes.count`` where there are many."""
    return _equal(np.frombuffer(text, np.uint8), ord(byte)) if text else 0


def count_pairs(text: bytes, pair: bytes) -> int:
    """How often the two bytes ``pair`` stand in ``text``, overlapping or not; ten times as fast as to search for them."""
    data = np.frombuffer(text or b"\0", np.uint8)
    halves = (data[start : start + (len(data) - start) // 2 * 2].view("<u2") for start in (0, 1))
    return sum(_equal(half, int.from_bytes(pair, "little")) for half in halves)


def _equal(data: np.ndarray, wanted: int) -> int:
    """How many are ``wanted``; a part at a time, whose answers stay in the processor's cache."""
    parts = (data[start : start + PART_ITEMS] for start in range(0, len(data), PART_ITEMS))
    return sum(int(np.count_nonzero(part == wanted)) for part in parts)


def break_lines(text: bytes) -> Iterator[bytes]:
    """The physical lines of ``text`` with their breaks; unlike ``splitlines`` nothing else ends a line."""
    start = 0
    for found in _BREAK.finditer(text):
        yield text[start : found.end()]
        start = found.end()
    if start < len(text):
        yield text[start:]


def _suits(marked: str, declared: str) -> bool:
    """UTF-32's little-endian mark begins like UTF-16's, so a UTF-16 file that starts with NUL keeps the benefit of the doubt."""
    return declared.startswith(marked) or (marked == "utf-32" and declared.startswith("utf-16"))


def _decodes(sample: bytes, encoding: str) -> bool:
    if encoding == "utf-16" and sample.count(0) < len(sample) // 4:
        return False
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeError:  # UTF-16 without a byte-order mark is no UnicodeDecodeError
        return False
    return True
