"""Values -> Arrow arrays that hold just these values. Only floats may lose digits, as they do in any narrower type.

What Arrow holds already is passed on as it is. Values of JSON and CSV, and those of a Parquet column whose type is not
the wanted one, are converted and compared.
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
"""Most levels of lists and objects: readers of Parquet refuse more than a few dozen."""
Values: TypeAlias = "Sequence[Any] | pa.Array"


def array_of(values: Values, wanted: pa.DataType | None, *, as_text: bool = False) -> tuple[pa.Array, list[int]]:
    """Return values as an array, and the positions of those that are not of the type, where the array has nulls.

    Args:
        values: an array of Arrow, or values as JSON and CSV have them; texts, as CSV has nothing else, may say what
            another type holds.
        wanted: the type; None for JSON text.
        as_text: numbers become text, if text is wanted.
    """
    try:
        return _array(values, wanted, as_text), []
    except _WRONG:
        kind = pa.string() if wanted is None else wanted
        arrays = [_single(values[position : position + 1], wanted, as_text) for position in range(len(values))]
        wrong = [position for position, array in enumerate(arrays) if array is None]
        return pa.concat_arrays([pa.nulls(1, kind) if array is None else array for array in arrays]), wrong


def inferred(values: Sequence[Any]) -> pa.DataType | None:
    """Return the type of values: text if they have none in common; None if JSON text alone holds what is nested."""
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
    """Return the type in which a column is stored: dictionaries are decoded, and what is all null counts as text.

    All fields may be null, as they may be in other files.
    """
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.string() if pa.types.is_null(kind) else _mapped(kind, lambda leaf: leaf)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type is one of Arrow's for text."""
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def coarse(array: pa.Array) -> pa.Array:
    """Return an array with microseconds for nanoseconds, which Python has only where pandas is installed."""
    kind = _coarse(array.type)
    return array if kind == array.type else array.cast(kind, safe=False)


def printable(array: pa.Array) -> pa.Array:
    """Return an array with text for dates and times, also for those that Python does not have."""
    kind = _mapped(array.type, lambda leaf: pa.string() if pa.types.is_temporal(leaf) else leaf)
    return array if kind == array.type else array.cast(kind)


def _single(value: Values, wanted: pa.DataType | None, as_text: bool) -> pa.Array | None:
    try:
        return _array(value, wanted, as_text)
    except _WRONG:
        return None


def _array(values: Values, wanted: pa.DataType | None, as_text: bool) -> pa.Array:
    if isinstance(values, pa.Array):
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.type == wanted:
            values.validate(full=True)  # nothing looked into strings of Parquet before
            return values
        if wanted is not None and _coarse(values.type) == _coarse(wanted):
            return values.cast(wanted)  # fails where nanoseconds are lost
        values = values.to_pylist()
    if wanted is None:
        given = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        return pa.array(given, pa.string())
    if is_text(wanted):
        return _compared([json.dumps(value) if as_text and _is_number(value) else value for value in values], wanted)
    if not any(isinstance(value, str) for value in values):
        return _compared(values, wanted)
    others = [None if isinstance(value, str) else value for value in values]
    # an empty field of CSV says that there is nothing
    texts = pa.array([value or None if isinstance(value, str) else None for value in values], pa.string())
    if pa.types.is_floating(wanted):  # with all digits, so that what is too large for a narrow float is noticed
        numbers = texts.cast(pa.float64()).to_pylist()
        return _compared([one if two is None else two for one, two in zip(others, numbers, strict=True)], wanted)
    return pc.coalesce(texts.cast(wanted), _compared(others, wanted))


def _compared(values: Sequence[Any], wanted: pa.DataType) -> pa.Array:
    # Arrow cuts what does not fit: 2.5 to 2 in integers, the time off a date
    array = pa.array(values, wanted)
    if not all(map(_is_same, values, coarse(array).to_pylist())):
        raise ValueError(f"not all of it is {wanted}")
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
        return True  # a number of the type's units
    return bool(given == stored)


def _is_known(kind: pa.DataType, depth: int = 0) -> bool:
    """Tell whether Parquet takes an inferred type: `[]` says nothing of its elements, `{}` has no fields."""
    if pa.types.is_struct(kind):
        return depth < _DEPTH and kind.num_fields > 0 and all(_is_known(field.type, depth + 1) for field in kind)
    if pa.types.is_list(kind):
        return depth < _DEPTH and _is_known(kind.value_type, depth + 1)
    return not pa.types.is_null(kind)


def _has_all_keys(value: Any, kind: pa.DataType) -> bool:
    """Tell whether the objects in a value have all fields of their type, so that none is taken for null."""
    if isinstance(value, list):
        return all(_has_all_keys(each, kind.value_type) for each in value)
    if isinstance(value, dict):
        return len(value) == kind.num_fields and all(_has_all_keys(value[field.name], field.type) for field in kind)
    return True


def _mapped(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type with other leaves, all of which may be null."""

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
