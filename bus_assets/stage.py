"""Take a stop's rows through its gate into staging, and record the verdict that names the exact bytes.

Row by row in Arrow (:mod:`bus_assets.gate`), across rows in DuckDB, then every rule once more from the staged rows
(:mod:`bus_assets.verify`), which shares no code with the splitter. What is rejected goes to quarantine in the transaction that
records the verdict.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute

from bus_assets.contract import Contract
from bus_assets.cross_rows import InOrder, Violations
from bus_assets.duck import disk_full, duck
from bus_assets.gate import cross_row, split
from bus_assets.passengers import MESSAGE, ORIGIN, POSITION, ROW, Passengers
from bus_assets.rejects import RejectSpool, payloads
from bus_assets.stops import Check
from bus_assets.tally import RowTally
from bus_assets.trial import counting
from bus_assets.verify import Figure, verify
from resources.depot.entries import QuarantinedRow, Reason
from resources.errors import ChecksFailed, Misconfigured
from resources.records import Records, Unreadable
from resources.staging import Manifest, StagedWriter, Staging, read_schema

pc: Any = pyarrow.compute  # its functions are made at import; no type checker knows them

EXAMPLES_OF_A_FAILED_STOP = 1_000
"""A stop that fails is driven again, so its rows are still in the source: this many are kept as examples, not all of them."""


@dataclass(frozen=True)
class Findings:
    """What came of staging one stop. ``unread``: columns of the source that no field takes."""

    manifest: Manifest
    picked_up: int
    kept: int
    rejected: int
    figures: tuple[Figure, ...]
    reasons: Mapping[str, int]
    check_failures: Mapping[str, int]
    problems: tuple[str, ...]
    unread: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass
class Stager:
    """Stages one stop once. ``progress`` is called with the rows so far after each batch, and may raise to stop. ``spool`` takes the
    rejected rows; it is the caller's to close. ``placed`` gives rejected rows the place in the source that is theirs, if any.

    ``of_messages``: every row belongs to a message. Then keys are unique within a message, and ``max_rejected`` is judged per
    message: of one that breaks it no row is kept, the others go on. (Which messages share a trip is chance, and decides nothing.)
    """

    stop: str
    contract: Contract
    staging: Staging
    prefix: str
    references: Mapping[str, Any]
    progress: Callable[[int], None]
    spool: RejectSpool
    of_messages: bool = False
    placed: Callable[[Iterable[QuarantinedRow]], Iterable[QuarantinedRow]] = iter
    _unit: str | None = None
    _came: Counter[int] = field(default_factory=Counter)
    _spoiled: set[int] = field(default_factory=set)
    _unread: dict[str, None] = field(default_factory=dict)
    _in_order: InOrder = field(init=False)

    def __post_init__(self) -> None:
        self._in_order = InOrder(self.contract)

    def records(self, runs: Iterable[Records]) -> Findings:
        """Stage what a source gave; rows are numbered in source order, unreadable records included."""
        writer = StagedWriter(self.staging, f"{self.prefix}/rows", self._schema(with_place=True))
        seen = 0
        with writer:
            for run in runs:
                if not isinstance(run, Records):
                    raise Misconfigured(f"the source gave a {type(run).__name__}; each thing that it yields is a resources.records.Records")
                self._unit = run.unit if run.batch.num_rows else self._unit
                ids = _numbers(seen + 1, run.batch.num_rows)
                self._unreadable(run, seen)
                kept, index = self._split(run.batch, ids, run.messages, run)
                place = (run.origin, _taken(run.positions, index))
                messages = _taken(run.messages, index) if self.of_messages and run.messages is not None else None
                writer.write(_with(kept, _taken(ids, index), place, messages))
                seen += run.batch.num_rows + len(run.unreadable)
                self._count(run.messages, run.unreadable)
                self._spoiled |= run.spoiled
                self._unread |= dict.fromkeys(run.unread)
                self.progress(seen)
        return self._judged(writer.manifest, seen)

    def rows(
        self,
        batches: Iterable[pa.RecordBatch],
        *,
        keeps_grain: bool,
        inputs: Sequence[Passengers],
        message_of: Callable[[pa.Int64Array], pa.Int64Array] | None = None,
    ) -> Findings:
        """Stage what a transform made. Where the grain is kept, exactly the rows of the first input must come out.

        ``message_of`` tells which messages rows belong to, by their identity; else the batches have a column :data:`MESSAGE`, if any.
        """
        writer = StagedWriter(self.staging, f"{self.prefix}/rows", self._schema(with_place=False))
        seen = 0
        tally = RowTally(inputs[0]) if keeps_grain else None
        with writer:
            for batch in batches:
                ids = batch.column(ROW).cast(pa.int64()) if keeps_grain else _numbers(seen + 1, batch.num_rows)
                messages = self._messages(batch, ids, message_of)
                kept, index = self._split(batch, ids, messages, None)
                writer.write(_with(kept, _taken(ids, index), None, None if messages is None else _taken(messages, index)))
                seen += batch.num_rows
                self._count(messages)
                if tally:
                    tally.add(ids)
                self.progress(seen)
        lost = tally.problem(self.stop) if tally else None
        return self._judged(writer.manifest, seen, *([lost] if lost else []))

    def _schema(self, *, with_place: bool) -> pa.Schema:
        fields = [pa.field(f.name, f.parsed_type.arrow()) for f in self.contract.fields] + [pa.field(ROW, pa.int64())]
        if with_place:
            fields += [pa.field(ORIGIN, pa.string()), pa.field(POSITION, pa.int64())]
        if self.of_messages:
            fields.append(pa.field(MESSAGE, pa.int64()))
        return pa.schema(fields)

    def _messages(
        self, batch: pa.RecordBatch, ids: pa.Int64Array, message_of: Callable[[pa.Int64Array], pa.Int64Array] | None
    ) -> pa.Int64Array | None:
        if not self.of_messages:
            return None
        return message_of(ids) if message_of else batch.column(MESSAGE)

    def _count(self, messages: pa.Int64Array | None, unreadable: Sequence[Unreadable] = ()) -> None:
        """How many rows came of each message."""
        if messages is not None:
            self._came.update({found["values"]: found["counts"] for found in pc.value_counts(messages).to_pylist()})
        self._came.update(record.message for record in unreadable if record.message is not None)

    def _split(
        self, batch: pa.RecordBatch, ids: pa.Int64Array, messages: pa.Int64Array | None, run: Records | None
    ) -> tuple[pa.RecordBatch, pa.Int64Array]:
        astray = run.astray if run else {}
        done = split(batch, self.contract, run.nested if run else None, astray)
        self._in_order.add(done.kept)
        if done.rejected:
            at = pa.array([rejected.index for rejected in done.rejected], pa.int64())
            numbers = ids.take(at).to_pylist()
            positions = run.positions.take(at).to_pylist() if run else [None] * len(numbers)
            of = messages.take(at).to_pylist() if messages is not None else [None] * len(numbers)
            origin, unit = (run.origin, run.unit) if run else (None, None)
            for rejected, number, position, message, payload in zip(
                done.rejected, numbers, positions, of, payloads(batch.take(at), self.contract), strict=True
            ):
                reasons = tuple(Reason(reason.rule, reason.message) for reason in rejected.reasons)
                for name, rows in astray.items():
                    if rejected.index in rows:
                        payload.pop(name, None)  # it was not read: with the null, a release would take it for one
                self.spool.add(QuarantinedRow(str(number), origin, unit, position, reasons, payload, message=message))
        return done.kept, done.kept_index

    def _unreadable(self, run: Records, seen: int) -> None:
        for number, record in enumerate(run.unreadable, seen + run.batch.num_rows + 1):
            reason = Reason("readable", record.reason)
            self.spool.add(
                QuarantinedRow(str(number), run.origin, run.unit, record.position, (reason,), {"": record.raw}, message=record.message)
            )

    def _judged(self, manifest: Manifest, picked_up: int, *problems: str) -> Findings:
        with duck() as connection:
            manifest = self._across_rows(connection, manifest)
            manifest = self._whole_messages(manifest)
            rejected, within = self.spool.rows, MESSAGE if self.of_messages else None
            figures = verify(
                connection, self._paths(manifest), self.contract, self.references, picked_up=picked_up, rejected=rejected, within=within
            )
        found = [*problems, *([] if self.of_messages else self._too_many(rejected, picked_up))]
        if manifest.rows < self.contract.min_rows:
            found.append(f"{manifest.rows} rows passed, but the contract asks for at least {self.contract.min_rows}")
        if not problems:  # of rows that came twice, keys break by that alone
            found += [
                f"{figure.violations} staged rows break '{figure.rule}', though the gate let them pass"
                for figure in figures
                if figure.violations
            ]
        reasons, unread = dict(self.spool.reasons), tuple(self._unread)
        return Findings(manifest, picked_up, manifest.rows, rejected, tuple(figures), reasons, {}, tuple(found), unread)

    def _too_many(self, rejected: int, picked_up: int) -> list[str]:
        if self.contract.allows(rejected, picked_up):
            return []
        most = sorted(self.spool.reasons.items(), key=lambda entry: -entry[1])[:3]
        example = next(iter(self.placed(itertools.islice(self.spool, 1))), None)
        at = (
            f"; first: {example.origin}, {example.unit} {example.position}: {example.reasons[0].message}"
            if example and example.origin
            else ""
        )
        if example and not example.origin:
            at = f"; first: row {example.row_id}: {example.reasons[0].message}"
        return [
            f"{rejected} of {picked_up} rows were rejected, more than max_rejected ({self._limit()}): "
            + ", ".join(f"{r} ×{n}" for r, n in most)
            + at
        ]

    def _limit(self) -> str:
        limit = self.contract.max_rejected
        return f"{limit * 100:g} %" if isinstance(limit, float) else f"{limit}"

    def _paths(self, manifest: Manifest) -> list[str]:
        return [str(self.staging.local(file.path)) for file in manifest.files]

    def _across_rows(self, connection: Any, manifest: Manifest) -> Manifest:
        """Take rows out that break a key or a reference; most often there are none, and the files stay as they are."""
        unique = self._in_order.keys
        if not self.references and unique.issuperset(self.contract.keys):
            return manifest
        known: dict[str, Any] = {"unit": self._unit or "row", "within": MESSAGE if self.of_messages else None, "unique": unique}
        with cross_row(connection, self._paths(manifest), self.contract, self.references, **known) as violations:
            return self._without(manifest, "kept", ROW, partial(_reasons, violations)) if violations else manifest

    def _whole_messages(self, manifest: Manifest) -> Manifest:
        """Take all rows of a message out of which too many were rejected, or which cannot be used."""
        bad: dict[int, tuple[Reason, ...]] = {}
        for message, rejected in self.spool.by_message.items():
            came = self._came[message]
            if message in self._spoiled:
                bad[message] = (Reason("message", "another part of the message cannot be used"),)
            elif rejected < came and not self.contract.allows(rejected, came):
                said = f"{rejected} of the {came} rows of the message were rejected, more than max_rejected ({self._limit()})"
                bad[message] = (Reason("message", said),)
        return self._without(manifest, "whole", MESSAGE, lambda _: bad) if bad else manifest

    def _without(
        self, manifest: Manifest, name: str, column: str, reasons: Callable[[pa.Int64Array], Mapping[int, tuple[Reason, ...]]]
    ) -> Manifest:
        """The rows staged anew, but for those against whose value in ``column`` there are ``reasons``: they go to quarantine with them.

        ``reasons`` is asked batch by batch, with the batch's values.
        """
        writer = StagedWriter(self.staging, f"{self.prefix}/{name}", read_schema(self.staging, manifest))
        with writer:
            for batch in Passengers(self.stop, self.contract, manifest, self.staging).batches():
                bad = reasons(batch.column(column))
                mask = pc.is_in(batch.column(column), value_set=pa.array(sorted(bad), pa.int64()))
                for key, row in self._taken_out(batch.filter(mask), column):
                    self.spool.add(replace(row, reasons=bad[key]))
                writer.write(batch.filter(pc.invert(mask)))
        return writer.manifest

    def _taken_out(self, batch: pa.RecordBatch, column: str) -> Iterator[tuple[int, QuarantinedRow]]:
        def values(name: str) -> list[Any]:
            return batch.column(name).to_pylist() if name in batch.schema.names else [None] * batch.num_rows

        keys = zip(values(column), values(ROW), values(ORIGIN), values(POSITION), values(MESSAGE), strict=True)
        for payload, (key, row, origin, position, message) in zip(payloads(batch, self.contract), keys, strict=True):
            yield key, QuarantinedRow(str(row), origin, self._unit, position, (), payload, message=message)


def _reasons(violations: Violations, rows: pa.Int64Array) -> dict[int, tuple[Reason, ...]]:
    """Why each of ``rows`` that breaks something was rejected."""
    found: dict[int, tuple[Reason, ...]] = {}
    for row, rule, message in violations.of(rows):
        found[row] = (*found.get(row, ()), Reason(rule, message))
    return found


def author_checks(checks: Sequence[Check], passengers: Passengers) -> dict[str, int]:
    """How many rows each check's SELECT finds in the staged rows. Raises :class:`ChecksFailed` for SQL that does not run."""
    import duckdb

    found = {}
    if not checks:
        return found
    with duck() as connection:
        passengers.view(connection)
        for check in checks:
            try:
                counted = connection.execute(counting(check.sql)).fetchone()
            except duckdb.Error as error:
                said = type(error).__name__ if passengers.contract.sensitive else str(error).splitlines()[0]
                raise disk_full(error) or ChecksFailed(f"check '{check.name}' does not run: {said}") from error
            found[check.name] = counted[0] if counted else 0
    return found


def with_checks(findings: Findings, checks: Sequence[Check], failures: Mapping[str, int]) -> Findings:
    """``findings`` with what the author's checks found; those that block are problems."""
    blocked = tuple(f"check '{c.name}' found {failures[c.name]} rows" for c in checks if c.blocking and failures[c.name])
    return replace(findings, check_failures=dict(failures), problems=findings.problems + blocked)


def _taken(values: pa.Array, index: pa.Int64Array) -> pa.Array:
    """``values`` at ``index``, which ascends: all of it most often."""
    return values if len(index) == len(values) else values.take(index)


def _with(
    kept: pa.RecordBatch, ids: pa.Array, place: tuple[str, pa.Int64Array] | None = None, messages: pa.Int64Array | None = None
) -> pa.RecordBatch:
    columns, names = [*kept.columns, ids], [*kept.schema.names, ROW]
    if place is not None:
        columns += [pa.repeat(place[0], len(ids)), place[1]]
        names += [ORIGIN, POSITION]
    if messages is not None:
        columns.append(messages)
        names.append(MESSAGE)
    return pa.RecordBatch.from_arrays(columns, names=names)


def _numbers(first: int, count: int) -> pa.Int64Array:
    import numpy as np

    return pa.array(np.arange(first, first + count, dtype="int64"))
