"""What Dagster keeps of an error: a chain of causes, of which the last began it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

UNRESOLVED = "dagster._config.errors.PostProcessingError: "
OF_A_CALL = ("status = ", "details = ")
"""How the lines begin in which gRPC says why a call ended."""


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
    """What tells most of the error that began it: its first line, but where that says only that it follows."""
    began = innermost(error)
    lines = began.message.strip().splitlines() if began is not None else ["see the UI"]
    first = lines[0] if lines else ""
    if said := [line.strip() for line in lines[1:] if line.strip().startswith(OF_A_CALL)]:
        return f"{first.partition(': ')[0]}: {', '.join(said)}"
    # What of a configuration cannot be resolved, a variable that is not set, stands further down.
    return next((line for line in lines if line.startswith(UNRESOLVED)), first)


def is_unreachable(error: Any) -> bool:
    """Whether nobody answers where the code server was; one that takes too long is no such."""
    said = [one.message for one in causes(error)]
    return any("DagsterUserCodeUnreachableError" in one for one in said) and any("UNAVAILABLE" in one for one in said)
