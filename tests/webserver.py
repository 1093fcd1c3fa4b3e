"""A real ``dagster-webserver`` on a free loopback port, spoken to as the UI does: by GraphQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import free_port

START_SECONDS = 90
RUN_SECONDS = 120
POLL_SECONDS = 0.15
REPOSITORY = "__repository__"
ASSET_JOB = "__ASSET_JOB"
"""The job behind 'Materialize' in the asset graph: it has no tags, config or executor of the route's own job."""

INSTANCE = """
telemetry: {enabled: false}
nux: {enabled: false}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
"""
OVER = ("SUCCESS", "FAILURE", "CANCELED")
WEBSERVER, DAGSTER_DEV = ("dagster_webserver",), ("dagster", "dev")
"""What to start: the UI alone, or with the daemon, which lets sensors tick. Both start a process for each run."""

_LAUNCH = """
mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
  __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on PythonError { message }
  ... on InvalidSubsetError { message }
} }"""
_AGAIN = """
mutation($p: ReexecutionParams!) { launchPipelineReexecution(reexecutionParams: $p) {
  __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message }
} }"""
_TERMINATE = """
mutation($run: String!, $policy: TerminateRunPolicy) { terminateRun(runId: $run, terminatePolicy: $policy) { __typename } }"""
_LOCATIONS = """{ workspaceOrError { ... on Workspace {
  locationEntries { locationOrLoadError { __typename ... on PythonError { message } } }
} } }"""
_CHECKS = """
query($keys: [AssetKeyInput!]!) { assetNodes(assetKeys: $keys) {
  assetKey { path } assetChecksOrError { ... on AssetChecks { checks { name canExecuteIndividually } } }
} }"""
_EVENTS = """
query($run: ID!) { logsForRun(runId: $run, limit: 5000) { ... on EventConnection { events {
  __typename
  ... on MessageEvent { message stepKey }
  ... on ExecutionStepFailureEvent { error { message cause { message } } }
  ... on MaterializationEvent { assetKey { path } metadataEntries { ...entry } }
  ... on AssetCheckEvaluationEvent { evaluation { checkName assetKey { path } success severity description metadataEntries { ...entry } } }
} } } }
fragment entry on MetadataEntry {
  __typename label description
  ... on TextMetadataEntry { text }
  ... on IntMetadataEntry { intValue }
  ... on FloatMetadataEntry { floatValue }
  ... on MarkdownMetadataEntry { mdStr }
  ... on UrlMetadataEntry { url }
  ... on PathMetadataEntry { path }
  ... on JsonMetadataEntry { jsonString }
  ... on TableSchemaMetadataEntry { schema { columns { name type description constraints { nullable unique other } } } }
  ... on TableColumnLineageMetadataEntry { lineage { columnName columnDeps { assetKey { path } columnName } } }
}"""


@dataclass(frozen=True)
class Run:
    """A run as the UI shows it once it is over (or as far as it got)."""

    id: str
    status: str
    events: Sequence[Mapping[str, Any]]

    def of_type(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["__typename"] == kind]

    def seen(self, stop: str) -> dict[str, Any]:
        """Label → value of the last materialisation of ``stop`` (the last part of its key)."""
        made = [event for event in self.of_type("MaterializationEvent") if event["assetKey"]["path"][-1] == stop]
        return entries(made[-1]["metadataEntries"]) if made else {}

    def check(self, stop: str, name: str) -> Mapping[str, Any]:
        """The last evaluation of a check: success, severity, description, and ``metadata`` as a dict."""
        found = [event["evaluation"] for event in self.of_type("AssetCheckEvaluationEvent")]
        of_it = [one for one in found if one["assetKey"]["path"][-1] == stop and one["checkName"] == name]
        return {**of_it[-1], "metadata": entries(of_it[-1]["metadataEntries"])}

    @property
    def materialised(self) -> list[str]:
        return [event["assetKey"]["path"][-1] for event in self.of_type("MaterializationEvent")]

    @property
    def errors(self) -> str:
        """What a person reads in red, causes included."""
        said = [event["error"] for event in self.of_type("ExecutionStepFailureEvent") if event["error"]]
        return "\n".join(error["message"] + ((error["cause"] or {}).get("message") or "") for error in said)


def entries(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metadata as the UI gets it → label → value."""
    names = ("text", "intValue", "floatValue", "mdStr", "url", "path", "jsonString", "schema", "lineage")
    return {entry["label"]: next((entry[name] for name in names if name in entry), None) for entry in found}


@dataclass(frozen=True)
class Webserver:
    """``home`` is its working directory, where the code location's relative paths lead; ``instance`` its DAGSTER_HOME."""

    url: str
    location: str
    home: Path
    instance: Path

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """One GraphQL request; a request that GraphQL refuses is an AssertionError."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as refused:
            raise AssertionError(refused.read().decode()[:2000]) from None
        assert "errors" not in said, said["errors"]
        return said["data"]

    def try_launch(
        self,
        job: str = ASSET_JOB,
        *,
        assets: Sequence[Sequence[str]] | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """What the server answers to a launch from the launchpad or the asset graph (``assets``: the selection there)."""
        selector: dict[str, Any] = {"repositoryLocationName": self.location, "repositoryName": REPOSITORY, "jobName": job}
        if assets is not None:
            selector |= {"assetSelection": [{"path": list(path)} for path in assets], "assetCheckSelection": self._checks(assets)}
        labels = [{"key": key, "value": value} for key, value in (tags or {}).items()]
        given = {"selector": selector, "runConfigData": config or {}, "mode": "default", "executionMetadata": {"tags": labels}}
        return self.ask(_LAUNCH, p=given)["launchPipelineExecution"]

    def launch(self, job: str = ASSET_JOB, **how: Any) -> str:
        """Launch as :meth:`try_launch`; the run's id."""
        return _run_id(self.try_launch(job, **how))

    def again(self, run: str, strategy: str) -> str:
        """Re-execute ``run`` ('FROM_FAILURE' or 'ALL_STEPS'), as its page's button does; the new run's id."""
        return _run_id(self.ask(_AGAIN, p={"parentRunId": run, "strategy": strategy})["launchPipelineReexecution"])

    def _checks(self, assets: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """The checks that the UI sends along with a selection of assets: those that cannot run without materialising."""
        found = self.ask(_CHECKS, keys=[{"path": list(path)} for path in assets])["assetNodes"]
        return [
            {"assetKey": {"path": node["assetKey"]["path"]}, "name": check["name"]}
            for node in found
            for check in node["assetChecksOrError"].get("checks", ())
            if check["canExecuteIndividually"] == "REQUIRES_MATERIALIZATION"
        ]

    def terminate(self, run: str, policy: str = "SAFE_TERMINATE") -> str:
        """End ``run`` as its page's button does, or 'MARK_AS_CANCELED_IMMEDIATELY' as its box does; what kind of answer that gave."""
        return self.ask(_TERMINATE, run=run, policy=policy)["terminateRun"]["__typename"]

    def runs(self) -> list[Mapping[str, Any]]:
        """All runs, the newest first: ``runId``, ``status``, ``parentRunId`` and ``tags``."""
        found = self.ask("{ runsOrError { ... on Runs { results { runId status parentRunId tags { key value } } } } }")
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found["runsOrError"]["results"]]

    def status(self, run: str) -> str:
        return self.ask("query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }", run=run)["runOrError"]["status"]

    def over(self, run: str) -> Run:
        """Wait until ``run`` has ended."""
        until(lambda: self.status(run) in OVER, f"run {run} ended", RUN_SECONDS)
        return Run(run, self.status(run), self.ask(_EVENTS, run=run)["logsForRun"]["events"])


def until(true: Any, what: str, seconds: float = 30) -> None:
    """Poll until ``true()`` is; AssertionError that ``what`` did not happen in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(POLL_SECONDS)


def outside_environment(*python_path: Path) -> dict[str, str]:
    """The environment of somebody who has installed the package and set nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUS_", "DAGSTER_", "PYTEST_", "PYTHON"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{kept.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(map(str, python_path)),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }


@contextmanager
def webserver(
    home: Path, module: str, environment: Mapping[str, str], *, start: Sequence[str] = WEBSERVER, settings: str = INSTANCE
) -> Iterator[Webserver]:
    """Serve ``module`` from ``home``; at the end its whole process group is gone, run workers included.

    ``settings`` are the text of dagster.yaml.
    """
    instance, port = home / "instance", free_port()
    instance.mkdir()
    (instance / "dagster.yaml").write_text(settings)
    command = [sys.executable, "-m", *start, "-h", "127.0.0.1", "-p", str(port), "-m", module]
    with (home / "webserver.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env={**environment, "DAGSTER_HOME": str(instance)}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        served = Webserver(f"http://127.0.0.1:{port}", module, home, instance)
        _wait_until_loaded(process, served)
        yield served
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _wait_until_loaded(process: subprocess.Popen[bytes], served: Webserver) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            found = served.ask(_LOCATIONS)["workspaceOrError"]["locationEntries"][0]["locationOrLoadError"]
            assert found["__typename"] == "RepositoryLocation", found
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no webserver: {(served.home / 'webserver.log').read_text()[-3000:]}") from None
            time.sleep(POLL_SECONDS)


def _run_id(answer: Mapping[str, Any]) -> str:
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return answer["run"]["runId"]
