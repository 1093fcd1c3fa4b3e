"""One measurement in a process of its own: ``python -m bench.worker MODULE:FUNCTION JSON``.

FUNCTION gets the JSON's values as keywords, prepares (imports, connections, a small warm-up: workers are long-lived), and returns
what is to be timed. If that returns a function again, its result is what the work says of itself, found out after the clock stopped.
Prints one line of JSON, see :class:`Measured`.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Measured:
    """What one repetition took. ``cpu_seconds`` and ``peak_bytes`` are this process's own; imports are in the peak, not in the times."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    said: dict[str, Any] = field(default_factory=dict)


def measured(function: str, **values: Any) -> Measured:
    """Run ``module:function`` in a fresh process; RuntimeError with its last words if it fails."""
    command = [sys.executable, "-m", "bench.worker", function, json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if done.returncode:
        raise RuntimeError(f"{function} failed:\n{done.stderr[-3000:]}")
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def peak_bytes() -> int:
    """The most resident memory that this process has ever had (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    module, _, function = sys.argv[1].partition(":")
    work = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    started, used = time.perf_counter(), _cpu_seconds()
    found = work()
    seconds, cpu_seconds, peak = time.perf_counter() - started, _cpu_seconds() - used, peak_bytes()
    said = found() if callable(found) else {}
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak, "said": said}))


if __name__ == "__main__":
    main()
