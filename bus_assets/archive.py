"""A copy of every message, beside the staged rows, written before the queue forgets it: what a lost depot is rebuilt from.

``archive/{route}/{YYYY-MM-DD}/{ULID}.jsonl``, one object a line. Written once, never changed; ``bus purge`` removes old days. What
arrives under a known key is in there too, most often as a duplicate that changed nothing. Which of them the depot took instead of the
body that it had, stands once more in ``{ULID}.corrected.jsonl``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from resources.depot.mail import Arrival
from resources.depot.trips import new_trip_id
from resources.errors import Refused
from resources.staging import Staging

FOLDER, CORRECTED = "archive", ".corrected.jsonl"


@dataclass(frozen=True)
class Correction:
    """Where the body is that the depot took last under a key for which it had another one; ``digest`` is that body's."""

    path: str
    digest: bytes


def keep(staging: Staging, route: str, arrivals: Sequence[Arrival]) -> None:
    """Write ``arrivals`` durably; nothing for those that are only counted. Raises what ``Staging.write`` raises."""
    _keep(staging, route, arrivals, ".jsonl")


def correct(staging: Staging, route: str, arrivals: Sequence[Arrival]) -> None:
    """Note, beside what ``keep`` has written, that the depot takes these. Raises as ``keep`` does."""
    _keep(staging, route, arrivals, CORRECTED)


def _keep(staging: Staging, route: str, arrivals: Sequence[Arrival], suffix: str) -> None:
    lines = [json.dumps(_plain(arrival), separators=(",", ":")) for arrival in arrivals if arrival.ignored is None]
    if lines:
        day = datetime.now(UTC).date().isoformat()
        staging.write(f"{FOLDER}/{route}/{day}/{new_trip_id()}{suffix}", "\n".join(lines).encode())


def kept(staging: Staging, route: str, since: date | None = None) -> Iterator[list[Arrival]]:
    """Everything that was kept of ``route`` on ``since`` or later, oldest first, file by file. Refused for a file that is not ours."""
    for path in staging.list(f"{FOLDER}/{route}"):
        if since is None or path.split("/")[2] >= since.isoformat():
            yield _read(staging, path)


def corrections(staging: Staging, route: str) -> dict[str, Correction]:
    """By key, the newest of each message that was corrected. Refused for a file that is not ours."""
    found = {}
    for path in staging.list(f"{FOLDER}/{route}"):
        if path.endswith(CORRECTED):
            found |= {arrival.key: Correction(path, digest(arrival.body)) for arrival in _read(staging, path)}
    return found


def corrected(staging: Staging, key: str, correction: Correction) -> Arrival:
    return next(arrival for arrival in _read(staging, correction.path) if arrival.key == key)


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def days(staging: Staging, route: str) -> dict[date, list[str]]:
    """The files that are kept, by the day on which their messages were received."""
    found: dict[date, list[str]] = {}
    for path in staging.list(f"{FOLDER}/{route}"):
        found.setdefault(date.fromisoformat(path.split("/")[2]), []).append(path)
    return found


def keys(staging: Staging, paths: Iterable[str]) -> set[str]:
    """Of the messages in these files. Refused for a file that is not ours."""
    return {arrival.key for path in paths for arrival in _read(staging, path)}


def forget(staging: Staging, route: str, day: date) -> int:
    """Delete what was kept on ``day``; how many files."""
    return staging.delete_prefix(f"{FOLDER}/{route}/{day.isoformat()}")


def _read(staging: Staging, path: str) -> list[Arrival]:
    try:
        return [_arrival(json.loads(line)) for line in staging.local(path).read_text().splitlines()]
    except (ValueError, TypeError, KeyError) as error:
        raise Refused("the archived messages do not read; was the file changed?", place=path) from error


def _plain(arrival: Arrival) -> dict[str, Any]:
    return {
        "key": arrival.key,
        "body": base64.b64encode(arrival.body).decode(),
        "sent_at": _iso(arrival.sent_at),
        "event_at": _iso(arrival.event_at),
        "subject": arrival.subject,
        "sequencer": arrival.sequencer,
        "group": arrival.group,
        "attributes": dict(arrival.attributes),
        "problem": arrival.problem,
    }


def _arrival(said: dict[str, Any]) -> Arrival:
    moments = {name: datetime.fromisoformat(said[name]) if said[name] else None for name in ("sent_at", "event_at")}
    return Arrival(**{**said, **moments, "body": base64.b64decode(said["body"])})


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
