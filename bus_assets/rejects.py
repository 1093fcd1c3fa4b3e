"""Rows that a gate rejects, on their way to quarantine: kept on disk, their values as the texts that a source would give."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, time
from decimal import Decimal
from typing import IO, Any

import pyarrow as pa

from bus_assets.contract import Contract
from bus_assets.duck import disk_full
from bus_assets.reading import as_python
from resources.depot.entries import QuarantinedRow, Reason
from resources.errors import Transient


class RejectSpool:
    """Rejected rows on disk until the verdict is recorded: memory stays bounded however many there are.

    Every method but ``close`` raises :class:`~resources.errors.Transient` if the disk is full or fails.
    """

    def __init__(self) -> None:
        with _on_disk():
            self._file: IO[str] = tempfile.TemporaryFile("w+", prefix="bus-rejected-", encoding="utf-8", errors="surrogatepass")  # noqa: SIM115
        self.rows = 0
        self.reasons: dict[str, int] = {}
        self.by_message: Counter[int] = Counter()

    def add(self, row: QuarantinedRow) -> None:
        self.rows += 1
        if row.message is not None:
            self.by_message[row.message] += 1
        for reason in row.reasons:
            self.reasons[reason.rule] = self.reasons.get(reason.rule, 0) + 1
        reasons = [list(reason) for reason in row.reasons]
        entry = [row.row_id, row.origin, row.unit, row.position, reasons, dict(row.payload), row.message]
        with _on_disk():
            self._file.write(json.dumps(entry) + "\n")

    def __iter__(self) -> Iterator[QuarantinedRow]:
        with _on_disk():
            self._file.flush()
            self._file.seek(0)
        for line in self._file:
            row_id, origin, unit, position, reasons, payload, message = json.loads(line)
            yield QuarantinedRow(row_id, origin, unit, position, tuple(Reason(*reason) for reason in reasons), payload, message=message)

    def close(self) -> None:
        with suppress(OSError):  # what a full disk did not take is tried again here
            self._file.close()


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_full(error) or Transient(f"rejected rows could not be put on disk: {error.strerror}; retry") from error


def payloads(batch: pa.RecordBatch, contract: Contract) -> Iterator[dict[str, str | None]]:
    """Each row as text columns, in the form in which a source would give it: what a release puts aboard again."""
    present = [field for field in contract.fields if field.name in batch.schema.names]
    columns = [[_text(value, field.parsed_type.kind) for value in as_python(batch.column(field.name))] for field in present]
    for row in range(batch.num_rows):
        yield {field.name: column[row] for field, column in zip(present, columns, strict=True)}


def _text(value: Any, kind: str = "") -> str | None:
    """``value`` so that it reads as a field of ``kind`` as it would have without becoming text, see :mod:`bus_assets.casting`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=_text, ensure_ascii=False)
    if isinstance(value, (float, Decimal)):
        return _number_text(value, kind)
    if kind == "date" and isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _number_text(value: float | Decimal, kind: str) -> str | None:
    if not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if kind == "integer" and value == int(value):
        return str(int(value))
    return str(value) if isinstance(value, float) and kind != "decimal" else format(Decimal(str(value)), "f")
