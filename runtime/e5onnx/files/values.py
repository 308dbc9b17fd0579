"""Values -> Arrow arrays that hold just these values. Only floats may lose digits, as they do in any narrower type."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_WRONG = (pa.ArrowException, ValueError, TypeError, OverflowError)


def array_of(values: Sequence[Any], wanted: pa.DataType, *, as_text: bool = False) -> tuple[pa.Array, list[int]]:
    """Return values as an array, and the positions of those that are not of the type, where the array has nulls.

    Args:
        values: as JSON, CSV and Parquet have them; texts, as CSV has nothing else, may say what another type holds.
        wanted: the type.
        as_text: numbers become text, if text is wanted.
    """
    try:
        return _array(values, wanted, as_text), []
    except _WRONG:
        wrong = [position for position, value in enumerate(values) if not _fits(value, wanted, as_text)]
        fitting = list(values)
        for position in wrong:
            fitting[position] = None
        return _array(fitting, wanted, as_text), wrong


def inferred(values: Sequence[Any]) -> pa.DataType:
    """Return the type of values, text for those that have none in common."""
    present = [value for value in values if value is not None]
    try:
        kind = pa.array(present).type
    except _WRONG:
        return pa.float64() if {type(value) for value in present} == {int, float} else pa.string()
    return storable(kind)


def storable(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column is stored: dictionaries are decoded, and what is all null counts as text."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.string() if pa.types.is_null(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type is one of Arrow's for text."""
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _array(values: Sequence[Any], wanted: pa.DataType, as_text: bool) -> pa.Array:
    # Arrow cuts what does not fit: 2.5 to 2 in integers, the time off a date
    given = [_read(value, wanted, as_text) for value in values]
    array = pa.array(given, wanted)
    if not all(map(_is_same, given, array.to_pylist())):
        raise ValueError(f"not all of it is {wanted}")
    return array


def _fits(value: Any, wanted: pa.DataType, as_text: bool) -> bool:
    try:
        _array([value], wanted, as_text)
    except _WRONG:
        return False
    return True


def _read(value: Any, wanted: pa.DataType, as_text: bool) -> Any:
    """Return what a text says; an empty field of CSV says that there is nothing."""
    if isinstance(value, str) and not is_text(wanted):
        # parsed with all digits, so that what is too large for a narrow float is noticed
        parsed = pa.float64() if pa.types.is_floating(wanted) else wanted
        return pa.scalar(value or None, pa.string()).cast(parsed).as_py()
    if as_text and is_text(wanted) and isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return value


def _is_same(given: Any, stored: Any) -> bool:
    if isinstance(given, list) and isinstance(stored, list):
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
