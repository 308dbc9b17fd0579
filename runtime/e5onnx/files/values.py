"""Values -> Arrow arrays with exactly these values. Only floats may lose digits, as they do in any narrower type.

Arrow arrays of the wanted type pass through unchanged. Values from JSON and CSV, and Parquet columns of another type,
are converted and compared with the result.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_WRONG = (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError)
_DEPTH = 16
"""Maximum nesting of lists and objects: Parquet readers refuse more than a few dozen levels."""
Values: TypeAlias = "Sequence[Any] | pa.Array"


def array_of(
    values: Values, wanted: pa.DataType | None, *, as_text: bool = False, empty_is_null: bool = False
) -> tuple[pa.Array, list[int]]:
    """Return values as an array, and the positions of values of another type, which are null in the array.

    Args:
        values: an Arrow array, or values from JSON or CSV; a text may spell a value of another type, as CSV has
            only texts.
        wanted: the type; None for JSON text.
        as_text: if text is wanted, numbers become text.
        empty_is_null: if another type is wanted, empty text is null, as CSV has no other null.
    """
    try:
        return _array(values, wanted, as_text, empty_is_null), []
    except _WRONG:
        kind = pa.string() if wanted is None else wanted
        single = (values[position : position + 1] for position in range(len(values)))
        arrays = [_single(value, wanted, as_text, empty_is_null) for value in single]
        wrong = [position for position, array in enumerate(arrays) if array is None]
        return pa.concat_arrays([pa.nulls(1, kind) if array is None else array for array in arrays]), wrong


def inferred(values: Sequence[Any]) -> pa.DataType | None:
    """Return the common type of values: text if there is none; None if they are nested and only JSON text fits."""
    present = [value for value in values if value is not None]
    nested = any(isinstance(value, list | dict) for value in present)
    try:
        kind = pa.array(present).type
        _compared(present, kind)
    except _WRONG:
        if nested:
            return None
        return pa.float64() if {type(value) for value in present} == {int, float} else pa.string()
    if nested and not (_is_known(kind) and all(_has_all_keys(value, kind) for value in present)):
        return None
    return storable(kind)


def storable(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column is stored: dictionaries are decoded, and a column of nulls is text.

    Every field may be null, since it may be null in another file.
    """
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.string() if pa.types.is_null(kind) else _mapped(kind, lambda leaf: leaf)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type is one of Arrow's text types."""
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def coarse(array: pa.Array) -> pa.Array:
    """Return an array in microseconds instead of nanoseconds, which Python only has with pandas installed."""
    kind = _coarse(array.type)
    return array if kind == array.type else array.cast(kind, safe=False)


def printable(array: pa.Array) -> pa.Array:
    """Return an array with dates and times as text, since Python cannot represent all of them."""
    kind = _mapped(array.type, lambda leaf: pa.string() if pa.types.is_temporal(leaf) else leaf)
    return array if kind == array.type else array.cast(kind)


def _single(value: Values, wanted: pa.DataType | None, as_text: bool, empty_is_null: bool) -> pa.Array | None:
    try:
        return _array(value, wanted, as_text, empty_is_null)
    except _WRONG:
        return None


def _array(values: Values, wanted: pa.DataType | None, as_text: bool, empty_is_null: bool) -> pa.Array:
    if isinstance(values, pa.Array):
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.type == wanted:
            values.validate(full=True)  # reading Parquet does not validate strings
            return values
        if wanted is not None and _coarse(values.type) == _coarse(wanted):
            return values.cast(wanted)  # fails if nanoseconds are lost
        values = values.to_pylist()
    if wanted is None:
        given = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        return pa.array(given, pa.string())
    if is_text(wanted):
        return _compared([json.dumps(value) if as_text and _is_number(value) else value for value in values], wanted)
    if not any(isinstance(value, str) for value in values):
        return _compared(values, wanted)
    others = [None if isinstance(value, str) else value for value in values]
    given = [value if isinstance(value, str) else None for value in values]
    texts = pa.array([value or None for value in given] if empty_is_null else given, pa.string())
    if pa.types.is_floating(wanted):  # via float64, to notice numbers too large for a narrow float
        numbers = texts.cast(pa.float64()).to_pylist()
        return _compared([one if two is None else two for one, two in zip(others, numbers, strict=True)], wanted)
    return pc.coalesce(texts.cast(wanted), _compared(others, wanted))


def _compared(values: Sequence[Any], wanted: pa.DataType) -> pa.Array:
    # Arrow truncates silently: 2.5 to 2 for integers, a time to its date
    array = pa.array(values, wanted)
    if not all(map(_is_same, values, coarse(array).to_pylist())):
        raise ValueError(f"not every value is {wanted}")
    return array


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_same(given: Any, stored: Any) -> bool:
    if isinstance(given, list | tuple) and isinstance(stored, list | tuple):
        return len(given) == len(stored) and all(map(_is_same, given, stored))
    if isinstance(given, dict) and isinstance(stored, dict):
        return given.keys() <= stored.keys() and all(_is_same(given.get(name), each) for name, each in stored.items())
    if isinstance(given, bool) or isinstance(stored, bool):
        return given is stored
    if isinstance(given, float | np.floating) and isinstance(stored, float | np.floating):
        return math.isfinite(given) == math.isfinite(stored)
    if isinstance(given, int) and isinstance(stored, datetime.date | datetime.time | datetime.timedelta):
        return True  # a number in units of the type
    return bool(given == stored)


def _is_known(kind: pa.DataType, depth: int = 0) -> bool:
    """Tell whether Parquet can store an inferred type: `[]` has no element type, and `{}` has no fields."""
    if pa.types.is_struct(kind):
        return depth < _DEPTH and kind.num_fields > 0 and all(_is_known(field.type, depth + 1) for field in kind)
    if pa.types.is_list(kind):
        return depth < _DEPTH and _is_known(kind.value_type, depth + 1)
    return not pa.types.is_null(kind)


def _has_all_keys(value: Any, kind: pa.DataType) -> bool:
    """Tell whether the objects in a value have every field of their type, so that none would turn into null."""
    if isinstance(value, list):
        return all(_has_all_keys(each, kind.value_type) for each in value)
    if isinstance(value, dict):
        return len(value) == kind.num_fields and all(_has_all_keys(value[field.name], field.type) for field in kind)
    return True


def _mapped(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type with its leaves replaced; every field may be null."""

    def mapped(field: pa.Field) -> pa.Field:
        return field.with_type(_mapped(field.type, leaf)).with_nullable(True)

    if pa.types.is_struct(kind):
        return pa.struct([mapped(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_mapped(kind.key_type, leaf), mapped(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(mapped(kind.value_field), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(mapped(kind.value_field))
    return pa.list_(mapped(kind.value_field)) if pa.types.is_list(kind) else leaf(kind)


def _coarse(kind: pa.DataType) -> pa.DataType:
    return _mapped(kind, _microseconds)


def _microseconds(kind: pa.DataType) -> pa.DataType:
    if not pa.types.is_temporal(kind) or getattr(kind, "unit", None) != "ns":
        return kind
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")
