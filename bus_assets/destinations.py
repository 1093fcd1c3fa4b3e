"""The tables of drop-offs: what they must be like, and that one which is not is told at its drop-off, before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bus_assets.drive import Drive
from bus_assets.stops import DropOff
from resources.database import Database
from resources.errors import BusError
from resources.tables import Column, TablePlan, Unfit


def drops_into(drive: Drive, database: str) -> tuple[DropOff, ...]:
    """Those that are published together."""
    return tuple(drop for drop in drive.route.drop_offs if drop.into.database == database)


def plans_of(drive: Drive, drops: Sequence[DropOff]) -> tuple[TablePlan, ...]:
    """The tables as the contracts say they must be."""
    return tuple(_plan(drive, drop) for drop in drops)


def _plan(drive: Drive, drop: DropOff) -> TablePlan:
    contract = drive.route.contract_of(drop.name)
    columns = tuple(
        Column(column, contract[name].parsed_type.arrow(), nullable=not contract[name].required and column not in drop.into.key)
        for column, name in drop.mapping(contract).items()
        if drop.into.mode != "delete" or column in drop.into.key
    )
    needs_key = drop.into.mode in ("upsert", "accumulate") or drop.into.create
    key, into = tuple(drop.into.key) if needs_key else (), drop.into
    return TablePlan(into.name, columns, key, into.create, fills=into.mode != "delete", newest=into.newest, sums=into.sums)


@contextmanager
def told_at(drops: Sequence[DropOff]) -> Iterator[None]:
    """What is raised of the tables of ``drops``, in this order, names the drop-offs whose they are."""
    try:
        yield
    except Unfit as error:
        names = [drops[place].name for place in error.places]
        if len(names) > 1:
            error.message = f"tables of drop-offs {', '.join(map(repr, names))}: {error.message}"
        raise error.at(stop=names[0]) from error.__cause__


def look_ahead(drive: Drive) -> None:
    """:class:`Unfit` if publishing would refuse a table as it is now: told before a trip reads, and not after an hour.

    It makes nothing and promises nothing: publishing compares again. Where nothing will be published, nothing is asked.
    """
    for database in drive.route.databases:
        drops = drops_into(drive, database)
        system = drive.bus.systems[database]
        # A destination of somebody's own may see to its tables in its own way.
        is_ours = isinstance(system, Database) and type(system).prepare is Database.prepare
        if not is_ours or drive.selected.isdisjoint(drop.name for drop in drops):
            continue
        try:
            with told_at(drops):
                system.compare(plans_of(drive, drops))
        except Unfit as error:
            error.message = f"nothing was read, since {error.message}"
            raise
        except BusError as error:
            raise error.at(stop=drops[0].name) from error.__cause__
