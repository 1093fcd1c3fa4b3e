"""Random schedules of the real code keep every promise; without any one safeguard some schedule does not.

Longer: ``python -m tests.model.schedules --minutes 10``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bus_assets import boarding
from resources.database import Transaction
from resources.depot import settling
from tests.model.schedules import explore
from tests.model.world import Budget, TurnQueue, prepare

SCHEDULES = 6
LONGEST_SECONDS = 400
"""On a machine that is busy; else it takes a few seconds."""


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    prepare(monkeypatch)
    return monkeypatch


@pytest.mark.parametrize(
    ("seed", "budget"), [(1, Budget()), (2, Budget(kills=4, expired=3, redelivered=3, redriven=2, restored=1, cancelled=2, discarded=1))]
)
def test_every_schedule_delivers_each_message_once_or_strands_it(patch, seed, budget):
    found = explore(seed, budget, seconds=LONGEST_SECONDS, schedules=SCHEDULES)
    assert found.problem is None, found
    assert (found.schedules, found.steps > 200) == (SCHEDULES, True)


def no_revoke(patch: pytest.MonkeyPatch) -> None:
    def settle(bus: Any, route: Any, trip: Any, attempt: Any) -> str:
        bus.depot.end_attempt(trip.id, attempt.attempt, "revoked", kind=attempt.kind or "died")
        return "revoked"

    patch.setattr(boarding, "settle", settle)
    patch.setattr("bus_assets.build.dispatching.settle", settle)


def no_outcome(patch: pytest.MonkeyPatch) -> None:
    record = Transaction.record_outcome

    def revoked_only(self: Transaction, route: str, trip: str, attempt: int, outcome: str, run: str) -> None:
        if outcome == "revoked":
            record(self, route, trip, attempt, outcome, run)

    patch.setattr(Transaction, "record_outcome", revoked_only)


def no_receipts(patch: pytest.MonkeyPatch) -> None:
    record = Transaction.record_receipts

    def unheeded(self: Transaction, *args: Any, **of: Any) -> tuple[str, ...]:
        record(self, *args, **of)
        return ()

    patch.setattr(Transaction, "record_receipts", unheeded)
    patch.setattr(Transaction, "receipt_trips", lambda *_: {})
    patch.setattr(Transaction, "receipt_parts", lambda *_: {})


def delete_first(patch: pytest.MonkeyPatch) -> None:
    receive = TurnQueue.receive

    def eager(self: TurnQueue, limit: int, wait_seconds: float = 0) -> Any:
        received = receive(self, limit, wait_seconds)
        self.delete(received)
        return received

    patch.setattr(TurnQueue, "receive", eager)


def no_pivot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("bus_assets.build.dispatching.caught_up", lambda bus, route, trip: False)
    patch.setattr(settling, "has_published", lambda connection, trip: False)


def no_last_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("bus_assets.publish.check_not_cancelled", lambda drive: None)


@pytest.mark.parametrize(
    ("without", "budget", "first", "says"),
    [
        (no_revoke, Budget(0, 2, 0, 0, 0), 416, "stranded and applied"),
        (no_outcome, Budget(0, 2, 0, 0, 0), 221, "applied"),
        (no_receipts, Budget(0, 2, 0, 0, 0, restored=1), 62, "applied"),
        (delete_first, Budget(2, 0, 0, 0, 0), 0, "is lost"),
        (no_pivot, Budget(2, 0, 0, 0, 0), 57, "stranded and applied"),
        (no_last_look, Budget(0, 0, 0, 0, 0, cancelled=1), 9, "was cancelled, and published later"),
    ],
)
def test_without_a_safeguard_the_model_finds_a_schedule(patch, without: Callable[[pytest.MonkeyPatch], None], budget, first, says):
    """``first`` is the number of a schedule that finds it, so that nobody waits for the search; once the code differs, it searches on, and
    prints (``-rP``) the number to write here."""
    without(patch)
    found = explore(7, budget, seconds=LONGEST_SECONDS, first=first, messages=(1,))
    assert found.problem is not None, f"{found}\n{found.happened}"
    assert says in found.problem
    print(f"found by schedule {first + found.schedules - 1}")
