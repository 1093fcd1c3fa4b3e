"""Real database servers for tests and benches, private and temporary: nothing outside their own folder is touched.

Each context manager raises :class:`NotInstalled`, with what to install, where there are no binaries.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

START_SECONDS = 60


class NotInstalled(Exception):
    """There is no such server on this machine; the text says how to get one."""


@contextmanager
def postgres_server(*, durable: bool = True) -> Iterator[str]:
    """A Postgres of its own on a loopback port; yields the URL of its superuser, password included.

    Not ``durable``: it waits for no disk. It keeps its promises to whoever is killed, but for the machine itself.
    """
    binaries = _postgres_binaries()
    if binaries is None:
        with _wheel_postgres() as url:
            yield url
        return
    with _folder("pg") as folder:
        password = secrets.token_hex(8)
        (folder / "password").write_text(password)
        as_user = _unprivileged(folder)
        data, port = folder / "data", free_port()
        initdb = [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "bus",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
        subprocess.run([*as_user, *initdb, f"--pwfile={folder / 'password'}"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "max_connections": 200}
        settings |= {} if durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        url = f"postgresql+psycopg://bus:{password}@127.0.0.1:{port}/postgres"
        # SIGQUIT, immediate shutdown: the data is thrown away, so nobody waits for a checkpoint.
        with _running([*as_user, str(binaries / "postgres"), "-D", str(data), *options], folder, url, stop=signal.SIGQUIT):
            yield url


@contextmanager
def mariadb_server() -> Iterator[str]:
    """A MariaDB of its own on a loopback port; yields the URL of its superuser."""
    server, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if server is None or install is None:
        raise NotInstalled("MariaDB is not installed: apt-get install mariadb-server")
    with _folder("maria") as folder:
        data, port = folder / "data", free_port()
        user = ["--user=root"] if os.geteuid() == 0 else []
        create = [install, "--no-defaults", *user, f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        places = [f"--datadir={data}", f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}"]
        small = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--performance-schema=OFF"]
        command = [server, "--no-defaults", *user, *places, f"--port={port}", "--bind-address=127.0.0.1", *small]
        url = f"mariadb+pymysql://root@127.0.0.1:{port}/mysql?ssl_disabled=true"  # a third of connecting, else: certificates are loaded
        with _running(command, folder, url, stop=signal.SIGKILL):
            yield url


@contextmanager
def fresh_database(server_url: str, template: str = "template0") -> Iterator[str]:
    """The URL of a new database on that server, empty or, on Postgres, as ``template``; dropped afterwards, whoever is still connected."""
    url = make_url(server_url)
    name = f"bus_{secrets.token_hex(6)}"
    is_postgres = url.get_backend_name() == "postgresql"
    engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if is_postgres else ""))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}" + (" WITH (FORCE)" if is_postgres else ""))


def _postgres_binaries() -> Path | None:
    """The newest installed server's folder: Debian keeps the server's programs off the PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if config := shutil.which("pg_config"):
        found.append(Path(subprocess.run([config, "--bindir"], check=True, capture_output=True, text=True).stdout.strip()))
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).parent)
    usable = [path for path in found if (path / "initdb").exists() and (path / "postgres").exists()]
    return max(usable, key=str, default=None)


@contextmanager
def _wheel_postgres() -> Iterator[str]:
    try:
        import pgserver
    except ImportError:
        raise NotInstalled("Postgres is not installed: apt-get install postgresql, or pip install pgserver") from None
    with _folder("pg") as folder:
        server = pgserver.get_server(  # pyright: ignore[reportPrivateImportUsage]
            folder / "data", cleanup_mode="delete"
        )
        try:
            yield make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        finally:
            server.cleanup()


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    # Short and outside pytest's: a Unix socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix=f"bus-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(folder: Path) -> list[str]:
    """What to put before a command: initdb and postgres refuse to run as root."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise NotInstalled("Postgres refuses to run as root and there is no user 'postgres': adduser --system postgres") from None
    for path in (folder, folder / "password"):
        os.chown(path, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]


@contextmanager
def _running(command: list[str], folder: Path, url: str, *, stop: signal.Signals) -> Iterator[None]:
    # It ends with us even if we are killed: left behind, it would run for ever.
    with_us = ["setpriv", f"--pdeathsig={stop.name.removeprefix('SIG')}"]
    if command[0] == "setpriv":
        command = [*with_us, *command[1:]]
    elif shutil.which("setpriv"):
        command = [*with_us, "--", *command]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_it_answers(process, folder / "log", url)
        yield
    finally:
        process.send_signal(stop)
        process.wait(START_SECONDS)


def _wait_until_it_answers(process: subprocess.Popen[bytes], log: Path, url: str) -> None:
    engine = sa.create_engine(url, poolclass=NullPool)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            engine.connect().close()
            return
        except exc.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args} did not start: {log.read_text(errors='replace')[-2000:]}") from None
            time.sleep(0.05)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment. Not one that the system gives to outgoing connections: it might, before
    the server that is to have it listens."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
