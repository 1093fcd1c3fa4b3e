"""XML feeds as streams of records: rows are elements, columns are text found by short paths, memory is bounded by a chunk.

Paths in a row: ``name``, ``price/amount``, ``@id``, ``price/@currency``, ``.`` (the row's own text), ``tags/tag[]`` (all of them,
as a JSON list of texts), with prefixes from ``namespaces``. A list has an item for each element before ``[]``: of ``variant[]/@size``
and ``variant[]/price`` for each variant, null where it has no size or price, so that lists of the same element belong together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] - it has no stubs

from resources import xmlscan
from resources.errors import Misconfigured, Poison
from resources.files_seam import Files, Listed, matching
from resources.records import Records, Unreadable, place_of
from resources.xmlpaths import Plan, RowPath, Step, plan_of
from resources.xmlscan import CHUNK_BYTES, Prolog, chunks, survey

BATCH_ROWS = 16_384
PACK_ROWS = 1024
"""Python values become Arrow after so many rows: while they fit the processor's cache this is a quarter faster than per batch."""
MAX_PROLOG_CHUNKS = (1 << 20) // CHUNK_BYTES
_BLANK = " \t\r\n"
_UNDECLARED = ("WAR_UNDECLARED_ENTITY", "ERR_UNDECLARED_ENTITY")
_NO_NAMESPACES: Mapping[str, str] = MappingProxyType({})


def read_xml(
    files: Files,
    pattern: str,
    *,
    row: str,
    fields: Mapping[str, str],
    namespaces: Mapping[str, str] = _NO_NAMESPACES,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Records]:
    """The ``row`` elements of every file that matches, in the files' name order; a name that ends in ``.gz`` is gunzipped.

    ``row`` is a name ('product', 'n:product': wherever it stands, the outermost one) or a path from the root element
    ('catalog/products/product'). ``fields``: output name → path in the row, see above. Every column is a string: an element's text
    without the white space around it, an attribute's as it stands; empty or missing elements are null. ``positions`` count the row
    elements of a file from 1. A row that has an element twice that is not asked for as ``[]``, or elements inside one whose text is
    asked for, is Unreadable.

    Poison: cut or broken XML, declared entities (neither expanded nor fetched), an entity that is not declared, text or attributes
    beyond libxml2's limits (10 MB). Misconfigured: paths that do not read, no file, and a feed that has other elements than ``row``.
    """
    wanted = RowPath.parse(row, namespaces)
    plan = plan_of(fields, namespaces)
    return (records for listed in matching(files, pattern) for records in _read_feed(files, listed, wanted, plan, batch_rows))


def count_xml(files: Files, pattern: str, *, row: str, namespaces: Mapping[str, str] = _NO_NAMESPACES) -> int:
    """How many rows ``read_xml`` should have found, counted by expat instead of lxml."""
    wanted = RowPath.parse(row, namespaces)
    return sum(xmlscan.count_xml(files, listed, wanted) for listed in matching(files, pattern))


class _Unusable(Exception):
    """This row cannot be taken apart; the text says why."""


def _read_feed(files: Files, listed: Listed, wanted: RowPath, plan: Plan, batch_rows: int) -> Iterator[Records]:
    rows = _Rows(plan, listed.name)
    for element in _row_elements(files, listed, wanted):
        rows.take(element)
        if rows.seen - rows.given >= batch_rows:
            yield rows.records()
    if not rows.seen:
        found = survey(files, listed)
        if not found.may_be_empty(wanted):
            raise Misconfigured(found.explain(wanted), place=listed.name)
    if rows.seen > rows.given or not rows.seen:
        yield rows.records()


def _row_elements(files: Files, listed: Listed, wanted: RowPath) -> Iterator[Any]:
    """Each row element as it ends. It is valid until the next one is asked for."""
    feed = _Feed(listed.name, wanted)
    for chunk in chunks(files, listed):
        yield from feed.rows_in(chunk)
    yield from feed.rows_at_the_end()


class _Feed:
    """lxml's pull parser over one file, which forgets what it has handed out after each chunk."""

    def __init__(self, name: str, wanted: RowPath):
        self._name = name
        self._wanted = wanted
        self._prolog = Prolog(name)
        self._parser: Any = None
        self._held: list[bytes] = []
        self._root: Any = None
        self._parent: Any = None
        self._row: Any = None
        self._complete = 0

    def rows_in(self, chunk: bytes) -> Iterator[Any]:
        if self._parser is None:
            self._held.append(chunk)
            self._prolog.feed(chunk)
            if self._prolog.root is None:
                if len(self._held) > MAX_PROLOG_CHUNKS:
                    raise Poison("no root element in the first megabyte; this is not an XML feed", place=self._name)
                return
            chunk = b"".join(self._held)
            self._held.clear()
            self._parser = self._new_parser(self._prolog.root)
        try:
            self._parser.feed(chunk)
        except etree.XMLSyntaxError as error:
            raise self._broken(error) from error
        self._refuse_undeclared_entities()
        yield from self._ended_rows()
        self._forget()

    def rows_at_the_end(self) -> Iterator[Any]:
        if self._parser is None:
            self._prolog.feed(b"", last=True)
            return
        try:
            self._parser.close()
        except etree.XMLSyntaxError as error:
            raise self._broken(error) from error
        yield from self._ended_rows()

    def _new_parser(self, root: str) -> Any:
        # 'start' for the root is how the tree is reached before a row is seen: a feed without rows must be forgotten, too.
        return etree.XMLPullParser(
            events=("start", "end"),
            tag=(self._wanted.tag, root),
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
        )

    def _ended_rows(self) -> Iterator[Any]:
        for event, element in self._parser.read_events():
            if event == "start":
                if self._root is None:
                    self._root = element
                if self._row is None and self._is_row(element):
                    self._row = element
            elif element is self._row:
                self._row = None
                self._complete += 1
                yield element

    def _is_row(self, element: Any) -> bool:
        if element.tag != self._wanted.tag:
            return False
        if self._wanted.parents is None:
            return True
        parent = element.getparent()
        if parent is None:
            return self._wanted.parents == ()
        if parent is not self._parent:
            if tuple(above.tag for above in element.iterancestors())[::-1] != self._wanted.parents:
                return False
            self._parent = parent
        return True

    def _forget(self) -> None:
        """Drop every element that has ended, but none of the row that is still open: only last children can be open."""
        node = self._root
        while node is not None and node is not self._row and len(node):
            del node[:-1]
            node = node[-1]

    def _refuse_undeclared_entities(self) -> None:
        """lxml would leave them out of the text without a word."""
        for entry in self._parser.feed_error_log.filter_from_warnings():
            if entry.type_name in _UNDECLARED:
                said = (
                    f"{entry.message}, and external definitions are never fetched; have the feed sent with characters instead of entities"
                )
                raise Poison(said, place=place_of(self._name, "line", entry.line))

    def _broken(self, error: etree.XMLSyntaxError) -> Poison:
        for _ in self._ended_rows():
            pass  # only to count them
        said = (
            f"the XML is cut or broken: {(error.msg or '').strip()}; {self._complete} {self._wanted.text!r} elements before it are complete"
        )
        return Poison(f"{said}; have the feed sent again", place=place_of(self._name, "line", error.lineno or 1))


class _Rows:
    """Rows on their way into a batch. ``seen`` is how many row elements there were, ``given`` how many were handed on."""

    def __init__(self, plan: Plan, name: str):
        self.seen = 0
        self.given = 0
        self._plan = plan
        self._name = name
        self._values: list[list[Any]] = []
        self._packed: list[list[pa.StringArray]] = []
        self._positions: list[int] = []
        self._unreadable: list[Unreadable] = []
        self._blank = [None] * len(plan.names)

    def take(self, element: Any) -> None:
        self.seen += 1
        values: list[Any] = self._blank.copy()
        try:
            self._read(element, self._plan.row, values, is_row=True)
        except _Unusable as reason:
            raw = etree.tostring(element, encoding="unicode", with_tail=False)
            self._unreadable.append(Unreadable(self.seen, raw, str(reason)))
            return
        self._values.append(values)
        self._positions.append(self.seen)
        if len(self._values) == PACK_ROWS:
            self._pack()

    def records(self) -> Records:
        self._pack()
        arrays = [pa.concat_arrays(parts) for parts in zip(*self._packed, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, names=list(self._plan.names))
        records = Records(batch, self._name, pa.array(self._positions, pa.int64()), "element", tuple(self._unreadable))
        self.given = self.seen
        self._packed, self._positions, self._unreadable = [], [], []
        return records

    def _pack(self) -> None:
        if self._values or not self._packed:
            columns = list(zip(*self._values, strict=True)) or [()] * len(self._plan.names)
            self._packed.append([self._column(slot, column) for slot, column in enumerate(columns)])
            self._values = []

    def _column(self, slot: int, column: tuple[Any, ...]) -> pa.StringArray:
        if self._plan.many[slot]:
            texts = [None if found is None else json.dumps(found, ensure_ascii=False, separators=(",", ":")) for found in column]
        elif "@" in self._plan.paths[slot]:
            texts = column
        else:
            texts = [text or None for text in column]
        return pa.array(texts, pa.string())

    def _read(self, element: Any, step: Step, values: list[Any], *, is_row: bool = False) -> None:
        """Fill ``values``; an element that is there but empty is '' until the batch is made, so that a second one is noticed."""
        if step.texts:
            text = element.text
            if len(element):
                text = _own_text(element, may_hold_elements=is_row)
            text = text.strip(_BLANK) if text else ""
            for slot in step.texts:
                self._put(values, slot, text)
        for name, slot in step.attributes:
            if (text := element.get(name)) is not None:
                self._put(values, slot, text)
        find = step.inner.get
        for child in element if step.inner else ():
            if (below := find(child.tag)) is None:
                continue
            if below.items:
                self._read_item(child, below, values)
                continue
            slot = below.lone_text
            if slot is None or values[slot] is not None or len(child):
                self._read(child, below, values)
            else:  # what nearly every element is, without a call: this doubles the speed
                text = child.text
                values[slot] = text.strip(_BLANK) if text else ""

    def _read_item(self, element: Any, step: Step, values: list[Any]) -> None:
        """As ``_read``, but that what is found for ``step.items`` is put behind what the elements before this one gave."""
        before = [values[slot] for slot in step.items]
        for slot in step.items:
            values[slot] = None
        self._read(element, step, values)
        for slot, items in zip(step.items, before, strict=True):
            found, values[slot] = values[slot], items or []
            values[slot].append(found or None)

    def _put(self, values: list[Any], slot: int, text: str) -> None:
        if values[slot] is None:
            values[slot] = text
            return
        path = self._plan.paths[slot]
        if self._plan.many[slot]:
            raise _Unusable(f"{path!r} is there more than once in an element before '[]'; a list of lists is not read")
        listed = path.replace("/@", "[]/@") if "/@" in path else f"{path}[]"
        raise _Unusable(f"{path!r} is there more than once; write {listed!r} to take all of them as a list")


def _own_text(element: Any, *, may_hold_elements: bool) -> str:
    """Text directly in ``element``, around comments and, if they may be there, elements."""
    inside = [child.tag for child in element if isinstance(child.tag, str)]
    if inside and not may_hold_elements:
        tag = etree.QName(element).localname
        raise _Unusable(f"element {tag!r} holds elements ({', '.join(dict.fromkeys(inside))}), not text alone; name a path into it")
    return (element.text or "") + "".join(child.tail or "" for child in element)
