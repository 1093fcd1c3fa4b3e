"""How a worker is called: by `bus up` and by `bus worker`."""

from __future__ import annotations

import sys

RUNS_PER_PROCESS = 200
MEGABYTES_PER_PROCESS = 1500
"""A worker's process is replaced after so many runs, or once a run has left it that big."""


def worker_command(queue: str, runs: int, name: str = "runs") -> list[str]:
    """One Celery worker that drives ``runs`` runs at a time, each in a process of its own.

    One worker with many processes rather than many workers: a task that a worker has fetched ahead goes to its first free process.
    """
    return [
        *(sys.executable, "-m", "celery", "-q", "-A", "bus_assets.up.worker", "worker"),
        *("--pool", "prefork", "--concurrency", str(runs), "-O", "fair", "--prefetch-multiplier", "1"),
        *("--max-tasks-per-child", str(RUNS_PER_PROCESS), "--max-memory-per-child", str(MEGABYTES_PER_PROCESS * 1024)),
        *("--queues", queue, "--hostname", f"{name}@%h"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"),
    ]
