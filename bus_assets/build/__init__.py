"""Route → Dagster. The only part of the platform that imports dagster."""

from bus_assets.build.definitions import build_definitions

__all__ = ["build_definitions"]
