"""Fixtures for everybody: databases, one fresh one for each test that asks."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
import typer.main
from alembic.util import pyfiles

from tests.depots import Lent, LentDepot, sqlite_depot
from tests.emulators import Emulator, ministack, moto_server
from tests.servers import NotInstalled, fresh_database, mariadb_server, postgres_server


@pytest.fixture(scope="session", autouse=True)
def made_once() -> Iterator[None]:
    """What every new process makes anew stays the same in this one: Alembic reads Dagster's ninety files of migrations whenever an
    instance is made, and Typer builds the tree of commands for each ``bus``. An instance in memory is not marked as migrated.

    Alembic's ``env.py`` is a script and not kept: what it does when it is run marks the instances on disk.
    """
    run, kept = pyfiles.load_module_py, functools.cache(pyfiles.load_module_py)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyfiles, "load_module_py", lambda name, path: (run if Path(path).name == "env.py" else kept)(name, path))
        for storage in ("event_log", "runs"):
            patch.setattr(f"dagster._core.storage.{storage}.in_memory.stamp_alembic_rev", lambda *_: None)
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server for the whole session: the URL of its superuser. Skips where none is installed, fails in CI."""
    try:
        with postgres_server(durable=False) as url:
            yield url
    except NotInstalled as missing:
        _not_here(str(missing))


@pytest.fixture(scope="session")
def lent_database(postgres_url: str) -> Iterator[Lent]:
    with closing(Lent(postgres_url)) as lent:
        yield lent


@pytest.fixture(scope="session")
def lent_depot(postgres_url: str) -> Iterator[LentDepot]:
    with closing(LentDepot(postgres_url)) as lent:
        yield lent


@pytest.fixture
def postgres_database_url(lent_database: Lent) -> Iterator[str]:
    """An empty Postgres database."""
    yield lent_database.lend()
    lent_database.take_back()


@pytest.fixture
def postgres_depot_url(lent_depot: LentDepot) -> Iterator[str]:
    """A Postgres database with an empty depot in it."""
    yield lent_depot.lend()
    lent_depot.take_back()


@pytest.fixture
def sqlite_depot_url(tmp_path: Path) -> str:
    """A SQLite file with an empty depot in it."""
    return sqlite_depot(tmp_path / "databases" / "test.db")


@pytest.fixture
def sqlite_database_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet, in a folder that does not either."""
    return f"sqlite:///{tmp_path}/databases/test.db"


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """A MariaDB server for the whole session; skips where none is installed, in CI too."""
    try:
        with mariadb_server() as url:
            yield url
    except NotInstalled as missing:
        pytest.skip(str(missing))


@pytest.fixture
def mariadb_database_url(mariadb_url: str) -> Iterator[str]:
    """A fresh, empty MariaDB database."""
    with fresh_database(mariadb_url) as url:
        yield url


@pytest.fixture(scope="session")
def aws() -> Iterator[Emulator]:
    """An empty AWS for the whole session (ministack): take names of your own for what you create in it."""
    with ministack() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def moto() -> Iterator[Emulator]:
    """Another one (moto), which disagrees with ministack in places."""
    with moto_server() as emulator:
        yield emulator


def _not_here(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
