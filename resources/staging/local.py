"""Staging in a local directory."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from resources.errors import BusError, Misconfigured, Refused, Transient
from resources.staging.seam import CHUNK_BYTES, Content, StoredFile, altered, checked_path, missing

_FULL = {errno.ENOSPC, errno.EDQUOT}
_PERSON = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOTSUP, errno.ENAMETOOLONG}


class LocalStaging:
    """Staging below ``root``, on a file system with hard links. See :class:`~resources.staging.seam.Staging`."""

    def __init__(self, root: str | Path):
        self.root = Path(os.path.abspath(Path(root).expanduser()))

    def __repr__(self) -> str:
        return f"LocalStaging({str(self.root)!r})"

    def write(self, path: str, content: Content) -> StoredFile:
        target = self._inside(path)
        with on_disk(target):
            _make_folders(target.parent)
            temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
            try:
                size, digest = _write_through(content, temporary)
                # A link, unlike a rename, never overwrites: of two writers one wins, and a crash leaves no half a file.
                os.link(temporary, target)
            except FileExistsError as error:
                raise Refused("the staged file exists already; staged files never change", place=str(target)) from error
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
        return StoredFile(path, size, digest)

    def read(self, path: str, *, sha256: str) -> bytes:
        target = self._inside(path)
        with on_disk(target):
            content = target.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise altered(str(target), found, sha256)
        return content

    def local(self, path: str, *, sha256: str | None = None) -> Path:
        target = self._inside(path)
        with on_disk(target), target.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 is not None else None
        if found is not None and found != sha256:
            raise altered(str(target), found, str(sha256))
        return target

    def exists(self, path: str) -> bool:
        target = self._inside(path)
        with on_disk(target):
            return target.is_file()

    def list(self, prefix: str) -> Sequence[str]:
        folder = self._inside(prefix)
        with on_disk(folder):
            found = (Path(at) / name for at, _, names in os.walk(folder) for name in names if not name.endswith(".tmp"))
            return sorted(str(path.relative_to(self.root)) for path in found)

    def uri(self, path: str) -> str:
        return self._inside(path).absolute().as_uri()

    def delete_prefix(self, prefix: str) -> int:
        folder = self._inside(prefix)
        with on_disk(folder):
            if not folder.is_dir():
                return 0
            found = sum(not name.endswith(".tmp") for _, _, names in os.walk(folder) for name in names)
            shutil.rmtree(folder)
            return found

    def _inside(self, path: str) -> Path:
        target = self.root / checked_path(path)
        if not target.parent.resolve().is_relative_to(self.root.resolve()) or target.is_symlink():
            raise Refused(f"a symbolic link leads out of the staging area {self.root}; remove it", place=str(target))
        return target


def _write_through(content: Content, temporary: Path) -> tuple[int, str]:
    """Write, hash and fsync; the size and the digest of what was written."""
    digest, size = hashlib.sha256(), 0
    with temporary.open("xb") as file:
        for chunk in chunks(content):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def chunks(content: Content) -> Iterator[bytes | memoryview]:
    if isinstance(content, Path):
        with content.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    else:
        view = memoryview(content).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


def _make_folders(folder: Path) -> None:
    """``mkdir -p`` that survives a power cut: each new entry is synced into its parent."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def on_disk(target: Path) -> Iterator[None]:
    """Foreign file errors about ``target`` as ours."""
    try:
        yield
    except FileNotFoundError as error:
        if error.filename not in (None, str(target), target):
            raise Misconfigured(f"{error.filename}: {error.strerror}", place=str(target)) from error
        raise missing(str(target)) from error
    except OSError as error:
        raise _from_os(error, str(target)) from error


def _from_os(error: OSError, place: str) -> BusError:
    if error.errno in _FULL:
        return Transient("the disk is full; free space there, or move the staging area, then drive the trip again", place=place)
    if error.errno in _PERSON:
        return Misconfigured(
            f"{error.strerror}; the staging area must be writable for the bus, on a file system with hard links", place=place
        )
    return Transient(f"{error.strerror or error}; retry", place=place)
