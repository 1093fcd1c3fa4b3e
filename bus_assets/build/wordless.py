"""How an error came about, where nothing may be told of what it says."""

import traceback
from typing import Any

from dagster import MetadataValue

from bus_assets.route import Route

CAME_ABOUT = "how it came about"
"""The label of a failure's metadata that takes the place of the causes."""


def wordless(route: Route, error: BaseException) -> dict[str, Any]:
    """Metadata of a failure in a route with sensitive fields: the lines of code that were run, and of each exception its class alone."""
    if not route.has_sensitive:
        return {}  # Dagster keeps the causes whole
    said = "What the exceptions say is left out: it may quote rows, and this route has sensitive fields.\n"
    found: BaseException | None = error
    told = set[int]()
    while found is not None and id(found) not in told:  # `raise error from error` makes a circle
        told.add(id(found))
        said += f"\n{type(found).__name__}\n\nStack Trace:\n{''.join(traceback.format_tb(found.__traceback__))}"
        found = found.__cause__ or found.__context__
    return {CAME_ABOUT: MetadataValue.text(said)}
