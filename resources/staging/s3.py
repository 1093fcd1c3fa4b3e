"""Staging in an S3 bucket."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from resources.errors import BusError, Misconfigured, Refused, Transient
from resources.staging.local import chunks, on_disk
from resources.staging.seam import Content, StoredFile, altered, checked_path, missing

PUT_BYTES = 5 << 30
"""S3's limit for one PutObject (5 GiB): only that is atomic and conditional at once. Staged files are far below it."""

DELETE_KEYS = 1000
"""S3's limit for one DeleteObjects."""

_MISSING = {"NoSuchKey", "404", "NotFound"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "ServiceUnavailable", "RequestTimeTooSkewed"}
_BUSY |= {"ConditionalRequestConflict", "OperationAborted"}


class S3Staging:
    """Staging below ``prefix`` in ``bucket``. See :class:`~resources.staging.seam.Staging`.

    Needs s3:GetObject, PutObject, DeleteObject and ListBucket, and conditional writes (``If-None-Match``), which AWS has.
    Retries are botocore's own. ``local`` downloads to a private directory, which ``close`` (or the interpreter) removes.
    """

    def __init__(self, bucket: str, prefix: str = "", *, region: str | None = None, endpoint_url: str | None = None):
        self.bucket = bucket
        self.prefix = checked_path(prefix) + "/" if prefix else ""
        self._region, self._endpoint_url = region, endpoint_url
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"S3Staging('s3://{self.bucket}/{self.prefix}')"

    def write(self, path: str, content: Content) -> StoredFile:
        size, digest = _measured(content)
        if size > PUT_BYTES:
            raise Refused(f"{size} bytes are more than one S3 write takes; leave the stop's largest fields out", place=self._place(path))
        writer = secrets.token_hex(16)
        with self._ours(path), ExitStack() as stack:
            body = stack.enter_context(content.open("rb")) if isinstance(content, Path) else io.BytesIO(content)
            self._put(path, body, base64.b64encode(digest.digest()).decode(), writer)
        return StoredFile(path, size, digest.hexdigest())

    def _put(self, path: str, body: Any, checksum: str, writer: str) -> None:
        from botocore.exceptions import ClientError

        try:
            # S3 itself compares the checksum with what arrived, so the digest is that of the stored bytes.
            options = {"IfNoneMatch": "*", "ChecksumSHA256": checksum, "Metadata": {"bus-writer": writer}}
            self._client.put_object(Bucket=self.bucket, Key=self._key(path), Body=body, **options)
        except ClientError as error:
            if _status(error) != 412:
                raise
            # botocore may have repeated a write whose answer was lost: then the file that exists is ours.
            found = self._client.head_object(Bucket=self.bucket, Key=self._key(path))
            if found.get("Metadata", {}).get("bus-writer") != writer:
                raise Refused("the staged file exists already; staged files never change", place=self._place(path)) from error

    def read(self, path: str, *, sha256: str) -> bytes:
        with self._ours(path):
            content = self._client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"].read()
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise altered(self._place(path), found, sha256)
        return content

    def local(self, path: str, *, sha256: str | None = None) -> Path:
        target = self._cache / checked_path(path)
        if not target.exists():
            self._download(path, target)
        if sha256 is not None:
            with target.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise altered(self._place(path), found, sha256)
        return target

    def _download(self, path: str, target: Path) -> None:
        temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
        with self._ours(path), on_disk(temporary):
            body = self._client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"]
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                for chunk in body.iter_chunks(1 << 20):
                    file.write(chunk)
            os.replace(temporary, target)

    def exists(self, path: str) -> bool:
        from botocore.exceptions import ClientError

        with self._ours(path):
            try:
                self._client.head_object(Bucket=self.bucket, Key=self._key(path))
            except ClientError as error:
                if _status(error) == 404:
                    return False
                raise
        return True

    def uri(self, path: str) -> str:
        return f"s3://{self.bucket}/{self._key(path)}"

    def delete_prefix(self, prefix: str) -> int:
        deleted = 0
        with self._ours(prefix):
            for names in self._pages(prefix):
                deleted += self._delete(prefix, [{"Key": name} for name in names])
        return deleted

    def list(self, prefix: str) -> Sequence[str]:
        with self._ours(prefix):
            return sorted(name.removeprefix(self.prefix) for names in self._pages(prefix) for name in names)

    def _pages(self, prefix: str) -> Iterator[list[str]]:
        """The keys below the directory ``prefix``, as many at a time as may be deleted at once."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._key(prefix) + "/", PaginationConfig={"PageSize": DELETE_KEYS}
        )
        for page in pages:
            if names := [entry["Key"] for entry in page.get("Contents", ())]:
                yield names

    def _delete(self, prefix: str, keys: list[dict[str, str]]) -> int:
        answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
        if failed := answer.get("Errors"):
            raise Transient(f"{len(failed)} of {len(keys)} files could not be deleted: {failed[0].get('Code')}", place=self._place(prefix))
        return len(keys)

    def close(self) -> None:
        """Remove what ``local`` downloaded."""
        with self._lock:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    @property
    def _cache(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="bus-staging-", ignore_cleanup_errors=True)
            return Path(self._folder.name)

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        retries = {"mode": "standard", "max_attempts": 5}
        config = Config(retries=retries, connect_timeout=10, read_timeout=60)  # pyright: ignore[reportArgumentType]
        return boto3.Session().client("s3", region_name=self._region, endpoint_url=self._endpoint_url, config=config)

    def _key(self, path: str) -> str:
        return self.prefix + checked_path(path)

    def _place(self, path: str) -> str:
        return f"s3://{self.bucket}/{self._key(path)}"

    @contextmanager
    def _ours(self, path: str) -> Iterator[None]:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            NoRegionError,
            PartialCredentialsError,
            ProfileNotFound,
        )

        place = self._place(path)
        try:
            yield
        except ClientError as error:
            raise _from_answer(error, place) from error
        except (NoCredentialsError, PartialCredentialsError, NoRegionError, ProfileNotFound) as error:
            raise Misconfigured(f"{error}; give the process AWS credentials and a region", place=place) from error
        except BotoCoreError as error:
            raise Transient(f"S3 did not answer ({type(error).__name__}); retry", place=place) from error
        except OSError as error:
            raise Transient(f"{error.strerror or type(error).__name__}; retry", place=place) from error


def _measured(content: Content) -> tuple[int, Any]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks(content):
        digest.update(chunk)
        size += len(chunk)
    return size, digest


def _status(error: Any) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _from_answer(error: Any, place: str) -> BusError:
    code = error.response.get("Error", {}).get("Code", "unknown")
    if code in _MISSING:
        return missing(place)
    if code in _BUSY or _status(error) in (409, 429, 500, 502, 503, 504):
        return Transient(f"S3 answered {code}; retry", place=place)
    return Misconfigured(f"S3 answered {code} ({_status(error)}); check the bucket's name, its region and the permissions", place=place)
