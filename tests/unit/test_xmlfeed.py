"""XML feeds: what is read, where it came from, and what is refused, from real files."""

import gzip
import http.server
import json
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] - it has no stubs

from resources.errors import Misconfigured, Poison
from resources.files import LocalFiles
from resources.records import Records
from resources.xmlfeed import count_xml, read_xml

NS = {"n": "http://example.org/x", "o": "urn:other"}


@pytest.fixture
def feed(tmp_path: Path):
    def write(text: str | bytes, name: str = "feed.xml") -> LocalFiles:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return LocalFiles(root=str(tmp_path))

    return write


def read(files: LocalFiles, row: str = "product", *, pattern: str = "feed.xml", **options) -> list[Records]:
    options.setdefault("fields", {"name": "name"})
    return list(read_xml(files, pattern, row=row, **options))


def table(runs: list[Records]) -> list[dict]:
    return pa.Table.from_batches([run.batch for run in runs]).to_pylist()


def column(files: LocalFiles, path: str, row: str = "product", **options) -> list:
    return [values["it"] for values in table(read(files, row, fields={"it": path}, **options))]


CATALOG = """<?xml version="1.0"?>
<catalog><meta><name>not a product</name></meta><products>
  <product id="1" note="">
    <name> Tin <!-- really --> whistle </name><price currency="EUR"><amount>12.50</amount></price><empty/><blank>  </blank>
    <tags><tag>a</tag><tag/><tag>"b"</tag></tags>
  </product>
  <product id="2"><name>Drum</name><price><amount>007</amount></price><tags/></product>
</products></catalog>"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("name", ["Tin  whistle", "Drum"]),
        ("price/amount", ["12.50", "007"]),
        ("@id", ["1", "2"]),
        ("@note", ["", None]),
        ("price/@currency", ["EUR", None]),
        ("empty", [None, None]),
        ("blank", [None, None]),
        ("absent/deeper", [None, None]),
        ("tags/tag[]", ['["a",null,"\\"b\\""]', None]),
        ("price[]/@currency", ['["EUR"]', "[null]"]),
        ("price[]/amount", ['["12.50"]', '["007"]']),
        ("absent[]/@x", [None, None]),
        (".", [None, None]),
    ],
)
def test_a_path_finds_its_text(feed, path, found):
    assert column(feed(CATALOG), path) == found


def test_lists_of_the_same_element_belong_together_whatever_is_missing_in_it(feed):
    variants = (
        '<variant sku="A"><price>1</price><tag>x</tag></variant><variant sku="B" size="M"/>'
        '<variant sku="C" size=""><price/></variant><variant size="L"><price>4</price></variant>'
    )
    fields = {name: f"variant[]/{path}" for name, path in {"sku": "@sku", "size": "@size", "price": "price"}.items()} | {"id": "@id"}
    (run,) = read(feed(f'<f><p id="1">{variants}</p><p id="2"/></f>'), row="p", fields=fields)
    first, second = run.batch.to_pylist()
    lists = {name: json.loads(text) for name, text in first.items() if name != "id"}
    assert lists == {"sku": ["A", "B", "C", None], "size": [None, "M", None, "L"], "price": ["1", None, None, "4"]}
    assert second == {"sku": None, "size": None, "price": None, "id": "2"}


def test_a_list_of_lists_is_not_read(feed):
    (run,) = read(feed("<f><p><v><t>1</t><t>2</t></v></p></f>"), row="p", fields={"t": "v[]/t"})
    assert [bad.reason for bad in run.unreadable] == [
        "'v[]/t' is there more than once in an element before '[]'; a list of lists is not read"
    ]


def test_the_prefix_xml_is_known(feed):
    (run,) = read(feed('<f><p xml:lang="de"/></f>'), row="p", fields={"lang": "@xml:lang"})
    assert run.batch.to_pylist() == [{"lang": "de"}]


def test_all_columns_are_strings_named_as_asked_in_order(feed):
    (run,) = read(feed(CATALOG), fields={"z": "@id", "a": "name", "again": "name", "all": "tags/tag[]"})
    assert run.batch.schema == pa.schema([(name, pa.string()) for name in ("z", "a", "again", "all")])
    assert run.batch.column("a").equals(run.batch.column("again"))


def test_own_text_is_read_around_children_and_comments(feed):
    assert column(feed("<a><r>x<b>no</b>y<!-- no -->z</r><r/></a>"), ".", "r") == ["xyz", None]


def test_an_element_and_what_is_in_it_can_both_be_asked_for(feed):
    files = feed('<a><p id="1">five<q id="2">six</q></p></a>')
    (values,) = table(read(files, "p", fields={"p": ".", "q": "q", "id": "q/@id", "row": "@id"}))
    assert values == {"p": "five", "q": "six", "id": "2", "row": "1"}


def test_positions_count_row_elements_across_batches(feed):
    files = feed("<a>" + "".join(f"<r><v>{n}</v></r><other/>" for n in range(7)) + "</a>")
    runs = read(files, "r", fields={"v": "v"}, batch_rows=3)
    assert [run.positions.to_pylist() for run in runs] == [[1, 2, 3], [4, 5, 6], [7]]
    assert [values["v"] for values in table(runs)] == [str(n) for n in range(7)]
    assert {(run.origin, run.unit) for run in runs} == {("feed.xml", "element")}


def test_files_of_a_pattern_come_in_name_order_each_with_its_own_positions(feed):
    feed("<a><r>2</r></a>", "b.xml")
    files = feed("<a><r>1</r></a>", "a.xml")
    runs = read(files, "r", pattern="*.xml", fields={"v": "."})
    assert [(run.origin, run.positions.to_pylist(), run.batch.column(0).to_pylist()) for run in runs] == [
        ("a.xml", [1], ["1"]),
        ("b.xml", [1], ["2"]),
    ]


def test_no_matching_file_is_misconfigured(feed):
    with pytest.raises(Misconfigured, match=r"no file matches 'other\*'"):
        read(feed("<a/>"), pattern="other*")


# Which elements are rows


def test_a_path_takes_only_the_elements_at_that_place(feed):
    files = feed("<c><p>1</p><x><p>2</p></x><y><x><p>3</p></x></y></c>")
    assert column(files, ".", "c/x/p") == ["2"]
    assert column(files, ".", "c/p") == ["1"]
    assert column(files, ".", "p") == ["1", "2", "3"]
    assert [count_xml(files, "feed.xml", row=row) for row in ("c/x/p", "c/p", "p")] == [1, 1, 3]


def test_a_row_inside_a_row_is_part_of_the_outer_one(feed):
    files = feed("<c><p><v>1</v><parts><p><v>inner</v></p></parts></p><p><v>2</v></p></c>")
    assert table(read(files, "p", fields={"v": "v", "inner": "parts/p/v"})) == [{"v": "1", "inner": "inner"}, {"v": "2", "inner": None}]
    assert count_xml(files, "feed.xml", row="p") == 2


def test_the_root_itself_can_be_the_row(feed):
    files = feed("<p><name>only</name></p>")
    assert column(files, "name", "p") == ["only"]
    assert count_xml(files, "feed.xml", row="p") == 1


NAMESPACED = '<x:c xmlns:x="http://example.org/x" xmlns:y="urn:other"><x:p y:id="1" id="2"><x:v>a</x:v><y:v>b</y:v></x:p></x:c>'


def test_prefixes_are_those_of_the_declaration_not_of_the_feed(feed):
    files = feed(NAMESPACED)
    fields = {"a": "n:v", "b": "o:v", "none": "v", "oid": "@o:id", "id": "@id"}
    assert table(read(files, "n:c/n:p", fields=fields, namespaces=NS)) == [{"a": "a", "b": "b", "none": None, "oid": "1", "id": "2"}]
    assert count_xml(files, "feed.xml", row="n:p", namespaces=NS) == 1


def test_a_default_namespace_is_declared_with_an_empty_prefix(feed):
    files = feed('<c xmlns="urn:d"><p id="1"><v>a</v></p></c>')
    assert table(read(files, "p", fields={"v": "v", "id": "@id"}, namespaces={"": "urn:d"})) == [{"v": "a", "id": "1"}]


@pytest.mark.parametrize(
    ("feed_text", "row", "says"),
    [
        (NAMESPACED, "p", r"has \{http://example.org/x\}p 1 times: declare namespaces=\{'n': 'http://example.org/x'\} and row='n:p'"),
        ("<c><p/><p/></c>", "n:p", r"the feed has p 2 times: declare row='p'"),
        ("<c><item>1</item><item>2</item><date>3</date></c>", "p", r"no element is 'p': the feed has item 2 times: declare row='item'"),
        ("<c><x><p>1</p></x></c>", "c/p", "declare row='c/x/p'"),
    ],
)
def test_a_feed_of_other_elements_says_which_and_what_to_declare(feed, feed_text, row, says):
    with pytest.raises(Misconfigured, match=says) as caught:
        read(feed(feed_text), row, namespaces=NS)
    assert caught.value.place == "feed.xml"


@pytest.mark.parametrize(
    ("feed_text", "row"),
    [
        ("<c/>", "p"),
        ("<c v='1'>\n</c>", "p"),
        ("<c><ps/></c>", "p"),
        ("<c><made>2024</made><ps></ps></c>", "c/ps/p"),
        ("<p/>", "n:q"),
    ],
)
def test_a_feed_that_is_truly_empty_gives_one_empty_batch(feed, feed_text, row):
    (run,) = read(feed(feed_text), row, namespaces=NS)
    assert (run.batch.num_rows, run.batch.schema.names, len(run.positions)) == (0, ["name"], 0)


@pytest.mark.parametrize(
    ("row", "path", "says"),
    [
        ("z:p", "v", "prefix 'z' in 'z:p' is not declared"),
        ("p", "z:v", "prefix 'z' in 'z:v' is not declared"),
        ("p", "a//b", "'' is not the name"),
        ("p", "a[1]/b", r"\[\] stands once, behind the element that is repeated"),
        ("p", "a[]/b[]", r"\[\] stands once, behind the element that is repeated"),
        ("p", "../@id", "'..' is not the name"),
        ("..", "v", "'..' is not the name"),
        ("p", "", "'' is not the name"),
        ("p", "a/@", "'' is not the name"),
        ("p", "@a/b", "'@a' is not the name"),
        ("", "v", "'' is not the name"),
    ],
)
def test_a_path_that_does_not_read_is_misconfigured_at_once(feed, row, path, says):
    with pytest.raises(Misconfigured, match=says):
        read_xml(feed("<c/>"), "feed.xml", row=row, fields={"it": path})


# Rows that cannot be taken apart


@pytest.mark.parametrize(
    ("row", "path", "reason"),
    [
        ("<p><v>1</v><v>2</v></p>", "v", "'v' is there more than once; write 'v[]'"),
        ("<p><v/><v>2</v></p>", "v", "'v' is there more than once"),
        ("<p><x><v>1</v></x><x><v>2</v></x></p>", "x/v", "write 'x/v[]'"),
        ('<p><v c="1"/><v c="2"/></p>', "v/@c", r"write 'v\[\]/@c'"),
        ("<p><v>one <b>bold</b> word</v></p>", "v", r"element 'v' holds elements \(b\)"),
    ],
)
def test_a_row_that_would_lose_text_is_unreadable_and_its_neighbours_are_kept(feed, row, path, reason):
    (run,) = read(feed(f"<c><p/>{row}<p/></c>"), "p", fields={"it": path})
    assert run.positions.to_pylist() == [1, 3]
    (bad,) = run.unreadable
    assert (bad.position, bad.raw) == (2, row)
    with pytest.raises(AssertionError, match=reason.replace("v[]", r"v\[\]")):
        raise AssertionError(bad.reason)


# Encodings and compression


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252", "shift_jis", "gb18030", "utf-8-sig"])
def test_the_declared_encoding_is_followed(feed, encoding):
    text = {"shift_jis": "テスト", "gb18030": "测试"}.get(encoding, "Ærø")
    named = encoding.removesuffix("-sig")
    files = feed(f'<?xml version="1.0" encoding="{named}"?><c><p>{text}</p></c>'.encode(encoding))
    assert column(files, ".", "p") == [text]
    assert count_xml(files, "feed.xml", row="p") == 1


def test_gzip_is_known_by_its_name(feed):
    files = feed(gzip.compress(CATALOG.encode()), "feed.xml.gz")
    assert column(files, "@id", pattern="feed.xml.gz") == ["1", "2"]
    assert count_xml(files, "feed.xml.gz", row="product") == 2


@pytest.mark.parametrize(
    "broken",
    [gzip.compress(CATALOG.encode() * 9)[:-20], b"not gzip", gzip.compress(b"<c/>")[:-8] + b"\0" * 8],
    ids=["cut", "not gzip", "wrong checksum"],  # gzip writes the time: without names, two workers would collect different tests
)
def test_broken_gzip_is_poison(feed, broken):
    with pytest.raises(Poison, match="gzip"):
        read(feed(broken, "feed.xml.gz"), pattern="feed.xml.gz")


# Broken and hostile feeds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<c>\n<p>1</p>\n<p>2</p>\n<p>3", r"feed.xml, line 4: .*2 'p' elements before it are complete"),
        ("<c>\n<p>1</p>\n<p>2</q>", r"line 3: .*1 'p' elements"),
        ("<c><p>1</p></c><d/>", "1 'p' elements"),
        ("<c><p>\x01</p></c>", "cut or broken"),
        ("", "no element found"),
        ("   ", "no element found"),
        ("{}", "line 1: the XML is cut or broken"),
        (b"\0\0\0", "cut or broken"),
        (b'<?xml version="1.0" encoding="utf-8"?><c><p>\xff</p></c>', "cut or broken"),
        (b'<?xml version="1.0" encoding="klingon"?><c/>', "encoding that is not known"),
        ("<c><p>&nbsp;</p></c>", "nbsp"),
        ("<c>" + "<p>" * 400 + "</p>" * 400 + "</c>", "depth"),
    ],
)
def test_broken_xml_is_poison_with_its_line(feed, text, says):
    with pytest.raises(Poison, match=says):
        read(feed(text), "p", fields={"it": "."})


def test_a_cut_feed_is_poison_also_for_the_recount(feed):
    with pytest.raises(Poison, match=r"feed\.xml, line 1: the XML is cut or broken"):
        count_xml(feed("<c><p>1</p>"), "feed.xml", row="p")


def test_text_beyond_the_limit_is_poison(feed):
    with pytest.raises(Poison, match="cut or broken"):
        read(feed("<c><p>" + "x" * 11_000_000 + "</p></c>"), "p")


def bomb(where: str) -> str:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    use = {"text": "<c><p>&e11;</p></c>", "attribute": '<c a="&e11;"><p/></c>', "unused": "<c><p/></c>"}[where]
    return f'<!DOCTYPE c [<!ENTITY e0 "ha">{levels}]>{use}'


@pytest.mark.parametrize("where", ["text", "attribute", "unused"])
@pytest.mark.parametrize("reader", ["read", "count"])
def test_an_entity_bomb_is_refused_by_name_before_it_expands(feed, where, reader):
    files, started = feed(bomb(where)), time.perf_counter()
    with pytest.raises(Poison, match="line 1: the feed declares the entity 'e0'"):
        read(files, "p") if reader == "read" else count_xml(files, "feed.xml", row="p")
    assert time.perf_counter() - started < 30  # expanded it is a hundred gigabytes


@pytest.mark.parametrize("encoding", ["utf-16", "shift_jis"])
def test_another_encoding_hides_no_entity(feed, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE c [<!ENTITY x "y">]><c><p>&x;</p></c>'
    with pytest.raises(Poison, match="declares the entity 'x'"):
        read(feed(text.encode(encoding)), "p")


@pytest.fixture
def trap():
    """A server that remembers whether anybody came."""
    visits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            visits.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", visits
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ('<!DOCTYPE c [<!ENTITY xxe SYSTEM "{url}/a">]><c><p>&xxe;</p></c>', "external entity 'xxe'"),
        ('<!DOCTYPE c [<!ENTITY xxe SYSTEM "file:///etc/hostname">]><c><p>&xxe;</p></c>', "external entity 'xxe'"),
        ('<!DOCTYPE c [<!ENTITY % more SYSTEM "{url}/b">%more;]><c><p/></c>', "external entity 'more'"),
        ('<!DOCTYPE c SYSTEM "{url}/c.dtd"><c><p>a&nbsp;b</p></c>', "nbsp"),
        ('<!DOCTYPE c SYSTEM "{url}/c.dtd"><c><p a="&nbsp;"/></c>', "nbsp"),
    ],
)
def test_nothing_external_is_fetched_and_no_entity_is_lost_silently(feed, trap, document, says):
    url, visits = trap
    with pytest.raises(Poison, match=says):
        read(feed(document.replace("{url}", url)), "p", fields={"it": "."})
    assert visits == []


def test_a_doctype_alone_is_harmless(feed, trap):
    url, visits = trap
    assert column(feed(f'<!DOCTYPE c SYSTEM "{url}/c.dtd"><c><p>a &amp; b</p></c>'), ".", "p") == ["a & b"]
    assert visits == []


# Memory, and agreement with a plain parser


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("element", ["r", "ignored"])
def test_memory_does_not_grow_with_the_feed(tmp_path, element):
    with (tmp_path / "feed.xml").open("w") as out:
        out.write("<c><r><v>first</v></r><list>")
        for n in range(400):
            out.write(f"<{element}><v>{n}</v><w>{'x' * 100}</w></{element}>" * 1000 if n else "")
        out.write("</list></c>")
    files, highest = LocalFiles(root=str(tmp_path)), 0
    runs = read_xml(files, "feed.xml", row="r", fields={"v": "v"})
    before = resident_bytes()
    for _ in runs:
        highest = max(highest, resident_bytes())
    highest = max(highest, resident_bytes())
    assert (tmp_path / "feed.xml").stat().st_size > 45_000_000
    assert highest - before < 30_000_000


names = st.sampled_from(["r", "v", "w"])
texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=8)


def trees():
    leaf = st.builds(lambda name, text: (name, text, []), names, texts)
    return st.recursive(leaf, lambda inner: st.builds(lambda n, t, c: (n, t, c), names, texts, st.lists(inner, max_size=3)), max_leaves=12)


def grown(tree) -> etree._Element:
    name, text, children = tree
    element = etree.Element(name)
    element.text = text
    element.extend([grown(child) for child in children])
    return element


@settings(max_examples=150, deadline=None)
@given(trees())
def test_rows_are_the_outermost_ones_and_lxml_and_expat_agree(tmp_path_factory, tree):
    folder = tmp_path_factory.getbasetemp()
    root = etree.Element("root")
    root.append(grown(tree))
    (folder / "any.xml").write_bytes(etree.tostring(root, encoding="utf-8", xml_declaration=True))
    files = LocalFiles(root=str(folder))
    outermost = root.xpath("//r[not(ancestor::r)]")
    if not outermost:
        assert count_xml(files, "any.xml", row="r") == 0
        return
    runs = read(files, "r", pattern="any.xml", fields={"text": ".", "all": "v[]"})
    assert sum(run.batch.num_rows + len(run.unreadable) for run in runs) == len(outermost) == count_xml(files, "any.xml", row="r")
    good = [position - 1 for run in runs for position in run.positions.to_pylist()]
    assert [values["text"] for values in table(runs)] == ["".join(outermost[at].xpath("text()")).strip(" \t\r\n") or None for at in good]
