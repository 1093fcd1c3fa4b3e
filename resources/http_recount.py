"""A paged service counted again by urllib and paging of its own, so that a fault of dlt, requests or ours would show."""

from __future__ import annotations

import gzip
import http.client
import json
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from resources.errors import Misconfigured, Poison, Transient
from resources.http_answers import MAX_WAIT_SECONDS, Answers, asked_wait_seconds
from resources.http_body import NO_CONTENT
from resources.http_paging import find, record_list

ERROR_BYTES = 64 << 10
"""As much of a refusal is read: a document cut in the middle says nothing."""


@dataclass(frozen=True, repr=False)
class Fetch:
    """GET by urllib with as many attempts; ``secrets`` are headers for base_url's own host."""

    answers: Answers
    secrets: Mapping[str, str]
    timeout_seconds: float
    backoff_seconds: float

    def __call__(self, address: str, place: str) -> tuple[bytes | None, Message]:
        """The body, None where the answer says that it has none, and the headers."""
        for attempt in range(1, self.answers.attempts + 1):
            wait = self.backoff_seconds * 2 ** (attempt - 1)
            try:
                return self._get(address)
            except _NotPacked as error:
                raise Poison(str(error), place=place) from None
            except urllib.error.HTTPError as error:
                with error:
                    refused = self.answers.refusal(error.code, error.url, error.headers, _reason(error), place)
                asked = asked_wait_seconds(error.headers) or 0
                if not isinstance(refused, Transient) or attempt == self.answers.attempts or asked > MAX_WAIT_SECONDS:
                    raise refused from None
                wait = asked or wait
            except ValueError:
                said = "the address, or one it redirects to, cannot be asked for by http or https; check base_url, paging and redirects"
                raise Misconfigured(said, place=place) from None
            except (OSError, http.client.HTTPException) as error:
                if attempt == self.answers.attempts:
                    said = f"the service did not answer or broke off ({type(error).__name__}), {self.answers.attempts} attempts"
                    raise Transient(said, place=place) from None
            time.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _get(self, address: str) -> tuple[bytes | None, Message]:
        request = urllib.request.Request(address, headers={"User-Agent": "bus-assets"})  # noqa: S310 - checked before it is opened
        self._sign(request)
        with urllib.request.build_opener(_Redirects(self._sign)).open(request, timeout=self.timeout_seconds) as answer:
            return None if answer.status == NO_CONTENT else _unpacked(answer.read(), answer.headers), answer.headers

    def _sign(self, request: urllib.request.Request) -> None:
        """Before any request is sent. ValueError for other schemes than http(s): urllib would open a ``file:`` that a service names."""
        ours, theirs = urlsplit(self.answers.base_url), urlsplit(request.full_url)
        if theirs.scheme not in ("http", "https"):
            raise ValueError(theirs.scheme)
        if (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc):
            for name, value in self.secrets.items():
                request.add_unredirected_header(name, value)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, sign: Callable[[urllib.request.Request], None]):
        self._sign = sign

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self._sign(request)
        return request


class _NotPacked(Exception):
    """A body that is not compressed as its headers say, or in a way that is not known here."""


def _unpacked(body: bytes, headers: Message) -> bytes:
    """Also if nobody asked for it to be packed. IncompleteRead if its end is missing."""
    encodings = [encoding.strip().lower() for encoding in ",".join(headers.get_all("Content-Encoding") or []).split(",")]
    for encoding in reversed(encodings):
        if encoding in ("", "identity") or not body:
            continue
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise _NotPacked(f"the body is compressed by {encoding!r}, which was not asked for and cannot be unpacked here")
        try:
            body = _inflated(body) if encoding == "deflate" else gzip.decompress(body)
        except EOFError:
            raise http.client.IncompleteRead(body) from None
        except (zlib.error, gzip.BadGzipFile):
            raise _NotPacked("the body is not compressed as its headers say") from None
    return body


def _inflated(body: bytes) -> bytes:
    """'deflate' is zlib's format (RFC 9110), and some send what is inside of it."""
    has_header = len(body) > 1 and body[0] & 15 == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    inflater = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
    made = inflater.decompress(body)
    if not inflater.eof:
        raise EOFError
    return made


def _reason(refusal: urllib.error.HTTPError) -> bytes:
    """Its body, '' where that cannot be read: the status says enough."""
    try:
        return _unpacked(refusal.read(ERROR_BYTES), refusal.headers)
    except (_NotPacked, OSError, http.client.HTTPException):
        return b""


def count_records(fetch: Fetch, path: str, params: dict[str, Any], records: str | None, rules: Mapping[str, Any], max_pages: int) -> int:
    """Records on all pages. Poison if there is no end, as when reading."""
    address: str | None = _with(urljoin(fetch.answers.base_url.rstrip("/") + "/", path.lstrip("/")), params | _first(rules))
    counted, seen = 0, set[str]()
    while address is not None:
        place = f"{urlsplit(address).path}, page {len(seen) + 1}"
        if address in seen or len(seen) >= max_pages:
            raise Poison("paging never ends; check paging", place=place)
        seen.add(address)
        text, headers = fetch(address, place)
        try:
            body = None if text is None else json.loads(text.decode(headers.get_content_charset() or json.detect_encoding(text)))
        except (ValueError, LookupError):
            raise Poison("the body is not JSON", place=place) from None
        on_page = 0 if text is None else len(record_list(body, records, place))
        counted += on_page
        address = _next(address, body, headers, on_page, len(seen), rules)
    return counted


def _first(rules: Mapping[str, Any]) -> dict[str, Any]:
    if rules["kind"] == "page":
        return {rules["param"]: rules["first"]}
    if rules["kind"] == "offset":
        return {rules["param"]: rules["first"], rules["limit_param"]: rules["limit"]}
    return {}


def _next(address: str, body: Any, headers: Message, on_page: int, pages: int, rules: Mapping[str, Any]) -> str | None:
    """The next page's address, None at the end."""
    kind = rules["kind"]
    if kind == "link_header":
        return next((urljoin(address, url) for url in _next_links(headers)), None)
    if body is None:
        return None
    if kind == "next_url":
        link = find(body, rules["path"])
        return urljoin(address, link) if link else None
    if kind == "none" or (rules["has_more"] and not _is_true(_needed(body, rules["has_more"]))):
        return None
    if kind == "cursor":
        cursor = find(body, rules["path"]) or None
        if cursor is None and rules["has_more"]:
            raise _lacking(rules["path"])
        return _with(address, {rules["param"]: cursor}) if cursor else None
    if not on_page:
        return None
    upto = rules["first"] + pages if kind == "page" else rules["first"] + pages * rules["limit"]
    total = rules["total_pages"] if kind == "page" else rules["total"]
    ends = int(_needed(body, total)) + (rules["first"] if kind == "page" else 0) if total else None
    return None if ends is not None and upto >= ends else _with(address, {rules["param"]: upto})


def _needed(body: Any, path: str) -> Any:
    if (value := find(body, path)) is None:
        raise _lacking(path)
    return value


def _lacking(path: str) -> Misconfigured:
    return Misconfigured(f"the page has no {path!r}, which paging needs; check the paths in paging")


def _is_true(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "yes", "1")


def _next_links(headers: Message) -> list[str]:
    """The addresses with the relation 'next', by RFC 8288: each has its first ``rel`` only, which may name several."""
    found = []
    for link in (link for line in headers.get_all("Link") or [] for link in _apart(line, ",")):
        target, *params = _apart(link.strip(), ";")
        named = [(name.strip().lower(), value.strip()) for name, _, value in (param.partition("=") for param in params)]
        relations = next((value.strip("\"'").lower().split() for name, value in named if name == "rel"), [])
        if "next" in relations and target.startswith("<") and target.rstrip().endswith(">"):
            found.append(target.rstrip()[1:-1])
    return found


def _apart(text: str, separator: str) -> list[str]:
    """``text`` at each ``separator`` that is neither in <…> nor in quotes, where a backslash takes the next character's meaning."""
    parts, start, closing, escaped = [], 0, "", False
    for at, character in enumerate(text):
        if closing:
            ends = character == closing and not escaped
            escaped = character == "\\" and closing == '"' and not escaped
            closing = "" if ends else closing
        elif character in '<"':
            closing = ">" if character == "<" else character
        elif character == separator:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _with(address: str, params: Mapping[str, Any]) -> str:
    """``address`` with ``params`` in its query, instead of those of the same name."""
    parts = urlsplit(address)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in params]
    added = urlencode([(name, value) for name, value in params.items() if value is not None], doseq=True)
    return urlunsplit(parts._replace(query="&".join(filter(None, (urlencode(kept), added)))))
