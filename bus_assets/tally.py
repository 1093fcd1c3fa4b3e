"""Whether a transform that keeps the grain let every row through, once."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute

from bus_assets.passengers import ROW, Passengers

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them


class RowTally:
    """Does every row of the first input come out exactly once? Compared in step while the order holds, by counting after."""

    def __init__(self, first: Passengers):
        self._first = first
        self._expected = (batch.column(ROW) for batch in first.batches((ROW,)))
        self._buffer = pa.array([], pa.int64())
        self._in_step = True
        self._spill: list[pa.Array] = []
        self.rows = 0

    def add(self, ids: pa.Int64Array) -> None:
        self.rows += len(ids)
        if self._in_step:
            while len(self._buffer) < len(ids) and (more := next(self._expected, None)) is not None:
                self._buffer = pa.concat_arrays([self._buffer, more])
            if self._buffer.slice(0, len(ids)).equals(ids):
                self._buffer = self._buffer.slice(len(ids))
                return
            self._in_step = False
            before = self.rows - len(ids)
            self._spill = [batch.column(ROW) for batch in self._first.batches((ROW,))]
            self._spill = [pa.concat_arrays(self._spill).slice(0, before)] if before else []
        self._spill.append(ids)

    def problem(self, stop: str) -> str | None:
        """One sentence if rows were lost, made up or multiplied, else None."""
        if self._in_step and self.rows == len(self._first):
            return None
        came = pc.value_counts(pa.concat_arrays(self._spill)) if not self._in_step else None
        went = (
            pa.concat_arrays([batch.column(ROW) for batch in self._first.batches((ROW,))]) if len(self._first) else pa.array([], pa.int64())
        )
        advice = "declare grain='changed' if that is meant"
        if came is None:
            return f"{len(self._first) - self.rows} of {len(self._first)} rows did not come out; {advice}"
        values, counts = came.field("values"), came.field("counts")
        many = pc.sum(pc.cast(pc.greater(counts, 1), pa.int64())).as_py() or 0
        if many:
            row = values.filter(pc.greater(counts, 1))[0].as_py()
            return f"{many} rows came out more than once (row {row}, say: does a join find several partners?); {advice}"
        if values.null_count or len(values.filter(pc.invert(pc.is_in(values, value_set=went)))):
            return f"rows came out that were never aboard ('{ROW}' was changed); carry it along untouched, or {advice}"
        lost = len(went) - len(values)
        return f"{lost} of {len(went)} rows did not come out (a filter, or an inner join without a partner?); {advice}" if lost else None
