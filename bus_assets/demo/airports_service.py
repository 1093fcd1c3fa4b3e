"""The demo's web service: airports as paged JSON over real HTTP. ``/airports?page=2&per_page=200``, pages from 1."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

from bus_assets.demo import source
from resources.errors import Misconfigured

MAX_PER_PAGE = 500
ANSWER_SECONDS = 2
"""How long whatever has the port already may take to say that it is this service."""
NAME = "airports"
_NUMBERS = {"lat": float, "lon": float, "alt": int, "tz": int}


@contextmanager
def running(url: str) -> Iterator[str]:
    """The service at ``url`` (port 0: any free one) while the block runs, in a thread; yields its address.

    One that answers there already is used and left alone. Raises :class:`Misconfigured` if something else has the port.
    """
    try:
        server = _server(url)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _answers(url):
            yield url
            return
        raise Misconfigured(
            f"the airports service cannot listen there: {error.strerror}; set BUS_AIRPORTS_URL to another port", place=url
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="airports-service", daemon=True)
    thread.start()
    try:
        yield f"http://{server.server_address[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve(url: str) -> None:
    """Answer at ``url`` until interrupted. Raises as :func:`running` does."""
    with running(url):
        threading.Event().wait()


def _server(url: str) -> ThreadingHTTPServer:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.port is None or parts.hostname not in ("127.0.0.1", "localhost"):
        raise Misconfigured("the demo serves itself at http://127.0.0.1:PORT only; set BUS_AIRPORTS_URL so", place=url)
    all_airports()
    return _Server((parts.hostname, parts.port), _Handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - the scheme was checked
            return json.load(answer).get("service") == NAME
    except (URLError, OSError, ValueError, AttributeError):
        return False


@cache
def all_airports() -> tuple[dict[str, Any], ...]:
    """Every airport as JSON has it: numbers as numbers, null for what is not known."""
    return tuple({name: _typed(name, source.value(text)) for name, text in row.items()} for row in source.rows("airports"))


def _typed(name: str, text: str | None) -> Any:
    return text if text is None else _NUMBERS.get(name, str)(text)


def page(number: int, per_page: int) -> dict[str, Any]:
    """Page ``number``, from 1; past the last one the list is empty."""
    airports = all_airports()
    start = (number - 1) * per_page
    return {
        "data": airports[start : start + per_page],
        "page": number,
        "total_pages": -(-len(airports) // per_page),
        "total": len(airports),
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/":
            self._send(200, {"service": NAME, "see": "/airports?page=1&per_page=200"})
        elif parts.path == "/airports":
            self._page(parse_qs(parts.query))
        else:
            self._send(404, {"error": f"no such path: {parts.path}"})

    def _page(self, query: dict[str, list[str]]) -> None:
        try:
            number, per_page = int(query.get("page", ["1"])[-1]), int(query.get("per_page", ["200"])[-1])
        except ValueError:
            number = per_page = 0
        if number < 1 or not 1 <= per_page <= MAX_PER_PAGE:
            self._send(400, {"error": f"page counts from 1, per_page from 1 to {MAX_PER_PAGE}"})
        else:
            self._send(200, page(number, per_page))

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: the demo's output is the account."""
