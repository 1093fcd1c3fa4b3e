"""What ``bus up`` decides before anything is started."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bus_assets.settings import Settings, settings
from bus_assets.up import cloud, guard
from bus_assets.up.instance import warm_instance
from bus_assets.up.log import TownLog
from bus_assets.up.runs import read_launcher
from bus_assets.up.supervisor import Process, Stopped, Supervisor
from resources.errors import Misconfigured
from tests.webserver import until


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return replace(settings(), home=tmp_path / "bus", dagster_home=tmp_path / "dagster", cloud_url="http://127.0.0.1:1")


def own_file(here: Settings, text: str) -> Path:
    here.dagster_home.mkdir()
    path = here.dagster_home / "dagster.yaml"
    path.write_text(text)
    return path


def test_the_deployments_own_file_stands_and_is_not_touched(here: Settings):
    text = "storage: {postgres: {postgres_url: {env: DAGSTER_DB}}}\nrun_monitoring: {enabled: false}\n"
    path = own_file(here, text)
    home, warm = warm_instance(here, 8, workers=True)
    made = yaml.safe_load((home / "dagster.yaml").read_text())
    assert (warm, path.read_text()) == (True, text)
    assert made["storage"] == {"postgres": {"postgres_url": {"env": "DAGSTER_DB"}}}
    assert made["run_monitoring"] == {"enabled": False}
    assert made["run_launcher"]["class"] == "CeleryRunLauncher"


def test_a_launcher_of_ones_own_is_used(here: Settings):
    own_file(here, "run_launcher: {module: dagster._core.launcher, class: DefaultRunLauncher}\n")
    home, warm = warm_instance(here, 8, workers=True)
    assert not warm
    with pytest.raises(Misconfigured, match="nothing for a worker to do"):
        read_launcher(home)


def test_the_storage_is_that_of_dagster_home_so_both_see_the_same_runs(here: Settings):
    home, _ = warm_instance(here, 8, workers=False)
    made = yaml.safe_load((home / "dagster.yaml").read_text())
    assert home != here.dagster_home
    assert made["storage"] == {"sqlite": {"base_dir": str(here.dagster_home)}}
    assert "run_launcher" not in made


def test_no_secret_is_written(here: Settings, monkeypatch: pytest.MonkeyPatch):
    secret = replace(here, results_url="db+postgresql://bus:hunter2@db/bus")
    home, _ = warm_instance(secret, 8, workers=True)
    assert "hunter2" not in (home / "dagster.yaml").read_text()
    monkeypatch.setenv("BUS_RESULTS_URL", secret.results_url)
    assert read_launcher(home)["backend"] == secret.results_url


@pytest.mark.parametrize("text", ["a: [", "- a\n"])
def test_a_broken_file_is_named(here: Settings, text: str):
    path = own_file(here, text)
    with pytest.raises(Misconfigured, match=str(path)):
        warm_instance(here, 8, workers=True)


def test_no_process_on_the_embedded_cloud_finds_a_real_account():
    real = {"AWS_PROFILE": "prod", "AWS_SESSION_TOKEN": "t", "AWS_ACCESS_KEY_ID": "real", "AWS_SECRET_ACCESS_KEY": "real", "HOME": "/h"}
    made = cloud.reachable(real, "http://127.0.0.1:1", "eu-west-1")
    assert made["HOME"] == "/h"
    assert made["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert not {"prod", "t", "real"} & set(made.values())


def test_a_bad_answer_of_sqs_is_no_message():
    sqs = pytest.importorskip("bus_assets.up.patient_sqs", exc_type=ImportError)
    assert sqs.Channel._on_messages_ready(object.__new__(sqs.Channel), "url", "name", []) == 0


def test_the_guard_kills_what_it_was_told_and_not_what_it_was_told_to_forget():
    sleepers = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
    told = "".join(f"+{sleeper.pid}\n" for sleeper in sleepers) + f"-{sleepers[1].pid}\n"
    try:
        subprocess.run([sys.executable, "-I", "-S", guard.__file__], input=told, text=True, check=True, timeout=10)
        assert sleepers[0].wait(5) == -signal.SIGKILL
        assert sleepers[1].poll() is None
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_children_of_a_dead_process_end_with_it_and_it_starts_again(tmp_path: Path):
    script = f"sleep 60 & echo $! >> {tmp_path}/children; echo here; wait"
    lines: list[str] = []
    supervisor = Supervisor([Process("shell", ["sh", "-c", script], says="here")], TownLog(tmp_path / "log", lines.append), 5)
    supervisor.start()
    try:
        first = supervisor.pids["shell"]
        os.kill(first, signal.SIGKILL)
        until(lambda: supervisor.pids.get("shell", first) != first, "it starts again", 10)
        child = (tmp_path / "children").read_text().split()[0]
        until(lambda: not Path(f"/proc/{child}").exists(), "its child is gone", 5)
    finally:
        supervisor.end()
    assert any("shell died (killed by SIGKILL); it starts again in 1 s" in line for line in lines)
    assert supervisor.pids == {}


def test_a_process_that_says_that_it_is_set_up_wrongly_ends_all(tmp_path: Path):
    script = f"echo here; while [ ! -e {tmp_path}/wrong ]; do sleep 0.05; done; echo no such database; exit 78"
    both = [Process("other", ["sleep", "60"]), Process("wrong", ["sh", "-c", script], says="here")]
    supervisor = Supervisor(both, TownLog(tmp_path / "log", lambda _: None), 5)
    supervisor.start()
    (tmp_path / "wrong").touch()
    with pytest.raises(Stopped, match=r"(?s)wrong says that it is set up wrongly \(exit code 78\).*no such database"):
        supervisor.wait(10)
    assert supervisor.pids == {}


def test_dagster_still_has_the_interval_that_the_eager_daemon_shortens():
    """If this fails, Dagster has moved it: look whether a setting does it now, else sensors wait up to 5 s between ticks."""
    from dagster._daemon import sensor

    assert sensor.MIN_INTERVAL_LOOP_TIME == 5


def failed_tick(error: Exception) -> Exception:
    """What the daemon gets of a tick that ended by ``error`` in the code server."""
    from dagster import DagsterInstance, build_sensor_context, sensor
    from dagster._core.errors import DagsterUserCodeProcessError, SensorExecutionError, user_code_error_boundary
    from dagster._utils.error import serializable_error_info_from_exc_info

    @sensor(name="s", job_name="j")
    def ticks():
        raise error

    with (
        pytest.raises(SensorExecutionError) as caught,
        DagsterInstance.ephemeral() as instance,
        user_code_error_boundary(SensorExecutionError, lambda: "in evaluation_fn"),
    ):
        ticks.evaluate_tick(build_sensor_context(instance))
    info = serializable_error_info_from_exc_info((caught.type, caught.value, caught.tb))
    return DagsterUserCodeProcessError.from_error_info(info)


def test_a_tick_that_an_error_of_ours_ended_is_told_in_a_line_and_once(caplog, monkeypatch):
    from dagster._core.errors import DagsterUserCodeProcessError
    from dagster._daemon.utils import DaemonErrorCapture

    from bus_assets.up import eager_daemon

    assert callable(DaemonErrorCapture.process_exception), "Dagster has moved it: failed ticks are eighty lines each"
    monkeypatch.setattr(eager_daemon, "_said", {})
    logger = logging.getLogger("daemon")
    for error in (Misconfigured("queue q does not exist; create it", route="r"),) * 2 + (ValueError("odd"),):
        try:
            raise failed_tick(error)
        except DagsterUserCodeProcessError:
            info = eager_daemon.told(sys.exc_info(), logger, "Sensor tick caught an error")
        assert str(error) in info.to_string()
    ours, foreign = caplog.records
    assert (ours.message, ours.exc_info) == ("Sensor tick caught an error: route 'r': queue q does not exist; create it", None)
    assert foreign.exc_info


def chatting(tmp_path: Path, log: TownLog) -> Supervisor:
    """A process that says a kilobyte each time, and counts in the file ``beat`` how often it could."""
    script = f"""while :; do n=$((n+1)); printf '%01000d\\n' $n; echo $n > {tmp_path}/beat; sleep 0.002; done"""
    return Supervisor([Process("worker", ["sh", "-c", script])], log, 2)


def beats(tmp_path: Path) -> int:
    return int((tmp_path / "beat").read_text().strip() or 0) if (tmp_path / "beat").exists() else 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO])
def test_a_terminal_that_takes_no_line_ends_neither_the_log_nor_the_reading_of_what_processes_say(tmp_path: Path, number: int):
    shown: list[str] = []
    refused: list[str] = []
    fails = threading.Event()

    def tell(line: str) -> None:
        if fails.is_set():
            refused.append(line)
            raise OSError(number, os.strerror(number))
        shown.append(line)

    log = TownLog(tmp_path / "up.log", tell)
    supervisor = chatting(tmp_path, log)
    supervisor.start()
    try:
        until(lambda: len(shown) > 3, "its lines are shown", 10)
        fails.set()
        until(lambda: refused, "a line is refused", 10)
        began = beats(tmp_path)
        until(lambda: beats(tmp_path) > began + 200, "it says more than a pipe holds", 20)
        fails.clear()
        before = len(shown)
        until(lambda: beats(tmp_path) > began + 250, "it goes on", 20)
    finally:
        supervisor.end()
        log.close()
    assert f"{began + 200:01000d}" in (tmp_path / "up.log").read_text()
    if number == errno.ENOSPC:
        assert shown[before] == f"up       | lines may be missing here, as they could not be written; {tmp_path}/up.log has them"
        assert "worker" in shown[before + 1]
    else:
        assert (len(shown), len(refused)) == (before, 1)


def test_a_log_that_cannot_be_written_holds_nobody_up_and_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[str] = []
    log = TownLog(tmp_path / "up.log", shown.append)
    supervisor = chatting(tmp_path, log)
    supervisor.start()
    try:
        until(lambda: beats(tmp_path) > 3, "it is up", 10)
        with monkeypatch.context() as full:
            full.setattr(logging.FileHandler, "_open", lambda _: open("/dev/full", "w"))  # noqa: SIM115
            with log._lock:
                log._file.close()  # opened again by the next line
                log._file.stream = None
            began = beats(tmp_path)
            until(lambda: beats(tmp_path) > began + 200, "it says more than a pipe holds", 20)
        with log._lock:
            log._file.stream = None
        until(lambda: beats(tmp_path) > began + 250, "it goes on", 20)
    finally:
        supervisor.end()
        log.close()
    (told,) = [line for line in shown if "up.log" in line]
    assert "lines may be missing there: [Errno 28] No space left on device" in told
    assert told in (tmp_path / "up.log").read_text()


def test_ticks_that_did_nothing_stand_in_the_file_only(tmp_path):
    shown: list[str] = []
    log = TownLog(tmp_path / "up.log", shown.append)
    told = (
        "2026 - dagster.daemon.SensorDaemon - ERROR - Sensor tick caught an error: queue q does not exist",
        "2026 - dagster - INFO - __repository__ - orders_queue - boarded 5, departed 1",
    )
    quiet = (
        "2026 - dagster - DEBUG - orders - RUN_START",
        "2026 - dagster.daemon.SensorDaemon - INFO - Checking for new runs for sensor: orders_queue",
        "2026 - dagster.daemon.SensorDaemon - INFO - Sensor orders_queue skipped: boarded 5",
        "2026 - dagster - INFO - __repository__ - orders_queue - nothing waits",
    )
    for line in (*told, *quiet):
        log.line("daemon", line)
    log.close()
    assert shown == [f"daemon   | {line}" for line in told]
    assert all(line in (tmp_path / "up.log").read_text() for line in quiet)
