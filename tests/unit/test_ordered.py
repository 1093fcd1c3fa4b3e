"""Keys in ascending order are unique without a look at them: what ends the order, and that a duplicate always does."""

import datetime as dt
from decimal import Decimal
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus_assets.contract import Contract, Field
from bus_assets.cross_rows import InOrder
from resources.ordered import Ascending


def holds(*parts):
    ascending = Ascending()
    for part in parts:
        ascending.add([pa.array(values) for values in part])
    return ascending.holds


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "é", "🚌"],
        ["", "a", "aa"],
        [-1, 0, 7],
        [Decimal("1.00"), Decimal("1.01")],
        [dt.date(2024, 1, 1), dt.date(2024, 1, 2)],
        [0.5, 1.5],
    ],
)
def test_it_holds_within_and_across_batches(values):
    assert holds([values])
    assert holds(*([[value]] for value in values))
    assert holds([values[:1]], [values[1:]])


@pytest.mark.parametrize("again", [[1, 2, 2], [1, 2, 1], [1, None, 2], [None], [2, 1, 3]])
def test_a_repeated_a_smaller_and_a_missing_key_end_it_for_good(again):
    assert not holds([pa.array(again, pa.int64())])
    assert not holds(*([pa.array([value], pa.int64())] for value in again))
    assert not holds([pa.array(again, pa.int64())], [[10, 11]])


def test_an_empty_batch_changes_nothing():
    assert holds([pa.array([], pa.int64())], [[1]], [pa.array([], pa.int64())], [[2]])
    assert not holds([[1]], [pa.array([], pa.int64())], [[1]])


def test_in_a_key_of_several_columns_the_first_that_differs_decides():
    assert holds([["a", "a", "b"], [1, 2, 1]])
    assert holds([["a"], [2]], [["b"], [1]])
    assert not holds([["a", "a"], [1, 1]])
    assert not holds([["a"], [1]], [["a"], [1]])
    assert not holds([["a", "b"], [1, None]])


@given(st.lists(st.lists(st.tuples(st.sampled_from(["", "a", "b", None]), st.sampled_from([1, 2, None])), max_size=4), max_size=4))
def test_where_it_holds_no_key_is_there_twice(parts):
    ascending = Ascending()
    for part in parts:
        ascending.add([pa.array([a for a, _ in part], pa.string()), pa.array([b for _, b in part], pa.int64())])
    keys = [key for part in parts for key in part]
    whole = [key for key in keys if None not in key]
    assert ascending.holds == (whole == keys and all(one < other for one, other in pairwise(whole)))


def test_each_key_of_a_contract_is_followed_apart_from_the_others():
    contract = Contract(
        (Field("a", "integer", unique=True), Field("b", unique=True), Field("c", "boolean", unique=True)), unique=(("b", "a"),)
    )
    order = InOrder(contract)
    assert order.keys == {("a",), ("b",), ("b", "a")}, "booleans are not compared"
    order.add(pa.RecordBatch.from_pydict({"a": [2, 1], "b": ["x", "y"], "c": [True, False]}))
    assert order.keys == {("b",), ("b", "a")}
