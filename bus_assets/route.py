"""A route: triggers, stops, contracts; one value in one file, checked whole when it is constructed."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, datetime
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal
from zoneinfo import available_timezones

from bus_assets.contract import Contract, TableKey
from bus_assets.declare import Misdeclared, about, checked_name, declaration
from bus_assets.queues import MESSAGES, Bodies, Queue
from bus_assets.stops import DropOff, PickUp, Stop, Transform
from bus_assets.values import check_placeholders, refuse_placeholders
from resources.table_names import checked_identifier

_CRON_FIELD = re.compile(r"[\d*/,\-?LW#A-Za-z]+")
HIDDEN_PREFIX = "_bus_"


@declaration
class Cron:
    """Start a trip by the clock: five cron fields, read in ``zone`` (IANA); an hour that daylight saving skips runs after it."""

    schedule: str
    zone: str = "UTC"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = self.schedule.split()
        if len(parts) != 5 or not all(_CRON_FIELD.fullmatch(part) for part in parts):
            raise Misdeclared(f"Cron {self.schedule!r}: five fields are needed (minute hour day month weekday), as in '15 6 * * 1-5'")
        _check_ticks(self.schedule)
        if self.zone not in available_timezones():
            raise Misdeclared(f"Cron {self.schedule!r}: zone {self.zone!r} is not an IANA time zone such as 'Europe/Berlin'")


def _check_ticks(schedule: str) -> None:
    """Raise :class:`Misdeclared` if there is no next time: Dagster would fail the whole code location, or never tick."""
    from croniter import CroniterError, croniter

    try:
        croniter(schedule, datetime(2024, 1, 1, tzinfo=UTC)).get_next()
    except CroniterError as error:
        raise Misdeclared(
            f"Cron {schedule!r} never comes: {error}; minutes are 0 to 59, hours 0 to 23, days 1 to 31, months 1 to 12, weekdays 0 to 7"
        ) from None
    if re.search(r"\dW|W\d", schedule, re.IGNORECASE):
        raise Misdeclared(f"Cron {schedule!r}: W, the nearest weekday, is not known to Dagster; name days")


@declaration
class Parameter:
    """A typed value that a trip may be given: in the UI's launchpad, by ``bus drive --set month=3``, by a trigger."""

    name: str
    type: Literal["string", "integer", "number", "boolean"] = "string"
    default: Any = None
    description: str = ""

    def __post_init__(self) -> None:
        checked_name(self.name, "parameter")
        if self.default is not None:
            object.__setattr__(self, "default", self.value(self.default))

    def value(self, given: Any) -> Any:
        """``given`` as this parameter's type; :class:`Misdeclared` says what was expected."""
        try:
            return _READ[self.type](given)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Misdeclared(f"parameter {self.name!r}: {given!r} does not read as {self.type}") from None


def _read_boolean(given: Any) -> bool:
    return given if isinstance(given, bool) else {"true": True, "false": False}[given.lower()]


def _read_string(given: Any) -> str:
    str(given).encode()  # half a surrogate pair, from a broken command line, cannot be kept anywhere
    return str(given)


def _read_number(given: Any) -> float:
    if not math.isfinite(number := float(given)):
        raise ValueError(given)
    return number


_READ: dict[str, Any] = {
    "string": _read_string,
    "integer": lambda v: int(v) if not isinstance(v, (bool, float)) else int(str(v)),
    "number": _read_number,
    "boolean": _read_boolean,
}


@declaration
class Route:
    """A declared path from sources to destinations. Everything in it is checked together, so that what constructs can be built.

    ``stops``       in any order that reads well; ``after``/``of`` make them a graph.
    ``triggers``    what starts a trip besides a person. ``parameters``: what a trip may be given. With a :class:`Queue` the route has
                    one stop more, ``messages``, which comes first.
    ``retries``     how often a stop is tried again after a transient error (a lock, a lost connection), with growing pauses.
    """

    name: str
    stops: tuple[PickUp | Transform | DropOff, ...]
    triggers: tuple[Cron | Queue, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    description: str = ""
    owners: tuple[str, ...] = ()
    group: str | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        checked_name(self.name, "route")
        with about(f"route {self.name!r}"):
            if queue := self.queue:
                self._come_aboard(queue)
            self._check()

    def _come_aboard(self, queue: Queue) -> None:
        """Put the stop ``messages`` first; a route made from another's stops has it already."""
        source = Bodies(queue.system, queue.decode, {name: queue.decode.fields.get(name, name) for name in queue.decode.contract.names})
        if not any(isinstance(stop, PickUp) and isinstance(stop.source, Bodies) for stop in self.stops):
            first = PickUp(MESSAGES, source, queue.decode.contract)
            object.__setattr__(self, "stops", (first, *self.stops))

    def __getitem__(self, name: str) -> Stop:
        return self._by_name[name]

    @property
    def queue(self) -> Queue | None:
        """The queue whose messages start trips, if one does."""
        return next((trigger for trigger in self.triggers if isinstance(trigger, Queue)), None)

    @property
    def crons(self) -> tuple[Cron, ...]:
        return tuple(trigger for trigger in self.triggers if isinstance(trigger, Cron))

    def of_messages(self, name: str) -> bool:
        """Whether the rows of stop ``name`` belong to a message each: it can be told per message what became of it."""
        stop = self[name]
        if isinstance(stop, PickUp):
            return (stop.name == MESSAGES and self.queue is not None) or stop.per_message
        if isinstance(stop, Transform) and stop.grain == "changed" and stop.combine != "alone":
            return False
        return self.of_messages(self.upstream(name)[0])

    def from_messages(self, name: str) -> bool:
        """Whether the rows of stop ``name`` are made of messages: of one each, or of several together."""
        return self.of_messages(name) or any(self.from_messages(first) for first in self.upstream(name)[:1])

    def adds_up(self, name: str) -> bool:
        """Whether the rows of stop ``name`` are made of rows of several messages: of none can it be told whose it is."""
        return self.from_messages(name) and not self.of_messages(name)

    @cached_property
    def _by_name(self) -> dict[str, Stop]:
        return {stop.name: stop for stop in self.stops}

    @property
    def pick_ups(self) -> tuple[PickUp, ...]:
        return tuple(stop for stop in self.stops if isinstance(stop, PickUp))

    @property
    def drop_offs(self) -> tuple[DropOff, ...]:
        return tuple(stop for stop in self.stops if isinstance(stop, DropOff))

    @property
    def databases(self) -> tuple[str, ...]:
        """The databases the route drops into, in the order of declaration: the first is the pivot."""
        return tuple(dict.fromkeys(stop.into.database for stop in self.drop_offs))

    @property
    def has_sensitive(self) -> bool:
        """Whether any stop has a field whose values must never be told."""
        return any(contract.sensitive for contract in self._contracts())

    @property
    def systems(self) -> tuple[str, ...]:
        """Every resource name that the route needs to be bound."""
        tables = (f.references for c in self._contracts() for f in c.fields if isinstance(f.references, TableKey))
        names = [stop.source.system for stop in self.pick_ups] + list(self.databases) + [key.database for key in tables]
        return tuple(dict.fromkeys([*names, *(self.queue.systems if self.queue else ())]))

    def contract_of(self, name: str) -> Contract:
        """The contract of a pick-up or transform; of a drop-off, that of the stop whose rows it drops."""
        stop = self[name]
        return self.contract_of(self.upstream(name)[0]) if isinstance(stop, DropOff) else stop.contract

    def upstream(self, name: str) -> tuple[str, ...]:
        """The stops whose rows this one reads, the one that its rows belong to first; referenced stops are not among them."""
        stop = self[name]
        if isinstance(stop, PickUp):
            return stop.after
        if isinstance(stop, Transform):
            return stop.after or self._before(name)
        return (stop.of,) if stop.of else self._before(name)

    def references(self, name: str) -> tuple[str, ...]:
        """The stops that the contract of ``name`` refers to."""
        stop = self[name]
        if isinstance(stop, DropOff):
            return ()
        found = (field.references for field in stop.contract.fields)
        return tuple(dict.fromkeys(text.split(".")[0] for text in found if isinstance(text, str)))

    def needs(self, name: str) -> tuple[str, ...]:
        """Everything that must have passed its gate before ``name`` runs. Of a queue route nothing runs before the messages are aboard."""
        first = (MESSAGES,) if self.queue and isinstance(self[name], PickUp) and name != MESSAGES else ()
        return tuple(dict.fromkeys(self.upstream(name) + self.references(name) + first))

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names in an order in which they can be driven."""
        return tuple(TopologicalSorter({stop.name: self.needs(stop.name) for stop in self.stops}).static_order())

    def identity_of(self, name: str, anew: str | None = None) -> Stop:
        """The stop at which the rows of ``name`` got their identity: a pick-up, or the last transform that changed the grain; or the stop
        ``anew``, if it is on the way."""
        stop = self[name]
        keeps = isinstance(stop, DropOff) or (isinstance(stop, Transform) and stop.grain == "kept")
        return self.identity_of(self.upstream(name)[0], anew) if keeps and name != anew else stop

    def ancestors(self, name: str) -> tuple[str, ...]:
        """All stops before ``name``, nearest last, in driving order."""
        found: set[str] = set()
        todo = list(self.needs(name))
        while todo:
            stop = todo.pop()
            if stop not in found:
                found.add(stop)
                todo += self.needs(stop)
        return tuple(stop for stop in self.order if stop in found)

    def _before(self, name: str) -> tuple[str, ...]:
        names = [stop.name for stop in self.stops]
        carrying = [stop.name for stop in self.stops[: names.index(name)] if not isinstance(stop, DropOff)]
        if not carrying:
            raise Misdeclared(f"stop {name!r} comes first, so there are no rows for it; put a PickUp before it, or name one")
        return (carrying[-1],)

    def _contracts(self) -> tuple[Contract, ...]:
        return tuple(stop.contract for stop in self.stops if not isinstance(stop, DropOff))

    def _check(self) -> None:
        if not self.stops:
            raise Misdeclared("it has no stops; a route needs at least one PickUp")
        if not self.pick_ups:
            raise Misdeclared("it has no PickUp, so nothing would ever be aboard")
        _no_repeats([stop.name for stop in self.stops], "stop")
        _no_repeats([parameter.name for parameter in self.parameters], "parameter")
        for stop in self.stops:
            for name in self.needs(stop.name):
                self._check_carries(stop.name, name)
        try:
            _ = self.order
        except CycleError as error:
            raise Misdeclared(f"stops wait for each other in a circle: {' → '.join(error.args[1])}") from None
        for stop in self.stops:
            if isinstance(stop, DropOff):
                self._check_drop_off(stop)
            else:
                self._check_references(stop)
            if isinstance(stop, PickUp):
                for template in stop.source.templates():
                    check_placeholders(f"stop {stop.name!r}", template, tuple(p.name for p in self.parameters), self._message_fields)
            if isinstance(stop, Transform):
                self._check_how(stop)
            if not isinstance(stop, DropOff):
                self._check_sensitive(stop)
            for sql in _own_sql(stop):
                refuse_placeholders(f"stop {stop.name!r}", sql)
            self._try_sql(stop)
        self._check_tables()
        self._check_triggers()
        if self.queue:
            self._check_queue(self.queue)

    @property
    def _message_fields(self) -> tuple[str, ...]:
        return self.queue.decode.contract.names if self.queue else ()

    def _check_carries(self, stop: str, needed: str) -> None:
        if needed not in self._by_name:
            if needed == MESSAGES and not self.queue:
                raise Misdeclared(
                    f"stop {stop!r} is about messages (it names {{message.…}}, or comes after {MESSAGES!r}), and no Queue triggers this "
                    "route: add triggers=(Queue(…),)"
                )
            how = "references" if needed in self.references(stop) else "comes after"
            near = difflib.get_close_matches(needed, self._by_name, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; stops are {', '.join(self._by_name)}"
            raise Misdeclared(f"stop {stop!r} {how} {needed!r}, which is not a stop of this route{hint}")
        if isinstance(self[needed], DropOff):
            raise Misdeclared(
                f"stop {stop!r} comes after {needed!r}, which is a drop-off: nothing is aboard after it; name the stop whose rows it drops"
            )
        if needed == stop:
            raise Misdeclared(f"stop {stop!r} comes after itself")

    def _check_references(self, stop: PickUp | Transform) -> None:
        for field_ in stop.contract.fields:
            if isinstance(field_.references, str):
                other, name = field_.references.split(".")
                target = self.contract_of(other)
                if name not in target:
                    raise Misdeclared(
                        f"stop {stop.name!r}: field {field_.name!r} references {field_.references!r}, "
                        f"but stop {other!r} promises {', '.join(target.names)}"
                    )
                if target[name].parsed_type != field_.parsed_type:
                    raise Misdeclared(
                        f"stop {stop.name!r}: field {field_.name!r} is {field_.type}, but {field_.references!r} is {target[name].type}; "
                        "they must be of one type"
                    )

    def _check_how(self, stop: Transform) -> None:
        after, names = self.upstream(stop.name), stop.arguments()
        if isinstance(stop.how, str):
            from bus_assets import sql, trial  # a third of a second that only routes with SQL pay

            with about(f"stop {stop.name!r}"):
                others = [other.name for other in self.stops if other is not stop and not isinstance(other, DropOff)]
                sql.check(stop.how, after, others, keeps_grain=stop.grain == "kept")
                inputs = {name: self.contract_of(name) for name in after}
                trial.try_select(stop.how, inputs, stop.contract, with_row=after[0] if stop.grain == "kept" else None)
            return
        if len(names) != len(after):
            raise Misdeclared(
                f"stop {stop.name!r}: its function takes {len(names)} argument(s) ({', '.join(names) or 'none'}), "
                f"but it comes after {len(after)} stop(s): {', '.join(after)}"
            )
        if set(names) == set(after) and names != after:
            raise Misdeclared(
                f"stop {stop.name!r}: its function takes {', '.join(names)}, but after= lists {', '.join(after)}; use the same order"
            )

    def _try_sql(self, stop: Stop) -> None:
        """Run the author's conditions and checks on no rows: they are as wrong there as in the middle of a trip."""
        contract = self.contract_of(stop.name)
        if isinstance(stop, DropOff):
            if stop.where is not None:
                from bus_assets import trial

                with about(f"drop-off {stop.name!r}: where={stop.where!r}"):
                    trial.try_where(stop.where, self.upstream(stop.name)[0], contract)
            return
        for check in stop.checks:
            from bus_assets import trial

            with about(f"stop {stop.name!r}: check {check.name!r}"):
                trial.try_check(check.sql, stop.name, contract)

    def _check_sensitive(self, stop: PickUp | Transform) -> None:
        """A field into which a sensitive one flows says itself whether it is sensitive: its stop hides what its own contract names."""
        inputs = {name: self.contract_of(name) for name in self.upstream(stop.name)}
        unsaid = tuple(made.name for made in stop.contract.fields if made.sensitive is None)
        hidden = tuple((at, name) for at, contract in inputs.items() for name in contract.names if name in contract.sensitive)
        if not unsaid or not hidden:
            return
        if isinstance(stop, Transform) and isinstance(stop.how, str):
            from bus_assets import sql

            sources = sql.column_sources(stop.how, unsaid, {at: contract.names for at, contract in inputs.items()}, untold=hidden)
        else:  # what a function computes, or a message names, cannot be seen: a field is taken to come from those of its name
            sources = {made: tuple(pair for pair in hidden if pair[1].lower() == made.lower()) for made in unsaid}
        for made, found in sources.items():
            for at, name in found:
                if (at, name) in hidden:
                    raise Misdeclared(
                        f"stop {stop.name!r}: field {made!r} may hold values of {f'{at}.{name}'!r}, which is sensitive, and does not say "
                        "whether it is; add sensitive=True, or sensitive=False if nothing of the value can be told from it (a count, say)"
                    )

    def _check_drop_off(self, stop: DropOff) -> None:
        contract = self.contract_of(stop.name)
        mapping, of = stop.mapping(contract), self.upstream(stop.name)[0]
        if not mapping:
            raise Misdeclared(f"drop-off {stop.name!r}: columns is empty, so nothing would be dropped; leave it out for all fields")
        for column, name in mapping.items():
            if name not in contract:
                near = difflib.get_close_matches(name, contract.names, 1)
                raise Misdeclared(
                    f"drop-off {stop.name!r}: field {name!r} is not promised by stop {of!r}"
                    + (f"; did you mean {near[0]!r}?" if near else f"; it promises {', '.join(contract.names)}")
                )
            if column.startswith(HIDDEN_PREFIX):
                raise Misdeclared(f"drop-off {stop.name!r}: column {column!r} begins with {HIDDEN_PREFIX!r}, which is the platform's own")
            checked_identifier(column, f"drop-off {stop.name!r}: column")
        into, newest = stop.into, (stop.into.newest,) if stop.into.newest else ()
        for what, columns in (("key", into.key), ("scope", into.scope or ()), ("sums", into.sums), ("newest", newest)):
            for column in columns:
                if column not in mapping:
                    raise Misdeclared(
                        f"drop-off {stop.name!r}: {what} column {column!r} is not among the columns it drops ({', '.join(mapping)})"
                    )
        for column in stop.into.sums:
            if contract[mapping[column]].parsed_type.kind not in ("integer", "number", "decimal"):
                raise Misdeclared(f"drop-off {stop.name!r}: sums column {column!r} is not a number but {contract[mapping[column]].type}")
        for column in newest:
            if contract[mapping[column]].parsed_type.kind not in ("integer", "number", "date", "timestamp", "timestamptz"):
                raise Misdeclared(f"drop-off {stop.name!r}: newest={column!r} is no time or number but {contract[mapping[column]].type}")
        check_placeholders(f"drop-off {stop.name!r}", stop.into.scope or {}, tuple(p.name for p in self.parameters))

    def _check_tables(self) -> None:
        first: dict[tuple[str, str], DropOff] = {}
        for stop in self.drop_offs:
            other = first.setdefault((stop.into.database, stop.into.name), stop)
            if other is not stop and {other.into.mode, stop.into.mode} != {"append"}:
                raise Misdeclared(
                    f"drop-offs {other.name!r} and {stop.name!r} both write table {stop.into.name!r}; "
                    "only appends may share a table: combine the rows in a Transform first"
                )

    def _check_queue(self, queue: Queue) -> None:
        if len([trigger for trigger in self.triggers if isinstance(trigger, Queue)]) > 1:
            raise Misdeclared("it has two queues; give each a route of its own (they may share stop values), or let SNS fan in to one")
        if self.crons:
            raise Misdeclared("it has a Queue and a Cron; make two routes that share stop values")
        for parameter in self.parameters:
            if parameter.default is None:
                raise Misdeclared(f"parameter {parameter.name!r} has no default, and a message sets none; give it a default")
        for stop in self.stops:
            if isinstance(stop, Transform):
                self._check_looked_up(stop)
            if not isinstance(stop, DropOff):
                self._check_within_messages(stop)
            if isinstance(stop, Transform) and stop.grain == "changed" and self.of_messages(self.upstream(stop.name)[0]):
                self._check_combine(stop)
            if isinstance(stop, DropOff) and stop.into.mode == "replace" and self.of_messages(self.upstream(stop.name)[0]):
                raise Misdeclared(
                    f"drop-off {stop.name!r}: mode 'replace' would delete what other messages dropped, and which messages share a trip is "
                    "chance; use a key (upsert), or append"
                )

    def _check_looked_up(self, stop: Transform) -> None:
        """Rows made of messages are carried on, or looked up by such rows: else they would be dropped, and have no message."""
        first, *others = after = self.upstream(stop.name)
        for made in filter(self.from_messages, others):
            if not self.from_messages(first):
                better = (made, *(name for name in after if name != made))
                raise Misdeclared(
                    f"stop {stop.name!r}: its rows belong to {first!r}, so nobody could tell which of them come from a message of "
                    f"{made!r}, which it looks up: write after={better}, and have it make the rows of {made!r}, with what it finds in the "
                    "others"
                )
            if self.adds_up(stop.name) or self.adds_up(made):
                raise Misdeclared(
                    f"stop {stop.name!r} looks up {made!r}, and one of the two is added up from several messages: it would find the "
                    "rows of those that happen to share a trip. Look up before combine='accumulate', where each row belongs to one message"
                )

    def _check_within_messages(self, stop: PickUp | Transform) -> None:
        """What messages bring is referred to within the message, and not counted: a row of another one is in the trip by chance."""
        for field_ in stop.contract.fields:
            other = field_.references.split(".")[0] if isinstance(field_.references, str) else stop.name
            if other == stop.name or not self.from_messages(other):
                continue
            if stray := next((name for name in (stop.name, other) if not self.of_messages(name)), None):
                raise Misdeclared(
                    f"stop {stop.name!r}: field {field_.name!r} references {field_.references!r}, which is asked within each message, and "
                    f"no row of {stray!r} belongs to one; let rows of messages refer to each other before combine='accumulate', or to "
                    "what no message brings"
                )
        if (least := stop.contract.min_rows) and self.from_messages(stop.name):
            raise Misdeclared(
                f"stop {stop.name!r}: min_rows={least} would be counted over the messages that happen to share a trip; leave it out "
                "(a function with combine='alone' may raise for a message that brings too few rows)"
            )

    def _check_combine(self, stop: Transform) -> None:
        if stop.combine is None:
            raise Misdeclared(
                f"stop {stop.name!r} changes the grain, and which messages share a trip is chance: say combine='alone' (each message's "
                "rows by themselves) or combine='accumulate' (the table that its rows are dropped into adds up)"
            )
        if stop.combine == "accumulate":
            for drop in self.drop_offs:
                if stop.name in (self.upstream(drop.name)[0], *self.ancestors(drop.name)) and drop.into.mode != "accumulate":
                    raise Misdeclared(
                        f"stop {stop.name!r} says combine='accumulate', but drop-off {drop.name!r} is a table in mode "
                        f"'{drop.into.mode}'; give it mode='accumulate' and sums=(…), or say combine='alone'"
                    )

    def _check_triggers(self) -> None:
        names = {parameter.name: parameter for parameter in self.parameters}
        for trigger in self.crons:
            for name, value in trigger.parameters.items():
                if name not in names:
                    raise Misdeclared(f"Cron {trigger.schedule!r} sets parameter {name!r}, which the route does not declare")
                names[name].value(value)
            for name, parameter in names.items():
                if parameter.default is None and name not in trigger.parameters:
                    raise Misdeclared(
                        f"Cron {trigger.schedule!r} leaves parameter {name!r} open; give it a default or set it in the trigger"
                    )


def _own_sql(stop: Stop) -> tuple[str, ...]:
    """SQL that runs on staged rows as it is written."""
    if isinstance(stop, DropOff):
        return (stop.where,) if stop.where else ()
    how = (stop.how,) if isinstance(stop, Transform) and isinstance(stop.how, str) else ()
    return (*how, *(check.sql for check in stop.checks))


def _no_repeats(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise Misdeclared(f"{what} {name!r} appears twice; {what} names must be unique in a route")
