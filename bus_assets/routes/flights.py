"""The demo route: the flights that left New York in 2013 move from legacy systems to a small star schema.

Twelve monthly text files, an XML feed, a paged web service and a legacy database come in; flights, airports, airlines, planes and
hourly weather land together or not at all. The dirt is real: cancelled flights without times, tail numbers that no plane has,
airports that nobody lists, an hour that happened twice.

``flights`` is started by messages: S3 tells of each file that lands in a bucket. ``flights_archive`` reads the same files from a
directory; ``bus drive flights_archive --set month=03`` drives one month.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus_assets import (
    Check,
    Contract,
    Cron,
    DropOff,
    Endpoint,
    Field,
    Parameter,
    PickUp,
    Query,
    Queue,
    Route,
    S3Event,
    Table,
    TextFile,
    Transform,
    XmlFeed,
)

if TYPE_CHECKING:
    import pandas as pd

NEW_YORK = "America/New_York"

AIRLINES = Contract(
    fields=(
        Field("carrier", required=True, unique=True, pattern="^[0-9A-Z]{2}$", description="IATA designator"),
        Field("name", required=True, min_length=1),
    ),
    max_rejected=0,
    min_rows=1,
)

AIRPORTS = Contract(
    fields=(
        Field("faa", required=True, unique=True, pattern="^[0-9A-Z]{3}$", description="FAA location identifier"),
        Field("name", required=True),
        Field("lat", "number", required=True, minimum=-90, maximum=90, description="degrees north"),
        Field("lon", "number", required=True, minimum=-180, maximum=180, description="degrees east"),
        Field("alt", "integer", minimum=-1500, maximum=20_000, description="feet above sea level"),
        Field("tzone", required=True, pattern="^[A-Z][A-Za-z]+/[A-Za-z_/]+$", description="IANA time zone"),
    ),
    max_rejected=0.01,
    min_rows=1000,
)

PLANES = Contract(
    fields=(
        Field("tailnum", required=True, unique=True, pattern="^[0-9A-Z]{4,6}$", description="registration painted on the tail"),
        Field("year", "integer", minimum=1903, maximum=2013, description="year of manufacture"),
        Field("type", required=True, allowed=("Fixed wing multi engine", "Fixed wing single engine", "Rotorcraft")),
        Field("manufacturer", required=True),
        Field("model", required=True),
        Field("engines", "integer", required=True, minimum=1, maximum=8),
        Field("seats", "integer", required=True, minimum=1, maximum=900),
        Field("speed", "integer", minimum=1, description="cruising speed, miles per hour; mostly unknown"),
        Field("engine", required=True),
    ),
    min_rows=1000,
)

WEATHER = Contract(
    fields=(
        Field("origin", required=True, allowed=("EWR", "JFK", "LGA")),
        Field("observed_at", "timestamptz", required=True, zone=NEW_YORK, description="the legacy system wrote New York's wall clock"),
        Field("temp", "number", minimum=-60, maximum=130, description="degrees Fahrenheit"),
        Field("dewp", "number", minimum=-60, maximum=130, description="dew point, degrees Fahrenheit"),
        Field("humid", "number", minimum=0, maximum=100, description="relative humidity, percent"),
        Field("wind_dir", "integer", minimum=0, maximum=360, description="degrees"),
        Field("wind_speed", "number", minimum=0, maximum=253, description="miles per hour; 253 is the highest ever measured"),
        Field("wind_gust", "number", minimum=0, maximum=253, description="miles per hour; mostly calm, so mostly null"),
        Field("precip", "number", minimum=0, description="inches"),
        Field("pressure", "number", minimum=850, maximum=1100, description="at sea level, millibars"),
        Field("visib", "number", minimum=0, description="miles"),
    ),
    unique=(("origin", "observed_at"),),
    max_rejected=20,
)
"""The hour from one to two on 3 November happened twice at each of three airports, and a wall clock cannot say which one it means."""

FLIGHTS = Contract(
    fields=(
        Field("year", "integer", required=True, allowed=(2013,), description="of the scheduled departure, as month and day"),
        Field("month", "integer", required=True, minimum=1, maximum=12),
        Field("day", "integer", required=True, minimum=1, maximum=31),
        Field("dep_time", "integer", required=True, minimum=1, maximum=2400, description="local wall clock, HMM; none: cancelled"),
        Field("sched_dep_time", "integer", required=True, minimum=0, maximum=2359, description="local wall clock, HMM"),
        Field("dep_delay", "integer", required=True, minimum=-120, maximum=2880, description="minutes; early is negative"),
        Field("arr_time", "integer", required=True, minimum=1, maximum=2400, description="wall clock at the destination, HMM"),
        Field("sched_arr_time", "integer", required=True, minimum=0, maximum=2359, description="wall clock at the destination, HMM"),
        Field("arr_delay", "integer", required=True, minimum=-240, maximum=2880, description="minutes; none: diverted"),
        Field("carrier", required=True, references="airlines.carrier"),
        Field("flight", "integer", required=True, minimum=1, maximum=9999, description="flight number"),
        Field("tailnum", required=True, references="planes.tailnum"),
        Field("origin", required=True, allowed=("EWR", "JFK", "LGA"), references="airports.faa"),
        Field("dest", required=True, references="airports.faa"),
        Field("air_time", "integer", required=True, minimum=1, maximum=1440, description="minutes"),
        Field("distance", "integer", required=True, minimum=1, maximum=6000, description="miles"),
    ),
    unique=(("year", "month", "day", "carrier", "flight", "origin"),),
    max_rejected=0.25,
)
"""A quarter may wait: one carrier reports tail numbers that the registry lacks, and winter storms cancel one flight in twenty."""

FLOWN = Contract(
    fields=(
        Field("flight_date", "date", required=True, minimum="2013-01-01", maximum="2013-12-31", description="of departure, in New York"),
        Field("carrier", required=True),
        Field("flight", "integer", required=True),
        Field("origin", required=True),
        Field("dest", required=True),
        Field("tailnum", required=True),
        Field("scheduled_departure", "timestamptz", required=True),
        Field("departed", "timestamptz", required=True),
        Field("scheduled_arrival", "timestamptz", required=True),
        Field("arrived", "timestamptz", required=True),
        Field("dep_delay", "integer", required=True, description="minutes"),
        Field("arr_delay", "integer", required=True, description="minutes"),
        Field("air_time", "integer", required=True, description="minutes"),
        Field("distance", "integer", required=True, description="miles"),
        Field("weather_hour", "timestamptz", required=True, description="with origin: the row of weather at the scheduled departure"),
        Field("dep_clock", "integer", required=True, description="wall clock as reported, HMM; only the checks need it"),
        Field("arr_clock", "integer", required=True, description="wall clock at the destination as reported, HMM; only the checks need it"),
        Field("dest_zone", required=True),
    ),
    unique=(("flight_date", "carrier", "flight", "origin"),),
    max_rejected=0,
)

# A scheduled arrival is the first time after the scheduled departure that the destination's clock shows it. What really happened is
# the schedule plus the delay: the reported wall clocks do not say on which day they were read.
PUT_ZONES = """
WITH departures AS (
    SELECT
        *,
        make_timestamp(year, month, day, sched_dep_time // 100, sched_dep_time % 100, 0)
            AT TIME ZONE 'America/New_York' AS scheduled_departure
    FROM flights
),
arrivals AS (
    SELECT
        departures.*,
        airports.tzone AS dest_zone,
        date_trunc('day', departures.scheduled_departure AT TIME ZONE airports.tzone)
            + to_minutes(60 * (departures.sched_arr_time // 100) + departures.sched_arr_time % 100) AS same_day
    FROM departures
    LEFT JOIN airports ON airports.faa = departures.dest
),
timed AS (
    SELECT
        *,
        CASE
            WHEN same_day AT TIME ZONE dest_zone < scheduled_departure THEN same_day + INTERVAL 1 DAY
            ELSE same_day
        END AT TIME ZONE dest_zone AS scheduled_arrival
    FROM arrivals
)
SELECT
    make_date(year, month, day) AS flight_date,
    carrier,
    flight,
    origin,
    dest,
    tailnum,
    scheduled_departure,
    scheduled_departure + to_minutes(dep_delay) AS departed,
    scheduled_arrival,
    scheduled_arrival + to_minutes(arr_delay) AS arrived,
    dep_delay,
    arr_delay,
    air_time,
    distance,
    date_trunc('hour', scheduled_departure) AS weather_hour,
    dep_time AS dep_clock,
    arr_time AS arr_clock,
    dest_zone
FROM timed
"""

FLOWN_CHECKS = (
    Check(
        "arrives_after_flying",
        "SELECT * FROM flown WHERE arrived < departed + to_minutes(air_time)",
        description="Nobody arrives sooner than the time in the air after leaving: a wrong zone or day would show here.",
    ),
    Check(
        "departure_clock_agrees",
        """SELECT * FROM (SELECT *, departed AT TIME ZONE 'America/New_York' AS clock FROM flown)
        WHERE dep_clock % 2400 <> hour(clock) * 100 + minute(clock)""",
        description="The instant of departure, read in New York, is the wall clock that was reported (2400 is midnight).",
    ),
    Check(
        "arrival_clock_agrees",
        """SELECT * FROM (SELECT *, arrived AT TIME ZONE dest_zone AS clock FROM flown)
        WHERE arr_clock % 2400 <> hour(clock) * 100 + minute(clock)""",
        description="The same for arrivals. One flight reports 2:03 on the morning when that was skipped: its instant is right.",
        blocking=False,
    ),
)

ONE_NAME = {
    "AIRBUS INDUSTRIE": "AIRBUS",
    "CANADAIR LTD": "CANADAIR",
    "MCDONNELL DOUGLAS AIRCRAFT CO": "MCDONNELL DOUGLAS",
    "MCDONNELL DOUGLAS CORPORATION": "MCDONNELL DOUGLAS",
}


def one_name_per_manufacturer(planes: pd.DataFrame) -> pd.DataFrame:
    """Planes whose manufacturer has the one name by which it is known, however the registry spelled it."""
    return planes.assign(manufacturer=planes["manufacturer"].replace(ONE_NAME))


LEGACY_FILE = {"delimiter": "|", "null_values": ("NA",)}
"""How the legacy system writes its monthly files."""

LOOKED_UP = (
    PickUp(
        "airlines",
        XmlFeed(
            "landing",
            "airlines.xml",
            row="c:carrier",
            namespaces={"c": "urn:flights:carriers:1"},
            fields={"carrier": "@code", "name": "c:name"},
        ),
        contract=AIRLINES,
        description="Carriers, from the XML feed of the code authority.",
    ),
    PickUp(
        "airports",
        Endpoint(
            "airports_service",
            "/airports",
            records="data",
            params={"per_page": 200},
            paging={"kind": "page", "total_pages": "total_pages"},
        ),
        contract=AIRPORTS,
        description="Airports, page by page from the airports service. Those without a time zone wait in quarantine.",
    ),
    PickUp(
        "planes",
        Query(
            "legacy",
            "SELECT * FROM AIRCRAFT ORDER BY TAIL_NO",
            name="AIRCRAFT",
            fields={
                "tailnum": "TAIL_NO",
                "year": "MFR_YEAR",
                "type": "TYPE_DESC",
                "manufacturer": "MFR",
                "model": "MODEL",
                "engines": "ENG_CNT",
                "seats": "SEATS",
                "speed": "CRUISE_SPEED",
                "engine": "ENG_TYPE",
            },
        ),
        contract=PLANES,
        description="Planes, from the legacy registry.",
    ),
    PickUp(
        "weather",
        Query(
            "legacy",
            """SELECT *, printf('%04d-%02d-%02d %02d:00', OBS_YEAR, OBS_MONTH, OBS_DAY, OBS_HOUR) AS OBSERVED
            FROM WEATHER_OBS ORDER BY STATION, OBS_ID""",
            name="WEATHER_OBS",
            fields={
                "origin": "STATION",
                "observed_at": "OBSERVED",
                "temp": "TEMP_F",
                "dewp": "DEWPOINT_F",
                "humid": "HUMIDITY_PCT",
                "wind_dir": "WIND_DEG",
                "wind_speed": "WIND_MPH",
                "wind_gust": "GUST_MPH",
                "precip": "PRECIP_IN",
                "pressure": "PRESSURE_MB",
                "visib": "VISIBILITY_MI",
            },
        ),
        contract=WEATHER,
        description="Hourly weather at the three airports of New York, from the legacy database, wall clock made an instant.",
    ),
)
"""What flights are looked up in."""

ONWARD = (
    Transform(
        "fleet",
        one_name_per_manufacturer,
        after=("planes",),
        contract=PLANES,
        description="Planes with one name per manufacturer.",
    ),
    Transform(
        "flown",
        PUT_ZONES,
        after=("flights", "airports"),
        contract=FLOWN,
        checks=FLOWN_CHECKS,
        description="Flights with real instants: departures in New York's zone, arrivals in the destination's.",
    ),
    DropOff("warehouse_airlines", Table("warehouse", "airlines", key="carrier", create=True), of="airlines"),
    DropOff("warehouse_airports", Table("warehouse", "airports", key="faa", create=True), of="airports"),
    DropOff("warehouse_planes", Table("warehouse", "planes", key="tailnum", create=True), of="fleet"),
    DropOff("warehouse_weather", Table("warehouse", "weather", key=("origin", "observed_at"), create=True), of="weather"),
    DropOff(
        "warehouse_flights",
        Table("warehouse", "flights", key=("flight_date", "carrier", "flight", "origin"), create=True),
        of="flown",
        columns=tuple(name for name in FLOWN.names if name not in ("dep_clock", "arr_clock", "dest_zone")),
        description="The fact table: one row per flight that was flown, by a known plane to a known airport.",
    ),
)
"""From there on both routes are one."""

flights = Route(
    name="flights",
    description="Flights from New York in 2013: each monthly file that lands in the bucket moves into a star schema, whole or not at all.",
    owners=("team:flight-data",),
    triggers=(Queue("flight_files", S3Event(), batch=3, max_in_flight=2, dead_letters="flight_files_dead"),),
    stops=(
        *LOOKED_UP,
        PickUp(
            "flights",
            TextFile("bucket", "{message.key}", **LEGACY_FILE),
            contract=FLIGHTS,
            description="One row for each scheduled flight, from the files that messages name. Cancelled flights wait in quarantine.",
        ),
        *ONWARD,
    ),
)

flights_archive = Route(
    name="flights_archive",
    description="The same flights from a directory, a month or all of them: by the clock, or by hand.",
    owners=("team:flight-data",),
    triggers=(Cron("15 6 * * *", zone=NEW_YORK),),
    parameters=(Parameter("month", default="*", description="'01' to '12', or '*' for all twelve files"),),
    stops=(
        *LOOKED_UP,
        PickUp(
            "flights",
            TextFile("landing", "flights-2013-{params.month}.csv", **LEGACY_FILE),
            contract=FLIGHTS,
            description="One row for each scheduled flight, from the monthly files. Cancelled and diverted flights wait in quarantine.",
        ),
        *ONWARD,
    ),
)
