import os
import signal
import sys
import time
from pathlib import Path

import dagster as dg


@dg.asset(group_name="quick")
def quickly() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"pid": os.getpid(), "parent": os.getppid(), "warm": "pyarrow.parquet" in sys.modules})


@dg.asset(group_name="slow")
def slowly() -> None:
    (Path(os.environ["BUS_HOME"]) / "slow.pid").write_text(str(os.getpid()))
    time.sleep(120)


@dg.asset(group_name="killed")
def never() -> None:
    raise AssertionError("its run does not start")


@dg.executor(name="killing")
def _killing(_: dg.InitExecutorContext) -> dg.Executor:
    """Ends the run's process after it has taken the run, and before the run has started."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it is dead")


_jobs = [dg.define_asset_job(name, selection=dg.AssetSelection.groups(name)) for name in ("quick", "slow")]
_jobs.append(dg.define_asset_job("killed", selection=dg.AssetSelection.groups("killed"), executor_def=_killing))
defs = dg.Definitions(assets=[quickly, slowly, never], jobs=_jobs, executor=dg.in_process_executor)
ROUTES = ()
