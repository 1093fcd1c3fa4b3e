"""A column of pandas as Arrow, without what Arrow changes in Python's objects and does not say.

Arrow gives objects one type. It cuts a timestamp among dates and the nanoseconds of each, shifts a wall clock among instants, counts true
among numbers as 1, leaves out the offset of a time of day, and takes a period for its number. Here such values become text that reads as
what it is, wherever they are nested, so that the gate judges each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from resources.errors import Poison
from resources.sql_values import as_json

_LISTS = (list, tuple, set, np.ndarray)
_ALIKE = {str, bytes, bool, int, float, Decimal, date}
"""Objects of which Arrow keeps everything, where there is one type of them."""
_CUT = "has more than Arrow keeps"

_Place = tuple[Any, ...]
"""Where a value is nested: names of members, None for the items of a list."""


def arrow_column(values: Any, name: str) -> pa.Array:
    """The pandas column ``values`` as Arrow; :class:`Poison` if it has bytes among other values, which no text says."""
    if isinstance(values.dtype, pd.CategoricalDtype) and values.dtype.categories.dtype == object:
        values = values.astype(object)
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError):  # TypeError: what Arrow says of Decimal('Infinity')
        return _as_texts(values, name)
    if isinstance(array.type, pa.BaseExtensionType) and array.type.extension_name.startswith("pandas."):
        return _as_texts(values, name)
    if values.dtype == object and (places := _changed(values, array.type)):
        return pa.array([_said(value, places) for value in values], from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _changed(values: Any, kind: pa.DataType) -> set[_Place]:
    """The places of which Arrow's ``kind`` does not keep all values as they are."""
    types = set(map(type, values)) - {type(None)}
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or (len(types) == 1 and types <= _ALIKE):
        return set()
    kinds: dict[_Place, set[str]] = defaultdict(set)
    for value in values:
        for place, leaf in _leaves(value):
            if not _is_missing(leaf):
                kinds[place].add(_kind(leaf))
    return {place for place, found in kinds.items() if len(found) > 1 or _CUT in found}


def _leaves(value: Any, place: _Place = ()) -> Iterator[tuple[_Place, Any]]:
    if isinstance(value, dict):
        for name, member in value.items():
            yield from _leaves(member, (*place, name))
    elif isinstance(value, _LISTS):
        for item in value:
            yield from _leaves(item, (*place, None))
    else:
        yield place, value


def _kind(value: Any) -> str:
    if isinstance(value, datetime):
        return _CUT if getattr(value, "nanosecond", 0) else "instant" if value.tzinfo else "wall clock"
    if isinstance(value, time):
        return _CUT if value.tzinfo else "time"
    if isinstance(value, date):
        return "date"
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    return "number" if isinstance(value, Number) else "other"


def _said(value: Any, places: set[_Place], place: _Place = ()) -> Any:
    """``value`` with text in ``places``."""
    if isinstance(value, dict):
        return {name: _said(member, places, (*place, name)) for name, member in value.items()}
    if isinstance(value, _LISTS):
        return [_said(item, places, (*place, None)) for item in value]
    return value if place not in places or _is_missing(value) else _text(value)


def _as_texts(values: Any, name: str) -> pa.Array:
    """Values of several types, each as text."""
    if any(isinstance(leaf, bytes) for value in values for _, leaf in _leaves(value)):
        raise Poison(f"column {name!r} has bytes among values of other types; make them one type")
    return pa.array([None if _is_missing(value) else _text(value) for value in values], type=pa.string())


def _text(value: Any) -> str:
    if isinstance(value, (dict, *_LISTS)):
        return as_json(_plain(value))
    return str(value).lower() if isinstance(value, (bool, np.bool_)) else str(value)


def _plain(value: Any) -> Any:
    """``value`` without what JSON has no word for, as far as it has another."""
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, _LISTS):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        value = value.item()
    return None if _is_missing(value) else value


def _is_missing(value: Any) -> bool:
    return value is None or (not isinstance(value, (dict, *_LISTS)) and pd.isna(value) is True)
