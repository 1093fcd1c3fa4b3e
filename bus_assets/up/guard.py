"""Ends process groups once whoever holds the other end of its standard input is gone, however that one died.

Run as a script, by path: nothing of this project or of any other is imported, so it starts in hundredths of a second. It reads
``+GROUP`` and ``-GROUP`` lines; at the end of its input it kills the groups that are left. Unlike PR_SET_PDEATHSIG this reaches
grandchildren, works where there is no prctl, and does not depend on which thread started a process.
"""

import os
import signal
import sys


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line.startswith("+") else groups.discard)(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


if __name__ == "__main__":
    main()
