"""A web service: records from paged JSON, and files over HTTP behind the same seam as a folder or a bucket.

Paging and retries are dlt's; what dlt would let pass (pages that go in circles, lists that are not there, credentials sent to
another host) is stopped here. Nothing is asked before it is needed. See :mod:`resources.http_paging` for ``paging``.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from types import MappingProxyType
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import ConfigDict, Field

from resources.errors import BusError, Misconfigured, Poison
from resources.files_seam import READ_AHEAD_BYTES, Listed
from resources.http_answers import MAX_WAIT_SECONDS, MISSING, Answers, is_worth_another_try, secret_headers
from resources.http_body import NO_CONTENT, Body, charset_of, is_cut, is_encoded, version_of
from resources.http_paging import PageWatch, checked_paging, paginator, record_list
from resources.http_recount import Fetch, count_records
from resources.jsonlines import loads_exact, text_columns
from resources.records import Records, Unreadable
from resources.system import System

_NO_HEAD = (400, 403, 405, 501)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class WebService(System):
    """A service below ``base_url``.

    ``auth``     'none', 'bearer' (``token``), 'basic' (``username``, ``password``) or 'api_key' (``api_key``, sent as the header
                 ``api_key_header``). Give secrets as ``EnvVar``. They and ``headers`` go only to base_url's own host, whatever
                 redirects and next links say, and are in no message.
    ``attempts`` tries of each request that answers 408, 425, 429 or 5xx, breaks or times out; between them Retry-After, else
                 ``backoff_seconds`` times 1, 2, 4, …

    Errors: Transient after the last attempt; Misconfigured for refused credentials, 404 and other 4xx, a certificate that is not
    trusted; Poison for bodies that do not read and for paging without end.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str
    auth: Literal["none", "bearer", "basic", "api_key"] = "none"
    token: str = Field(default="", repr=False)
    username: str = Field(default="", repr=False)
    password: str = Field(default="", repr=False)
    api_key: str = Field(default="", repr=False)
    api_key_header: str = "X-API-Key"
    headers: dict[str, str] = Field(default={}, repr=False)
    connect_timeout_seconds: float = 10
    read_timeout_seconds: float = 60
    attempts: int = 5
    backoff_seconds: float = 1
    max_pages: int = 10_000

    @property
    def where(self) -> str:
        return self.base_url

    def records(
        self,
        path: str,
        *,
        fields: Mapping[str, str],
        params: Mapping[str, Any] = _NOTHING,
        records: str | None = None,
        paging: Mapping[str, object] | None = None,
    ) -> Iterator[Records]:
        """Each page as Records: unit 'record', positions from 1 in the page, origin '/customers, page 3'.

        ``records`` is the dotted path to the list in the body (None: the body is the list), ``fields`` output name → dotted path in
        a record. All columns are strings, see :func:`resources.jsonlines.text_columns`. A record that is no object is Unreadable.
        """
        rules = checked_paging(paging)
        self._check()
        return self._pages(path, dict(fields), dict(params), records, rules)

    def count(
        self,
        path: str,
        *,
        params: Mapping[str, Any] = _NOTHING,
        records: str | None = None,
        paging: Mapping[str, object] | None = None,
    ) -> int:
        """How many records there are on all pages, asked for anew by urllib and paged by code of its own, without dlt and requests."""
        self._check()
        fetch = Fetch(self._answers(), self._secret_headers(), self.read_timeout_seconds, self.backoff_seconds)
        return count_records(fetch, path, dict(params), records, checked_paging(paging), self.max_pages)

    def list(self, pattern: str) -> tuple[Listed, ...]:
        """The one file that ``pattern`` names, if it is there: HTTP has no listing, ``*`` is Misconfigured, ``?`` begins a query.

        ``size_bytes`` is -1 and ``version`` '' where the service does not tell them.
        """
        name = re.sub(r"\[([*?[])\]", r"\1", pattern)
        if "*" in re.sub(r"\[\*\]", "", pattern):
            raise Misconfigured(f"{pattern!r}: a web service cannot be searched for names; name one file of {self.where}")
        with closing(self._session()) as session:
            response = self._ask(session, "HEAD", name)
            if response.status_code in _NO_HEAD:
                response = self._ask(session, "GET", name)
            response.close()
            if response.status_code in MISSING:
                return ()
            self._refuse(response, _place(name))
        size = response.headers.get("Content-Length", "")
        return (Listed(name, int(size) if size.isdigit() and not is_encoded(response) else -1, version_of(response)),)

    def open(self, name: str, version: str | None = None) -> BinaryIO:
        """The body as it arrives; retried until it begins. Poison if ``version`` is given and the service now has another."""
        session = self._session()
        response = self._ask(session, "GET", name)
        try:
            self._refuse(response, _place(name))
            now = version_of(response)
            if version and now and now != version and now.startswith(("W/", '"')) == version.startswith(("W/", '"')):
                said = (
                    f"{_place(name)!r} has changed since it was listed (was {version}, is {now}); a later trip or message reads the new one"
                )
                raise Poison(said, place=_place(name))
        except BusError:
            response.close()
            session.close()
            raise
        return io.BufferedReader(Body(response, session, _place(name), decoded=not name.lower().endswith(".gz")), READ_AHEAD_BYTES)

    def _pages(
        self, path: str, fields: dict[str, str], params: dict[str, Any], records: str | None, rules: dict[str, Any]
    ) -> Iterator[Records]:
        from requests import RequestException

        watch = PageWatch(rules, self.max_pages)
        with closing(self._session()) as session:
            client = self._client(session, lambda response, place: self._items(response, records, place), path)
            pages = client.paginate(path, params=params, paginator=paginator(rules), data_selector="$", hooks={"response": []})
            for number in range(1, self.max_pages + 2):
                place = f"{_place(path)}, page {number}"
                client.place = place
                try:
                    page = next(pages, None)
                except BusError:
                    raise
                except RequestException as error:
                    raise self._answers().unanswered(error, place) from None  # its text holds the whole address, query included
                except ValueError:
                    said = f"the page does not say what paging {rules['kind']!r} needs ({_told(rules)}); check the paths in paging"
                    raise Misconfigured(said, place=place) from None  # dlt's text holds the whole body
                if page is None:
                    return
                first = (page.response.history or [page.response])[0]
                watch.check(number, first.request.url, page, page.response.json, more=page.paginator.has_next_page, place=place)
                yield _records(page, fields, place)

    def _client(self, session: Any, items: "Callable[[Any, str], list[Any]]", path: str) -> Any:
        from dlt.common.configuration.specs.runtime_configuration import RuntimeConfiguration
        from dlt.sources.helpers.rest_client.client import RESTClient

        class Client(RESTClient):
            """Takes the records out of a body by our rules: dlt takes a missing list for an empty one, and floats for numbers."""

            place = path

            def extract_response(self, response: Any, data_selector: Any) -> Any:
                return items(response, self.place)

        # A configuration of our own keeps dlt from looking for its files; telemetry starts only with its pipelines.
        return Client(self.base_url, auth=self._sign(session), session=session, config=RuntimeConfiguration(dlthub_telemetry=False))

    def _session(self) -> Any:
        """A requests session that tries again, with dlt's waits, and keeps secrets at home."""
        self._check()
        from dlt.sources.helpers.requests import Client

        session = Client(
            request_timeout=(self.connect_timeout_seconds, self.read_timeout_seconds),
            raise_for_status=False,
            status_codes=(),
            exceptions=(),
            retry_condition=is_worth_another_try,
            request_max_attempts=self.attempts,
            request_backoff_factor=self.backoff_seconds,
            request_max_retry_delay=MAX_WAIT_SECONDS,
        ).session
        session.headers["User-Agent"] = "bus-assets"
        session.headers["Accept-Encoding"] = "gzip, deflate"  # of which is_cut knows the end, whatever else urllib3 finds installed
        secret = self._secret_headers()

        def rebuild_auth(prepared_request: Any, response: Any) -> None:
            """requests takes only Authorization off a redirect to another host."""
            if session.should_strip_auth(self.base_url, prepared_request.url):
                for name in secret:
                    prepared_request.headers.pop(name, None)

        session.rebuild_auth = rebuild_auth
        return session

    def _sign(self, session: Any) -> Any:
        secret = self._secret_headers()

        def sign(request: Any) -> Any:
            if not session.should_strip_auth(self.base_url, request.url):
                request.headers.update(secret)
            return request

        return sign

    def _secret_headers(self) -> dict[str, str]:
        return secret_headers(
            self.auth, self.headers, token=self.token, login=(self.username, self.password), api_key=(self.api_key_header, self.api_key)
        )

    def _check(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise Misconfigured("base_url must look like 'https://host/path', without a query")
        if parts.username is not None or parts.password is not None:
            raise Misconfigured("base_url holds a login; give it as auth='basic', username and password instead")
        if self.attempts < 1 or self.max_pages < 1:
            raise Misconfigured(f"attempts ({self.attempts}) and max_pages ({self.max_pages}) must be at least 1")
        self._secret_headers()

    def _ask(self, session: Any, method: str, name: str) -> Any:
        """One streamed answer, redirects followed. Bytes come as they are stored, if the service can: files are compressed already."""
        from requests import RequestException

        address = f"{self.base_url.rstrip('/')}/{name.lstrip('/')}"
        asked = {"headers": {"Accept-Encoding": "identity"}, "auth": self._sign(session), "stream": True, "allow_redirects": True}
        try:
            return session.request(method, address, **asked)
        except RequestException as error:
            raise self._answers().unanswered(error, _place(name)) from None  # its text holds the whole address, query included

    def _items(self, response: Any, records: str | None, place: str) -> "list[Any]":
        self._refuse(response, place, response.content)
        if is_cut(response):
            raise self._answers().cut(place)
        if response.status_code == NO_CONTENT:
            return []
        try:
            response.encoding = charset_of(response)
            body = loads_exact(response.content.decode(response.encoding))
        except (Poison, UnicodeDecodeError, LookupError) as error:
            reason = error.message if isinstance(error, Poison) else str(error)
            size = f"{len(response.content)} bytes"  # and no more of it: any of them may be data
            said = f"the body is not JSON but {self._answers().described(response.content)}, {size} ({reason})"
            raise Poison(f"{said}; check that path is the service's JSON", place=place) from None  # the cause may hold the body
        return record_list(body, records, place)

    def _refuse(self, response: Any, place: str, body: bytes = b"") -> None:
        if response.status_code >= 300:
            raise self._answers().refusal(response.status_code, response.url, response.headers, body, place)

    def _answers(self) -> Answers:
        secrets = (self.token, self.password, self.api_key, *self._secret_headers().values())
        return Answers(self.base_url, self.auth, self.attempts, secrets)


def _records(items: "list[Any]", fields: dict[str, str], origin: str) -> Records:
    good = [(position, item) for position, item in enumerate(items, 1) if isinstance(item, dict)]
    bad = [(position, item) for position, item in enumerate(items, 1) if not isinstance(item, dict)]
    unreadable = tuple(
        Unreadable(position, item if isinstance(item, str) else json.dumps(item, ensure_ascii=False), "the record is not a JSON object")
        for position, item in bad
    )
    positions = pa.array([position for position, _ in good], pa.int64())
    batch, nested, astray = text_columns([item for _, item in good], fields)
    return Records(batch, origin, positions, "record", unreadable, nested=nested, astray=astray)


def _place(path: str) -> str:
    """The path as people know it: its query may hold what is nobody's business."""
    return "/" + re.sub(r"^https?://[^/]*", "", path).partition("?")[0].lstrip("/")


def _told(rules: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in rules.items() if key in ("path", "total_pages", "total", "has_more") and value)
