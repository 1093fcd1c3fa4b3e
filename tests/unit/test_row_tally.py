"""Every row of a transform's first input comes out exactly once, or it is told: held against a plain count, for any order and batching."""

from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from bus_assets.tally import RowTally


class Aboard:
    """Stands for the rows of a stop: ids 1 to n, in batches of some size."""

    def __init__(self, count, size):
        self.ids = list(range(1, count + 1))
        self.size = size

    def __len__(self):
        return len(self.ids)

    def batches(self, columns):
        assert columns == ("_bus_row",)
        for at in range(0, max(len(self.ids), 1), self.size):
            yield SimpleNamespace(column=lambda name, at=at: pa.array(self.ids[at : at + self.size], pa.int64()))


@st.composite
def outcomes(draw):
    """Ids that went in, and ids that came out: most often a true permutation, else with losses, doubles and inventions."""
    count = draw(st.integers(0, 30))
    out = list(range(1, count + 1))
    if draw(st.booleans()):
        out = draw(st.permutations(out))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(out)))
        out = draw(st.sampled_from([out[:at] + out[at + 1 :], out[:at] + out[:1] + out[at:], [*out, count + 5], out]))
    return count, out


@given(outcomes(), st.integers(1, 7), st.integers(1, 7))
def test_a_problem_is_told_exactly_when_there_is_one(outcome, size_in, size_out):
    count, out = outcome
    tally = RowTally(Aboard(count, size_in))
    for at in range(0, len(out), size_out):
        tally.add(pa.array(out[at : at + size_out], pa.int64()))
    is_whole = Counter(out) == Counter(range(1, count + 1))
    problem = tally.problem("stop")
    assert (problem is None) == is_whole, problem
