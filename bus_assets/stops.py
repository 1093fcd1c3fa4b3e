"""Where a bus halts: :class:`PickUp`, :class:`Transform`, :class:`DropOff`. Pure declarations, checked at construction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal

from bus_assets.contract import Contract
from bus_assets.declare import Misdeclared, checked_name, declaration
from bus_assets.queues import MESSAGES
from bus_assets.sources import Source
from bus_assets.values import reads_messages
from resources.table_names import name_parts

Mode = Literal["append", "upsert", "replace", "delete", "accumulate"]


@declaration
class Check:
    """A check of the author's own: ``sql`` selects the offending rows of the stop, by its name; none is a pass.

    ``Check("no_free_gifts", "SELECT * FROM priced WHERE total = 0")``. ``blocking=False`` only warns.
    """

    name: str
    sql: str
    description: str = ""
    blocking: bool = True

    def __post_init__(self) -> None:
        checked_name(self.name, "check")
        if self.name in ("contract", "conserved"):
            raise Misdeclared(f"check {self.name!r}: that name is taken by the platform's own check; choose another")


@declaration
class PickUp:
    """Read passengers from a source. ``contract`` is what every row must keep to go on."""

    name: str
    source: Any
    contract: Contract
    checks: tuple[Check, ...] = ()
    description: str = ""
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked_name(self.name, "stop")
        if not isinstance(self.source, Source):
            needed = ("system", "fields", "read", "recount", "address", "templates")
            lacking = ", ".join(name for name in needed if not hasattr(self.source, name))
            raise Misdeclared(
                f"stop {self.name!r}: source {type(self.source).__name__} is not a source such as TextFile, XmlFeed, Endpoint or Query; "
                f"one of your own lacks {lacking} (docs/extending.md)"
            )
        for name in self.source.fields:
            if name not in self.contract:
                raise Misdeclared(
                    f"stop {self.name!r}: fields maps {name!r}, which the contract does not promise; "
                    f"it promises {', '.join(self.contract.names)}"
                )

    @property
    def per_message(self) -> bool:
        """Whether it reads once for each message of the trip: its source says ``{message.…}``."""
        return reads_messages(self.source.templates())

    @property
    def after(self) -> tuple[str, ...]:
        """The messages, if it reads what they name; else a pick-up reads no other stop's rows."""
        return (MESSAGES,) if self.per_message else ()

    def found_at(self) -> dict[str, str]:
        """Contract field → where the source has it."""
        return {name: self.source.fields.get(name, name) for name in self.contract.names}


@declaration
class Transform:
    """Turn the rows of earlier stops into new ones, by a pure function or by SQL (DuckDB) over the stops' names.

    ``how``    a SELECT, or a function that takes one argument for each stop in ``after``, in that order. Annotations choose the form:
               ``pandas.DataFrame`` (whole; the default), ``Iterator[pandas.DataFrame]`` (first stop batch by batch, a generator),
               ``pyarrow.Table``. A parameter named ``params`` gets the trip's parameters.
    ``after``  the stops it reads; default: the one before. Rows belong to the first; the others are looked up, rows of messages by those
               of the same message.
    ``grain``  'kept' (default): every row of the first stop comes out exactly once, and keeps its identity by the frame's index or
               the column ``_bus_row``. 'changed': rows are filtered, multiplied or aggregated, and the account shows both sums.
    ``combine``  how two batches of messages combine where the grain changes: which messages share a trip is chance. 'alone': each
               message's rows are transformed by themselves; 'accumulate': the Table that its rows are dropped into adds up.
    """

    name: str
    how: str | Callable[..., Any]
    contract: Contract
    after: tuple[str, ...] = ()
    grain: Literal["kept", "changed"] = "kept"
    combine: Literal["alone", "accumulate"] | None = None
    checks: tuple[Check, ...] = ()
    description: str = ""
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked_name(self.name, "stop")
        if isinstance(self.how, str) and not self.how.lstrip().lower().startswith(("select", "with", "from", "--", "/*")):
            raise Misdeclared(f"stop {self.name!r}: SQL must be one SELECT; it starts with {self.how.lstrip()[:30]!r}")
        if self.combine and self.grain == "kept":
            raise Misdeclared(f"stop {self.name!r}: combine={self.combine!r} is for grain='changed'; leave it out where rows are kept")

    @property
    def is_sql(self) -> bool:
        return isinstance(self.how, str)

    def arguments(self) -> tuple[str, ...]:
        """The names of the function's parameters without ``params``."""
        return tuple(name for name in inspect.signature(self.how).parameters if name != "params") if callable(self.how) else ()


@declaration
class Table:
    """A table in a SQL database as a destination.

    ``mode``    'upsert' where there is a ``key`` (default), 'append' where there is none; 'replace' deletes the rows of ``scope`` first
                (``{}``: all rows); 'delete' removes the keys; 'accumulate' adds the columns in ``sums`` to the row of the key.
    ``newest``  for 'upsert': the column with the time or number of the event. A row that is older than the table's row of its key does
                not replace it, whichever trip comes first; one without a value is the oldest.
    ``scope``   for 'replace': column → value or placeholder, ``{"month": "{params.month}"}``.
    ``create``  make the table from the contract if it is not there; otherwise its absence is an error that shows the statement.
    """

    database: str
    name: str
    key: tuple[str, ...] | str = ()
    mode: Mode | None = None
    scope: Mapping[str, Any] | None = None
    sums: tuple[str, ...] = ()
    create: bool = False
    newest: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.key, str):
            object.__setattr__(self, "key", (self.key,))
        if self.mode is None:
            object.__setattr__(self, "mode", "replace" if self.scope is not None else "upsert" if self.key else "append")
        me = f"Table {self.name!r}"
        name_parts(self.name)
        if self.mode in ("upsert", "delete", "accumulate") and not self.key:
            raise Misdeclared(f"{me}: mode {self.mode!r} needs key=…, the columns that tell rows apart")
        if self.mode == "replace" and self.scope is None:
            raise Misdeclared(f"{me}: mode 'replace' needs scope={{…}}, the rows to delete first; scope={{}} replaces all rows")
        if self.mode != "replace" and self.scope is not None:
            raise Misdeclared(f"{me}: scope is for mode 'replace', not {self.mode!r}")
        if (self.mode == "accumulate") != bool(self.sums):
            raise Misdeclared(f"{me}: mode 'accumulate' and sums=(…) belong together")
        if self.newest is not None and (self.mode != "upsert" or self.newest in self.key):
            raise Misdeclared(f"{me}: newest={self.newest!r} is for mode 'upsert', and for a column that is not in the key")
        if set(self.sums) & set(self.key):
            raise Misdeclared(f"{me}: {', '.join(sorted(set(self.sums) & set(self.key)))} is both key and sum")

    def __str__(self) -> str:
        return f"{self.database}: {self.name}"


@declaration
class DropOff:
    """Drop the rows of a stop at a destination, together with all other drop-offs of the trip or not at all.

    ``of``       the stop whose rows these are; default: the nearest one before that is not a drop-off.
    ``columns``  which fields to drop, or ``{column: field}`` to rename; default: all of the contract.
    ``where``    a SQL condition (DuckDB) on the stop's fields; rows that do not meet it are counted and not dropped.
    ``key``      the asset's key, if another project (dbt) expects one; default: [route, stop].
    """

    name: str
    into: Table
    of: str | None = None
    columns: tuple[str, ...] | Mapping[str, str] | None = None
    where: str | None = None
    key: tuple[str, ...] | None = None
    description: str = ""
    owners: tuple[str, ...] = ()
    group: str | None = field(default=None)

    def __post_init__(self) -> None:
        checked_name(self.name, "stop")

    def mapping(self, contract: Contract) -> dict[str, str]:
        """Column of the destination → field of the stop."""
        if self.columns is None:
            return {name: name for name in contract.names}
        if isinstance(self.columns, tuple):
            return {name: name for name in self.columns}
        return dict(self.columns)


Stop = PickUp | Transform | DropOff
