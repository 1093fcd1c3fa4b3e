"""What every place of files must do, run on a folder and on a bucket; then what only one of them can get wrong."""

import http.server
import io
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from resources.errors import BusError, Gone, Misconfigured, Poison, Transient
from resources.files import Files, Listed, LocalFiles, S3Files, ToldFiles, as_pattern, matching
from resources.parquetfile import count_parquet
from resources.textfile import read_text

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret-never-shown",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

Put = Callable[[str, bytes], Any]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def s3_client(s3_url: str) -> Iterator[Any]:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "eu-central-1"}
    client = boto3.Session(**keys).client("s3", endpoint_url=s3_url)
    yield client
    client.close()


@pytest.fixture
def s3(s3_client: Any) -> Iterator[Any]:
    client = s3_client
    client.create_bucket(Bucket="landing", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield client
    versions = client.list_object_versions(Bucket="landing")
    for item in [*versions.get("Versions", ()), *versions.get("DeleteMarkers", ())]:
        client.delete_object(Bucket="landing", Key=item["Key"], VersionId=item["VersionId"])
    client.delete_bucket(Bucket="landing")


@pytest.fixture(params=["folder", "bucket", "versioned bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Files, Put]:
    if request.param == "folder":
        root = tmp_path / "root"
        root.mkdir()

        def write(name: str, content: bytes) -> None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

        return LocalFiles(root=str(root)), write
    s3, url = request.getfixturevalue("s3"), request.getfixturevalue("s3_url")
    if request.param == "versioned bucket":
        s3.put_bucket_versioning(Bucket="landing", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="landing", Key="orders.csv", Body=b"outside the prefix")
    put = lambda name, content: s3.put_object(Bucket="landing", Key=f"in/{name}", Body=content)  # noqa: E731
    return S3Files(bucket="landing", prefix="in/", endpoint_url=url), put


def names(listed: tuple[Listed, ...]) -> list[str]:
    return [file.name for file in listed]


def test_it_is_a_place_of_files(place: tuple[Files, Put]) -> None:
    assert isinstance(place[0], Files)


PATTERNS = {
    "a.csv": ["a.csv"],
    "*.csv": ["a.csv", "b[1].csv", "bb.csv"],
    "?.csv": ["a.csv"],
    "b[[]1].csv": ["b[1].csv"],
    "b[1].csv": ["b[1].csv"],
    "*": ["a.csv", "b[1].csv", "bb.csv", "c.txt"],
    "**": ["2024/01/x.csv", "2024/02/x.csv", "2024/02/y.csv", "2024/z.csv", "a.csv", "b[1].csv", "bb.csv", "c.txt"],
    "**/x.csv": ["2024/01/x.csv", "2024/02/x.csv"],
    "2024/**/*.csv": ["2024/01/x.csv", "2024/02/x.csv", "2024/02/y.csv", "2024/z.csv"],
    "2024/*/x.csv": ["2024/01/x.csv", "2024/02/x.csv"],
    "20??/02/*": ["2024/02/x.csv", "2024/02/y.csv"],
    "**/02/**": ["2024/02/x.csv", "2024/02/y.csv"],
    "2024": [],
    "none.csv": [],
    "none/*.csv": [],
    "a.csv/*": [],
    ".hidden.csv": [".hidden.csv"],
    ".*.csv": [".hidden.csv"],
}


def test_patterns_list_what_they_match_sorted_and_nothing_hidden(place: tuple[Files, Put]) -> None:
    files, put = place
    for name in ("bb.csv", "a.csv", "c.txt", "b[1].csv", "2024/z.csv", "2024/02/y.csv", "2024/02/x.csv", "2024/01/x.csv"):
        put(name, b"12345")
    put(".hidden.csv", b"half of an upl")
    put(".cache/x.csv", b"")
    assert {pattern: names(files.list(pattern)) for pattern in PATTERNS} == PATTERNS
    assert {file.size_bytes for file in files.list("**")} == {5}


def test_a_name_with_wildcards_in_it_can_be_meant_literally(place: tuple[Files, Put]) -> None:
    files, put = place
    for name in ("a*[?].csv", "ab[c].csv"):
        put(name, b"")
    assert names(files.list(as_pattern("a*[?].csv"))) == ["a*[?].csv"]


def test_bytes_come_as_they_are_in_any_portions(place: tuple[Files, Put]) -> None:
    files, put = place
    content = bytes(range(256)) * 9000
    put("d/x.bin", content)
    with files.open("d/x.bin") as stream:
        assert stream.readable()
        parts = [stream.read(1), stream.read(2_000_000), stream.read(), stream.read(5)]
    assert (b"".join(parts), [len(part) for part in parts[:2]]) == (content, [1, 2_000_000])
    assert stream.closed


def test_an_empty_file_is_listed_and_read(place: tuple[Files, Put]) -> None:
    files, put = place
    put("empty", b"")
    (listed,) = files.list("empty")
    with files.open(listed.name, listed.version) as stream:
        assert (listed.size_bytes, stream.read()) == (0, b"")


def test_what_was_listed_is_what_is_opened_or_it_is_told(place: tuple[Files, Put]) -> None:
    files, put = place
    for pattern in ("x.csv", "*.csv"):
        put("x.csv", b"one")
        (before,) = files.list(pattern)
        put("x.csv", b"another")
        (after,) = files.list(pattern)
        assert before.version != after.version
        with files.open("x.csv", after.version) as stream:
            assert stream.read() == b"another"
        try:
            with files.open("x.csv", before.version) as stream:
                assert stream.read() == b"one"  # a place that keeps versions
        except Poison as error:
            assert "changed since it was listed" in str(error)


def test_what_was_listed_and_is_deleted_since_is_gone(place: tuple[Files, Put], request: pytest.FixtureRequest) -> None:
    files, put = place
    put("x.csv", b"one")
    (listed,) = files.list("x.csv")
    if isinstance(files, LocalFiles):
        os.unlink(f"{files.root}/x.csv")
    else:
        request.getfixturevalue("s3").delete_object(Bucket="landing", Key="in/x.csv")
    try:
        with files.open("x.csv", listed.version) as stream:
            assert stream.read() == b"one"  # a place that keeps versions
    except Gone as error:
        assert "is not in" in str(error)
    with pytest.raises(Misconfigured, match="there is no file"):
        files.open("x.csv")


def test_a_file_that_a_message_tells_of_is_opened(place: tuple[Files, Put]) -> None:
    files, put = place
    assert isinstance(files, ToldFiles)
    put("d/ä b+c.csv", b"one")
    key = "d/ä b+c.csv" if isinstance(files, LocalFiles) else "in/d/ä b+c.csv"
    with files.open(files.name_of("landing", key), files.version_of(None, None)) as stream:
        assert stream.read() == b"one"
    with pytest.raises(Gone, match=r"'none\.csv' is not in .* any more"):
        files.open("none.csv", files.version_of(None, None))
    for outside in ("../x", "/etc/passwd", "in/../../x", "", "a\0b"):
        with pytest.raises(Poison, match=r"not a name inside|is not in"):
            files.name_of("landing", outside)


def test_objects_of_elsewhere_are_told_apart() -> None:
    files = S3Files(bucket="landing", prefix="in/")
    for bucket, key in (("landing", "out/x.csv"), ("other", "in/x.csv"), ("other", "s3://other/in/x"), ("landing", "in")):
        with pytest.raises(Poison, match=rf"tells of 's3://{bucket}/{key}', which is not in s3://landing/in/"):
            files.name_of(bucket, key)


def _told(answer: dict[str, Any]) -> tuple[str | None, str]:
    return answer.get("VersionId"), answer["ETag"].strip('"')  # as events have them


def test_an_object_is_read_as_it_was_when_its_event_was_sent(s3: Any, s3_url: str) -> None:
    files = S3Files(bucket="landing", endpoint_url=s3_url)
    put = lambda content: _told(s3.put_object(Bucket="landing", Key="x.csv", Body=content))  # noqa: E731
    first, second = put(b"one"), put(b"another")
    assert files.open("x.csv", files.version_of(*second)).read() == b"another"
    assert files.version_of(None, '"e"') == files.version_of(None, "e") == files.version_of("null", "e")
    with pytest.raises(Poison, match="has changed") as caught:
        files.open("x.csv", files.version_of(*first))
    assert not isinstance(caught.value, Gone)
    s3.delete_object(Bucket="landing", Key="x.csv")
    with pytest.raises(Gone, match=r"'x\.csv' is not in s3://landing/ any more"):
        files.open("x.csv", files.version_of(*second))


def test_a_version_is_read_after_it_was_replaced_and_deleted(s3: Any, s3_url: str) -> None:
    s3.put_bucket_versioning(Bucket="landing", VersioningConfiguration={"Status": "Enabled"})
    files = S3Files(bucket="landing", endpoint_url=s3_url)
    put = lambda content: _told(s3.put_object(Bucket="landing", Key="x.csv", Body=content))  # noqa: E731
    first, second = put(b"one"), put(b"another")
    marker = s3.delete_object(Bucket="landing", Key="x.csv")["VersionId"]
    assert files.open("x.csv", files.version_of(*first)).read() == b"one"
    assert files.open("x.csv", files.version_of(*second)).read() == b"another"
    s3.delete_object(Bucket="landing", Key="x.csv", VersionId=first[0])
    for version in (first[0], marker, "never-there"):
        with pytest.raises(Gone):
            files.open("x.csv", files.version_of(version, None))


def test_a_missing_file_says_what_is_near(place: tuple[Files, Put]) -> None:
    files, put = place
    for name in ("orders_01.csv", "orders_02.csv", "zzz"):
        put(f"d/{name}", b"")
    with pytest.raises(Misconfigured, match=r"no file 'd/orders_03\.csv' in .*there is 'd/orders_0[12]\.csv', 'd/orders_0[12]\.csv'"):
        files.open("d/orders_03.csv")
    with pytest.raises(Misconfigured, match=r"no file 'none/x' in .*there is nothing beside it"):
        files.open("none/x")
    with pytest.raises(Misconfigured, match=r"no file matches '\*\.xml' in "):
        matching(files, "*.xml")


def test_names_that_lead_out_are_refused(place: tuple[Files, Put]) -> None:
    for name in ("../orders.csv", "d/../../orders.csv", "/etc/passwd", "", "a/./b", "a\0b", ".."):
        for attempt in (place[0].list, place[0].open):
            with pytest.raises(Misconfigured, match="is not a name inside"):
                attempt(name)


def test_text_is_read_from_any_place(place: tuple[Files, Put]) -> None:
    files, put = place
    put("1.csv", b"a,b\n1,2\n")
    put("2.csv", b"b,a\n4,3\n")
    runs = list(read_text(files, "*.csv", fields={"a": "a", "b": "b"}))
    assert [row for run in runs for row in run.batch.to_pylist()] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root" / "d").mkdir(parents=True)
    (tmp_path / "secret.csv").write_bytes(b"secret")
    (tmp_path / "root" / "link.csv").symlink_to(tmp_path / "secret.csv")
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    files = LocalFiles(root=str(tmp_path / "root"))
    for attempt in (
        lambda: files.list("*.csv"),
        lambda: files.list("link.csv"),
        lambda: files.open("link.csv"),
        lambda: files.open("up/secret.csv"),
    ):
        with pytest.raises(Misconfigured, match="is a link that leads out of"):
            attempt()
    with pytest.raises(Misconfigured, match="is a link that leads out of"):
        files.list("*/secret.csv")


def test_links_within_the_folder_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.csv").write_bytes(b"x")
    (tmp_path / "current").symlink_to("real")
    (tmp_path / "real" / "loop").symlink_to("..")
    (tmp_path / "gone.csv").symlink_to("nowhere")
    files = LocalFiles(root=str(tmp_path))
    assert names(files.list("current/*.csv")) == ["current/x.csv"]
    assert names(files.list("**/*.csv")) == ["real/x.csv"]


def test_a_root_that_does_not_exist_is_misconfigured(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"folder '.*/none' does not exist"):
        LocalFiles(root=str(tmp_path / "none")).list("*")


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    files = LocalFiles(root=str(tmp_path))
    assert files.list("*") == ()
    for name in ("pipe", "folder"):
        with pytest.raises(Misconfigured, match="there is no file"):
            files.open(name)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", Transient),
        (500, "InternalError", Transient),
        (429, "TooManyRequests", Transient),
        (400, "RequestTimeout", Transient),
        (403, "AccessDenied", Misconfigured),
        (404, "NoSuchBucket", Misconfigured),
        (400, "InvalidRequest", Misconfigured),
    ],
)
def test_what_s3_refuses_is_sorted_by_what_to_do_next(status: int, code: str, kind: type[BusError]) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    with _answering(status, body, len(body)) as url:
        files = S3Files(bucket="landing", endpoint_url=url)
        for attempt in (lambda: files.list("*.csv"), lambda: files.list("x.csv"), lambda: files.open("x.csv")):
            with pytest.raises(kind) as caught:
                attempt()
            assert type(caught.value) is kind
            assert "test-secret" not in str(caught.value)


def test_s3_that_cannot_be_reached_is_transient_and_its_address_is_not_shown() -> None:
    host = ".".join(("127", "0", "0", "1"))  # not as one in the source, which a traceback quotes
    with pytest.raises(Transient, match="S3 did not answer") as caught:
        S3Files(bucket="landing", endpoint_url=f"http://{host}:9").list("x.csv")
    with _hanging_up() as url, pytest.raises(Transient, match="S3 did not answer"):
        S3Files(bucket="landing", endpoint_url=url).open("x.csv")
    with pytest.raises(Misconfigured, match="no S3 client") as no_url:
        S3Files(bucket="landing", endpoint_url=f"{host} : 9").list("x.csv")
    for error in (caught.value, no_url.value):
        assert host not in "".join(traceback.format_exception(error))


def test_without_credentials_s3_is_misconfigured(monkeypatch: pytest.MonkeyPatch, s3_url: str) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(Misconfigured, match="Unable to locate credentials"):
        S3Files(bucket="landing", endpoint_url=s3_url).list("x.csv")


def test_an_object_that_ends_too_early_is_transient_never_a_short_file() -> None:
    with _answering(200, b"a,b\n1,2\n", 1000) as url:
        files = S3Files(bucket="landing", endpoint_url=url)
        with files.open("x.csv") as stream, pytest.raises(Transient, match=r"^x\.csv: the connection broke"):
            stream.read()
        with pytest.raises(Transient):
            list(read_text(files, "x.csv", fields={"a": "a"}))
        with pytest.raises(Transient):
            count_parquet(files, "x.csv")


def _answering(status: int, body: bytes, announced: int) -> "_Server":
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(announced))
            self.send_header("ETag", '"e"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return _Server(("127.0.0.1", 0), Handler)


def _hanging_up() -> "_Server":
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return _Server(("127.0.0.1", 0), Handler)


class _Server(http.server.ThreadingHTTPServer):
    def __enter__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


def test_a_failing_disk_is_transient(tmp_path: Path) -> None:
    """/proc/self/mem opens but cannot be read at its start: the one file everywhere whose reads fail."""
    with io.BufferedReader(_failing()) as stream, pytest.raises(Transient, match=r"reading .* failed: Input/output error"):
        stream.read(10)


def _failing() -> io.RawIOBase:
    from resources.local_files import _LocalFile

    return _LocalFile("/proc/self/mem")
