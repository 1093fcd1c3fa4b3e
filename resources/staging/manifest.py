"""The list of the exact files that a stop staged, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from resources.errors import Refused


@dataclass(frozen=True)
class StagedFile:
    """One Parquet file: its path in the staging area, its rows, size and sha256."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a stop staged, in row order. ``digest`` is the sha256 over all paths, row counts and file digests."""

    files: tuple[StagedFile, ...]
    rows: int
    digest: str

    @classmethod
    def of(cls, files: tuple[StagedFile, ...]) -> Manifest:
        lines = "".join(f"{file.sha256} {file.rows} {file.path}\n" for file in files)
        return cls(files, sum(file.rows for file in files), hashlib.sha256(lines.encode()).hexdigest())

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for the depot."""
        return asdict(self) | {"files": [asdict(file) for file in self.files]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Manifest:
        """The manifest that ``to_json`` gave; Refused if it was altered since."""
        try:
            made = cls.of(tuple(StagedFile(**file) for file in found["files"]))
        except (KeyError, TypeError) as error:
            raise Refused("this is not a manifest; drive the trip again") from error
        if (made.rows, made.digest) != (found.get("rows"), found.get("digest")):
            raise Refused(
                f"the manifest was altered: its digest is {made.digest[:12]}…, {str(found.get('digest'))[:12]}… was recorded; "
                "nothing was published; drive the trip again"
            )
        return made
