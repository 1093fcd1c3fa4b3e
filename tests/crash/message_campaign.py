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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bus_assets.drive import Bus
from bus_assets.rebuild import rebuild
from resources.depot.store import Depot
from resources.staging import StagingArea
from tests.crash.message_aims import SHARES, Aim
from tests.crash.message_routes import Place, routes, systems
from tests.crash.message_town import MessageTown, Worker, wrong
from tests.crash.message_traffic import MOST_BEHIND, MessageTally, Plan, Sender, Traffic
from tests.crash.message_windows import Windows
from tests.crash.town import rows, warm_up
from tests.emulators import ministack
from tests.servers import fresh_database

SQLITE, POSTGRES = "on SQLite", "on Postgres"
KINDS = (SQLITE, POSTGRES)
TWINS_SECONDS = 600
LEASE_OVER_SECONDS = 4.0
REACH_SECONDS = 0.03
"""After a kill: what a dead process has asked of a server is done by then."""


@dataclass
class Siege(Traffic):
    """The kills in one town."""

    running: list[Worker]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.aim, self.windows = Aim(self.town, self.rng), Windows(self.town)
        each = self.rng.sample(list(SHARES), len(SHARES))
        self._aims = self.rng.choices(list(SHARES), list(SHARES.values()), k=10 * self.plan.kills) + each  # taken from the end

    def hold(self) -> None:
        """Send, kill, and whatever else the plan says, until both numbers are reached."""
        deadline = time.monotonic() + self.plan.most_seconds
        chunk, kills = -(-self.plan.messages // self.plan.kills), 0
        self.sender.send(2 * chunk)
        while (kills < self.plan.kills or len(self.town.sent) < self.plan.messages) and time.monotonic() < deadline:
            kills += self.kill_once(chunk)
            for what in self.due(kills / self.plan.kills):
                what()
            self.resume()
        self.drain()

    def kill_once(self, chunk: int) -> bool:
        kind = self._aims.pop() if self._aims else "any run"
        if kind == "revoked":  # there is something to be revoked only after a run's death
            self._kill(self.aim.taken("claimed", self.running, lambda: None), "claimed")
        victim = self.aim.taken(kind, self.running, lambda: self.sender.send(chunk) if self.behind() < MOST_BEHIND else None)
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

    def things(self) -> list[tuple[float, str, Callable[[], None]]]:
        plan, things = self.plan, [*super().things(), (0.55, "redrive", self.redrive)]
        if plan.restore:
            things += [(0.1, "copy", self.copy), (0.4, "restore", self.restore)]
        things += [(0.5 - 0.1 * n, f"stranding {n}", self.strand) for n in range(plan.strandings)]
        things += [((n + 0.5) / plan.zombies, f"zombie {n}", self.haunt) for n in range(plan.zombies)]
        return things

    # What else happens

    def strand(self) -> None:
        """A message that is given up at once; the tick that does so is killed before a copy is sent. In traffic that is over at once."""
        self.until(lambda: not self.behind(), 20)
        self.sender.poison()
        self._kill(self.aim.taken("stranded", self.running, lambda: None), "stranded")

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
        try:
            self._write(past, p=zombie.pid)
        except sa.exc.OperationalError:  # SQLite: stopped in the middle of telling the depot, it keeps everybody out until it wakes
            zombie.wake()
            self.tally.told["zombies stopped while they held the depot"] += 1
            return
        self.until(lambda: not rows(self.town.depot, mine, p=zombie.pid), LEASE_OVER_SECONDS)
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

    def _write(self, sql: str, **values: Any) -> None:
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


def twins(town: MessageTown, messages: int, seed: int, seconds: float = TWINS_SECONDS) -> list[str]:
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
