"""Objects in an S3 bucket, by the seam of :mod:`resources.files_seam`."""

import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

from pydantic import PrivateAttr

from resources.aws_clients import error_code
from resources.errors import BusError, Misconfigured, Poison, Transient
from resources.files_seam import (
    ANY_VERSION,
    READ_AHEAD_BYTES,
    Listed,
    changed,
    checked_name,
    glob_regex,
    gone,
    missing,
    plain_name,
    told_name,
)
from resources.system import System

KEYS_LOOKED_AT_FOR_A_MESSAGE = 1000
"""One page of ListObjectsV2, its documented maximum."""


class S3Files(System):
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
        checked_name(pattern, self.where)
        name = plain_name(pattern)
        return tuple(sorted(self._head(name) if name is not None else self._find(pattern), key=lambda listed: listed.name))

    def open(self, name: str, version: str | None = None) -> BinaryIO:
        wanted = {"Bucket": self.bucket, "Key": self.prefix + checked_name(name, self.where)}
        if version not in (None, ANY_VERSION):
            wanted["IfMatch" if version.startswith('"') else "VersionId"] = version
        try:
            answer = self._s3().get_object(**wanted)
        except _s3_errors() as error:
            if version is not None and error_code(error) in ("PreconditionFailed", "412"):
                raise changed(name, version, "another") from error
            if version is not None and _is_gone(error, wanted):
                raise gone(name, self.where) from error
            if error_code(error) in _S3_MISSING:
                raise missing(name, self.where, self._names_beside(name)) from error
            self._raise(name, error)
        return io.BufferedReader(_S3Body(answer["Body"], name), READ_AHEAD_BYTES)

    def name_of(self, bucket: str, key: str) -> str:
        """``key`` without the prefix. Poison if the object is in another bucket or outside the prefix."""
        told = f"s3://{bucket}/{key}"
        if bucket != self.bucket or not key.startswith(self.prefix):
            raise Poison(f"the message tells of {told!r}, which is not in {self.where}; correct which events are sent here, or the prefix")
        return told_name(key.removeprefix(self.prefix), self.where)

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
            if error_code(error):
                self._check_in_words(name)
            if error_code(error) in _S3_MISSING:
                return
            self._raise(name, error)
        kept = head.get("VersionId")
        yield Listed(name, head["ContentLength"], kept if kept not in (None, "null") else head["ETag"])

    def _check_in_words(self, name: str) -> None:
        """Raises unless the object is merely missing or there after all: the answer to a HEAD has no body to say what is wrong."""
        try:
            self._s3().get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].close()
        except _s3_errors() as error:
            if error_code(error) not in _S3_MISSING:
                self._raise(name, error)

    def _find(self, pattern: str) -> Iterator[Listed]:
        matches = glob_regex(pattern).fullmatch
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
    return error_code(error) in _S3_MISSING or (
        "VersionId" in wanted and error_code(error) in ("MethodNotAllowed", "405", "InvalidArgument")
    )


def _answer(error: Exception) -> Mapping[str, Any]:
    return getattr(error, "response", None) or {}  # None: the connection was closed before there was one


def _s3_error(name: str, where: str, error: Exception) -> BusError:
    from botocore.exceptions import ConnectionError as Unreachable
    from botocore.exceptions import HTTPClientError

    code, status = error_code(error), _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
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
