"""Two jobs of four empty assets each, and a sensor that long-polls a queue: what is measured is the way to a run, not the run."""

import json
import os

import boto3
import dagster as dg

QUEUE = "warm-bench"
POLL_SECONDS = 9
"""The daemon starts ticks every 5 s at most: a poll that ends just before a multiple of it leaves the smallest gap."""


def _chain(name: str) -> list[dg.AssetsDefinition]:
    made: list[dg.AssetsDefinition] = []
    for number in range(4):

        @dg.asset(name=f"{name}_{number}", deps=made[-1:], group_name=name)
        def empty() -> None:
            return None

        made.append(empty)
    return made


_assets = {name: _chain(name) for name in ("one", "two")}
_jobs = [dg.define_asset_job(name, selection=dg.AssetSelection.groups(name)) for name in _assets]


@dg.sensor(jobs=_jobs, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def messages(context: dg.SensorEvaluationContext):
    sqs = boto3.client("sqs")
    url = sqs.create_queue(QueueName=QUEUE)["QueueUrl"]
    for message in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=POLL_SECONDS).get("Messages", ()):
        said = json.loads(message["Body"])
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        yield dg.RunRequest(run_key=said["id"], job_name=said["job"], tags={"bench/message": said["id"], "bench/pid": str(os.getpid())})


defs = dg.Definitions(
    assets=[asset for chain in _assets.values() for asset in chain], jobs=_jobs, sensors=[messages], executor=dg.in_process_executor
)
ROUTES = ()
