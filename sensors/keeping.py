"""Deliveries become messages of the depot: unwrapped, archived, committed, and only then deleted from their queue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from types import TracebackType

from resources.claim_check import may_wait
from resources.depot.mail import Arrival, Boarded
from resources.errors import BusError
from resources.queue_seam import Received

BYTES_AT_ONCE = 64 << 20
"""Bodies that wait in a bucket are large: so much is held in memory, then it is committed."""
FETCHED_AT_ONCE = 8
"""So many of them are on their way at once, and in memory besides."""
OPENING_SECONDS = 10.0
"""After so long no other body is fetched from a bucket. A tick may take 60 s, and received messages are hidden for as long."""
LATE_SECONDS = 10.0
"""So much later, those on their way are not waited for any more."""


@dataclass(frozen=True)
class Kept:
    """What became of deliveries. ``failed``: the first error of a body that could not be fetched. ``later``: how many there was no time
    for; as those that failed, they come again."""

    boarded: Boarded = field(default_factory=Boarded)
    failed: BusError | None = None
    later: int = 0


@dataclass(frozen=True)
class Keeping:
    """The steps, in their order.

    ``unwrap``   a delivery as the messages in it. Raises Transient or Misconfigured if its body waits in a bucket that does not give it.
    ``archive``  keep a copy of what is about to be boarded, outside the depot.
    ``board``    the depot commits.
    ``delete``   the queue forgets.

    ``opening_seconds``: for how long bodies are fetched from a bucket.
    """

    unwrap: Callable[[Received], Sequence[Arrival]]
    archive: Callable[[Sequence[Arrival]], None]
    board: Callable[[Sequence[Arrival]], Boarded]
    delete: Callable[[Sequence[Received]], object]
    opening_seconds: float = OPENING_SECONDS

    def keep(self, received: Sequence[Received]) -> Kept:
        """A delivery whose body could not be fetched, or for which there was no time, stays on the queue with what follows it in its
        group; the others are kept. Raises what the last three steps raise: what was not committed by then comes again too.
        """
        kept, opened, size = Boarded(), _Opened(), 0
        with _Opening(self.unwrap, received, self.opening_seconds) as opening:
            for delivery in received:
                size += opened.add(delivery, opening)
                if size >= BYTES_AT_ONCE:
                    kept, size = total(kept, self._commit(opened)), 0
        return Kept(total(kept, self._commit(opened)), opened.failed, opened.later)

    def _commit(self, opened: _Opened) -> Boarded:
        deliveries, arrivals = opened.taken()
        if not deliveries:
            return Boarded()
        self.archive(arrivals)
        boarded = self.board(arrivals)
        self.delete(deliveries)
        return boarded


class _Opening:
    """Deliveries are unwrapped in their order. Bodies that wait in a bucket are fetched ahead, several at once, while there is time."""

    def __init__(self, unwrap: Callable[[Received], Sequence[Arrival]], received: Sequence[Received], seconds: float):
        self._unwrap, self._until = unwrap, time.monotonic() + seconds
        self._ahead = deque(delivery for delivery in received if may_wait(delivery.body, delivery.attributes))
        self._coming = dict[str, Future[Sequence[Arrival]]]()
        self._pool = ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="bodies")

    def unwrapped(self, delivery: Received) -> Sequence[Arrival] | None:
        """None: there was no time for it."""
        if not may_wait(delivery.body, delivery.attributes):
            return self._unwrap(delivery)
        while self._ahead and len(self._coming) < FETCHED_AT_ONCE and time.monotonic() < self._until:
            one = self._ahead.popleft()
            self._coming[one.receipt_handle] = self._pool.submit(self._unwrap, one)
        coming = self._coming.pop(delivery.receipt_handle, None)
        try:
            return coming and coming.result(max(0.0, self._until + LATE_SECONDS - time.monotonic()))
        except TimeoutError:
            return None

    def leave(self, delivery: Received) -> None:
        """It is not to be unwrapped now: what waits behind another one of its group takes no place of those that are fetched."""
        if coming := self._coming.pop(delivery.receipt_handle, None):
            coming.cancel()
        elif self._ahead and self._ahead[0] is delivery:
            self._ahead.popleft()

    def __enter__(self) -> _Opening:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Opened:
    """Deliveries that were unwrapped and not committed yet."""

    def __init__(self) -> None:
        self.failed: BusError | None = None
        self.later = 0
        self._held = set[str | None]()
        self._deliveries: list[Received] = []
        self._arrivals: list[Arrival] = []

    def add(self, delivery: Received, opening: _Opening) -> int:
        """How many bytes it brought."""
        if delivery.group in self._held:
            opening.leave(delivery)
            return 0
        try:
            arrivals = opening.unwrapped(delivery)
        except BusError as error:
            self.failed, arrivals = self.failed or error, None
        else:
            self.later += arrivals is None
        if arrivals is None:
            self._held |= {delivery.group} - {None}
            return 0
        self._deliveries.append(delivery)
        self._arrivals += arrivals
        return sum(len(arrival.body) for arrival in arrivals)

    def taken(self) -> tuple[list[Received], list[Arrival]]:
        deliveries, self._deliveries = self._deliveries, []
        arrivals, self._arrivals = self._arrivals, []
        return deliveries, arrivals


def total(*every: Boarded) -> Boarded:
    return Boarded(*(sum(getattr(one, each.name) for one in every) for each in fields(Boarded)))
