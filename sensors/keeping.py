"""Deliveries become messages of the depot: unwrapped, archived, committed, and only then deleted from their queue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields
from types import TracebackType

from resources.claim_check import LARGEST_BODY_BYTES, may_wait
from resources.depot.mail import Arrival, Boarded
from resources.errors import BusError, Transient
from resources.queue_seam import Pointer, Received
from sensors.envelopes import Fetch

BYTES_AT_ONCE = 64 << 20
"""Bodies that wait in a bucket are large: so much is held in memory, then it is committed."""
FETCHED_AT_ONCE = 8
"""So many of them are on their way at once, and in memory besides."""
ON_THEIR_WAY_BYTES = 32 << 20
"""Together they have no more bytes than this, as their senders tell; but one of any size may come alone."""
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

    ``unwrap``   a delivery as the messages in it, by a ``fetch`` for bodies that wait in a bucket; raises what that raises but Poison.
    ``fetch``    such a body. Called in threads; raises Transient or Misconfigured if the bucket does not give it.
    ``archive``  keep a copy of what is about to be boarded, outside the depot.
    ``board``    the depot commits.
    ``delete``   the queue forgets.

    ``opening_seconds``: for how long bodies are fetched from a bucket.
    """

    unwrap: Callable[[Received, Fetch], Sequence[Arrival]]
    fetch: Fetch
    archive: Callable[[Sequence[Arrival]], None]
    board: Callable[[Sequence[Arrival]], Boarded]
    delete: Callable[[Sequence[Received]], object]
    opening_seconds: float = OPENING_SECONDS

    def keep(self, received: Sequence[Received]) -> Kept:
        """A delivery whose body could not be fetched, or for which there was no time, stays on the queue with what follows it in its
        group; the others are kept. Raises what the last three steps raise: what was not committed by then comes again too.
        """
        kept, opened, size = Boarded(), _Opened(), 0
        with _Opening(self, received) as opening:
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
    """Deliveries are unwrapped in their order. Bodies that wait in a bucket are fetched ahead, several at once, while there is time.

    Only fetching is done in threads: a parsed body takes ten times its bytes, and parsing many at once is no faster.
    """

    def __init__(self, keeping: Keeping, received: Sequence[Received]):
        self._unwrap, self._fetch, self._until = keeping.unwrap, keeping.fetch, time.monotonic() + keeping.opening_seconds
        waiting = ((delivery.receipt_handle, self._waits_at(delivery)) for delivery in received)
        self._ahead = deque((handle, pointer) for handle, pointer in waiting if pointer is not None)
        self._coming = dict[str, tuple[Future[bytes], int]]()
        self._pool = ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="bodies")

    def unwrapped(self, delivery: Received) -> Sequence[Arrival] | None:
        """None: there was no time for it."""
        self._send_for_bodies()
        if self._is_next(delivery):
            self._ahead.popleft()
            return None

        def fetch(pointer: Pointer) -> bytes:
            """The body that was sent for; of one inside it nothing was known before."""
            coming, _ = self._coming.pop(delivery.receipt_handle, None) or (self._pool.submit(self._fetch, pointer), 0)
            return coming.result(max(0.0, self._until + LATE_SECONDS - time.monotonic()))

        try:
            return self._unwrap(delivery, fetch)
        except TimeoutError:
            return None

    def leave(self, delivery: Received) -> None:
        """It is not to be unwrapped now: what waits behind another one of its group takes no place of those that are fetched."""
        if coming := self._coming.pop(delivery.receipt_handle, None):
            coming[0].cancel()
        elif self._is_next(delivery):
            self._ahead.popleft()

    def _waits_at(self, delivery: Received) -> Pointer | None:
        """Where the body is that it takes to unwrap the delivery, if that waits in a bucket."""
        asked = list[Pointer]()

        def note(pointer: Pointer) -> bytes:
            asked.append(pointer)
            raise Transient("it is to be fetched first")

        if may_wait(delivery.body, delivery.attributes):
            with suppress(Transient):
                self._unwrap(delivery, note)
        return asked[0] if asked else None

    def _send_for_bodies(self) -> None:
        while self._ahead and time.monotonic() < self._until:
            handle, pointer = self._ahead[0]
            size = LARGEST_BODY_BYTES if pointer.size_bytes is None else pointer.size_bytes
            bytes_coming = sum(size for _, size in self._coming.values())
            if self._coming and (len(self._coming) >= FETCHED_AT_ONCE or bytes_coming + size > ON_THEIR_WAY_BYTES):
                return
            self._ahead.popleft()
            self._coming[handle] = self._pool.submit(self._fetch, pointer), size

    def _is_next(self, delivery: Received) -> bool:
        return bool(self._ahead) and self._ahead[0][0] == delivery.receipt_handle

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
