"""The composition root: routes, the systems they halt at, Dagster. Nothing else happens here."""

from bus_assets import build_definitions
from bus_assets.routes import ROUTES
from bus_assets.settings import settings
from resources.database import Database
from resources.files import LocalFiles, S3Files
from resources.http import WebService
from resources.queue import SqsQueue

_here = settings()

defs = build_definitions(
    ROUTES,
    resources={
        "bucket": S3Files(bucket="flights-landing", region=_here.region, endpoint_url=_here.cloud_url),
        "flight_files": SqsQueue(name="flight-files", region=_here.region, endpoint_url=_here.cloud_url),
        "flight_files_dead": SqsQueue(name="flight-files-dead", region=_here.region, endpoint_url=_here.cloud_url),
        "landing": LocalFiles(root=str(_here.home / "demo" / "landing")),
        "airports_service": WebService(base_url=_here.airports_url),
        "legacy": Database(url=f"sqlite:///{_here.home}/demo/legacy.db"),
        "warehouse": Database(url=_here.warehouse_url),
    },
)
