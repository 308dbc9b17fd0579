"""Values of ids and kept columns come out as they went in, or their row is rejected."""

from __future__ import annotations

import datetime
import io
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5onnx import Encoder, InputValueError
from e5onnx.files import RowError, embed_files
from e5onnx.files.columns import Columns, named_types
from e5onnx.files.values import array_of, inferred

NOON = datetime.datetime(2020, 1, 1, 12, 0, 0, 500)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, threads=1)


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
        ("", pa.int64(), None),
        ("", pa.string(), ""),
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


def test_numbers_become_text_where_text_was_asked_for() -> None:
    array, wrong = array_of([1, "x", 2.5, True, None], pa.string(), as_text=True)
    assert array.to_pylist() == ["1", "x", "2.5", None, None]
    assert wrong == [3]


def run(encoder: Encoder, tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> pa.Table:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    embed_files(encoder, [str(path)], tmp_path / "out", **options)
    return ds.dataset(tmp_path / "out").to_table()


def test_a_value_of_another_type_in_a_later_part_is_no_silent_change(encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"text": "a", "id": 1, "n": None}, {"text": "b", "id": 2.5, "n": 2}]
    columns = Columns(id="id", keep=("n",))
    with pytest.raises(
        RowError, match=r"line 2: column 'id' is 2.5, which is not of type int64; --id-column 'id:double' accepts it"
    ):
        run(encoder, tmp_path, rows, columns=columns, part_rows=1)
    (tmp_path / "typed").mkdir()
    table = run(
        encoder,
        tmp_path / "typed",
        rows,
        columns=columns,
        column_types={"id": "string", "n": "int64"},
        part_rows=1,
    )
    assert table.column("id").to_pylist() == ["1", "2.5"]
    assert table.column("n").to_pylist() == [None, 2]


def test_a_message_names_the_option_that_takes_the_value(encoder: Encoder, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "n": "x"}, {"text": "b", "n": 2}]
    with pytest.raises(
        RowError, match="is 2, which is not of type string; --keep-columns 'n:int64' or --keep-columns 'n:string' accepts it"
    ):
        run(encoder, tmp_path, rows, columns=Columns(keep=("n",)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(keep=("kk",)), "the first part has no column 'kk'; its columns are 'k', 'text'"),
        (Columns(title="titel"), "the first part has no column 'titel'; its columns are 'k', 'text'$"),
        (Columns(text="txt"), "the first part has no column 'txt'; its columns are 'k', 'text'$"),
        (Columns(keep=("k:strng",)), r"column 'k:strng' \('strng' is not a type\)"),
    ],
)
def test_a_misspelt_column_is_an_error(encoder: Encoder, tmp_path: Path, columns: Columns, message: str) -> None:
    with pytest.raises(InputValueError, match=message):
        run(encoder, tmp_path, [{"text": "a", "k": 1}, {"text": "b"}], columns=columns)


def test_a_misspelt_type_is_an_error_in_csv(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,k\na,1\n")
    with pytest.raises(InputValueError, match=r"has no column 'k:strng' \('strng' is not a type\)"):
        embed_files(encoder, [str(tmp_path / "a.csv")], tmp_path / "out", columns=Columns(keep=("k:strng",)))


def test_an_empty_id_is_no_number(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,a\n,b\n")
    with pytest.raises(RowError, match="row 2: its id, column 'id', is missing or empty"):
        embed_files(
            encoder,
            [str(tmp_path / "a.csv")],
            tmp_path / "out",
            columns=Columns(id="id"),
            column_types={"id": "int64"},
        )


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array([1, 2, None], pa.timestamp("us", "Europe/Berlin")),
        pa.array([1000, 2000, None], pa.timestamp("ns", "UTC")),
        pa.array([Decimal("1.20"), None, Decimal("-3.45")]),
        pa.array([[1], [], None]),
        pa.array([{"a": 1, "b": ["x"]}, {"a": None, "b": []}, None]),
        pa.array([b"ab", b"\xff\xff", None], pa.binary(2)),
        pa.array([2**63 + 5, 1, 2], pa.uint64()),
        pa.array(["x", None, "z"], pa.large_string()),
        pa.array([1, 86399999999, 3], pa.time64("us")),
        pa.nulls(3),
    ],
    ids=lambda array: str(array.type),
)
def test_parquet_columns_of_any_type_are_kept(encoder: Encoder, tmp_path: Path, array: pa.Array) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "kept": array}), tmp_path / "a.parquet")

    def embed() -> None:
        embed_files(
            encoder, [str(tmp_path / "a.parquet")], tmp_path / "out", columns=Columns(keep=("kept",)), part_rows=2
        )

    embed()
    table = ds.dataset(tmp_path / "out").to_table()
    assert table.column("kept").to_pylist() == array.to_pylist()
    if not pa.types.is_dictionary(array.type) and not pa.types.is_null(array.type):
        assert table.schema.field("kept").type == array.type
    first = tmp_path / "out/part-000000.parquet"
    content = first.read_bytes()
    first.unlink()
    embed()  # which finds the types in the plan
    assert first.read_bytes() == content


def test_dates_that_python_does_not_have_are_kept(encoder: Encoder, tmp_path: Path) -> None:
    dates = pa.array([1, 2**62, 2], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "t": dates}), tmp_path / "a.parquet")
    embed_files(encoder, [str(tmp_path / "a.parquet")], tmp_path / "out", columns=Columns(keep=("t",)))
    assert ds.dataset(tmp_path / "out").to_table().column("t").combine_chunks() == dates


def test_json_lines_beside_npy_are_json(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "n": NaN, "l": [1.5, Infinity]}\n')
    embed_files(encoder, [str(path)], tmp_path / "out", columns=Columns(keep=("n", "l")), output_format="npy")
    assert (tmp_path / "out/part-000000.jsonl").read_text() == '{"id": 0, "n": null, "l": [1.5, null]}\n'


def test_maps_in_json_lines_hold_null_for_what_json_does_not_have(encoder: Encoder, tmp_path: Path) -> None:
    maps = pa.array([[("a", float("nan")), ("b", 1.0)]], pa.map_(pa.string(), pa.float64()))
    pq.write_table(pa.table({"text": ["a"], "m": maps}), tmp_path / "a.parquet")
    embed_files(
        encoder, [str(tmp_path / "a.parquet")], tmp_path / "out", columns=Columns(keep=("m",)), output_format="npy"
    )
    assert (tmp_path / "out/part-000000.jsonl").read_text() == '{"id": 0, "m": [["a", null], ["b", 1.0]]}\n'


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
@pytest.mark.parametrize("kind", ["month_day_nano_interval", "list<month_day_nano_interval>", "binary_view"])
def test_a_type_that_cannot_be_kept_is_said_before_the_model_runs(
    encoder: Encoder, tmp_path: Path, kind: str, output_format: Literal["parquet", "npy"]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "x": null}\n{"text": "b"}\n')
    with pytest.raises(InputValueError, match=r"column 'x' is of type .*, which cannot be kept .*'x:json'"):
        embed_files(
            encoder,
            [str(tmp_path / "a.jsonl")],
            tmp_path / "out",
            columns=Columns(keep=("x",)),
            column_types={"x": kind},
            output_format=output_format,
        )
    assert not (tmp_path / "out/_e5onnx/plan.json").exists()


def test_a_column_of_tensors_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((1, 2, 2), np.float32))
    pq.write_table(pa.table({"text": ["a"], "x": tensors}), tmp_path / "a.parquet")
    with pytest.raises(InputValueError, match=r"column 'x' is of type .*tensor.*, which cannot be kept"):
        embed_files(encoder, [str(tmp_path / "a.parquet")], tmp_path / "out", columns=Columns(keep=("x",)))


def test_a_value_that_cannot_be_written_is_said(encoder: Encoder, tmp_path: Path) -> None:
    times = pa.array([1], pa.timestamp("us", "Nowhere/Land"))
    pq.write_table(pa.table({"text": ["a"], "t": times}), tmp_path / "a.parquet")
    with pytest.raises(InputValueError, match=r"a kept column of .*part-000000 cannot be written: .*Nowhere/Land"):
        embed_files(
            encoder, [str(tmp_path / "a.parquet")], tmp_path / "out", columns=Columns(keep=("t",)), output_format="npy"
        )


@pytest.mark.parametrize(
    "columns", [Columns(text="\ud800"), Columns(title="\ud800"), Columns(id="\ud800"), Columns(keep=("\ud800",))]
)
def test_names_of_columns_are_text(encoder: Encoder, tmp_path: Path, columns: Columns) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "\\ud800": "b"}\n')
    with pytest.raises(InputValueError, match=r"the name of a column holds the lone surrogate U\+D800"):
        embed_files(encoder, [str(tmp_path / "a.jsonl")], tmp_path / "out", columns=columns)


def test_a_page_that_differs_from_its_checksum_is_noticed(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["spam and eggs"]}),
        path,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    embed_files(encoder, [str(path)], tmp_path / "out")
    path.write_bytes(path.read_bytes().replace(b"spam", b"spat"))
    with pytest.raises(InputValueError, match=r"a\.parquet is damaged"):
        embed_files(encoder, [str(path)], tmp_path / "other")


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, 1_600_000_000_123_456_789, None], pa.timestamp("ns")),
        pa.array([1, 999, None], pa.duration("ns")),
        pa.array([1, 86_399_999_999_999, None], pa.time64("ns")),
        pa.array([1, 2**62, -(2**62)], pa.timestamp("us")),  # years that Python does not have
        pa.array([[("a", float("nan"))], [], None], pa.map_(pa.string(), pa.float64())),
        pa.array([[("a", 1), ("b", None)], [], None], pa.map_(pa.string(), pa.int64())),
        pa.array([[1], [2**60 + 1], None], pa.list_(pa.timestamp("ns"))),
        pa.array([{"a": {"b": [float("nan")]}}, {"a": None}, None]),
        pa.array([1.5, float("nan"), float("-inf")], pa.float32()),
    ],
    ids=lambda array: str(array.type),
)
@pytest.mark.parametrize("output_format", ["parquet", "npy"])
def test_parquet_columns_are_kept_exactly(
    encoder: Encoder, tmp_path: Path, array: pa.Array, output_format: Literal["parquet", "npy"]
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "k": array}), path)
    columns = Columns(keep=("k",))
    embed_files(encoder, [str(path)], tmp_path / "out", columns=columns, part_rows=2, output_format=output_format)
    if output_format == "parquet":
        kept = ds.dataset(tmp_path / "out").to_table().column("k").combine_chunks()
        assert kept.type == array.type
        # in which NaN is NaN
        assert kept.equals(array) or repr(kept.to_pylist()) == repr(array.to_pylist())
    else:
        lines = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").glob("*.jsonl"))).splitlines()
        assert [json.loads(line)["id"] for line in lines] == [0, 1, 2]


WITH_NANOSECONDS = """
import sys
from pathlib import Path
from e5onnx import Encoder
from e5onnx.files import Columns, embed_files
model, corpus, output, output_format, *types = sys.argv[1:]
types = dict(each.split(":") for each in types)
embed_files(
    Encoder(model, threads=1), [corpus], Path(output), columns=Columns(keep=tuple(types)), on_error="skip",
    column_types={name: kind for name, kind in types.items() if kind}, output_format=output_format,
)
"""


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
def test_all_is_the_same_where_pandas_is_missing(tiny_model: Path, tmp_path: Path, output_format: str) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "none").mkdir()
    (tmp_path / "none/pandas.py").write_text("raise ModuleNotFoundError('no', name='pandas')")
    times = pa.array([1000, 1_600_000_000_123_456_789, None], pa.timestamp("ns"))
    structs = pa.StructArray.from_arrays([times], ["x"])
    pq.write_table(pa.table({"text": ["a", "b", "c"], "t": times, "d": times, "s": structs}), tmp_path / "a.parquet")
    given = [{"text": "a", "t": "2020-01-01T00:00:00.123456789"}, {"text": "b", "t": 123456789}, {"text": "c"}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    for name, types, rejected in (
        ("a.parquet", ["t:", "d:timestamp[us]", "s:"], [2]),  # whose nanoseconds would be lost
        ("b.jsonl", ["t:timestamp[ns]"], []),
    ):
        outputs = []
        for path in ("", str(tmp_path / "none")):
            output = tmp_path / f"{name} {bool(path)}"
            command = [sys.executable, "-c", WITH_NANOSECONDS, str(tiny_model), str(tmp_path / name), str(output)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, *sys.path]))}
            subprocess.run([*command, output_format, *types], check=True, env=environment)
            outputs.append({each.name: each.read_bytes() for each in output.glob("part-*")})
            rejects = output / "_e5onnx/rejects.jsonl"
            lines = rejects.read_text().splitlines() if rejects.exists() else []
            assert [json.loads(line)["row"] for line in lines] == rejected
        assert outputs[0] == outputs[1]
    if output_format == "parquet":
        kept = pq.read_table(tmp_path / "b.jsonl True/part-000000.parquet").column("t").combine_chunks()
        assert kept.cast(pa.int64()).to_pylist() == [1_577_836_800_123_456_789, 123456789, None]


NESTED = [
    # values of the first part, a later one, the column that is made of them
    ([[], []], ["x"], ["[]", "[]", '["x"]']),
    ([{}, {}], {"a": 1}, ["{}", "{}", '{"a": 1}']),
    ([{"a": 1}, {"b": "ä"}], {"c": [None]}, ['{"a": 1}', '{"b": "ä"}', '{"c": [null]}']),
    ([{"a": []}, {"a": []}], {"a": [1]}, ['{"a": []}', '{"a": []}', '{"a": [1]}']),
    ([[1], "x"], 2.5, ["[1]", '"x"', "2.5"]),
    ([[1], ["x"]], None, ["[1]", '["x"]', None]),
    ([[False], [0.5]], None, ["[false]", "[0.5]", None]),
    ([[[1], [2.5]], [[3]]], [[4]], [[[1], [2.5]], [[3]], [[4]]]),
    ([{"a": 1, "b": ["x"]}, {"b": [], "a": None}], None, [{"a": 1, "b": ["x"]}, {"a": None, "b": []}, None]),
]


@pytest.mark.parametrize(("first", "later", "stored"), NESTED)
def test_nested_values_that_vary_become_json_text(
    encoder: Encoder, tmp_path: Path, first: list[Any], later: Any, stored: list[Any]
) -> None:
    rows = [{"text": "a", "k": value} for value in (*first, later)]
    table = run(encoder, tmp_path, rows, columns=Columns(keep=("k",)), part_rows=2)
    assert table.column("k").to_pylist() == stored
    run(encoder, tmp_path, rows, columns=Columns(keep=("k",)), part_rows=2)  # which finds the types in the plan


def test_what_is_nested_too_deeply_for_readers_of_parquet_becomes_json_text(encoder: Encoder, tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(50):
        value = [value]
    table = run(encoder, tmp_path, [{"text": "a", "k": value}], columns=Columns(keep=("k",)))
    assert table.column("k").to_pylist() == [json.dumps(value)]


@pytest.mark.parametrize(
    ("first", "later", "message", "remedy", "stored"),
    [
        (
            {"a": 1},
            {"b": 2},
            r"is \{'b': 2\}, which is not of type struct<a: int64>; --keep-columns 'k:json'",
            "json",
            None,
        ),
        (None, ["x"], r"not of type string; --keep-columns 'k:list<string>' or --keep-columns 'k:json'", "json", None),
        (
            ["x"],
            [1],
            r"not of type list<string>; --keep-columns 'k:list<int64>' or --keep-columns 'k:json'",
            "json",
            None,
        ),
        (None, ["x"], r"--keep-columns 'k:list<string>' or", "list<string>", [None, ["x"]]),
    ],
)
def test_a_later_mismatch_of_nested_values_names_its_remedy(
    encoder: Encoder, tmp_path: Path, first: Any, later: Any, message: str, remedy: str, stored: Any
) -> None:
    rows = [{"text": "a", "k": first}, {"text": "b", "k": later}]
    with pytest.raises(RowError, match=message):
        run(encoder, tmp_path, rows, columns=Columns(keep=("k",)), part_rows=1)
    (tmp_path / "typed").mkdir()
    types: dict[str, str] = {}
    keep = named_types([f"k:{remedy}"], types)
    table = run(encoder, tmp_path / "typed", rows, columns=Columns(keep=tuple(keep)), column_types=types, part_rows=1)
    texts = [None if value is None else json.dumps(value) for value in (first, later)]
    assert table.column("k").to_pylist() == (stored or texts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(JSON, max_size=5), later=JSON)
def test_values_are_kept_or_rejected_but_not_changed(values: list[Any], later: Any) -> None:
    kind = inferred(values)
    array, wrong = array_of([*values, later], kind)
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
        else:
            assert without_nulls(value) == without_nulls(stored)


def without_nulls(value: Any) -> Any:
    """Return a value without the fields that are null, which objects of one Arrow type all have."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def test_strings_of_parquet_that_are_not_utf8_reject_their_rows(encoder: Encoder, tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"bad \xff", None], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, broken.buffers())
    pq.write_table(pa.table({"text": ["a", "b", "c"], "k": strings}), tmp_path / "a.parquet")
    embed_files(encoder, [str(tmp_path / "a.parquet")], tmp_path / "out", columns=Columns(keep=("k",)), on_error="skip")
    (reject,) = map(json.loads, (tmp_path / "out/_e5onnx/rejects.jsonl").read_text().splitlines())
    assert reject["row"] == 2
    assert reject["reason"].startswith("column 'k' is not valid UTF-8: ")
    assert ds.dataset(tmp_path / "out").to_table().column("k").to_pylist() == ["fine", None]


@pytest.mark.parametrize(
    ("kind", "values", "later"),
    [
        (pa.struct([pa.field("a", pa.int64(), nullable=False)]), [{"a": 1}], {"a": None}),
        (pa.list_(pa.field("item", pa.int64(), nullable=False)), [[1]], [None]),
    ],
)
def test_what_may_not_be_null_in_one_file_may_be_in_another(
    encoder: Encoder, tmp_path: Path, kind: pa.DataType, values: list[Any], later: Any
) -> None:
    pq.write_table(pa.table({"text": ["a"], "k": pa.array(values, kind)}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "b", "k": later}) + "\n")
    embed_files(encoder, [str(tmp_path / "[ab].*")], tmp_path / "out", columns=Columns(keep=("k",)))
    assert ds.dataset(tmp_path / "out").to_table().column("k").to_pylist() == [*values, later]


def test_a_part_does_not_depend_on_where_its_file_was_entered(encoder: Encoder, tmp_path: Path) -> None:
    rows = 5000
    table = {"text": [f"text {number}" for number in range(rows)], "k": ["long " * 500 + str(n) for n in range(rows)]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=700)

    def parts() -> dict[str, bytes]:
        columns = Columns(keep=("k",))
        embed_files(encoder, [str(tmp_path / "a.parquet")], tmp_path / "out", columns=columns, part_rows=1500)
        return {path.name: path.read_bytes() for path in (tmp_path / "out").glob("part-*")}

    first = parts()
    for number in (1, 2):
        (tmp_path / f"out/_e5onnx/done/part-{number:06d}.json").unlink()
        assert parts() == first


def test_parquet_files_of_other_types_are_converted_or_rejected(encoder: Encoder, tmp_path: Path) -> None:
    for name, array in {
        "a": pa.array([1, None], pa.int64()),
        "b": pa.array([2, 3], pa.int32()),
        "c": pa.array(["4", "x"]).dictionary_encode(),
        "d": pa.array([5.0, 5.5]),
        "e": pa.nulls(2),
    }.items():
        pq.write_table(pa.table({"text": ["a", "b"], "k": array}), tmp_path / f"{name}.parquet")
    embed_files(encoder, [str(tmp_path / "*.parquet")], tmp_path / "out", columns=Columns(keep=("k",)), on_error="skip")
    rejects = [json.loads(line) for line in (tmp_path / "out/_e5onnx/rejects.jsonl").read_text().splitlines()]
    assert [(Path(each["file"]).name, each["row"]) for each in rejects] == [("c.parquet", 2), ("d.parquet", 2)]
    table = ds.dataset(tmp_path / "out").to_table()
    assert table.column("k").to_pylist() == [1, None, 2, 3, 4, 5, None, None]
    assert table.column("id").to_pylist() == [0, 1, 2, 3, 4, 6, 8, 9]
