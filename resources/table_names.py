"""What a table is called: taken apart and checked without a database, so that a declaration can do it too."""

from __future__ import annotations

import re

from resources.errors import Misconfigured

MAX_IDENTIFIER_BYTES = 63
"""Postgres cuts longer names without a word (NAMEDATALEN); refused everywhere so that a route fits every database."""
_PART = re.compile(r'"((?:[^"]|"")+)"|([^."]+)')


def name_parts(text: str) -> tuple[str, ...]:
    """``text`` taken apart: (table,) or (schema, table). Misconfigured if it has more parts, an empty one, or one that is too long."""
    parts, at = [], 0
    while match := _PART.match(text, at):
        parts.append(match.group(1).replace('""', '"') if match.group(1) else match.group(2))
        at = match.end()
        if text[at : at + 1] != ".":
            break
        at += 1
    if at != len(text) or text.endswith(".") or not 1 <= len(parts) <= 2:
        raise Misconfigured(
            f"table name {text!r}: expected 'table' or 'schema.table'; write a part with a dot or a quote as \"…\", quotes doubled"
        )
    for part in parts:
        checked_identifier(part, f"table name {text!r}")
    return tuple(parts)


def checked_identifier(name: str, what: str) -> str:
    size = len(name.encode())
    if not name or size > MAX_IDENTIFIER_BYTES or "\0" in name:
        raise Misconfigured(f"{what}: {name!r} has {size} bytes; names have 1 to {MAX_IDENTIFIER_BYTES} bytes and no NUL")
    return name
