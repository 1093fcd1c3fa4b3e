"""Delimited text: every record back as it was written, with its line; every kind of bad file with an error that says what to do."""

import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources import linecount, textfile
from resources.errors import Misconfigured, Poison
from resources.files import LocalFiles
from resources.records import Records, Unreadable, total
from resources.textfile import count_text, read_text

AB = {"a": "a", "b": "b"}


class Folder:
    """A folder of files with one method to write and one to read them."""

    def __init__(self, root: Path):
        self.root = root
        self.files = LocalFiles(root=str(root))

    def read(self, content: bytes, name: str = "f.csv", fields: dict[str, str] | None = None, **options) -> list[Records]:
        (self.root / name).write_bytes(content)
        runs = list(read_text(self.files, name, fields=fields or AB, **options))
        assert total(runs) == count_text(self.files, name, **options)
        return runs


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def rows(runs: list[Records]) -> list[tuple[str | None, ...]]:
    return [tuple(row.values()) for run in runs for row in run.batch.to_pylist()]


def lines(runs: list[Records]) -> list[int]:
    return [line for run in runs for line in run.positions.to_pylist()]


def unreadable(runs: list[Records]) -> list[Unreadable]:
    return [bad for run in runs for bad in run.unreadable]


def test_columns_come_named_and_ordered_as_asked_for(folder: Folder) -> None:
    (run,) = folder.read(b"x,y,z\n1,2,3\n", fields={"last": "z", "first": "x", "again": "z"})
    assert run.batch.to_pylist() == [{"last": "3", "first": "1", "again": "3"}]
    assert (run.origin, run.unit) == ("f.csv", "line")


def test_columns_that_nobody_asks_for_are_told(folder: Folder) -> None:
    (run,) = folder.read(b"a,new one,b,c\n1,2,3,4\n")
    assert run.unread == ("new one", "c")
    (run,) = folder.read(b"1,2,3\n", header=False, columns=("a", "left", "b"))
    assert run.unread == ("left",)
    (run,) = folder.read(b"b,a\n")
    assert run.unread == ()


def test_lines_are_physical_through_quoted_breaks_blank_lines_and_ragged_records(folder: Folder) -> None:
    runs = folder.read(b'a,b\n\n1,"x\n\ny"\n\n\n2,3,"4\n5"\n6,7\nshort\n\n8,9')
    assert list(zip(rows(runs), lines(runs), strict=True)) == [(("1", "x\n\ny"), 3), (("6", "7"), 10), (("8", "9"), 13)]
    assert unreadable(runs) == [
        Unreadable(8, '2,3,"4\n5"', "expected 2 fields, found 3"),
        Unreadable(11, "short", "expected 2 fields, found 1"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block_bytes", [16, 17, 18, 19, 1 << 20])
def test_every_line_end_is_understood_wherever_the_blocks_are_cut(folder: Folder, end: str, block_bytes: int) -> None:
    text = end.join(["a,b", "1,2", "", '"x', "", 'y",3', "4,5", ""])
    runs = folder.read(text.encode(), longest_record_bytes=block_bytes)
    assert list(zip(rows(runs), lines(runs), strict=True)) == [
        (("1", "2"), 2),
        ((f"x{end}{end}y", "3"), 4),
        (("4", "5"), 7),
    ]


def test_a_break_in_a_column_nobody_wants_still_counts(folder: Folder) -> None:
    assert lines(folder.read(b'a,b\n1,"x\n\n\ny"\n2,z\n', fields={"a": "a"})) == [2, 6]


def test_a_record_of_empty_fields_is_no_blank_line(folder: Folder) -> None:
    runs = folder.read(b"a,b\n,\n\n,\n")
    assert (rows(runs), lines(runs)) == ([(None, None), (None, None)], [2, 4])


def test_in_a_file_of_one_column_a_quoted_nothing_is_a_record_and_a_blank_line_is_not(folder: Folder) -> None:
    runs = folder.read(b'a\n1\n\n""\n2\n\n', fields={"a": "a"})
    assert (rows(runs), lines(runs)) == ([("1",), (None,), ("2",)], [2, 4, 5])


def test_null_values_mean_null_quoted_or_not(folder: Folder) -> None:
    assert rows(folder.read(b'a,b\n"",NA\n"NA",x\n', null_values=("", "NA"))) == [(None, None), (None, "x")]
    assert rows(folder.read(b'a,b\n"",\n', null_values=())) == [("", "")]


def test_without_a_header_columns_names_them(folder: Folder) -> None:
    runs = folder.read(b"1;2\n3;4\n", fields={"b": "y"}, header=False, columns=("x", "y"), delimiter=";")
    assert (rows(runs), lines(runs)) == ([("2",), ("4",)], [1, 2])


def test_without_quoting_a_quote_is_a_character(folder: Folder) -> None:
    assert rows(folder.read(b'a,b\n"1,2"\n5",x\n', quote="")) == [('"1', '2"'), ('5"', "x")]


def test_several_files_come_in_name_order_each_with_its_own_header(folder: Folder) -> None:
    (folder.root / "2.csv").write_bytes(b"b,a\ny,x\n")
    (folder.root / "1.csv").write_bytes(b"a,b\n1,2\n")
    runs = list(read_text(folder.files, "*.csv", fields=AB))
    assert [(run.origin, rows([run])) for run in runs] == [("1.csv", [("1", "2")]), ("2.csv", [("x", "y")])]


def test_a_header_alone_gives_one_empty_run_with_the_columns(folder: Folder) -> None:
    for content in (b"a,b", b"a,b\n", b"a,b\r\n\r\n"):
        (run,) = folder.read(content)
        assert (run.batch.schema.names, run.batch.num_rows, len(run.positions)) == (["a", "b"], 0, 0)
    (run,) = folder.read(b"", header=False, columns=("a", "b"))
    assert run.batch.num_rows == 0


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\r\n"])
def test_a_file_without_even_a_header_is_poison(folder: Folder, content: bytes) -> None:
    with pytest.raises(Poison, match=r"^f\.csv: the file is empty: not even a header"):
        folder.read(content)


def test_no_file_names_pattern_and_place(folder: Folder) -> None:
    with pytest.raises(Misconfigured, match=rf"no file matches 'x\*\.csv' in {re.escape(str(folder.root))}"):
        list(read_text(folder.files, "x*.csv", fields=AB))


def test_wrong_delimiter_suggests_the_right_one(folder: Folder) -> None:
    with pytest.raises(Misconfigured, match=r"no column 'a'.*declared as ',' but is probably ';'"):
        folder.read(b"a;b\n1;2\n")
    with pytest.raises(Misconfigured, match=r"no record has the 2 fields.*the first has 1; delimiter is declared as ',': .*probably '\\t'"):
        folder.read(b"1\t2\n3\t4\n", header=False, columns=("a", "b"))


def test_one_lone_ragged_record_is_bad_data_not_a_wrong_delimiter(folder: Folder) -> None:
    assert [bad.position for bad in unreadable(folder.read(b"a,b\n1,2,3\n"))] == [2]


def test_too_many_ragged_records_at_the_start_give_up(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linecount, "MAX_RAGGED_AT_START", 10)
    with pytest.raises(Misconfigured, match="no record has the 2 fields that were expected; the first has 3"):
        folder.read(b"a,b\n" + b"1,2,3\n" * 20 + b"1,2\n")


def test_a_missing_column_says_what_there_is_and_what_is_near(folder: Folder) -> None:
    with pytest.raises(Misconfigured, match=r"^f\.csv: there is no column 'orderid'; there is 'Order_ID', 'b'; did you mean 'Order_ID'\?"):
        folder.read(b"Order_ID,b\n", fields={"id": "orderid"})


def test_a_file_without_its_header_does_not_quote_its_first_row(folder: Folder) -> None:
    with pytest.raises(Misconfigured, match="is the header missing") as error:
        folder.read(b"77,alice@example.org\n78,bob@example.org\n", fields={"id": "id", "email": "email"})
    assert "alice" not in str(error.value)


def test_duplicate_headers_matter_only_where_they_are_ambiguous(folder: Folder) -> None:
    assert rows(folder.read(b"x,a,x,b\n0,1,0,2\n")) == [("1", "2")]
    with pytest.raises(Misconfigured, match="column 'x' is wanted but appears 2 times"):
        folder.read(b"x,a,x,b\n0,1,0,2\n", fields={"x": "x"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(folder: Folder, encoding: str) -> None:
    mark = "\ufeff" if encoding in ("utf-8", "utf-16-le", "utf-16-be") else ""
    content = f"{mark}a,b\nä,€\U0001f68c\n".encode(encoding)
    for block_bytes in (24, 25, 27, 1 << 20):
        assert rows(folder.read(content, encoding=encoding, longest_record_bytes=block_bytes)) == [("ä", "€\U0001f68c")]


def test_a_mark_that_contradicts_the_encoding_is_told(folder: Folder) -> None:
    with pytest.raises(Misconfigured, match="byte-order mark of utf-16, declared is utf-8; set encoding='utf-16'"):
        folder.read("a,b\n".encode("utf-16"))
    with pytest.raises(Misconfigured, match="byte-order mark of utf-8, declared is cp1252"):
        folder.read(b"\xef\xbb\xbfa,b\n", encoding="cp1252")


@pytest.mark.parametrize("block_bytes", [16, 1 << 20])
def test_wrong_encoding_names_line_byte_and_the_likely_one(folder: Folder, block_bytes: int) -> None:
    with pytest.raises(Poison, match=r"^f\.csv, line 4: e9 at byte 18 is not utf-8 .* may be cp1252"):
        folder.read("a,b\n1,2\n\nMüller,é\n".encode().replace("Müller,é".encode(), b"1,2,xxxx\xe9,2"), longest_record_bytes=block_bytes)


def test_text_cut_within_a_character_is_poison(folder: Folder) -> None:
    with pytest.raises(Poison, match=r"line 3: e2 82 at byte 11 is not utf-8 \(unexpected end of data\)"):
        folder.read("a,b\n1,2\n3,€".encode()[:-1])
    with pytest.raises(Poison, match=r"truncated data"):
        folder.read("a,b\n1,2\n".encode("utf-16")[:-1], encoding="utf-16")


def test_utf_16_without_a_mark_read_as_utf_8_is_told(folder: Folder) -> None:
    with pytest.raises(Poison, match="NUL characters; the encoding may be utf-16-le"):
        folder.read("a,b\n1,2\n".encode("utf-16-le"))
    with pytest.raises(Poison, match=r"f\.csv, line 2: b7 at byte .* is not utf-8"):
        folder.read("a,b\n\u0107,2\u00b7\n".encode("utf-16-le"))


def test_nul_bytes_arrive_as_they_are(folder: Folder) -> None:
    assert rows(folder.read(b"a,b\n1\x00,\x00\n2,3\n")) == [("1\0", "\0"), ("2", "3")]


@pytest.mark.parametrize("padding", range(8))
def test_a_quote_right_behind_a_nul_is_seen(folder: Folder, padding: int) -> None:
    """Arrow alone overlooks it, and takes what follows for one long value."""
    pad = "x" * padding
    runs = folder.read(f'a,b\n"{pad}\0",",{pad}\0"\n3,"\0\n\n"\n\0,4,5\n'.encode(), longest_record_bytes=40, null_values=("\0",))
    assert rows(runs) == [(f"{pad}\0" if pad else None, f",{pad}\0"), ("3", "\0\n\n")]
    assert (lines(runs), unreadable(runs)) == ([2, 3], [Unreadable(6, "\0,4,5", "expected 2 fields, found 3")])


def test_gzip_by_name_or_by_declaration_in_any_number_of_members(folder: Folder) -> None:
    content = gzip.compress(b"a,b\n1,") + gzip.compress(b"2\n3,4\n")
    assert rows(folder.read(content, "f.csv.gz")) == [("1", "2"), ("3", "4")]
    assert rows(folder.read(content, "f.dat", compression="gzip")) == [("1", "2"), ("3", "4")]
    with pytest.raises(Misconfigured, match="is gzip but is read as it stands; set compression='gzip'"):
        folder.read(content, "f.csv")


def test_gzip_cut_anywhere_is_poison(folder: Folder) -> None:
    content = gzip.compress(b"a,b\n" + b"".join(b"%d,x\n" % number for number in range(500)))
    for cut in (5, 11, len(content) // 2, len(content) - 9, len(content) - 1):
        with pytest.raises(Poison, match=r"^f\.gz: the gzip ends too early"):
            folder.read(content[:cut], "f.gz")


def test_gzip_followed_by_garbage_or_damaged_is_poison(folder: Folder) -> None:
    content = gzip.compress(b"a,b\n1,2\n")
    broken = bytes([*content[:-6], content[-6] ^ 1, *content[-5:]])
    for bad in (content + b"garbage", broken, b"a,b\n1,2\n"):
        with pytest.raises(Poison, match="not gzip, broken, or followed by something"):
            folder.read(bad, "f.gz")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'a,b\n1,2\n3,"x\ny,4\n', 3),
        (b'a,b\n1,2\n3,"x', 3),
        (b'a,b\n"1\n\n1","\n\n', 4),
        (b'a,b\n1\n\n"1\n1",2,"x\n', 5),
        (b'"a,b\n1,2\n', 1),
        (b'a\n1\n"2\n', 3),
    ],
)
def test_a_quote_never_closed_is_poison_and_names_its_line(folder: Folder, content: bytes, line: int) -> None:
    with pytest.raises(Poison, match=rf"^f\.csv, line {line}: a quote that opens in the record here is never closed"):
        folder.read(content, fields={"a": "a"})


def test_a_record_longer_than_a_block_is_poison_and_names_its_line(folder: Folder) -> None:
    content = b"a,b\n" + b"1,2\n" * 20 + b'3,"' + b"x\n" * 200
    with pytest.raises(Poison, match=r"^f\.csv, line 22: the record here is longer than .* MiB"):
        folder.read(content, longest_record_bytes=32)


@pytest.mark.parametrize(("content", "counted", "accounted"), [(b"a,b\n1,2\n3,4\n5,6\n", 4, 3), (b"a\n1\n2\n", 3, 2)])
def test_a_line_that_arrow_would_lose_is_noticed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, content: bytes, counted: int, accounted: int
) -> None:
    """Sabotage: a row is dropped behind the ledger's back."""
    whole = textfile._batches

    def losing(*arguments):
        batches = whole(*arguments)
        yield next(batches).slice(1)
        yield from batches

    monkeypatch.setattr(textfile, "_batches", losing)
    with pytest.raises(Poison, match=f"{counted} lines were counted but {accounted} are accounted for"):
        folder.read(content, fields={"a": "a"})


def test_an_end_that_arrow_never_reached_is_noticed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: the reader stops after its first batch."""
    whole = textfile._batches
    monkeypatch.setattr(textfile, "_batches", lambda *arguments: iter([next(whole(*arguments))]))
    with pytest.raises(Poison, match="are accounted for; nothing of this file may be used"):
        folder.read(b"a\n1\n2\n", fields={"a": "a"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delimiter": "||"}, "delimiter"),
        ({"delimiter": "§"}, "one ASCII character"),
        ({"quote": ","}, "both ','"),
        ({"header": False}, "give columns with header=False"),
        ({"columns": ("a",)}, "give columns with header=False"),
        ({"encoding": "klingon"}, "encoding 'klingon' is not known"),
        ({"encoding": "base64"}, "encoding 'base64' is not known"),
        ({"compression": "zip"}, "compression 'zip' is not known"),
        ({"fields": {}}, "fields is empty"),
        ({"null_values": ("\n",)}, "null_values"),
    ],
)
def test_options_that_cannot_hold_are_refused_before_reading(folder: Folder, options: dict[str, Any], said: str) -> None:
    wanted: dict[str, Any] = {"fields": AB} | options
    with pytest.raises(Misconfigured, match=said):
        read_text(folder.files, "none.csv", **wanted)


def test_reading_may_stop_early_and_lets_go_of_the_file(folder: Folder) -> None:
    (folder.root / "f.csv").write_bytes(b"a,b\n" + b"1,2\n" * 10_000)
    runs = read_text(folder.files, "f.csv", fields=AB, longest_record_bytes=1024)
    next(runs)
    runs.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert list(runs) == []


CELLS = st.text(st.sampled_from("ab,;|\"'\n\r\0 ä€\U0001f68c\u2028\x1c"), max_size=6)


@given(
    table=st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=12)),
    delimiter=st.sampled_from(",;|\t"),
    quote=st.sampled_from("\"'"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    block_bytes=st.sampled_from([128, 129, 131, 1 << 20]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_csv_writes_is_read_back_with_its_lines(tmp_path: Path, table, delimiter, quote, end, quoting, block_bytes, encoding):
    if end != "\r\n" and any("\r" in cell or "\n" in cell for row in table for cell in row):
        quoting = csv.QUOTE_ALL  # the writer leaves breaks other than its own unquoted
    names = [f"column{index}" for index in range(len(table[0]) if table else 1)]
    text, starts = io.StringIO(newline=""), []
    writer = csv.writer(text, delimiter=delimiter, quotechar=quote, lineterminator=end, quoting=quoting)
    for row in [names, *table]:
        starts.append(1 + len(re.findall("\r\n|\r|\n", text.getvalue())))
        writer.writerow(row)
    options = {"delimiter": delimiter, "quote": quote, "encoding": encoding, "null_values": (), "longest_record_bytes": block_bytes}
    runs = Folder(tmp_path).read(text.getvalue().encode(encoding), fields={name: name for name in names}, **options)
    assert rows(runs) == [tuple(row) for row in table]
    assert lines(runs) == starts[1:]
    assert unreadable(runs) == []


@given(text=st.text(st.sampled_from('a,"\n\r'), max_size=60), block_bytes=st.sampled_from([64, 1 << 20]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_whole_as_csv_reads_it_or_refused(tmp_path: Path, text: str, block_bytes: int) -> None:
    folder = Folder(tmp_path)
    expected, before = [], 0
    reader = csv.reader(io.StringIO(text, newline=""))
    for row in reader:
        expected += [(before + 1, row)] if row else []
        before = reader.line_num
    try:
        runs = folder.read(text.encode(), header=False, columns=("a", "b"), null_values=(), longest_record_bytes=block_bytes)
    except Misconfigured:
        assert all(len(row) != 2 for _, row in expected)
        return
    except Poison as error:
        assert "never closed" in error.message
        assert list(csv.reader(io.StringIO(f"{text}\nlast,one\n", newline="")))[-1] != ["last", "one"]
        return
    assert list(zip(lines(runs), map(list, rows(runs)), strict=True)) == [found for found in expected if len(found[1]) == 2]
    assert [bad.position for bad in unreadable(runs)] == [line for line, row in expected if len(row) != 2]
