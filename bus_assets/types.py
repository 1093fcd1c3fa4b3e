"""The types a field may have: one small grammar, read here, translated to Arrow and SQL where those are used.

    string · integer · number · boolean · decimal(P,S) · date · time · timestamp · timestamptz · binary
    list<TYPE> · struct<NAME: TYPE, …>

``integer`` is 64 bits, ``number`` a double, ``decimal`` exact with at most 38 digits, ``timestamp`` a wall clock without a
zone, ``timestamptz`` an instant (kept in UTC, microseconds).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bus_assets.declare import Misdeclared
from resources.texts import nearest

if TYPE_CHECKING:
    import pyarrow as pa

SCALARS = ("string", "integer", "number", "boolean", "date", "time", "timestamp", "timestamptz", "binary")
KINDS = (*SCALARS, "decimal(P,S)", "list<…>", "struct<…>")
MAX_DECIMAL_DIGITS = 38
"""Arrow's decimal128 and DuckDB's DECIMAL both end there."""

_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*|\d+|[<>(),:])")


@dataclass(frozen=True)
class Type:
    """A parsed type. ``kind`` is a scalar's name, 'decimal', 'list' or 'struct'."""

    kind: str
    precision: int = 0
    scale: int = 0
    item: Type | None = None
    members: tuple[tuple[str, Type], ...] = field(default=())

    @property
    def is_ordered(self) -> bool:
        """Whether ``minimum`` and ``maximum`` make sense."""
        return self.kind in ("integer", "number", "decimal", "date", "time", "timestamp", "timestamptz", "string")

    @property
    def is_scalar(self) -> bool:
        return self.kind not in ("list", "struct")

    def __str__(self) -> str:
        if self.kind == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.item is not None:
            return f"list<{self.item}>"
        if self.kind == "struct":
            return "struct<" + ", ".join(f"{name}: {member}" for name, member in self.members) + ">"
        return self.kind

    def arrow(self) -> pa.DataType:
        """The Arrow type in which values are staged."""
        import pyarrow as pa

        if self.kind == "decimal":
            return pa.decimal128(self.precision, self.scale)
        if self.item is not None:
            return pa.list_(self.item.arrow())
        if self.kind == "struct":
            return pa.struct([(name, member.arrow()) for name, member in self.members])
        return {
            "string": pa.string(),
            "integer": pa.int64(),
            "number": pa.float64(),
            "boolean": pa.bool_(),
            "date": pa.date32(),
            "time": pa.time64("us"),
            "timestamp": pa.timestamp("us"),
            "timestamptz": pa.timestamp("us", "UTC"),
            "binary": pa.binary(),
        }[self.kind]

    def duckdb(self) -> str:
        """The same type in DuckDB's SQL."""
        if self.kind == "decimal":
            return f"DECIMAL({self.precision}, {self.scale})"
        if self.item is not None:
            return f"{self.item.duckdb()}[]"
        if self.kind == "struct":
            members = (f'"{name}" {member.duckdb()}' for name, member in self.members)
            return f"STRUCT({', '.join(members)})"
        plain = {"string": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "timestamptz": "TIMESTAMP WITH TIME ZONE", "binary": "BLOB"}
        return plain.get(self.kind, self.kind.upper())


def parse_type(text: str) -> Type:
    """Read ``text`` in the grammar above; raises :class:`Misdeclared` that names what was not understood."""
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if not match:
            raise Misdeclared(f"type {text!r}: {text[at:]!r} was not understood; {_nearest(text)}")
        tokens.append(match.group(1))
        at = match.end()
    parsed, rest = _parse(tokens, text)
    if rest:
        raise Misdeclared(f"type {text!r}: nothing may follow {parsed}, found {' '.join(rest)!r}; {_nearest(text)}")
    return parsed


def _parse(tokens: list[str], text: str) -> tuple[Type, list[str]]:
    if not tokens:
        raise Misdeclared(f"type {text!r} ends too early")
    kind, rest = tokens[0], tokens[1:]
    if kind in SCALARS:
        return Type(kind), rest
    if kind == "decimal":
        if len(rest) < 5 or rest[0] != "(" or rest[2] != "," or rest[4] != ")" or not (rest[1] + rest[3]).isdigit():
            raise Misdeclared(f"type {text!r}: decimal needs digits and scale, as in decimal(12,2)")
        precision, scale = int(rest[1]), int(rest[3])
        if not (1 <= precision <= MAX_DECIMAL_DIGITS and scale <= precision):
            raise Misdeclared(f"type {text!r}: decimal has 1 to {MAX_DECIMAL_DIGITS} digits and a scale not above them")
        return Type("decimal", precision=precision, scale=scale), rest[5:]
    if kind == "list":
        item, rest = _parse(_expect("<", rest, text), text)
        return Type("list", item=item), _expect(">", rest, text)
    if kind == "struct":
        rest, members = _expect("<", rest, text), []
        while True:
            if not rest:
                raise Misdeclared(f"type {text!r} ends too early")
            name, rest = rest[0], _expect(":", rest[1:], text)
            member, rest = _parse(rest, text)
            if name.lower() in (other.lower() for other, _ in members):
                raise Misdeclared(f"type {text!r}: member {name!r} appears twice; names are compared without case")
            members.append((name, member))
            if rest[:1] == [","]:
                rest = rest[1:]
                continue
            return Type("struct", members=tuple(members)), _expect(">", rest, text)
    raise Misdeclared(f"type {kind!r} is not known; {_nearest(' '.join(tokens))}")


def _nearest(text: str) -> str:
    """The type that ``text`` probably means, and the types that there are."""
    if digits := re.match(r"\w+\((\d+),(\d+)\)", text.replace(" ", "")):
        return f"did you mean 'decimal({digits[1]},{digits[2]})'? There are {', '.join(KINDS)}"
    return nearest("timestamptz" if "with time zone" in text.lower() else re.split(r"\W", text)[0], KINDS)


def _expect(token: str, tokens: list[str], text: str) -> list[str]:
    if tokens[:1] != [token]:
        raise Misdeclared(f"type {text!r}: expected {token!r}, found {(tokens or ['the end'])[0]!r}")
    return tokens[1:]
