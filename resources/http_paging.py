"""How one page of a web service leads to the next, and how to notice that it leads nowhere.

``paging`` is a mapping; None is ``{"kind": "none"}``. Paths are dotted, into the body of each page. A page without content (204)
is empty and ends, unless its ``Link`` header leads on.

    none         one request
    link_header  the ``Link`` header with rel="next"
    next_url     path ("next"): where the body holds the next page's address, absolute or not; missing, null or '' ends
    page         param ("page"), first (1): the page number goes into the query; ends at an empty page, or after ``total_pages``
                 (path of the number of pages), or when ``has_more`` (path of a boolean) is false
    offset       limit (required), param ("offset"), limit_param ("limit"), first (0): ends at an empty page, or after ``total``
                 (path of the number of records), or when ``has_more`` is false
    cursor       path ("next_cursor"): where the body holds the cursor, param ("cursor"): where it goes in the query; missing, null,
                 0 or '' ends, or ``has_more`` false; Misconfigured if it is true and there is no cursor
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from resources.errors import Misconfigured, Poison
from resources.http_body import NO_CONTENT

_REQUIRED = object()
_KEYS: dict[str, dict[str, Any]] = {
    "none": {},
    "link_header": {},
    "next_url": {"path": "next"},
    "page": {"param": "page", "first": 1, "total_pages": None, "has_more": None},
    "offset": {"limit": _REQUIRED, "param": "offset", "limit_param": "limit", "first": 0, "total": None, "has_more": None},
    "cursor": {"path": "next_cursor", "param": "cursor", "has_more": None},
}
_NUMBERS = ("first", "limit")
_NAME = re.compile(r"[@$]?[^\W\d][\w.$-]*")
_LINK = re.compile(r'<([^<>]*)>((?:\s*;(?:\s*[^\s=;,"<>]+(?:\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;,"]*))?)?)*)|"(?:[^"\\]|\\.)*"?')
_LINK_PARAM = re.compile(r';\s*([^\s=;,"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))')
"""A link of RFC 8288 and its parameters; a quoted text, which may look like one, is taken as a whole."""
NAMES_TOLD = 20
"""An object with many keys is a map rather than a record, and its keys are data."""


def checked_paging(paging: Mapping[str, object] | None) -> dict[str, Any]:
    """``paging`` with its defaults filled in; Misconfigured that names what is not understood and what would be."""
    said = dict(paging or {"kind": "none"})
    kind = said.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KEYS:
        raise Misconfigured(f"paging kind {kind!r} is not known; known are {', '.join(_KEYS)}")
    keys = _KEYS[kind]
    if unknown := sorted(set(said) - set(keys)):
        raise Misconfigured(f"paging {kind!r} has no key {', '.join(map(repr, unknown))}; it has {', '.join(keys) or 'none'}")
    rules = {"kind": kind, **keys, **said}
    for key in keys:
        value = rules[key]
        if value is _REQUIRED:
            raise Misconfigured(f"paging {kind!r} needs {key!r}, as in {{'kind': {kind!r}, {key!r}: 100}}")
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= (1 if key == "limit" else 0)
        if not (is_number if key in _NUMBERS else _is_path(value, may_miss=keys[key] is None)):
            raise Misconfigured(f"paging {kind!r}: {key}={value!r} must be {'a whole number' if key in _NUMBERS else 'a name or path'}")
    return rules


def _is_path(value: object, *, may_miss: bool) -> bool:
    return may_miss if value is None else isinstance(value, str) and bool(value) and "'" not in value and "\\" not in value


def paginator(rules: Mapping[str, Any]) -> Any:
    """dlt's paginator for checked ``rules``."""
    from dlt.sources.helpers.rest_client import paginators as dlt

    kind = rules["kind"]
    if kind == "none":
        return dlt.SinglePagePaginator()
    if kind == "link_header":
        return _link_header()
    if kind == "next_url":
        return _next_url(rules["path"])
    more = _jsonpath(rules["has_more"])
    if kind == "cursor":
        return _cursor(rules, more)
    first, param = rules["first"], rules["param"]
    if kind == "page":
        return dlt.PageNumberPaginator(first, page_param=param, total_path=_jsonpath(rules["total_pages"]), has_more_path=more)
    total = _jsonpath(rules["total"])
    return dlt.OffsetPaginator(rules["limit"], first, param, rules["limit_param"], total_path=total, has_more_path=more)


def _link_header() -> Any:
    from dlt.sources.helpers.rest_client.paginators import HeaderLinkPaginator

    class LinkHeader(HeaderLinkPaginator):
        """Reads the header as RFC 8288 writes it: requests misses rel="next prefetch", REL="Next" and addresses with a semicolon."""

        def update_state(self, response: Any, data: list[Any] | None = None) -> None:
            self._next_reference = next_link(response.headers.get("Link", ""))

    return LinkHeader()


def next_link(header: str) -> str | None:
    """The first address whose relations, of which there may be several, contain 'next'."""
    for address, params in _LINK.findall(header):
        relations = [quoted or plain for name, quoted, plain in _LINK_PARAM.findall(params) if name.lower() == "rel"]
        if relations and "next" in relations[0].strip("'").lower().split():
            return address
    return None


def _next_url(path: str) -> Any:
    from dlt.sources.helpers.rest_client.paginators import JSONLinkPaginator

    class NextUrl(JSONLinkPaginator):
        """Finds keys that contain a dot ('@odata.nextLink'), and takes '' for the end, which dlt would ask for."""

        def update_state(self, response: Any, data: list[Any] | None = None) -> None:
            self._next_reference = None if response.status_code == NO_CONTENT else find(response.json(), path) or None

    return NextUrl()


def _cursor(rules: Mapping[str, Any], more: str | None) -> Any:
    from dlt.common.utils import str2bool
    from dlt.sources.helpers.rest_client.paginators import JSONResponseCursorPaginator

    class Cursor(JSONResponseCursorPaginator):
        """ValueError where there is more and no cursor that leads there, which dlt takes for the end."""

        def update_state(self, response: Any, data: list[Any] | None = None) -> None:
            if response.status_code == NO_CONTENT:
                self._next_reference = None
                return
            super().update_state(response, data)
            if more and self._next_reference is None and str2bool(find(response.json(), rules["has_more"])):
                raise ValueError(rules["path"])

    return Cursor(_jsonpath(rules["path"]) or "", rules["param"], has_more_path=more)


def _jsonpath(path: str | None) -> str | None:
    return None if path is None else ".".join(f"'{step}'" for step in path.split("."))


def find(body: Any, path: str) -> Any:
    """The value at a dotted path, None if there is none; a key that contains the dot wins."""
    if isinstance(body, dict) and path in body:
        return body[path]
    for key in path.split("."):
        if not isinstance(body, dict) or key not in body:
            return None
        body = body[key]
    return body


def record_list(body: Any, path: str | None, place: str) -> list[Any]:
    """The list of records in a page's body; null is an empty one. Misconfigured that names the keys there are if it is not there."""
    if path is None:
        if isinstance(body, list):
            return body
        lists = ", ".join(_names(key for key, value in body.items() if isinstance(value, list))) if isinstance(body, dict) else ""
        said = f"set records= to the path of the list ({lists or 'no key here holds one'})"
        raise Misconfigured(f"the body is no list but {_described(body)}; {said}", place=place)
    *above, last = [path] if isinstance(body, dict) and path in body else path.split(".")
    holder = find(body, ".".join(above)) if above else body
    if not isinstance(holder, dict) or last not in holder:
        there = _described(body) if not isinstance(holder, dict) or holder is body else f"{'.'.join(above)!r} is {_described(holder)}"
        raise Misconfigured(f"records={path!r} is not in the body: {there}; set records= to the path of the list", place=place)
    if holder[last] is None:
        return []
    if not isinstance(holder[last], list):
        raise Misconfigured(f"records={path!r} is no list but {_described(holder[last])}", place=place)
    return holder[last]


def _described(value: Any) -> str:
    if isinstance(value, dict):
        if not (names := _names(value)):
            return f"an object with {len(value)} keys" if value else "an empty object"
        others = f" and {len(value) - len(names)} more" if len(names) < len(value) else ""
        return f"an object with the keys {', '.join(map(repr, names))}{others}"
    return "a list" if isinstance(value, list) else "null" if value is None else "a single value"


def _names(keys: Iterable[str]) -> list[str]:
    """Those of ``keys`` that look like names of fields, if they are few: 'anna@example.org' is data."""
    names = [key for key in keys if _NAME.fullmatch(key)]
    return names if len(names) <= NAMES_TOLD else []


class PageWatch:
    """Sees every page before it is handed on; Poison if paging goes round in circles, Misconfigured if it would skip records."""

    def __init__(self, rules: Mapping[str, Any], max_pages: int):
        self._rules = rules
        self._max_pages = max_pages
        self._addresses: set[str] = set()
        self._last: list[Any] = []
        self._records = 0

    def check(self, number: int, address: str, items: list[Any], body: Any, *, more: bool, place: str) -> None:
        """``body`` is a function that gives the page's body, asked only where a total must be compared."""
        kind = self._rules["kind"]
        if address in self._addresses:
            raise Poison("paging never ends: this page has the address of an earlier one; check paging, or tell the service", place=place)
        if items and items == self._last:
            said = f"pages {number - 1} and {number} hold the same records: the service does not follow paging {kind!r}"
            raise Poison(f"paging never ends: {said}; check its parameters' names", place=place)
        if more and number >= self._max_pages:
            raise Poison(f"paging never ends: {number} pages and there are more; raise max_pages if that many are right", place=place)
        if kind == "offset":
            self._check_nothing_skipped(items, body, more=more, place=place)
        self._addresses.add(address)
        self._last = items
        self._records += len(items)

    def _check_nothing_skipped(self, items: list[Any], body: Any, *, more: bool, place: str) -> None:
        """The next offset is this one plus the limit, also where the service gives fewer records than asked."""
        limit = self._rules["limit"]
        if items and self._last and len(self._last) < limit:
            said = f"the page before gave {len(self._last)} records of the {limit} asked for, and yet there are more"
            raise Misconfigured(f"{said}: records between would be skipped; set limit to what the service gives at most", place=place)
        if items and not more and self._rules["total"]:
            total, seen = find(body(), self._rules["total"]), self._rules["first"] + self._records + len(items)
            if int(total) > seen:
                said = f"the service announces {total} records and paging ends at {seen}"
                raise Misconfigured(f"{said}; set limit to what the service gives at most in a page", place=place)
