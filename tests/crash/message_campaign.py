"""The second part of the campaign: messages flow, dispatchers and workers are killed, and nothing is lost, doubled or out of order.

Unmodified product code in processes of its own. While messages are sent (some of them twice) the processes are killed at seeded moments
and started again; meanwhile dead letters are redriven, delivered messages are replayed on purpose, a run is stopped until its lease is
over, and the depot is replaced by its earlier copy.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus_assets.drive import Bus
from bus_assets.rebuild import rebuild
from resources.depot.store import Depot
from resources.staging import StagingArea
from tests.crash.message_aims import SHARES, Aim
from tests.crash.message_routes import Place, routes, systems
from tests.crash.message_town import FIFO_GROUPS, MessageTown, Worker, wrong
from tests.crash.message_windows import WINDOWS, Windows
from tests.crash.town import rows, warm_up
from tests.emulators import ministack
from tests.servers import fresh_database

SQLITE, POSTGRES = "on SQLite", "on Postgres"
KINDS = (SQLITE, POSTGRES)
TWICE_SHARE, DIRTY_SHARE = 0.1, 0.04
ITEMS = 20
MOST_BEHIND = 150
"""Messages are not sent faster than that many behind what is applied."""
REPLAYED = 15
DRAIN_SECONDS = 120
LEASE_OVER_SECONDS = 4.0
REACH_SECONDS = 0.03
"""After a kill: what a dead process has asked of a server is done by then."""


@dataclass(frozen=True)
class Plan:
    """How much is to happen in one town. ``most_seconds``: after so long no more kills are tried, and the report says so."""

    messages: int
    kills: int
    poisons: int = 5
    strandings: int = 1
    zombies: int = 0
    restore: bool = False
    replay: bool = True
    most_seconds: float = 240.0


@dataclass
class MessageTally:
    landed: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.landed.total()

    @property
    def by_window(self) -> dict[str, int]:
        return {name: sum(count for (found, _), count in self.landed.items() if found == name) for name in WINDOWS}

    @property
    def empty_windows(self) -> list[str]:
        return [name for name, count in self.by_window.items() if not count]


class Sender:
    """Sends new messages, and now and then an old one once more."""

    def __init__(self, town: MessageTown, rng: random.Random):
        self._town, self._rng, self._numbers = town, rng, Counter[str]()
        self.twice = 0

    def send(self, count: int) -> None:
        for route in ("events", "lines"):
            bodies: list[dict[str, Any]] = []
            for _ in range(count // 2):
                bodies.append(self._line() if route == "lines" else self._event())
                if self._rng.random() < TWICE_SHARE:
                    known = [body for body in self._town.sent.values() if ("place" in body) == (route == "lines")]
                    bodies.append(self._rng.choice(known or bodies))
                    self.twice += 1
            self._town.send(route, bodies)

    def poison(self) -> None:
        self._numbers["poison"] += 1
        self._town.send("events", [{"id": f"p{self._numbers['poison']}", "item": "poison", "qty": 1}])

    def _event(self) -> dict[str, Any]:
        self._numbers["events"] += 1
        qty = 0 if self._rng.random() < DIRTY_SHARE else self._rng.randint(1, 9)
        return {"id": f"e{self._numbers['events']}", "item": f"item {self._rng.randrange(ITEMS)}", "qty": qty}

    def _line(self) -> dict[str, Any]:
        self._numbers["lines"] += 1
        return {"id": f"l{self._numbers['lines']}", "place": self._rng.choice(FIFO_GROUPS), "number": self._numbers["lines"]}


@dataclass
class Siege:
    """The kills in one town."""

    town: MessageTown
    kind: str
    rng: random.Random
    plan: Plan
    tally: MessageTally
    running: list[Worker]
    again: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.sender, self.aim, self.windows = Sender(self.town, self.rng), Aim(self.town, self.rng), Windows(self.town)
        each = self.rng.sample(list(SHARES), len(SHARES))
        self._aims = self.rng.choices(list(SHARES), list(SHARES.values()), k=10 * self.plan.kills) + each  # taken from the end
        self._done = set[str]()

    def hold(self) -> None:
        """Send, kill, and whatever else the plan says, until both numbers are reached."""
        deadline = time.monotonic() + self.plan.most_seconds
        chunk, kills = -(-self.plan.messages // self.plan.kills), 0
        self.sender.send(2 * chunk)
        while (kills < self.plan.kills or len(self.town.sent) < self.plan.messages) and time.monotonic() < deadline:
            kills += self.kill_once(chunk)
            for what in self._due(kills / self.plan.kills):
                what()
            self.resume()
        self.drain()

    def kill_once(self, chunk: int) -> bool:
        kind = self._aims.pop() if self._aims else "any run"
        if kind == "revoked":  # there is something to be revoked only after a run's death
            self._kill(self.aim.taken("claimed", self.running, lambda: None), "claimed")
        victim = self.aim.taken(kind, self.running, lambda: self.sender.send(chunk) if self._behind() < MOST_BEHIND else None)
        return self._kill(victim, kind)

    def _kill(self, victim: Worker | None, aim: str) -> bool:
        if victim is None:
            self.tally.missed[aim] += 1
            return False
        victim.stop()
        was_inside = victim.route is None and self.town.publisher() == victim.pid
        landed = victim.kill()
        time.sleep(REACH_SECONDS)
        if landed:
            self.tally.landed[self.windows.of(victim, was_inside=was_inside), self.kind] += 1
        self.running[self.running.index(victim)] = self.town.start(victim.route)
        return landed

    def _behind(self) -> int:
        live = sum(counter[state] for counter in self.town.states().values() for state in ("waiting", "aboard"))
        return live + sum(sum(self.town.on_queue(queue)) for queue in self.town.states())

    def _due(self, share: float) -> Iterator[Callable[[], None]]:
        """What is to be done at this share of the kills, each thing once."""
        plan = self.plan
        things: list[tuple[float, str, Callable[[], None]]] = [
            (0.02 + 0.06 * n, f"poison {n}", self.sender.poison) for n in range(plan.poisons)
        ]
        if plan.restore:
            things += [(0.1, "copy", self.copy), (0.4, "restore", self.restore)]
        things += [(0.5 - 0.1 * n, f"stranding {n}", self.strand) for n in range(plan.strandings)]
        things += [(0.55, "redrive", self.redrive)]
        if plan.replay:
            things += [(0.7, "replay", self.replay), (0.85, "replay again", self.replay)]
        things += [((n + 0.5) / plan.zombies, f"zombie {n}", self.haunt) for n in range(plan.zombies)]
        for at, name, what in things:
            if share >= at and name not in self._done:
                self._done.add(name)
                yield what

    # What else happens

    def strand(self) -> None:
        """A message that is given up at once; the tick that does so is killed before a copy is sent. In traffic that is over at once."""
        self._until(lambda: not self._behind(), 20)
        self.sender.poison()
        self._kill(self.aim.taken("stranded", self.running, lambda: None), "stranded")

    def redrive(self) -> None:
        """The author's function is mended; what lies in the dead letters goes back to the queue."""
        self._until(self._poison_is_stranded)
        self.town.place.mended.touch()
        self.tally.told["dead letters redriven"] += self.town.redrive()

    def _poison_is_stranded(self) -> bool:
        """All that was sent is given up, and its copies are sent."""
        stranded = self.town.states()["events"]["stranded"]
        sent = sum(body.get("item") == "poison" for body in self.town.sent.values())
        return stranded == sent and not rows(self.town.depot, "SELECT 1 FROM depot_messages WHERE to_dead_letters")

    def replay(self) -> None:
        """Some messages that are delivered are delivered once more, on purpose."""
        depot = Depot(self.town.place.depot_url)
        try:
            delivered = depot.inbox.replay("events")
            chosen = self.rng.sample(delivered, min(REPLAYED, len(delivered)))
            depot.inbox.again(chosen, "to see what comes twice")
            keys = dict(tuple(row) for row in rows(self.town.depot, "SELECT id, key FROM depot_messages"))
        finally:
            depot.close()
        self.again.update(keys[message].removeprefix("body:") for message in chosen)
        self.tally.told["replayed on purpose"] += len(chosen)

    def haunt(self) -> None:
        """A run is stopped, its lease is made to run out, others see to its trip, and it wakes up."""
        kind = self.rng.choice(("judged", "publishing", "publishing", "committed"))
        zombie = self.aim.taken(kind, self.running, lambda: self.sender.send(10))
        if zombie is None or zombie.route:
            self.tally.told["zombies that came too late"] += 1
            return
        zombie.stop()
        held = self.town.publisher() == zombie.pid
        mine = "SELECT trip, attempt FROM depot_attempts WHERE pid = :p AND ended_at IS NULL"
        live = rows(self.town.depot, mine, p=zombie.pid)
        past = "UPDATE depot_attempts SET lease_until = '2020-01-01 00:00:00.000000' WHERE pid = :p AND ended_at IS NULL"
        self._write(past, p=zombie.pid)
        self._until(lambda: not rows(self.town.depot, mine, p=zombie.pid), LEASE_OVER_SECONDS)
        overtaken = bool(live) and not rows(self.town.depot, mine, p=zombie.pid)
        zombie.wake()
        how = "in its transaction" if held else "with a live attempt" if live else "after its attempt"
        self.tally.told[f"zombies stopped {how}, {'overtaken' if overtaken else 'not overtaken'}"] += 1

    def copy(self) -> None:
        self._end_all()
        self.town.copy_depot()
        self._start_all()

    def restore(self) -> None:
        """Yesterday's depot, in mid-traffic; then what `bus depot rebuild` does."""
        self._end_all()
        self.town.restore_depot()
        place = self.town.place
        depot = Depot(place.depot_url)
        try:
            bus = Bus(depot, StagingArea(url=str(place.staging)).open(), systems(place))
            rebuilt = [rebuild(bus, route) for route in routes(place).values()]
        finally:
            depot.close()
        for found in rebuilt:
            self.tally.told["rebuilt after a restore: not known"] += found.archived - found.known
            self.tally.told["rebuilt after a restore: delivered already"] += found.by_state.get("delivered", 0)
        self._start_all()

    def resume(self) -> None:
        """What a person does when several trips in a row have failed."""
        for route, reason in rows(self.town.depot, "SELECT route, paused_reason FROM depot_routes WHERE paused_at IS NOT NULL"):
            self.tally.told[f"times route {route} was paused, and resumed"] += 1
            print(f"  paused {route}: {reason[:300]}", file=sys.stderr, flush=True)
            depot = Depot(self.town.place.depot_url)
            depot.inbox.resume(route)
            depot.close()

    def drain(self) -> None:
        """No more kills; everything is to arrive."""
        if not self.town.place.mended.exists():
            self.redrive()
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            self.resume()
            if self.town.wait_until_quiet(5):
                if not self.town.states()["events"]["stranded"]:
                    break
                self.tally.told["dead letters redriven"] += self.town.redrive()
        else:
            self.tally.problems.append(f"{self.kind}: not quiet after {DRAIN_SECONDS} s: {self.town.told()}")
        self.tally.problems += [f"{self.kind}: {problem}" for problem in wrong(self.town, self.again)]
        self.tally.told["messages"] += len(self.town.sent)
        self.tally.told["sent twice"] += self.sender.twice
        duplicates = rows(self.town.depot, "SELECT sum(duplicates) FROM depot_messages")
        self.tally.told["deliveries known as duplicates"] += int(duplicates[0][0] or 0)

    def _until(self, happened: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not happened() and time.monotonic() < deadline:
            self.resume()
            time.sleep(0.05)

    def _write(self, sql: str, **values: Any) -> None:
        import sqlalchemy as sa

        with self.town.depot.begin() as connection:
            connection.execute(sa.text(sql), values)

    def _end_all(self) -> None:
        for worker in self.running:
            worker.kill()

    def _start_all(self) -> None:
        self.windows.forget()
        self.running[:] = [self.town.start(worker.route) for worker in self.running]


def besieged(kind: str, town: MessageTown, seed: int, plan: Plan, tally: MessageTally) -> None:
    with town.running() as running:
        Siege(town, kind, random.Random(seed), plan, tally, running).hold()


def twins(town: MessageTown, messages: int, seed: int, seconds: float = 2 * DRAIN_SECONDS) -> list[str]:
    """Two dispatchers per route on one depot and one queue, from the first message to the last; what differs from the oracle."""
    sender = Sender(town, random.Random(seed))
    with town.running(dispatchers=2):
        while len(town.sent) < messages:
            sender.send(min(100, messages))
        quiet = town.wait_until_quiet(seconds)
    problems = list(wrong(town))
    return problems if quiet else [*problems, f"not quiet after {seconds:.0f} s: {town.told()}"]


@contextmanager
def message_towns(root: Path, server: str) -> Iterator[Callable[[str], MessageTown]]:
    """Makes towns below ``root``, each with databases and a cloud of its own; all are gone at the end."""
    with ExitStack() as stack:

        def build(kind: str) -> MessageTown:
            folder = Path(tempfile.mkdtemp(prefix="messages-", dir=root))
            warehouse, depot = f"sqlite:///{folder}/warehouse.db", f"sqlite:///{folder}/depot.db"
            if kind == POSTGRES:
                warehouse, depot = (stack.enter_context(fresh_database(server)) for _ in range(2))
            cloud = stack.enter_context(ministack())
            return MessageTown(Place(folder, warehouse, depot, cloud.url), cloud)

        yield build


def whole(messages: int, kills: int) -> Plan:
    """The share of each kind of town in a campaign of so many messages and kills, with everything that can happen."""
    share = -(-kills // len(KINDS))
    return Plan(-(-messages // len(KINDS)), share, poisons=4, strandings=3, zombies=max(2, share // 15), restore=True)


def campaign(root: Path, server: str, seed: int, plan: Plan) -> MessageTally:
    """``plan`` in a town of each kind; then, without kills, two dispatchers at once on as many messages as all of those had."""
    tally = MessageTally()
    warm_up()
    with message_towns(root, server) as build:
        for kind in KINDS:
            besieged(kind, build(kind), seed, plan, tally)
            print(f"  {tally.kills} kills, {len(tally.problems)} problems", file=sys.stderr, flush=True)
        for kind in KINDS:
            town = build(kind)
            tally.problems += [f"two dispatchers {kind}: {problem}" for problem in twins(town, plan.messages * len(KINDS), seed)]
            tally.told["messages with two dispatchers at once"] += len(town.sent)
            print(f"  two dispatchers {kind}, {len(tally.problems)} problems", file=sys.stderr, flush=True)
    return tally


def told(tally: MessageTally, seconds: float) -> str:
    """The report: kills per window and kind of town, what else happened, and what differed."""
    kinds = sorted({kind for _, kind in tally.landed})
    lines = [f"{tally.kills} kills landed ({tally.missed.total()} moments did not come: {dict(tally.missed)}), {seconds:.0f} s", ""]
    lines += [f"{'killed in':38}{'kills':>7}   " + "   ".join(kinds)]
    for name, count in tally.by_window.items():
        shares = "   ".join(f"{tally.landed[name, kind]:>{len(kind)}}" for kind in kinds)
        lines.append(f"{name:38}{count:>7}   {shares}" + ("   ← none" if not count else ""))
    lines += ["", *(f"{count:>7,} {what}" for what, count in tally.told.items())]
    lines += ["", f"{len(tally.problems)} differences from the oracle", *(f"  {problem}" for problem in tally.problems)]
    return "\n".join(lines)
