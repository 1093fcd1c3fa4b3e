"""Letters → an append-only table without a key, so that whatever comes twice shows. The environment says where everything is.

A file in BUS_HOME meets the next run that sorts that letter, and no other: ``break LETTER`` makes it fail, ``hold LETTER`` holds it up
as long as there is a file ``hold LETTER met``, and one held by ``deaf LETTER`` does not even hear when it is told to end.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bus_assets import Contract, DropOff, Field, Json, Queue, Route, Table, Transform, build_definitions
from bus_assets.settings import settings
from resources.database import Database
from resources.queue import SqsQueue

VERSION = 1
HERE = settings()

LETTER = Contract((Field("id", required=True),))
SORTED = Contract((Field("id", required=True), Field("version", "integer")))


def sort_letters(messages: Any) -> Any:
    for letter in messages["id"]:
        if meets(f"break {letter}"):
            raise ValueError("a letter got stuck")
        if meets(f"hold {letter}"):
            wait_while(HERE.home / f"hold {letter} met")
        if meets(f"deaf {letter}"):
            while (HERE.home / f"deaf {letter} met").exists():
                with suppress(BaseException):
                    wait_while(HERE.home / f"deaf {letter} met")
    return messages.assign(version=VERSION)


def meets(wanted: str) -> bool:
    """Whether somebody wants it and nobody was before us: a rename succeeds once."""
    try:
        (HERE.home / wanted).rename(HERE.home / f"{wanted} met")
    except FileNotFoundError:
        return False
    return True


def wait_while(there: Path) -> None:
    while there.exists():
        time.sleep(0.02)


letters = Route(
    name="letters",
    triggers=(Queue("letters", Json(LETTER), identity="id", batch=50),),
    stops=(Transform("sorted", sort_letters, SORTED), DropOff("log", Table("warehouse", "log", create=True), of="sorted")),
)

ROUTES = (letters,)
defs = build_definitions(
    ROUTES, {"letters": SqsQueue(name="letters", endpoint_url=HERE.cloud_url), "warehouse": Database(url=HERE.warehouse_url)}
)
