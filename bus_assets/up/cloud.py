"""The embedded cloud: ministack on loopback, for whoever has no AWS at hand. What it keeps is below BUS_HOME/cloud."""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from bus_assets.up.supervisor import Process
from resources.errors import Misconfigured

HOST = "127.0.0.1"
NAME = "cloud"
ANSWER_SECONDS = 2
NOBODY = {"AWS_ACCESS_KEY_ID": "embedded", "AWS_SECRET_ACCESS_KEY": "embedded", "AWS_EC2_METADATA_DISABLED": "true"}
FOR_A_SHELL = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
REAL = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
"""Ways to real credentials, which no process may find by accident while it works on the embedded cloud."""


def reachable(environment: Mapping[str, str], url: str, region: str) -> dict[str, str]:
    """``environment`` in which every AWS client finds the embedded cloud, and nobody's real account."""
    kept = {name: value for name, value in environment.items() if name not in REAL}
    return kept | NOBODY | {"AWS_ENDPOINT_URL": url, "AWS_REGION": region, "AWS_DEFAULT_REGION": region}


def embedded(port: int, folder: Path, environment: Mapping[str, str], region: str) -> Process:
    """The process. Queues and objects outlive a proper end, in ``folder``; a kill takes back what came since the start."""
    if importlib.util.find_spec("ministack") is None:
        raise Misconfigured(
            "the embedded cloud is not installed: pip install 'bus-assets[demo]', or set BUS_CLOUD=aws or AWS_ENDPOINT_URL to use another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    its_own = {
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(port),
        "MINISTACK_REGION": region,
        "PERSIST_STATE": "1",
        "STATE_DIR": str(folder / "state"),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(folder / "s3"),
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "LOG_LEVEL": "WARNING",
    }
    url = f"http://{HOST}:{port}"
    return Process(
        NAME,
        [sys.executable, "-m", "ministack"],
        {**environment, **its_own},
        ready=lambda: _answers(f"{url}/_ministack/health"),
        serves=url,
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - our own address
            return isinstance(json.load(answer), dict)
    except (urllib.error.URLError, OSError, ValueError):
        return False
