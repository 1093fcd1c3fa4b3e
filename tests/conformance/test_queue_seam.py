"""What every queue must do, run on the fake and on two emulators; then what only SQS can get wrong."""

import http.server
import itertools
import json
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resources.aws_clients import forget_clients
from resources.claim_check import LARGEST_BODY_BYTES, pointer_of
from resources.errors import BusError, Gone, Misconfigured, Poison, Transient
from resources.queue import BATCH, RECEIVED_BYTES, MessageQueue, Outgoing, Pointer, Received, SqsQueue
from tests.emulators import CREDENTIALS, Emulator, moto_server
from tests.fakes import FakeQueue

_numbers = itertools.count(1)
Make = Callable[..., Any]


@pytest.fixture(autouse=True, scope="module")
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_MAX_ATTEMPTS": "1"}.items():
            patch.setenv(name, value)
        forget_clients()
        yield
    forget_clients()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For a test that changes what clients are made from."""
    forget_clients()
    yield monkeypatch
    forget_clients()


def sqs_queue(emulator: Emulator, name: str = "q", **more: Any) -> SqsQueue:
    """A new queue on the emulator. moto and ministack are shared with other tests: each queue has a name of its own."""
    if emulator.name == "moto":
        more.setdefault("threads", 1)  # asked by two at once, it gives a message to both
    stem, dot, suffix = name.partition(".")
    name = f"{stem}-{os.getpid()}-{next(_numbers)}{dot}{suffix}"
    emulator.client("sqs").create_queue(QueueName=name, Attributes={"FifoQueue": "true"} if dot else {})
    return SqsQueue(name=name, endpoint_url=emulator.url, large_bodies_endpoint_url=emulator.url, **more)


@pytest.fixture(params=["fake", "ministack", "moto"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "fake":
        return lambda name="q", **more: FakeQueue(name, **more)
    emulator = request.getfixturevalue({"ministack": "aws"}.get(request.param, request.param))
    return lambda name="q", **more: sqs_queue(emulator, name, **more)


def drained(queue: MessageQueue) -> list[Received]:
    """Everything, deleted as it comes: a FIFO queue gives on only then."""
    found: list[Received] = []
    while received := queue.receive(1000):
        queue.delete(received)
        found += received
    return found


def bodies(received: list[Received]) -> list[str]:
    return [message.body for message in received]


def test_it_is_a_queue(make: Make) -> None:
    queue = make()
    assert isinstance(queue, MessageQueue)
    assert queue.where.startswith("queue q")
    assert not queue.is_fifo
    assert make("q.fifo").is_fifo


def test_an_empty_queue_gives_nothing_and_takes_nothing(make: Make) -> None:
    queue = make()
    assert queue.receive(10) == []
    assert queue.receive(0, 20) == []
    assert queue.delete([]) == 0
    queue.send([])
    assert queue.depth().waiting == queue.depth().in_flight == 0


def test_a_message_comes_as_it_was_sent(make: Make) -> None:
    queue, before = make(), datetime.now(UTC)
    text = 'ä\t"\\ \U0001f68c\r\n<&>\x85'
    queue.send([Outgoing(text, {"bus-key": "a/b ü", "n": "1"})])
    (message,) = queue.receive(10, 5)
    assert (message.body, message.attributes, message.receive_count) == (text, {"bus-key": "a/b ü", "n": "1"}, 1)
    assert (message.group, message.deduplication_id) == (None, None)
    assert message.sent_at is not None
    assert before - timedelta(seconds=1) <= message.sent_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert message.sent_at.tzinfo is not None
    assert text not in repr(message)
    assert message.receipt_handle not in repr(message)


def test_more_than_a_batch_is_sent_received_and_deleted(make: Make) -> None:
    queue = make()
    sent = [str(number) for number in range(4 * BATCH + 3)]
    queue.send([Outgoing(body) for body in sent])
    assert queue.depth().waiting == len(sent)
    first = queue.receive(25, 5)
    assert len(first) == 25, "never more than asked for"
    rest = queue.receive(1000, 5)
    assert sorted(bodies(first + rest), key=int) == sent
    assert (queue.depth().waiting, queue.depth().in_flight) == (0, len(sent))
    assert queue.delete(first + rest) == len(sent)
    assert (queue.depth().waiting, queue.depth().in_flight) == (0, 0)


def test_a_received_message_is_hidden_and_comes_again_with_another_receipt(make: Make) -> None:
    queue = make(visibility_seconds=1)
    queue.send([Outgoing("x")])
    (first,) = queue.receive(10, 5)
    assert queue.receive(10) == []
    (again,) = queue.receive(10, 5)
    assert (again.message_id, again.body, again.sent_at, again.receive_count) == (first.message_id, "x", first.sent_at, 2)
    assert again.receipt_handle != first.receipt_handle
    assert queue.delete([again]) == 1
    time.sleep(1.1)
    assert queue.receive(10) == []


def test_an_old_receipt_may_delete_or_not_but_never_raises(make: Make) -> None:
    """AWS on DeleteMessage: only the newest handle deletes, 'otherwise, the request succeeds, but the message will not be deleted'.

    Emulators delete, refuse or ignore. Whatever happens, the message is deleted once, or comes again.
    """
    queue = make(visibility_seconds=1)
    queue.send([Outgoing("x")])
    (old,) = queue.receive(10, 5)
    (new,) = queue.receive(10, 5)
    assert queue.delete([old]) in (0, 1)
    time.sleep(1.1)
    queue.delete(queue.receive(10) or [new])
    time.sleep(1.1)
    assert queue.receive(10) == []


def test_deleting_twice_is_no_error(make: Make) -> None:
    queue = make()
    queue.send([Outgoing(str(number)) for number in range(12)])
    received = queue.receive(100, 5)
    assert queue.delete(received) == 12
    assert queue.delete(received) in range(13)
    assert queue.depth().in_flight == 0


def test_a_bad_receipt_among_good_ones_is_no_error(make: Make) -> None:
    queue = make()
    queue.send([Outgoing("a"), Outgoing("b")])
    first, second = queue.receive(10, 5)
    assert queue.delete([first, Received("none", "x", "no receipt at all"), second]) in (2, 3)
    assert queue.depth().in_flight == 0


def test_waiting_ends_with_the_first_message(make: Make) -> None:
    queue = make()
    threading.Timer(0.3, queue.send, [[Outgoing("x")]]).start()
    began = time.monotonic()
    assert bodies(queue.receive(10, 10)) == ["x"]
    assert time.monotonic() - began < 9
    began = time.monotonic()
    assert queue.receive(10, 1) == []
    assert 0.5 < time.monotonic() - began < 8


def test_groups_keep_their_order_and_wait_for_what_is_undeleted(make: Make) -> None:
    queue = make("q.fifo")
    sent = [(group, str(number)) for number in range(15) for group in ("a", "b", "c")]
    queue.send([Outgoing(body, group=group, deduplication_id=f"{group}{body}") for group, body in sent])
    first = queue.receive(5, 5)
    held = {message.group for message in first}
    others = queue.receive(1000)
    assert held.isdisjoint({message.group for message in others}), "a group with an undeleted message gives nothing"
    queue.delete(first + others)
    found = first + others + drained(queue)
    for group in ("a", "b", "c"):
        assert [message.body for message in found if message.group == group] == [str(number) for number in range(15)]
    assert {message.deduplication_id for message in found} == {group + body for group, body in sent}


def test_a_deduplication_id_is_taken_once(make: Make) -> None:
    queue = make("q.fifo")
    queue.send([Outgoing("x", group="g", deduplication_id="1"), Outgoing("y", group="g", deduplication_id="1")])
    queue.send([Outgoing("z", group="g", deduplication_id="1")])
    assert bodies(drained(queue)) == ["x"]


def test_a_fifo_message_without_a_group_is_misconfigured(make: Make) -> None:
    with pytest.raises(Misconfigured, match=r"^queue q"):
        make("q.fifo").send([Outgoing("x", deduplication_id="1")])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "it is empty"),
        ("a\0b", r"it has U\+0000 at character 2"),
        ("\ufffe", r"U\+FFFE"),
        ("\ud800", r"U\+D800"),
        ("x" * ((1 << 20) + 1), "1048577 bytes, more than 1048576"),
        ("é" * (1 << 19) + "e", "1048577 bytes, more than 1048576"),
    ],
    ids=range(6),
)
def test_what_sqs_does_not_take_is_poison_and_nothing_is_sent(make: Make, body: str, reason: str) -> None:
    queue = make()
    with pytest.raises(Poison, match=reason):
        queue.send([Outgoing("good"), Outgoing(body)])
    assert queue.receive(10) == []


def test_the_largest_messages_go_through(make: Make) -> None:
    queue = make()
    sent = ["é" * (1 << 19), "b" * (1 << 20), "c" * 600_000, "d" * 600_000]
    queue.send([Outgoing(body) for body in sent])
    assert sorted(bodies(queue.receive(10, 5))) == sorted(sent)


def test_several_threads_share_a_queue(make: Make) -> None:
    queue, found, lock = make(), Counter[str](), threading.Lock()
    queue.send([Outgoing(str(number)) for number in range(200)])

    def take() -> None:
        while received := queue.receive(30):
            queue.delete(received)
            with lock:
                found.update(bodies(received))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.update(bodies(drained(queue)))  # a queue may say too early that it is empty
    assert set(found) == set(map(str, range(200)))
    assert found.total() < 220, "a queue may deliver twice, but hardly ever does"


# The fake does on demand what AWS does now and then.


def test_the_fake_delivers_again_on_demand() -> None:
    queue = FakeQueue()
    queue.send([Outgoing("x"), Outgoing("y")])
    first = queue.receive(10)
    queue.expire()
    assert [message.receive_count for message in queue.receive(10)] == [2, 2]
    assert queue.delete(first) == 2
    assert queue.depth().in_flight == 2, "an old receipt deletes nothing"
    queue.duplicate(first[0].message_id)
    newest = queue.receive(10)
    assert (bodies(newest), queue.delete(newest), queue.deleted) == (["x"], 1, ["x"])
    queue.duplicate(first[0].message_id)
    assert bodies(queue.receive(10)) == ["x"]


def test_the_fake_fails_on_demand_and_goes_on() -> None:
    queue = FakeQueue()
    queue.fail(Transient("busy"), Misconfigured("denied"))
    with pytest.raises(Transient):
        queue.send([Outgoing("x")])
    with pytest.raises(Misconfigured):
        queue.receive(1)
    assert queue.receive(1) == []


# Claim checks


@pytest.fixture(params=["ministack", "moto"])
def cloud(request: pytest.FixtureRequest) -> Emulator:
    return request.getfixturevalue({"ministack": "aws"}.get(request.param, request.param))


@pytest.fixture
def large(cloud: Emulator) -> tuple[SqsQueue, Any]:
    """A queue with a bucket for large bodies, and an S3 client."""
    s3, bucket = cloud.client("s3"), f"large-{os.getpid()}-{next(_numbers)}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return sqs_queue(cloud, large_bodies=bucket), s3


def test_what_sqs_does_not_take_goes_by_claim_check(large: tuple[SqsQueue, Any]) -> None:
    queue, s3 = large
    sent = ["x" * ((1 << 20) + 1), "a\0b", "", "small", "é" * (1 << 20), "m" * ((1 << 20) - 10)]
    queue.send([Outgoing(body, {"bus-key": "k"}) for body in sent])
    queue.send([Outgoing(sent[0])])
    found = []
    for message in queue.receive(10, 5):
        pointer = pointer_of(message.body, message.attributes)
        content = queue.fetch(pointer) if pointer else message.body.encode()
        if pointer:
            assert message.attributes["ExtendedPayloadSize"] == str(len(content))
        found.append(content.decode())
    assert Counter(found) == Counter([*sent, sent[0]])
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=queue.large_bodies)["Contents"]]
    assert len(keys) == 5, "the same body is the same object"
    assert all(key.startswith(f"{queue.name}/") for key in keys)


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [
        ("software.amazon.payloadoffloading.PayloadS3Pointer", "ExtendedPayloadSize"),
        ("com.amazon.sqs.javamessaging.MessageS3Pointer", "SQSLargePayloadSize"),
    ],
)
def test_claim_checks_of_amazons_own_clients_are_fetched(large: tuple[SqsQueue, Any], cloud: Emulator, kind: str, attribute: str) -> None:
    queue, s3 = large
    s3.put_object(Bucket=queue.large_bodies, Key="0b6c-uuid", Body="ä".encode())
    body = json.dumps([kind, {"s3BucketName": queue.large_bodies, "s3Key": "0b6c-uuid"}])
    url = cloud.client("sqs").get_queue_url(QueueName=queue.name)["QueueUrl"]
    size = {attribute: {"DataType": "Number", "StringValue": "2"}, "blob": {"DataType": "Binary", "BinaryValue": b"\xff"}}
    cloud.client("sqs").send_message(QueueUrl=url, MessageBody=body, MessageAttributes=size)
    (message,) = queue.receive(10, 5)
    assert message.attributes == {attribute: "2", "blob": "/w=="}
    pointer = pointer_of(message.body, message.attributes)
    assert pointer == Pointer(queue.large_bodies or "", "0b6c-uuid")
    assert queue.fetch(pointer) == "ä".encode()


def test_a_claim_check_leads_only_into_the_queues_own_bucket(large: tuple[SqsQueue, Any], cloud: Emulator) -> None:
    queue, s3 = large
    with pytest.raises(Poison, match="points into bucket 'payroll', but this queue's large_bodies is 'large-"):
        queue.fetch(Pointer("payroll", "salaries.csv"))
    with pytest.raises(Poison, match="this queue has no large_bodies"):
        sqs_queue(cloud).fetch(Pointer("payroll", "salaries.csv"))
    with pytest.raises(Gone, match="not there any more"):
        queue.fetch(Pointer(queue.large_bodies or "", "none"))
    s3.delete_bucket(Bucket=queue.large_bodies)
    with pytest.raises(Misconfigured, match=r"bucket large-.* refused s3:GetObject"):
        queue.fetch(Pointer(queue.large_bodies or "", "none"))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "[1, 2, 3]",
        '["software.amazon.payloadoffloading.PayloadS3Pointer", {}]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": 1, "s3Key": "k"}]',
        '["other.Class", {"s3BucketName": "b", "s3Key": "k"}]',
        '[["x"], {"s3BucketName": "b", "s3Key": "k"}]',
        "[" * 4000,
        '{"a": 1, "b": 2}',
        "[" + "9" * 4090 + "]",
    ],
    ids=range(10),
)
def test_what_is_no_claim_check_is_none(body: str) -> None:
    assert pointer_of(body, {"ExtendedPayloadSize": "5"}) is None


# What goes wrong on the way


def test_a_queue_that_does_not_exist_is_misconfigured(cloud: Emulator) -> None:
    queue = SqsQueue(name="never-made", region="eu-west-1", endpoint_url=cloud.url)
    for attempt in _attempts(queue):
        with pytest.raises(Misconfigured, match=r"queue never-made \(eu-west-1\) does not exist .* on arn:aws:sqs:eu-west-1:\*:never-made"):
            attempt()


def test_a_queue_that_was_deleted_meanwhile_is_misconfigured(cloud: Emulator) -> None:
    queue = sqs_queue(cloud)
    queue.send([Outgoing("x")])
    client = cloud.client("sqs")
    client.delete_queue(QueueUrl=client.get_queue_url(QueueName=queue.name)["QueueUrl"])
    for attempt in _attempts(queue):
        with pytest.raises(
            Misconfigured, match=rf"queue {queue.name} does not exist .*allow sqs:\w+ on arn:aws:sqs:eu-central-1:\d+:{queue.name}"
        ):
            attempt()


def test_a_queue_can_be_named_by_its_url(cloud: Emulator) -> None:
    named = sqs_queue(cloud)
    url = cloud.client("sqs").get_queue_url(QueueName=named.name)["QueueUrl"]
    queue = SqsQueue(name=url, region="eu-central-1", endpoint_url=cloud.url)
    queue.send([Outgoing("x")])
    assert bodies(named.receive(10, 5)) == ["x"]
    assert queue.where == f"queue {named.name} (eu-central-1)"
    aws = SqsQueue(name="https://sqs.eu-west-1.amazonaws.com/123456789012/orders.fifo")
    assert (aws.where, aws.is_fifo) == ("queue orders.fifo (eu-west-1)", True)


def test_denied_access_says_what_to_allow_on_what(environment: pytest.MonkeyPatch) -> None:
    with moto_server(open_calls=4) as emulator:
        iam, sqs = emulator.client("iam"), emulator.client("sqs")
        url = sqs.create_queue(QueueName="orders")["QueueUrl"]
        iam.create_user(UserName="reader")
        allowed = {"Effect": "Allow", "Action": "sqs:GetQueueUrl", "Resource": "*"}
        iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allowed]}))
        keys = iam.create_access_key(UserName="reader")["AccessKey"]
        environment.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
        environment.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
        queue = SqsQueue(name="orders", endpoint_url=emulator.url)
        actions = ("ReceiveMessage", "DeleteMessage", "SendMessage", "GetQueueAttributes")
        for attempt, action in zip(_attempts(queue), actions, strict=True):
            arn = rf"arn:aws:sqs:eu-central-1:{url.split('/')[-2]}:orders"
            with pytest.raises(Misconfigured, match=rf"queue orders: access is denied .*allow sqs:{action} on {arn}") as caught:
                attempt()
            _shows_nothing(caught.value, emulator.url, keys["SecretAccessKey"], keys["AccessKeyId"])


def _attempts(queue: SqsQueue) -> list[Callable[[], object]]:
    message = Received("m", "private body", "r")
    return [lambda: queue.receive(10, 5), lambda: queue.delete([message]), lambda: queue.send([Outgoing("private body")]), queue.depth]


def _shows_nothing(error: BaseException, *secrets: str) -> None:
    """Neither the error nor what a log prints of its causes has an endpoint, a key or a body; no class of botocore's is in it."""
    shown = "".join(traceback.format_exception_only(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert cause is None
    for secret in (CREDENTIALS["AWS_SECRET_ACCESS_KEY"], "private body", *secrets):
        assert secret not in shown


REFUSALS = [
    (400, "com.amazonaws.sqs#RequestThrottled", Transient),
    (400, "ThrottlingException", Transient),
    (400, "com.amazonaws.sqs#OverLimit", Transient),
    (400, "com.amazonaws.sqs#KmsThrottled", Transient),
    (429, "TooManyRequests", Transient),
    (500, "InternalFailure", Transient),
    (503, "ServiceUnavailable", Transient),
    (502, None, Transient),
    (400, "com.amazonaws.sqs#QueueDoesNotExist", Misconfigured),
    (400, "com.amazonaws.sqs#KmsAccessDenied", Misconfigured),
    (403, "AccessDeniedException", Misconfigured),
    (400, "ExpiredTokenException", Misconfigured),
    (403, None, Misconfigured),
    (400, "com.amazonaws.sqs#UnsupportedOperation", Misconfigured),
]


@pytest.mark.parametrize(("status", "code", "kind"), REFUSALS)
def test_what_sqs_refuses_is_sorted_by_what_to_do_next(status: int, code: str | None, kind: type[BusError]) -> None:
    answer = b"<html>proxy</html>" if code is None else json.dumps({"__type": code, "message": "private body"}).encode()
    with _answering(status, answer) as url:
        queue = SqsQueue(name=f"{url}/123456789012/orders", region="eu-west-1", endpoint_url=url)
        for attempt in _attempts(queue):
            with pytest.raises(kind) as caught:
                attempt()
            assert type(caught.value) is kind
            assert "queue orders (eu-west-1)" in str(caught.value)
            _shows_nothing(caught.value, url)


def test_sqs_that_cannot_be_reached_breaks_off_or_answers_nonsense_is_transient() -> None:
    with _answering(200, b"", cut=True) as cut:
        for url in (cut, "http://127.0.0.1:9"):
            for attempt in _attempts(SqsQueue(name=f"{url}/123456789012/orders", endpoint_url=url)):
                with pytest.raises(Transient, match="did not answer") as caught:
                    attempt()
                _shows_nothing(caught.value, url)


def test_retries_are_botocores_own(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_MAX_ATTEMPTS", "2")
    with _answering(503, b"{}", seen := []) as url:
        with pytest.raises(Transient):
            SqsQueue(name=f"{url}/123456789012/orders", endpoint_url=url).depth()
        assert len(seen) == 2


def test_what_was_received_before_a_failure_is_handed_on() -> None:
    messages = [{"MessageId": f"m{number}", "ReceiptHandle": f"r{number}", "Body": "x"} for number in range(BATCH)]
    answers = iter([(200, json.dumps({"Messages": messages}).encode())])
    with _answering(503, b"{}", answers=answers) as url:
        queue = SqsQueue(name=f"{url}/123456789012/orders", endpoint_url=url)
        assert len(queue.receive(1000)) == BATCH
        with pytest.raises(Transient):
            queue.receive(1000)


def test_messages_that_a_batch_refused_are_told(cloud: Emulator) -> None:
    def failed(fault: bool) -> bytes:
        return json.dumps({"Failed": [{"Id": "1", "SenderFault": fault, "Code": "SomeCode", "Message": "private body"}]}).encode()

    for fault, kind in ((True, Misconfigured), (False, Transient)):
        with _answering(200, failed(fault)) as url:
            queue = SqsQueue(name=f"{url}/123456789012/orders", endpoint_url=url)
            with pytest.raises(kind, match="did not take 1 of 2 messages: SomeCode") as caught:
                queue.send([Outgoing("a"), Outgoing("private body")])
            _shows_nothing(caught.value, url)
            assert queue.delete([Received("m", "x", "r")]) == 0


def test_receiving_ends_before_memory_does() -> None:
    big = json.dumps({"Messages": [{"MessageId": "m", "ReceiptHandle": "r", "Body": "x" * (1 << 20)}] * BATCH}).encode()
    with _answering(200, big) as url:
        queue = SqsQueue(name=f"{url}/123456789012/orders", endpoint_url=url, threads=2)
        received = queue.receive(100_000)
        assert RECEIVED_BYTES <= sum(len(message.body) for message in received) < RECEIVED_BYTES + 3 * BATCH * (1 << 20)


def test_receiving_ends_before_the_first_messages_are_visible_again() -> None:
    endless = json.dumps({"Messages": [{"MessageId": "m", "ReceiptHandle": "r", "Body": "x"}] * BATCH}).encode()
    with _answering(200, endless) as url:
        began = time.monotonic()
        assert SqsQueue(name=f"{url}/123456789012/orders", endpoint_url=url, visibility_seconds=8).receive(10_000_000)
        assert time.monotonic() - began < 8


def test_a_large_body_is_not_read_beyond_the_limit() -> None:
    with _answering(200, b"", length=LARGEST_BODY_BYTES + 1) as url:
        queue = SqsQueue(name="q", large_bodies="large", large_bodies_endpoint_url=url)
        with pytest.raises(Poison, match="67108865 bytes, more than 67108864"):
            queue.fetch(Pointer("large", "k"))
    with _answering(200, b"too short", length=100) as url:
        queue = SqsQueue(name="q", large_bodies="large", large_bodies_endpoint_url=url)
        with pytest.raises(Transient, match="bucket large did not answer") as caught:
            queue.fetch(Pointer("large", "k"))
        _shows_nothing(caught.value, url)


@pytest.mark.parametrize("missing", ["credentials", "region"])
def test_what_boto3_lacks_is_misconfigured(environment: pytest.MonkeyPatch, missing: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if missing == "credentials" else ("AWS_DEFAULT_REGION",):
        environment.delenv(name)
    for attempt in _attempts(SqsQueue(name="orders")):
        with pytest.raises(Misconfigured, match=missing):
            attempt()


def test_an_endpoint_that_is_no_url_is_misconfigured_and_not_shown() -> None:
    for attempt in _attempts(SqsQueue(name="orders", endpoint_url="user:secret at nowhere")):
        with pytest.raises(Misconfigured, match="the endpoint is not a URL") as caught:
            attempt()
        _shows_nothing(caught.value, "secret")


def test_an_attribute_that_sqs_does_not_take_is_poison(cloud: Emulator) -> None:
    for value in ("", "a\0"):
        with pytest.raises(Poison, match="does not take attribute 'bus-key'"):
            sqs_queue(cloud).send([Outgoing("x", {"bus-key": value})])


def test_clients_are_made_once_and_not_shared_with_a_forked_child(cloud: Emulator, environment: pytest.MonkeyPatch) -> None:
    import boto3

    made = []
    real = boto3.Session.client
    environment.setattr(boto3.Session, "client", lambda self, *args, **more: made.append(args) or real(self, *args, **more))
    url = cloud.client("sqs").create_queue(QueueName="clients")["QueueUrl"]
    made.clear()
    threads = [threading.Thread(target=SqsQueue(name=url, endpoint_url=cloud.url).depth) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    if (child := os.fork()) == 0:
        from resources.aws_clients import _clients

        os._exit(len(_clients))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextmanager
def _answering(
    status: int,
    body: bytes,
    seen: list[bytes] | None = None,
    *,
    answers: Iterator[tuple[int, bytes]] | None = None,
    length: int | None = None,
    cut: bool = False,
) -> Iterator[str]:
    """A service that gives ``answers`` first, then always the same one; ``cut``: it hangs up instead."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if seen is not None:
                seen.append(content)
            if cut:
                self.close_connection = True
                return
            code, answer = next(answers or iter(()), (status, body))
            self.send_response(code)
            self.send_header("Content-Length", str(len(answer) if length is None else length))
            self.end_headers()
            self.wfile.write(answer)
            self.close_connection = length is not None

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
