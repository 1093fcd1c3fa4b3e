import os
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


_jobs = [dg.define_asset_job(name, selection=dg.AssetSelection.groups(name)) for name in ("quick", "slow")]
defs = dg.Definitions(assets=[quickly, slowly], jobs=_jobs, executor=dg.in_process_executor)
ROUTES = ()
