"""The composition root: routes, the systems they halt at, Dagster. Nothing else happens here."""

from bus_assets import build_definitions
from bus_assets.routes import ROUTES
from bus_assets.settings import settings
from resources.database import Database
from resources.files import LocalFiles
from resources.http import WebService

_here = settings()

defs = build_definitions(
    ROUTES,
    resources={
        "landing": LocalFiles(root=str(_here.home / "demo" / "landing")),
        "airports_service": WebService(base_url=_here.airports_url),
        "legacy": Database(url=f"sqlite:///{_here.home}/demo/legacy.db"),
        "warehouse": Database(url=_here.warehouse_url),
    },
)
