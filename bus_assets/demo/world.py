"""Set the demo's legacy systems up: monthly text files, an XML feed and a SQLite database, below ``home/demo``.

demo/landing/flights-2013-01.csv … -12.csv   pipe-delimited, 'NA' for no value, local times without a zone
demo/landing/airlines.xml                    namespaced, codes as attributes
demo/legacy.db                               AIRCRAFT and WEATHER_OBS, as such systems name things
demo/world.json                              the marker, written last: which version of the world is complete
"""

from __future__ import annotations

import csv
import errno
import json
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from bus_assets.demo import source
from resources.errors import Misconfigured, Transient

VERSION = 1
FLIGHT_COLUMNS = [
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
    "distance",
]
"""Without time_hour, the instant that the data has too: the platform has to find it, and the tests compare."""
MONTHS = tuple(f"{month:02d}" for month in range(1, 13))
CARRIERS = "urn:flights:carriers:1"
LEGACY_TABLES = """
CREATE TABLE AIRCRAFT (
    TAIL_NO TEXT PRIMARY KEY, MFR_YEAR INTEGER, TYPE_DESC TEXT, MFR TEXT, MODEL TEXT, ENG_CNT INTEGER, SEATS INTEGER,
    CRUISE_SPEED INTEGER, ENG_TYPE TEXT
);
CREATE TABLE WEATHER_OBS (
    OBS_ID INTEGER PRIMARY KEY, STATION TEXT NOT NULL, OBS_YEAR INTEGER, OBS_MONTH INTEGER, OBS_DAY INTEGER, OBS_HOUR INTEGER,
    TEMP_F REAL, DEWPOINT_F REAL, HUMIDITY_PCT REAL, WIND_DEG INTEGER, WIND_MPH REAL, GUST_MPH REAL, PRECIP_IN REAL,
    PRESSURE_MB REAL, VISIBILITY_MI REAL
);
"""
PLANE_COLUMNS = ["tailnum", "year", "type", "manufacturer", "model", "engines", "seats", "speed", "engine"]
WEATHER_COLUMNS = [
    "origin",
    "year",
    "month",
    "day",
    "hour",
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class World:
    """Where the demo's systems are; ``made`` if they were set up just now."""

    landing: Path
    legacy: Path
    made: bool


def on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def set_up(home: Path, tell: Tell = on_stderr) -> World:
    """Make the demo's world below ``home``, or find it complete. Files appear whole or not at all; a cut run is made again.

    Raises :class:`Misconfigured` if the data's package is not installed or ``home`` cannot be written,
    :class:`~resources.errors.Transient` if the disk is full.
    """
    demo = home / "demo"
    world = World(demo / "landing", demo / "legacy.db", made=True)
    marker = demo / "world.json"
    now = source.digest()
    if _is_complete(marker, demo, now):
        tell(f"demo: the legacy systems are there already ({demo})")
        return World(world.landing, world.legacy, made=False)
    try:
        world.landing.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        written = [*_monthly_files(world.landing, tell), _feed(world.landing, tell), _database(world.legacy, tell)]
        sizes = {str(path.relative_to(demo)): path.stat().st_size for path in written}
        with _whole(marker) as path:
            path.write_text(json.dumps({"version": VERSION, "source": now, "bytes": sizes}, indent=1))
    except (OSError, sqlite3.Error) as error:
        raise _explained(error, demo) from error
    return world


def _is_complete(marker: Path, demo: Path, now: str) -> bool:
    try:
        said = json.loads(marker.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    if (said.get("version"), said.get("source")) != (VERSION, now):
        return False
    return all((demo / name).is_file() and (demo / name).stat().st_size == size for name, size in said["bytes"].items())


def _monthly_files(landing: Path, tell: Tell) -> Iterator[Path]:
    tell("demo: writing twelve monthly files of flights …")
    counts: Counter[str] = Counter()
    paths = {month: landing / f"flights-2013-{month}.csv" for month in MONTHS}
    with ExitStack() as stack:
        writers = {}
        for month, path in paths.items():
            text = stack.enter_context(stack.enter_context(_whole(path)).open("w", encoding="utf-8", newline=""))
            writers[month] = csv.writer(text, delimiter="|", lineterminator="\n")
            writers[month].writerow(FLIGHT_COLUMNS)
        for row in source.rows("flights"):
            month = row["month"].zfill(2)
            writers[month].writerow([row[name] for name in FLIGHT_COLUMNS])
            counts[month] += 1
    for month, path in paths.items():
        tell(f"demo: {path.name}  {counts[month]:>6,} flights")
    yield from paths.values()


def _feed(landing: Path, tell: Tell) -> Path:
    path, carriers = landing / "airlines.xml", tuple(source.rows("airlines"))
    with _whole(path) as part, part.open("w", encoding="utf-8") as text:
        text.write(f'<?xml version="1.0" encoding="UTF-8"?>\n<carriers xmlns="{CARRIERS}" published="2014-01-15">\n')
        for row in carriers:
            text.write(f"  <carrier code={quoteattr(row['carrier'])}><name>{escape(row['name'])}</name></carrier>\n")
        text.write("</carriers>\n")
    tell(f"demo: {path.name}  {len(carriers):>6,} carriers")
    return path


def _database(path: Path, tell: Tell) -> Path:
    with _whole(path) as part, closing(sqlite3.connect(part)) as legacy, legacy:
        legacy.executescript(LEGACY_TABLES)
        planes = _load(legacy, "AIRCRAFT", PLANE_COLUMNS, source.rows("planes"))
        hours = _load(legacy, "WEATHER_OBS", WEATHER_COLUMNS, source.rows("weather"), numbered=True)
    tell(f"demo: {path.name}  {planes:>6,} planes, {hours:,} hours of weather")
    return path


def _load(legacy: sqlite3.Connection, table: str, columns: Sequence[str], rows: Iterable[dict[str, str]], *, numbered: bool = False) -> int:
    """Insert ``columns`` of the rows in the table's order; SQLite turns text into the numbers that its columns hold.

    ``numbered``: the first column is the row's number, which SQLite gives.
    """
    marks = ", ".join(["NULL"] * numbered + ["?"] * len(columns))
    done = legacy.executemany(f"INSERT INTO {table} VALUES ({marks})", ([source.value(row[name]) for name in columns] for row in rows))  # noqa: S608
    return done.rowcount


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of ``path`` when all is written, and is gone if anything failed."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _explained(error: OSError | sqlite3.Error, demo: Path) -> Misconfigured | Transient:
    if "full" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
        return Transient(f"the disk is full ({error}); about 30 MB are needed: make room and set the demo up again", place=str(demo))
    return Misconfigured(f"the demo cannot be set up: {error}; set BUS_HOME to a directory that can be written", place=str(demo))
