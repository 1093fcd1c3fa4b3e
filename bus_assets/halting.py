"""What happens at a stop: stage its rows, take them through the gate, record the verdict. Knows nothing of Dagster."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bus_assets.aboard import MessageOf, bodies, named_by
from bus_assets.casting import cast_column
from bus_assets.contract import TableKey
from bus_assets.destinations import look_ahead
from bus_assets.drive import Drive, Lease
from bus_assets.forward import as_committed
from bus_assets.passengers import MESSAGE, Passengers
from bus_assets.progress import Progress, tell
from bus_assets.queues import Bodies
from bus_assets.reading import Target
from bus_assets.rejects import RejectSpool
from bus_assets.release import contract_for, only_looked_up, release_stop, released_records
from bus_assets.stage import EXAMPLES_OF_A_FAILED_STOP, Findings, Stager, author_checks, with_checks
from bus_assets.stops import PickUp, Transform
from resources.depot.entries import QuarantinedRow, Verdict
from resources.errors import BusError, ChecksFailed, Refused
from resources.records import Records

ROWS_AT_A_TIME = 20_000
"""Rejected rows whose places are looked up together: each time the rows of the source are looked through."""


@dataclass(frozen=True)
class Stopped:
    """What one stop came to: the verdict, what was found (None where the stop had been driven before), and its rows."""

    verdict: Verdict
    findings: Findings | None
    passengers: Passengers

    @property
    def unread(self) -> tuple[str, ...]:
        """Columns of the source that no field takes."""
        return self.findings.unread if self.findings else ()


def pick_up(drive: Drive, stop: PickUp) -> Stopped:
    """Read the source through the gate into staging. Raises what the source raises, or :class:`ChecksFailed`."""
    if release_stop(drive.trip) == stop.name:
        return _ride_again(drive, stop)
    return _staged(drive, stop, lambda stager: stager.records(_source(drive, stop)))


def _source(drive: Drive, stop: PickUp) -> Iterator[Records]:
    if drive.trip.trigger == "release" and drive.route.of_messages(stop.name):
        return iter(())  # released rows ride without their messages
    if isinstance(stop.source, Bodies):
        return bodies(drive, stop)
    if stop.per_message:
        return named_by(drive, stop)
    return stop.source.read(_system(drive, stop.source.system), stop.found_at(), drive.values)


def transform(drive: Drive, stop: Transform) -> Stopped:
    """Run a transform on the staged rows of the stops before it, through its own gate into staging."""
    from bus_assets.transforms import run_transform

    if release_stop(drive.trip) == stop.name:
        return _ride_again(drive, stop)
    verdicts = drive.verdicts()
    inputs = [drive.passengers(name, verdicts) for name in drive.route.upstream(stop.name)]
    keeps, of_messages = stop.grain == "kept", drive.route.of_messages(stop.name)
    brought = [passengers.stop for passengers in inputs if drive.route.of_messages(passengers.stop)] if of_messages else []
    alone = brought if not keeps or len(brought) > 1 else []
    made = run_transform(stop, inputs, drive.values.parameters, alone=alone)
    message_of = MessageOf(drive, stop, verdicts) if of_messages and keeps else None
    return _staged(drive, stop, lambda stager: stager.rows(made, keeps_grain=keeps, inputs=inputs, message_of=message_of))


def _ride_again(drive: Drive, stop: PickUp | Transform) -> Stopped:
    """Rows released from quarantine instead of the source's or the transform's: through the same gate."""
    return _staged(drive, stop, lambda stager: stager.records(released_records(drive.bus.depot, drive.route, drive.trip)))


def _staged(drive: Drive, stop: PickUp | Transform, work: Callable[[Stager], Findings]) -> Stopped:
    if drive.mode in ("forward", "delivered"):
        return _halted_before(drive, stop)
    verdicts = drive.verdicts()
    if drive.mode == "driving" and all(verdict.attempt != drive.attempt for verdict in verdicts.values()):  # the attempt's first stop
        look_ahead(drive)
    contract, lease = contract_for(drive.route, drive.trip, stop.name), Lease(drive, stop.name)
    references, of_messages, prefix = _references(drive, stop, verdicts), drive.route.of_messages(stop.name), _prefix(drive, stop.name)
    placed = partial(_placed, drive, stop, verdicts) if isinstance(stop, Transform) else iter
    try:
        with closing(RejectSpool()) as spool:
            findings = work(Stager(stop.name, contract, drive.bus.staging, prefix, references, lease, spool, of_messages, placed))
            passengers = Passengers(stop.name, stop.contract, findings.manifest, drive.bus.staging)
            findings = with_checks(findings, stop.checks, author_checks(stop.checks, passengers))
            verdict = _verdict(drive, stop.name, findings, verdicts)
            quarantined = spool if findings.passed else itertools.islice(spool, EXAMPLES_OF_A_FAILED_STOP)
            drive.bus.depot.record_verdict(verdict, placed(quarantined), only_looked_up(drive.route, drive.trip, stop.name))
    except BusError as error:
        raise error.at(route=drive.route.name, stop=stop.name) from error.__cause__
    tell(Progress(stop.name, verdict.picked_up, verdict.passed, verdict.rejected))
    return Stopped(verdict, findings, passengers)


def _halted_before(drive: Drive, stop: PickUp | Transform) -> Stopped:
    """The stop as it was driven before the trip was committed; :class:`Refused` if this depot never heard of that."""
    verdict = as_committed(drive, stop.name) if drive.mode == "forward" else drive.verdicts().get(stop.name)
    if verdict is None:
        gone = ", ".join(sorted(drive.verdicts().keys() - {known.name for known in drive.route.stops}))
        lost = f"the route has lost stop '{gone}' since: put it back until the trip is rolled forward."
        why = lost if gone else "was it restored from an earlier copy?"
        said = f"trip {drive.trip.id} is committed already, but this depot has no verdict of the stop; {why} Nothing was read or written"
        raise Refused(said, route=drive.route.name, stop=stop.name)
    return Stopped(verdict, None, drive.passengers(stop.name))


def _placed(
    drive: Drive, stop: Transform, verdicts: Mapping[str, Verdict], quarantined: Iterable[QuarantinedRow]
) -> Iterator[QuarantinedRow]:
    """Rows that a transform's gate rejected, with the place in the source at which they were picked up, as long as they have one."""
    source = drive.route.identity_of(stop.name)
    at = drive.route.identity_of(stop.name, release_stop(drive.trip))  # released rows ride under new numbers
    if at.name == stop.name or not isinstance(source, PickUp):
        yield from quarantined  # rows released here came with their places
        return
    unit, left = getattr(source.source, "unit", "row"), iter(quarantined)
    while rows := list(itertools.islice(left, ROWS_AT_A_TIME)):
        places = drive.passengers(at.name, verdicts).places(int(row.row_id) for row in rows)
        for row in rows:
            origin, position = places.get(int(row.row_id), (None, None))
            yield row if origin is None else replace(row, origin=origin, unit=unit, position=position)


def problem_of(drive: Drive, stopped: Stopped) -> ChecksFailed | None:
    """The error that a stop's findings amount to, if its gate did not let it pass."""
    if stopped.findings is None or stopped.findings.passed:
        return None
    return ChecksFailed("; ".join(stopped.findings.problems), route=drive.route.name, stop=stopped.verdict.stop)


def _prefix(drive: Drive, stop: str) -> str:
    """Never used twice: a step that is retried in its run stages anew beside what it left."""
    return f"{drive.route.name}/{drive.trip.id}/{drive.attempt}/{drive.run[:8]}/{stop}/{uuid.uuid4().hex[:8]}"


def _references(drive: Drive, stop: PickUp | Transform, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Field → where the values it may have are: staged files and a column, or the keys of a table. What a message brings is referred to
    within the message."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for contract_field in stop.contract.fields:
        target = contract_field.references
        if isinstance(target, TableKey):
            keys = list(_system(drive, target.database).column_keys(target.table, target.column))
            if len({piece.type for piece in keys}) > 1:  # a key that is no value of the field's type is referred to by none
                keys = [cast_column(piece, Target(contract_field.parsed_type)).values.drop_null() for piece in keys]
            found[contract_field.name] = pa.chunked_array(keys, type=None if keys else contract_field.parsed_type.arrow())
        elif target:
            name, column = target.split(".")
            within = (MESSAGE,) if drive.route.of_messages(name) else ()
            found[contract_field.name] = (drive.passengers(name, verdicts).paths(), column, *within)
    return found


def _verdict(drive: Drive, stop: str, findings: Findings, verdicts: Mapping[str, Verdict]) -> Verdict:
    return Verdict(
        trip=drive.trip.id,
        attempt=drive.attempt,
        stop=stop,
        passed=findings.passed,
        picked_up=findings.picked_up,
        kept=findings.kept,
        rejected=findings.rejected,
        produced=findings.kept,
        manifest=findings.manifest.to_json(),
        digest=findings.manifest.digest,
        inputs={name: verdicts[name].digest or "" for name in drive.route.needs(stop) if name in verdicts},
        figures=_figures(findings),
        counts=dict(findings.check_failures),
    )


def _figures(findings: Findings) -> tuple[dict[str, Any], ...]:
    """Per rule: rows that the gate rejected for it, and staged rows that break it (none, unless the gate is wrong)."""
    found = {figure.rule: figure.violations for figure in findings.figures}
    rules = [rule for rule in findings.reasons if rule not in found] + list(found)
    return tuple({"rule": rule, "rows": found.get(rule, 0), "rejected": findings.reasons.get(rule, 0)} for rule in rules)


def _system(drive: Drive, name: str) -> Any:
    return drive.bus.systems[name]
