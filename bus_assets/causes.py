"""What Dagster keeps of an error: a chain of causes, of which the last began it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

UNRESOLVED = "dagster._config.errors.PostProcessingError: "


def causes(error: Any) -> Iterator[Any]:
    """The error, what caused it, and so on; nothing of None."""
    while error is not None:
        yield error
        error = error.cause


def innermost(error: Any) -> Any:
    """The error that began it; None of None."""
    chain = list(causes(error))
    return chain[-1] if chain else None


def in_a_line(error: Any) -> str:
    """The first line of the error that began it."""
    began = innermost(error)
    lines = began.message.strip().splitlines() if began is not None else ["see the UI"]
    # What of a configuration cannot be resolved, a variable that is not set, stands further down.
    return next((line for line in lines if line.startswith(UNRESOLVED)), lines[0] if lines else "")
