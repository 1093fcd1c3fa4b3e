"""What the platform adds to Dagster on a trip with next to no rows. Run by :mod:`bench.worker`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bus_assets import Contract, DropOff, Field, PickUp, Route, Table, TextFile, Transform

STOPS = 4
RULES = 40


def contract() -> Contract:
    """Forty rules on eight fields."""
    texts = tuple(Field(f"t{n}", required=True, min_length=1, max_length=10, pattern="^[a-z]+$", allowed=("a", "b", "c")) for n in range(4))
    numbers = tuple(Field(f"n{n}", "integer", required=True, minimum=0, maximum=1_000, unique=n == 0) for n in range(3))
    made = Contract((*texts, *numbers, Field("d", "date", required=True)), unique=(("n1", "n2"),))
    missing = RULES - len(list(made.rules()))
    if missing:
        raise RuntimeError(f"the contract has {RULES - missing} rules, not {RULES}")
    return made


def route() -> Route:
    """Four gates of forty rules, and a drop-off behind them: one more asset than asked."""
    promised = contract()
    steps = [Transform(f"step{n}", f"SELECT * FROM {'source' if n == 1 else f'step{n - 1}'}", promised) for n in range(1, STOPS)]
    return Route(
        name="small",
        stops=(
            PickUp("source", TextFile("landing", "*.csv"), promised),
            *steps,
            DropOff("dropped", Table("warehouse", "small", create=True)),
        ),
    )


def trips(home: str, rounds: int) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Turn about in one process: Dagster's own four empty assets, and the trip. Both warm, both on an event log on disk."""
    from bench.driven import job
    from resources.database import Database
    from resources.files import LocalFiles

    landing = Path(home) / "landing"
    landing.mkdir()
    header = ",".join(contract().names)
    (landing / "few.csv").write_text(header + "\n" + "".join(f"a,b,c,a,{n},{n},{n},2024-01-01\n" for n in range(10)))
    systems = {"landing": LocalFiles(root=str(landing)), "warehouse": Database(url=f"sqlite:///{home}/warehouse.db")}
    ours, theirs = job(route(), systems, Path(home) / "bus"), _empty_assets(Path(home) / "dagster")
    ours(), theirs()

    def both() -> Callable[[], dict[str, Any]]:
        pairs = [(_seconds(theirs), _seconds(ours)) for _ in range(rounds)]
        return lambda: {"pairs": pairs, "added": median(mine - other for other, mine in pairs)}

    return both


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _empty_assets(home: Path) -> Callable[[], None]:
    import dagster as dg

    home.mkdir(parents=True)

    def empty(number: int) -> dg.AssetsDefinition:
        @dg.asset(name=f"empty{number}", deps=[f"empty{number - 1}"] if number else [])
        def made() -> None: ...

        return made

    assets = [empty(number) for number in range(STOPS)]
    definitions = dg.Definitions(assets=assets, jobs=[dg.define_asset_job("empty", "*")], executor=dg.in_process_executor)
    job_def, instance = definitions.resolve_job_def("empty"), dg.DagsterInstance.local_temp(str(home))

    def run() -> None:
        job_def.execute_in_process(instance=instance, raise_on_error=True)

    return run
