"""The demo's story: a year of flights lands in a bucket, file by file, and everything that can go wrong with messages does.

One file is cut in the middle, one notification comes twice, one had been given up by an earlier consumer and is redriven from the
dead letters. At the end every flight is in the warehouse once, or waits with its reasons. Each telling has a folder of its own in the
bucket, so the demo can be told again.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus_assets.demo.world import MONTHS
from bus_assets.settings import settings
from resources.depot.store import Depot
from resources.errors import Transient

if TYPE_CHECKING:
    from resources.depot.mail import Message

BUCKET, QUEUE, DEAD_LETTERS = "flights-landing", "flight-files", "flight-files-dead"
ROUTE = "flights"
LEAST_MONTHS = 3
"""One is delivered twice, one was given up by an earlier consumer, one is cut: the first and the last two of those that land."""
PATIENCE_SECONDS = 600
LOOK_SECONDS = 0.5

Tell = Callable[[str], None]


@dataclass
class Bucket:
    """The landing bucket and its queues on the cloud that the environment names; ``folder`` is this telling's own."""

    folder: str
    s3: Any
    sqs: Any
    urls: dict[str, str] = field(default_factory=dict)

    def open(self) -> None:
        """Make bucket and queues, as far as they are missing. Nothing tells of objects yet."""
        here = settings()
        if BUCKET not in {bucket["Name"] for bucket in self.s3.list_buckets()["Buckets"]}:
            self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": here.region})
        self.urls = {name: self.sqs.create_queue(QueueName=name)["QueueUrl"] for name in (QUEUE, DEAD_LETTERS)}

    def tell_of_objects(self) -> None:
        """From now on S3 sends a message for each file that lands."""
        arn = self.sqs.get_queue_attributes(QueueUrl=self.urls[QUEUE], AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        told = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}
        self.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": [told]})

    def be_silent(self) -> None:
        self.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})

    def land(self, name: str, content: bytes) -> str:
        """Put an object; its ETag."""
        return self.s3.put_object(Bucket=BUCKET, Key=f"{self.folder}/{name}", Body=content)["ETag"].strip('"')

    def notify(self, queue: str, name: str, etag: str, size: int, sequencer: str, at: str | None = None) -> None:
        """Send what S3 would: for a consumer that gave up, and for a second delivery."""
        told = {"key": f"{self.folder}/{name}", "size": size, "eTag": etag, "sequencer": sequencer}
        record = {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "eventTime": at or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "s3": {"bucket": {"name": BUCKET}, "object": told},
        }
        self.sqs.send_message(QueueUrl=self.urls[queue], MessageBody=json.dumps({"Records": [record]}))


def bucket(environment: Mapping[str, str] = os.environ) -> Bucket:
    """On the cloud that ``environment`` names, whose keys it has, or boto3 finds."""
    import boto3

    keys = {name: environment.get(name.upper()) for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")}
    session, folder = boto3.Session(region_name=settings().region, **keys), datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    s3, sqs = (session.client(name, endpoint_url=environment.get("AWS_ENDPOINT_URL") or None) for name in ("s3", "sqs"))
    return Bucket(folder, s3, sqs)


def prepare(environment: Mapping[str, str]) -> None:
    """Make bucket and queues, before the route's sensor looks for them."""
    bucket(environment).open()


def tell_story(landing: Path, redrive: Callable[[], None], tell: Tell, months: int = len(MONTHS)) -> list[str]:
    """Play it on the cloud that is up; the ids of the runs that drove it. :class:`Transient` if it does not come to its end in time.

    ``redrive`` boards what lies among the dead letters again. ``months``: so many of the year's first land, at least :data:`LEAST_MONTHS`.
    """
    twice, *others, given_up, cut = MONTHS[:months]
    place, depot = bucket(), Depot(settings().depot_url)
    watch = Watch(depot, place.folder, tell)
    files = {month: (landing / f"flights-2013-{month}.csv").read_bytes() for month in MONTHS[:months]}
    place.open()
    place.be_silent()
    left = f"flights-2013-{given_up}.csv"
    etag = place.land(left, files[given_up])
    place.notify(DEAD_LETTERS, left, etag, len(files[given_up]), "00000000000000A1")
    place.tell_of_objects()
    tell(f"{left} landed before; an earlier consumer gave its message up: it is among the dead letters")
    for month in (twice, *others):
        place.land(f"flights-2013-{month}.csv", files[month])
    whole = gzip.compress(files[cut], 1, mtime=0)
    place.land(f"flights-2013-{cut}.csv.gz", whole[: len(whole) // 2])
    tell(f"{months - 1} files land in s3://{BUCKET}/{place.folder}; the one of month {cut} is cut in the middle")
    watch.until(delivered=months - 2, quarantined=1)

    first = watch.message(f"flights-2013-{twice}.csv")
    said = json.loads(first.body or b"{}")
    place.notify(QUEUE, f"flights-2013-{twice}.csv", said["etag"], said["size"], said["sequencer"], said["event_time"])
    tell(f"the message of month {twice} is delivered a second time")
    watch.until_duplicate(first.id)

    tell("the dead letters are redriven: bus redrive flights --from-dead-letters")
    redrive()
    tell(f"month {cut} is sent again, whole")
    place.land(f"flights-2013-{cut}.csv", files[cut])
    watch.until(delivered=months, quarantined=1)
    return watch.runs()


@dataclass
class Watch:
    """What the depot says of this telling's messages, told as it changes."""

    depot: Depot
    folder: str
    tell: Tell
    told: set[tuple[int, str]] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def until(self, **wanted: int) -> None:
        """Until at least so many messages are in those states, and none waits or rides."""
        for messages in self._looks(", ".join(f"{number} {state}" for state, number in wanted.items())):
            states = [message.state for message in messages]
            if all(states.count(state) >= number for state, number in wanted.items()) and not {"waiting", "aboard"} & set(states):  # pyright: ignore[reportArgumentType]
                return

    def until_duplicate(self, message: int) -> None:
        for messages in self._looks("a duplicate"):
            if any(found.id == message and found.duplicates for found in messages):
                self.tell("  … and is known: counted as a duplicate, nothing is done twice")
                return

    def message(self, name: str) -> Message:
        return next(message for message in self._messages() if message.subject == f"{BUCKET}/{self.folder}/{name}")

    def runs(self) -> list[str]:
        """The runs that delivered, in the order of their trips."""
        trips = dict.fromkeys(message.trip for message in self._messages() if message.trip)
        attempts = [self.depot.newest_attempt(trip) for trip in sorted(trips)]
        return [attempt.run for attempt in attempts if attempt]

    def _looks(self, wanted: str) -> Iterator[Sequence[Message]]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            messages = self._messages()
            self._report(messages)
            yield messages
            time.sleep(LOOK_SECONDS)
        raise Transient(f"waited {PATIENCE_SECONDS} s for {wanted} in vain; `bus doctor` says what is wrong, logs/up.log has the details")

    def _messages(self) -> list[Message]:
        found = self.depot.inbox.messages(ROUTE, limit=1_000)
        return [message for message in found if f"/{self.folder}/" in (message.subject or "")]

    def _report(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if (message.id, message.state) in self.told:
                continue
            self.told.add((message.id, message.state))
            name = (message.subject or message.key).rpartition("/")[2]
            more = {"aboard": f"rides in trip {message.trip}", "delivered": f"{message.rows_rejected:,} rows rejected"}
            why = more.get(message.state, message.error or "")
            self.tell(f"  {time.monotonic() - self.began:5.1f} s  {name:<24} {message.state:<12} {why}")


def on_stdout(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
