"""Looking at quarantined rows: one of them, or all in a file. Sensitive fields are dots unless somebody asks for them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus_assets.route import Route
from resources.errors import Misconfigured, Refused

if TYPE_CHECKING:
    from resources.depot.entries import QuarantinedRow
    from resources.depot.store import Depot

HIDDEN_VALUE = "•••"
RAW = ""
"""The name under which a record is kept that could not be taken apart."""


def row_of(depot: Depot, row_id: int) -> QuarantinedRow:
    """The row of that id in any state; :class:`Refused` if there is none."""
    found = depot.quarantined(state=None, limit=1, after=row_id - 1)
    if not found or found[0].id != row_id:
        raise Refused(f"there is no row {row_id} in quarantine; `bus quarantine list` shows what is there")
    return found[0]


def masked(row: QuarantinedRow, route: Route | None) -> dict[str, str | None]:
    """The row's content with its sensitive fields as dots. Where the contract is not known any more, everything is dots."""
    declared = route and next((stop for stop in route.stops if stop.name == row.stop), None)
    contract = route.contract_of(row.stop) if route and declared else None
    if contract is None:
        return dict.fromkeys(row.payload, HIDDEN_VALUE)
    hidden = {*contract.sensitive, *((RAW,) if contract.sensitive else ()), *(set(row.payload) - {*contract.names, RAW})}
    return {name: HIDDEN_VALUE if name in hidden and value is not None else value for name, value in row.payload.items()}


def export_rows(rows: Iterable[QuarantinedRow], route: Route, stop: str, file: Path, *, reveal: bool) -> int:
    """Write ``rows`` to the new ``file`` (.csv or .jsonl, UTF-8), one at a time; how many. Misconfigured if it cannot be made."""
    lines = (_line(row, dict(row.payload) if reveal else masked(row, route)) for row in rows)
    try:
        # Only for the owner: these rows are what somebody did not want to let pass.
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as target:
            return _csv(target, lines, route.contract_of(stop).names) if file.suffix == ".csv" else _jsonl(target, lines)
    except FileExistsError as error:
        raise Misconfigured("the file is there already; name a new one", place=str(file)) from error
    except OSError as error:
        raise Misconfigured(f"it cannot be written: {error.strerror}", place=str(file)) from error


def _line(row: QuarantinedRow, payload: Mapping[str, str | None]) -> tuple[Mapping[str, str | None], dict[str, Any]]:
    about = {"id": row.id, "trip": row.trip, "origin": row.origin, "unit": row.unit, "position": row.position, "row": row.row_id}
    return payload, about | {"reasons": [{"rule": reason.rule, "message": reason.message} for reason in row.reasons]}


def _csv(target: Any, lines: Iterator[tuple[Mapping[str, str | None], dict[str, Any]]], names: tuple[str, ...]) -> int:
    about = ("id", "trip", "origin", "unit", "position", "row", "reasons")
    writer = csv.writer(target)
    # The platform's own columns come last, under names that no field can have.
    writer.writerow([*names, "_bus_raw", *(f"_bus_{name}" for name in about)])
    written = 0
    for payload, said in lines:
        reasons = "; ".join(f"{reason['rule']}: {reason['message']}" for reason in said["reasons"])
        writer.writerow([*(payload.get(name) for name in names), payload.get(RAW), *(said[name] for name in about[:-1]), reasons])
        written += 1
    return written


def _jsonl(target: Any, lines: Iterator[tuple[Mapping[str, str | None], dict[str, Any]]]) -> int:
    written = 0
    for payload, said in lines:
        target.write(json.dumps(said | {"payload": dict(payload)}, ensure_ascii=False) + "\n")
        written += 1
    return written
