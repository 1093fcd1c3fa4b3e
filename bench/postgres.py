"""The bare way into Postgres, and a look at what a contender left there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

_FOUND = "SELECT count(*), sum(hashtextextended(concat_ws('|', order_id, customer_id, sku, quantity, ({amount})::numeric(14,2), currency, \
extract(epoch FROM ordered_at)::bigint, coalesce(note, 'none')), 0)) FROM {table}"


def psql() -> str:
    """The client itself: Debian's ``psql`` is a script that looks for it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/psql"))
    on_path = str(found[-1]) if found else shutil.which("psql")
    if on_path is None:
        raise RuntimeError("psql is not installed: apt-get install postgresql-client")
    return on_path


def bare(url: str, *commands: str) -> float:
    """Seconds that psql took for ``commands`` in one transaction, its start included."""
    parsed: URL = make_url(url)
    environment = {**os.environ, "PGPASSWORD": parsed.password or "", "TZ": "UTC"}
    target = ["-h", str(parsed.host), "-p", str(parsed.port), "-U", str(parsed.username), "-d", str(parsed.database)]
    options = ["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", *(part for command in commands for part in ("-c", command))]
    started = time.perf_counter()
    subprocess.run([psql(), *target, *options], env=environment, check=True)
    return time.perf_counter() - started


def execute(url: str, *statements: str) -> None:
    """``statements``, each in a transaction of its own; used between the measurements."""
    engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def fingerprint(url: str, table: str, amount: str = "amount") -> tuple[int, int]:
    """How many rows ``table`` has, and a sum over their contents in which order does not matter."""
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        count, total = connection.exec_driver_sql(_FOUND.format(table=table, amount=amount)).one()
    return int(count), int(total or 0)
