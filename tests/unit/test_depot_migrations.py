"""The depot's migrations hold together, and its small pure parts."""

import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from resources.depot import schema
from resources.depot.connections import depot_url, json_text
from resources.depot.migrate import MIGRATIONS
from resources.depot.process import is_gone, this_process
from resources.depot.store import Depot
from resources.depot.trips import new_trip_id
from resources.errors import Misconfigured, Poison

ROOT = Path(__file__).parents[2]


def tables(file):
    with sqlite3.connect(file) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    connection.close()
    return {name: definitions(sql) for name, sql in found if name not in (schema.VERSION_TABLE, "sqlite_sequence")}


def definitions(sql):
    """The statement's parts in an order of their own: a column that a later migration adds stands behind the constraints."""
    if not sql.startswith("CREATE TABLE"):
        return re.sub(r"\s+", " ", sql)
    head, _, body = re.sub(r"\s+", " ", sql).partition("(")
    inside, _, tail = body.rpartition(")")
    return head, sorted(part.strip() for part in re.split(r",(?![^(]*\))", inside)), tail


def test_the_migrations_end_at_the_revision_that_the_code_expects():
    script = ScriptDirectory(str(MIGRATIONS))
    assert script.get_heads() == [schema.REVISION]
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)  # is_current() tells newer from older by comparing them


def test_migrated_tables_equal_the_declared_ones_to_the_letter(tmp_path):
    depot = Depot(f"sqlite:///{tmp_path}/migrated.db")
    depot.upgrade()
    depot.close()
    engine = sa.create_engine(f"sqlite:///{tmp_path}/declared.db")
    schema.metadata.create_all(engine)
    engine.dispose()
    assert tables(tmp_path / "migrated.db") == tables(tmp_path / "declared.db")


def test_upgrading_twice_changes_nothing(tmp_path):
    depot = Depot(f"sqlite:///{tmp_path}/depot.db")
    trip = depot.start_trip("orders", "ui", {})
    depot.upgrade()
    assert depot.trips() == [trip]
    depot.close()


def test_a_migration_that_fails_leaves_the_database_empty(tmp_path, monkeypatch):
    broken = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, broken, ignore=shutil.ignore_patterns("__pycache__"))
    text = next((broken / "versions").glob("0001_*.py"))
    text.write_text(text.read_text().replace("    _quarantine()\n", '    op.execute("nonsense")\n', 1))
    monkeypatch.setattr("resources.depot.migrate.MIGRATIONS", broken)
    depot = Depot(f"sqlite:///{tmp_path}/depot.db")
    with pytest.raises(Misconfigured, match="nonsense"):
        depot.trips()
    assert tables(tmp_path / "depot.db") == {}
    monkeypatch.undo()
    assert depot.trips() == []
    depot.close()


def test_the_depot_works_where_it_is_not_the_working_directory(tmp_path):
    code = "from resources.depot.store import Depot; import sys; d = Depot(sys.argv[1]); print(d.start_trip('orders', 'ui', {}).state)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    url = f"sqlite:///{tmp_path}/depot.db"
    assert subprocess.check_output([sys.executable, "-c", code, url], cwd=tmp_path, text=True, env=environment) == "driving\n"


def test_every_migration_is_a_module_that_packaging_takes_along():
    for folder in (MIGRATIONS, MIGRATIONS / "versions"):
        assert (folder / "__init__.py").exists()
    for file in (MIGRATIONS / "versions").glob("0*.py"):
        assert importlib.util.spec_from_file_location(file.stem, file) is not None


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg"),
        ("sqlite:////a/depot.db", "sqlite"),
    ],
)
def test_a_depot_url_picks_its_driver(url, driver):
    assert depot_url(url).drivername == driver


@pytest.mark.parametrize("url", ["", "depot.db", "mysql://u:s3cret@h/d", "sqlite://", "sqlite:///:memory:", "s3cret@:x:y//"])
def test_other_depot_urls_are_misconfigured_without_a_secret(url):
    with pytest.raises(Misconfigured, match="depot") as caught:
        Depot(url)
    assert "s3cret" not in str(caught.value)


def test_constructing_a_depot_touches_nothing(tmp_path):
    Depot(f"sqlite:///{tmp_path}/folder/depot.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_depot_is_misconfigured(tmp_path):
    (tmp_path / "depot.db").write_bytes(b"this is not a database, " * 100)
    with pytest.raises(Misconfigured, match=r"depot\.db"):
        Depot(f"sqlite:///{tmp_path}/depot.db").trips()


def test_a_directory_that_cannot_be_made_is_misconfigured(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Misconfigured, match="cannot be made"):
        Depot(f"sqlite:///{tmp_path}/file/depot.db").trips()


def test_parameters_that_are_not_json_are_poison_and_name_their_type(tmp_path):
    depot = Depot(f"sqlite:///{tmp_path}/depot.db")
    with pytest.raises(Poison, match="set cannot be kept"):
        depot.start_trip("orders", "ui", {"a": {1, 2}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(float("nan"))
    assert depot.trips() == []
    depot.close()


def test_sqlite_commits_survive_a_power_cut(tmp_path):
    depot = Depot(f"sqlite:///{tmp_path}/depot.db")
    with depot._connections.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    depot.close()


def test_trip_ids_do_not_collide():
    assert len({new_trip_id() for _ in range(20_000)}) == 20_000


def test_only_a_process_that_is_certainly_gone_is_gone():
    me = this_process()
    assert not is_gone(me.host, me.pid, me.started)
    assert is_gone(me.host, me.pid, str(me.started) + "0")  # the pid belongs to another process by now
    assert not is_gone(me.host, me.pid, "other-boot/pid:[1]/5")
    assert not is_gone("elsewhere", 2**22, None)
    assert is_gone(me.host, 2**22 + 1, None)
    assert not is_gone(me.host, None, None)
