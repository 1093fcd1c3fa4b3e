"""What people see of a stop in the UI: counts, reasons, a preview, where the data is, the trip. Never a sensitive value."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec, AssetKey, MarkdownMetadataValue, MetadataValue

from bus_assets.build.lineage import column_lineage, column_schema
from bus_assets.contract import Contract
from bus_assets.drive import Drive
from bus_assets.halting import Stopped
from bus_assets.passengers import Passengers
from bus_assets.publish import Dropped
from bus_assets.route import Route
from bus_assets.stops import DropOff, PickUp, Transform
from bus_assets.verify import BALANCE, ONCE
from resources.depot.mail import WAIT_FOR_A_PERSON
from resources.texts import shortened

PREVIEW_ROWS = 10
HIDDEN_VALUE = "•••"
LINE_CHARACTERS = 56
"""The UI's column of values is about so wide, and a long word in it pushes all others out of sight."""
COLUMNS_COME_FROM = "columns come from"


def stop_metadata(drive: Drive, stopped: Stopped) -> dict[str, Any]:
    """Metadata of a pick-up's or transform's materialisation."""
    verdict, contract = stopped.verdict, stopped.passengers.contract
    files = stopped.passengers.manifest.files
    staged = drive.bus.staging.uri(files[0].path.rsplit("/", 1)[0]) if files else ""
    why = {"why rejected": rejected_table(verdict.figures, drive, verdict.stop)} if verdict.rejected else {}
    unread = {"columns not read": ", ".join(stopped.unread)} if stopped.unread else {}
    return {
        "dagster/row_count": verdict.kept,
        "dagster/column_schema": column_schema(contract),
        "dagster/column_lineage": column_lineage(drive.route, verdict.stop),
        "dagster/uri": staged,
        "picked up": verdict.picked_up,
        "rejected": verdict.rejected,
        **why,
        **unread,
        "preview": preview(stopped.passengers),
        **trip_metadata(drive, verdict.attempt),
        "staged at": MetadataValue.md(in_lines(staged)),
    }


def trip_metadata(drive: Drive, attempt: int) -> dict[str, Any]:
    said: dict[str, Any] = {"trip": drive.trip.id, "attempt": attempt}
    if drive.mode == "rehearsal":
        said["rehearsal"] = f"on rows of trip {drive.trip.parent}; nothing is published"
    if drive.mode in ("forward", "delivered"):
        said["note"] = "published by an earlier attempt; nothing was picked up again"
    return said


def lineage_table(route: Route, stop: str) -> MarkdownMetadataValue:
    """Where each column comes from, as a table: Dagster's own column lineage is kept, but its free UI does not draw it."""
    found = column_lineage(route, stop).deps_by_column
    rows = [(column, ", ".join(f"{dep.asset_key.path[-1]}: {dep.column_name}" for dep in deps)) for column, deps in found.items()]
    return MetadataValue.md(markdown_table(("column", "comes from"), rows) if rows else "_no column is carried over_")


def preview(passengers: Passengers) -> MarkdownMetadataValue:
    """The first rows as a table; sensitive fields are dots."""
    batch = next(iter(passengers.batches(passengers.contract.names)), None)
    rows = batch.slice(0, PREVIEW_ROWS).to_pylist() if batch is not None else []
    hidden = passengers.contract.sensitive
    cells = [[HIDDEN_VALUE if name in hidden else row[name] for name in passengers.contract.names] for row in rows]
    return MetadataValue.md(markdown_table(passengers.contract.names, cells) if rows else "_no rows_")


def in_lines(uri: str) -> str:
    """``uri`` as Markdown that may be wrapped between its parts; the exact text is in ``dagster/uri``."""
    lines = [""]
    for part in re.findall(r"[^/]*/*", uri):
        if lines[-1] and len(lines[-1] + part) > LINE_CHARACTERS:
            lines.append("")
        lines[-1] += part
    return " ".join(f"`{line}`" for line in lines if line)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(_cell, header)) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = "" if value is None else value.isoformat(sep=" ") if hasattr(value, "astimezone") else str(value)
    text = shortened(text, 60)
    for sign, safe in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("|", "\\|"),
        ("\r", " "),
        ("\n", " "),
        ("`", "\\`"),
        ("*", "\\*"),
        ("_", "\\_"),
        ("[", "\\["),
    ):
        text = text.replace(sign, safe)
    return text


def rejected_table(figures: Sequence[Mapping[str, Any]], drive: Drive, stop: str) -> MarkdownMetadataValue:
    rows = [(figure["rule"], figure["rejected"]) for figure in figures if figure["rejected"]]
    said = markdown_table(("reason", "rows"), sorted(rows, key=lambda row: -row[1]))
    return MetadataValue.md(f"{said}\n\n`bus quarantine list --trip {drive.trip.id} --stop {stop}` shows them.")


def check_specs(key: AssetKey, stop: PickUp | Transform) -> list[AssetCheckSpec]:
    """One check for the contract, one for conservation, one for each that the author adds; all but warnings block."""
    specs = [
        AssetCheckSpec("contract", asset=key, blocking=True, description="Every rule of the contract, recomputed from the staged rows."),
        AssetCheckSpec("conserved", asset=key, blocking=True, description="Rows that came in = rows kept + rows rejected."),
    ]
    specs += [AssetCheckSpec(c.name, asset=key, blocking=c.blocking, description=c.description or None) for c in stop.checks]
    return specs


def check_results(key: AssetKey, stop: PickUp | Transform, stopped: Stopped) -> list[AssetCheckResult]:
    verdict = stopped.verdict
    broken = {figure["rule"]: figure["rows"] for figure in verdict.figures}
    conserved = verdict.picked_up == verdict.kept + verdict.rejected
    results = [
        AssetCheckResult(
            check_name="contract",
            asset_key=key,
            passed=verdict.passed and not verdict.rejected,
            severity=AssetCheckSeverity.WARN if verdict.passed else AssetCheckSeverity.ERROR,
            description=_summary(stopped),
            metadata={
                "rules": MetadataValue.md(
                    markdown_table(
                        ("rule", "rejected at the gate", "found in staged rows"),
                        [(f["rule"], f["rejected"], f["rows"]) for f in verdict.figures],
                    )
                ),
                "limit": _limit(stop.contract),
                "rejected": verdict.rejected,
            },
        ),
        AssetCheckResult(
            check_name="conserved",
            asset_key=key,
            passed=conserved and not broken.get(BALANCE) and not broken.get(ONCE),
            metadata={"picked up": verdict.picked_up, "kept": verdict.kept, "rejected": verdict.rejected},
        ),
    ]
    for check in stop.checks:
        found = verdict.counts.get(check.name, 0)
        severity = AssetCheckSeverity.ERROR if check.blocking else AssetCheckSeverity.WARN
        results.append(
            AssetCheckResult(check_name=check.name, asset_key=key, passed=not found, severity=severity, metadata={"rows found": found})
        )
    return results


def _limit(contract: Contract) -> str:
    most = contract.max_rejected
    return f"at most {most * 100:g} % of the rows may be rejected" if isinstance(most, float) else f"at most {most} rows may be rejected"


def _summary(stopped: Stopped) -> str:
    verdict = stopped.verdict
    if stopped.findings is not None and stopped.findings.problems:
        return "; ".join(stopped.findings.problems)
    if verdict.rejected:
        why = ", ".join(f"{figure['rule']} ×{figure['rejected']}" for figure in verdict.figures if figure["rejected"])
        return f"{verdict.rejected} of {verdict.picked_up} rows wait in quarantine, within the limit: {why}"
    return f"all {verdict.kept} rows keep the contract"


ACCOUNTED = "accounted"


def accounted_spec(key: AssetKey) -> AssetCheckSpec:
    said = (
        "Every message received, counted as it was boarded, is in exactly one state: an error if the sum of the states differs. A warning "
        "while messages wait for a person."
    )
    return AssetCheckSpec(ACCOUNTED, asset=key, blocking=False, description=said)


def accounted(key: AssetKey, drive: Drive) -> AssetCheckResult:
    """Received = the sum of the states, or an error. A warning where messages wait for a person."""
    counts = drive.bus.depot.inbox.counts(drive.route.name)
    by_state: dict[str, int] = {str(state): number for state, number in counts.by_state.items()}
    waits = {state: number for state, number in by_state.items() if number and state in WAIT_FOR_A_PERSON}
    said, in_states = "no message waits for a person", sum(by_state.values())
    if waits:
        which = ", ".join(f"{number} {state}" for state, number in waits.items())
        said = f"{which} wait for a person: `bus messages {drive.route.name}` shows them"
    if counts.is_balanced:
        said = f"all {counts.received} received are accounted for; {said}"
    else:
        lost = f"{counts.received} were received, but {in_states} are in a state: `bus account {drive.route.name}` counts them one by one"
        said = f"{lost}; {said}"
    beside = {"duplicates": counts.duplicates, "duplicates with another body": counts.other_bodies, "ignored": counts.ignored}
    return AssetCheckResult(
        check_name=ACCOUNTED,
        asset_key=key,
        passed=counts.is_balanced and not waits,
        severity=AssetCheckSeverity.WARN if counts.is_balanced else AssetCheckSeverity.ERROR,
        description=said,
        metadata={**by_state, "received in all": counts.received, "in all states": in_states, **beside},
    )


def inbox_metadata(drive: Drive) -> dict[str, Any]:
    """How the route's messages stand, on the page of the stop at which they come aboard."""
    counts = drive.bus.depot.inbox.counts(drive.route.name)
    oldest = counts.oldest_waiting
    waits = (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0
    return {
        "messages aboard": len(drive.bus.depot.inbox.aboard(drive.trip.id)),
        "messages waiting": counts.by_state.get("waiting", 0),
        "oldest waiting (seconds)": round(waits, 1),
    }


def drop_metadata(drive: Drive, drop: DropOff, dropped: Dropped) -> dict[str, Any]:
    """Metadata of a drop-off's materialisation."""
    contract: Contract = drive.route.contract_of(drop.name)
    applied = dropped.applied
    return {
        "dagster/row_count": dropped.rows,
        "dagster/column_schema": column_schema(contract, drop.mapping(contract), drop.into.key),
        "dagster/column_lineage": column_lineage(drive.route, drop.name),
        "dagster/table_name": drop.into.name,
        "database": f"{drop.into.database} ({drive.bus.systems[drop.into.database].where})",
        "mode": str(drop.into.mode),
        "offered": dropped.offered,
        "left out by where": dropped.left_out,
        **asdict(applied),
        **trip_metadata(drive, drive.attempt),
    }


def drop_conserved(key: AssetKey, dropped: Dropped) -> AssetCheckResult:
    """Rows offered = rows left out + rows that the database says it applied + rows folded into a later one of their key."""
    gone = dropped.offered - dropped.left_out - dropped.applied.folded
    conserved = dropped.rows <= gone if dropped.mode == "delete" else dropped.rows == gone
    return AssetCheckResult(
        check_name="conserved",
        asset_key=key,
        passed=dropped.already or conserved,
        metadata={"offered": dropped.offered, "left out": dropped.left_out, "applied": dropped.rows, "folded": dropped.applied.folded},
    )
