"""Kill the process that drives, again and again, and hold what it leaves against an oracle: ``python -m tests.crash.campaign``.

Unmodified product code in processes of its own, killed by SIGKILL from outside at seeded moments, in three parts, and a fourth:

    files     here: a process that drives a trip is killed while it boards, stages, judges and publishes; then the same trip is driven
              again, and perhaps killed again, until it is delivered
    messages  :mod:`tests.crash.message_campaign`: messages, the dispatchers that start their trips, and those who drive them
    town      :mod:`tests.crash.whole_town`: a whole `bus up` and its own processes
    daemons   :mod:`tests.crash.two_daemons`: no kills, but two daemons and two code locations where there should be one of each

Ends with 1 if anything differs from the oracle, or if no kill landed in one of the windows (`town`: of one of the kinds of processes).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import message_campaign, message_traffic, oracle, two_daemons, whole_town
from tests.crash.aims import SHARES, Aim, Ridden
from tests.crash.batches import Batch, made
from tests.crash.kills import Kills
from tests.crash.routes import Place
from tests.crash.town import Town, warm_up
from tests.crash.windows import WINDOWS, before, window
from tests.crash.zombies import MOMENTS, haunt
from tests.servers import fresh_database, postgres_server

ROUTES = ("sales", "takings")
MIXED, SQLITE, POSTGRES = "warehouse on Postgres, depot on SQLite", "everything on SQLite", "everything on Postgres"
KINDS = (MIXED, SQLITE, POSTGRES)
TRIPS_IN_A_TOWN = 12
ZOMBIES_IN_A_TOWN = 2
MOST_KILLS_OF_A_TRIP = 5
AGAIN_SHARE = 0.3
"""Of the trips that a killed process had delivered, so many are driven once more."""
MAX_SECONDS = 25 * 60
DAEMONS_SECONDS = 10 * 60
ENOUGH_PROBLEMS = 20


@dataclass
class Tally(Kills):
    """What a campaign came to."""

    windows: tuple[str, ...] = WINDOWS
    aimed: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    stopped: Counter[str] = field(default_factory=Counter)


@dataclass
class Campaign:
    """Kills in one town. ``plan`` gives the aim of each kill in turn, until there are enough."""

    town: Town
    kind: str
    rng: random.Random
    rows: tuple[int, int]
    plan: Iterator[str]
    tally: Tally
    aim: Aim = field(init=False)
    delivered: list[tuple[str, Batch]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.aim = Aim(self.town, self.rng)

    def trips(self, count: int, *, is_over: Callable[[], bool]) -> None:
        for number in range(1, count + 1):
            if is_over():
                return
            route = ROUTES[number % 2]
            batch = made(self.rng, number, self.rng.randint(*self.rows))
            self.town.land(batch)
            # The first trip is not killed: it tells how long a ride takes here, and makes the tables.
            for _ in range(self.rng.randint(2, MOST_KILLS_OF_A_TRIP) if number > 1 else 0):
                if not is_over():
                    self.kill_once(route, batch)
            self.deliver(route, batch)

    def kill_once(self, route: str, batch: Batch) -> None:
        trip = self.town.trip(route, batch)
        if trip and trip.state == "delivered":
            return
        start, kind = before(self.town, trip), next(self.plan)
        with self.aim.taken(kind, Ridden(route, batch.file, start.attempt)) as wait:
            ride = self.town.start(route, batch, trip.id if trip else None)
            wait(ride)
            landed = ride.kill()
        frames = self.town.unfinished_frames()
        self.town.quiet()
        trip = self.town.trip(route, batch)
        if not landed:
            self.tally.missed[kind] += 1
            return
        where = window(self.town, route, start, trip, frames)
        self.tally.landed[where, self.kind] += 1
        self.tally.aimed[kind] += 1
        self.report(batch, f"killed in '{where}'", oracle.between_kills(self.town, route, batch, trip, self.delivered))

    def deliver(self, route: str, batch: Batch) -> None:
        """Drive to the end; what was delivered already must stay as it is."""
        trip = self.town.trip(route, batch)
        if trip is None or trip.state != "delivered" or self.rng.random() < AGAIN_SHARE:
            started = time.monotonic()
            end = self.town.start(route, batch, trip.id if trip else None).end()
            if trip is None and end.success:
                self.aim.measured(time.monotonic() - started)
            if not end.success:
                self.report(batch, "driven to the end", (f"the run failed: {error[:600]}" for error in end.errors or ("",)))
        self.delivered.append((route, batch))
        self.tally.delivered += 1
        trip = self.town.trip(route, batch)
        self.report(batch, "delivered", oracle.when_delivered(self.town, route, batch, trip, self.delivered))

    def haunt(self) -> None:
        """One trip whose driver is stopped instead of killed, and wakes up when another has delivered it."""
        number, route = len(self.delivered) + 1, self.rng.choice(ROUTES)
        batch = made(self.rng, number, self.rng.randint(*self.rows))
        self.town.land(batch)
        zombie = haunt(self.town, route, batch, self.rng.choice(MOMENTS), self.rng, self.delivered)
        self.delivered.append((route, batch))
        self.tally.stopped[f"{zombie.moment}{', held a lock' if zombie.held_a_lock else ''}" if zombie.stopped else "too late"] += 1
        self.report(batch, f"stopped when {zombie.moment}", iter(zombie.problems))

    def report(self, batch: Batch, when: str, problems: Iterator[str]) -> None:
        for problem in problems:
            self.tally.problems.append(f"{self.kind}, {batch.file}, {when}: {problem}")


def campaign(kills: int, seed: int, rows: tuple[int, int], towns: Sequence[tuple[str, Callable[[], Town]]], *, zombies: int = 0) -> Tally:
    """Kill until ``kills`` have landed, in one town after the other, around again as long as it takes; ``zombies`` in each town."""
    rng, tally = random.Random(seed), Tally()
    warm_up()
    deadline = time.monotonic() + MAX_SECONDS

    def is_over() -> bool:
        return tally.kills >= kills or time.monotonic() > deadline or len(tally.problems) >= ENOUGH_PROBLEMS

    while not is_over():
        for kind, found in towns:
            if not is_over():
                town = Campaign(found(), kind, rng, rows, _aims(rng), tally)
                town.trips(TRIPS_IN_A_TOWN, is_over=is_over)
                for _ in range(zombies):
                    town.haunt()
                said = f"  {tally.kills} kills, {tally.delivered} trips delivered, {len(tally.problems)} problems"
                print(said, file=sys.stderr, flush=True)
    return tally


@contextmanager
def towns(root: Path, server: str, kinds: Sequence[str] = KINDS) -> Iterator[list[tuple[str, Callable[[], Town]]]]:
    """Makers of towns below ``root``, each with databases of its own on the Postgres ``server``; those are gone at the end."""
    with ExitStack() as stack:
        yield [(kind, _maker(kind, root, server, stack)) for kind in kinds]


def _maker(kind: str, root: Path, server: str, stack: ExitStack) -> Callable[[], Town]:
    def build() -> Town:
        folder = Path(tempfile.mkdtemp(prefix="town-", dir=root))
        warehouse, depot = f"sqlite:///{folder}/warehouse.db", f"sqlite:///{folder}/depot.db"
        if kind in (POSTGRES, MIXED):
            warehouse = stack.enter_context(fresh_database(server))
        if kind == POSTGRES:
            depot = stack.enter_context(fresh_database(server))
        return Town(Place(folder, warehouse, depot))

    return build


def _aims(rng: random.Random) -> Iterator[str]:
    while True:
        yield rng.choices(list(SHARES), list(SHARES.values()))[0]


def told(tally: Tally, seconds: float) -> str:
    """The report: kills per window and kind of town, and what differed."""
    late = f"{tally.missed.total()} came too late: {dict(tally.missed)}"
    lines = [f"{tally.kills} kills landed ({late}), {tally.delivered} trips delivered, {seconds:.0f} s", "", *tally.table(28)]
    lines += ["", f"{tally.stopped.total()} processes stopped and woken after another had taken over: {dict(tally.stopped)}"]
    return "\n".join([*lines, "", *tally.differences()])


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.crash.campaign", description="Kill the processes and check what they leave.")
    asked.add_argument("--part", choices=("files", "messages", "town", "daemons"), help="only this part; default: all")
    asked.add_argument("--kills", type=int, default=200, help="how many must land, of files and of messages each")
    asked.add_argument("--town-kills", type=int, default=40, help="how many processes of whole towns are killed, if there is time")
    asked.add_argument("--seed", type=int, default=None, help="default: another each time; it is printed")
    asked.add_argument("--rows", type=int, nargs=2, default=(15_000, 30_000), metavar=("LEAST", "MOST"), help="rows of a file")
    asked.add_argument("--messages", type=int, default=2_000, help="how many flow while processes are killed, in each part")
    given = asked.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="bus-crash-") as root, postgres_server() as server:
        if given.part in (None, "files"):
            started = time.monotonic()
            with towns(Path(root), server) as made_towns:
                tally = campaign(given.kills, seed, tuple(given.rows), made_towns, zombies=ZOMBIES_IN_A_TOWN)
            print(told(tally, time.monotonic() - started), flush=True)
            failed |= bool(tally.problems or tally.empty_windows or tally.kills < given.kills)
        if given.part in (None, "messages"):
            started = time.monotonic()
            plan = message_campaign.whole(given.messages, given.kills)
            found = message_campaign.campaign(Path(root), server, seed, plan)
            print(message_traffic.told(found, time.monotonic() - started), flush=True)
            failed |= bool(found.problems or found.empty_windows or found.kills < given.kills)
        if given.part in (None, "town"):
            started = time.monotonic()
            found = whole_town.campaign(Path(root), server, seed, whole_town.whole(given.messages, given.town_kills))
            print(message_traffic.told(found, time.monotonic() - started), flush=True)
            failed |= bool(found.problems or found.empty_windows)
        if given.part in (None, "daemons"):
            started = time.monotonic()
            twice = two_daemons.doubled(Path(tempfile.mkdtemp(prefix="daemons-", dir=root)), given.messages, seed, DAEMONS_SECONDS)
            print(f"two daemons, two code locations, {time.monotonic() - started:.0f} s\n\n{twice}", flush=True)
            failed |= bool(twice.problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
