"""boto3 clients, made once a process; and what AWS answers, sorted by what to do next. boto3 is imported when one is asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resources.errors import BusError, Misconfigured, Transient

_BUSY = {"requestthrottled", "throttling", "throttlingexception", "throttledexception", "requestlimitexceeded", "slowdown"}
_BUSY |= {"kmsthrottled", "overlimit", "requesttimeout", "requesttimeoutexception", "internalerror", "internalfailure"}
_BUSY |= {"serviceunavailable", "priorrequestnotcomplete", "toomanyrequestsexception", "operationaborted"}
_DENIED = {"accessdenied", "accessdeniedexception", "kmsaccessdenied", "invalidclienttokenid", "unrecognizedclientexception"}
_DENIED |= {"signaturedoesnotmatch", "invalidaccesskeyid", "expiredtoken", "expiredtokenexception", "invalidsecurity", "optinrequired"}
_DENIED |= {"missingauthenticationtoken", "authfailure", "incompletesignature"}

_clients: dict[tuple[str, str | None, str | None, int], Any] = {}
_making = threading.Lock()


def _begin_anew() -> None:
    global _making
    _making = threading.Lock()  # another thread may have held it
    _clients.clear()


# A connection that two processes share answers the one with what the other asked for.
os.register_at_fork(after_in_child=_begin_anew)


def client(service: str, region: str | None, endpoint_url: str | None, threads: int, *, where: str) -> Any:
    """The process's client for that, safe to share between ``threads`` threads. Credentials come from boto3's own chain.

    Retries are botocore's own (mode standard): callers must not add their own. Raises Misconfigured that says ``where``, what the
    client is for, and never the endpoint.
    """
    key = (service, region, endpoint_url, threads)
    with _making:  # making a client is not thread-safe, using one is
        if key not in _clients:
            _clients[key] = _new_client(*key, where)
        return _clients[key]


def forget_clients() -> None:
    """The next client is made anew: for tests, which change credentials within a process."""
    with _making:
        _clients.clear()


def _new_client(service: str, region: str | None, endpoint_url: str | None, threads: int, where: str) -> Any:
    import boto3
    import botocore
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        retries={"mode": "standard"},
        connect_timeout=10,
        read_timeout=60,  # SQS's longest poll takes 20
        max_pool_connections=max(50, threads),  # all queues share a client, and each may be in a long poll
        parameter_validation=False,  # AWS checks them as well, and here it takes a fifth of the time
        # One that is given is not put together anew, twice for each request: a seventh of a call's time.
        user_agent=f"bus-assets Boto3/{boto3.__version__} Botocore/{botocore.__version__}",
    )
    try:
        return boto3.Session(region_name=region).client(service, endpoint_url=endpoint_url, config=config)
    except (BotoCoreError, ValueError) as error:
        reason = _in_words(error) if isinstance(error, BotoCoreError) else "the endpoint is not a URL"
        raise Misconfigured(f"{where}: no client for {service}: {reason}; give the process AWS credentials and a region") from None


def error_code(error: Exception) -> str:
    """What AWS called it, without the service's prefix: ``QueueDoesNotExist``, ``AccessDenied``; empty if nothing was answered."""
    answer = getattr(error, "response", None) or {}  # None: the connection was closed before there was one
    return str(answer.get("Error", {}).get("Code", "")).rpartition(".")[2]


@contextmanager
def sorted_errors(where: str, action: str, arn: str) -> Iterator[None]:
    """Raises what boto3 raises in here as Transient or Misconfigured; denied access names ``action`` and ``arn``.

    Causes are cut off: botocore's texts hold the endpoint, and a cause is logged with its error.
    """
    try:
        yield
    except Exception as error:
        if (ours := in_our_words(error, where, action, arn)) is None:
            raise
        raise ours from None


def in_our_words(error: Exception, where: str, action: str, arn: str) -> BusError | None:
    """What to raise instead of ``error``, see :func:`sorted_errors`; None if it is none of boto3's."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, ClientError):
        return _answered(error, where, action, arn)
    return _unanswered(error, where) if isinstance(error, (BotoCoreError, ResponseParserError, HTTPError, OSError)) else None


def _answered(error: Any, where: str, action: str, arn: str) -> BusError:
    code, status = error_code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code.lower() in _BUSY or status >= 500 or status == 429:
        return Transient(f"{where} did not take {action}: {code or status}; try again later")
    if code.lower() in _DENIED or status in (401, 403):
        also = ", and kms:Decrypt and kms:GenerateDataKey on the key that encrypts it" if code.lower().startswith("kms") else ""
        return Misconfigured(f"{where}: access is denied ({code or status}); allow {action} on {arn}{also}, or correct the credentials")
    return Misconfigured(f"{where} refused {action}: {code or status}; check its name, region and settings")


def _unanswered(error: Exception, where: str) -> BusError:
    from botocore import exceptions as boto

    name = type(error).__name__
    may_pass = (boto.ConnectionError, boto.HTTPClientError, boto.CredentialRetrievalError, boto.MetadataRetrievalError)
    if isinstance(error, boto.BotoCoreError) and not isinstance(error, (*may_pass, boto.IncompleteReadError)):
        return Misconfigured(f"{where}: {_in_words(error)}; give the process AWS credentials and a region")
    return Transient(f"{where} did not answer ({name}); try again later")


def _in_words(error: Exception) -> str:
    """The text of those errors that are known to hold no address; else the name."""
    from botocore import exceptions as boto

    told = (boto.NoCredentialsError, boto.NoRegionError, boto.PartialCredentialsError, boto.ProfileNotFound)
    return str(error).rstrip(".") if isinstance(error, told) else type(error).__name__
