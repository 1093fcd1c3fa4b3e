"""The sensor and the job of a queue route as Dagster runs them: real definitions, a real instance, a fake queue."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import time
import types
from pathlib import Path

import dagster as dg
import pytest

from bus_assets import Cron, DropOff, Json, Misdeclared, Queue, Table, Transform, build_definitions
from bus_assets.build.assets import in_one_process
from bus_assets.build.dispatching import protocol
from bus_assets.causes import in_a_line
from bus_assets.drive import Bus
from resources.database import Database
from resources.depot.mail import Arrival
from resources.depot.resource import DepotResource
from resources.errors import Misconfigured
from resources.queue import SqsQueue
from resources.queue_seam import Outgoing
from resources.staging import StagingArea
from tests.depots import sqlite_depot
from tests.fakes import FakeQueue
from tests.queue_world import ORDER, TOTAL, events, order, orders, priced
from tests.webserver import outside_environment

REPOSITORY = Path(__file__).resolve().parents[2]


class Town:
    def __init__(self, root, route=None):
        self.root, self.queue, self.dead = root, FakeQueue("order-events"), FakeQueue("dead")
        self.route = route or events()
        self.systems = {
            "order_events": self.queue,
            "dead": self.dead,
            "warehouse": Database(url=f"sqlite:///{root}/warehouse.db"),
        }
        self.defs = build_definitions(
            (self.route,),
            self.systems,
            depot=DepotResource(url=sqlite_depot(root / "depot.db")),
            staging=StagingArea(url=str(root / "staging")),
        )
        self.depot = DepotResource(url=f"sqlite:///{root}/depot.db").depot()
        self.instance = dg.DagsterInstance.ephemeral(tempdir=str(root))

    def send(self, *bodies):
        self.queue.send([Outgoing(json.dumps(body)) for body in bodies])

    def tick(self):
        sensor = self.defs.resolve_sensor_def("events_queue")
        with dg.build_sensor_context(instance=self.instance, resources=dict(self.defs.resources)) as context:
            return sensor.evaluate_tick(context)

    def run(self, tags, **more):
        job = self.defs.resolve_job_def("events")
        return job.execute_in_process(instance=self.instance, tags=tags, raise_on_error=False, **more)


@pytest.fixture
def town(tmp_path, monkeypatch):
    monkeypatch.setattr("bus_assets.build.dispatching.POLL_SECONDS", 0.0)
    return Town(tmp_path)


def events_of(result, kind):
    return [event for event in result.all_events if event.event_type_value == kind]


def test_a_tick_says_in_one_line_what_it_did_and_a_run_delivers(town):
    town.send(*orders([1, 2, 3]))
    done = town.tick()
    (request,) = done.run_requests
    assert done.cursor == "boarded 3, departed 1"
    result = town.run(request.tags)
    assert result.success
    assert [event.asset_key.to_user_string() for event in events_of(result, "ASSET_MATERIALIZATION")] == [
        "events/messages",
        "events/priced",
        "events/log",
    ]
    idle = town.tick()
    assert (idle.skip_message, idle.cursor) == ("nothing waits", "nothing waits")


def test_the_sensor_is_on_as_soon_as_its_code_is_loaded(town):
    assert town.defs.resolve_sensor_def("events_queue").default_status == dg.DefaultSensorStatus.RUNNING


def test_a_tick_that_fails_says_which_route_and_which_queue(town, monkeypatch):
    monkeypatch.setattr("sensors.queue.ERROR_SECONDS", 0)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    town.systems["order_events"] = SqsQueue(name="order-events", threads=7)
    depot, staging = DepotResource(url=f"sqlite:///{town.root}/depot.db"), StagingArea(url=str(town.root / "staging"))
    town.defs = build_definitions((town.route,), town.systems, depot=depot, staging=staging)
    said = (
        "^route 'events': queue order-events: no client for sqs: You must specify a region; give the process AWS credentials and a region$"
    )
    with pytest.raises(Misconfigured, match=said):
        town.tick()


def test_the_messages_asset_shows_counts_and_the_accounts_sums(town):
    town.send(order(1), {"order_id": "wrong"})
    (request,) = town.tick().run_requests
    result = town.run(request.tags)
    (shown,) = result.asset_materializations_for_node("events__messages")
    assert shown.metadata["messages aboard"].value == 2
    checks = {c.check_name: c for c in result.get_asset_check_evaluations() if c.asset_key.path[-1] == "messages"}
    assert set(checks) == {"contract", "conserved", "accounted"}
    assert checks["accounted"].metadata["received in all"].value == 2


def test_each_departure_has_a_run_key_of_its_own_also_after_the_depot_was_restored(town):
    """Dagster asks for no run whose key it has seen: the trip would wait in vain, longer and longer."""
    town.send(order(1))
    keys = [town.tick().run_requests[0].run_key]
    for _ in range(2):
        with town.depot._connections.writing() as connection:  # as it was copied after its first launch
            connection.exec_driver_sql(
                "UPDATE depot_trips SET state = 'departed', launches = 1, departed_at = '2000-01-01 00:00:00.000000'"
            )
        keys.append(town.tick().run_requests[0].run_key)
    assert [key.split("/")[1] for key in keys] == ["1", "2", "2"]
    assert len(set(keys)) == 3


def test_a_failure_says_which_message_where_only_one_can_be_meant(town, tmp_path):
    town = Town(tmp_path, events(attempts=1))
    town.send(order(1), order(666))
    (request,) = town.tick().run_requests
    line = priced.__code__.co_firstlineno + 3
    why = f'priced() raised Boom: 666 is too much for me (line {line} of queue_world.py: raise Boom("666 is too much for me"))'
    together = failure_of(town.run(request.tags))
    alone = [failure_of(town.run(request.tags)) for request in town.tick().run_requests]
    assert together == f"route 'events', stop 'priced': {why}"
    assert alone == [None, f"route 'events', stop 'priced', message 2: {why}"]
    town.tick()
    (stranded,) = town.depot.inbox.messages("events", "stranded")
    assert (stranded.id, stranded.error) == (2, alone[1])


def failure_of(result):
    return next((event.step_failure_data.user_failure_data.description for event in result.all_events if event.is_step_failure), None)


def accounted(town):
    """The check ``accounted`` of a trip that brings one more order, which is delivered whatever the check says."""
    town.send(order(100))
    (request,) = town.tick().run_requests
    result = town.run(request.tags)
    assert result.success
    return next(check for check in result.get_asset_check_evaluations() if check.check_name == "accounted")


def test_the_accounts_check_warns_of_messages_that_wait_for_a_person(town):
    found = accounted(town)
    received = found.metadata["received in all"].value
    assert (found.passed, found.description) == (True, f"all {received} received are accounted for; no message waits for a person")
    town.send("{oops")
    accounted(town)
    found = accounted(town)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "1 quarantined wait for a person: `bus messages events` shows them" in found.description
    town.depot.inbox.discard("events", reason="nobody can read it")
    found = accounted(town)
    assert (found.passed, found.metadata["discarded"].value) == (True, 1)
    assert found.description.endswith("accounted for; no message waits for a person")


def test_the_accounts_check_misses_a_message_that_is_lost_from_the_depot(town):
    town.send("{oops")
    accounted(town)
    with town.depot._connections.writing() as connection:
        connection.exec_driver_sql("DELETE FROM depot_messages WHERE state = 'quarantined'")
    found = accounted(town)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert found.description.startswith("3 were received, but 2 are in a state: `bus account events`")
    assert (found.metadata["received in all"].value, found.metadata["in all states"].value) == (3, 2)


def test_the_queue_is_upstream_of_the_messages(town):
    graph = town.defs.resolve_asset_graph()
    parents = graph.get(dg.AssetKey(["events", "messages"])).parent_keys
    assert {key.to_user_string() for key in parents} == {"queue/order_events"}


def test_a_run_whose_trip_is_somebody_elses_ends_without_having_failed(town):
    town.send(order(1))
    (request,) = town.tick().run_requests
    trip = request.tags["bus/trip/events"]
    town.depot.claim(trip, "somebody", lease_seconds=60)
    result = town.run(request.tags)
    assert result.success
    assert events_of(result, "ASSET_MATERIALIZATION") == []
    assert {event.step_key for event in events_of(result, "STEP_SKIPPED")} == {"events__priced", "events__publish_warehouse"}


@pytest.mark.parametrize(
    ("executor", "shared"), [(None, True), (dg.multiprocess_executor, False), (dg.multi_or_in_process_executor, False)]
)
def test_whether_the_stops_of_a_trip_share_a_process_is_told_by_the_executor(town, executor, shared):
    job = build_definitions((town.route,), town.systems, executor=executor).resolve_job_def("events")
    assert in_one_process(job) is shared


@pytest.mark.parametrize("shared", [True, False])
def test_a_process_that_stops_share_is_kept_with_the_attempt_and_no_other(town, monkeypatch, shared):
    if not shared:
        monkeypatch.setattr("bus_assets.build.assets.IN_ONE_PROCESS", ())
    town.send(order(1))
    (request,) = town.tick().run_requests
    assert town.run(request.tags).success
    attempt = town.depot.newest_attempt(request.tags["bus/trip/events"])
    assert attempt.host
    assert (attempt.pid, attempt.process_started is not None) == ((os.getpid(), True) if shared else (None, False))


_OF_MANY_PROCESSES = """
from pathlib import Path

import dagster as dg
from bus_assets import build_definitions
from resources.database import Database
from resources.depot.resource import DepotResource
from resources.staging import StagingArea
from tests.fakes import FakeQueue
from tests.queue_world import events

here = Path(__file__).parent
defs = build_definitions(
    (events(),),
    {"order_events": FakeQueue(), "warehouse": Database(url=f"sqlite:///{here}/warehouse.db")},
    depot=DepotResource(url=f"sqlite:///{here}/depot.db"),
    staging=StagingArea(url=f"{here}/staging"),
    executor=dg.multiprocess_executor,
)
"""


@pytest.mark.long
@pytest.mark.timeout(240)
def test_ticks_between_steps_that_have_processes_of_their_own_leave_the_trip_alone(town, tmp_path):
    (tmp_path / "routes.py").write_text(_OF_MANY_PROCESSES)
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    town.send(*orders([1, 2]))
    (request,) = town.tick().run_requests
    trip, environment = request.tags["bus/trip/events"], {**outside_environment(REPOSITORY), "DAGSTER_HOME": str(tmp_path)}
    command = (sys.executable, "-m", "dagster", "job", "execute", "-f", "routes.py", "-j", "events", "--tags", json.dumps(request.tags))
    with dg.DagsterInstance.from_config(str(tmp_path)) as town.instance, subprocess.Popen(command, cwd=tmp_path, env=environment) as run:
        while run.poll() is None:
            town.tick()
            time.sleep(0.2)
    assert run.returncode == 0
    assert (town.depot.trip(trip).state, town.depot.trip(trip).deaths) == ("delivered", 0)
    assert (town.depot.newest_attempt(trip).attempt, town.depot.newest_attempt(trip).outcome) == (1, "published")


def test_the_run_of_an_attempt_that_fell_silent_is_closed_and_that_of_one_that_is_driven_is_not(town, impatient):
    """Else it seems to run for ever in the UI, and takes a place among the runs at once."""
    town.send(order(1))
    (request,) = town.tick().run_requests
    trip, job = request.tags["bus/trip/events"], town.defs.resolve_job_def("events")
    run = town.instance.create_run_for_job(job, tags=dict(request.tags), status=dg.DagsterRunStatus.STARTED)
    town.depot.claim(trip, run.run_id, lease_seconds=60)
    assert town.tick().cursor == "nothing waits"
    assert town.instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED
    with sqlite3.connect(town.root / "depot.db") as depot:
        depot.execute("UPDATE depot_attempts SET lease_until = '2020-01-01 00:00:00.000000'")
    assert town.tick().cursor == "returned 1"
    assert town.instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    events = [entry.dagster_event for entry in town.instance.all_logs(run.run_id)]
    (said,) = (event.message for event in events if event and event.is_failure)
    assert said == f"attempt 1 of trip {trip} was ended: its process is gone, or fell silent"


def test_a_person_starts_a_trip_of_what_waits(town):
    town.depot.inbox.board("events", [Arrival("a", json.dumps(order(1)).encode())])
    assert town.run({}).success
    assert town.depot.inbox.counts("events").by_state["delivered"] == 1
    result = town.run({})
    assert not result.success
    assert "no message waits" in failure_of(result)
    town.depot.inbox.board("events", [Arrival("b", json.dumps(order(2)).encode(), group="g")])
    assert town.depot.inbox.form("events", batch=1, max_wait_seconds=0, max_trips=1) == 1
    town.depot.inbox.board("events", [Arrival("c", json.dumps(order(3)).encode(), group="g")])
    assert "the 1 that wait do so behind others of their groups" in failure_of(town.run({}))


def test_re_executing_all_of_a_message_trip_is_the_same_trip(town):
    town.send(order(1))
    (request,) = town.tick().run_requests
    first = town.run(request.tags)
    again = town.run({**request.tags, "dagster/parent_run_id": first.run_id})
    assert again.success
    with Database(url=f"sqlite:///{town.root}/warehouse.db").transaction(reading=True) as transaction:
        assert transaction.count_rows("log") == 1


def test_one_stop_selected_alone_gives_its_messages_back(town):
    town.send(order(1))
    (request,) = town.tick().run_requests
    result = town.run(request.tags, asset_selection=[dg.AssetKey(["events", "messages"])])
    assert result.success
    (again,) = town.tick().run_requests
    assert town.run(again.tags).success
    assert town.depot.inbox.counts("events").by_state["delivered"] == 1


def test_a_trip_that_is_cancelled_in_a_stop_is_not_driven_beyond_it(tmp_path, monkeypatch):
    monkeypatch.setattr("bus_assets.build.dispatching.POLL_SECONDS", 0.0)

    def cancelled_meanwhile(messages):
        town.depot.inbox.cancel(request.tags["bus/trip/events"], "wrong prices")
        return priced(messages)

    town = Town(tmp_path, events(stops=(Transform("priced", cancelled_meanwhile, TOTAL), events()["log"])))
    town.send(*orders([1, 2]))
    (request,) = town.tick().run_requests
    result = town.run(request.tags)
    assert "is asked to stop (wrong prices)" in failure_of(result)
    assert [event.asset_key.path[-1] for event in events_of(result, "ASSET_MATERIALIZATION")] == ["messages", "priced"]
    assert "stranded 2" in town.tick().skip_message
    assert {(message.state, message.error) for message in town.depot.inbox.messages("events")} == {("stranded", "wrong prices")}
    with Database(url=f"sqlite:///{town.root}/warehouse.db").transaction(reading=True) as transaction:
        assert not transaction.receipts_of("events", request.tags["bus/trip/events"])


def test_two_routes_on_one_queue_are_refused(tmp_path):
    other = events(name="others")
    with pytest.raises(Misdeclared, match="both take messages from queue 'order_events'"):
        build_definitions((events(), other), {"order_events": FakeQueue(), "warehouse": Database(url="sqlite:////nowhere/w.db")})


def test_dead_letters_are_of_one_route(tmp_path):
    one = events(dead_letters="dead")
    other = events(name="others", triggers=(Queue("other_events", Json(ORDER), dead_letters="dead"),))
    systems = {name: FakeQueue() for name in ("order_events", "other_events", "dead")}
    with pytest.raises(Misdeclared, match="dead letters of its own"):
        build_definitions((one, other), {**systems, "warehouse": Database(url="sqlite:////nowhere/w.db")})


@pytest.mark.parametrize(
    ("triggers", "said"),
    [
        ((Queue("a", Json(ORDER)), Queue("b", Json(ORDER))), "two queues"),
        ((Queue("a", Json(ORDER)), Cron("0 5 * * *")), "a Queue and a Cron"),
    ],
)
def test_a_route_has_one_queue_and_no_clock_beside_it(triggers, said):
    with pytest.raises(Misdeclared, match=said):
        events(triggers=triggers)


def test_replacing_a_table_by_what_happens_to_share_a_trip_is_refused():
    with pytest.raises(Misdeclared, match="which messages share a trip is chance"):
        events(stops=(DropOff("log", Table("warehouse", "log", scope={})),))


# Runs that end before they claim their trip


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("sensors.dispatch.RUN_SECONDS", 0.0)


def test_a_resource_that_cannot_be_made_is_told_and_the_trip_departs_again(town, impatient):
    town.send(order(1))
    (request,) = town.tick().run_requests
    well, town.defs = (
        town.defs,
        build_definitions(
            (town.route,),
            {**town.systems, "warehouse": Broken(url="sqlite:////nowhere/w.db")},
            depot=DepotResource(url=f"sqlite:///{town.root}/depot.db"),
            staging=StagingArea(url=str(town.root / "staging")),
        ),
    )
    assert not town.run(request.tags).success
    town.defs = well
    (trip,) = town.depot.trips()
    assert town.depot.newest_attempt(trip.id) is None
    said = town.tick().skip_message
    why = "its run ended before it claimed the trip: Exception: no such warehouse"
    assert said == f"returned 1, trip {trip.id}: {why}"
    assert town.depot.trip(trip.id).error == why


def test_after_a_route_is_resumed_runs_that_end_before_their_claim_are_counted_anew(town, impatient, monkeypatch):
    """A person has mended what ended them: the next one that a deploy kills is asked for again."""
    monkeypatch.setattr("sensors.judging.LOST_RUNS", 2)
    monkeypatch.setattr("sensors.judging.delay_seconds", lambda before: 0.0)

    def lost(ticked):
        (request,) = ticked.run_requests
        run = town.instance.create_run_for_job(town.defs.resolve_job_def("events"), tags=dict(request.tags))
        town.instance.report_run_failed(run, "the broker refused it")
        return town.tick()

    town.send(order(1))
    for _ in range(2):
        paused = lost(lost(town.tick()))
        assert "2 times in a row" in town.depot.inbox.paused("events")[1]
        assert "paused the route" in paused.skip_message
        town.depot.inbox.resume("events")


class Broken(Database):
    def setup_for_execution(self, context):
        raise Exception("no such warehouse")


def test_a_run_that_never_began_is_told_and_one_that_may_begin_is_waited_for(town, impatient):
    town.send(order(1))
    (request,) = town.tick().run_requests
    run = town.instance.create_run_for_job(town.defs.resolve_job_def("events"), tags=dict(request.tags))
    assert town.tick().skip_message == "nothing waits"  # it may still claim
    town.instance.report_run_failed(run, "the broker refused it")
    assert "its run ended before it claimed the trip: the broker refused it" in town.tick().skip_message


def test_a_variable_that_is_not_set_is_named(town):
    systems = {**town.systems, "warehouse": Database(url=dg.EnvVar("NO_SUCH_URL"))}
    job = build_definitions((town.route,), systems).resolve_job_def("events")
    with pytest.raises(dg.DagsterInvalidConfigError) as raised:
        job.execute_in_process(instance=town.instance)
    kept = types.SimpleNamespace(message=f"DagsterInvalidConfigError: {raised.value}\n", cause=None)
    assert 'the environment variable "NO_SUCH_URL" which is not set' in in_a_line(kept)
    assert "\n" not in in_a_line(kept)


def test_only_runs_since_the_last_claim_count_and_only_the_last_launch(town, impatient):
    town.send(order(1))
    (request,) = town.tick().run_requests
    trip, asks = town.depot.trips()[0], {"bus/trip/events": request.tags["bus/trip/events"]}
    above = protocol(Bus(town.depot, None, town.systems), town.route, town.route.queue, town.instance)

    def ended(launch, status=dg.DagsterRunStatus.FAILURE):
        job = town.defs.resolve_job_def("events")
        return town.instance.create_run_for_job(job, tags={**asks, "bus/launch": str(launch)}, status=status)

    launched = dataclasses.replace(trip, launches=4)
    assert above.unclaimed(launched, None) is None
    ended(1)
    claimed = ended(2)
    attempt = town.depot.claim(trip.id, claimed.run_id, lease_seconds=60)
    ended(3)
    assert above.unclaimed(launched, attempt) is None
    ended(4, dg.DagsterRunStatus.SUCCESS)  # it had nothing to do
    assert above.unclaimed(launched, attempt) is None
    ended(4, dg.DagsterRunStatus.CANCELED)
    assert above.unclaimed(launched, attempt).runs == 2
    assert above.unclaimed(launched, None).runs == 4
    assert above.unclaimed(dataclasses.replace(launched, launches_before_resume=3), None).runs == 1
    ended(4, dg.DagsterRunStatus.STARTING)  # a person had it run again
    assert above.unclaimed(launched, attempt) is None
