"""One suite for the staging seam, run on a local directory and on S3 (moto)."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from resources.errors import Misconfigured, Refused, Transient
from resources.staging import LocalStaging, Manifest, S3Staging, StagedFile, StagedWriter, open_staging, read_batches, read_schema

ROOT = Path(__file__).parents[2]
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("price", pa.decimal128(12, 2)), ("tags", pa.list_(pa.string()))])


@pytest.fixture(scope="module")
def s3_url():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1"}.items():
            patch.setenv(name, value)
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(s3_url):
    client = boto3.client("s3", endpoint_url=s3_url)
    yield client
    client.close()


@pytest.fixture
def s3_area(client, s3_url, tmp_path):
    bucket = f"b{hashlib.sha1(str(tmp_path).encode()).hexdigest()}"
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    staging = S3Staging(bucket, "deep/prefix", endpoint_url=s3_url)
    yield staging, lambda path, content: client.put_object(Bucket=bucket, Key=f"deep/prefix/{path}", Body=content)
    staging.close()


@pytest.fixture(params=["local", "s3"])
def area(request, tmp_path):
    """(the staging, a function that overwrites a staged file behind its back)"""
    if request.param == "s3":
        return request.getfixturevalue("s3_area")
    root = tmp_path / "new" / "staging"
    return LocalStaging(root), lambda path, content: (root / path).write_bytes(content)


@pytest.fixture
def staging(area):
    return area[0]


@pytest.fixture
def overwrite(area):
    return area[1]


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def batch(count, start=0):
    numbers = range(start, start + count)
    columns = [
        list(numbers),
        [f"näme {i}" if i % 7 else None for i in numbers],
        [Decimal(i).scaleb(-2) for i in numbers],
        [["a"] * (i % 3) for i in numbers],
    ]
    return pa.RecordBatch.from_arrays([pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def staged(staging, *batches, prefix="orders/t1/1/r1/raw", **options):
    with StagedWriter(staging, prefix, SCHEMA, **options) as writer:
        for one in batches:
            writer.write(one)
    return writer.manifest


# Files


@pytest.mark.parametrize("content", [b"", b"x", os.urandom(3_000_000)], ids=["empty", "byte", "3 MB"])
def test_what_was_written_reads_back_byte_for_byte(staging, tmp_path, content):
    source = tmp_path / "source"
    source.write_bytes(content)
    stored = staging.write("a/b/from-file.parquet", source)
    assert (stored.path, stored.bytes, stored.sha256) == ("a/b/from-file.parquet", len(content), sha256(content))
    assert staging.write("a/b/from-memory.parquet", memoryview(content)).sha256 == stored.sha256
    for path in ("a/b/from-file.parquet", "a/b/from-memory.parquet"):
        assert staging.read(path, sha256=stored.sha256) == content
        assert staging.local(path, sha256=stored.sha256).read_bytes() == content


def test_a_staged_file_is_never_overwritten(staging):
    first = staging.write("a/x", b"first")
    for content in (b"second", b"first"):
        with pytest.raises(Refused, match=r"a/x.*exists already"):
            staging.write("a/x", content)
    assert staging.read("a/x", sha256=first.sha256) == b"first"


def test_of_racing_writers_exactly_one_wins(staging):
    gate = threading.Barrier(6)

    def race(number):
        gate.wait()
        try:
            return staging.write("a/x", bytes([number]) * 100_000)
        except Refused:
            return None

    with ThreadPoolExecutor(6) as pool:
        winners = [stored for stored in pool.map(race, range(6)) if stored]
    assert len(winners) == 1
    assert len(staging.read("a/x", sha256=winners[0].sha256)) == 100_000


def test_altered_bytes_are_refused_by_name(staging, overwrite):
    stored = staging.write("a/x", b"0123456789")
    overwrite("a/x", b"0123456780")
    for read in (staging.read, staging.local):
        with pytest.raises(Refused, match=r"a/x.*not those that were checked"):
            read("a/x", sha256=stored.sha256)


def test_a_missing_file_is_refused_by_name(staging):
    for read in (lambda: staging.read("a/x", sha256="0"), lambda: staging.local("a/x"), lambda: staging.local("a/x", sha256="0")):
        with pytest.raises(Refused, match=r"a/x.*missing"):
            read()
    staging.write("a/y", b"")
    with pytest.raises(Refused, match=r"a/x.*missing"):
        staging.read("a/x", sha256="0")


def test_a_uri_leads_a_person_to_the_file(staging):
    staging.write("a/x", b"x")
    uri = staging.uri("a/x")
    assert uri.startswith(("file:///", "s3://"))
    assert uri.endswith("/a/x")
    assert open_staging(uri.removesuffix("/a/x"), endpoint_url=getattr(staging, "_endpoint_url", None)).exists("a/x")


def test_list_names_the_files_of_a_folder_and_of_no_other(staging):
    for path in ("t/1/b", "t/1/a/z", "t/10/a"):
        staging.write(path, b"x")
    assert list(staging.list("t/1")) == ["t/1/a/z", "t/1/b"]
    assert list(staging.list("t")) == ["t/1/a/z", "t/1/b", "t/10/a"]
    assert list(staging.list("u")) == []


def test_exists_is_about_files(staging):
    assert not staging.exists("a/x")
    staging.write("a/x", b"")
    assert staging.exists("a/x")
    assert not staging.exists("a")


def test_deleting_a_prefix_takes_its_directory_and_nothing_else(staging):
    for path in ("t/1/a", "t/1/b/c", "t/10/a", "t/2"):
        staging.write(path, b"x")
    assert staging.delete_prefix("t/1") == 2
    assert [staging.exists(path) for path in ("t/1/a", "t/1/b/c", "t/10/a", "t/2")] == [False, False, True, True]
    assert staging.delete_prefix("t/1") == 0
    staging.write("t/1/a", b"again")


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a\\b", "a/", ".hidden", "a\0b", "a/" + "x" * 201, "é"]
)
def test_paths_that_could_leave_the_area_are_refused(staging, path):
    for use in (
        lambda: staging.write(path, b""),
        lambda: staging.read(path, sha256=""),
        lambda: staging.local(path),
        lambda: staging.exists(path),
        lambda: staging.delete_prefix(path),
    ):
        with pytest.raises(Refused, match="not usable"):
            use()


# Parquet


def test_batches_read_back_in_order_whatever_their_cuts(staging):
    manifest = staged(staging, batch(10), batch(0), batch(1, 10), batch(95, 11), rows_per_file=40)
    assert [file.rows for file in manifest.files] == [40, 40, 26]
    assert manifest.rows == 106
    assert pa.Table.from_batches(read_batches(staging, manifest)) == pa.Table.from_batches([batch(106)])
    assert [one.num_rows for one in read_batches(staging, manifest, batch_rows=30)] == [30, 10, 30, 10, 26]
    assert all(file.path.startswith("orders/t1/1/r1/raw/") for file in manifest.files)


def test_columns_are_selected_and_ordered_as_asked(staging):
    manifest = staged(staging, batch(3))
    [found] = read_batches(staging, manifest, ["price", "id"])
    assert found == batch(3).select(["price", "id"])
    with pytest.raises(Misconfigured, match="no column colour; staged are id, name, price, tags"):
        next(read_batches(staging, manifest, ["id", "colour"]))


def test_no_rows_give_one_file_that_knows_the_schema(staging):
    manifest = staged(staging)
    assert (len(manifest.files), manifest.rows) == (1, 0)
    [found] = read_batches(staging, manifest)
    assert found.num_rows == 0
    assert found.schema == SCHEMA == read_schema(staging, manifest)
    [found] = read_batches(staging, manifest, ["name"])
    assert found.schema.names == ["name"]


def test_a_full_last_file_is_not_followed_by_an_empty_one(staging):
    assert [file.rows for file in staged(staging, batch(80), rows_per_file=40).files] == [40, 40]


def test_one_altered_byte_stops_reading_before_its_rows(staging, overwrite):
    manifest = staged(staging, batch(80), rows_per_file=40)
    second = manifest.files[1]
    content = bytearray(staging.read(second.path, sha256=second.sha256))
    content[len(content) // 2] ^= 1
    overwrite(second.path, bytes(content))
    reading = read_batches(staging, manifest)
    assert next(reading).num_rows == 40
    with pytest.raises(Refused, match="not those that were checked"):
        next(reading)


def test_a_manifest_that_miscounts_is_refused(staging):
    file = staged(staging, batch(5)).files[0]
    with pytest.raises(Refused, match="5 rows, its manifest says 6"):
        next(read_batches(staging, Manifest.of((replace(file, rows=6),))))


def test_a_file_that_is_not_parquet_is_refused(staging):
    stored = staging.write("a/x.parquet", b"hello")
    with pytest.raises(Refused, match="not Parquet"):
        next(read_batches(staging, Manifest.of((StagedFile("a/x.parquet", 1, 5, stored.sha256),))))


def test_a_second_try_below_the_same_prefix_meets_nothing_of_the_first(staging):
    first, second = staged(staging, batch(3)), staged(staging, batch(3))
    assert first.files[0].path != second.files[0].path
    assert list(read_batches(staging, first)) == list(read_batches(staging, second))


def test_a_writer_that_failed_has_no_manifest(staging):
    def fails(writer):
        with writer:
            writer.write(batch(3))
            raise RuntimeError

    writer = StagedWriter(staging, "a", SCHEMA)
    with pytest.raises(RuntimeError):
        fails(writer)
    with pytest.raises(Refused, match="not closed"):
        _ = writer.manifest


def test_batches_of_another_schema_are_refused(staging):
    with StagedWriter(staging, "a", SCHEMA) as writer:
        with pytest.raises(Misconfigured, match=r"id string.*this stop stages id int64"):
            writer.write(pa.RecordBatch.from_pydict({"id": ["1"]}))
        writer.write(batch(1))
    with pytest.raises(Refused, match="closed"):
        writer.write(batch(1))


def test_wide_rows_end_a_file_early(staging, monkeypatch):
    monkeypatch.setattr("resources.staging.parquet.BYTES_PER_FILE", 300_000)
    monkeypatch.setattr("resources.staging.parquet.BYTES_PER_GROUP", 100_000)
    schema = pa.schema([("blob", pa.binary())])
    with StagedWriter(staging, "a", schema) as writer:
        for _ in range(20):
            writer.write(pa.RecordBatch.from_pydict({"blob": [os.urandom(50_000)]}, schema))
    assert [file.rows for file in writer.manifest.files] == [6, 6, 6, 2]


# The manifest


def test_a_manifest_survives_json(staging):
    manifest = staged(staging, batch(80), rows_per_file=40)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.bytes == sum(file.bytes for file in manifest.files) > 0


@pytest.mark.parametrize(
    "alter",
    [
        lambda found: found["files"][0].update(sha256="0" * 64),
        lambda found: found["files"][0].update(path="other"),
        lambda found: found["files"].pop(),
        lambda found: found["files"].reverse(),
        lambda found: found.update(rows=7),
        lambda found: found.update(digest="0" * 64),
        lambda found: found.clear(),
    ],
)
def test_an_altered_manifest_is_refused(alter):
    found = Manifest.of((StagedFile("a", 1, 10, "f" * 64), StagedFile("b", 2, 20, "e" * 64))).to_json()
    alter(found)
    with pytest.raises(Refused, match="manifest"):
        Manifest.from_json(found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 70), max_size=6), st.integers(1, 50), st.integers(1, 64))
def test_any_cutting_keeps_every_row_in_order(tmp_path, sizes, rows_per_file, batch_rows):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    staging = LocalStaging(tmp_path)
    batches = [batch(size, start) for size, start in zip(sizes, starts, strict=True)]
    manifest = staged(staging, *batches, rows_per_file=rows_per_file)
    read = list(read_batches(staging, manifest, batch_rows=batch_rows))
    assert pa.Table.from_batches(read) == pa.Table.from_batches([batch(sum(sizes))])
    assert all(0 < file.rows <= rows_per_file for file in manifest.files) or manifest.rows == 0
    staging.delete_prefix("orders")


# The local directory


def test_a_process_killed_while_writing_leaves_no_staged_file(tmp_path):
    code = """
import os, sys
from pathlib import Path
from resources.staging import LocalStaging
os.mkfifo(sys.argv[2])
print("ready", flush=True)
LocalStaging(sys.argv[1]).write("a/x", Path(sys.argv[2]))
"""
    fifo = tmp_path / "fifo"
    command = [sys.executable, "-c", code, tmp_path / "area", fifo]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as writer:
        assert writer.stdout.readline() == b"ready\n"
        with fifo.open("wb") as pipe:
            pipe.write(b"x" * 3_000_000)  # more than a pipe holds: part of it is in the temporary file by now
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    staging = LocalStaging(tmp_path / "area")
    assert list((tmp_path / "area" / "a").iterdir())
    assert not staging.exists("a/x")
    staging.write("a/x", b"whole")
    assert staging.delete_prefix("a") == 1
    assert not (tmp_path / "area" / "a").exists()


def test_a_full_disk_is_transient_and_leaves_nothing(tmp_path):
    # /dev/full answers ENOSPC to every write, as a full disk does.
    staging = LocalStaging(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode="r", _open=Path.open: _open(Path("/dev/full") if mode == "xb" else self, "r+b"))
        with pytest.raises(Transient, match=r"a/x.*disk is full"):
            staging.write("a/x", b"x" * 100_000)
    assert not staging.exists("a/x")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_size_limit_leaves_nothing(tmp_path):
    staging, before = LocalStaging(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(Transient, match="a/x"):
            staging.write("a/x", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_symbolic_link_out_of_the_area_is_refused(tmp_path):
    (tmp_path / "area").mkdir()
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "area" / "out").symlink_to(tmp_path)
    (tmp_path / "area" / "link").symlink_to(tmp_path / "secret")
    staging = LocalStaging(tmp_path / "area")
    for use in (
        lambda: staging.read("out/secret", sha256=sha256(b"s")),
        lambda: staging.read("link", sha256=sha256(b"s")),
        lambda: staging.write("out/x", b""),
        lambda: staging.delete_prefix("out"),
    ):
        with pytest.raises(Refused, match="symbolic link"):
            use()
    assert (tmp_path / "secret").exists()


def test_an_area_that_cannot_be_made_is_misconfigured(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Misconfigured, match="writable"):
        LocalStaging(tmp_path / "file" / "area").write("a/x", b"")
    with pytest.raises(Misconfigured, match="no-such-source"):
        LocalStaging(tmp_path).write("a/x", tmp_path / "no-such-source")


# S3


def test_a_bucket_that_is_not_there_is_misconfigured(s3_url):
    with pytest.raises(Misconfigured, match=r"NoSuchBucket.*check the bucket"):
        S3Staging("nowhere", endpoint_url=s3_url).write("a/x", b"")


def test_rows_wider_than_one_s3_write_are_told_with_what_an_author_can_do(monkeypatch):
    monkeypatch.setattr("resources.staging.s3.PUT_BYTES", 3)
    with pytest.raises(Refused, match="4 bytes are more than one S3 write takes; leave the stop's largest fields out"):
        S3Staging("bucket").write("a/x", b"wide")


def test_an_s3_that_does_not_answer_is_transient(s3_url, monkeypatch):
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)  # between its attempts
    with pytest.raises(Transient, match="s3://bucket/a/x"):
        S3Staging("bucket", endpoint_url="http://127.0.0.1:9").write("a/x", b"")


def test_an_s3_without_credentials_is_misconfigured(s3_url, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(Misconfigured, match="credentials"):
        S3Staging("bucket", endpoint_url=s3_url).write("a/x", b"")


def test_downloads_go_when_the_area_closes(s3_area):
    staging, _ = s3_area
    staging.write("a/x", b"x")
    path = staging.local("a/x")
    assert staging.local("a/x") == path
    staging.close()
    assert not path.exists()


def test_a_write_repeated_after_a_lost_answer_is_not_a_conflict(s3_area):
    staging, _ = s3_area
    sent = []

    def send_twice(model, params, **_):
        if not sent:
            sent.append(params["headers"]["x-amz-meta-bus-writer"])
            staging._client.put_object(
                Bucket=staging.bucket, Key="deep/prefix/a/x", Body=b"once", Metadata={"bus-writer": sent[0]}, IfNoneMatch="*"
            )

    staging._client.meta.events.register("before-call.s3.PutObject", send_twice)
    stored = staging.write("a/x", b"once")
    assert sent
    assert staging.read("a/x", sha256=stored.sha256) == b"once"
    with pytest.raises(Refused, match="exists already"):
        staging.write("a/x", b"once")


# URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/staging", "LocalStaging('/data/staging')"),
        ("file:///data/my%20staging", "LocalStaging('/data/my staging')"),
        ("s3://bucket/a/b/", "S3Staging('s3://bucket/a/b/')"),
        ("s3://bucket", "S3Staging('s3://bucket/')"),
    ],
)
def test_a_url_names_its_area(url, expected):
    assert repr(open_staging(url)) == expected


@pytest.mark.parametrize("url", ["", "gs://bucket/x", "s3://", "s3:bucket", "file://host/x"])
def test_other_urls_are_misconfigured(url):
    with pytest.raises(Misconfigured, match="s3://bucket/prefix"):
        open_staging(url)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, resources.staging; print([name for name in ('pyarrow', 'boto3', 'dagster') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


def test_staged_files_are_plain_parquet_for_other_readers(staging):
    manifest = staged(staging, batch(5))
    assert pq.read_table(staging.local(manifest.files[0].path)) == pa.Table.from_batches([batch(5)])
