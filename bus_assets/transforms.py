"""Run a transform: SQL in DuckDB, or a function on pandas or Arrow; one Arrow batch after the other comes out."""

from __future__ import annotations

import inspect
import os
import re
import traceback
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from decimal import InvalidOperation
from typing import Any

import pyarrow as pa

from bus_assets.duck import disk_full, duck
from bus_assets.passengers import INDEX, MESSAGE, ROW, Passengers, frame, quoted
from bus_assets.sql import carrying, casts
from bus_assets.stops import Transform
from resources.errors import BusError, Misconfigured, Poison

BATCH_ROWS = 65_536
_NOT_SHOWN = "the text is not shown, as rows here hold sensitive fields"
_UNREAD = ("Conversion Error", "Invalid Input Error: Could not parse")
"""What DuckDB's texts about a value that does not read begin with, also where Arrow passes them on."""
_SO_WAITS = "null where a value does not read, and a field with required=True then sends that row to quarantine"
_TRY_CAST = f"; TRY_CAST instead of CAST, and try_strptime, give {_SO_WAITS}"
_WORDED = ("time with time zone", "uhugeint", "bignum")
"""DuckDB's types that come into Arrow without their offset, as a negative number, or as DuckDB's own bytes."""
_COERCE = f"; pandas.to_numeric and to_datetime with errors='coerce' give {_SO_WAITS}"


def run_transform(
    stop: Transform, inputs: Sequence[Passengers], parameters: Mapping[str, Any], *, alone: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield the transform's rows with the contract's columns as far as there are any, and :data:`ROW` where the grain is kept.

    ``alone``: stops, the first input among them; once for each message of that, on the rows that it has in these. Then what comes
    out has the column :data:`MESSAGE`.
    Raises :class:`Poison` for what the author's code raised, and for missing columns or lost identity, which may be what it makes of some
    rows only: ``alone`` it names the message.
    """
    if alone:
        yield from _one_by_one(stop, inputs, parameters, alone)
        return
    made = _run_sql(stop, inputs) if stop.is_sql else _run_function(stop, inputs, parameters)
    for batch in made:
        yield _with_contract(stop, batch)


def _one_by_one(
    stop: Transform, inputs: Sequence[Passengers], parameters: Mapping[str, Any], alone: Collection[str]
) -> Iterator[pa.RecordBatch]:
    for message in inputs[0].messages():
        its = [passengers.of_message(message) if passengers.stop in alone else passengers for passengers in inputs]
        try:
            for batch in run_transform(stop, its, parameters):
                yield batch.append_column(MESSAGE, pa.repeat(pa.scalar(message, pa.int64()), batch.num_rows))
        except Poison as error:
            error.culprit = message
            raise


def _run_sql(stop: Transform, inputs: Sequence[Passengers]) -> Iterator[pa.RecordBatch]:
    import duckdb

    assert isinstance(stop.how, str)
    keeps = stop.grain == "kept"
    sql = carrying(stop.how, inputs[0].stop, ROW) if keeps else stop.how
    with duck() as connection:
        for number, passengers in enumerate(inputs):
            passengers.view(connection, with_row=keeps and number == 0)
        try:
            yield from _in_arrow(stop, connection.sql(sql)).to_arrow_reader(BATCH_ROWS)
        except (duckdb.Error, pa.ArrowException, OSError) as error:  # after the first batch it is Arrow that tells of DuckDB's error
            failed = disk_full(error) or Poison(f"its SQL failed: {_sql_problem(stop, inputs, error)}")
            raise failed from _cause(stop, inputs, error)


def _in_arrow(stop: Transform, made: Any) -> Any:
    """DuckDB's relation ``made`` with text where Arrow would get other values than there are."""
    kinds = [_in_words(kind, name) if name in stop.contract else None for name, kind in zip(made.columns, made.types, strict=True)]
    if not any(kinds):
        return made
    numbered = [f"c{number}" for number in range(len(kinds))]  # names may be there twice, which the gate tells
    given = [f"CAST({column} AS {kind})" if kind else column for column, kind in zip(numbered, kinds, strict=True)]
    columns = ", ".join(f"{value} AS {quoted(name)}" for value, name in zip(given, made.columns, strict=True))
    return made.query("_bus_made", f"SELECT {columns} FROM _bus_made AS _bus_made({', '.join(numbered)})")  # noqa: S608 - identifiers are quoted


def _in_words(kind: Any, name: str) -> str | None:
    """The type with text in place of what Arrow has no type for, None without any; :class:`Misconfigured` where text would say less."""
    if kind.id in ("list", "array"):
        items = _in_words(kind.children[0][1], name)
        return f"{items}[]" if items else None
    if kind.id == "struct":
        members = [(member, inner, _in_words(inner, name)) for member, inner in kind.children]
        changed = any(words for _, _, words in members)
        return f"STRUCT({', '.join(f'{quoted(member)} {words or inner}' for member, inner, words in members)})" if changed else None
    if kind.id in ("bit", "union"):  # Arrow has DuckDB's own bytes of the one, and ends the process at some of the other
        raise Misconfigured(f"column '{name}' holds DuckDB's type {kind}, which no field takes; CAST({quoted(name)} AS VARCHAR) gives text")
    return "VARCHAR" if kind.id in _WORDED else None


def _run_function(stop: Transform, inputs: Sequence[Passengers], parameters: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    assert callable(stop.how)
    forms = _forms(stop.how, len(inputs))
    given = [_as(form, passengers, first=passengers is inputs[0]) for form, passengers in zip(forms, inputs, strict=True)]
    keywords = {"params": dict(parameters)} if "params" in inspect.signature(stop.how).parameters else {}
    name = getattr(stop.how, "__name__", "function")
    try:
        made = stop.how(*given, **keywords)
        results = made if inspect.isgenerator(made) or isinstance(made, Iterator) else iter([made])
        for result in results:
            yield from _batches(stop, name, result)
    except BusError:
        raise
    except SystemExit as error:
        if _is_sensitive(stop, inputs) and isinstance(error.code, str):  # Dagster would log it
            raise SystemExit(1) from None
        raise
    except Exception as error:  # the author's code may raise anything; it is told where, and not swallowed
        said = _NOT_SHOWN if _is_sensitive(stop, inputs) else _first_line(error)
        said += _line_of(stop.how, error) + (_COERCE if isinstance(error, (ValueError, InvalidOperation)) else "")
        raise Poison(f"{name}() raised {type(error).__name__}: {said}") from _cause(stop, inputs, error)


def _cause(stop: Transform, inputs: Sequence[Passengers], error: Exception) -> Exception | None:
    return None if _is_sensitive(stop, inputs) else error


def _is_sensitive(stop: Transform, inputs: Sequence[Passengers]) -> bool:
    return bool(stop.contract.sensitive.union(*(passengers.contract.sensitive for passengers in inputs)))


def _sql_problem(stop: Transform, inputs: Sequence[Passengers], error: Exception) -> str:
    """What DuckDB says; without its text, which may quote a sensitive value, the column or the casts of the author's that it is about."""
    unread = str(error).startswith(_UNREAD)
    said = _first_line(error)
    if _is_sensitive(stop, inputs):
        said = f"{type(error).__name__}{_cast_of(stop, inputs, error) if unread else ''}; {_NOT_SHOWN}"
    return said + (_TRY_CAST if unread else "")


def _cast_of(stop: Transform, inputs: Sequence[Passengers], error: Exception) -> str:
    """The column that DuckDB names last, if there is one of that name, else the casts in the SQL: nothing that comes from a row."""
    assert isinstance(stop.how, str)
    named = re.findall(r" when casting from source column (\w+)", str(error).partition("\nLINE ")[0])
    if named and any(named[-1] in passengers.contract for passengers in inputs):
        return f" of column '{named[-1]}'"
    found = casts(stop.how)
    return f" in {' or '.join(found)}" if found else ""


def _line_of(how: Callable[..., Any], error: Exception) -> str:
    """Where in the file of the author's function it was raised, and what stands there."""
    own = getattr(getattr(inspect.unwrap(how), "__code__", None), "co_filename", None)
    line = next((frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.filename == own), None)
    return f" (line {line.lineno} of {os.path.basename(line.filename)}: {line.line or '':.120})" if line else ""


def _forms(function: Callable[..., Any], count: int) -> list[str]:
    """'pandas', 'batches' or 'arrow' for each argument, as its annotation says; pandas where there is none."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = dict(getattr(function, "__annotations__", {}))
    names = [name for name in inspect.signature(function).parameters if name != "params"][:count]
    return [_form(str(hints.get(name, ""))) for name in names]


def _form(annotation: str) -> str:
    if "Iterator" in annotation or "Iterable" in annotation:
        return "arrow batches" if "RecordBatch" in annotation or "pyarrow" in annotation else "batches"
    if "Table" in annotation:
        return "arrow"
    return "passengers" if "Passengers" in annotation else "pandas"


def _as(form: str, passengers: Passengers, *, first: bool) -> Any:
    """Only the first stop's rows carry the identity: two columns of one name would get suffixes in a merge."""
    columns = (*passengers.contract.names, *((ROW,) if first else ()))
    if form == "batches":
        return (frame(batch) for batch in passengers.batches(columns))
    if form == "arrow batches":
        return passengers.batches(columns)
    if form == "arrow":
        return passengers.to_arrow(columns)
    return passengers if form == "passengers" else passengers.to_pandas(columns)


def _batches(stop: Transform, name: str, result: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(result, pa.RecordBatch):
        yield result
    elif isinstance(result, pa.Table):
        yield from result.to_batches(BATCH_ROWS)
    elif hasattr(result, "columns") and hasattr(result, "index"):
        yield from _from_frame(stop, result).to_batches(BATCH_ROWS)
    elif result is None:
        raise Poison(f"{name}() returned nothing; it must return a frame with {', '.join(stop.contract.names)}")
    else:
        raise Poison(f"{name}() returned a {type(result).__name__}; expected a pandas.DataFrame or a pyarrow.Table")


def _from_frame(stop: Transform, made: Any) -> pa.Table:
    """A pandas result as Arrow, its identity taken from the index where the column was not carried along."""
    from bus_assets.objects import arrow_column

    if made.columns.duplicated().any():
        twice = sorted({str(name) for name in made.columns[made.columns.duplicated()]})
        raise Poison(f"its function returned column {', '.join(twice)} more than once")
    if stop.grain == "kept" and ROW not in made.columns:
        if made.index.name != INDEX:
            raise Poison(
                "its function's rows cannot be told apart any more (a merge or reset_index made a new index): carry the column "
                f"'{ROW}' along or keep the index, or declare grain='changed' if rows are filtered, multiplied or aggregated"
            )
        made = made.assign(**{ROW: made.index})
    wanted = [name for name in (*stop.contract.names, ROW) if name in made.columns]
    ids = {ROW: pa.array(made[ROW], type=pa.int64(), from_pandas=True)} if ROW in wanted else {}
    return pa.table({name: arrow_column(made[name], name) for name in wanted if name != ROW} | ids)


def _with_contract(stop: Transform, batch: pa.RecordBatch) -> pa.RecordBatch:
    missing = [name for name in stop.contract.names if name not in batch.schema.names]
    if missing:
        raise Poison(
            f"it returned no column {', '.join(missing)}, which its contract promises; "
            f"it returned {', '.join(batch.schema.names) or 'none'}"
        )
    if stop.grain == "kept" and ROW not in batch.schema.names:
        raise Poison(f"it returned no column '{ROW}', so rows cannot be told apart; carry it along, or declare grain='changed'")
    names = [*stop.contract.names, ROW] if stop.grain == "kept" else list(stop.contract.names)
    return batch.select(names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
