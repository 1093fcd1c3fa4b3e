"""The post office's code location (``tests/acceptance/post``) from outside: letters are sent, its databases read with SQL of its own."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bus_up import REPOSITORY
from tests.emulators import Emulator
from tests.webserver import outside_environment, until

CODE = REPOSITORY / "tests" / "acceptance" / "post"
MODULE = "post_office.definitions"
DELIVERED_SECONDS = 90


@dataclass
class Post:
    """A queue of its own on ``cloud``, and everything else below ``home``. ``code`` is the folder that its module is imported from."""

    home: Path
    cloud: Emulator
    code: Path = CODE
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sqs = self.cloud.client("sqs")
        self._queue = self._sqs.create_queue(QueueName="letters")["QueueUrl"]

    @property
    def environment(self) -> dict[str, str]:
        here = {"BUS_HOME": str(self.home), "BUS_MODULE": MODULE, "PYTHONDONTWRITEBYTECODE": "1"}
        return {**outside_environment(REPOSITORY, self.code), **self.cloud.environment, **here}

    def send(self, *ids: str) -> None:
        """Letters of these ids; one that was sent before is the same message again."""
        for start in range(0, len(ids), 10):
            entries = [{"Id": str(n), "MessageBody": json.dumps({"id": one})} for n, one in enumerate(ids[start : start + 10])]
            assert not self._sqs.send_message_batch(QueueUrl=self._queue, Entries=entries).get("Failed")
        self.sent += [one for one in dict.fromkeys(ids) if one not in self.sent]

    def on_queue(self) -> tuple[int, int]:
        """How many messages wait there, and how many are in flight."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        found = self._sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=list(names))["Attributes"]
        return int(found[names[0]]), int(found[names[1]])

    # What the next run that sorts a letter meets: 'hold', 'deaf' or 'break', as the code location says

    def prepare(self, what: str, letter: str) -> None:
        (self.home / f"{what} {letter}").touch()

    def has_met(self, what: str, letter: str) -> bool:
        return (self.home / f"{what} {letter} met").exists()

    def release(self, what: str, letter: str) -> None:
        """A run that is held up goes on."""
        (self.home / f"{what} {letter} met").unlink()

    # What is there

    def rows(self, database: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Of 'depot' or 'warehouse'; none where there is no such table yet."""
        with closing(sqlite3.connect(self.home / f"{database}.db", timeout=30)) as connection:
            try:
                return connection.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                assert "no such table" in str(error), error
                return []

    def landed(self) -> list[tuple[str, int]]:
        """Id and version of the code that sorted it, of each row of the table, in order of their ids."""
        return self.rows("warehouse", "SELECT id, version FROM log ORDER BY id, version")

    def states(self) -> Counter[str]:
        return Counter(dict(self.rows("depot", "SELECT state, count(*) FROM depot_messages GROUP BY state")))

    def trip(self, letter: str) -> str:
        """The trip that the letter is aboard of, or was last."""
        return self.rows("depot", "SELECT trip FROM depot_messages WHERE key = ?", f"body:{letter}")[0][0]

    def attempts(self, letter: str) -> list[tuple[str, str, str]]:
        """Run, outcome and kind of each attempt at that trip, in their order."""
        return self.rows("depot", "SELECT run, outcome, kind FROM depot_attempts WHERE trip = ? ORDER BY attempt", self.trip(letter))

    def until_delivered(self) -> None:
        """Wait until every letter that was sent is."""
        until(lambda: self.states() == {"delivered": len(self.sent)}, f"{len(self.sent)} letters are delivered", DELIVERED_SECONDS)

    def unlike_the_oracle(self) -> Counter[str]:
        """What is in the table too often (positive) or not often enough: nothing, if all is well."""
        found = Counter(one for one, _ in self.landed())
        found.subtract(self.sent)
        return Counter({one: number for one, number in found.items() if number})
