"""What the killed processes run: ticks of a route's sensor, or runs of trips that have departed, with unmodified product code."""

from __future__ import annotations

import faulthandler
import importlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy import exc

from bus_assets.drive import TRIP_TAG
from tests.crash import child, message_routes
from tests.emulators import CREDENTIALS

for _name in (*child.LATE_IMPORTS, "boto3", "bus_assets.build.dispatching", "resources.queue"):
    importlib.import_module(_name)

IDLE_SECONDS = 0.05
_DEPARTED = "SELECT id, route FROM depot_trips WHERE state = 'departed' OR (state = 'stuck' AND departed_at IS NOT NULL)"


def dispatch(place: message_routes.Place, route: str, log: Path) -> None:
    """Tick after tick, as the daemon does. Which trips have departed the depot tells the workers."""
    with _at(place, log) as instance:
        definitions = message_routes.definitions(place)
        sensor = definitions.resolve_sensor_def(f"{route}_queue")
        while True:
            with dg.build_sensor_context(instance=instance, resources=dict(definitions.resources)) as context:
                try:
                    said = sensor.evaluate_tick(context)
                except Exception as error:
                    print(f"tick failed: {error!r} from {error.__cause__!r}", flush=True)
                    time.sleep(IDLE_SECONDS)
                else:
                    print(said.cursor, flush=True)


def work(place: message_routes.Place, log: Path) -> None:
    """Run after run: some trip that has departed, perhaps one that another worker takes at this moment."""
    with _at(place, log) as instance:
        marked = place.warehouse_url
        if marked.startswith("postgresql"):
            marked += f"?application_name=worker-{os.getpid()}"
        definitions = message_routes.definitions(replace(place, warehouse_url=marked))
        depot = sa.create_engine(place.depot_url, poolclass=sa.NullPool)
        while True:
            try:
                with depot.connect() as connection:
                    departed = connection.execute(sa.text(_DEPARTED)).fetchall()
            except exc.DBAPIError:
                departed = []
            if not departed:
                time.sleep(IDLE_SECONDS)
                continue
            trip, route = random.choice(departed)
            _run(definitions, instance, route, trip)


def _run(definitions: Any, instance: Any, route: str, trip: str) -> None:
    job = definitions.resolve_job_def(route)
    tags = {TRIP_TAG.format(route=route): trip, "bus/trigger": "queue"}
    try:
        result = job.execute_in_process(tags=tags, instance=instance, raise_on_error=False)
    except (sqlite3.OperationalError, exc.OperationalError) as error:  # Dagster's own records are locked: the run is lost
        print(f"{trip}: Dagster failed: {error}", flush=True)
        return
    errors = [str(event.step_failure_data.error)[:2000] for event in result.all_events if event.is_step_failure]
    print(f"{trip}: {'success' if result.success else errors}", flush=True)


@contextmanager
def _at(place: message_routes.Place, log: Path) -> Iterator[Any]:
    os.environ |= {"DAGSTER_HOME": str(place.dagster_home), **CREDENTIALS}
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGUSR1)  # whoever asks finds in the log where it stands
    with dg.DagsterInstance.get() as instance:
        yield instance
