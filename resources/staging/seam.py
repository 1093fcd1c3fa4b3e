"""What a staging area can do, whichever it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from resources.errors import Misconfigured, Refused

Content = Path | bytes | memoryview
"""A local file, or the bytes themselves."""

CHUNK_BYTES = 1 << 20

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]{0,199}")


@dataclass(frozen=True)
class StoredFile:
    """``sha256`` is the lower-case hexadecimal digest of the bytes as they were written."""

    path: str
    bytes: int
    sha256: str


class Staging(Protocol):
    """Files that are written once and never change, under ``/``-separated relative paths.

    A path that could leave the area is Refused. Every method raises Transient (disk full, connection lost, throttled: nothing
    usable was written) and Misconfigured (no permission, no such bucket) besides what its own text says.
    """

    def write(self, path: str, content: Content) -> StoredFile:
        """Store ``content`` durably: whole or not at all. Refused if ``path`` exists, whatever is in it."""
        ...

    def read(self, path: str, *, sha256: str) -> bytes:
        """The exact bytes of the file. Refused if it is missing, or its digest is another."""
        ...

    def local(self, path: str, *, sha256: str | None = None) -> Path:
        """A local file to read, for as long as the area is open; not to be changed. Refused as for ``read``."""
        ...

    def exists(self, path: str) -> bool: ...

    def list(self, prefix: str) -> Sequence[str]:
        """The paths of all files below the directory ``prefix``, in the order of their names; () if there is none."""
        ...

    def uri(self, path: str) -> str:
        """Where a person finds the file or directory: ``file:///…`` or ``s3://…``. Never a secret."""
        ...

    def delete_prefix(self, prefix: str) -> int:
        """Delete all files below the directory ``prefix`` ('a/1' does not touch 'a/10'); how many there were."""
        ...


def checked_path(path: str) -> str:
    """``path`` if it stays inside the area on every kind of storage; else Refused."""
    parts = path.split("/")
    if len(path) > 900 or not all(_PART.fullmatch(part) for part in parts):
        raise Refused(
            f"staging path {path[:200]!r} is not usable: parts of letters, digits and '._=+-' (at most 200, not starting with a dot), "
            "separated by '/', relative, at most 900 characters in all"
        )
    return path


def missing(path: str) -> Refused:
    return Refused("the staged file is missing; drive the trip again, which stages it anew", place=path)


def altered(path: str, found: str, expected: str) -> Refused:
    return Refused(
        f"the staged bytes are not those that were checked: sha256 {found[:12]}…, expected {expected[:12]}…; "
        "nothing was published; drive the trip again, and find out who writes to the staging area",
        place=path,
    )


def open_staging(url: str, *, region: str | None = None, endpoint_url: str | None = None) -> Staging:
    """The area at ``/a/path``, ``file:///a/path`` or ``s3://bucket/prefix``. Nothing is touched until it is used."""
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        from resources.staging.s3 import S3Staging

        return S3Staging(parts.netloc, parts.path.strip("/"), region=region, endpoint_url=endpoint_url)
    from resources.staging.local import LocalStaging

    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return LocalStaging(unquote(parts.path))
    if url and "://" not in url and parts.scheme not in ("s3", "file"):
        return LocalStaging(url)
    raise Misconfigured(f"staging URL {url!r} is none of /a/path, file:///a/path, s3://bucket/prefix")
