"""A copy of every message, beside the staged rows, written before the queue forgets it: what a lost depot is rebuilt from.

``archive/{route}/{YYYY-MM-DD}/{ULID}.jsonl``, one object a line. Written once, never changed; ``bus purge`` removes old days. What
arrives under a known key is in there too, most often as a duplicate that changed nothing. Which of them the depot took instead of the
body that it had, stands once more in ``{ULID}.corrected.jsonl``, with the moment at which it did: names of files are of the clock of
the machine that wrote them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, TypeVar

from resources.depot.mail import Arrival, Taken
from resources.depot.trips import new_trip_id
from resources.errors import Refused
from resources.staging import Staging

FOLDER, CORRECTED = "archive", ".corrected.jsonl"

Read = TypeVar("Read", Arrival, Taken)


@dataclass(frozen=True)
class Correction:
    """Where the body is that the depot took last under a key for which it had another one, and when; ``digest`` is that body's."""

    path: str
    digest: bytes
    at: datetime


def keep(staging: Staging, route: str, arrivals: Sequence[Arrival]) -> None:
    """Write ``arrivals`` durably; nothing for those that are only counted. Raises what ``Staging.write`` raises."""
    _write(staging, route, [_plain(arrival) for arrival in arrivals if arrival.ignored is None], ".jsonl")


def correct(staging: Staging, route: str, taken: Sequence[Taken]) -> None:
    """Note, beside what ``keep`` has written, that the depot has taken these. Raises as ``keep`` does."""
    _write(staging, route, [{**_plain(one.arrival), "taken_at": one.at.isoformat()} for one in taken], CORRECTED)


def _write(staging: Staging, route: str, said: Sequence[Mapping[str, Any]], suffix: str) -> None:
    if lines := [json.dumps(one, separators=(",", ":")) for one in said]:
        day = datetime.now(UTC).date().isoformat()
        staging.write(f"{FOLDER}/{route}/{day}/{new_trip_id()}{suffix}", "\n".join(lines).encode())


def kept(staging: Staging, route: str, since: date | None = None) -> Iterator[list[Arrival]]:
    """Everything that was kept of ``route`` on ``since`` or later, oldest first, file by file. Refused for a file that is not ours."""
    for path in staging.list(f"{FOLDER}/{route}"):
        if since is None or path.split("/")[2] >= since.isoformat():
            yield _read(staging, path, _arrival)


def corrections(staging: Staging, route: str) -> dict[str, Correction]:
    """By key, the newest of each message that was corrected, by the depot's clock. Refused for a file that is not ours."""
    found = dict[str, Correction]()
    for path in staging.list(f"{FOLDER}/{route}"):
        for taken in _read(staging, path, _taken) if path.endswith(CORRECTED) else ():
            key, one = taken.arrival.key, Correction(path, digest(taken.arrival.body), taken.at)
            found[key] = max(found.get(key, one), one, key=lambda known: known.at)
    return found


def corrected(staging: Staging, key: str, correction: Correction) -> Arrival:
    arrivals = _read(staging, correction.path, _arrival)
    return next(arrival for arrival in arrivals if arrival.key == key and digest(arrival.body) == correction.digest)


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
    return {arrival.key for path in paths for arrival in _read(staging, path, _arrival)}


def forget(staging: Staging, route: str, day: date) -> int:
    """Delete what was kept on ``day``; how many files."""
    return staging.delete_prefix(f"{FOLDER}/{route}/{day.isoformat()}")


def _read(staging: Staging, path: str, made: Callable[[dict[str, Any]], Read]) -> list[Read]:
    try:
        return [made(json.loads(line)) for line in staging.local(path).read_text().splitlines()]
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
    known = {name: value for name, value in said.items() if name != "taken_at"}
    return Arrival(**{**known, **moments, "body": base64.b64decode(said["body"])})


def _taken(said: dict[str, Any]) -> Taken:
    return Taken(_arrival(said), datetime.fromisoformat(said["taken_at"]))


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
