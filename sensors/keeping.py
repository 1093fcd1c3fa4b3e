"""Deliveries become messages of the depot: unwrapped, archived, committed, and only then deleted from their queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from resources.depot.mail import Arrival, Boarded
from resources.errors import BusError
from resources.queue_seam import Received

BYTES_AT_ONCE = 64 << 20
"""Bodies that wait in a bucket are large: so much is held in memory, then it is committed."""


@dataclass(frozen=True)
class Keeping:
    """The steps, in their order.

    ``unwrap``   a delivery as the messages in it. Raises Transient or Misconfigured if its body waits in a bucket that does not give it.
    ``archive``  keep a copy of what is about to be boarded, outside the depot.
    ``board``    the depot commits.
    ``delete``   the queue forgets.
    """

    unwrap: Callable[[Received], Sequence[Arrival]]
    archive: Callable[[Sequence[Arrival]], None]
    board: Callable[[Sequence[Arrival]], Boarded]
    delete: Callable[[Sequence[Received]], object]

    def keep(self, received: Sequence[Received]) -> tuple[Boarded, BusError | None]:
        """What became of them, and the first error of a body that could not be fetched.

        Such a delivery, and what follows it in its group, stays on the queue and comes again; the others are kept. Raises what the
        last three steps raise: what was not committed by then comes again too.
        """
        kept, opened, size = Boarded(), _Opened(), 0
        for delivery in received:
            size += opened.add(delivery, self.unwrap)
            if size >= BYTES_AT_ONCE:
                kept, size = total(kept, self._commit(opened)), 0
        return total(kept, self._commit(opened)), opened.failed

    def _commit(self, opened: _Opened) -> Boarded:
        deliveries, arrivals = opened.taken()
        if not deliveries:
            return Boarded()
        self.archive(arrivals)
        boarded = self.board(arrivals)
        self.delete(deliveries)
        return boarded


class _Opened:
    """Deliveries that were unwrapped and not committed yet."""

    def __init__(self) -> None:
        self.failed: BusError | None = None
        self._held = set[str | None]()
        self._deliveries: list[Received] = []
        self._arrivals: list[Arrival] = []

    def add(self, delivery: Received, unwrap: Callable[[Received], Sequence[Arrival]]) -> int:
        """How many bytes it brought."""
        if delivery.group in self._held:
            return 0
        try:
            arrivals = unwrap(delivery)
        except BusError as error:
            self.failed = self.failed or error
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
    return Boarded(*(sum(getattr(one, field.name) for one in every) for field in fields(Boarded)))
