"""Explore schedules at random, seeded: ``python -m tests.model.schedules --minutes 10``. Ends with 1 at the first broken promise."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.model.world import Budget, Found, ModelWorld, prepare

STEPS = 160
FAULT_SHARE = 0.08
"""Of the steps of a schedule; else it is spent before anything has happened."""
STAY_SHARES = (0.5, 0.9, 0.97)
"""How often the actor that went on last goes on; one for each schedule. Most races need few switches, but long stretches between."""


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="bus-model-") as folder:
        yield Path(folder)


@contextmanager
def template() -> Iterator[Path]:
    """Databases whose tables are made, to start each schedule from."""
    with _folder() as folder:
        world = ModelWorld(folder, None, Budget(), messages=1)
        world.rest()
        for table in ("depot_messages", "depot_trips", "depot_attempts", "depot_verdicts", "depot_publications", "depot_routes"):
            world._write(f"DELETE FROM {table}")
        for name, database in world._look.items():
            for table in ("bus_outcomes", "bus_receipts", "bus_applied", "bus_plans", "log" if name == "first" else "copy"):
                database.execute(f"DELETE FROM {table}")
            database.commit()
        world.close()
        for leftover in folder.glob("staging/*"):
            shutil.rmtree(leftover)
        yield folder


def explore(
    seed: int, budget: Budget, *, seconds: float, first: int = 0, schedules: int = 1_000_000, messages: Sequence[int] = (2, 3, 4)
) -> Found:
    """Schedule after schedule, from number ``first`` on, until one breaks a promise, there are enough, or the time is over. One of
    ``messages`` is poison, if there are several."""
    found, deadline = Found(), time.monotonic() + seconds
    with template() as start:
        for number in range(first, first + schedules):
            if found.problem or time.monotonic() > deadline:
                break
            rng = random.Random(f"{seed}/{number}")
            with _folder() as folder:
                world = ModelWorld(folder, start, replace(budget), messages=rng.choice(messages))
                try:
                    _one(world, rng, found)
                finally:
                    world.close()
            found.schedules += 1
    return found


def _one(world: ModelWorld, rng: random.Random, found: Found) -> None:
    last, stay = "", rng.choice(STAY_SHARES)
    for _ in range(rng.randint(20, STEPS)):
        actions = world.actions()
        name = _chosen(world, actions, rng, last, stay)
        world.act(name, actions[name])
        last = name.partition(" goes on")[0] if " goes on" in name else ""
        found.steps += 1
        found.problem = world.wrong()
        if found.problem:
            break
    else:
        world.rest()
        found.problem = world.wrong(final=True)
    found.happened.update(step.split()[0] for step in world.trace)
    found.trace = world.trace


def _chosen(world: ModelWorld, actions: Mapping[str, object], rng: random.Random, last: str, stay: float) -> str:
    faults = [name for name in actions if name.split()[0] in vars(world.budget)]
    ours = [name for name in actions if name not in faults]
    stays = [name for name in ours if last and name.startswith(f"{last} goes on")]
    if faults and rng.random() < FAULT_SHARE:
        return rng.choice(faults)
    if stays and rng.random() < stay:
        return stays[0]
    return rng.choice(ours or faults)


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.model.schedules", description="Explore schedules of the real code.")
    asked.add_argument("--minutes", type=float, default=10)
    asked.add_argument("--seed", type=int, default=None, help="default: another each time; it is printed")
    given = asked.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}", flush=True)
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        budget = Budget(kills=4, expired=3, redelivered=3, redriven=2, restored=1, cancelled=2, discarded=1)
        found = explore(seed, budget, seconds=given.minutes * 60)
    print(found)
    print(dict(found.happened))
    return 1 if found.problem else 0


if __name__ == "__main__":
    sys.exit(main())
