"""What AWS's services really send each other, as two emulators see it, becomes rows: S3's events by three ways, SNS, claim checks."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from bus_assets import Contract, DropOff, Field, S3Event, Table
from bus_assets.redriving import board_dead_letters
from resources.aws_clients import forget_clients
from resources.claim_check import leave
from resources.errors import Transient
from resources.queue import SqsQueue
from resources.queue_seam import Outgoing, Received
from tests.emulators import CREDENTIALS, REGION, Emulator
from tests.queue_world import QueueWorld, events, order

_numbers = itertools.count(1)
OBJECT = Contract((Field("bucket", required=True), Field("key", required=True), Field("etag", required=True), Field("size", "integer")))


@pytest.fixture(params=["aws", "moto"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield request.getfixturevalue(request.param)
    forget_clients()


class Cloudy(QueueWorld):
    """A queue world on an emulator, with a bucket for large bodies; ``name`` is of its own, as others use the same emulator."""

    def __init__(self, root: Any, cloud: Emulator, route: Any = None, *, fifo: bool = False):
        super().__init__(root, route)
        self.cloud, self.name = cloud, f"live-{os.getpid()}-{next(_numbers)}"
        on_queue = f"{self.name}.fifo" if fifo else self.name
        self.s3, self.sqs, self.sns = (cloud.client(service) for service in ("s3", "sqs", "sns"))
        self.s3.create_bucket(Bucket=self.name, CreateBucketConfiguration={"LocationConstraint": REGION})
        self.queue, self.dead = self._queue(on_queue), self._queue(f"{self.name}-dead")  # pyright: ignore[reportAttributeAccessIssue]
        self.bus.systems.update(order_events=self.queue, dead=self.dead)  # pyright: ignore[reportAttributeAccessIssue]
        url = self.sqs.get_queue_url(QueueName=on_queue)["QueueUrl"]
        self.arn = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]

    def _queue(self, name: str) -> SqsQueue:
        fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if name.endswith(".fifo") else {}
        self.sqs.create_queue(QueueName=name, Attributes=fifo)
        large = {"large_bodies": self.name, "large_bodies_endpoint_url": self.cloud.url}
        return SqsQueue(name=name, endpoint_url=self.cloud.url, threads=1, visibility_seconds=5, **large)

    def topic(self, raw: bool = False) -> str:
        arn = self.sns.create_topic(Name=self.name)["TopicArn"]
        self.sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=self.arn, Attributes={"RawMessageDelivery": str(raw).lower()})
        return arn

    def notify(self, way: str) -> None:
        """S3 tells of what is put into the bucket."""
        told: dict[str, Any] = {"QueueConfigurations": [{"QueueArn": self.arn, "Events": ["s3:ObjectCreated:*"]}]}
        if way == "sns":
            told = {"TopicConfigurations": [{"TopicArn": self.topic(), "Events": ["s3:ObjectCreated:*"]}]}
        elif way == "eventbridge":
            told, rules = {"EventBridgeConfiguration": {}}, self.cloud.client("events")
            pattern = {"source": ["aws.s3"], "detail": {"bucket": {"name": [self.name]}}}
            rules.put_rule(Name=self.name, EventPattern=json.dumps(pattern))
            rules.put_targets(Rule=self.name, Targets=[{"Id": "queue", "Arn": self.arn}])
        self.s3.put_bucket_notification_configuration(Bucket=self.name, NotificationConfiguration=told)

    def put(self, key: str, content: bytes) -> None:
        self.s3.put_object(Bucket=self.name, Key=key, Body=content)


@pytest.mark.parametrize("way", ["sqs", "sns", "eventbridge"])
def test_each_write_of_an_object_is_a_message_by_every_way(tmp_path, cloud, way):
    route = events(decode=S3Event(), stops=(DropOff("log", Table("warehouse", "log", create=True), of="messages"),))
    world = Cloudy(tmp_path, cloud, route)
    world.notify(way)
    world.put("in/ä b+c.csv", b"1")
    world.deliver()
    world.put("in/ä b+c.csv", b"22")
    world.deliver()
    found = sorted((row[1], row[4]) for row in world.rows("log"))
    assert found == [("in/ä b+c.csv", 1), ("in/ä b+c.csv", 2)]
    assert world.states() == {"delivered": 2}


@pytest.mark.parametrize("raw", [False, True])
def test_what_sns_publishes_is_a_row(tmp_path, cloud, raw):
    world = Cloudy(tmp_path, cloud)
    topic = world.topic(raw)
    world.sns.publish(TopicArn=topic, Message=json.dumps(order(1)))
    world.deliver()
    assert world.logged() == ["O-1"]
    assert [message.key.partition(":")[0] for message in world.messages()] == ["sqs" if raw else "sns"]


def padded(number: int, characters: int) -> str:
    return json.dumps(order(number) | {"note": "ä" * characters})


def test_a_body_too_large_for_sqs_arrives(tmp_path, cloud):
    """As this project sends it, as Amazon's extended clients do, and as the one for SNS does."""
    world = Cloudy(tmp_path, cloud)
    world.queue.send([Outgoing(padded(1, 600_000))])
    pointer, size = leave(world.s3, world.name, "java", padded(2, 10))
    attributes = {name: {"DataType": "Number", "StringValue": value} for name, value in size.items()}
    url = world.sqs.get_queue_url(QueueName=world.name)["QueueUrl"]
    world.sqs.send_message(QueueUrl=url, MessageBody=pointer, MessageAttributes=attributes)
    older = pointer.replace("software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer")
    older = older.replace(json.loads(pointer)[1]["s3Key"], "python/3")
    world.put("python/3", padded(3, 10).encode())
    world.sqs.send_message(QueueUrl=url, MessageBody=older, MessageAttributes={"SQSLargePayloadSize": attributes["ExtendedPayloadSize"]})
    world.put("sns/4", padded(4, 10).encode())
    topic, by_sns = world.topic(), pointer.replace(json.loads(pointer)[1]["s3Key"], "sns/4")
    world.sns.publish(TopicArn=topic, Message=by_sns, MessageAttributes=attributes)
    world.deliver()
    assert world.logged() == ["O-1", "O-2", "O-3", "O-4"]
    assert world.states() == {"delivered": 4}


def test_a_body_that_is_gone_or_in_somebody_elses_bucket_is_set_aside_and_says_so(tmp_path, cloud):
    world = Cloudy(tmp_path, cloud)
    world.queue.send([Outgoing(padded(1, 600_000)), Outgoing(json.dumps(order(2)))])
    (large,) = world.s3.list_objects_v2(Bucket=world.name)["Contents"]
    world.s3.delete_object(Bucket=world.name, Key=large["Key"])
    said = ["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": "somebody-elses", "s3Key": "k"}]
    world.queue.send([Outgoing(json.dumps(said), {"ExtendedPayloadSize": "9"})])
    world.deliver()
    assert world.logged() == ["O-2"]
    gone, foreign = sorted(str(message.error) for message in world.messages("quarantined"))
    assert gone == "the body that the message points at is not there any more; send the message again"
    assert foreign.startswith(f"the message points into bucket 'somebody-elses', but this queue's large_bodies is '{world.name}'")


def test_a_large_message_that_was_stranded_rides_again_from_the_dead_letters(tmp_path, cloud):
    world = Cloudy(tmp_path, cloud, events(dead_letters="dead", attempts=1))
    world.queue.send([Outgoing(padded(666, 600_000))])
    world.deliver()
    assert world.states() == {"stranded": 1}
    assert world.dead.depth().waiting == 1
    world.route = events(dead_letters="dead", stops=(DropOff("log", Table("warehouse", "log", create=True), of="messages"),))
    assert board_dead_letters(world.bus, world.route, world.route.queue, "mended").redriven == 1  # pyright: ignore[reportArgumentType]
    world.deliver()
    assert world.logged() == ["O-666"]
    assert (world.states(), world.dead.depth().waiting) == ({"delivered": 1}, 0)


def test_what_sqs_moved_to_the_dead_letters_though_it_was_boarded_is_known_there(tmp_path, cloud, monkeypatch):
    """It has its message id still; AWS's own redrive would give it another one."""
    world = Cloudy(tmp_path, cloud, events(dead_letters="dead"))
    url = world.sqs.get_queue_url(QueueName=world.name)["QueueUrl"]
    policy = {"deadLetterTargetArn": f"{world.arn}-dead", "maxReceiveCount": "1"}
    world.sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy)})

    def in_vain(queue: SqsQueue, received: Sequence[Received]) -> int:
        for message in received:
            world.sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=message.receipt_handle, VisibilityTimeout=0)
        raise Transient("the connection was lost")

    world.send(order(1))
    with monkeypatch.context() as patch, pytest.raises(Transient, match="connection was lost"):
        patch.setattr(SqsQueue, "delete", in_vain)
        world.tick()
    world.deliver()
    assert world.logged() == ["O-1"]
    boarded = board_dead_letters(world.bus, world.route, world.route.queue, "moved by SQS")  # pyright: ignore[reportArgumentType]
    assert (boarded.duplicates, boarded.waiting) == (1, 0)


def test_a_fifo_message_keeps_its_group_through_dead_letters_on_a_standard_queue(tmp_path, cloud):
    world = Cloudy(tmp_path, cloud, events(dead_letters="dead", attempts=1), fifo=True)
    world.send(order(666), order(1), group="a/b:50%")
    world.deliver()
    assert world.states() == {"stranded": 1, "waiting": 1}
    world.route = events(dead_letters="dead", batch=1, stops=(DropOff("log", Table("warehouse", "log", create=True), of="messages"),))
    assert board_dead_letters(world.bus, world.route, world.route.queue, "mended").redriven == 1  # pyright: ignore[reportArgumentType]
    assert [message.group for message in world.messages()] == ["a/b:50%"] * 2
    world.deliver()
    assert [row[0] for row in world.rows("log", "rowid")] == ["O-666", "O-1"]


def test_a_claim_check_that_sqs_itself_moved_to_the_dead_letters_is_found_in_the_queues_bucket(tmp_path, cloud):
    world = Cloudy(tmp_path, cloud, events(dead_letters="dead"))
    world.bus.systems["dead"] = world.dead.model_copy(update={"large_bodies": None})  # pyright: ignore[reportIndexIssue]
    world.queue.send([Outgoing(padded(1, 600_000))])
    (received,) = world.queue.receive(1, 5)
    world.queue.delete([received])
    world.dead.send([Outgoing(received.body, received.attributes)])
    assert board_dead_letters(world.bus, world.route, world.route.queue, "mended").waiting == 1  # pyright: ignore[reportArgumentType]
    world.deliver()
    assert world.logged() == ["O-1"]
