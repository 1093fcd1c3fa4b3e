"""The depot as a Dagster resource."""

import functools

from pydantic import Field

from resources.depot.store import Depot
from resources.system import System


class DepotResource(System):
    """The bus's durable record. One :class:`Depot` (and its connections) per URL and process."""

    url: str = Field(description="sqlite:////path/depot.db, or postgresql://user:password@host/database")

    def depot(self) -> Depot:
        return _depot(self.url)


@functools.cache
def _depot(url: str) -> Depot:
    return Depot(url)
