"""The environment, read in this one place. Nothing heavy is imported: the command line starts from here too."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

DEMO = "bus_assets.definitions"
"""The module that answers where none is named."""


@dataclass(frozen=True)
class Settings:
    """Where a deployment keeps its things. Each has a variable of its own; the defaults are all below ``home``.

    ``home``           BUS_HOME, default ``.bus`` in the working directory.
    ``depot_url``      BUS_DEPOT_URL, default SQLite in ``home``. Postgres in production.
    ``staging_url``    BUS_STAGING_URL, default a directory in ``home``; ``s3://bucket/prefix`` in production.
    ``warehouse_url``  BUS_WAREHOUSE_URL, where the demo route drops off; default SQLite in ``home``.
    ``airports_url``   BUS_AIRPORTS_URL, the demo's web service.
    ``module``         BUS_MODULE, the module with ``defs`` and ``ROUTES``.
    ``dagster_home``   DAGSTER_HOME, default in ``home``.
    ``cloud``          BUS_CLOUD: 'embedded' (default: `bus up` brings SQS, S3 and the rest along) or 'aws'. AWS_ENDPOINT_URL, where it
                       is set, says where AWS is, and nothing is embedded.
    ``cloud_url``      AWS_ENDPOINT_URL.
    ``region``         AWS_REGION or AWS_DEFAULT_REGION.
    ``results_url``    BUS_RESULTS_URL, where workers say how runs ended, as Celery writes it; default SQLite in ``home``.
    ``run_queue``      BUS_RUN_QUEUE, the SQS queue through which runs reach the workers; one for each deployment.
    """

    home: Path
    depot_url: str = field(repr=False)
    staging_url: str = field(repr=False)
    warehouse_url: str = field(repr=False)
    airports_url: str
    module: str
    dagster_home: Path
    cloud: str
    cloud_url: str | None
    region: str
    results_url: str = field(repr=False)
    run_queue: str


def settings() -> Settings:
    """What the environment says now."""
    read = os.environ.get
    home = Path(read("BUS_HOME") or ".bus").absolute()
    return Settings(
        home=home,
        depot_url=read("BUS_DEPOT_URL") or f"sqlite:///{home}/depot.db",
        staging_url=read("BUS_STAGING_URL") or str(home / "staging"),
        warehouse_url=read("BUS_WAREHOUSE_URL") or f"sqlite:///{home}/warehouse.db",
        airports_url=read("BUS_AIRPORTS_URL") or "http://127.0.0.1:8018",
        module=read("BUS_MODULE") or DEMO,
        dagster_home=Path(read("DAGSTER_HOME") or home / "dagster").absolute(),
        cloud=read("BUS_CLOUD") or "embedded",
        cloud_url=read("AWS_ENDPOINT_URL") or None,
        region=read("AWS_REGION") or read("AWS_DEFAULT_REGION") or "eu-west-1",
        results_url=read("BUS_RESULTS_URL") or f"db+sqlite:///{home}/results.db",
        run_queue=read("BUS_RUN_QUEUE") or "bus-runs",
    )
