"""The staging area as a Dagster resource."""

from pydantic import Field

from resources.staging.seam import Staging, open_staging
from resources.system import System


class StagingArea(System):
    """Where stops leave their rows until every gate has passed. All processes of a deployment must see the same place."""

    url: str = Field(description="/a/path, file:///a/path, or s3://bucket/prefix")
    region: str | None = Field(default=None, description="AWS region of the bucket; default: the environment's")
    endpoint_url: str | None = Field(default=None, description="for S3-compatible stores; default: AWS")

    def open(self) -> Staging:
        """The area. Nothing is touched until it is used."""
        return open_staging(self.url, region=self.region, endpoint_url=self.endpoint_url)
