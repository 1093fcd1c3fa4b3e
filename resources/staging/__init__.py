"""The staging area: where passengers wait, as immutable Parquet files, until every gate has passed.

    area.write(path, content) → StoredFile      read(path, sha256=…) → the exact bytes      StagedWriter → Manifest → read_batches

What is heavy (pyarrow, boto3, dagster) is loaded when its name is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from resources.staging.local import LocalStaging
from resources.staging.seam import Staging, StoredFile, open_staging

if TYPE_CHECKING:
    from resources.staging.area import StagingArea
    from resources.staging.manifest import Manifest, StagedFile
    from resources.staging.parquet import StagedWriter, read_batches, read_schema
    from resources.staging.s3 import S3Staging

__all__ = [
    "LocalStaging",
    "Manifest",
    "S3Staging",
    "StagedFile",
    "StagedWriter",
    "Staging",
    "StagingArea",
    "StoredFile",
    "open_staging",
    "read_batches",
    "read_schema",
]

_MODULE_OF = {
    "StagingArea": "area",
    "Manifest": "manifest",
    "StagedFile": "manifest",
    "StagedWriter": "parquet",
    "read_batches": "parquet",
    "read_schema": "parquet",
    "S3Staging": "s3",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
