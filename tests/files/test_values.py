"""Values come out as they went in, or are named as wrong."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from e5onnx.files.values import array_of, inferred, is_text

NOON = datetime.datetime(2020, 1, 1, 12, 0, 0, 500)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2.5, pa.int64()),
        (2.0, pa.timestamp("s")),
        (True, pa.float64()),
        (True, pa.int64()),
        (1, pa.bool_()),
        (1e300, pa.float32()),
        ("1e300", pa.float32()),
        (2**53 + 1, pa.float64()),
        (2**64, pa.int64()),
        (NOON, pa.timestamp("s")),
        (NOON, pa.date32()),
        ("2.5", pa.int64()),
        ("2020-01-01T12:00:00", pa.date32()),
        ("soon", pa.int64()),
        ("", pa.int64()),
        ("", pa.bool_()),
        ("", pa.float32()),
        ("", pa.timestamp("us")),
        (" ", pa.float64()),
        (5, pa.string()),
        ("\ud800", pa.string()),
        (b"x", pa.string()),
        (Decimal("1.255"), pa.decimal128(5, 2)),
        ([1, 2.5], pa.list_(pa.int64())),
        ({"a": 1, "b": 2}, pa.struct([("a", pa.int64())])),
    ],
    ids=str,
)
def test_what_would_change_is_wrong(value: Any, kind: pa.DataType) -> None:
    array, wrong = array_of([None, value, None], kind)
    assert wrong == [1]
    assert array.to_pylist() == [None] * 3


@pytest.mark.parametrize(
    ("value", "kind", "stored"),
    [
        (5, pa.float64(), 5.0),
        (0.1, pa.float32(), pytest.approx(0.1)),
        (float("nan"), pa.float32(), pytest.approx(float("nan"), nan_ok=True)),
        ("5", pa.int64(), 5),
        ("", pa.string(), ""),
        ("", pa.binary(), b""),
        ("2020-01-01", pa.date32(), datetime.date(2020, 1, 1)),
        (NOON, pa.timestamp("us"), NOON),
        (1, pa.timestamp("s"), datetime.datetime(1970, 1, 1, 0, 0, 1)),
        ([0.1], pa.list_(pa.float32()), [pytest.approx(0.1)]),
        ({"a": 1}, pa.struct([("a", pa.int64()), ("b", pa.int64())]), {"a": 1, "b": None}),
    ],
    ids=str,
)
def test_what_fits_is_kept(value: Any, kind: pa.DataType, stored: Any) -> None:
    array, wrong = array_of([value], kind)
    assert not wrong
    assert array.type == kind
    assert array.to_pylist() == [stored]


@pytest.mark.parametrize("kind", [pa.int64(), pa.bool_(), pa.float32(), pa.date32(), pa.binary()], ids=str)
def test_empty_text_is_null_where_nothing_else_is(kind: pa.DataType) -> None:
    array, wrong = array_of(["", "soon", None, " "], kind, empty_is_null=True)
    assert array.to_pylist() == ([None, b"soon", None, b" "] if kind == pa.binary() else [None] * 4)
    assert wrong == ([] if kind == pa.binary() else [1, 3])
    assert array_of(["", None], pa.string(), empty_is_null=True)[0].to_pylist() == ["", None]


def test_numbers_become_text_where_text_was_asked_for() -> None:
    array, wrong = array_of([1, "x", 2.5, True, None], pa.string(), as_text=True)
    assert array.to_pylist() == ["1", "x", "2.5", None, None]
    assert wrong == [3]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


def without_nulls(value: Any) -> Any:
    """Return a value without the fields that are null, which objects of one Arrow type all have."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


@settings(max_examples=200, deadline=None)
@given(values=st.lists(JSON, max_size=5), later=JSON, empty_is_null=st.booleans())
@example(values=[False], later="", empty_is_null=False)
@example(values=[False], later="", empty_is_null=True)
@example(values=[1.5], later="", empty_is_null=False)
@example(values=[1], later="7", empty_is_null=False)
def test_values_are_kept_or_rejected_but_not_changed(values: list[Any], later: Any, empty_is_null: bool) -> None:
    kind = inferred(values)
    array, wrong = array_of([*values, later], kind, empty_is_null=empty_is_null)
    # text for what has no type in common, numbers for large and small ones
    assert set(wrong) <= {len(values)} or kind in (pa.string(), pa.float64())
    pq.write_table(pa.table({"k": array}), stream := io.BytesIO())  # which Parquet takes, and gives back
    found = pq.read_table(io.BytesIO(stream.getvalue())).column("k").to_pylist()
    for position, (value, stored) in enumerate(zip([*values, later], found, strict=True)):
        if position in wrong:
            assert stored is None
        elif kind is None:
            assert value == (None if stored is None else json.loads(stored))
        elif position < len(values):
            assert value == stored
        elif isinstance(value, str) and not is_text(kind):
            # text is read as the type, and empty text is null in CSV alone
            assert (stored is None) is (value == "" and empty_is_null)
        else:
            assert without_nulls(value) == without_nulls(stored)
