"""Files in a folder or in a bucket behind one seam: list what matches, open what was listed.

The same declaration reads from either, so both speak the same patterns and raise the same errors; one conformance suite
(tests/conformance/test_files_seam.py) holds them to it.
"""

import difflib
import errno
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol, runtime_checkable

from dagster import ConfigurableResource
from pydantic import PrivateAttr

from resources.errors import BusError, Gone, Misconfigured, Poison, Transient

READ_AHEAD_BYTES = 1 << 20
"""How much is fetched at a time for callers that read in small pieces (gzip, XML)."""
ANY_VERSION = "*"
"""As ``version``: whatever is there now; but then something must be there."""
NAMES_IN_A_MESSAGE = 5
KEYS_LOOKED_AT_FOR_A_MESSAGE = 1000
"""One page of ListObjectsV2, its documented maximum."""


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
        raise Misconfigured(f"no file matches {pattern!r} in {files.where}; check the name, or wait until the file has arrived")
    return listed


def as_pattern(name: str) -> str:
    """The pattern that matches the file ``name`` and no other, also if the name contains ``*``, ``?`` or ``[``."""
    return re.sub(r"[*?[]", r"[\g<0>]", name)


_LITERAL = re.compile(r"\[([*?[])\]")


def _plain_name(pattern: str) -> str | None:
    """The one name that ``pattern`` can match, or None if it has wildcards."""
    return None if re.search(r"[*?]", _LITERAL.sub("", pattern)) else _LITERAL.sub(r"\1", pattern)


def _segment_regex(segment: str) -> str:
    parts = re.split(r"(\[[*?[]\]|\*+|\?)", segment)
    wild = {"*": "[^/]*", "?": "[^/]"}
    text = "".join(wild.get(part[:1], re.escape(_LITERAL.sub(r"\1", part))) for part in parts)
    return (r"(?!\.)" if segment[:1] in ("*", "?") else "") + text


def _glob_regex(pattern: str) -> re.Pattern[str]:
    segments = _segments(pattern)
    text = "".join(r"(?:(?!\.)[^/]+/)*" if part == "**" else _segment_regex(part) + "/" for part in segments[:-1])
    return re.compile(text + _segment_regex(segments[-1]), re.DOTALL)


def _segments(pattern: str) -> list[str]:
    segments = pattern.split("/")
    return [*segments, "*"] if segments[-1] == "**" else segments


def _checked(name: str, where: str) -> str:
    """``name`` if it can only mean something inside the place."""
    if not name or "\0" in name or name.startswith("/") or {".", ".."} & set(name.split("/")):
        raise Misconfigured(f"{name!r} is not a name inside {where}: it must be relative, without '.' or '..' segments")
    return name


def _missing(name: str, where: str, there: Sequence[str]) -> Misconfigured:
    near = difflib.get_close_matches(name, there, NAMES_IN_A_MESSAGE, cutoff=0.5) or list(there[:NAMES_IN_A_MESSAGE])
    said = f"there is {', '.join(map(repr, near))}" if near else "there is nothing beside it"
    return Misconfigured(f"there is no file {name!r} in {where}; {said}")


class LocalFiles(ConfigurableResource):
    """Files below the folder ``root``. Nothing outside it can be reached: not by name and not by a symbolic link.

    A version is modification time and size: a rewrite that keeps both goes unnoticed.
    """

    root: str

    @property
    def where(self) -> str:
        return self.root

    def list(self, pattern: str) -> tuple[Listed, ...]:
        _checked(pattern, self.where)
        root = self._root()
        name = _plain_name(pattern)
        found = {name} if name is not None else set(_walk(root, "", _segments(pattern)))
        return tuple(listed for name in sorted(found) if (listed := self._listed(root, name)))

    def open(self, name: str, version: str | None = None) -> BinaryIO:
        root = self._root()
        path = self._inside(root, _checked(name, self.where))
        if not path.is_file():  # a pipe would block for ever
            raise _missing(name, self.where, _names_beside(root, name)) if version is None else _gone(name, self.where)
        try:
            raw = _LocalFile(path)
        except OSError as error:
            raise _local_error(name, error) from error
        now = _local_version(os.fstat(raw.fileno()))
        if version not in (None, ANY_VERSION, now):
            raw.close()
            raise _changed(name, version, now)
        return io.BufferedReader(raw, READ_AHEAD_BYTES)

    def name_of(self, bucket: str, key: str) -> str:
        """The key itself: a folder stands in for whatever bucket."""
        return _told_name(key, self.where)

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
    matches = re.compile("(?!\\.).*" if head == "**" else _segment_regex(head), re.DOTALL).fullmatch
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


def _changed(name: str, listed: str | None, now: str) -> Poison:
    return Poison(f"{name!r} has changed since it was listed (was {listed}, is {now}); start a new trip to read the new one", place=name)


def _gone(name: str, where: str) -> Gone:
    return Gone(f"{name!r} is not in {where} any more; put it there again, which tells of it anew", place=name)


def _told_name(name: str, where: str) -> str:
    """``name`` if it can be one; else that is the fault of the message that tells of it, and of nobody's settings."""
    try:
        return _checked(name, where)
    except Misconfigured as error:
        raise Poison(error.message) from None


class S3Files(ConfigurableResource):
    """Objects in ``bucket`` whose keys begin with ``prefix`` (which names leave out).

    Credentials come from boto3's own chain. A version is the object's VersionId where the bucket keeps versions and the file
    was named, else its ETag, quotes included; ``open`` tells them apart by the quotes. Listing by wildcard needs
    ``s3:ListBucket``, one plain name only ``s3:GetObject``, a VersionId ``s3:GetObjectVersion``.
    """

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    _client: Any = PrivateAttr(default=None)

    @property
    def where(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def list(self, pattern: str) -> tuple[Listed, ...]:
        _checked(pattern, self.where)
        name = _plain_name(pattern)
        return tuple(sorted(self._head(name) if name is not None else self._find(pattern), key=lambda listed: listed.name))

    def open(self, name: str, version: str | None = None) -> BinaryIO:
        wanted = {"Bucket": self.bucket, "Key": self.prefix + _checked(name, self.where)}
        if version not in (None, ANY_VERSION):
            wanted["IfMatch" if version.startswith('"') else "VersionId"] = version
        try:
            answer = self._s3().get_object(**wanted)
        except _s3_errors() as error:
            if version is not None and _code(error) in ("PreconditionFailed", "412"):
                raise _changed(name, version, "another") from error
            if version is not None and _is_gone(error, wanted):
                raise _gone(name, self.where) from error
            if _code(error) in _S3_MISSING:
                raise _missing(name, self.where, self._names_beside(name)) from error
            self._raise(name, error)
        return io.BufferedReader(_S3Body(answer["Body"], name), READ_AHEAD_BYTES)

    def name_of(self, bucket: str, key: str) -> str:
        """``key`` without the prefix. Poison if the object is in another bucket or outside the prefix."""
        told = f"s3://{bucket}/{key}"
        if bucket != self.bucket or not key.startswith(self.prefix):
            raise Poison(f"the message tells of {told!r}, which is not in {self.where}; correct which events are sent here, or the prefix")
        return _told_name(key.removeprefix(self.prefix), self.where)

    def version_of(self, version_id: str | None, etag: str | None) -> str:
        """The VersionId if there is one, else the ETag; with neither, whatever is there when it is opened.

        Of an object written while its bucket kept no versions the id is ``null``, which a later write replaces: then the ETag counts.
        """
        if version_id and version_id != "null":
            return version_id
        return '"{}"'.format(etag.strip('"')) if etag else ANY_VERSION

    def _head(self, name: str) -> Iterator[Listed]:
        try:
            head = self._s3().head_object(Bucket=self.bucket, Key=self.prefix + name)
        except _s3_errors() as error:
            if _code(error):
                self._check_in_words(name)
            if _code(error) in _S3_MISSING:
                return
            self._raise(name, error)
        kept = head.get("VersionId")
        yield Listed(name, head["ContentLength"], kept if kept not in (None, "null") else head["ETag"])

    def _check_in_words(self, name: str) -> None:
        """Raises unless the object is merely missing or there after all: the answer to a HEAD has no body to say what is wrong."""
        try:
            self._s3().get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].close()
        except _s3_errors() as error:
            if _code(error) not in _S3_MISSING:
                self._raise(name, error)

    def _find(self, pattern: str) -> Iterator[Listed]:
        matches = _glob_regex(pattern).fullmatch
        literal = re.split(r"[*?[]", pattern, maxsplit=1)[0]
        try:
            for page in self._s3().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + literal):
                for item in page.get("Contents", ()):
                    name = item["Key"][len(self.prefix) :]
                    if matches(name):
                        yield Listed(name, item["Size"], item["ETag"])
        except _s3_errors() as error:
            self._raise(pattern, error)

    def _names_beside(self, name: str) -> tuple[str, ...]:
        """For a message only: where listing is not allowed, the message goes without names."""
        folder = self.prefix + name[: name.rfind("/") + 1]
        try:
            page = self._s3().list_objects_v2(Bucket=self.bucket, Prefix=folder, MaxKeys=KEYS_LOOKED_AT_FOR_A_MESSAGE)
        except _s3_errors():
            return ()
        return tuple(item["Key"][len(self.prefix) :] for item in page.get("Contents", ()))

    def _s3(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            # A session of its own: boto3's default session is not safe to share between threads.
            session = boto3.Session(region_name=self.region)
            retries = Config(retries={"mode": "standard"}, connect_timeout=10, read_timeout=60)
            try:
                self._client = session.client("s3", endpoint_url=self.endpoint_url, config=retries)
            except (*_s3_errors(), ValueError) as error:
                raise Misconfigured(f"no S3 client for {self.where} ({type(error).__name__}); check region and endpoint_url") from None
        return self._client

    def _raise(self, name: str, error: Exception) -> NoReturn:
        raise _s3_error(name, self.where, error) from None  # botocore's text holds the endpoint


_S3_MISSING = ("NoSuchKey", "NoSuchVersion", "404")
_S3_RETRY = ("SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed", "RequestLimitExceeded")


def _s3_errors() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError


def _is_gone(error: Exception, wanted: Mapping[str, str]) -> bool:
    """Whether the answer says so: 405 is a version that marks a deletion, InvalidArgument a version that S3 never gave."""
    return _code(error) in _S3_MISSING or ("VersionId" in wanted and _code(error) in ("MethodNotAllowed", "405", "InvalidArgument"))


def _answer(error: Exception) -> Mapping[str, Any]:
    return getattr(error, "response", None) or {}  # None: the connection was closed before there was one


def _code(error: Exception) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _s3_error(name: str, where: str, error: Exception) -> BusError:
    from botocore.exceptions import ConnectionError as Unreachable
    from botocore.exceptions import HTTPClientError

    code, status = _code(error), _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if isinstance(error, (Unreachable, HTTPClientError)) or code in _S3_RETRY or status >= 500 or status == 429:
        return Transient(f"S3 did not answer for {name!r} in {where}: {code or type(error).__name__}", place=name)
    if status in (401, 403):
        allow = "allow s3:GetObject, s3:GetObjectVersion and s3:ListBucket there"
        return Misconfigured(f"access to {name!r} in {where} is denied ({code}); {allow}", place=name)
    if code == "NoSuchBucket":
        return Misconfigured(f"bucket of {where} does not exist; check its name and region")
    return Misconfigured(f"S3 refused {name!r} in {where}: {error}", place=name)


class _S3Body(io.RawIOBase):
    """An object's bytes as they arrive; a connection that breaks or ends before the announced length is Transient."""

    def __init__(self, body: Any, name: str):
        self._body = body
        self._name = name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        from urllib3.exceptions import HTTPError

        try:
            data = self._body.read(len(buffer))
        except (*_s3_errors(), HTTPError, OSError) as error:
            raise Transient(f"the connection broke while {self._name!r} was read: {type(error).__name__}", place=self._name) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()
