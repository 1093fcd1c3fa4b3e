"""The SQL of what is decided about messages, kept as long as the message is. Every function runs in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import sqlalchemy as sa

from resources.depot.mail import Decided, Decision
from resources.depot.many import among
from resources.depot.quarantine import UPDATE_IDS, chunks
from resources.depot.schema import decisions, messages


def keep(connection: sa.Connection, of: sa.ColumnElement[bool], what: Decided, reason: str, moment: datetime) -> None:
    """Note ``what`` was decided of the messages ``of``, in the generation in which they stand."""
    said = (sa.literal(what), sa.literal(reason, decisions.c.reason.type), sa.literal(moment, decisions.c.at.type))
    query = sa.select(messages.c.id, messages.c.generation, *said).where(of)
    connection.execute(sa.insert(decisions).from_select(["message", "generation", "what", "reason", "at"], query))


def keep_of_keys(connection: sa.Connection, route: str, keys: Iterable[str], what: Decided, reason: str, moment: datetime) -> None:
    for some in chunks(keys, UPDATE_IDS):
        keep(connection, (messages.c.route == route) & among(connection, messages.c.key, some), what, reason, moment)


def of_messages(connection: sa.Connection, ids: Sequence[int]) -> dict[int, list[Decision]]:
    found: dict[int, list[Decision]] = {}
    order = (decisions.c.message, decisions.c.at, decisions.c.generation)
    for some in chunks(dict.fromkeys(ids), UPDATE_IDS):
        for row in connection.execute(sa.select(decisions).where(among(connection, decisions.c.message, some)).order_by(*order)):
            found.setdefault(row.message, []).append(Decision(row.what, row.reason, row.generation, row.at))
    return found


def newest(connection: sa.Connection, ids: Sequence[int], what: Decided) -> dict[int, datetime]:
    """When ``what`` was last decided of each of the messages; one of which it never was is not in it."""
    return {number: one.at for number, said in of_messages(connection, ids).items() for one in said if one.what == what}


def forget(connection: sa.Connection, of: sa.ColumnElement[bool]) -> None:
    connection.execute(sa.delete(decisions).where(decisions.c.message.in_(sa.select(messages.c.id).where(of))))
