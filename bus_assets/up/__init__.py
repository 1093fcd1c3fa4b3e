"""Everything that one machine needs, started by one command: ``bus up``, or :func:`running` from Python.

    cloud     SQS, S3 and the rest on loopback, unless AWS is configured       (bus_assets.up.cloud)
    code      the routes, loaded once for web server and daemon
    web       Dagster's UI on loopback
    daemon    sensors, schedules, run monitoring
    workers   long-lived processes that drive runs, routes already imported    (bus_assets.up.worker)

Importing this package is cheap: neither dagster, celery nor boto3.
"""

from bus_assets.up.supervisor import Process, Stopped
from bus_assets.up.town import Plan, Town, running

__all__ = ["Plan", "Process", "Stopped", "Town", "running"]
