"""What an answer of a web service means, or the lack of one: which may pass later, and which error says what to do next."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from resources.errors import BusError, Misconfigured, Missing, Poison, Transient
from resources.http_body import is_cut
from resources.texts import shortened

MAX_WAIT_SECONDS = 300
"""A Retry-After beyond this is not waited for: the trip fails as Transient and comes back later. dlt's own limit."""
QUOTED_CHARACTERS = 160
MISSING = (404, 410)
REFUSED = (401, 403)

_REASONS = ("error", "error_description", "message", "title", "detail")
"""Where documents about an error say why: by habit, and by RFC 6749 and RFC 9457."""
_TITLE = re.compile(r"<(?:!doctype\s+html|html)\b.{0,16384}?<title[^>]{0,200}>(.{0,500}?)</title", re.IGNORECASE | re.DOTALL)
"""Of a page for people: in other XML a title is a record's. Without bounds, a large page that closes none takes hours."""
_LIKE_RECORDS = re.compile(r'[\n\t|;"]|,\S')
_LIKE_A_VALUE = re.compile(r"[@\d]")
"""In a word."""


def may_pass_later(status: int) -> bool:
    """408 Request Timeout, 425 Too Early, 429 Too Many Requests, and what is the server's fault (RFC 9110, 8470, 6585)."""
    return status in (408, 425, 429) or status >= 500


def asked_wait_seconds(headers: Any) -> float | None:
    """What Retry-After asks for, in seconds or as a date; None if nothing that can be read."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def is_worth_another_try(response: Any, error: Any) -> bool:
    """dlt's retry condition. Redirects nest one retried call in another: what has failed inside is not retried outside as well."""
    outcome = response if error is None else error
    if outcome is None or getattr(outcome, "was_retried", False):
        return False
    outcome.was_retried = True
    if error is not None:
        return isinstance(error, _broken()) and not _is_distrust(error)
    if response.status_code < 300 and is_cut(response):
        return True
    return may_pass_later(response.status_code) and (asked_wait_seconds(response.headers) or 0) <= MAX_WAIT_SECONDS


def _broken() -> tuple[type[Exception], ...]:
    """requests' errors after which asking again may help."""
    from requests import exceptions

    return exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError


def _is_distrust(error: Exception) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def secret_headers(
    auth: str, headers: Mapping[str, str], *, token: str, login: tuple[str, str], api_key: tuple[str, str]
) -> dict[str, str]:
    """The headers that only the service itself may see; Misconfigured if a credential is missing or cannot be a header."""
    needs = {"none": (), "bearer": (("token", token),), "basic": (("username", login[0]),), "api_key": (("api_key", api_key[1]),)}[auth]
    for name, value in needs:
        if not value:
            raise Misconfigured(f"auth={auth!r} needs {name!r}, which is empty")
    made = dict(headers)
    if auth == "bearer":
        made["Authorization"] = f"Bearer {token}"
    elif auth == "basic":
        made["Authorization"] = f"Basic {base64.b64encode(':'.join(login).encode()).decode('ascii')}"
    elif auth == "api_key":
        made[api_key[0]] = api_key[1]
    for name, value in made.items():
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise Misconfigured(f"the value of the header {name!r} has a line break, a space at an end or a character beyond ASCII")
    return made


@dataclass(frozen=True, repr=False)
class Answers:
    """Turns answers of the service at ``base_url`` into errors.

    What could be a record is never quoted: which fields are sensitive is not known here. Of the texts that are, ``secrets`` are blotted
    out, and every word with a digit or an @ in it.
    """

    base_url: str
    auth: str
    attempts: int
    secrets: tuple[str, ...]

    def refusal(self, status: int, url: str, headers: Any, body: bytes, place: str) -> BusError:
        """The error for an answer that is none. ``url`` is what answered in the end, after redirects."""
        host = urlsplit(url).netloc.rpartition("@")[2]
        if status in REFUSED:
            away = host != urlsplit(self.base_url).netloc
            why = "which is not base_url's host and gets no credentials" if away else f"auth={self.auth!r}; check its settings"
            return Misconfigured(f"{host} refused the credentials ({status}, {why})", place=place)
        if status in MISSING:
            missing = Missing(f"{host} has nothing at this path ({status}); check base_url and path", place=place)
            missing.asked = url
            return missing
        if may_pass_later(status):
            wait = asked_wait_seconds(headers)
            asks = f" and asks to wait {wait:.0f} s" if wait else ""
            return Transient(f"{host} answered {status}{asks}, after at most {self.attempts} attempts; try again later", place=place)
        says = f": {why!r}" if (why := self._quoted(_reason(_text(body)))) else ""
        return Misconfigured(f"{host} refused the request ({status}){says}; check path and params", place=place)

    def unanswered(self, error: Exception, place: str) -> BusError:
        """The error for a request of requests that got no answer. Raise it ``from None``: requests' text holds the whole address."""
        from requests.exceptions import ContentDecodingError

        host = urlsplit(self.base_url).netloc
        if _is_distrust(error):
            return Misconfigured(f"the certificate of {host} is not trusted; correct it, or add its authority to this system", place=place)
        if isinstance(error, ContentDecodingError):
            return Poison("the body is not compressed as its headers say", place=place)
        if isinstance(error, _broken()):
            said = f"{host} did not answer or broke off ({_innermost(error)}), {self.attempts} attempts"
            return Transient(f"{said}; try again later", place=place)
        kind = type(error).__name__
        return Misconfigured(f"the request to {host} cannot be made ({kind}); check base_url, path and redirects", place=place)

    def cut(self, place: str) -> Transient:
        """The error for a body that ends before its compression does."""
        host = urlsplit(self.base_url).netloc
        return Transient(f"{host} broke off: the compressed body has no end, {self.attempts} attempts; try again later", place=place)

    def described(self, body: bytes) -> str:
        """What a body is that does not read as JSON: 'is an HTML page titled …', 'begins like it'."""
        text = _text(body)
        if not text:
            return "is empty"
        if text.startswith(("{", "[", '"')):
            return "begins like it"
        if text.startswith("<"):
            title = self._quoted(_title(text))
            return f"is an HTML page titled {title!r}" if title else "is HTML or XML"
        return "is some other text"

    def _quoted(self, text: str) -> str:
        for secret in filter(None, self.secrets):
            text = text.replace(secret, "***")
        return shortened(" ".join("…" if _LIKE_A_VALUE.search(word) else word for word in text.split()), QUOTED_CHARACTERS)


def _text(body: bytes) -> str:
    return body.decode("utf-8-sig", "replace").strip()


def _title(page: str) -> str:
    found = _TITLE.match(page)
    return found[1] if found else ""


def _reason(text: str) -> str:
    """Why a request was refused, as the answer's own words: a page's title, an error document's texts, a line of prose; else ''."""
    if text.startswith("<"):
        return _title(text)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return "" if text.startswith(("{", "[")) or _LIKE_RECORDS.search(text) else text
    if not isinstance(document, dict):
        return ""
    parts = [part for part in (document, document.get("error")) if isinstance(part, dict)]
    return ": ".join(part[name] for part in parts for name in _REASONS if isinstance(part.get(name), str))


def _innermost(error: Exception) -> str:
    inner = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    return type(getattr(inner, "reason", None) or inner).__name__
