"""Messages aboard: which of a trip's messages ride, the rows in their bodies, and what each of them names.

come_aboard    messages that an earlier trip applied leave this one, before anything is read
bodies         the rows of the stop ``messages``
named_by       the rows of a pick-up that reads what each message names
fates          what became of each message, once every gate has passed
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from bus_assets.drive import Drive, NothingToDo
from bus_assets.duck import duck
from bus_assets.forward import in_every_database, restored
from bus_assets.passengers import MESSAGE, ROW, literals
from bus_assets.queues import MESSAGES, Bodies, S3Event
from bus_assets.route import Route
from bus_assets.stops import PickUp, Transform
from bus_assets.values import TripValues
from resources.depot.mail import TRIP_RECEIPT
from resources.errors import BusError, Misconfigured, Missing, Poison, Refused, Transient
from sensors.judging import BREAKER

if TYPE_CHECKING:
    import pyarrow as pa

    from resources.depot.entries import Verdict
    from resources.depot.mail import Aboard, Message
    from resources.files import Listed, ToldFiles
    from resources.records import Records, Unreadable

BODIES_AT_A_TIME = 2_000


def come_aboard(drive: Drive) -> list[Message]:
    """The trip's messages in riding order, without those that an earlier trip has applied. :class:`NothingToDo` if none is left.

    Asked of the destination, not of the depot, which may have been restored from an earlier copy. A message is delivered when its
    trip is in every database: one that another trip applied in the first only rides in that trip, which rolls forward.
    """
    inbox = drive.bus.depot.inbox
    aboard = inbox.messages_of(drive.trip.id)
    applied = _applied(drive, aboard)
    for trip in dict.fromkeys(applied.values()):
        ids = [number for number, by in applied.items() if by == trip]
        if in_every_database(drive, trip):
            inbox.applied(drive.trip.id, ids)
        else:
            restored(drive, trip)
            inbox.ride_in(drive.trip.id, trip, ids)
    left = [message for message in aboard if message.id not in applied]
    if not left:
        said = f"trip {drive.trip.id} has no messages left: {len(applied)} were applied by an earlier trip"
        raise NothingToDo(said, route=drive.route.name)
    return left


def _applied(drive: Drive, messages: Sequence[Message]) -> dict[int, str]:
    """Which messages have their rows in the first database already, and by which trip."""
    if not drive.route.databases:
        return {}
    database = drive.bus.systems[drive.route.databases[0]]
    database.prepare(())
    found: dict[tuple[str, str], str] = {}
    with database.transaction(reading=True) as transaction:
        for part, keys in receipt_keys(messages).items():
            found |= {(part, key): trip for key, trip in transaction.receipt_trips(drive.route.name, keys, part).items()}
    return {message.id: found[message.part, message.key] for message in messages if (message.part, message.key) in found}


def receipt_keys(messages: Iterable[Message | Aboard]) -> dict[str, list[str]]:
    """The keys of the messages' receipts, by part: a message that is delivered once more on purpose has a part of its own."""
    found: dict[str, list[str]] = {}
    for message in messages:
        found.setdefault(message.part, []).append(message.key)
    return found


def bodies(drive: Drive, stop: PickUp) -> Iterator[Records]:
    """What the bodies of the trip's messages say, in riding order; positions are the messages' numbers in the depot."""
    source = stop.source
    assert isinstance(source, Bodies)
    messages = come_aboard(drive)
    for start in range(0, len(messages), BODIES_AT_A_TIME):
        yield _rows_of(source, stop.found_at(), messages[start : start + BODIES_AT_A_TIME])


@dataclass
class _Rows:
    objects: list[Mapping[str, Any]] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


def _rows_of(source: Bodies, fields: Mapping[str, str], messages: Sequence[Message]) -> Records:
    import pyarrow as pa

    from resources.jsonlines import text_columns
    from resources.records import Records, Unreadable

    rows = _Rows()
    for message in messages:
        try:
            items = _items(source, message)
        except Poison as error:
            rows.unreadable.append(Unreadable(message.id, "", error.message, message.id))
            continue
        rows.objects += items
        rows.messages += [message.id] * len(items)
    numbers = pa.array(rows.messages, pa.int64())
    batch, nested, astray = text_columns(rows.objects, fields)
    spoiled = frozenset(record.message for record in rows.unreadable if record.message is not None)
    return Records(batch, source.system, numbers, source.unit, tuple(rows.unreadable), numbers, spoiled, nested, astray=astray)


def _items(source: Bodies, message: Message) -> list[Mapping[str, Any]]:
    """The rows in one body; the envelope's values stand beside the body's own under names that begin with '@'."""
    envelope: dict[str, Any] = {
        "@key": message.key,
        "@group": message.group,
        "@sent_at": message.sent_at.isoformat() if message.sent_at else None,
        "@event_at": message.event_at.isoformat() if message.event_at else None,
    }
    if message.body is None:
        raise Poison("its body is not kept any more; send it again from where it came")
    text = message.body.decode("utf-8", "strict") if source.decode.kind != "text" else message.body.decode("utf-8", "backslashreplace")
    if source.decode.kind == "text":
        return [{"body": text, **envelope}]
    from resources.jsonlines import loads_exact

    body = loads_exact(text)
    if not isinstance(body, dict):
        raise Poison("the body is JSON, but not an object")
    envelope["@body"] = body
    path = getattr(source.decode, "records", None)
    return [{**item, **envelope} for item in _listed(body, path)] if path else [{**body, **envelope}]


def _listed(body: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    found: Any = body
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        raise Poison(f"the body has no list at {path!r}")
    if odd := [number for number, item in enumerate(found, 1) if not isinstance(item, dict)]:
        raise Poison(f"item {odd[0]} of the list at {path!r} in the body is not an object")
    return found


def named_by(drive: Drive, stop: PickUp) -> Iterator[Records]:
    """What ``stop`` reads for each message. What cannot be read for one (gone, forbidden, broken) sets that message aside, whole, at
    the place of that message; the others go on. :class:`Transient` ends the stop, and names the message if the source answers for
    another one; so does the same Misconfigured for every one of several messages; that each names another thing that is missing is
    not the same."""
    import pyarrow as pa

    from resources.records import Records, Unreadable

    empty = pa.RecordBatch.from_pylist([], pa.schema([(name, pa.string()) for name in stop.found_at()]))
    none = pa.array([], pa.int64())
    tried, failures, first = 0, list[BusError](), None
    for message, row in message_rows(drive):
        tried, first = tried + 1, message if first is None else first
        origin = stop.source.system
        try:
            for run in _read_for(drive, stop, row):
                origin = run.origin
                yield _of(run, message)
        except Transient as error:
            if message != first or _answers_for_another(drive, stop, message):
                error.culprit = message
            raise
        except BusError as error:
            failures.append(error)
            said = Unreadable(message, "", f"{error.place}: {error.message}" if error.place else error.message, message)
            yield Records(empty, origin, none, Bodies.unit, (said,), none, frozenset({message}))
    if len(failures) == tried > 1 and isinstance(failures[0], Misconfigured) and len(set(map(_what_is_wrong, failures))) == 1:
        raise failures[0]


def _what_is_wrong(error: BusError) -> tuple[object, ...]:
    """By its kind, as a refusal names what was asked for; of what is missing, what that is."""
    return (Missing, error.message, error.place, error.asked) if isinstance(error, Missing) else (type(error),)


def _answers_for_another(drive: Drive, stop: PickUp, message: int) -> bool:
    """Whether the source has any answer for some other message, by chance: if it has none, it is down, and ``message`` is not to blame."""
    others = [number for number in drive.passengers(MESSAGES).messages() if number != message]
    chosen = random.choice(others) if others else None  # noqa: S311
    try:
        for number, row in message_rows(drive):
            if number == chosen:
                next(_read_for(drive, stop, row), None)
                return True
    except Transient:
        return False
    except BusError:
        return True
    return False


def message_rows(drive: Drive) -> Iterator[tuple[int, dict[str, Any]]]:
    passengers = drive.passengers(MESSAGES)
    names = passengers.contract.names
    for batch in passengers.batches((*names, MESSAGE)):
        for row in batch.to_pylist():
            yield row.pop(MESSAGE), row


def _read_for(drive: Drive, stop: PickUp, row: Mapping[str, Any]) -> Iterator[Records]:
    system, values = named(drive, stop, row)
    yield from stop.source.read(system, stop.found_at(), values)


def named(drive: Drive, stop: PickUp, row: Mapping[str, Any]) -> tuple[Any, TripValues]:
    """The system and the values with which ``stop`` reads what the message of ``row`` names; an S3 object in exactly its version."""
    from resources.files import ToldFiles

    system, queue = drive.bus.systems[stop.source.system], drive.route.queue
    said = dict(row)
    if queue and isinstance(queue.decode, S3Event) and isinstance(system, ToldFiles):
        said["key"] = system.name_of(row["bucket"], row["key"])
        system = _Told(system, said["key"], system.version_of(row["version"], row["etag"]), row["size"] or 0)
    return system, replace(drive.values, message=said)


@dataclass(frozen=True)
class _Told:
    """Files of which one was told of: that one is read in exactly the version of the message, or not at all."""

    files: ToldFiles
    name: str
    version: str
    size_bytes: int

    @property
    def where(self) -> str:
        return self.files.where

    def list(self, pattern: str) -> tuple[Listed, ...]:
        from resources.files import Listed, as_pattern

        if pattern != as_pattern(self.name):
            return self.files.list(pattern)
        return (Listed(self.name, self.size_bytes, self.version),)

    def open(self, name: str, version: str | None = None) -> BinaryIO:
        return self.files.open(name, version)


def _of(run: Records, message: int) -> Records:
    import pyarrow as pa

    unreadable = tuple(replace(record, message=message) for record in run.unreadable)
    return replace(run, unreadable=unreadable, messages=pa.repeat(pa.scalar(message, pa.int64()), run.batch.num_rows))


class MessageOf:
    """Which message a row belongs to, by its identity. Rows of a message are numbered one after the other where they are read."""

    def __init__(self, drive: Drive, stop: Transform, verdicts: Mapping[str, Verdict]):
        paths = drive.passengers(drive.route.identity_of(stop.name).name, verdicts).paths()
        query = f"SELECT min({ROW}), max({ROW}), {MESSAGE} FROM read_parquet({literals(paths)}) GROUP BY {MESSAGE} ORDER BY 1"  # noqa: S608
        with duck() as connection:
            found = connection.execute(query).fetchall() if paths else []
        self._firsts = [first for first, _, _ in found]
        self._messages = [message for _, _, message in found]
        if any(later[0] <= earlier[1] for earlier, later in pairwise(found)):
            raise Refused("rows of different messages are numbered crosswise; drive the trip again, and report it")

    def __call__(self, ids: pa.Int64Array) -> pa.Int64Array:
        import numpy as np
        import pyarrow as pa

        if not self._firsts:
            return pa.nulls(len(ids), pa.int64())
        at = np.searchsorted(np.asarray(self._firsts), ids.to_numpy(zero_copy_only=False), side="right") - 1
        return pa.array(np.asarray(self._messages, "int64")[np.maximum(at, 0)])

    def one(self, row: int) -> int:
        return self._messages[bisect_right(self._firsts, row) - 1]


def receipts_to_be(drive: Drive, verdicts: Mapping[str, Verdict]) -> dict[str, list[str]]:
    """The keys of receipts, by part, that publishing records: of every message but those whose rows were all rejected.

    :class:`Refused` if the messages aboard are not those that were staged.
    """
    inbox = drive.bus.depot.inbox
    messages, rejected = inbox.aboard(drive.trip.id), inbox.rejected_rows(drive.trip.id)
    going = {number for name in _carriers(drive.route) for number in drive.passengers(name, verdicts).messages()}
    if strangers := going - {message.id for message in messages}:
        raise Refused(f"rows of message {min(strangers)} are staged, which is not aboard trip {drive.trip.id} any more; drive it again")
    if not messages:
        raise Refused(f"no message is aboard trip {drive.trip.id} any more; nothing was written")
    return receipt_keys(message for message in messages if message.id in going or message.id not in rejected)


def receipts_of(drive: Drive) -> dict[str, list[str]]:
    """The receipts, by part, that this trip has left for messages in the first database."""
    found: dict[str, list[str]] = {}
    first = drive.bus.systems[drive.route.databases[0]]
    with first.transaction(reading=True) as transaction:
        for part, key in transaction.receipts_of(drive.route.name, drive.trip.id):
            if not key.startswith(TRIP_RECEIPT):
                found.setdefault(part, []).append(key)
    return found


def tell_fates(drive: Drive) -> None:
    """The depot learns what became of the messages aboard, once every database has them: those without a receipt were rejected whole.

    Saying it again changes nothing: then no message is aboard any more.
    """
    inbox, route = drive.bus.depot.inbox, drive.route
    messages = inbox.aboard(drive.trip.id) if drive.has_messages else []
    if not messages:
        return
    rejected = inbox.rejected_rows(drive.trip.id)
    applied = {(part, key) for part, keys in receipts_of(drive).items() for key in keys} if route.databases else None
    waits = {
        message.id: _why(*rejected.get(message.id, (0, "its reasons were lost with an earlier depot")))
        for message in messages
        if applied is not None and (message.part, message.key) not in applied
    }
    kept = len(waits) < len(messages) and (not waits or _is_kept(drive))
    rows_of = {message: rows for message, (rows, _) in rejected.items()}
    failures = inbox.delivered(drive.trip.id, rows_of, waits, kept=kept)
    if not kept and failures >= BREAKER:
        said = f"{failures} trips in a row delivered nothing; the newest, {drive.trip.id}, had nothing but rejected rows"
        inbox.pause(route.name, f"{said}: {next(iter(waits.values()))}")


def _is_kept(drive: Drive) -> bool:
    """Whether a row of any message passed the gates. Beside those whose rows were all rejected there may be messages without any rows."""
    verdicts = drive.verdicts()
    carriers = [verdicts[name] for name in _carriers(drive.route) if name in verdicts]
    return not carriers or any(verdict.kept for verdict in carriers)


def _why(rows: int, first: str) -> str:
    return first if rows < 2 else f"none of its {rows} rows was delivered; the first: {first}"


def _carriers(route: Route) -> set[str]:
    """The stops that tell which messages reach a destination: the nearest before each drop-off whose rows have a message."""
    found = set[str]()
    for drop in route.drop_offs:
        name = route.upstream(drop.name)[0]
        while not route.of_messages(name) and route.upstream(name):
            name = route.upstream(name)[0]
        if route.of_messages(name):
            found.add(name)
    return found
