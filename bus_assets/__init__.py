"""bus-assets: event-driven ETL on Dagster. This is the author's API; see the README for a first route.

Each name is loaded when it is first asked for: importing a route imports neither dagster nor boto3, and the command line, which is
in this package too, does not wait for declarations that it does not need.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bus_assets import _neighbours as _neighbours

if TYPE_CHECKING:
    from bus_assets.build import build_definitions
    from bus_assets.contract import Contract, Field, TableKey
    from bus_assets.declare import Misdeclared
    from bus_assets.queues import Json, Queue, S3Event, Text
    from bus_assets.route import Cron, Parameter, Route
    from bus_assets.sources import Endpoint, JsonLines, ParquetFile, Query, TextFile, XmlFeed
    from bus_assets.stops import Check, DropOff, PickUp, Table, Transform

__all__ = [
    "Check",
    "Contract",
    "Cron",
    "DropOff",
    "Endpoint",
    "Field",
    "Json",
    "JsonLines",
    "Misdeclared",
    "Parameter",
    "ParquetFile",
    "PickUp",
    "Query",
    "Queue",
    "Route",
    "S3Event",
    "Table",
    "TableKey",
    "Text",
    "TextFile",
    "Transform",
    "XmlFeed",
    "build_definitions",
]

_NAMES_IN = {
    "build": ("build_definitions",),
    "contract": ("Contract", "Field", "TableKey"),
    "declare": ("Misdeclared",),
    "queues": ("Json", "Queue", "S3Event", "Text"),
    "route": ("Cron", "Parameter", "Route"),
    "sources": ("Endpoint", "JsonLines", "ParquetFile", "Query", "TextFile", "XmlFeed"),
    "stops": ("Check", "DropOff", "PickUp", "Table", "Transform"),
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'bus_assets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bus_assets.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
