"""JSON lines: values keep the text they had, each record its line, and a bad line stops nobody."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources import jsonlines
from resources.errors import Misconfigured, Poison
from resources.files import LocalFiles
from resources.jsonlines import count_json_lines, loads_exact, read_json_lines, text_columns
from resources.records import Records, total


def read(folder: Path, content: bytes, fields: dict[str, str], name: str = "f.jsonl", **options) -> list[Records]:
    (folder / name).write_bytes(content)
    files = LocalFiles(root=str(folder))
    runs = list(read_json_lines(files, name, fields=fields, **options))
    assert total(runs) == count_json_lines(files, name, **options)
    return runs


def column(text: str, path: str = "v") -> list[str | None]:
    return text_columns([loads_exact(text)], {"v": path})[0].column(0).to_pylist()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("12.50", "12.50"),
        ("1E+2", "1E+2"),
        ("-0", "-0"),
        ("1" * 5000, "1" * 5000),
        ("0.1000000000000000055", "0.1000000000000000055"),
        ("true", "true"),
        ("false", "false"),
        ('"12.50"', "12.50"),
        ('""', ""),
        ('"\\u00e4\\ud83d\\ude8c\\u0000"', "ä\U0001f68c\0"),
        ("null", None),
        ('[1.10, "1.10", null, {"a b": true}]', '[1.10,"1.10",null,{"a b":true}]'),
        ("{}", "{}"),
    ],
)
def test_values_keep_the_text_they_had(value: str, text: str | None) -> None:
    assert column('{"v": %s}' % value) == [text]  # noqa: UP031


def test_lists_and_objects_are_told_from_text_that_looks_like_them() -> None:
    objects = [loads_exact('{"v": %s}' % value) for value in ('"[]"', "[]", "null", "{}", "1", '"{}"')]  # noqa: UP031
    batch, nested, _ = text_columns(objects, {"v": "v", "w": "w"})
    assert batch.column(0).to_pylist() == ["[]", "[]", None, "{}", "1", "{}"]
    assert nested == {"v": {1: "a list", 3: "an object"}}


def test_paths_go_into_objects_and_a_literal_key_with_the_dot_wins() -> None:
    item = '{"a": {"b": {"c": 1}, "l": [1]}, "a.b": 2, "x": "text"}'
    assert [column(item, path) for path in ("a.b", "a.b.c", "a.l.0", "x.y", "none.at.all")] == [["2"], ["1"], [None], [None], [None]]


@pytest.mark.parametrize(
    ("item", "path", "parent"),
    [
        ('{"who": 5}', "who.name", "'who' is a number"),
        ('{"who": "text"}', "who.name", "'who' is a string"),
        ('{"who": [{"name": "x"}]}', "who.name", "'who' is a list"),
        ('{"who": false}', "who.name", "'who' is true or false"),
        ('{"a": {"who": 5}}', "a.who.of.name", "'a.who' is a number"),
    ],
)
def test_a_parent_that_is_there_and_no_object_is_no_null(item: str, path: str, parent: str) -> None:
    objects = [loads_exact(text) for text in ('{"who": {"name": "x"}, "a": {"who": {"of": {"name": "x"}}}}', "{}", item)]
    batch, _, astray = text_columns(objects, {"v": path, "w": "w"})
    assert batch.column(0).to_pylist() == ["x", None, None]
    assert astray == {"v": {2: f"cannot be read at '{path}': {parent}, not an object"}}


def test_a_parent_that_is_null_or_not_there_is_null() -> None:
    objects = [loads_exact(text) for text in ("{}", '{"a": null}', '{"a": {}}', '{"a": {"b": null}}', '{"a": 1, "a.b.c": 2}')]
    batch, _, astray = text_columns(objects, {"v": "a.b.c"})
    assert (batch.column(0).to_pylist(), astray) == ([None, None, None, None, "2"], {})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "[1,", "'x'", '"\\ud800"', '{"v": ["\\udc00 \\ud800"]}', "1 2", ""])
def test_what_is_not_json_is_poison(value: str) -> None:
    with pytest.raises(Poison):
        loads_exact(value)


@pytest.mark.parametrize("bomb", ["[" * 200_000, '{"a":' * 101 + "1" + "}" * 101, "[" * 101 + "]" * 101])
def test_nesting_bombs_are_poison(bomb: str) -> None:
    with pytest.raises(Poison, match="nested deeper than 100 levels"):
        loads_exact(bomb)


def test_many_brackets_side_by_side_or_in_strings_are_no_bomb() -> None:
    assert len(loads_exact("[" + ",".join(["{}"] * 1000) + "]")) == 1000
    assert loads_exact('{"v": "%s\\"["}' % ("[" * 1000)) == {"v": "[" * 1000 + '"['}
    assert loads_exact("[" * 100 + "]" * 100)


def test_bad_lines_are_unreadable_with_reason_and_line_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    (run,) = read(tmp_path, b'\n{"a": 1}\r\n\n{"a": \n[1]\n3\n"s"\nnull\n  \n{"b": 2}', {"a": "a"})
    assert (run.batch.to_pylist(), run.positions.to_pylist()) == ([{"a": "1"}, {"a": None}], [2, 10])
    assert (run.origin, run.unit) == ("f.jsonl", "line")
    assert [(bad.position, bad.raw) for bad in run.unreadable] == [(4, '{"a":'), (5, "[1]"), (6, "3"), (7, '"s"'), (8, "null")]
    assert run.unreadable[0].reason.startswith("not JSON: Expecting value at character")
    assert [bad.reason for bad in run.unreadable[1:]] == [
        f"expected an object, found {kind}" for kind in ("a list", "a number", "a string", "null")
    ]


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_file_without_records_gives_one_empty_run(tmp_path: Path, content: bytes) -> None:
    (run,) = read(tmp_path, content, {"x": "a", "y": "b"})
    assert (run.batch.schema.names, run.batch.num_rows) == (["x", "y"], 0)


def test_batches_end_at_their_size_and_lines_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "BLOCK_BYTES", 7)
    content = b"".join(b'{"a": %d}\n' % number for number in range(10))
    runs = read(tmp_path, content, {"a": "a"}, batch_rows=4)
    assert [run.batch.num_rows for run in runs] == [4, 4, 2]
    assert [line for run in runs for line in run.positions.to_pylist()] == list(range(1, 11))


def test_gzip_and_other_encodings_are_read_and_broken_ones_are_poison(tmp_path: Path) -> None:
    text = '{"a": "ä"}\n'
    packed = gzip.compress(text.encode())
    assert read(tmp_path, packed, {"a": "a"}, "f.gz")[0].batch.to_pylist() == [{"a": "ä"}]
    assert read(tmp_path, text.encode("utf-16"), {"a": "a"}, encoding="utf-16")[0].batch.to_pylist() == [{"a": "ä"}]
    with pytest.raises(Poison, match="ends too early"):
        read(tmp_path, packed[:-3], {"a": "a"}, "f.gz")
    with pytest.raises(Poison, match=r"f\.jsonl, line 2: .*may be cp1252"):
        read(tmp_path, b"{}\n" + text.encode("cp1252"), {"a": "a"})


def test_a_line_without_end_is_poison_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(jsonlines, "BLOCK_BYTES", 10)
    with pytest.raises(Poison, match=r"f\.jsonl, line 2: the line here is longer"):
        read(tmp_path, b'{}\n{"a": "' + b"x" * 200 + b'"}\n', {"a": "a"})


def test_no_file_or_no_fields_is_misconfigured(tmp_path: Path) -> None:
    files = LocalFiles(root=str(tmp_path))
    with pytest.raises(Misconfigured, match=r"no file matches '\*\.jsonl'"):
        list(read_json_lines(files, "*.jsonl", fields={"a": "a"}))
    with pytest.raises(Misconfigured, match="fields is empty"):
        read_json_lines(files, "*.jsonl", fields={})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.lists(VALUES, max_size=8), ascii_only=st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_writes_is_read_back(tmp_path: Path, values: list, ascii_only: bool) -> None:
    content = "".join(json.dumps({"v": value}, ensure_ascii=ascii_only) + "\n" for value in values)
    runs = read(tmp_path, content.encode(), {"v": "v"})
    texts = [text for run in runs for text in run.batch.column("v").to_pylist()]
    assert [run.unreadable for run in runs] == [()]
    assert len(texts) == len(values)
    for value, text in zip(values, texts, strict=True):
        assert text == value if value is None or isinstance(value, str) else json.loads(text) == value
