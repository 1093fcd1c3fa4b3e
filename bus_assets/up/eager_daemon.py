"""``python -m bus_assets.up.eager_daemon``: dagster-daemon, which starts a sensor again sooner after its last tick.

Dagster looks every 5 s which sensors are due, and no setting changes that. A sensor that long-polls a queue is deaf from the moment when
it returns a message until then: 2.5 s of the mean time from message to run. Where a later Dagster has no such constant, this is the
plain daemon. A smaller ``minimum_interval_seconds`` of a sensor counts here; others keep theirs.
"""

from dagster._daemon import sensor
from dagster._daemon.cli import main

LOOK_SECONDS = 0.5

if __name__ == "__main__":
    if hasattr(sensor, "MIN_INTERVAL_LOOP_TIME"):
        sensor.MIN_INTERVAL_LOOP_TIME = LOOK_SECONDS
    main()
