"""``python -m bench.warm``: how long it takes from a message, or a click, to the last of four empty assets; cold and warm in one go.

cold: Dagster's default launcher, a new process for each run. warm: Celery workers that have imported the routes. Both are started by
``bus_assets.up`` with everything else the same. Each run's time is split by its own events.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.warm_routes import QUEUE
from bus_assets.up import Plan, Town, running

MODULE = "bench.warm_routes"
PORT, CLOUD_PORT = 3917, 4917
RUN_SECONDS = 60
STEPS = ("asked", "enqueued", "STARTING", "process", "STARTED", "first asset", "last asset", "SUCCESS")

_LAUNCH = """mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_RUNS = """query($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs { results { runId status } } } }"""
_EVENTS = """query($run: ID!) { logsForRun(runId: $run, limit: 500) { ... on EventConnection { events {
  __typename ... on MessageEvent { timestamp message } } } } }"""


def main() -> None:
    wanted = argparse.ArgumentParser(prog="python -m bench.warm", description=__doc__)
    wanted.add_argument("--runs", type=int, default=8, help="of each kind")
    wanted.add_argument("--only", choices=("cold", "warm"))
    wanted.add_argument("--verbose", action="store_true", help="the town's log on stderr")
    given = wanted.parse_args()
    found = {}
    for name, workers in (("cold", 0), ("warm", 2)):
        if given.only in (None, name):
            with _town(workers, verbose=given.verbose) as town:
                found[name] = _measure(town, given.runs)
                _show(name, found[name])
    if len(found) == 2:
        for way in found["cold"]:
            print(f"{way}: cold ÷ warm = {_median(found['cold'][way]) / _median(found['warm'][way]):.1f}")


@contextmanager
def _town(workers: int, *, verbose: bool) -> Iterator[Town]:
    with tempfile.TemporaryDirectory(prefix="bench-warm-") as home:
        os.environ |= {"BUS_HOME": home, "BUS_MODULE": MODULE, "DAGSTER_HOME": f"{home}/dagster"}
        tell = (lambda line: print(line, file=sys.stderr)) if verbose else (lambda line: None)
        with running(Plan(workers=workers, port=PORT, cloud_port=CLOUD_PORT), tell=tell) as town:
            yield town


def _measure(town: Town, runs: int) -> dict[str, list[dict[str, float]]]:
    """Per way to start a run, the moments of each run, in seconds since it was asked for. The first of each is a warm-up."""
    clicks = [_clicked(town, ("one", "two")[number % 2]) for number in range(runs + 2)]
    messages = [_sent(town, ("one", "two")[number % 2]) for number in range(runs + 2)]
    return {"click": clicks[2:], "message": messages[2:]}


def _clicked(town: Town, job: str) -> dict[str, float]:
    began = time.time()
    selector = {"repositoryLocationName": MODULE, "repositoryName": "__repository__", "jobName": job}
    answer = _ask(town, _LAUNCH, p={"selector": selector, "runConfigData": {}, "mode": "default"})["launchPipelineExecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return _moments(town, answer["run"]["runId"], began)


def _sent(town: Town, job: str) -> dict[str, float]:
    import boto3

    time.sleep(random.uniform(0, 5))  # anywhere between two ticks
    sqs = boto3.client("sqs", endpoint_url=town.cloud_url, region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x")
    url, name = sqs.create_queue(QueueName=QUEUE)["QueueUrl"], uuid.uuid4().hex
    began = time.time()
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps({"id": name, "job": job}))
    while not (found := _ask(town, _RUNS, f={"tags": [{"key": "bench/message", "value": name}]})["runsOrError"]["results"]):
        assert time.time() < began + RUN_SECONDS, "no run came of the message"
        time.sleep(0.1)
    return _moments(town, found[0]["runId"], began)


def _moments(town: Town, run: str, began: float) -> dict[str, float]:
    moments: dict[str, float] = {}
    while "SUCCESS" not in moments:
        assert time.time() < began + RUN_SECONDS, f"run {run} does not end: {moments}"
        time.sleep(0.2)
        moments = {}
        for event in _ask(town, _EVENTS, run=run)["logsForRun"]["events"]:
            _note(moments, event, float(event["timestamp"]) / 1000 - began)
    return moments


def _note(moments: dict[str, float], event: dict[str, Any], at: float) -> None:
    kind = event["__typename"]
    if kind == "RunStartingEvent":
        moments["STARTING"] = at
    elif kind == "EngineEvent" and "forwarded to the broker" in event["message"]:
        moments["enqueued"] = at
    elif kind == "EngineEvent" and event["message"].startswith("Started process for run"):
        moments["process"] = at
    elif kind == "RunStartEvent":
        moments["STARTED"] = at
    elif kind == "MaterializationEvent":
        moments.setdefault("first asset", at)
        moments["last asset"] = at
    elif kind == "RunSuccessEvent":
        moments["SUCCESS"] = at


def _ask(town: Town, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{town.url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]


def _show(name: str, found: dict[str, list[dict[str, float]]]) -> None:
    for way, runs in found.items():
        known = [step for step in STEPS if all(step in run for run in runs)]
        split = ", ".join(f"{step} {statistics.median(run[step] for run in runs):.2f}" for step in known)
        last = sorted(run["last asset"] for run in runs)
        print(f"{name}, {way}: last asset after {_median(runs):.2f} s ({last[0]:.2f}–{last[-1]:.2f}, n={len(last)}); {split}", flush=True)


def _median(runs: list[dict[str, float]]) -> float:
    return statistics.median(run["last asset"] for run in runs)


if __name__ == "__main__":
    main()
