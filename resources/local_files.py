"""Files in a folder, by the seam of :mod:`resources.files_seam`."""

import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from resources.errors import BusError, Misconfigured, Transient
from resources.files_seam import (
    ANY_VERSION,
    READ_AHEAD_BYTES,
    Listed,
    changed,
    checked_name,
    gone,
    missing,
    plain_name,
    segment_regex,
    segments_of,
    told_name,
)
from resources.system import System


class LocalFiles(System):
    """Files below the folder ``root``. Nothing outside it can be reached: not by name and not by a symbolic link.

    A version is modification time and size: a rewrite that keeps both goes unnoticed.
    """

    root: str

    @property
    def where(self) -> str:
        return self.root

    def list(self, pattern: str) -> tuple[Listed, ...]:
        checked_name(pattern, self.where)
        root = self._root()
        name = plain_name(pattern)
        found = {name} if name is not None else set(_walk(root, "", segments_of(pattern)))
        return tuple(listed for name in sorted(found) if (listed := self._listed(root, name)))

    def open(self, name: str, version: str | None = None) -> BinaryIO:
        root = self._root()
        path = self._inside(root, checked_name(name, self.where))
        if not path.is_file():  # a pipe would block for ever
            raise missing(name, self.where, _names_beside(root, name)) if version is None else gone(name, self.where)
        try:
            raw = _LocalFile(path)
        except OSError as error:
            raise _local_error(name, error) from error
        now = _local_version(os.fstat(raw.fileno()))
        if version not in (None, ANY_VERSION, now):
            raw.close()
            raise changed(name, version, now)
        return io.BufferedReader(raw, READ_AHEAD_BYTES)

    def name_of(self, bucket: str, key: str) -> str:
        """The key itself: a folder stands in for whatever bucket."""
        return told_name(key, self.where)

    def version_of(self, version_id: str | None, etag: str | None) -> str:
        """Whatever is there: a folder knows nothing of S3's versions."""
        return ANY_VERSION

    def _root(self) -> Path:
        root = Path(self.root).resolve()
        if not root.is_dir():
            raise Misconfigured(f"folder {self.root!r} does not exist; create it or correct root")
        return root

    def _inside(self, root: Path, name: str) -> Path:
        try:
            path = (root / name).resolve()
        except (OSError, RuntimeError) as error:
            raise Misconfigured(f"{name!r} cannot be followed: {error}", place=name) from error
        if not path.is_relative_to(root):
            raise Misconfigured(f"{name!r} is a link that leads out of {self.where}; copy the file in, or set root to where it is")
        return path

    def _listed(self, root: Path, name: str) -> Listed | None:
        try:
            found = self._inside(root, name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None  # never there, or gone since the folder was read
        except OSError as error:
            raise _local_error(name, error) from error
        return Listed(name, found.st_size, _local_version(found)) if stat.S_ISREG(found.st_mode) else None


class _LocalFile(io.FileIO):
    """A file whose read errors (a failing disk, a stale network mount) say what to do next."""

    def readinto(self, buffer: Any, /) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise _local_error(str(self.name), error) from error


def _walk(folder: Path, prefix: str, segments: list[str]) -> Iterator[str]:
    """Names of files below ``folder`` that match; ``**`` does not follow links to folders, so that a loop ends."""
    head, rest = segments[0], segments[1:]
    if head == "**":
        yield from _walk(folder, prefix, rest)
    matches = re.compile("(?!\\.).*" if head == "**" else segment_regex(head), re.DOTALL).fullmatch
    for entry in _entries(folder, prefix):
        name = prefix + entry.name
        if not matches(entry.name):
            continue
        if head == "**":
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, f"{name}/", segments)
        elif rest:
            if entry.is_dir():
                yield from _walk(folder / entry.name, f"{name}/", rest)
        elif entry.is_symlink() or entry.is_file():
            yield name


def _entries(folder: Path, prefix: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _local_error(prefix or str(folder), error) from error


def _names_beside(root: Path, name: str) -> list[str]:
    folder, _, _ = name.rpartition("/")
    prefix = f"{folder}/" if folder else ""
    return sorted(prefix + entry.name for entry in _entries(root / folder, prefix) if entry.is_file())


def _local_version(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}"


def _local_error(name: str, error: OSError) -> BusError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return Misconfigured(f"access to {name!r} is denied; give this user the right to read it", place=name)
    if error.errno in (errno.ENAMETOOLONG, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
        return Misconfigured(f"{name!r} cannot be opened: {error.strerror}", place=name)
    return Transient(f"reading {name!r} failed: {error.strerror or error}", place=name)
