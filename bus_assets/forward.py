"""Rolling forward a trip that a restored depot has never heard of: its plan stands in the first database, beside its receipts.

Only routes with several databases need it: elsewhere a receipt says that all is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from bus_assets.drive import Bus, Drive, ledger_id
from bus_assets.route import Route
from resources.depot.entries import NoSuchTrip, Verdict
from resources.errors import Refused


def plan_of(drive: Drive, verdicts: Mapping[str, Verdict]) -> str:
    """Everything by which another depot can publish this trip into the further databases, from the same staged bytes."""
    kept = [{name: value for name, value in asdict(verdict).items() if name != "created_at"} for verdict in verdicts.values()]
    trip = {"trigger": drive.trip.trigger, "parameters": dict(drive.trip.parameters)}
    return json.dumps({**trip, "attempt": drive.attempt, "run": drive.run, "verdicts": kept}, default=str)


def in_every_database(drive: Drive, trip: str) -> bool:
    """Whether ``trip`` of this route is committed in all of the route's databases; the first is known to have it."""
    return committed_everywhere(drive.bus, drive.route, trip)


def committed_everywhere(bus: Bus, route: Route, trip: str) -> bool:
    for name in route.databases[1:]:
        bus.systems[name].prepare(())
        with bus.systems[name].transaction(reading=True) as transaction:
            if transaction.published(ledger_id(route, trip, name)) is None:
                return False
    return True


def restored(drive: Drive, trip: str) -> None:
    """Make the depot know ``trip`` again, 'stuck', so that it departs and rolls forward. :class:`Refused` if no plan is there."""
    try:
        drive.bus.depot.trip(trip)
        return
    except NoSuchTrip:
        pass
    plan = _plan(drive, trip)
    if plan is None:
        raise Refused(f"trip {trip} has applied messages in '{drive.route.databases[0]}' only, and left no plan to roll it forward by")
    known = {"attempt": plan["attempt"], "run": plan["run"], "verdicts": _verdicts(plan)}
    drive.bus.depot.restore_trip(trip, drive.route.name, plan["trigger"], plan["parameters"], **known)


def as_committed(drive: Drive, stop: str) -> Verdict | None:
    """The verdict of ``stop`` by which the trip was committed in the first database, for the depot to know it (again).

    One that was restored from an earlier copy has none, or one of an earlier attempt: other bytes. None without a plan.
    """
    plan = _plan(drive, drive.trip.id) if len(drive.route.databases) > 1 else None
    verdict = next((verdict for verdict in _verdicts(plan) if verdict.stop == stop), None) if plan else None
    known = drive.verdicts().get(stop)
    if verdict is None or (known is not None and known.digest == verdict.digest and known.inputs == verdict.inputs):
        return known
    mine = replace(verdict, attempt=drive.attempt)
    drive.bus.depot.record_verdict(mine)
    return mine


def _plan(drive: Drive, trip: str) -> dict[str, Any] | None:
    with drive.bus.systems[drive.route.databases[0]].transaction(reading=True) as transaction:
        found = transaction.plan(trip)
    return json.loads(found) if found is not None else None


def _verdicts(plan: Mapping[str, Any]) -> list[Verdict]:
    return [Verdict(**{**said, "figures": tuple(said["figures"])}) for said in plan["verdicts"]]
