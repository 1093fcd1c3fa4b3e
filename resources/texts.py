"""Texts for people."""

import difflib
from collections.abc import Iterable

_ELSEWHERE = {
    "string": "str text varchar nvarchar char character clob object category uuid",
    "integer": "int int8 int16 int32 int64 tinyint smallint bigint long serial",
    "number": "float float32 float64 double real",
    "boolean": "bool bit",
    "decimal(P,S)": "numeric money",
    "timestamp": "datetime datetime2 datetime64",
    "timestamptz": "datetime datetime64 datetimeoffset",
    "binary": "bytes bytearray blob bytea varbinary",
    "list<…>": "array",
    "struct<…>": "dict map record",
    "append": "insert",
    "upsert": "merge update",
    "replace": "overwrite truncate",
}
"""What is called otherwise in SQL, pandas or Python, by our word."""


def shortened(text: str, characters: int) -> str:
    """``text`` if it has at most so many ``characters``, else its beginning and '…'."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def nearest(word: str, known: Iterable[str]) -> str:
    """Which of ``known`` was probably meant by ``word``, if that can be told, and what there is."""
    names = list(known)
    meant = " or ".join(map(repr, meant_by(word, names)))
    return f"{f'did you mean {meant}? There' if meant else 'there'} are {', '.join(names) or 'none'}"


def meant_by(word: str, known: Iterable[str] = _ELSEWHERE) -> list[str]:
    """Those of ``known`` that ``word`` probably stands for, in other systems or misspelt."""
    names, lower = list(known), word.lower()
    return [name for name in names if lower in (name, *_ELSEWHERE.get(name, "").split())] or difflib.get_close_matches(lower, names, 1)
