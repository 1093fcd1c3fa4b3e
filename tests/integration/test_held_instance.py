"""Workers keep their connections to Dagster's storage while a run lasts, and not longer."""

from __future__ import annotations

import inspect
import json
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance, MaterializeResult, asset, materialize
from sqlalchemy.pool import NullPool

from bus_assets.up.held import HeldInstance

FEW, MANY = 12, 30


@asset
def empty() -> None:
    return None


@pytest.fixture
def watched(postgres_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    """An engine on the database in which Dagster's storage is."""
    url = postgres_database_url.replace("postgresql+psycopg:", "postgresql+psycopg2:")
    (tmp_path / "dagster.yaml").write_text(json.dumps({"storage": {"postgres": {"postgres_url": url}}, "telemetry": {"enabled": False}}))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(HeldInstance, "_kept", None)
    return sa.create_engine(postgres_database_url, poolclass=NullPool)


def opened(watched: sa.Engine) -> int:
    """How many connections the database has been asked for in all."""
    with watched.connect() as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
        asked = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
        return connection.exec_driver_sql(asked).scalar_one()


def opened_by_a_run(instance: DagsterInstance, watched: sa.Engine) -> int:
    before = opened(watched)
    assert materialize([empty], instance=instance).success
    return opened(watched) - before


def test_a_run_opens_a_few_connections_and_not_one_for_every_statement(watched: sa.Engine):
    with DagsterInstance.get() as plain:
        assert opened_by_a_run(plain, watched) > MANY
    with HeldInstance.get() as held:
        assert opened_by_a_run(held, watched) < FEW


def test_a_kept_instance_asks_once_which_tables_and_columns_there_are(watched: sa.Engine):
    @asset(deps=[empty])
    def next_stop() -> MaterializeResult[None]:
        return MaterializeResult(tags={"told": "yes"})  # before tags are kept it is asked whether there is a table for them

    asked = list[str]()
    with HeldInstance.get() as held:
        engine = held.event_log_storage._engine
        sa.event.listen(engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: asked.append(statement))
        assert materialize([empty, next_stop], instance=held).success
        assert any("pg_attribute" in statement for statement in asked)
        assert any("pg_class" in statement for statement in asked)
        asked.clear()
        assert materialize([empty, next_stop], instance=held).success
    assert asked
    assert not any("pg_attribute" in statement or "pg_class" in statement for statement in asked)


OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def test_runs_share_an_instance_and_leave_no_connection_open(watched: sa.Engine):
    seen = set[int]()
    for _ in range(3):
        with HeldInstance.get() as held:
            seen.add(id(held))
            assert materialize([empty], instance=held).success
        with watched.connect() as connection:
            assert connection.exec_driver_sql(f"SELECT count(*) {OTHERS}").scalar_one() == 0
    assert len(seen) == 1


def test_a_run_survives_that_its_connections_are_cut(watched: sa.Engine):
    @asset
    def cut() -> None:
        with watched.connect() as connection:  # as when the server is restarted, or a proxy forgets who is idle
            connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) {OTHERS}")
        time.sleep(0.1)  # until it has hung up

    with HeldInstance.get() as held:
        assert materialize([cut], instance=held).success


def test_the_tasks_get_their_instance_where_the_worker_puts_ours():
    """``bus_assets.up.worker`` replaces the name in this module: it must still be what the tasks look up."""
    from dagster_celery import tasks

    assert tasks.DagsterInstance is DagsterInstance
    assert inspect.getsource(tasks.create_execute_job_task).count("DagsterInstance.get()") == 1
    assert inspect.getsource(tasks.create_resume_job_task).count("DagsterInstance.get()") == 1
