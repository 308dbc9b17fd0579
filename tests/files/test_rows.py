"""Ids and kept columns come out as they went in, or their row is rejected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora import content, parts, read_output, rejects, write_jsonl
from e5onnx import Encoder, InputValueError
from e5onnx.files import RowError, embed_files
from e5onnx.files.columns import Columns, named_types

KEEP = Columns(keep=("k",))


def run(encoder: Encoder, folder: Path, rows: list[dict[str, Any]], **options: Any) -> pa.Table:
    embed_files(encoder, [write_jsonl(folder / "a.jsonl", rows)], folder / "out", **options)
    return read_output(folder / "out")


def run_parquet(encoder: Encoder, folder: Path, column: pa.Array, **options: Any) -> None:
    pq.write_table(pa.table({"text": list("abc")[: len(column)], "k": column}), folder / "a.parquet")
    embed_files(encoder, [folder / "a.parquet"], folder / "out", columns=KEEP, **options)


def test_a_value_of_another_type_in_a_later_part_is_not_changed_silently(encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"text": "a", "id": 1, "n": None}, {"text": "b", "id": 2.5, "n": 2}]
    columns = Columns(id="id", keep=("n",))
    message = r"line 2: column 'id' is 2.5, which is not of type int64; --id-column 'id:double' accepts it"
    with pytest.raises(RowError, match=message):
        run(encoder, tmp_path, rows, columns=columns, part_rows=1)
    types = {"id": "string", "n": "int64"}
    table = run(encoder, tmp_path / "typed", rows, columns=columns, column_types=types, part_rows=1)
    assert table.column("id").to_pylist() == ["1", "2.5"]
    assert table.column("n").to_pylist() == [None, 2]


def test_an_empty_id_is_rejected(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,a\n,b\n")
    with pytest.raises(RowError, match="row 2: its id, column 'id', is missing or empty"):
        embed_files(
            encoder, [tmp_path / "a.csv"], tmp_path / "out", columns=Columns(id="id"), column_types={"id": "int64"}
        )


@pytest.mark.parametrize("suffix", ["jsonl", "json.gz", "csv", "tsv.bz2", "parquet"])
@pytest.mark.parametrize(
    ("kind", "good"), [("int64", "7"), ("double", "0.5"), ("bool", "true"), ("date32", "2020-01-01")]
)
def test_empty_text_is_null_in_csv_and_a_bad_row_elsewhere(
    suffix: str, kind: str, good: str, encoder: Encoder, tmp_path: Path
) -> None:
    in_csv = suffix.startswith(("csv", "tsv"))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content(path.name, [{"text": "a", "k": good}, {"text": "b", "k": ""}, {"text": "c", "k": "soon"}]))
    options: Any = {"columns": KEEP, "column_types": {"k": kind}}
    with pytest.raises(RowError) as caught:
        embed_files(encoder, [path], tmp_path / "out", **options)
    embed_files(encoder, [path], tmp_path / "out", on_error="skip", **options)
    table = read_output(tmp_path / "out")
    expected = pa.array([good]).cast(table.schema.field("k").type).to_pylist()
    assert table.column("k").to_pylist() == [*expected, *([None] if in_csv else [])]
    wrong = {each["row"]: each["reason"] for each in rejects(tmp_path / "out")}
    assert list(wrong) == ([3] if in_csv else [2, 3])
    assert wrong.get(2, wrong[3].replace("'soon'", "''")) == wrong[3].replace("'soon'", "''")
    assert str(caught.value).endswith(f"{min(wrong)}: {wrong[min(wrong)]}")


ARRAYS = [
    pa.array(["x", "y", "x"]).dictionary_encode(),
    pa.array([1, 2, None], pa.timestamp("us", "Europe/Berlin")),
    pa.array([1000, 2000, None], pa.timestamp("ns", "UTC")),
    pa.array([1, 1_600_000_000_123_456_789, None], pa.timestamp("ns")),
    pa.array([1, 2**62, -(2**62)], pa.timestamp("us")),  # years that Python does not have
    pa.array([1, 999, None], pa.duration("ns")),
    pa.array([1, 86_399_999_999_999, None], pa.time64("ns")),
    pa.array([1, 86399999999, 3], pa.time64("us")),
    pa.array([Decimal("1.20"), None, Decimal("-3.45")]),
    pa.array([2**63 + 5, 1, 2], pa.uint64()),
    pa.array([1.5, float("nan"), float("-inf")], pa.float32()),
    pa.array([b"ab", b"\xff\xff", None], pa.binary(2)),
    pa.array(["x", None, "z"], pa.large_string()),
    pa.array([[1], [], None]),
    pa.array([[1], [2**60 + 1], None], pa.list_(pa.timestamp("ns"))),
    pa.array([{"a": 1, "b": ["x"]}, {"a": None, "b": []}, None]),
    pa.array([{"a": {"b": [float("nan")]}}, {"a": None}, None]),
    pa.array([[("a", float("nan"))], [], None], pa.map_(pa.string(), pa.float64())),
    pa.array([[("a", 1), ("b", None)], [], None], pa.map_(pa.string(), pa.int64())),
    pa.nulls(3),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.type))
def test_parquet_columns_of_any_type_are_kept_exactly(encoder: Encoder, tmp_path: Path, array: pa.Array) -> None:
    run_parquet(encoder, tmp_path, array, part_rows=2)
    kept = read_output(tmp_path / "out").column("k").combine_chunks()
    expected = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    assert pa.types.is_null(array.type) or kept.type == expected.type
    assert kept.equals(expected) or repr(kept.to_pylist()) == repr(expected.to_pylist())  # in which NaN is NaN
    first = tmp_path / "out/part-000000.parquet"
    content = first.read_bytes()
    first.unlink()
    run_parquet(encoder, tmp_path, array, part_rows=2)
    assert first.read_bytes() == content  # the types are those of the plan


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.type))
def test_parquet_columns_of_any_type_become_json_lines(encoder: Encoder, tmp_path: Path, array: pa.Array) -> None:
    run_parquet(encoder, tmp_path, array, output_format="npy")
    lines = [json.loads(line) for line in (tmp_path / "out/part-000000.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2]
    if not pa.types.is_floating(array.type):  # NaN and infinity are null
        assert [line["k"] is None for line in lines] == array.is_null().to_pylist()


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
@pytest.mark.parametrize("kind", ["month_day_nano_interval", "list<month_day_nano_interval>", "binary_view"])
def test_a_type_that_cannot_be_kept_is_reported_before_the_model_runs(
    encoder: Encoder, tmp_path: Path, kind: str, output_format: str
) -> None:
    options: Any = {"columns": KEEP, "column_types": {"k": kind}, "output_format": output_format}
    with pytest.raises(InputValueError, match=r"column 'k' is of type .*, which cannot be kept .*'k:json'"):
        run(encoder, tmp_path, [{"text": "a", "k": None}, {"text": "b"}], **options)
    assert not (tmp_path / "out/_e5onnx/plan.json").exists()


def test_a_column_of_tensors_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((1, 2, 2), np.float32))
    with pytest.raises(InputValueError, match=r"column 'k' is of type .*tensor.*, which cannot be kept"):
        run_parquet(encoder, tmp_path, tensors)


WITH_NANOSECONDS = """
import sys
from e5onnx import Encoder
from e5onnx.files import Columns, embed_files
model, folder, output = sys.argv[1:]
for name, types in {"a.parquet": {"t": "", "d": "timestamp[us]", "s": ""}, "b.jsonl": {"t": "timestamp[ns]"}}.items():
    for output_format in ("parquet", "npy"):
        embed_files(
            Encoder(model, threads=1), [f"{folder}/{name}"], f"{output}/{name}-{output_format}", on_error="skip",
            columns=Columns(keep=tuple(types)), column_types={name: kind for name, kind in types.items() if kind},
            output_format=output_format,
        )
"""


def test_all_is_the_same_where_pandas_is_missing(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "none").mkdir()
    (tmp_path / "none/pandas.py").write_text("raise ModuleNotFoundError('no', name='pandas')")
    times = pa.array([1000, 1_600_000_000_123_456_789, None], pa.timestamp("ns"))
    structs = pa.StructArray.from_arrays([times], ["x"])
    pq.write_table(pa.table({"text": ["a", "b", "c"], "t": times, "d": times, "s": structs}), tmp_path / "a.parquet")
    write_jsonl(
        tmp_path / "b.jsonl", [{"text": "a", "t": "2020-01-01T00:00:00.123456789"}, {"text": "b", "t": 123456789}]
    )
    for name, path in (("with", ""), ("without", str(tmp_path / "none"))):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, *sys.path]))}
        arguments = [str(tiny_model), str(tmp_path), str(tmp_path / name)]
        subprocess.run([sys.executable, "-c", WITH_NANOSECONDS, *arguments], check=True, env=environment)
    outputs = {output.name: output for output in (tmp_path / "without").iterdir()}
    assert len(outputs) == 4
    for name, output in outputs.items():
        assert parts(output) == parts(tmp_path / "with" / name)
        # the nanoseconds of one row do not fit
        assert [each["row"] for each in rejects(output)] == ([2] if name.startswith("a.parquet") else [])
    kept = read_output(outputs["b.jsonl-parquet"]).column("t").cast(pa.int64())
    assert kept.to_pylist() == [1_577_836_800_123_456_789, 123456789]


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
    table = run(encoder, tmp_path, rows, columns=KEEP, part_rows=2)
    assert table.column("k").to_pylist() == stored
    run(encoder, tmp_path, rows, columns=KEEP, part_rows=2)  # which finds the types in the plan


def test_what_is_nested_too_deeply_for_readers_of_parquet_becomes_json_text(encoder: Encoder, tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(50):
        value = [value]
    table = run(encoder, tmp_path, [{"text": "a", "k": value}], columns=KEEP)
    assert table.column("k").to_pylist() == [json.dumps(value)]


OTHER = "which is not of type"


@pytest.mark.parametrize(
    ("first", "later", "message", "remedy", "stored"),
    [
        ("x", 2, f"is 2, {OTHER} string; OPTION 'k:int64' or OPTION 'k:string' accepts", "string", ["x", "2"]),
        ({"a": 1}, {"b": 2}, rf"is \{{'b': 2\}}, {OTHER} struct<a: int64>; OPTION 'k:json' accepts", "json", None),
        (None, ["x"], f"{OTHER} string; OPTION 'k:list<string>' or OPTION 'k:json' accepts", "json", None),
        (["x"], [1], f"{OTHER} list<string>; OPTION 'k:list<int64>' or OPTION 'k:json' accepts", "json", None),
        (None, ["x"], "OPTION 'k:list<string>' or", "list<string>", [None, ["x"]]),
    ],
)
def test_a_later_value_of_another_type_names_its_remedy(
    encoder: Encoder, tmp_path: Path, first: Any, later: Any, message: str, remedy: str, stored: Any
) -> None:
    rows = [{"text": "a", "k": first}, {"text": "b", "k": later}]
    with pytest.raises(RowError, match=message.replace("OPTION", "--keep-columns")):
        run(encoder, tmp_path, rows, columns=KEEP, part_rows=1)
    types: dict[str, str] = {}
    keep = named_types([f"k:{remedy}"], types)
    table = run(encoder, tmp_path / "typed", rows, columns=Columns(keep=tuple(keep)), column_types=types, part_rows=1)
    texts = [None if value is None else json.dumps(value) for value in (first, later)]
    assert table.column("k").to_pylist() == (stored or texts)


def test_strings_of_parquet_that_are_not_utf8_reject_their_rows(encoder: Encoder, tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"bad \xff", None], pa.binary())
    run_parquet(encoder, tmp_path, pa.Array.from_buffers(pa.string(), 3, broken.buffers()), on_error="skip")
    (reject,) = rejects(tmp_path / "out")
    assert reject["row"] == 2
    assert reject["reason"].startswith("column 'k' is not valid UTF-8: ")
    assert read_output(tmp_path / "out").column("k").to_pylist() == ["fine", None]


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
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "k": later}])
    embed_files(encoder, [tmp_path / "[ab].*"], tmp_path / "out", columns=KEEP)
    assert read_output(tmp_path / "out").column("k").to_pylist() == [*values, later]


def test_a_part_does_not_depend_on_where_its_file_was_entered(encoder: Encoder, tmp_path: Path) -> None:
    rows = 5000
    table = {"text": [f"text {number}" for number in range(rows)], "k": ["long " * 500 + str(n) for n in range(rows)]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=700)

    def written() -> dict[str, bytes]:
        embed_files(encoder, [tmp_path / "a.parquet"], tmp_path / "out", columns=KEEP, part_rows=1500)
        return parts(tmp_path / "out")

    first = written()
    for number in (1, 2):
        (tmp_path / f"out/_e5onnx/done/part-{number:06d}.json").unlink()
        assert written() == first


def test_parquet_files_of_other_types_are_converted_or_rejected(encoder: Encoder, tmp_path: Path) -> None:
    for name, array in {
        "a": pa.array([1, None], pa.int64()),
        "b": pa.array([2, 3], pa.int32()),
        "c": pa.array(["4", "x"]).dictionary_encode(),
        "d": pa.array([5.0, 5.5]),
        "e": pa.nulls(2),
    }.items():
        pq.write_table(pa.table({"text": ["a", "b"], "k": array}), tmp_path / f"{name}.parquet")
    embed_files(encoder, [tmp_path / "*.parquet"], tmp_path / "out", columns=KEEP, on_error="skip")
    rejected = rejects(tmp_path / "out")
    assert [(Path(each["file"]).name, each["row"]) for each in rejected] == [("c.parquet", 2), ("d.parquet", 2)]
    table = read_output(tmp_path / "out")
    assert table.column("k").to_pylist() == [1, None, 2, 3, 4, 5, None, None]
    assert table.column("id").to_pylist() == [0, 1, 2, 3, 4, 6, 8, 9]
