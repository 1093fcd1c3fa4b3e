"""A queue world with the ``bus`` command on top: commands run in this process, on the world's own depot, queues and warehouse."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bus_assets import build_definitions
from bus_assets.cli import main
from bus_assets.route import Route
from resources.depot.resource import DepotResource
from resources.staging import StagingArea
from tests.depots import dagsters_storage
from tests.queue_world import QueueWorld, events

MODULE = "bus_routes_of_a_test"


class CliWorld(QueueWorld):
    """``bus`` runs a command: exit code, stdout, stderr. ``told`` parses what it says with --json.

    ``capsys`` is that of the test that runs; a world that outlives a test gets each one's."""

    def __init__(
        self,
        root: Path,
        patch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str] | None = None,
        route: Route | None = None,
        **more: Any,
    ):
        super().__init__(root, route or events(dead_letters="dead", attempts=1), **more)
        self._patch, self.capsys = patch, capsys
        home = {"BUS_HOME": f"{root}/home", "DAGSTER_HOME": f"{root}/home/dagster", "BUS_MODULE": MODULE}
        for name, value in {**home, "BUS_DEPOT_URL": f"sqlite:///{root}/depot.db", "BUS_STAGING_URL": f"{root}/staging"}.items():
            patch.setenv(name, value)
        dagsters_storage(root / "home" / "dagster")
        self.deploy(self.route)

    def deploy(self, *routes: Route) -> None:
        """Make ``routes`` the module's; the first is the one that the world drives."""
        self.route = routes[0]
        made = types.ModuleType(MODULE)
        depot, staging = DepotResource(url=f"sqlite:///{self.root}/depot.db"), StagingArea(url=f"{self.root}/staging")
        made.ROUTES = routes  # pyright: ignore[reportAttributeAccessIssue]
        made.defs = build_definitions(routes, self.bus.systems, depot=depot, staging=staging)  # pyright: ignore[reportAttributeAccessIssue]
        self._patch.setitem(sys.modules, MODULE, made)

    def bus_says(self, *arguments: str) -> tuple[int, str, str]:
        assert self.capsys is not None
        self.capsys.readouterr()
        code = main(arguments)
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        assert "unexpected" not in said.err
        return code, said.out, said.err

    def told(self, *arguments: str, code: int = 0) -> Any:
        found, out, err = self.bus_says(*arguments, "--json")
        assert found == code, err
        return json.loads(out)

    def refused(self, *arguments: str) -> str:
        """What a command says that does not do it, on one line."""
        code, out, err = self.bus_says(*arguments)
        assert code in (1, 2)
        assert out == ""
        return " ".join(err.replace("│", " ").split())

    def lose_the_depot(self) -> None:
        for depot in (self.bus.depot, DepotResource(url=f"sqlite:///{self.root}/depot.db").depot()):
            depot.close()
        for file in self.root.glob("depot.db*"):
            file.unlink()
        self.bus.depot.upgrade()
