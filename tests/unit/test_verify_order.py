"""The recount counts no distinct values where keys and row numbers come in ascending order: what repeats must be found all the same."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus_assets.contract import Contract, Field
from bus_assets.verify import ONCE, verify

CONTRACT = Contract(fields=(Field("a", "integer", unique=True), Field("b", "integer")), unique=(("b", "a"),))


def broken(folder, keys, numbers):
    """Violations by rule, of rows in two files."""
    files = []
    for at, part in enumerate((slice(0, 2), slice(2, None))):
        columns = {"a": keys[part], "b": [7] * len(keys[part]), "_bus_row": numbers[part]}
        pq.write_table(pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()}), folder / f"{at}.parquet")
        files.append(str(folder / f"{at}.parquet"))
    with duckdb.connect() as connection:
        figures = verify(connection, files, CONTRACT, {}, picked_up=len(keys), rejected=0)
    return {figure.rule: figure.violations for figure in figures if figure.violations}


@pytest.mark.parametrize(
    "keys", [[1, 2, 3], [3, 1, 2], [1, 2, 2], [2, 1, 2], [1, 1, 2], [1, None, 1], [None, None, 1], [None, 1, None], [1, 2, None, 2]]
)
def test_repeated_keys_are_found_in_whatever_order_they_come(tmp_path, keys):
    there = [key for key in keys if key is not None]
    repeated = len(there) - len(set(there))
    expected = {"a: unique": repeated, "b, a: unique": repeated} if repeated else {}
    assert broken(tmp_path, keys, list(range(1, len(keys) + 1))) == expected


@pytest.mark.parametrize(("numbers", "wrong"), [([1, 2, 3], 0), ([2, 3, 1], 0), ([1, 2, 2], 1), ([2, 1, 2], 1), ([1, None, 2], 1)])
def test_row_numbers_that_come_twice_or_not_at_all_are_found(tmp_path, numbers, wrong):
    assert broken(tmp_path, [1, 2, 3], numbers) == ({ONCE: wrong} if wrong else {})
