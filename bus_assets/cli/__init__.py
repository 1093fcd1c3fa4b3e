"""The command line ``bus``. Commands import what they need when they run: ``bus --help`` costs no dagster, pandas or pyarrow."""

from bus_assets.cli.app import main

__all__ = ["main"]
