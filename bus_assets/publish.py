"""The transaction: claim, gate, write, receipt. The one file a reviewer must trust.

For one trip and one database, in one transaction:

    1. claim       (trip, attempt) = published, under a unique key; an attempt that was revoked ends here
    2. gate        re-read this trip's verdicts, and the bytes that they name; missing, failed, stale or different: refuse
    3. receipts    insert the trip's, and one for each message aboard; one that is there already means that its rows are in: nothing
                   is written
    4. write       every table of the route in this database, from the staged bytes
    5. look        the depot is asked a last time whether a person has cancelled the trip
    6. commit

The first database in which this commits is the pivot: from then on the trip only rolls forward. A second database is written
only after the first has committed. DDL happens before, in transactions of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bus_assets.aboard import receipts_of, receipts_to_be, tell_fates
from bus_assets.destinations import drops_into, plans_of, told_at
from bus_assets.drive import AppliedBefore, Drive, Lease, Overtaken, check_not_cancelled, ledger_id
from bus_assets.duck import disk_full, duck
from bus_assets.forward import plan_of
from bus_assets.passengers import Passengers, quoted
from bus_assets.progress import Progress, tell
from bus_assets.release import reaches, release_stop, released_rows
from bus_assets.stops import DropOff
from bus_assets.values import fill
from resources.depot.entries import Verdict
from resources.depot.mail import TRIP_RECEIPT
from resources.errors import BusError, Poison, Refused
from resources.receipts import PUBLISHED, AlreadySettled, Applied
from resources.staging import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

    from bus_assets.contract import Contract


@dataclass(frozen=True)
class Dropped:
    """What one drop-off did: ``offered`` rows of the stop, of which ``where`` left out ``left_out``; the rest was ``applied``."""

    drop_off: str
    mode: str
    offered: int
    left_out: int
    applied: Applied
    already: bool = False

    @property
    def rows(self) -> int:
        """Offered rows that are in the table now; in mode 'delete', rows that were taken out of it."""
        return self.applied.inserted + self.applied.updated or self.applied.deleted * (self.mode == "delete")


def publish(drive: Drive, database: str) -> tuple[Dropped, ...]:
    """Publish the trip's rows into ``database``, or find that they are there. Raises :class:`Refused` and writes nothing otherwise."""
    drops = drops_into(drive, database)
    try:
        _may_publish(drive, database)
        verdicts = gates(drive)
        if database == drive.route.databases[0]:
            _try_conditions(drive, verdicts)
        system = drive.bus.systems[database]
        with told_at(drops):
            system.prepare(plans_of(drive, drops))
        try:
            dropped = _transaction(drive, database, drops, verdicts)
        except AlreadySettled as settled:
            dropped = _already(drive, database, drops, settled)
    except BusError as error:
        raise error.at(route=drive.route.name) from error.__cause__
    _remember(drive, database, dropped)
    for done in dropped:
        tell(Progress(done.drop_off, done.offered - done.left_out, passed=True))
    return dropped


def _try_conditions(drive: Drive, verdicts: Mapping[str, Verdict]) -> None:
    """What a later database's ``where=`` does not bear, before the first is written: from then on the trip only rolls forward."""
    for drop in drive.route.drop_offs:
        if drop.where and drop.into.database != drive.route.databases[0] and reaches(drive.route, drive.trip, drop.name):
            lease, rows = Lease(drive, drop.name), 0
            for batch in _chosen(drop, drive.passengers(drive.route.upstream(drop.name)[0], verdicts)):
                rows += batch.num_rows
                lease(rows)


def _transaction(drive: Drive, database: str, drops: tuple[DropOff, ...], verdicts: Mapping[str, Verdict]) -> tuple[Dropped, ...]:
    system, trip = drive.bus.systems[database], drive.trip.id
    ledger, is_first = ledger_id(drive.route, trip, database), database == drive.route.databases[0]
    with system.transaction() as transaction:
        transaction.record_outcome(drive.route.name, ledger, drive.attempt, PUBLISHED, drive.run)
        again = gates(drive)
        if {stop: v.digest for stop, v in again.items()} != {stop: v.digest for stop, v in verdicts.items()}:
            raise Refused(f"the verdicts of trip {trip} changed while it was being published; drive it again")
        verify_gates(drive, again)
        if transaction.record_receipts(drive.route.name, [f"{TRIP_RECEIPT}{ledger}"], trip=trip, attempt=drive.attempt):
            raise AlreadySettled(trip, drive.attempt, PUBLISHED)
        _messages_once(drive, transaction, database, again)
        _release_once(drive, transaction, database)
        if is_first and len(drive.route.databases) > 1:
            transaction.record_plan(drive.route.name, trip, plan_of(drive, again))
        dropped = []
        for drop in drops:
            done = _drop(drive, transaction, drop, again)
            transaction.record_applied(ledger, drop.into.name, str(drop.into.mode), done.applied)
            dropped.append(done)
        if is_first:
            # The depot is another database: a request that comes between this look and the commit is too late, and void.
            check_not_cancelled(drive)
    return tuple(dropped)


def _messages_once(drive: Drive, transaction: Any, database: str, verdicts: Mapping[str, Verdict]) -> None:
    """A receipt for each message of which something is dropped off. One that is there already was applied by an earlier trip.

    Further databases get the receipts that the first has: what was decided there stands.
    """
    if not drive.has_messages:
        return
    wanted = receipts_to_be(drive, verdicts) if database == drive.route.databases[0] else receipts_of(drive)
    for part, keys in wanted.items():
        again = transaction.record_receipts(drive.route.name, keys, part=part, trip=drive.trip.id, attempt=drive.attempt)
        if again:
            raise AppliedBefore(f"{len(again)} of {len(keys)} messages were applied by another trip meanwhile; nothing was written")


def _release_once(drive: Drive, transaction: Any, database: str) -> None:
    """A receipt for each row released from quarantine. One that is there already was released by another trip: nothing is written."""
    if (stop := release_stop(drive.trip)) is None:
        return
    rows = released_rows(drive.bus.depot, drive.trip)
    keys = [f"{TRIP_RECEIPT}{ledger_id(drive.route, row.trip, database)}:row:{row.row_id}" for row in rows]
    if again := transaction.record_receipts(drive.route.name, keys, part=f"release:{stop}", trip=drive.trip.id, attempt=drive.attempt):
        said = (
            f"{len(again)} of {len(keys)} rows were released before ({again[0]}, say) and would be dropped off twice; nothing was written"
        )
        held = f"`bus quarantine unrelease {drive.trip.id}` holds them again, `bus quarantine discard` then gives them up"
        raise Refused(f"{said}. {held}" if database == drive.route.databases[0] else said)


def gates(drive: Drive) -> dict[str, Verdict]:
    """This trip's verdicts, if every gate of the route passed on the rows that the next stop read; else :class:`Refused`."""
    verdicts = drive.bus.depot.verdicts(drive.trip.id)
    stops = [stop.name for stop in drive.route.stops if not isinstance(stop, DropOff)]
    for name in stops:
        verdict = verdicts.get(name)
        if verdict is None:
            raise Refused(f"stop '{name}' has no verdict in trip {drive.trip.id}, so nothing is published; drive that stop first")
        if not verdict.passed:
            raise Refused(f"stop '{name}' did not pass its gate in trip {drive.trip.id}, so nothing is published")
        for needed in drive.route.needs(name):
            read, now = verdict.inputs.get(needed), verdicts[needed].digest if needed in verdicts else None
            if read != now:
                raise Refused(f"stop '{name}' read other rows of '{needed}' than the ones that passed last; drive '{name}' again")
    return {name: verdicts[name] for name in stops}


def verify_gates(drive: Drive, verdicts: Mapping[str, Verdict]) -> None:
    """Hold the staged bytes of every stop against the digests in its verdict."""
    for name, verdict in verdicts.items():
        manifest = Manifest.from_json(verdict.manifest or {})
        if manifest.digest != verdict.digest:
            raise Refused(f"the verdict of stop '{name}' names other bytes than its manifest; nothing is published")
        try:
            for file in manifest.files:
                drive.bus.staging.read(file.path, sha256=file.sha256)
        except BusError as error:
            raise error.at(stop=name) from error.__cause__


def _may_publish(drive: Drive, database: str) -> None:
    if drive.mode == "rehearsal":
        raise Refused(
            f"this run rehearses on rows of trip {drive.trip.parent} and never publishes; select all stops of the route to publish"
        )
    first = drive.route.databases[0]
    done = {publication.database for publication in drive.bus.depot.publications(drive.trip.id)}
    if database != first and first not in done:
        raise Refused(f"database '{first}' comes first in this route and has not got trip {drive.trip.id} yet; publish it there first")


def _already(drive: Drive, database: str, drops: tuple[DropOff, ...], settled: AlreadySettled) -> tuple[Dropped, ...]:
    """The claim or the receipt was there: ours after a lost commit reply, or an earlier attempt's. Revoked: we are a zombie."""
    ledger = ledger_id(drive.route, drive.trip.id, database)
    with drive.bus.systems[database].transaction(reading=True) as transaction:
        published, applied = transaction.published(ledger), transaction.applied(ledger)
    # A depot restored from an earlier copy knows only an attempt that was revoked since: another one delivered the trip.
    if settled.outcome != PUBLISHED and (drive.mode != "delivered" or published is None):
        raise Overtaken(
            f"attempt {drive.attempt} of trip {drive.trip.id} was revoked: another run took the trip over; nothing was written"
        ) from settled
    return tuple(Dropped(drop.name, done.mode, 0, 0, done.rows, already=True) for drop, done in zip(drops, applied, strict=True))


def _remember(drive: Drive, database: str, dropped: tuple[Dropped, ...]) -> None:
    depot, trip = drive.bus.depot, drive.trip.id
    tables = {drop.drop_off: {"offered": drop.offered, "left_out": drop.left_out, **asdict(drop.applied)} for drop in dropped}
    depot.record_publication(trip, drive.attempt, database, tables)
    if {publication.database for publication in depot.publications(trip)} >= set(drive.route.databases):
        tell_fates(drive)
        depot.end_attempt(trip, drive.attempt, "published")
        depot.finish_trip(trip, "delivered")


def _drop(drive: Drive, transaction: Any, drop: DropOff, verdicts: Mapping[str, Verdict]) -> Dropped:
    if not reaches(drive.route, drive.trip, drop.name):
        return Dropped(drop.name, str(drop.into.mode), 0, 0, Applied())
    of = drive.route.upstream(drop.name)[0]
    passengers = drive.passengers(of, verdicts)
    lease = Lease(drive, drop.name)
    rows = Counted(_chosen(drop, passengers), lease)
    table, columns = drop.into, list(drop.mapping(passengers.contract))
    try:
        if table.mode == "append":
            applied = transaction.append(table.name, columns, rows)
        elif table.mode == "upsert":
            unique = _is_unique(drive, drop, passengers.contract)
            applied = transaction.upsert(table.name, columns, tuple(table.key), rows, newest=table.newest, unique=unique)
        elif table.mode == "replace":
            applied = transaction.replace(table.name, columns, fill(table.scope or {}, drive.values), rows)
        elif table.mode == "delete":
            applied = transaction.delete(table.name, tuple(table.key), rows)
        else:
            applied = transaction.accumulate(table.name, columns, tuple(table.key), table.sums, rows)
    except BusError as error:
        raise error.at(stop=drop.name) from error.__cause__
    return Dropped(drop.name, str(table.mode), len(passengers), len(passengers) - rows.count, applied)


def _is_unique(drive: Drive, drop: DropOff, contract: Contract) -> bool:
    """Whether the stop's gate let each key of the table pass once only. It compares keys within a message, and not with other trips."""
    if drive.route.queue is not None or release_stop(drive.trip) is not None:
        return False
    mapping = drop.mapping(contract)
    key = {mapping[column] for column in drop.into.key}
    return any(key.issuperset(unique) for unique in contract.keys)


@dataclass
class Counted:
    """Batches on their way, counted; each one renews the lease."""

    batches: Iterator[pa.RecordBatch]
    lease: Lease
    count: int = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self.batches:
            self.count += batch.num_rows
            self.lease(self.count)
            yield batch


def _chosen(drop: DropOff, passengers: Passengers) -> Iterator[pa.RecordBatch]:
    """The stop's rows with the destination's columns, those that meet ``where``."""
    mapping = drop.mapping(passengers.contract)
    fields = list(dict.fromkeys(mapping.values()))
    if drop.where is None:
        for batch in passengers.batches(tuple(fields)):
            yield batch.select(fields) if list(mapping) == fields else _renamed(batch, mapping)
        return
    import duckdb
    import pyarrow as pa

    from bus_assets.trial import meeting

    with duck() as connection:
        for batch in passengers.batches(passengers.contract.names):
            try:
                kept = meeting(drop.where, _table(batch), connection).project(", ".join(quoted(name) for name in fields))
                found = kept.to_arrow_table()
                # An empty batch too: a replace of nothing still compares its scope by the columns' types.
                for some in found.to_batches() or [pa.RecordBatch.from_pylist([], found.schema)]:
                    yield _renamed(some, mapping)
            except duckdb.Error as error:
                said = type(error).__name__ if passengers.contract.sensitive else str(error).splitlines()[0]
                # It ran on no rows when the route was declared: a value in these does not bear it.
                raise disk_full(error) or Poison(f"where={drop.where!r} does not run: {said}", stop=drop.name) from error


def _table(batch: pa.RecordBatch) -> Any:
    import pyarrow as pa

    return pa.Table.from_batches([batch])


def _renamed(batch: pa.RecordBatch, mapping: Mapping[str, str]) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([batch.column(name) for name in mapping.values()], names=list(mapping))
