"""Messages that flow through a town while its processes are killed, and what else happens to them meanwhile."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from resources.depot.store import Depot
from tests.crash.kills import Kills
from tests.crash.message_town import FIFO_GROUPS, MessageTown, wrong
from tests.crash.message_windows import WINDOWS
from tests.crash.town import rows

TWICE_SHARE, DIRTY_SHARE = 0.1, 0.04
ITEMS = 20
MOST_BEHIND = 150
"""Messages are not sent faster than that many behind what is applied."""
REPLAYED = 15


@dataclass(frozen=True)
class Plan:
    """How much is to happen in one town. ``most_seconds``: after so long no more kills are tried, and the report says so;
    ``drain_seconds``: so long after the last kill everything must have arrived; ``stranded_seconds``: so long the poison may take to be
    given up before the author's function is mended all the same."""

    messages: int
    kills: int
    poisons: int = 5
    strandings: int = 1
    zombies: int = 0
    restore: bool = False
    replay: bool = True
    most_seconds: float = 240.0
    drain_seconds: float = 120.0
    stranded_seconds: float = 30.0


@dataclass
class MessageTally(Kills):
    """What came of it; ``told``: how often what else happened."""

    windows: tuple[str, ...] = WINDOWS
    told: Counter[str] = field(default_factory=Counter)


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
class Traffic:
    """What flows in one town, and what a person does there. Who kills its processes inherits."""

    town: MessageTown
    kind: str
    rng: random.Random
    plan: Plan
    tally: MessageTally
    again: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self.sender = Sender(self.town, self.rng)
        self._done = set[str]()

    def behind(self) -> int:
        live = sum(counter[state] for counter in self.town.states().values() for state in ("waiting", "aboard"))
        return live + sum(sum(self.town.on_queue(queue)) for queue in self.town.states())

    def due(self, share: float) -> Iterator[Callable[[], None]]:
        """What is to be done at this share of the kills, each thing once."""
        for at, name, what in sorted(self.things(), key=lambda thing: thing[0]):
            if share >= at and name not in self._done:
                self._done.add(name)
                yield what

    def things(self) -> list[tuple[float, str, Callable[[], None]]]:
        """At which share of the kills, a name, and what happens then."""
        things: list[tuple[float, str, Callable[[], None]]] = [
            (0.02 + 0.06 * n, f"poison {n}", self.sender.poison) for n in range(self.plan.poisons)
        ]
        if self.plan.replay:
            things += [(0.7, "replay", self.replay), (0.85, "replay again", self.replay)]
        return things

    def redrive(self) -> None:
        """The author's function is mended; what lies in the dead letters goes back to the queue."""
        self.until(self.poison_is_stranded, self.plan.stranded_seconds)
        self.town.place.mended.touch()
        self.tally.told["dead letters redriven"] += self.town.redrive()

    def poison_is_stranded(self) -> bool:
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
        deadline = time.monotonic() + self.plan.drain_seconds
        while time.monotonic() < deadline:
            self.resume()
            if self.town.wait_until_quiet(5):
                if not self.town.states()["events"]["stranded"]:
                    break
                self.tally.told["dead letters redriven"] += self.town.redrive()
        else:
            self.tally.problems.append(f"{self.kind}: not quiet after {self.plan.drain_seconds:.0f} s: {self.town.told()}")
        self.tally.problems += [f"{self.kind}: {problem}" for problem in wrong(self.town, self.again)]
        self.tally.told["messages"] += len(self.town.sent)
        self.tally.told["sent twice"] += self.sender.twice
        duplicates = rows(self.town.depot, "SELECT sum(duplicates) FROM depot_messages")
        self.tally.told["deliveries known as duplicates"] += int(duplicates[0][0] or 0)

    def until(self, happened: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not happened() and time.monotonic() < deadline:
            self.resume()
            time.sleep(0.05)


def told(tally: MessageTally, seconds: float) -> str:
    """The report: kills per window and kind of town, what else happened, and what differed."""
    missed = f"{tally.missed.total()} moments did not come: {dict(tally.missed)}"
    lines = [f"{tally.kills} kills landed ({missed}), {seconds:.0f} s", "", *tally.table(38)]
    lines += ["", *(f"{count:>7,} {what}" for what, count in tally.told.items())]
    return "\n".join([*lines, "", *tally.differences()])
