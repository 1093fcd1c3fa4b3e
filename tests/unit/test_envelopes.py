"""Envelopes: what is inside, under which identity, and that nothing a stranger sends makes it raise."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resources.depot.mail import Arrival
from resources.errors import Gone, Misconfigured, Poison, Transient
from resources.jsonlines import loads_exact
from resources.queue_seam import Pointer, Received
from sensors.envelopes import MAX_RECORDS, NO_GROUP, Decode, carried, unwrap
from sensors.json_text import Digits, NotJson, member, parse
from tests.fakes import a_message

ORDER = '{"order": {"id": 7, "sum": 12.50}, "a.b": "x"}'
TIME = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def sns(message: str, **more: Any) -> str:
    told = {"Type": "Notification", "MessageId": "n-1", "TopicArn": "arn:aws:sns:eu-west-1:1:t", "Timestamp": "2026-01-02T03:04:05.678Z"}
    return json.dumps({**told, "Message": message, **more})


def event(detail: str, kind: str = "Order Placed", source: str = "shop") -> str:
    head = {"version": "0", "id": "e-1", "detail-type": kind, "source": source, "time": "2026-01-02T03:04:05.678Z", "region": "eu-west-1"}
    return json.dumps(head)[:-1] + f', "detail": {detail}, "resources": []}}'


def record(key: str = "in/ä b+c.csv", name: str = "ObjectCreated:Put", **more: Any) -> dict[str, Any]:
    about = {"key": quote_plus(key), "size": 12, "eTag": "e7", "sequencer": "0055AED6", **more}
    s3 = {"s3SchemaVersion": "1.0", "bucket": {"name": "landing", "arn": "arn:aws:s3:::landing"}, "object": about}
    return {"eventVersion": "2.1", "eventSource": "aws:s3", "eventTime": "2026-01-02T03:04:05.678Z", "eventName": name, "s3": s3}


def notice(*records: Any) -> str:
    return json.dumps({"Records": records})


def s3_event(key: str = "in/ä b+c.csv", kind: str = "Object Created") -> str:
    about = {"key": key, "size": 12, "etag": "e7", "sequencer": "0055AED6"}
    return event(json.dumps({"version": "0", "bucket": {"name": "landing"}, "object": about, "reason": "PutObject"}), kind, "aws.s3")


def one(body: str, decode: Decode = "json", identity: str | None = None, **more: Any) -> Arrival:
    (arrival,) = unwrap(a_message(body, **more), decode, identity)
    return arrival


@pytest.mark.parametrize(
    ("body", "key", "envelope", "event_at"),
    [
        (ORDER, "sqs:m-1", "none", None),
        (sns(ORDER), "sns:n-1", "sns", TIME),
        (event(ORDER), "event:e-1", "eventbridge", TIME),
        (sns(event(ORDER)), "event:e-1", "sns+eventbridge", TIME),
    ],
)
def test_json_comes_out_of_every_envelope_exactly_as_it_was_written(body: str, key: str, envelope: str, event_at: datetime | None) -> None:
    arrival = one(body)
    assert (arrival.key, arrival.body, arrival.problem, arrival.ignored) == (key, ORDER.encode(), None, None)
    assert (arrival.event_at, arrival.attributes["envelope"], arrival.attributes["message_id"]) == (event_at, envelope, "m-1")
    assert arrival.sent_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_what_only_looks_like_an_envelope_is_data() -> None:
    for body in ('{"Type": "Notification"}', '{"TopicArn": "x", "Message": "y"}', '{"detail": 1, "source": "x"}', '[{"Type":1}]', "7"):
        assert (one(body).key, one(body).body) == ("sqs:m-1", body.encode())
    inner = sns(sns(ORDER))
    assert one(inner).body == sns(ORDER).encode(), "an envelope in its own like is data"


def test_text_is_taken_out_of_envelopes_and_else_left_alone() -> None:
    for inside in ('plain, "quoted"', "", "{not json", '{"a": NaN}', '"TopicArn"'):
        assert one(inside, "text").body == inside.encode()
    assert one(sns("a|b\n1|2"), "text").body == b"a|b\n1|2"
    assert one(event("12.50"), "text").body == b"12.50"


OBJECT = {
    "bucket": "landing",
    "key": "in/ä b+c.csv",
    "version": None,
    "etag": "e7",
    "size": 12,
    "sequencer": "0055AED6",
}


@pytest.mark.parametrize("body", [notice(record()), sns(notice(record())), s3_event(), sns(s3_event())])
def test_an_object_is_the_same_on_every_way_that_s3_tells_of_it(body: str) -> None:
    arrival = one(body, "s3")
    assert (arrival.key, arrival.problem, arrival.ignored) == ("landing/in/ä b+c.csv//0055AED6/e7", None, None)
    assert (arrival.subject, arrival.sequencer, arrival.event_at) == ("landing/in/ä b+c.csv", "0055AED6", TIME)
    told = json.loads(arrival.body)
    assert datetime.fromisoformat(told.pop("event_time")) == TIME
    assert told.pop("event") in ("ObjectCreated:Put", "Object Created")
    assert told == OBJECT


def test_each_record_is_an_arrival_and_a_bad_one_spoils_no_other() -> None:
    bad = [record(key=""), {"eventSource": "aws:sqs"}, 7, None, record() | {"s3": []}]
    first, second, *rest = unwrap(a_message(notice(record("a"), record("b", versionId="v1"), *bad)), "s3")
    assert [first.key, second.key] == ["landing/a//0055AED6/e7", "landing/b/v1/0055AED6/e7"]
    assert [arrival.key for arrival in rest] == [f"sqs:m-1#{place}" for place in range(2, 7)]
    assert {arrival.problem for arrival in rest} == {"not an S3 event with a bucket and a key (inside s3)"}
    assert b"landing/a" not in b"".join(arrival.body for arrival in rest)


def test_a_key_that_is_not_url_encoded_text_is_a_problem() -> None:
    broken = record()
    broken["s3"]["object"]["key"] = "a%ff"
    assert one(notice(broken), "s3").problem is not None
    broken["s3"]["object"]["key"] = "100%+sure%"
    assert json.loads(one(notice(broken), "s3").body)["key"] == "100% sure%"


def test_more_records_than_s3_would_send_are_one_problem() -> None:
    assert len(unwrap(a_message(notice(*[record()] * MAX_RECORDS)), "s3")) == MAX_RECORDS
    assert one(notice(*[{}] * (MAX_RECORDS + 1)), "s3").problem == f"{MAX_RECORDS + 1} records in one message, more than {MAX_RECORDS}"


@pytest.mark.parametrize("body", ["{}", "[]", ORDER, '{"Records": []}', '{"Records": {}}', "null", event(ORDER)])
def test_what_is_no_s3_event_is_a_problem_and_keeps_its_body(body: str) -> None:
    arrival = one(body, "s3")
    assert "not an S3 event" in str(arrival.problem)
    assert arrival.body in (body.encode(), ORDER.encode())


def test_s3s_test_message_is_ignored() -> None:
    body = '{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2026-01-02T03:04:05.678Z","Bucket":"landing","HostId":"y"}'
    for message, decode in ((body, "s3"), (sns(body), "s3"), (body, "json")):
        assert str(one(message, decode).ignored).startswith("s3:TestEvent")


@pytest.mark.parametrize(
    "body", [notice(record(name="ObjectRemoved:Delete")), s3_event(kind="Object Deleted"), notice(record(name="ObjectTagging:Put"))]
)
def test_events_that_bring_no_object_are_ignored_and_say_which(body: str) -> None:
    arrival = one(body, "s3")
    assert (arrival.problem, arrival.key) == (None, "landing/in/ä b+c.csv//0055AED6/e7")
    assert str(arrival.ignored).endswith(", which brings no object")
    assert "Object" in str(arrival.ignored)


def test_writes_without_a_sequencer_are_told_apart() -> None:
    bare = [record(sequencer=None, eTag=tag) for tag in ("e1", "e2")]
    assert len({arrival.key for arrival in unwrap(a_message(notice(*bare)), "s3")}) == 2
    assert {arrival.sequencer for arrival in unwrap(a_message(notice(*bare)), "s3")} == {None}


def test_writes_to_which_an_emulator_gives_one_sequencer_are_told_apart() -> None:
    """LocalStack gives every write the same; moto's events in EventBridge do, and write eTag, in quotes."""
    assert len({arrival.key for arrival in unwrap(a_message(notice(record(eTag="e1"), record(eTag="e2"))), "s3")}) == 2
    about = {"key": "a", "size": 1, "eTag": '"e9"', "sequencer": "617f08299329d189"}
    arrival = one(event(json.dumps({"bucket": {"name": "landing"}, "object": about}), "Object Created", "aws.s3"), "s3")
    assert (arrival.key, json.loads(arrival.body)["etag"]) == ("landing/a//617f08299329d189/e9", "e9")


def test_the_author_can_name_the_identity() -> None:
    for body in (ORDER, sns(ORDER), event(ORDER)):
        assert one(body, identity="order.id").key == "body:7"
        assert one(body, identity="a.b").key == "body:x"
        assert one(body, identity="@deduplication_id", deduplication_id="d-1").key == "deduplication:d-1"
    assert one('{"id": 123456789012345678901234567890.10}', identity="id").key == "body:123456789012345678901234567890.10"
    assert one(notice(record()), "s3", "order.id").key == "landing/in/ä b+c.csv//0055AED6/e7"


@pytest.mark.parametrize("body", ["{}", '{"order": 1}', '{"order": {"id": null}}', '{"order": {"id": ""}}', '{"order": {"id": [1]}}', "7"])
def test_a_message_without_the_identity_that_the_author_named_is_a_problem(body: str) -> None:
    arrival = one(body, identity="order.id")
    assert arrival.problem == "there is no text or number at 'order.id', which identifies a message"
    assert (arrival.key, arrival.body) == ("sqs:m-1", body.encode())
    assert "deduplication" in str(one(body, identity="@deduplication_id").problem)


@pytest.mark.parametrize(
    ("decode", "body"), [("json", sns(event(ORDER))), ("s3", sns(notice(record()))), ("text", sns("x")), ("json", ORDER)]
)
def test_what_was_sent_to_the_dead_letters_comes_back_as_the_same(decode: Decode, body: str) -> None:
    before = one(body, decode, group="g", receive_count=1)
    again = a_message(before.body.decode(), carried(before.key, 3, before.event_at, before.group), message_id="another", group="g")
    (after,) = unwrap(again, decode, "order.id" if decode == "json" else None)
    assert [after.key, after.body, after.event_at] == [before.key, before.body, before.event_at]
    assert [after.subject, after.sequencer, after.group, after.problem] == [before.subject, before.sequencer, "g", None]
    assert after.attributes["message_attributes"]["bus-generation"] == "3"
    assert (before.generation, after.generation) == (None, 3)


@pytest.mark.parametrize("group", ["g", "none", "a/b: 50% *", None])
@pytest.mark.parametrize("fifo", [False, True])
def test_a_message_has_the_same_group_after_the_dead_letters_whatever_their_queue_is(group: str | None, fifo: bool) -> None:
    """A standard queue knows no group; on a FIFO one each message must have one."""
    attributes = carried("k", 1, None, group)
    assert all(value.isascii() and value.isprintable() for value in attributes.values())
    assert one("{}", attributes=attributes, group=(group or NO_GROUP) if fifo else None).group == group


def test_a_group_that_was_not_carried_is_the_one_that_the_queue_tells() -> None:
    assert one("{}", attributes=carried("k", 1, None, None), group="g").group == "g"


def test_no_key_looks_like_the_receipt_of_a_trip() -> None:
    forged = one("{}", attributes={"bus-key": "trip:1"})
    assert (forged.key, forged.problem) == ("key:trip:1", None)


def test_an_identity_with_a_nul_is_a_problem() -> None:
    """It would be kept as the four characters that stand for it, which may be in somebody else's identity."""
    assert "NUL" in str(one('{"id": "a\\u0000b"}', identity="id").problem)


def test_an_envelope_that_was_data_stays_data_on_the_way_back() -> None:
    before = one(sns(sns(ORDER)))
    (after,) = unwrap(a_message(before.body.decode(), carried(before.key, 1, None, None)), "json")
    assert (after.key, after.body) == (before.key, before.body)


@given(st.text(st.characters(exclude_categories=())), st.none() | st.datetimes(timezones=st.just(UTC)))
@example("b/50%25 off/é\x00\n", None)
def test_any_key_can_be_carried(key: str, event_at: datetime | None) -> None:
    attributes = carried(key, 1, event_at, None)
    assert all(value.isascii() and value.isprintable() for value in attributes.values())
    (arrival,) = unwrap(a_message("x", attributes), "text")
    expected = key.encode(errors="replace").decode() or "sqs:m-1"
    assert (arrival.key, arrival.event_at) == (expected, event_at if key else None)


POINTER = '["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": "b", "s3Key": "k"}]'
OLD_POINTER = '["com.amazon.sqs.javamessaging.MessageS3Pointer", {"s3BucketName": "b", "s3Key": "k"}]'
BY_SNS = sns(POINTER, MessageAttributes={"ExtendedPayloadSize": {"Type": "Number", "Value": "9"}})


def fetched(body: str, content: bytes | Exception, decode: Decode = "json", **attributes: str) -> Arrival:
    def fetch(pointer: Pointer) -> bytes:
        assert pointer == Pointer("b", "k")
        if isinstance(content, Exception):
            raise content
        return content

    (arrival,) = unwrap(a_message(body, attributes), decode, fetch=fetch)
    return arrival


@pytest.mark.parametrize(
    ("body", "attributes", "key"),
    [
        (POINTER, {"ExtendedPayloadSize": "9"}, "sqs:m-1"),
        (OLD_POINTER, {"SQSLargePayloadSize": "9"}, "sqs:m-1"),
        (BY_SNS, {}, "sns:n-1"),
        (POINTER, {"ExtendedPayloadSize": "9", "bus-key": "body:7"}, "body:7"),
    ],
)
def test_a_claim_check_is_exchanged_for_the_body_and_changes_nothing_else(body: str, attributes: dict[str, str], key: str) -> None:
    for decode in ("json", "text"):
        arrival = fetched(body, b"\xef\xbb\xbf" + ORDER.encode(), decode, **attributes)
        assert (arrival.key, arrival.body, arrival.problem) == (key, ORDER.encode(), None)
        gone = fetched(body, Gone("it is not there any more", place="s3://b/k"), decode, **attributes)
        assert (gone.key, gone.problem) == (key, "it is not there any more" + (" (inside sns)" if body == BY_SNS else ""))


def test_an_envelope_may_wait_in_a_bucket() -> None:
    assert fetched(POINTER, sns(event(ORDER)).encode(), ExtendedPayloadSize="9").key == "event:e-1"
    assert fetched(POINTER, notice(record()).encode(), "s3", ExtendedPayloadSize="9").key == "landing/in/ä b+c.csv//0055AED6/e7"


def test_a_body_in_a_bucket_that_is_no_text_is_a_problem_and_one_that_cannot_be_had_now_is_raised() -> None:
    assert "no text in UTF-8" in str(fetched(POINTER, b"\xff", ExtendedPayloadSize="1").problem)
    for error in (Transient("throttled"), Misconfigured("access is denied")):
        with pytest.raises(type(error)):
            fetched(POINTER, error, ExtendedPayloadSize="9")


def test_what_only_looks_like_a_claim_check_is_data() -> None:
    assert one(POINTER, attributes={"ExtendedPayloadSize": "5"}).problem == "the body waits in a bucket and was not fetched"
    assert one(POINTER).problem is None, "without the attribute it is an ordinary list"
    assert one(sns(POINTER)).body == POINTER.encode()


def test_a_request_to_confirm_a_subscription_is_no_data() -> None:
    body = sns("You have chosen to subscribe", Type="SubscriptionConfirmation", Token="t")
    assert "SubscriptionConfirmation; confirm" in str(one(body).problem)


SECRET = "4111-1111"
NASTY = {
    "": "not JSON: Expecting value at character 1",
    f'{{"card": "{SECRET}", x}}': "not JSON: Expecting property name enclosed in double quotes at character 23",
    f'"{SECRET}': "not JSON: Unterminated string starting at at character 1",
    f"{SECRET}": "not JSON: Extra data at character 5",
    '{"a": NaN}': "not JSON: NaN is no JSON value",
    "-Infinity": "not JSON: -Infinity is no JSON value",
    '{"a": "\\ud800"}': "not readable: half of a surrogate pair is no character",
    "[" * 101 + "]" * 101: "not JSON: nested deeper than 100 levels",
    "[" * 500_000: "not JSON: nested deeper than 100 levels",
    '{"a":' * 100_000: "not JSON: nested deeper than 100 levels",
    '"a\tb"': "not JSON: Invalid control character at at character 3",
    "\ufeff\ufeff{}": "not JSON: Expecting value at character 1",
}


@pytest.mark.parametrize("body", NASTY, ids=range(len(NASTY)))
def test_a_problem_says_what_and_where_and_quotes_nothing(body: str) -> None:
    for message, where in ((body, ""), (sns(body), " (inside sns)")):
        if body or not where:
            arrival = one(message)
            assert arrival.problem == NASTY[body] + where
            assert arrival.body == body.removeprefix("\ufeff").encode()
            assert SECRET[:4] not in str(arrival.problem)
            assert SECRET not in repr(arrival)


@pytest.mark.parametrize(
    "body",
    [
        '{"a": 1, "a": 2}',
        '{"a": ' + "9" * 100_000 + "}",
        '{"a": 1e999}',
        '"\\u0000"',
        "[" * 99 + "]" * 99,
        '{"a": "' + "x" * (1 << 20) + '"}',
        "[" + "[]," * 300_000 + "[]]",
        '{"a": "\\ud83d\\ude00 \u202e \U0010ffff"}',
    ],
    ids=range(8),
)
def test_odd_but_legal_json_is_taken_as_it_is(body: str) -> None:
    for message in (body, sns(body), event(body), "\ufeff" + body):
        arrival = one(message)
        assert (arrival.problem, arrival.body) == (None, body.encode())


def test_half_of_a_surrogate_pair_is_a_problem_for_text_too() -> None:
    arrival = one("a\ud800b", "text")
    assert "half of a surrogate pair" in str(arrival.problem)
    assert arrival.body == b"a\xed\xa0\x80b"


def test_times_that_are_none_are_left_out() -> None:
    for time in ("yesterday", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", 7, None, [], "2026-13-01", ""):
        assert one(sns(ORDER, Timestamp=time)).event_at is None
    assert one(sns(ORDER, Timestamp="2026-01-02T03:04:05")).event_at == TIME.replace(microsecond=0)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()))
ANY_JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
NAMES = [
    "Type",
    "MessageId",
    "TopicArn",
    "Message",
    "Timestamp",
    "detail-type",
    "source",
    "id",
    "detail",
    "time",
    "Records",
    "Service",
    "Event",
]
NAMES += [
    "eventSource",
    "eventName",
    "eventTime",
    "s3",
    "bucket",
    "name",
    "object",
    "key",
    "sequencer",
    "versionId",
    "size",
    "eTag",
    "Subject",
]
VALUES = ["Notification", "aws:s3", "aws.s3", "Object Created", "ObjectCreated:Put", "a%2", "%ff", "Amazon S3", "SubscriptionConfirmation"]
LOOKALIKES = st.recursive(
    SCALARS | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner | inner.map(json.dumps), max_size=8),
    max_leaves=30,
)
BODIES = st.text(st.characters(exclude_categories=())) | ANY_JSON.map(json.dumps) | LOOKALIKES.map(json.dumps)
BODIES |= st.binary().map(lambda content: content.decode(errors="surrogateescape"))
BODIES |= st.sampled_from([notice(record()), sns(notice(record())), sns(event(ORDER))]).flatmap(
    lambda body: st.integers(0, len(body)).map(lambda cut: body[:cut])
)


@given(
    BODIES,
    st.sampled_from(["json", "text", "s3"]),
    st.sampled_from([None, "id", "detail.id", "@deduplication_id", "", "."]),
    st.dictionaries(st.sampled_from(["bus-key", "bus-event-at", "ExtendedPayloadSize"]), st.text(st.characters(exclude_categories=()))),
)
def test_nothing_makes_it_raise_and_redelivery_changes_nothing(
    body: str, decode: Decode, identity: str | None, attributes: dict[str, str]
) -> None:
    first = unwrap(Received("m-1", body, "r-1", attributes=attributes), decode, identity)
    again = unwrap(Received("m-1", body, "r-2", attributes=attributes, receive_count=2), decode, identity)
    assert first == again
    assert len({arrival.key for arrival in first}) <= len(first) >= 1
    for arrival in first:
        assert arrival.key
        assert isinstance(arrival.body, bytes)
        json.dumps(dict(arrival.attributes))
        if decode != "text" and not arrival.problem and not arrival.ignored:
            loads_exact(arrival.body.decode())


@given(BODIES)
@example("[" * 100 + "]" * 100)
@example("[" * 101 + "]" * 101)
def test_it_takes_what_reading_the_rows_takes(text: str) -> None:
    try:
        expected = loads_exact(text)
        text.encode()
    except (Poison, UnicodeEncodeError):
        with pytest.raises(NotJson):
            parse(text)
    else:
        assert parse(text) == expected


@given(st.dictionaries(st.text(), ANY_JSON, min_size=1, max_size=4), st.sampled_from([None, 2]))
def test_a_member_is_found_as_it_was_written(told: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(told, indent=indent, allow_nan=True)
    try:
        parse(text)
    except NotJson:
        return
    for name, value in told.items():
        assert json.loads(member(text, name)) == value
    assert member('{"a": 1, "b": {"a": 2}, "a" : 3.0 }', "a") == "3.0"


def test_numbers_keep_their_digits() -> None:
    assert parse("[1.50, -0, 1e5]") == [Digits("1.50"), Digits("-0"), Digits("1e5")]


def test_it_needs_neither_dagster_nor_boto3() -> None:
    code = (
        "import sys, sensors.envelopes; print([m for m in ('dagster', 'boto3', 'botocore', 'pyarrow', 'sqlalchemy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
