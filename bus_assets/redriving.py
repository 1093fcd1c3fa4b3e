"""Messages come back from the queue for dead letters, into the depot."""

from __future__ import annotations

from functools import partial

from bus_assets import archive
from bus_assets.drive import Bus
from bus_assets.queues import Queue
from bus_assets.route import Route
from resources.depot.mail import Boarded
from resources.errors import Gone, Misconfigured, Poison
from resources.queue_seam import MessageQueue, Pointer
from sensors.envelopes import unwrap
from sensors.keeping import Keeping, total

AT_ONCE = 500
WAIT_SECONDS = 1.0
SECONDS = 3600.0
"""For so long bodies are fetched from a bucket: here a person waits, and no tick."""


def board_dead_letters(bus: Bus, route: Route, queue: Queue, reason: str) -> Boarded:
    """Move what lies there: the depot first, then the queue forgets, as with any other message. Safe to break off and to do again.

    What this project sent there carries its identity: it waits again if it is stranded, and is a duplicate if it is anything else.
    """
    if queue.dead_letters is None:
        raise Misconfigured(
            f"route '{route.name}' names no queue for dead letters (Queue(…, dead_letters=…)); "
            f"`bus redrive {route.name} --state stranded` takes what the depot holds"
        )
    dead, boarded, failed = bus.systems[queue.dead_letters], Boarded(), None
    corrected = partial(archive.correct, bus.staging, route.name)
    keeping = Keeping(
        unwrap=lambda received, fetch: unwrap(received, queue.decode.kind, queue.identity, fetch),
        fetch=partial(_fetch, dead, bus.systems[queue.system]),
        archive=partial(archive.keep, bus.staging, route.name),
        board=partial(bus.depot.inbox.board, route.name, dead_letters=reason, corrected=corrected),
        delete=dead.delete,
        opening_seconds=SECONDS,
    )
    while received := dead.receive(AT_ONCE, WAIT_SECONDS):
        kept = keeping.keep(received)
        boarded, failed = total(boarded, kept.boarded), failed or kept.failed
    if failed is not None:
        raise failed
    return boarded


def _fetch(dead: MessageQueue, queue: MessageQueue, pointer: Pointer) -> bytes:
    """What SQS itself moved to the dead letters points into the bucket of the queue that it came from."""
    try:
        return dead.fetch(pointer)
    except Gone:
        raise
    except Poison:
        return queue.fetch(pointer)
