"""Messages come back from the queue for dead letters, into the depot."""

from __future__ import annotations

from dataclasses import fields

from bus_assets import archive
from bus_assets.drive import Bus
from bus_assets.queues import Queue
from bus_assets.route import Route
from resources.depot.mail import Boarded
from resources.errors import Misconfigured
from sensors.envelopes import unwrap

AT_ONCE = 500
WAIT_SECONDS = 1.0


def board_dead_letters(bus: Bus, route: Route, queue: Queue) -> Boarded:
    """Move what lies there: the depot first, then the queue forgets, as with any other message. Safe to break off and to do again.

    What this project sent there carries its identity: it waits again if it is stranded, and is a duplicate if it is anything else.
    """
    if queue.dead_letters is None:
        raise Misconfigured(
            f"route '{route.name}' names no queue for dead letters (Queue(…, dead_letters=…)); "
            f"`bus redrive {route.name} --state stranded` takes what the depot holds"
        )
    dead, total = bus.systems[queue.dead_letters], Boarded()
    while received := dead.receive(AT_ONCE, WAIT_SECONDS):
        arrivals = [arrival for one in received for arrival in unwrap(one, queue.decode.kind, queue.identity)]
        archive.keep(bus.staging, route.name, arrivals)
        boarded = bus.depot.inbox.board(route.name, arrivals)
        dead.delete(received)
        total = Boarded(*(getattr(total, one.name) + getattr(boarded, one.name) for one in fields(Boarded)))
    return total
