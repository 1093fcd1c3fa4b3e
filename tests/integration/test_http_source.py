"""A web service over real HTTP: a server in a thread that answers by script."""

import gzip
import http.server
import itertools
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from resources.errors import BusError, Misconfigured, Poison, Transient
from resources.files import Files, Listed, matching
from resources.http import WebService
from resources.http_answers import Answers
from resources.http_paging import next_link
from resources.http_recount import _next_links
from resources.xmlfeed import count_xml, read_xml

SECRET = "s3cr3t-of-nobody"
PRIVATE = "Annabel"
FIELDS = {"id": "id"}


@dataclass
class Reply:
    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    chunked: bool = False
    delay_seconds: float = 0
    length: bool = True

    def bytes(self) -> bytes:
        return (
            self.body
            if isinstance(self.body, bytes)
            else self.body.encode()
            if isinstance(self.body, str)
            else json.dumps(self.body).encode()
        )


@dataclass
class Asked:
    path: str
    query: dict[str, str]
    headers: Any
    method: str
    at: float


class Script(http.server.ThreadingHTTPServer):
    """Answers with ``answer(asked)``, or with the next of ``replies``, the last of them for ever."""

    daemon_threads = True

    def __init__(self):
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Reply] = lambda asked: self.replies[min(len(self.asked), len(self.replies)) - 1]
        self.replies: list[Reply] = [Reply([])]
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        assert isinstance(self.server, Script)
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.server.asked.append(Asked(parts.path, query, self.headers, self.command, time.monotonic()))
        reply = self.server.answer(self.server.asked[-1])
        time.sleep(reply.delay_seconds)
        body = reply.bytes()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        elif reply.length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: reply.cut_after])

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def start():
    servers = []

    def serve() -> Script:
        server = Script()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return server

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(start) -> Script:
    return start()


def service(server: Script, **options) -> WebService:
    options = {"base_url": server.url, "attempts": 3, "backoff_seconds": 0.01, "read_timeout_seconds": 5} | options
    return WebService(**options)


def ids(web: WebService, path: str = "/customers", **options) -> list:
    return [value for run in web.records(path, fields=FIELDS, **options) for value in run.batch.column("id").to_pylist()]


def people(*numbers: int) -> list[dict]:
    return [{"id": number} for number in numbers]


# Records


def test_a_page_is_a_batch_of_text_with_its_place(server):
    server.replies = [Reply({"data": {"list": [{"id": 1, "a": {"b": "x"}, "tags": [1.0, "y"]}, {"id": None}]}})]
    (run,) = service(server).records("/customers", fields={"id": "id", "b": "a.b", "tags": "tags"}, records="data.list")
    assert run.batch.to_pylist() == [{"id": "1", "b": "x", "tags": '[1.0,"y"]'}, {"id": None, "b": None, "tags": None}]
    assert (run.origin, run.unit, run.positions.to_pylist(), run.unreadable) == ("/customers, page 1", "record", [1, 2], ())


@pytest.mark.parametrize("number", ["12.50", "0.1000000000000000055511151231257827", "123456789012345678901234567890", "1E+2", "-0.0"])
def test_numbers_keep_their_digits(server, number):
    server.replies = [Reply(f'[{{"id": {number}}}]')]
    assert ids(service(server)) == [number]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ('[{"id": "Ærø"}]'.encode(), "application/json"),
        ('[{"id": "Ærø"}]'.encode(), "text/plain"),
        ('[{"id": "Ærø"}]'.encode("utf-8-sig"), "application/json; charset=utf-8"),
        ('[{"id": "Ærø"}]'.encode("utf-16"), "application/json"),
        ('[{"id": "Ærø"}]'.encode("latin-1"), "application/json; charset=iso-8859-1"),
    ],
)
def test_the_body_is_utf8_unless_it_says_otherwise(server, body, content_type):
    server.replies = [Reply(body, headers={"Content-Type": content_type})]
    assert ids(service(server)) == ["Ærø"]


def test_a_record_that_is_no_object_is_unreadable_and_its_neighbours_are_kept(server):
    server.replies = [Reply([{"id": 1}, "text", None, [2], {"id": 3}])]
    (run,) = service(server).records("/customers", fields=FIELDS)
    assert run.positions.to_pylist() == [1, 5]
    assert [(bad.position, bad.raw, bad.reason) for bad in run.unreadable] == [
        (2, "text", "the record is not a JSON object"),
        (3, "null", "the record is not a JSON object"),
        (4, '["2"]', "the record is not a JSON object"),
    ]


@pytest.mark.parametrize("body", [{"data": []}, {"data": None}])
def test_no_records_give_one_empty_batch(server, body):
    server.replies = [Reply(body)]
    (run,) = service(server).records("/customers", fields=FIELDS, records="data")
    assert (run.batch.num_rows, run.batch.schema.names) == (0, ["id"])
    assert service(server).count("/customers", records="data") == 0


@pytest.mark.parametrize(
    ("body", "records", "says"),
    [
        ({"items": [], "total": 0}, None, r"an object with the keys 'items', 'total'; set records= to the path of the list \(items\)"),
        ({"items": [], "total": 0}, "data", "records='data' is not in the body: an object with the keys 'items', 'total'"),
        ({"data": {"rows": []}}, "data.list", "'data' is an object with the keys 'rows'"),
        ({"data": {}}, "data", "records='data' is no list but an empty object"),
        ([], "data", "records='data' is not in the body: a list"),
        ({"data": {}, "anna@example.org": 1}, "list", "an object with the keys 'data' and 1 more;"),
        ({f"id{number}": {} for number in range(21)}, "data", "an object with 21 keys;"),
        ({f"id{number}": [] for number in range(21)}, None, "no key here holds one"),
    ],
)
def test_a_list_that_is_not_there_names_the_keys_there_are(server, body, records, says):
    server.replies = [Reply(body)]
    with pytest.raises(Misconfigured, match=says) as caught:
        ids(service(server), records=records)
    assert caught.value.place == "/customers, page 1"
    with pytest.raises(Misconfigured, match=says):
        service(server).count("/customers", records=records)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("<html><head><TITLE>\n Please log in</title>", "not JSON but is an HTML page titled 'Please log in', 42 bytes"),
        (f"<html><title>Hello {SECRET} 4711</title>", r"titled 'Hello \*\*\* …'"),
        (f"<html>{PRIVATE}</html>", "not JSON but is HTML or XML"),
        (f'<?xml version="1.0"?><book><title>{PRIVATE}</title></book>', "not JSON but is HTML or XML"),
        (f'[{{"name": "{PRIVATE}"', r"not JSON but begins like it, 19 bytes \(not JSON: Expecting ',' delimiter at character 20\)"),
        (f"name\n{PRIVATE}\n", "not JSON but is some other text, 13 bytes"),
        (PRIVATE, "not JSON but is some other text"),
        ('[{"id": NaN}]', "NaN is not JSON"),
        ("", "not JSON but is empty"),
        (b'[{"id": "\xff"}]', "not JSON but begins like it"),
    ],
)
def test_a_body_that_is_not_json_is_poison_and_not_quoted(server, body, says):
    server.replies = [Reply(body)]
    with pytest.raises(Poison, match=says) as caught:
        ids(service(server, auth="bearer", token=SECRET))
    assert caught.value.place == "/customers, page 1"
    assert SECRET not in str(caught.value)
    assert PRIVATE not in str(caught.value)
    assert len(server.asked) == 1


def test_params_and_headers_are_sent_and_no_query_is_in_an_origin(server):
    server.replies = [Reply(people(1))]
    web = service(server, headers={"X-Tenant": "seven"})
    (run,) = web.records("customers?key=abc", fields=FIELDS, params={"size": 10})
    assert run.origin == "/customers, page 1"
    assert server.asked[0].query == {"key": "abc", "size": "10"}
    assert server.asked[0].headers["X-Tenant"] == "seven"


# Paging


PAGES = [people(1, 2), people(3, 4), people(5)]


def by_link_header(server: Script, asked: Asked) -> Reply:
    page = int(asked.query.get("p", 0))
    link = {"Link": f'<{server.url}/customers?p={page + 1}&k=1>; rel="next", </x>; rel="last"'} if page < 2 else {}
    return Reply(PAGES[page], headers=link)


def by_next_url(server: Script, asked: Asked) -> Reply:
    page = int(asked.query.get("p", 0))
    return Reply({"value": PAGES[page], "@odata.nextLink": ["/customers?p=1", f"{server.url}/customers?p=2", ""][page]})


def by_page(server: Script, asked: Asked) -> Reply:
    page = int(asked.query["page"]) - 1
    return Reply({"value": PAGES[page] if page < 3 else [], "pages": 3, "more": page < 2})


def by_offset(server: Script, asked: Asked) -> Reply:
    start, limit = int(asked.query["offset"]), int(asked.query["limit"])
    return Reply({"value": people(1, 2, 3, 4, 5)[start : start + limit], "meta": {"total": 5}, "more": start + limit < 5})


def by_cursor(server: Script, asked: Asked) -> Reply:
    page = int(asked.query.get("after", 0))
    return Reply({"value": PAGES[page], "next": [1, "2", 0][page], "more": page < 2})


@pytest.mark.parametrize(
    ("answer", "records", "paging", "requests"),
    [
        (by_link_header, None, {"kind": "link_header"}, 3),
        (by_next_url, "value", {"kind": "next_url", "path": "@odata.nextLink"}, 3),
        (by_page, "value", {"kind": "page"}, 4),
        (by_page, "value", {"kind": "page", "total_pages": "pages"}, 3),
        (by_page, "value", {"kind": "page", "has_more": "more"}, 3),
        (by_offset, "value", {"kind": "offset", "limit": 2}, 4),
        (by_offset, "value", {"kind": "offset", "limit": 2, "total": "meta.total"}, 3),
        (by_offset, "value", {"kind": "offset", "limit": 2, "has_more": "more"}, 3),
        (by_cursor, "value", {"kind": "cursor", "path": "next", "param": "after"}, 3),
        (by_cursor, "value", {"kind": "cursor", "path": "next", "param": "after", "has_more": "more"}, 3),
    ],
)
def test_every_kind_of_paging_reads_all_pages_once_and_the_recount_agrees(server, answer, records, paging, requests):
    server.answer = lambda asked: answer(server, asked)
    web = service(server)
    assert ids(web, records=records, paging=paging) == ["1", "2", "3", "4", "5"]
    assert len(server.asked) == requests
    assert web.count("/customers", records=records, paging=paging) == 5
    assert len(server.asked) == 2 * requests


def test_each_page_counts_its_records_from_one(server):
    server.answer = lambda asked: by_page(server, asked)
    runs = list(service(server).records("/customers", fields=FIELDS, records="value", paging={"kind": "page", "total_pages": "pages"}))
    assert [(run.origin, run.positions.to_pylist()) for run in runs] == [
        ("/customers, page 1", [1, 2]),
        ("/customers, page 2", [1, 2]),
        ("/customers, page 3", [1]),
    ]


def test_pages_are_asked_for_only_as_they_are_consumed(server):
    server.answer = lambda asked: by_page(server, asked)
    runs = service(server).records("/customers", fields=FIELDS, records="value", paging={"kind": "page"})
    assert server.asked == []
    next(runs)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("paging", "body", "says"),
    [
        ({"kind": "page"}, people(1), "pages 1 and 2 hold the same records: the service does not follow paging 'page'"),
        ({"kind": "next_url"}, {"data": people(1), "next": "/customers"}, "address of an earlier one"),
        ({"kind": "next_url"}, {"data": [], "next": "/customers"}, "address of an earlier one"),
        ({"kind": "cursor", "path": "next"}, {"data": people(1), "next": "same"}, "never ends"),
        ({"kind": "cursor", "path": "next"}, {"data": [], "next": "same"}, "never ends"),
    ],
)
def test_paging_in_a_circle_is_poison(server, paging, body, says):
    server.replies = [Reply(body)]
    records = "data" if isinstance(body, dict) else None
    with pytest.raises(Poison, match=says):
        ids(service(server), records=records, paging=paging)
    assert len(server.asked) <= 3


def test_a_service_that_echoes_the_page_number_but_ignores_it_is_poison(server):
    server.answer = lambda asked: Reply({"data": people(1, 2), "page": asked.query.get("pge")})
    with pytest.raises(Poison, match="same records"):
        ids(service(server), records="data", paging={"kind": "page", "param": "pge"})


def test_more_pages_than_allowed_are_poison_and_exactly_as_many_are_not(server):
    server.answer = lambda asked: Reply(people(len(server.asked)) if len(server.asked) < 9 else [])
    with pytest.raises(Poison, match="8 pages and there are more; raise max_pages"):
        ids(service(server, max_pages=8), paging={"kind": "page"})
    server.asked.clear()
    with pytest.raises(Poison, match="never ends"):
        service(server, max_pages=8).count("/customers", paging={"kind": "page"})
    server.asked.clear()
    assert len(ids(service(server, max_pages=9), paging={"kind": "page"})) == 8


def test_a_service_that_gives_smaller_pages_than_asked_is_not_skipped_through(server):
    everything = people(*range(10))

    def capped(asked: Asked) -> Reply:
        start = int(asked.query["offset"])
        return Reply({"data": everything[start : start + 2], "total": 10})

    server.answer = capped
    with pytest.raises(Misconfigured, match=r"gave 2 records of the 4 asked for.*set limit"):
        ids(service(server), records="data", paging={"kind": "offset", "limit": 4})
    with pytest.raises(Misconfigured, match="announces 10 records and paging ends at 2"):
        ids(service(server), records="data", paging={"kind": "offset", "limit": 20, "total": "total"})


@pytest.mark.parametrize(
    ("paging", "says"),
    [
        ({"kind": "pages"}, "paging kind 'pages' is not known; known are none, link_header"),
        ({}, None),
        ({"param": "p"}, "paging kind None is not known"),
        ({"kind": "page", "size": 3}, "paging 'page' has no key 'size'; it has param, first, total_pages, has_more"),
        ({"kind": "offset"}, "needs 'limit'"),
        ({"kind": "offset", "limit": 0}, "limit=0 must be a whole number"),
        ({"kind": "page", "first": "1"}, "first='1' must be a whole number"),
        ({"kind": "next_url", "path": ""}, "must be a name or path"),
        ({"kind": "cursor", "path": None}, "must be a name or path"),
        ({"kind": "page", "has_more": "it's"}, "must be a name or path"),
    ],
)
def test_paging_that_does_not_read_is_misconfigured_before_anything_is_asked(server, paging, says):
    if says is None:
        assert ids(service(server), paging=paging) == []
        return
    with pytest.raises(Misconfigured, match=says):
        service(server).records("/customers", fields=FIELDS, paging=paging)
    assert server.asked == []


@pytest.mark.parametrize("paging", [{"kind": "page", "total_pages": "pages"}, {"kind": "page", "has_more": "more"}])
def test_a_page_without_what_paging_needs_is_misconfigured_and_does_not_quote_the_body(server, paging):
    server.replies = [Reply({"data": [{"id": "private"}]})]
    with pytest.raises(Misconfigured, match="the page does not say what paging 'page' needs") as caught:
        ids(service(server), records="data", paging=paging)
    with pytest.raises(Misconfigured, match="which paging needs"):
        service(server).count("/customers", records="data", paging=paging)
    assert "private" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("cursor", [{}, {"next": None}, {"next": ""}, {"next": 0}])
@pytest.mark.parametrize("more", [True, "true"])
def test_more_without_a_cursor_is_misconfigured_and_no_end(server, cursor, more):
    server.replies = [Reply({"data": people(1), "next": "a", "more": True}), Reply({"data": people(2), "more": more} | cursor)]
    paging = {"kind": "cursor", "path": "next", "has_more": "more"}
    runs = service(server).records("/customers", fields=FIELDS, records="data", paging=paging)
    next(runs)
    with pytest.raises(Misconfigured, match=r"does not say what paging 'cursor' needs \(path='next', has_more='more'\)") as caught:
        next(runs)
    assert caught.value.place == "/customers, page 2"
    server.asked.clear()
    with pytest.raises(Misconfigured, match="the page has no 'next', which paging needs"):
        service(server).count("/customers", records="data", paging=paging)


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
@pytest.mark.parametrize(
    "paging",
    [
        None,
        {"kind": "link_header"},
        {"kind": "next_url"},
        {"kind": "page"},
        {"kind": "page", "total_pages": "pages"},
        {"kind": "page", "has_more": "more"},
        {"kind": "offset", "limit": 1},
        {"kind": "offset", "limit": 1, "total": "total"},
        {"kind": "cursor", "path": "next"},
        {"kind": "cursor", "path": "next", "has_more": "more"},
    ],
)
def test_no_content_is_an_empty_page_and_the_last(server, paging, headers):
    full = {"data": people(1), "next": "/customers?p=1", "pages": 9, "total": 9, "more": True}
    end = Reply("", 204, headers, length=False)
    for replies, there in (([end], []), ([Reply(full, headers={"Link": "</customers?p=1>; rel=next"}), end], ["1"])):
        server.asked.clear()
        server.replies = replies
        assert ids(service(server), records="data", paging=paging) == there
        server.asked.clear()
        assert service(server).count("/customers", records="data", paging=paging) == len(there)
        assert len(server.asked) == (len(replies) if paging else 1)


def test_a_page_without_content_may_have_a_link_to_the_next(server):
    server.answer = lambda asked: Reply(people(1)) if asked.query else Reply("", 204, {"Link": "<?p=1>; rel=next"}, length=False)
    assert ids(service(server), paging={"kind": "link_header"}) == ["1"]
    assert service(server).count("/customers", paging={"kind": "link_header"}) == 1


@pytest.mark.parametrize(
    ("links", "leads"),
    [
        ('</customers?p=1>; rel="next"', True),
        ("</customers?p=1>; rel=next", True),
        ("</customers?p=1>; rel='next'", True),
        ("</customers?p=1>;rel=next;", True),
        ('</customers?p=1> ; ; rel = "next"', True),
        ('</customers?p=1>; rel="next prefetch"', True),
        ('</customers?p=1>; rel="prefetch  next"', True),
        ('</customers?p=1>; REL="Next"', True),
        ('</customers?p=1&f=a;b,c>; rel="next"', True),
        ('</customers?p=1>; title="x, y; rel=prev \\"<z>"; rel="next"', True),
        ('</x>; rel="first", , </customers?p=1>; crossorigin; rel="next"', True),
        ('</x>; title="</y>; rel=next, z", </customers?p=1>; rel="next",', True),
        ('</x>; rel="prev"; rel="next"', False),
        ('</x>; title="</y>; rel=next"', False),
        ('</x>; rel="nextish"; title=next', False),
        ('</x>; xrel="next", </x>; rev=next', False),
        ("/x; rel=next", False),
        ("</x; rel=next", False),
        ('</x>; title="x; rel=next', False),
        ("", False),
    ],
)
def test_the_next_link_is_found_as_rfc_8288_writes_it(server, links, leads):
    server.answer = lambda asked: Reply(people(2 if asked.query else 1), headers={} if asked.query else {"Link": links})
    assert ids(service(server), paging={"kind": "link_header"}) == (["1", "2"] if leads else ["1"])
    assert service(server).count("/customers", paging={"kind": "link_header"}) == (2 if leads else 1)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("unit", ["<", "<>", "<>;", "<>; ;", '<>;a="', "<>;a=\\", " ; ", ", ", '"\\'])
def test_a_long_link_header_takes_no_time(unit):
    links = unit * (60_000 // len(unit))
    told = Message()
    told["Link"] = links
    assert next_link(links) is None
    assert _next_links(told) == []


# Trouble that may pass


@pytest.mark.parametrize("counting", [False, True])
def test_retry_after_is_waited_for(server, counting):
    server.replies = [Reply("slow down", 429, {"Retry-After": "1"}), Reply(people(1))]
    web = service(server)
    assert (web.count("/customers") if counting else len(ids(web))) == 1
    first, second = server.asked
    assert 1 <= second.at - first.at < 3


def test_a_retry_after_beyond_the_longest_wait_fails_at_once(server):
    server.replies = [Reply("", 503, {"Retry-After": "86400"})]
    with pytest.raises(Transient, match="answered 503 and asks to wait 86400 s"):
        ids(service(server))
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server, status):
    server.replies = [Reply("", status), Reply("", status), Reply(people(1))]
    assert ids(service(server)) == ["1"]
    assert len(server.asked) == 3


@pytest.mark.parametrize("counting", [False, True])
def test_what_does_not_pass_is_transient_with_its_status(server, counting):
    server.replies = [Reply("", 503)]
    with pytest.raises(Transient, match="answered 503, after at most 3 attempts; try again later"):
        service(server).count("/customers") if counting else ids(service(server))
    assert len(server.asked) == 3


def test_the_waits_grow(server):
    server.replies = [Reply("", 500)]
    with pytest.raises(Transient):
        ids(service(server, attempts=4, backoff_seconds=0.1))
    times = [asked.at for asked in server.asked]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits[0] < waits[1] < waits[2]


@pytest.mark.parametrize("reply", [Reply(people(1, 2, 3), cut_after=7), Reply(people(1, 2, 3), cut_after=7, chunked=True)])
def test_a_cut_body_is_asked_for_again(server, reply):
    server.replies = [reply, Reply(people(1))]
    assert ids(service(server)) == ["1"]
    server.asked.clear()
    assert service(server).count("/customers") == 1


def packed(text: str, how: int, *, cut: bool) -> bytes:
    """By zlib's ``wbits``: 31 gzip, 15 deflate, -15 deflate as some send it. Cut off cleanly: all of ``text`` is there, its end is not."""
    packer = zlib.compressobj(wbits=how)
    return packer.compress(text.encode()) + packer.flush(zlib.Z_SYNC_FLUSH if cut else zlib.Z_FINISH)


PACKED = [("gzip", 31), ("x-gzip", 31), ("deflate", 15), ("deflate", -15)]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("encoding", "how"), PACKED)
def test_a_compressed_body_without_its_end_is_asked_for_again(server, encoding, how, chunked):
    """The length is the announced one: what compressed it broke off, not what sent it."""
    replies = [Reply(packed("[]", how, cut=cut), headers={"Content-Encoding": encoding}, chunked=chunked) for cut in (True, False)]
    server.replies = replies
    assert ids(service(server)) == []
    assert len(server.asked) == 2
    server.replies = replies[:1]
    with pytest.raises(Transient, match="broke off: the compressed body has no end, 3 attempts; try again later") as caught:
        ids(service(server))
    assert caught.value.place == "/customers, page 1"
    assert len(server.asked) == 5


@pytest.mark.parametrize("after", [gzip.compress(b", 2]"), gzip.compress(b", 2]") + bytes(9)], ids=["members", "padding"])
def test_a_compressed_body_of_several_members_is_whole(server, after):
    server.replies = [Reply(gzip.compress(b"[1") + after, headers={"Content-Encoding": "gzip"})]
    (run,) = service(server).records("/customers", fields=FIELDS)
    assert [bad.raw for bad in run.unreadable] == ["1", "2"]
    with service(server).open("a.txt") as stream:
        assert stream.read() == b"[1, 2]"


@pytest.mark.parametrize(("encoding", "how"), [*PACKED, ("GZIP", 31), ("identity", None), ("deflate, gzip", None)])
def test_the_recount_unpacks_what_it_did_not_ask_to_be_packed(server, encoding, how):
    body = packed("[1, 2]", how, cut=False) if how else gzip.compress(packed("[1, 2]", 15, cut=False)) if "," in encoding else "[1, 2]"
    server.replies = [Reply(body, headers={"Content-Encoding": encoding})]
    assert service(server).count("/customers") == 2
    (run,) = service(server).records("/customers", fields=FIELDS)
    assert len(run.unreadable) == 2


@pytest.mark.parametrize(("encoding", "how"), PACKED)
def test_the_recount_asks_again_for_a_compressed_body_without_its_end(server, encoding, how):
    server.replies = [Reply(packed("[1, 2]", how, cut=cut), headers={"Content-Encoding": encoding}) for cut in (True, False)]
    assert service(server).count("/customers") == 2
    server.replies = server.replies[:1]
    with pytest.raises(Transient, match=r"broke off \(IncompleteRead\), 3 attempts"):
        service(server).count("/customers")


@pytest.mark.parametrize("after", [gzip.compress(b", 2]"), gzip.compress(b", 2]") + bytes(9)], ids=["members", "padding"])
def test_the_recount_unpacks_several_members(server, after):
    server.replies = [Reply(gzip.compress(b"[1") + after, headers={"Content-Encoding": "gzip"})]
    assert service(server).count("/customers") == 2


@pytest.mark.parametrize(
    ("encoding", "says"), [("gzip", "not compressed as its headers say"), ("deflate", "not comp"), ("br", "'br', which")]
)
def test_what_the_recount_cannot_unpack_is_poison(server, encoding, says):
    server.replies = [Reply(b"\x07[1]", headers={"Content-Encoding": encoding})]
    with pytest.raises(Poison, match=says):
        service(server).count("/customers")
    assert len(server.asked) == 1


def test_a_packed_refusal_tells_the_recount_its_reason(server):
    server.replies = [Reply(gzip.compress(b"sort is not known"), 400, {"Content-Encoding": "gzip"})]
    for call in (ids, lambda web: web.count("/customers")):
        with pytest.raises(Misconfigured, match="sort is not known"):
            call(service(server))


def test_a_refusal_that_is_cut_is_told_and_asked_once(server):
    server.replies = [Reply(packed("no", 31, cut=True), 404, {"Content-Encoding": "gzip"})]
    with pytest.raises(Misconfigured, match="nothing at this path"):
        ids(service(server))
    assert len(server.asked) == 1


def test_a_body_that_is_always_cut_is_transient(server):
    server.replies = [Reply(people(1, 2, 3), cut_after=7)]
    with pytest.raises(Transient, match=r"did not answer or broke off .*3 attempts") as caught:
        ids(service(server))
    assert caught.value.place == "/customers, page 1"
    assert len(server.asked) == 3


def test_a_service_that_does_not_answer_in_time_is_transient(server):
    server.replies = [Reply([], delay_seconds=0.5)]
    with pytest.raises(Transient, match="ReadTimeout"):
        ids(service(server, attempts=2, read_timeout_seconds=0.05))
    assert len(server.asked) == 2


@pytest.mark.parametrize("counting", [False, True])
def test_a_service_that_is_not_there_is_transient(counting):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        web = WebService(base_url=f"http://127.0.0.1:{held.getsockname()[1]}", attempts=2, backoff_seconds=0.01)
        with pytest.raises(Transient, match="did not answer or broke off"):
            web.count("/x") if counting else ids(web)


def test_a_redirect_does_not_multiply_the_attempts(server):
    server.answer = lambda asked: Reply("", 302, {"Location": "/moved"}) if asked.path == "/customers" else Reply("", 500)
    with pytest.raises(Transient, match="answered 500"):
        ids(service(server))
    assert [asked.path for asked in server.asked] == ["/customers", "/moved", "/moved", "/moved"]


def test_trouble_on_a_later_page_names_that_page(server):
    server.answer = lambda asked: by_page(server, asked) if asked.query["page"] == "1" else Reply("", 500)
    runs = service(server).records("/customers", fields=FIELDS, records="value", paging={"kind": "page"})
    next(runs)
    with pytest.raises(Transient, match="/customers, page 2: "):
        next(runs)


# Trouble that a person must end


LOGINS = [
    {"auth": "bearer", "token": SECRET},
    {"auth": "basic", "username": "bus", "password": SECRET},
    {"auth": "api_key", "api_key": SECRET, "api_key_header": "X-Key"},
]
EXPECTED = [("Authorization", f"Bearer {SECRET}"), ("Authorization", "Basic YnVzOnMzY3IzdC1vZi1ub2JvZHk="), ("X-Key", SECRET)]


@pytest.mark.parametrize(("login", "expected"), zip(LOGINS, EXPECTED, strict=True), ids=["bearer", "basic", "api_key"])
def test_a_login_is_sent_with_every_request(server, login, expected, tmp_path):
    server.answer = lambda asked: by_page(server, asked) if asked.query else Reply("<c><r/></c>")
    web = service(server, **login)
    ids(web, records="value", paging={"kind": "page"})
    web.count("/customers", records="value", paging={"kind": "page"})
    web.open("feed.xml").close()
    web.list("feed.xml")
    assert len(server.asked) == 10
    assert {asked.headers[expected[0]] for asked in server.asked} == {expected[1]}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("login", LOGINS, ids=["bearer", "basic", "api_key"])
@pytest.mark.parametrize("use", ["records", "count", "open", "list"])
def test_refused_credentials_are_misconfigured_and_never_told(server, login, status, use):
    server.answer = lambda asked: Reply(f"no: {dict(asked.headers)}", status)
    web = service(server, **login)
    calls: dict[str, Callable[[], object]] = {
        "records": lambda: ids(web),
        "count": lambda: web.count("/customers"),
        "open": lambda: web.open("feed.xml"),
        "list": lambda: web.list("feed.xml"),
    }
    with pytest.raises(Misconfigured, match=rf"refused the credentials \({status}, auth='{login['auth']}'") as caught:
        calls[use]()
    told = f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {web!r} {web}"
    assert SECRET not in told
    assert EXPECTED[1][1] not in told
    assert len(server.asked) <= 2


def test_an_error_that_echoes_the_request_does_not_tell_the_secret(server):
    server.answer = lambda asked: Reply(f"bad request: {asked.headers['Authorization']}", 400)
    for login in LOGINS[:2]:
        with pytest.raises(Misconfigured, match=r"refused the request \(400\): 'bad request: .*\*\*\*") as caught:
            ids(service(server, **login))
        assert SECRET not in str(caught.value)
        assert "YnVz" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("sort is not known", "(400): 'sort is not known'; check path"),
        ("limit is 500, at most 100", "(400): 'limit is … at most …'; check path"),
        ({"error": "bad_filter", "detail": "no such field", "rows": [{"name": PRIVATE}] * 99}, "(400): 'bad_filter: no such field'; check"),
        ({"error": {"message": "no such customer: anna@example.org"}}, "(400): 'no such customer: …'; check path"),
        ("<html><title>Blocked</title>", "(400): 'Blocked'; check path"),
        ({"name": PRIVATE}, "(400); check path"),
        ([{"message": PRIVATE}], "(400); check path"),
        (f'{{"name": "{PRIVATE}', "(400); check path"),
        (f"id,name\n1,{PRIVATE}\n", "(400); check path"),
        (f"name;{PRIVATE}", "(400); check path"),
        ("", "(400); check path"),
    ],
)
@pytest.mark.parametrize("counting", [False, True])
def test_of_a_refusal_its_reason_is_told_and_no_record(server, body, says, counting):
    server.replies = [Reply(body, 400)]
    with pytest.raises(Misconfigured, match=re.escape(says)) as caught:
        service(server).count("/customers") if counting else ids(service(server))
    assert PRIVATE not in str(caught.value)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("begins", "unit"), [("", "x"), ("<html>", "<title"), ("<html>", "<title>")])
def test_a_large_answer_that_is_none_takes_no_time(begins, unit):
    """It took hours where each of its characters made the way through all others."""
    answers, body = Answers("http://host", "none", 1, ()), (begins + unit * (1_000_000 // len(unit))).encode()
    assert len(str(answers.refusal(400, "http://host/x", {}, body, "/x"))) < 300
    assert len(answers.described(body)) < 300


@pytest.mark.parametrize(("status", "says"), [(404, "nothing at this path"), (410, "nothing at this path"), (422, "refused the request")])
def test_other_refusals_are_misconfigured_and_asked_once(server, status, says):
    server.replies = [Reply("", status)]
    with pytest.raises(Misconfigured, match=says):
        ids(service(server))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "ftp://host"}, "base_url must look like"),
        ({"base_url": "host/path"}, "base_url must look like"),
        ({"base_url": "http://h/?key=1"}, "without a query"),
        ({"base_url": f"http://me:{SECRET}@host"}, "base_url holds a login"),
        ({"auth": "bearer"}, "auth='bearer' needs 'token', which is empty"),
        ({"auth": "basic", "password": "p"}, "needs 'username'"),
        ({"auth": "api_key"}, "needs 'api_key'"),
        ({"auth": "bearer", "token": SECRET + "\n"}, "the header 'Authorization' has a line break"),
        ({"auth": "bearer", "token": SECRET + "€"}, "beyond ASCII"),
        ({"attempts": 0}, "must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_misconfigured_before_anything_is_asked(server, options, says):
    web = service(server, **options)
    for call in (lambda: web.records("/x", fields=FIELDS), lambda: web.count("/x"), lambda: web.list("x"), lambda: web.open("x")):
        with pytest.raises(Misconfigured, match=says) as caught:
            call()
        assert SECRET not in str(caught.value)
    assert server.asked == []


def test_a_setting_of_the_wrong_type_is_not_shown():
    with pytest.raises(ValueError, match="token") as caught:
        WebService(base_url="http://host", auth="bearer", token=[SECRET])  # pyright: ignore[reportArgumentType]
    assert SECRET not in str(caught.value)


def test_endless_redirects_are_misconfigured(server):
    server.replies = [Reply("", 302, {"Location": "/customers"})]
    with pytest.raises(Misconfigured, match="TooManyRedirects"):
        ids(service(server))


def test_a_certificate_that_is_not_trusted_is_misconfigured_at_once(tmp_path):
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    try:
        subprocess.run(["openssl", *made], cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    attempts = []

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            attempts.append(1)
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        with pytest.raises(Misconfigured, match=r"the certificate of 127\.0\.0\.1:\d+ is not trusted"):
            ids(WebService(base_url=f"https://127.0.0.1:{listening.getsockname()[1]}", backoff_seconds=0.01))
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert attempts == [1]


@pytest.mark.parametrize(
    ("use", "away"),
    [
        ("next_url", "file://FILE"),
        ("next_url", 'data:application/json,{"data":[{}]}'),
        ("next_url", "ftp://127.0.0.1:1/x"),
        ("link_header", "file://FILE"),
        ("redirect", "file://FILE"),
        ("redirect", "ftp://127.0.0.1:1/x"),
    ],
)
def test_what_is_no_web_address_is_neither_read_nor_counted(server, tmp_path, use, away):
    (tmp_path / "page.json").write_text('{"data": [{"id": 2}]}')
    away = away.replace("FILE", str(tmp_path / "page.json"))
    reply = {
        "next_url": Reply({"data": people(1), "next": away}),
        "link_header": Reply({"data": people(1)}, headers={"Link": f'<{away}>; rel="next"'}),
        "redirect": Reply("", 302, {"Location": away}),
    }[use]
    server.answer = lambda asked: reply
    paging = {"kind": use} if use != "redirect" else None
    for call in (ids, lambda web, **options: web.count("/customers", **options)):
        with pytest.raises(Misconfigured):
            call(service(server), records="data", paging=paging)


# Secrets stay at home


@pytest.mark.parametrize("login", LOGINS, ids=["bearer", "basic", "api_key"])
@pytest.mark.parametrize("use", ["redirect", "next_url", "link_header", "count", "open"])
def test_another_host_gets_no_credentials(start, server, login, use):
    other = start()
    away = f"http://localhost:{other.server_port}/elsewhere"
    other.replies = [Reply({"data": people(2)})]
    server.replies = {
        "next_url": [Reply({"data": people(1), "next": away})],
        "link_header": [Reply({"data": people(1)}, headers={"Link": f'<{away}>; rel="next"'})],
    }.get(use, [Reply("", 302, {"Location": away})])
    web = service(server, headers={"X-Own": SECRET}, **login)
    if use == "open":
        web.open("feed.xml").close()
    elif use == "count":
        assert web.count("/customers", records="data") == 1
    else:
        paging = {"kind": use} if use != "redirect" else None
        assert ids(web, records="data", paging=paging)[-1] == "2"
    assert SECRET in str(server.asked[0].headers) or "Basic" in str(server.asked[0].headers)
    (there,) = other.asked
    assert not {"authorization", "x-key", "x-own"} & {name.lower() for name in there.headers}


def test_a_redirect_on_the_same_host_keeps_the_credentials(server):
    server.answer = lambda asked: Reply("", 301, {"Location": "/customers/"}) if asked.path == "/customers" else Reply(people(1))
    web = service(server, auth="api_key", api_key=SECRET)
    assert ids(web) == ["1"]
    assert web.count("/customers") == 1
    assert {asked.headers["X-API-Key"] for asked in server.asked} == {SECRET}


def test_another_host_that_refuses_says_that_it_got_no_credentials(start, server):
    other = start()
    other.replies = [Reply("", 401)]
    server.replies = [Reply("", 302, {"Location": other.url})]
    with pytest.raises(Misconfigured, match="not base_url's host and gets no credentials"):
        ids(service(server, auth="bearer", token=SECRET))


# Files over HTTP


FEED = "<c>" + "".join(f"<r><v>{n}</v></r>" for n in range(20_000)) + "</c>"


def test_it_is_a_place_with_files(server):
    assert isinstance(service(server), Files)
    assert service(server).where == server.url


@pytest.mark.parametrize(
    "reply",
    [
        Reply(FEED),
        Reply(FEED, chunked=True),
        Reply(FEED, length=False),
        Reply(gzip.compress(FEED.encode()), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["length", "chunked", "until closed", "compressed on the way"],
)
def test_a_feed_is_read_over_http(server, reply):
    server.replies = [reply]
    runs = list(read_xml(service(server), "dir/feed.xml", row="r", fields={"v": "v"}))
    assert sum(run.batch.num_rows for run in runs) == 20_000
    assert {run.origin for run in runs} == {"dir/feed.xml"}
    assert count_xml(service(server), "dir/feed.xml", row="r") == 20_000


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_a_gzip_file_is_handed_on_as_it_is_stored(server, headers):
    server.replies = [Reply(gzip.compress(FEED.encode()), headers=headers)]
    assert count_xml(service(server), "feed.xml.gz", row="r") == 20_000


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_cut_in_the_middle_is_transient(server, chunked):
    server.replies = [Reply(FEED, cut_after=len(FEED) // 2, chunked=chunked)]
    with pytest.raises(Transient, match="the connection broke before the end of the file") as caught:
        list(read_xml(service(server), "feed.xml", row="r", fields={"v": "v"}))
    assert caught.value.place == "/feed.xml"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("encoding", "how"), PACKED)
def test_a_compressed_file_without_its_end_is_transient(server, encoding, how, chunked):
    """Its lines are whole, so that nothing but the compression tells that there were more."""
    server.replies = [Reply(packed("id\n1\n" * 50_000, how, cut=True), headers={"Content-Encoding": encoding}, chunked=chunked)]
    with service(server).open("a.csv") as stream, pytest.raises(Transient, match="the compressed body has no end") as caught:
        stream.read()
    assert caught.value.place == "/a.csv"


def test_a_body_that_is_not_compressed_as_it_says_is_poison(server):
    server.replies = [Reply(FEED, headers={"Content-Encoding": "gzip"})]
    with pytest.raises(Poison, match="not compressed as its headers say"):
        service(server).open("feed.xml").read()


def test_opening_is_tried_again(server):
    server.replies = [Reply("", 503), Reply("", 503), Reply("text")]
    with service(server).open("a.txt") as stream:
        assert stream.read() == b"text"


def test_what_is_listed_has_size_and_version(server):
    server.replies = [Reply("12345", headers={"ETag": '"v1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})]
    assert service(server).list("a/b.txt") == (Listed("a/b.txt", 5, '"v1"'),)
    assert [asked.method for asked in server.asked] == ["HEAD"]


def test_a_service_without_head_is_listed_all_the_same(server):
    server.answer = lambda asked: Reply("", 405) if asked.method == "HEAD" else Reply("12345")
    assert service(server).list("b.txt") == (Listed("b.txt", 5, ""),)


def test_a_file_that_is_not_there(server):
    server.replies = [Reply("", 404)]
    assert service(server).list("b.txt") == ()
    with pytest.raises(Misconfigured, match=r"no file matches 'b\.txt'"):
        matching(service(server), "b.txt")
    with pytest.raises(Misconfigured, match="nothing at this path"):
        service(server).open("b.txt")


def test_a_wildcard_cannot_be_listed(server):
    with pytest.raises(Misconfigured, match="cannot be searched for names"):
        service(server).list("*.xml")
    assert server.asked == []


def test_a_file_that_changed_since_it_was_listed_is_poison(server):
    server.replies = [Reply("1", headers={"ETag": '"v1"'}), Reply("2", headers={"ETag": '"v2"'})]
    web = service(server)
    (listed,) = web.list("b.txt")
    with pytest.raises(Poison, match="has changed since it was listed"):
        web.open(listed.name, listed.version)


# What dlt must not do


def test_reading_writes_no_file_and_leaves_the_process_as_it_was(server, tmp_path):
    server.replies = [Reply(people(1))]
    program = f"""
import logging, os, sys, threading
before = (sys.excepthook, list(logging.root.handlers), logging.root.level, dict(os.environ))
from resources.http import WebService
from resources.http_answers import Answers
assert not [name for name in sys.modules if name in ("dlt", "requests")], "imported before it is needed"
web = WebService(base_url={server.url!r})
assert len(list(web.records("/customers", fields={FIELDS!r}))) == 1
assert before == (sys.excepthook, list(logging.root.handlers), logging.root.level, dict(os.environ))
assert threading.active_count() == 1, threading.enumerate()
"""
    root = Path(__file__).parents[2]
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_no_foreign_error_escapes(server):
    """Every reply that is wrong in some way ends in one of our errors."""
    wrong = [Reply("", 418), Reply("{"), Reply({}), Reply("", 304), Reply("", 302, {"Location": "http://[bad"}), Reply("", 300)]
    wrong += [Reply("x", headers={"Content-Encoding": "gzip"}), Reply([], headers={"Content-Type": "a; charset=klingon"})]
    for reply in wrong:
        server.replies = [reply]
        for call in (lambda: ids(service(server)), lambda: service(server).count("/customers")):
            try:
                call()
            except BusError:
                continue
            assert reply.bytes() == b"[]" or reply.headers.get("Content-Encoding"), reply
