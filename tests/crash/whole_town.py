"""The third part of the campaign: `bus up` as a person starts it, whose own processes are killed while messages flow.

By SIGKILL from outside: the daemon, the code server in which the sensors tick, the worker's main process, and the process of the worker
that drives a run. Messages, and what a person does with them, are those of the second part; so is the oracle. The cloud is outside the
town and stays: it keeps its queues in memory.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.bus_up import Up, belonging, up, wait_until_ready
from tests.crash.message_aims import risen
from tests.crash.message_campaign import KINDS, message_towns
from tests.crash.message_routes import Place
from tests.crash.message_town import MessageTown, stop
from tests.crash.message_traffic import MessageTally, Plan, Traffic
from tests.crash.town import rows

MODULE = "tests.crash.whole_town_routes"
DAEMON, CODE, WORKERS, CHILD = "daemon", "code", "workers", "worker's child"
VICTIMS = (DAEMON, CODE, WORKERS, CHILD)
ROUND = (*VICTIMS, CHILD)
"""A worker starts another child at once; the others come back later with each death, as the supervisor waits longer."""
AIMED_SHARE = 0.6
LATER_SECONDS = {DAEMON: 0.6, CODE: 0.04, WORKERS: 0.3, CHILD: 0.3}
"""Kills that are aimed come within so long after a trip departed; of a worker, after one was claimed."""
SPACE_SECONDS, AIM_SECONDS, BACK_SECONDS, OVER_SECONDS, END_SECONDS = 3.0, 12.0, 90.0, 60.0, 60.0
SEND_SECONDS, SENT_AT_ONCE = 0.5, 10
MOST_WAITING = 160
"""Messages are not sent faster than that many behind what is applied; trips that wait for their next run are among them."""
POLL_SECONDS = 0.01
WORKER_PROCESSES = 2
_DRIVEN = "SELECT pid FROM depot_attempts WHERE ended_at IS NULL"
_LAUNCHES = "SELECT route, sum(launches) FROM depot_trips GROUP BY route"


@dataclass
class WholeSiege(Traffic):
    """The kills in one town."""

    up: Up
    _send_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        records = self.town.place.dagster_home
        self._runs = sa.create_engine(f"sqlite:///{records}/history/runs.db", poolclass=NullPool)
        self._ticks = sa.create_engine(f"sqlite:///{records}/schedules/schedules.db", poolclass=NullPool)

    def hold(self) -> None:
        """Send, kill, and whatever else the plan says; then all must come back, arrive, and end."""
        deadline, kills, victims = time.monotonic() + self.plan.most_seconds, 0, self._victims()
        while kills < self.plan.kills and time.monotonic() < deadline:
            kills += self.kill_once(next(victims))
            for what in self.due(kills / self.plan.kills):
                what()
            if kills > self.plan.kills / 2 and not self.town.place.mended.exists() and self.poison_is_stranded():
                self.redrive()
        self.come_back()
        if not self.town.place.mended.exists():
            self.redrive()
        for what in self.due(1):
            what()
        while len(self.town.sent) < self.plan.messages:
            self.sender.send(SENT_AT_ONCE)
        self.drain()
        self.runs_over()

    def _victims(self) -> Iterator[str]:
        while True:
            yield from self.rng.sample(ROUND, len(ROUND))

    def kill_once(self, name: str) -> bool:
        if not self.flow(lambda: self.is_up(WORKERS if name == CHILD else name), BACK_SECONDS):
            self.problem(f"{name} is not up again after {BACK_SECONDS:.0f} s")
            return False
        self.flow(lambda: False, self.rng.random() * SPACE_SECONDS)
        if name == CHILD or self.rng.random() < AIMED_SHARE:
            self.flow(self._moment(name), AIM_SECONDS)
            time.sleep(self.rng.random() * LATER_SECONDS[name])
        pid = self.rng.choice(sorted(self.driving()) or [None]) if name == CHILD else self.pid(name)
        if pid is None or not stop(pid):
            self.tally.missed[name] += 1
            return False
        doing = self.doing(name, pid)
        os.kill(pid, signal.SIGKILL)
        self.tally.landed[name, self.kind] += 1
        self.tally.told[f"{name} killed {doing}"] += 1
        return True

    def _moment(self, name: str) -> Callable[[], object]:
        if name in (WORKERS, CHILD):
            return self.driving
        return risen(lambda: {route: int(number) for route, number in rows(self.town.depot, _LAUNCHES)})

    def flow(self, happened: Callable[[], object], seconds: float) -> bool:
        """Messages are sent and a paused route is resumed until it ``happened``; False if it did not in that time."""
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                return False
            if time.monotonic() > self._send_at:
                self._send_at = time.monotonic() + SEND_SECONDS
                self.resume()
                if self.behind() < MOST_WAITING:
                    self.sender.send(SENT_AT_ONCE)
            time.sleep(POLL_SECONDS)
        return True

    # The town's processes

    def pid(self, name: str) -> int | None:
        """The process of that name that is ready; None while there is none."""
        pid = (self.up.pids(name) or [0])[-1]
        return pid if pid and Path(f"/proc/{pid}").exists() else None

    def is_up(self, name: str) -> bool:
        return self.pid(name) is not None

    def children(self) -> set[int]:
        """Of the worker's main process."""
        pid, found = self.pid(WORKERS), set[int]()
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found |= set(map(int, (thread / "children").read_text().split()))
        return found

    def driving(self) -> set[int]:
        """The worker's children that have claimed a trip and not ended their attempt."""
        return self.children() & {pid for (pid,) in rows(self.town.depot, _DRIVEN)}

    def doing(self, name: str, pid: int) -> str:
        """What ``pid``, which stands still, is about."""
        if name == CHILD:
            return "while it drove a run" if pid in self.driving() else "after it drove a run"
        if name == WORKERS:
            return "while a run was driven" if self.driving() else "while no run was driven"
        if name == CODE:
            is_on = rows(self._ticks, "SELECT 1 FROM job_ticks WHERE status = 'STARTED' LIMIT 1")
            return "while a tick was on" if is_on else "between two ticks"
        waits = rows(self.town.depot, "SELECT 1 FROM depot_trips WHERE state = 'departed' LIMIT 1")
        return "while a trip waited for its run" if waits else "while no trip waited for its run"

    def come_back(self) -> None:
        self.until(lambda: all(map(self.is_up, (*VICTIMS[:3], "web"))) and len(self.children()) >= WORKER_PROCESSES, BACK_SECONDS)
        for name in (*VICTIMS[:3], "web"):
            if not self.is_up(name):
                self.problem(f"{name} has not come back after {BACK_SECONDS:.0f} s; {self.up.text[-2000:]}")
        if len(self.children()) < WORKER_PROCESSES:
            self.problem(f"the worker has {len(self.children())} of {WORKER_PROCESSES} processes")

    def runs_over(self) -> None:
        """With nothing under way, no run seems to be driven."""
        driven = "SELECT run_id FROM runs WHERE status = 'STARTED'"
        self.until(lambda: not rows(self._runs, driven), OVER_SECONDS)
        if left := rows(self._runs, driven):
            self.problem(f"{len(left)} runs seem to be driven after {OVER_SECONDS:.0f} s, e.g. {left[0][0]}")
        for status, count in rows(self._runs, "SELECT status, count(*) FROM runs GROUP BY status"):
            self.tally.told[f"runs {status}"] += count
        again = rows(self.town.depot, "SELECT count(*) FROM depot_trips WHERE launches > 1")
        self.tally.told["trips whose run was asked for more than once"] += again[0][0]

    def problem(self, text: str) -> None:
        self.tally.problems.append(f"{self.kind}: {text}")


def besieged(kind: str, town: MessageTown, seed: int, plan: Plan, tally: MessageTally) -> None:
    place = town.place
    with up(place.root, module=MODULE, more=_environment(place, town.emulator.environment)) as started:
        wait_until_ready(started)
        siege = WholeSiege(town, kind, random.Random(seed), plan, tally, started)
        siege.hold()
        started.popen.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            started.popen.wait(END_SECONDS)
        if left := belonging(place.root):
            siege.problem(f"processes {left} are left, {END_SECONDS:.0f} s after SIGTERM")


def _environment(place: Place, cloud: Mapping[str, str]) -> dict[str, str]:
    return {**cloud, "BUS_DEPOT_URL": place.depot_url, "BUS_WAREHOUSE_URL": place.warehouse_url, "BUS_STAGING_URL": str(place.staging)}


def whole(messages: int, kills: int) -> Plan:
    """The share of each kind of town in a campaign of so many messages and kills."""
    share = -(-kills // len(KINDS))
    return Plan(-(-messages // len(KINDS)), share, poisons=2, most_seconds=150, drain_seconds=360, stranded_seconds=150)


def campaign(root: Path, server: str, seed: int, plan: Plan) -> MessageTally:
    """``plan`` in a town of each kind."""
    tally = MessageTally(VICTIMS)
    with message_towns(root, server) as build:
        for kind in KINDS:
            besieged(kind, build(kind), seed, plan, tally)
            print(f"  {tally.kills} kills of a town's processes, {len(tally.problems)} problems", file=sys.stderr, flush=True)
    return tally
