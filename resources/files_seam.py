"""The seam of files in a folder or in a bucket: list what matches, open what was listed; patterns and errors that both share.

The same declaration reads from either; one conformance suite (tests/conformance/test_files_seam.py) holds them to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable

from resources.errors import Gone, Misconfigured, Missing, Poison

READ_AHEAD_BYTES = 1 << 20
"""How much is fetched at a time for callers that read in small pieces (gzip, XML)."""
ANY_VERSION = "*"
"""As ``version``: whatever is there now; but then something must be there."""
NAMES_IN_A_MESSAGE = 5


@dataclass(frozen=True)
class Listed:
    """A file as it was when it was listed. ``version`` is opaque; ``open(name, version)`` gets these bytes or fails."""

    name: str
    size_bytes: int
    version: str


@runtime_checkable
class Files(Protocol):
    """A place with named files. Names use ``/`` and are relative to it; ``..`` and absolute names are Misconfigured.

    Every method, and every read of an opened stream, raises :class:`Transient` for time-outs, throttling, 5xx and connections
    that end too early, and :class:`Misconfigured` where access is denied or the place itself does not exist.
    """

    @property
    def where(self) -> str:
        """The place in words, for messages: ``/data/landing`` or ``s3://bucket/prefix``. Never a secret."""
        ...

    def list(self, pattern: str) -> tuple[Listed, ...]:
        """Files that match, sorted by name; none: an empty tuple.

        ``*`` and ``?`` stay within one folder, ``**`` as a whole segment spans any number of them; none matches a leading dot
        (uploads in progress hide there). ``[*]``, ``[?]`` and ``[[]`` stand for the characters themselves, see :func:`as_pattern`.
        """
        ...

    def open(self, name: str, version: str | None = None) -> BinaryIO:
        """A stream of the bytes, read as it is consumed; the caller closes it.

        Without ``version``, raises Misconfigured if there is no such file (and says which names are near). With it, raises Poison
        if the file is another one than was listed or told of, and Gone if it is not there any more.
        """
        ...


@runtime_checkable
class ToldFiles(Files, Protocol):
    """A place whose files others tell of, as S3 does of objects: ``open(name_of(bucket, key), version_of(version_id, etag))``."""

    def name_of(self, bucket: str, key: str) -> str:
        """The name of that object in this place. Poison if it is in another bucket, or outside the prefix."""
        ...

    def version_of(self, version_id: str | None, etag: str | None) -> str:
        """The ``version`` with which ``open`` gives exactly the bytes that were told of, or fails; the ETag with or without quotes."""
        ...


def matching(files: Files, pattern: str) -> tuple[Listed, ...]:
    """What ``pattern`` matches, at least one file; Misconfigured that names pattern and place if there is none."""
    listed = files.list(pattern)
    if not listed:
        raise Missing(f"no file matches {pattern!r} in {files.where}; check the name, or wait until the file has arrived")
    return listed


def as_pattern(name: str) -> str:
    """The pattern that matches the file ``name`` and no other, also if the name contains ``*``, ``?`` or ``[``."""
    return re.sub(r"[*?[]", r"[\g<0>]", name)


_LITERAL = re.compile(r"\[([*?[])\]")


def plain_name(pattern: str) -> str | None:
    """The one name that ``pattern`` can match, or None if it has wildcards."""
    return None if re.search(r"[*?]", _LITERAL.sub("", pattern)) else _LITERAL.sub(r"\1", pattern)


def segment_regex(segment: str) -> str:
    parts = re.split(r"(\[[*?[]\]|\*+|\?)", segment)
    wild = {"*": "[^/]*", "?": "[^/]"}
    text = "".join(wild.get(part[:1], re.escape(_LITERAL.sub(r"\1", part))) for part in parts)
    return (r"(?!\.)" if segment[:1] in ("*", "?") else "") + text


def glob_regex(pattern: str) -> re.Pattern[str]:
    segments = segments_of(pattern)
    text = "".join(r"(?:(?!\.)[^/]+/)*" if part == "**" else segment_regex(part) + "/" for part in segments[:-1])
    return re.compile(text + segment_regex(segments[-1]), re.DOTALL)


def segments_of(pattern: str) -> list[str]:
    segments = pattern.split("/")
    return [*segments, "*"] if segments[-1] == "**" else segments


def checked_name(name: str, where: str) -> str:
    """``name`` if it can only mean something inside the place."""
    if not name or "\0" in name or name.startswith("/") or {".", ".."} & set(name.split("/")):
        raise Misconfigured(f"{name!r} is not a name inside {where}: it must be relative, without '.' or '..' segments")
    return name


def missing(name: str, where: str, there: Sequence[str]) -> Missing:
    near = difflib.get_close_matches(name, there, NAMES_IN_A_MESSAGE, cutoff=0.5) or list(there[:NAMES_IN_A_MESSAGE])
    said = f"there is {', '.join(map(repr, near))}" if near else "there is nothing beside it"
    return Missing(f"there is no file {name!r} in {where}; {said}")


def changed(name: str, listed: str | None, now: str) -> Poison:
    return Poison(
        f"{name!r} has changed since it was listed (was {listed}, is {now}); a later trip or message reads the new one",
        place=name,
    )


def gone(name: str, where: str) -> Gone:
    return Gone(f"{name!r} is not in {where} any more; put it there again, which tells of it anew", place=name)


def told_name(name: str, where: str) -> str:
    """``name`` if it can be one; else that is the fault of the message that tells of it, and of nobody's settings."""
    try:
        return checked_name(name, where)
    except Misconfigured as error:
        raise Poison(error.message) from None
