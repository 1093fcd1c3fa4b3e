"""Parquet: types as they are, rows numbered, and a damaged file is told rather than half read."""

import io
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.errors import Misconfigured, Poison
from resources.files import Listed, LocalFiles
from resources.parquetfile import count_parquet, read_parquet

TABLE = pa.table(
    {
        "id": pa.array(range(10), pa.int32()),
        "price": pa.array([Decimal("1.50")] * 10, pa.decimal128(12, 2)),
        "tags": pa.array([["a"], None] * 5, pa.list_(pa.string())),
        "kind": pa.array(["x", "y"] * 5).dictionary_encode(),
        "dotted.name": pa.array(["d"] * 10),
        "dotted": pa.array([{"name": 1}] * 10, pa.struct([("name", pa.int64())])),
    }
)


class Pipe(io.RawIOBase):
    """Bytes that can be read once, in order."""

    def __init__(self, content: bytes):
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        return self._content.readinto(buffer)


class OneWay(LocalFiles):
    """A folder whose files cannot be read out of order."""

    def open(self, name: str, version: str | None = None) -> BinaryIO:
        with super().open(name, version) as file:
            return io.BufferedReader(Pipe(file.read()))


@pytest.fixture(params=[LocalFiles, OneWay])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> LocalFiles:
    pq.write_table(TABLE, tmp_path / "f.parquet", row_group_size=4)
    return request.param(root=str(tmp_path))


def test_columns_come_named_ordered_and_typed_with_their_rows(files: LocalFiles) -> None:
    fields = {"p": "price", "n": "id", "t": "tags", "k": "kind", "d": "dotted.name", "s": "dotted", "again": "id"}
    runs = list(read_parquet(files, "*.parquet", fields=fields, batch_rows=3))
    assert pa.Table.from_batches([run.batch for run in runs]).schema == pa.schema(
        {
            "p": pa.decimal128(12, 2),
            "n": pa.int32(),
            "t": pa.list_(pa.string()),
            "k": pa.string(),
            "d": pa.string(),
            "s": TABLE.schema.field("dotted").type,
            "again": pa.int32(),
        }
    )
    assert [row["n"] for run in runs for row in run.batch.to_pylist()] == list(range(10))
    assert [row for run in runs for row in run.positions.to_pylist()] == list(range(1, 11))
    assert {(run.origin, run.unit) for run in runs} == {("f.parquet", "row")}
    assert count_parquet(files, "*.parquet") == 10


def test_a_file_without_rows_gives_one_empty_run(files: LocalFiles) -> None:
    pq.write_table(TABLE.slice(0, 0), f"{files.root}/none.parquet")
    (run,) = read_parquet(files, "none.parquet", fields={"k": "kind"})
    assert (run.batch.schema, run.batch.num_rows, len(run.positions)) == (pa.schema({"k": pa.string()}), 0, 0)


def test_a_file_cut_anywhere_is_poison(files: LocalFiles) -> None:
    whole = Path(files.root, "f.parquet").read_bytes()
    for cut in [0, 3, 8, 12, *range(20, len(whole), 97), len(whole) - 1]:
        Path(files.root, "cut.parquet").write_bytes(whole[:cut])
        with pytest.raises(Poison, match=r"^cut\.parquet: not a whole Parquet file"):
            list(read_parquet(files, "cut.parquet", fields={"id": "id"}))
        with pytest.raises(Poison):
            count_parquet(files, "cut.parquet")


def test_a_damaged_file_is_poison_or_reads_but_never_fails_otherwise(files: LocalFiles) -> None:
    whole = Path(files.root, "f.parquet").read_bytes()
    refused = 0
    for at in range(4, len(whole), 41):
        Path(files.root, "bad.parquet").write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
        try:
            list(read_parquet(files, "bad.parquet", fields={"id": "id", "kind": "kind"}))
        except (Poison, Misconfigured):
            refused += 1
    assert refused > 0


def test_a_missing_or_ambiguous_column_says_what_there_is(files: LocalFiles) -> None:
    with pytest.raises(Misconfigured, match=r"^f\.parquet: there is no column 'ID'; there is 'id', 'price'"):
        list(read_parquet(files, "f.parquet", fields={"x": "ID"}))
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), f"{files.root}/twice.parquet")
    with pytest.raises(Misconfigured, match="column 'a' appears 2 times"):
        list(read_parquet(files, "twice.parquet", fields={"a": "a"}))


def test_no_file_or_no_fields_is_misconfigured(files: LocalFiles) -> None:
    with pytest.raises(Misconfigured, match="no file matches"):
        list(read_parquet(files, "none*.parquet", fields={"a": "a"}))
    with pytest.raises(Misconfigured, match="fields is empty"):
        read_parquet(files, "f.parquet", fields={})


def test_a_file_that_changed_since_it_was_listed_is_not_read(tmp_path: Path) -> None:
    class Stale(LocalFiles):
        def list(self, pattern: str) -> tuple[Listed, ...]:
            return tuple(Listed(listed.name, listed.size_bytes, "before") for listed in super().list(pattern))

    pq.write_table(TABLE, tmp_path / "f.parquet")
    with pytest.raises(Poison, match="changed since it was listed"):
        list(read_parquet(Stale(root=str(tmp_path)), "f.parquet", fields={"id": "id"}))


def test_columns_that_nobody_asks_for_are_told(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    (run,) = read_parquet(LocalFiles(root=str(tmp_path)), "t.parquet", fields={"a": "id", "b": "dotted"})
    assert run.unread == ("price", "tags", "kind", "dotted.name")
