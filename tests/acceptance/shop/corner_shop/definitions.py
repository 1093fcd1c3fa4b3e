"""The shop's code location. Paths are relative to the directory it runs in."""

from bus_assets import build_definitions
from corner_shop.routes import ROUTES
from resources.database import Database
from resources.files import LocalFiles

defs = build_definitions(
    ROUTES,
    resources={
        "landing": LocalFiles(root="landing"),
        "legacy": Database(url="sqlite:///legacy.db"),
        "warehouse": Database(url="sqlite:///warehouse.db"),
    },
)
