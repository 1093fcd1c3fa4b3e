"""Rows aboard: what a stop staged, read lazily."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bus_assets.contract import Contract
from bus_assets.duck import duck

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

    from resources.staging import Manifest, Staging

ROW = "_bus_row"
"""int64, from 1: a row's identity in its trip. Kept by transforms that keep the grain."""
INDEX = "bus row"
"""The name of the index of a transform's frame: as long as it is there, rows can be told apart."""
ORIGIN, POSITION = "_bus_origin", "_bus_position"
"""Where a picked-up row came from: a file, page or query, and the line, element, record or row in it."""

MESSAGE = "_bus_message"
"""int64: the depot's number of the message that a row belongs to, on queue routes."""


@dataclass(frozen=True)
class Passengers:
    """The rows that a stop keeps, immutable. Nothing is read before it is asked for, and no more than a batch at a time.

    ``message``: only the rows of this one; ``len()`` is the stop's all the same.
    """

    stop: str
    contract: Contract
    manifest: Manifest
    staging: Staging
    message: int | None = None

    def __len__(self) -> int:
        return self.manifest.rows

    def of_message(self, message: int) -> Passengers:
        return replace(self, message=message)

    def batches(self, columns: tuple[str, ...] | None = None) -> Iterator[pa.RecordBatch]:
        """Arrow batches in row order; the bytes are checked against their digests (:class:`~resources.errors.Refused`)."""
        from resources.staging import read_batches

        if self.message is None:
            return read_batches(self.staging, self.manifest, columns=list(columns) if columns else None)
        return self._of_message(columns)

    def _of_message(self, columns: tuple[str, ...] | None) -> Iterator[pa.RecordBatch]:
        import pyarrow.compute as pc

        from resources.staging import read_batches

        wanted = None if columns is None else list(dict.fromkeys((*columns, MESSAGE)))
        for batch in read_batches(self.staging, self.manifest, columns=wanted):
            found = batch.filter(pc.equal(batch.column(MESSAGE), self.message))  # pyright: ignore[reportAttributeAccessIssue]
            yield found if columns is None else found.select(list(columns))

    def messages(self) -> tuple[int, ...]:
        """The messages that these rows belong to, in ascending order; for a stop whose rows have one."""
        paths = self.paths()
        if not paths:
            return ()
        with duck() as connection:
            query = f"SELECT DISTINCT {MESSAGE} FROM read_parquet({literals(paths)}) WHERE {MESSAGE} IS NOT NULL ORDER BY 1"  # noqa: S608
            return tuple(number for (number,) in connection.execute(query).fetchall())

    def places(self, rows: Iterable[int]) -> dict[int, tuple[str | None, int | None]]:
        """Where ``rows`` (their :data:`ROW`) were picked up: origin and position, of those that are there. For a pick-up's stop."""
        import pyarrow as pa

        wanted = f"SELECT {ROW}, CAST({ORIGIN} AS VARCHAR), {POSITION} FROM read_parquet({literals(self.paths())})"  # noqa: S608
        with duck() as connection:
            connection.register("wanted", pa.table({ROW: pa.array(rows, pa.int64())}))
            found = connection.execute(f"{wanted} SEMI JOIN wanted USING ({ROW})").fetchall()
        return {row: (origin, position) for row, origin, position in found}

    def to_arrow(self, columns: tuple[str, ...] | None = None) -> pa.Table:
        import pyarrow as pa

        return pa.Table.from_batches(list(self.batches(columns)))

    def to_pandas(self, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
        """All rows as one frame; with :data:`ROW` among the columns (the default), that is the index too."""
        return frame(self.to_arrow(columns))

    def paths(self) -> list[str]:
        """Local paths of the staged Parquet files, for DuckDB."""
        return [str(self.staging.local(file.path)) for file in self.manifest.files]

    def view(self, connection: duckdb.DuckDBPyConnection, *, with_row: bool = False) -> None:
        """Make the rows known to ``connection`` under the stop's name."""
        columns = ", ".join(quoted(name) for name in (*self.contract.names, *((ROW,) if with_row else ())))
        where = "" if self.message is None else f" WHERE {MESSAGE} = {int(self.message)}"
        connection.execute(f"CREATE TEMP VIEW {quoted(self.stop)} AS SELECT {columns} FROM read_parquet({literals(self.paths())}){where}")  # noqa: S608


def frame(table: pa.Table | pa.RecordBatch) -> pd.DataFrame:
    """Rows as pandas: nullable types kept (Int64, Arrow strings), the identity both index and column."""
    import pandas as pd

    made: pd.DataFrame = table.to_pandas(types_mapper=_nullable, date_as_object=True)
    if ROW in made.columns:
        made.index = pd.Index(made[ROW].to_numpy(), name=INDEX)
    return made


def _nullable(kind: pa.DataType) -> object | None:
    """pandas' own nullable type where the plain one would turn whole numbers or booleans with nulls into floats or objects."""
    import pandas as pd
    import pyarrow as pa

    return {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.string(): pd.StringDtype()}.get(kind)


def quoted(identifier: str) -> str:
    """``identifier`` as SQL: in double quotes, its own doubled."""
    return '"' + identifier.replace('"', '""') + '"'


def literals(texts: list[str]) -> str:
    """A DuckDB list of texts; for file paths, which cannot be bound in a view."""
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"
