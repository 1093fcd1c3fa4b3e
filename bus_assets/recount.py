"""Count again what an account says, by other means than the platform's counters.

Sources by the plainest reader there is for them, staged rows by DuckDB, quarantine row by row in the depot, destinations by the keys
that stand in the table. Whatever cannot be counted honestly says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bus_assets.account import DropSum, Recount, StopSum
from bus_assets.counted_messages import bodies_again, named_again
from bus_assets.drive import Drive
from bus_assets.duck import disk_full, duck
from bus_assets.passengers import Passengers, literals, quoted
from bus_assets.queues import Bodies
from bus_assets.release import release_stop, released_rows, rows_of
from bus_assets.stage import EXAMPLES_OF_A_FAILED_STOP
from bus_assets.stops import DropOff, PickUp
from resources.errors import BusError, Misconfigured

if TYPE_CHECKING:
    import pyarrow as pa

KEYS_AT_A_TIME = 65_536


def recounts(drive: Drive, stops: Sequence[StopSum], drops: Sequence[DropSum]) -> tuple[Recount, ...]:
    """Every recount of the trip, stop by stop, then drop-off by drop-off."""
    found = [made for stop in stops for made in _of_stop(drive, stop)]
    for drop in drops:
        if drop.state == "dropped":
            found += _of_drop_off(drive, drop)
    return tuple(found)


def _compared(what: str, stop: str, counted_by: str, expected: int, found: int, hint: str = "") -> Recount:
    agrees = expected == found
    return Recount(what, stop, counted_by, expected, found, "agrees" if agrees else "differs", "" if agrees else hint)


def _not_counted(what: str, stop: str, counted_by: str, expected: int, why: str) -> Recount:
    return Recount(what, stop, counted_by, expected, None, "not counted", why)


# Stops


def _of_stop(drive: Drive, stop: StopSum) -> Iterator[Recount]:
    declared = drive.route[stop.stop]
    if release_stop(drive.trip) == stop.stop:
        rows = sum(1 for _ in released_rows(drive.bus.depot, drive.trip))
        yield _compared(
            "picked up", stop.stop, "released rows in the depot", stop.picked_up, rows, "rows were discarded or held again since"
        )
    elif isinstance(declared, PickUp):
        yield _source(drive, declared, stop)
    yield _staged(drive, stop)
    yield _quarantined(drive, stop)


def _source(drive: Drive, declared: PickUp, stop: StopSum) -> Recount:
    if drive.trip.trigger == "release" and drive.route.of_messages(declared.name):
        return _compared("picked up", stop.stop, "nothing: released rows ride without their messages", stop.picked_up, 0)
    if drive.has_messages and (declared.per_message or isinstance(declared.source, Bodies)):
        return _of_messages(drive, declared, stop)
    by = f"{stop.source}, read again"
    try:
        found = declared.source.recount(drive.bus.systems[declared.source.system], drive.values)
    except BusError as error:
        return Recount("picked up", stop.stop, by, stop.picked_up, None, "differs", f"{error.message}; has the source changed since?")
    moved = f"has the source changed since {drive.trip.created_at:%Y-%m-%d %H:%M:%S} UTC? If not, rows are lost or made up: report it"
    return _compared("picked up", stop.stop, by, stop.picked_up, found, moved)


def _of_messages(drive: Drive, declared: PickUp, stop: StopSum) -> Recount:
    source = declared.source
    by = "bodies in the depot, read again" if isinstance(source, Bodies) else "what each message names, read again"
    try:
        found = bodies_again(drive, source) if isinstance(source, Bodies) else named_again(drive, declared)
    except BusError as error:
        return _not_counted("picked up", stop.stop, by, stop.picked_up, str(error))
    return _compared("picked up", stop.stop, by, stop.picked_up, found, "has it changed since? If not, rows are lost or made up: report it")


def _staged(drive: Drive, stop: StopSum) -> Recount:
    by = "DuckDB, staged Parquet"
    verdict = drive.bus.depot.verdicts(drive.trip.id)[stop.stop]
    try:
        paths = _passengers(drive, stop.stop, verdict.manifest).paths()
        found = _count(f"SELECT count(*) FROM read_parquet({literals(paths)})") if paths else 0  # noqa: S608
    except BusError as error:
        return _not_counted("kept", stop.stop, by, stop.kept, f"{error.message} (staged rows may be cleared away after a trip)")
    return _compared("kept", stop.stop, by, stop.kept, found, "the staged files were changed")


def _passengers(drive: Drive, stop: str, manifest: Any) -> Passengers:
    from resources.staging import Manifest

    return Passengers(stop, drive.route.contract_of(stop), Manifest.from_json(manifest or {}), drive.bus.staging)


def _quarantined(drive: Drive, stop: StopSum) -> Recount:
    depot, trip = drive.bus.depot, drive.trip
    found = sum(1 for _ in rows_of(depot, trip.route, stop.stop, None, trip.id))
    expected = stop.rejected if stop.passed else min(stop.rejected, EXAMPLES_OF_A_FAILED_STOP)
    by = "quarantine, row by row" if expected == stop.rejected else "quarantine (a failed stop keeps examples only)"
    return _compared("rejected", stop.stop, by, expected, found, "rows were taken out of the quarantine, or put into it, by hand")


# Drop-offs


def _of_drop_off(drive: Drive, drop: DropSum) -> Iterator[Recount]:
    declared = drive.route[drop.stop]
    assert isinstance(declared, DropOff)
    verdict = drive.bus.depot.verdicts(drive.trip.id).get(drop.of)
    if verdict is None:
        said = f"the trip was driven before the route had stop {drop.of!r}"
        yield _not_counted("dropped off", drop.stop, f"table {drop.table}", drop.inserted + drop.updated, said)
        return
    try:
        passengers = _passengers(drive, drop.of, verdict.manifest)
        paths = passengers.paths()
        yield _compared("left out", drop.stop, "DuckDB, staged Parquet", drop.left_out, _left_out(declared, paths))
        if declared.into.key:
            yield _keys(drive, declared, passengers, paths)
        else:
            yield _whole_table(drive, declared)
    except BusError as error:
        yield _not_counted("dropped off", drop.stop, f"table {drop.table}", drop.inserted + drop.updated, error.message)


def _left_out(drop: DropOff, paths: list[str]) -> int:
    if drop.where is None or not paths:
        return 0
    return _count(f"SELECT count(*) FILTER (WHERE ({drop.where}) IS NOT TRUE) FROM read_parquet({literals(paths)})")  # noqa: S608


def _keys(drive: Drive, drop: DropOff, passengers: Passengers, paths: list[str]) -> Recount:
    """The keys of the staged rows stand in the table; after a delete none of them does. Compared in a temporary table, so not read-only."""
    table, by = drop.into, f"keys of the staged rows in table {drop.into}"
    columns = {column: drop.mapping(passengers.contract)[column] for column in table.key}
    chosen = ", ".join(f"{quoted(name)} AS {quoted(column)}" for column, name in columns.items())
    where = f" WHERE {drop.where}" if drop.where else ""
    sql = f"SELECT DISTINCT {chosen} FROM read_parquet({literals(paths)}){where}"  # noqa: S608
    distinct = _count(f"SELECT count(*) FROM ({sql})") if paths else 0  # noqa: S608
    with drive.bus.systems[table.database].transaction() as transaction:
        found = transaction.count_matching(table.name, tuple(table.key), _key_batches(sql)) if paths else 0
    expected = 0 if table.mode == "delete" else distinct
    return _compared("keys gone" if table.mode == "delete" else "keys there", drop.name, by, expected, found, _since(drive))


def _key_batches(sql: str) -> Iterator[pa.RecordBatch]:
    with duck() as connection:
        yield from connection.sql(sql).to_arrow_reader(KEYS_AT_A_TIME)


def _whole_table(drive: Drive, drop: DropOff) -> Recount:
    """Without a key rows cannot be told apart: all of them, against all that trips say they did to this table."""
    table, system = drop.into, drive.bus.systems[drop.into.database]
    with system.transaction(reading=True) as transaction:
        found, expected = transaction.count_rows(table.name), transaction.rows_left_in(table.name)
    by = f"all rows of table {table}, all trips"
    if found > expected and not table.create:
        why = f"{found - expected} rows more than all trips together dropped there: somebody else writes to this table too"
        return Recount("rows there", drop.name, by, expected, found, "not counted", why)
    return _compared("rows there", drop.name, by, expected, found, "somebody else changes this table, or rows are lost or doubled")


def _since(drive: Drive) -> str:
    """What else may have changed a table since: later trips."""
    later = [trip.id for trip in drive.bus.depot.trips(limit=1000) if trip.created_at > drive.trip.created_at and trip.state == "delivered"]
    return (
        f"trip {later[0]} was delivered later and may have changed them" if later else "somebody else changed the table, or rows are lost"
    )


def _count(sql: str) -> int:
    import duckdb

    with duck() as connection:
        try:
            found = connection.execute(sql).fetchone()
        except duckdb.Error as error:
            raise disk_full(error) or Misconfigured(f"the staged rows cannot be counted: {str(error).splitlines()[0]}") from error
    return found[0] if found else 0
