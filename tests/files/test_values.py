"""Values of ids and kept columns come out as they went in, or their row is rejected."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from e5onnx import Encoder, InputValueError
from e5onnx.files import RowError, embed_files
from e5onnx.files.columns import Columns
from e5onnx.files.values import array_of

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
        RowError, match=r"row 2: column 'id' is 2.5, which is not of type int64; --id-column 'id:double', in a"
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
        RowError, match="is 2, which is not of type string; --keep-columns 'n:int64' or --keep-columns 'n:string', "
    ):
        run(encoder, tmp_path, rows, columns=Columns(keep=("n",)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(keep=("kk",)), "none of the first 2 rows has a column 'kk'; they have 'k', 'text'"),
        (Columns(title="titel"), "none of the first 2 rows has a column 'titel'"),
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
