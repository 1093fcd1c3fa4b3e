"""The orders file into Postgres, contender after contender, each into fresh tables, and what each left there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import postgres
from bench.driven import forget, workshop
from bench.orders import PRICED_COLUMNS, RAW_COLUMNS
from bench.worker import Measured, measured

SLOW_ROUNDS = {"dlt merge": 3, "pandas to_sql": 1}
"""How often the slow ones run at most: half a minute each."""
RAW_AMOUNT = "quantity * unit_price"
COLUMNS = ("customer_id", "sku", "quantity", "unit_price", "currency", "ordered_at", "note")
MEGABYTE = 1 << 20


@dataclass
class Contest:
    """By contender: seconds of every round, what our own processes measured, and (rows, checksum) of the last target."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    measured: dict[str, list[Measured]] = field(default_factory=lambda: defaultdict(list))
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def all_the_same(self) -> bool:
        return len(set(self.marks.values())) == 1

    def peak(self, name: str) -> str:
        return f"{max(done.peak_bytes for done in self.measured[name]) / MEGABYTE:.0f}" if name in self.measured else ""

    def cpu(self, name: str) -> str:
        return f"{median(done.cpu_seconds for done in self.measured[name]):.1f}" if name in self.measured else ""


@dataclass(frozen=True)
class _Arena:
    """One database and the file; each method prepares its tables and gives the seconds (and more, for Python processes)."""

    url: str
    file: Path
    rows: int

    def psql_append(self) -> float:
        self._fresh("bare", RAW_COLUMNS)
        return postgres.bare(self.url, self._copy("bare"))

    def psql_upsert(self, half: bool) -> float:
        self._fresh("bare", RAW_COLUMNS, key=True)
        if half:
            self._fill_half("bare")
        merge = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS)
        return postgres.bare(
            self.url,
            "CREATE TEMPORARY TABLE incoming (LIKE bare) ON COMMIT DROP",
            self._copy("incoming"),
            f"INSERT INTO bare SELECT * FROM incoming ON CONFLICT (order_id) DO UPDATE SET {merge}",
        )

    def product(self, *, key: bool, half: bool = False) -> Measured:
        for table in ("dropped", "warm"):
            self._fresh(table, PRICED_COLUMNS, key=key)
        if half:
            self._fill_half("dropped")
        home = workshop()
        try:
            return self._measured("product", table="dropped", key="order_id" if key else "", home=str(home))
        finally:
            forget(home)

    def dlt_merge(self) -> Measured:
        postgres.execute(self.url, "DROP SCHEMA IF EXISTS dlt CASCADE", "DROP SCHEMA IF EXISTS dlt_staging CASCADE", "CHECKPOINT")
        home = workshop()
        try:
            return self._measured("dlt_merge", table="merged", home=str(home))
        finally:
            forget(home)

    def pandas(self) -> Measured:
        postgres.execute(self.url, "DROP TABLE IF EXISTS framed", "CHECKPOINT")
        return self._measured("pandas_to_sql", table="framed")

    def _measured(self, function: str, **values: str) -> Measured:
        return measured(f"bench.orders:{function}", file=str(self.file), url=self.url, **values)

    def _fresh(self, table: str, columns: str, *, key: bool = False) -> None:
        made = f"CREATE TABLE {table} ({columns}{', PRIMARY KEY (order_id)' if key else ''})"
        postgres.execute(self.url, f"DROP TABLE IF EXISTS {table}", made, "CHECKPOINT")

    def _fill_half(self, table: str) -> None:
        """Every other order is there already, with other values."""
        price = "unit_price" if table == "bare" else "amount"
        values = (
            f"SELECT 'O-' || lpad(n::text, 8, '0'), 1, 'old', 1, 1, 'EUR', now(), 'old' FROM generate_series(0, {self.rows - 1}, 2) AS n"
        )
        postgres.execute(
            self.url,
            f"INSERT INTO {table} (order_id, customer_id, sku, quantity, {price}, currency, ordered_at, note) {values}",
            f"VACUUM ANALYZE {table}",
            "CHECKPOINT",
        )

    def _copy(self, table: str) -> str:
        return f"\\copy {table} FROM '{self.file}' (FORMAT csv, HEADER)"


def orders_contest(url: str, file: Path, rounds: int, only: Iterable[str] = ()) -> Contest:
    """``rounds`` rounds of all contenders (or ``only`` some), turn about, so that a busy minute hits all of them."""
    arena = _Arena(url, file, int(file.parent.name.rpartition("-")[2]))
    found = Contest()
    for number in range(rounds):
        for name, (contend, table, amount) in _contenders(arena).items():
            if (only and name not in only) or number >= SLOW_ROUNDS.get(name, rounds):
                continue
            took = contend()
            if isinstance(took, Measured):
                found.measured[name].append(took)
            found.seconds[name].append(took.seconds if isinstance(took, Measured) else took)
            found.marks[name] = postgres.fingerprint(url, table, amount)
            print(f"round {number + 1}: {name}: {found.seconds[name][-1]:.2f} s", flush=True)
    return found


def _contenders(arena: _Arena) -> dict[str, tuple[Callable[[], float | Measured], str, str]]:
    """Name → what to run, the table it leaves, and how the amount is found there."""
    return {
        "psql append": (arena.psql_append, "bare", RAW_AMOUNT),
        "append": (lambda: arena.product(key=False), "dropped", "amount"),
        "psql upsert, empty table": (lambda: arena.psql_upsert(half=False), "bare", RAW_AMOUNT),
        "upsert, empty table": (lambda: arena.product(key=True), "dropped", "amount"),
        "psql upsert, half is there": (lambda: arena.psql_upsert(half=True), "bare", RAW_AMOUNT),
        "upsert, half is there": (lambda: arena.product(key=True, half=True), "dropped", "amount"),
        "dlt merge": (arena.dlt_merge, "dlt.merged", RAW_AMOUNT),
        "pandas to_sql": (arena.pandas, "framed", RAW_AMOUNT),
    }
