"""bus-assets: event-driven ETL on Dagster. This is the author's API; see the README for a first route.

Importing a route imports neither dagster nor boto3: what needs them (``build_definitions``) is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from bus_assets import _neighbours as _neighbours
from bus_assets.contract import Contract, Field, TableKey
from bus_assets.declare import Misdeclared
from bus_assets.route import Cron, Parameter, Route
from bus_assets.sources import Endpoint, JsonLines, ParquetFile, Query, TextFile, XmlFeed
from bus_assets.stops import Check, DropOff, PickUp, Table, Transform

if TYPE_CHECKING:
    from bus_assets.build import build_definitions

__all__ = [
    "Check",
    "Contract",
    "Cron",
    "DropOff",
    "Endpoint",
    "Field",
    "JsonLines",
    "Misdeclared",
    "Parameter",
    "ParquetFile",
    "PickUp",
    "Query",
    "Route",
    "Table",
    "TableKey",
    "TextFile",
    "Transform",
    "XmlFeed",
    "build_definitions",
]


def __getattr__(name: str) -> Any:
    if name == "build_definitions":
        from bus_assets.build import build_definitions

        return build_definitions
    raise AttributeError(f"module 'bus_assets' has no attribute {name!r}")
