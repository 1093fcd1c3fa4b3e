"""AWS on this machine, for tests and benches: each emulator a process of its own on a loopback port, empty and temporary.

``ministack`` is fast and broad; ``moto`` enforces IAM where a test asks for it. They disagree in places, so seams are tested on both.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import START_SECONDS, free_port

REGION = "eu-central-1"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret-never-shown",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""The environment in which boto3 talks to an emulator, and to nothing else."""


@dataclass(frozen=True)
class Emulator:
    """``url`` is the endpoint of every service; ``environment`` what a process needs to talk to it, AWS_ENDPOINT_URL included."""

    name: str
    url: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def client(self, service: str) -> Any:
        """A boto3 client of the tests' own, whatever the environment says."""
        return _client(service, self.url)


@functools.cache
def _client(service: str, url: str) -> Any:
    import boto3

    session = boto3.Session(CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"], region_name=REGION)
    return session.client(service, endpoint_url=url)


@contextmanager
def ministack() -> Iterator[Emulator]:
    """SQS, S3 with notifications, SNS, EventBridge, Lambda, CloudWatch and more in one process."""
    port = free_port()
    environment = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "LOG_LEVEL": "WARNING"}
    with _running([sys.executable, "-m", "ministack"], environment, f"http://127.0.0.1:{port}/_ministack/health"):
        yield Emulator("ministack", f"http://127.0.0.1:{port}")


@contextmanager
def moto_server(*, open_calls: int | None = None) -> Iterator[Emulator]:
    """moto. With ``open_calls``, IAM is enforced after that many calls: enough to create users and policies."""
    port = free_port()
    environment = {} if open_calls is None else {"INITIAL_NO_AUTH_ACTION_COUNT": str(open_calls)}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, environment, f"http://127.0.0.1:{port}/moto-api/data.json"):
        yield Emulator("moto", f"http://127.0.0.1:{port}")


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], health_url: str) -> Iterator[None]:
    if shutil.which("setpriv"):  # it ends with us even if we are killed: left behind, it would run for ever
        command = ["setpriv", "--pdeathsig=KILL", "--", *command]
    with tempfile.TemporaryDirectory(prefix="bus-aws-", ignore_cleanup_errors=True) as folder:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MINISTACK", "LOCALSTACK"))}
        everything = {**inherited, **CREDENTIALS, "TMPDIR": folder, **environment}
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, env=everything, start_new_session=True)
        try:
            _wait_until_healthy(process, health_url, log)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers that ministack runs Lambda functions in
            process.wait(START_SECONDS)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args} did not start: {log.read_text(errors='replace')[-2000:]}") from None
            time.sleep(0.05)
