"""The writer's own thread: what it meets reaches the caller, and the layout of files does not depend on who is faster."""

import contextlib
import threading
import time

import pyarrow as pa
import pytest

from resources.errors import Refused, Transient
from resources.staging import LocalStaging, StagedWriter, read_batches
from resources.staging import parquet as parquet_module

SCHEMA = pa.schema([("n", pa.int64())])


def batch(first: int, rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(range(first, first + rows), pa.int64())], schema=SCHEMA)


class FullOnce(LocalStaging):
    """A disk that has no room for the second file, and has again afterwards."""

    files = 0

    def write(self, path, content):
        self.files += 1
        if self.files == 2:
            raise Transient("the disk is full", place=path)
        return super().write(path, content)


class Slow(LocalStaging):
    def write(self, path, content):
        time.sleep(0.02)
        return super().write(path, content)


def test_an_error_while_a_file_is_stored_reaches_the_caller_and_there_is_no_manifest(tmp_path):
    writer = StagedWriter(FullOnce(tmp_path), "trip/stop", SCHEMA, rows_per_file=10)
    with pytest.raises(Transient, match="full"), writer:
        for first in range(0, 100, 10):
            writer.write(batch(first, 10))
    with pytest.raises(Refused):
        _ = writer.manifest


def test_an_error_in_the_very_last_group_reaches_the_caller(tmp_path):
    with pytest.raises(Transient), StagedWriter(FullOnce(tmp_path), "trip/stop", SCHEMA, rows_per_file=10) as writer:
        writer.write(batch(0, 20))


@pytest.mark.parametrize("staging", [LocalStaging, Slow])
@pytest.mark.parametrize("size", [1, 7, 10, 100])
def test_files_have_the_rows_they_should_whoever_is_faster(tmp_path, staging, size):
    area = staging(tmp_path)
    with StagedWriter(area, "trip/stop", SCHEMA, rows_per_file=10) as writer:
        for first in range(0, 100, size):
            writer.write(batch(first, min(size, 100 - first)))
    assert [file.rows for file in writer.manifest.files] == [10] * 10
    assert [n for part in read_batches(area, writer.manifest) for n in part.column("n").to_pylist()] == list(range(100))


def test_files_that_grow_too_big_end_early_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "BYTES_PER_FILE", 500)
    monkeypatch.setattr(parquet_module, "ROWS_PER_GROUP", 50)
    area = Slow(tmp_path)
    with StagedWriter(area, "trip/stop", SCHEMA, rows_per_file=1_000) as writer:
        for first in range(0, 1_000, 30):
            writer.write(batch(first, min(30, 1_000 - first)))
    assert len(writer.manifest.files) > 1
    assert writer.manifest.rows == 1_000
    assert [n for part in read_batches(area, writer.manifest) for n in part.column("n").to_pylist()] == list(range(1_000))


@pytest.mark.parametrize("fails", [False, True])
def test_no_thread_is_left_behind(tmp_path, fails):
    def work():
        with StagedWriter(LocalStaging(tmp_path), "trip/stop", SCHEMA, rows_per_file=10) as writer:
            writer.write(batch(0, 50))
            if fails:
                raise Transient("the source went away")

    with contextlib.suppress(Transient):
        work()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bus-staging")]
