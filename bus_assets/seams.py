"""What stops ask of the systems that they name: any object that has the methods will do, this project's own or a user's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Seam:
    """``methods`` that a trip calls on a system, ``kinds`` of ours that have them; ``does`` is what for, in words."""

    does: str
    kinds: tuple[str, ...]
    methods: tuple[str, ...]


FILES = Seam("reads files", ("LocalFiles", "S3Files", "WebService"), ("list", "open"))
SERVICE = Seam("asks a web service", ("WebService",), ("records",))
QUERIED = Seam("queries a database", ("Database",), ("read",))
REFERRED = Seam("looks up keys in a database", ("Database",), ("column_keys",))
PUBLISHED = Seam("writes to a database", ("Database",), ("prepare", "transaction"))
QUEUE = Seam("takes messages from a queue", ("SqsQueue",), ("receive", "delete", "fetch"))
DEAD_LETTERS = Seam("sends messages to a queue", ("SqsQueue",), ("send",))
