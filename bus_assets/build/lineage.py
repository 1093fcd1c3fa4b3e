"""Column lineage, derived from the declarations: nobody types it twice."""

from collections.abc import Mapping, Sequence

from dagster import AssetKey, TableColumn, TableColumnConstraints, TableColumnDep, TableColumnLineage, TableSchema

from bus_assets.build.keys import source_key, stop_key
from bus_assets.contract import Contract, Field
from bus_assets.route import Route
from bus_assets.stops import DropOff, PickUp, Transform


def column_lineage(route: Route, stop: str) -> TableColumnLineage:
    """Which upstream columns each column of ``stop`` comes from.

    A pick-up's come from its source, a drop-off's from its stop. SQL is read with sqlglot. What a function computes cannot be
    seen: its columns are taken to come from the fields of the same name, and new ones from nowhere.
    """
    declared = route[stop]
    if isinstance(declared, PickUp):
        key = source_key(declared)
        return _lineage({name: [(key, at)] for name, at in declared.found_at().items()})
    if isinstance(declared, DropOff):
        key = stop_key(route, route.upstream(stop)[0])
        return _lineage({column: [(key, name)] for column, name in declared.mapping(route.contract_of(stop)).items()})
    pairs = _of_transform(route, declared)
    return _lineage({column: [(stop_key(route, at), name) for at, name in found] for column, found in pairs.items()})


def _of_transform(route: Route, stop: Transform) -> Mapping[str, tuple[tuple[str, str], ...]]:
    fields = {name: route.contract_of(name).names for name in route.upstream(stop.name)}
    if isinstance(stop.how, str):
        from bus_assets.sql import column_sources

        return column_sources(stop.how, stop.contract.names, fields)
    return {column: next((((at, column),) for at, names in fields.items() if column in names), ()) for column in stop.contract.names}


def _lineage(pairs: Mapping[str, list[tuple[AssetKey, str]]]) -> TableColumnLineage:
    return TableColumnLineage(
        {column: [TableColumnDep(asset_key=key, column_name=name) for key, name in found] for column, found in pairs.items() if found}
    )


def column_schema(contract: Contract, mapping: Mapping[str, str] | None = None, key: Sequence[str] | None = None) -> TableSchema:
    """The contract as Dagster shows a schema. For a table, ``mapping`` is column → field, and only a ``key`` of one column is unique:
    what is unique in a trip may be there again from the trip before."""
    columns = (mapping or {name: name for name in contract.names}).items()
    return TableSchema(
        [_column(column, contract[name], contract[name].unique if key is None else tuple(key) == (column,)) for column, name in columns]
    )


def _column(column: str, field: Field, unique: bool) -> TableColumn:
    other = [
        f"one of {', '.join(map(str, field.allowed))}" if field.allowed is not None and not field.sensitive else "",
        f"from {field.minimum}" if field.minimum is not None else "",
        f"to {field.maximum}" if field.maximum is not None else "",
        f"matches {field.pattern}" if field.pattern else "",
        f"in {field.references}" if field.references else "",
        "sensitive" if field.sensitive else "",
    ]
    constraints = TableColumnConstraints(nullable=not field.required, unique=unique, other=[text for text in other if text])
    return TableColumn(column, field.type, description=field.description or None, constraints=constraints)
