"""Messages nobody expects, queues, buckets and depots that refuse: nothing lost, one clear line, and the other messages go on."""

from __future__ import annotations

import itertools
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from bus_assets import Contract, DropOff, Field, Json, JsonLines, PickUp, S3Event, Table, Text
from resources.aws_clients import forget_clients
from resources.errors import BusError, Misconfigured, Transient
from resources.files import LocalFiles
from resources.s3_files import S3Files
from tests.emulators import CREDENTIALS, REGION, moto_server
from tests.queue_world import QueueWorld, events, order, orders

NOTE = Contract((Field("id", required=True), Field("note", required=True)))
NAUGHTY = (
    *("", " ", "\t\r\n", "null", "None", "NaN", "true", "-1", "1e999", "0x0", "\\N", "\\", '"', "'", "''", "`", "$$", "%s", "{}", "{note}"),
    *(
        "'; DROP TABLE log; --",
        "Robert'); DROP TABLE log;--",
        "=1+1",
        "@SUM(1)",
        "<script>",
        "../../etc/passwd",
        "\x7f",
        "\x01\x1f",
        "\x85\u2028",
    ),
    *(
        "\ufeffbom",
        "\ufffe",
        "\uffff",
        "e\u0301",
        "é",
        "ﷺ",
        "\u202egnp.exe",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "田中さん",
        "ا" * 50,
    ),
    *(
        "Z" + "\u0335\u0321" * 30,
        "x" * 100_000,
        "{{7*7}}",
        "${jndi:ldap://x}",
        "\x1b[31mred",
        ",;|\n,;|",
        "/* -- */",
        "COPY log FROM '/etc/passwd'",
    ),
)
"""In the manner of the Big List of Naughty Strings."""


@pytest.fixture(params=["sqlite", "postgres"])
def warehouse_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_database_url")


def notes(**more: Any) -> Any:
    log = DropOff("log", Table("warehouse", "log", create=True), of="messages")
    return events(**{"decode": Json(NOTE), "stops": (log,), "attempts": 1, **more})


def test_naughty_strings_arrive_as_they_were_sent(tmp_path, warehouse_url):
    """But for an empty note, which is a note: required forbids only null."""
    world = QueueWorld(tmp_path, notes(), warehouse_url=warehouse_url)
    world.send(*({"id": str(number), "note": note} for number, note in enumerate(NAUGHTY)))
    world.deliver()
    assert {int(row[0]): row[1] for row in world.rows("log")} == dict(enumerate(NAUGHTY))
    assert world.states() == {"delivered": len(NAUGHTY)}


def test_naughty_identities_are_told_apart_and_known_again(tmp_path, warehouse_url):
    world = QueueWorld(tmp_path, notes(identity="note"), warehouse_url=warehouse_url)
    bodies = [{"id": str(number), "note": note} for number, note in enumerate(NAUGHTY) if note]
    world.send(*bodies)
    world.deliver()
    world.send(*bodies)
    assert f"duplicates {len(bodies)}" in world.deliver()[0]
    assert len(world.rows("log")) == len(bodies)


def test_a_nul_sets_its_message_aside_only(tmp_path, warehouse_url):
    """Postgres keeps none in a text; what one database would refuse is refused for all."""
    world = QueueWorld(tmp_path, notes(), warehouse_url=warehouse_url)
    world.send({"id": "1", "note": "a"}, {"id": "2", "note": "a\0b"}, {"id": "3", "note": "c"})
    world.deliver()
    assert {row[0]: row[1] for row in world.rows("log")} == {"1": "a", "3": "c"}
    (aside,) = world.messages("quarantined")
    assert "NUL" in str(aside.error)


def test_a_body_of_the_largest_size_arrives(tmp_path):
    world = QueueWorld(tmp_path, notes())
    frame = json.dumps({"id": "1", "note": ""})
    world.send(json.dumps({"id": "1", "note": "x" * ((1 << 20) - len(frame))}))
    world.deliver()
    assert len(world.rows("log")[0][1]) == (1 << 20) - len(frame)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[]", "not an object"),
        ('"text"', "object"),
        ("7", "object"),
        ("null", "object"),
        ('{"id": "1"}', "note: required"),
        ('{"id": 1, "note": {"deep": [1]}}', "note: type string"),
        ('{"ID": "1", "NOTE": "x"}', "id: required"),
    ],
)
def test_json_of_another_shape_is_set_aside_with_a_reason(tmp_path, body, says):
    world = QueueWorld(tmp_path, notes())
    world.send(body, {"id": "good", "note": "x"})
    world.deliver()
    assert [row[0] for row in world.rows("log")] == ["good"]
    found = world.messages("quarantined")
    assert len(found) == 1
    assert says in str(found[0].error)


def test_text_is_taken_as_it_is(tmp_path):
    contract = Contract((Field("body", required=True),))
    world = QueueWorld(
        tmp_path, events(decode=Text(contract), stops=(DropOff("log", Table("warehouse", "log", create=True), of="messages"),))
    )
    world.send(
        "plain; text",
        '{"not": closed',
        *[note for note in NAUGHTY if note and "\x01" not in note and "\x1b" not in note and "\uffff" not in note and "\ufffe" not in note],
    )
    world.deliver()
    assert {"plain; text", '{"not": closed'} <= set(world.logged())
    assert set(world.states()) == {"delivered"}


# What a message names


def per_object() -> Any:
    """Each message names an object, whose lines are the rows."""
    rows = PickUp("rows", JsonLines("landing", "{message.key}", fields={"id": "id", "note": "note"}), NOTE)
    log = DropOff("log", Table("warehouse", "log", create=True), of="rows")
    return events(decode=S3Event(), stops=(rows, log), attempts=1)


def noticed(bucket: str, key: str, **told: Any) -> dict[str, Any]:
    about = {"key": key, "size": 1, "sequencer": "1", **told}
    return {
        "Records": [
            {
                "eventSource": "aws:s3",
                "eventName": "ObjectCreated:Put",
                "eventTime": "2026-01-02T03:04:05Z",
                "s3": {"bucket": {"name": bucket}, "object": about},
            }
        ]
    }


def test_an_object_that_is_gone_replaced_or_in_another_bucket_sets_its_message_aside(tmp_path, aws, monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    s3, bucket = aws.client("s3"), f"odd-{tmp_path.name[-20:].replace('_', '-')}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    world = QueueWorld(tmp_path, per_object(), landing=S3Files(bucket=bucket, endpoint_url=aws.url))

    def put(key: str, id: str) -> str:
        line = json.dumps({"id": id, "note": key}) + "\n"
        return s3.put_object(Bucket=bucket, Key=key, Body=line.encode())["VersionId"]

    first = put("replaced", "old")
    put("replaced", "new")
    kept = put("kept", "1")
    world.send(noticed(bucket, "kept", versionId=kept), noticed(bucket, "replaced", versionId=first))
    world.send(noticed(bucket, "gone", versionId="none"), noticed("somebody-elses", "kept"))
    world.deliver()
    assert world.logged() == ["1", "old"], "the version that the message names, not the newest"
    reasons = {message.subject: str(message.error) for message in world.messages("quarantined")}
    assert "is not in" in reasons[f"{bucket}/gone"]
    assert "which is not in s3://" in reasons["somebody-elses/kept"]
    forget_clients()


def test_an_object_that_may_not_be_read_sets_its_message_aside_until_it_may(tmp_path, monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    with moto_server(open_calls=2) as cloud:
        s3 = cloud.client("s3")
        s3.create_bucket(Bucket="closed", CreateBucketConfiguration={"LocationConstraint": REGION})
        s3.put_object(Bucket="closed", Key="a", Body=b"{}")
        world = QueueWorld(tmp_path, per_object(), landing=S3Files(bucket="closed", endpoint_url=cloud.url))
        world.send(noticed("closed", "a"))
        world.deliver()
    (aside,) = world.messages()
    assert aside.state == "quarantined"
    assert "access to 'a' in s3://closed/ is denied" in str(aside.error)
    assert "allow s3:GetObject" in str(aside.error)
    world.land(json.dumps({"id": "1", "note": "x"}), "a")
    world.bus.systems["landing"] = LocalFiles(root=str(tmp_path / "landing"))  # pyright: ignore[reportIndexIssue]
    assert world.bus.depot.inbox.redrive("events", reason="it may be read now", states=("quarantined",)).waiting == 1
    world.deliver()
    assert world.logged() == ["1"]
    forget_clients()


# A queue or a depot that refuses


@pytest.mark.parametrize(
    "error",
    [
        Transient("queue q did not take sqs:ReceiveMessage: Throttling; try again later"),
        Misconfigured("queue q: access is denied; allow sqs:ReceiveMessage on arn"),
    ],
)
def test_a_queue_that_refuses_is_said_by_the_tick_and_trips_under_way_go_on(tmp_path, error):
    world = QueueWorld(tmp_path)
    world.send(*orders([1, 2]))
    (departure,) = world.tick().departures
    world.send(order(3))
    world.queue.fail(*[error] * 3)
    for _ in range(3):
        with pytest.raises(type(error), match="sqs:ReceiveMessage"):
            world.tick()
    world.run(departure)
    assert world.logged() == ["O-1", "O-2"]
    world.deliver()
    assert world.logged() == ["O-1", "O-2", "O-3"]


def test_a_depot_that_somebody_locks_is_said_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("resources.depot.connections.BUSY_SECONDS", 0.3)
    world = QueueWorld(tmp_path)
    world.send(*orders([1, 2]))
    other = sqlite3.connect(tmp_path / "depot.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusError, match=r"locked|busy"):
        world.tick()
    other.execute("ROLLBACK")
    other.close()
    assert world.queue.depth().waiting + world.queue.depth().in_flight == 2
    world.queue.expire()
    world.deliver()
    assert world.logged() == ["O-1", "O-2"]


def test_a_depot_that_is_full_is_said_and_loses_nothing(tmp_path):
    world = QueueWorld(tmp_path)
    pages = pages_of(tmp_path / "depot.db")
    limit_pages(world, pages + 2)
    world.send(*({**order(number), "note": "x" * 50_000} for number in range(20)))
    with pytest.raises(BusError, match="full"):
        world.tick()
    assert world.queue.depth().in_flight == 20
    limit_pages(world, 1 << 30)
    world.queue.expire()
    world.deliver()
    assert len(world.logged()) == 20


@pytest.mark.parametrize("fifo", [False, True])
def test_a_depot_so_slow_that_messages_come_again_before_they_are_deleted_loses_and_doubles_nothing(tmp_path, monkeypatch, fifo):
    """Each statement takes longer than the queue hides a message, and the queue does not delete by a receipt that has expired."""
    import sqlalchemy as sa

    monkeypatch.setattr("sensors.dispatch.BUSY_SECONDS", 0.1)
    world = QueueWorld(tmp_path, fifo=fifo)
    passed, slow, received = 0.0, True, dict[str, float]()
    receive, delete = world.queue.receive, world.queue.delete

    def take_long(*_: object) -> None:
        nonlocal passed
        passed += (world.queue.visibility_seconds + 1) * slow

    def receives(*asked: Any, **more: Any) -> Any:
        found = receive(*asked, **more)
        received.update({message.receipt_handle: passed for message in found})
        return found

    def deletes(those: Any) -> int:
        return delete([one for one in those if passed <= received[one.receipt_handle] + world.queue.visibility_seconds])

    world.queue.clock, world.queue.receive, world.queue.delete = lambda: passed, receives, deletes
    sa.event.listen(world.bus.depot._connections._engine(), "before_cursor_execute", take_long)
    world.send(*orders([1, 2, 3]), group="g" if fifo else None)
    said = [world.tick() for _ in range(3)]
    assert world.queue.depth().waiting == 3
    slow = False
    for departure in itertools.chain.from_iterable(one.departures for one in said):
        world.run(departure)
    last = world.deliver()
    assert "duplicates 3" in " ".join(last), last
    assert world.logged() == ["O-1", "O-2", "O-3"]
    assert (world.states(), world.queue.depth().waiting + world.queue.depth().in_flight) == ({"delivered": 3}, 0)


def pages_of(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        return connection.execute("PRAGMA page_count").fetchone()[0]


def limit_pages(world: QueueWorld, pages: int) -> None:
    """SQLite's own way to say that the disk is full."""
    import sqlalchemy as sa

    engine = world.bus.depot._connections._engine()
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}"))
