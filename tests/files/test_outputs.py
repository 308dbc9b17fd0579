"""Parts: their formats and the types of their vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora import near, write_jsonl
from e5onnx import Encoder, InputValueError
from e5onnx.errors import JobChangedError
from e5onnx.files import Columns, embed_files
from e5onnx.files.outputs import quantized, write_part
from e5onnx.quantization import quantization_ranges
from texts import TEXTS

ROWS = [
    {"name": f"row {number}", "text": text, "year": 1900 + number}
    for number, text in enumerate(text for text in TEXTS if text.strip() and "\n" not in text)
]


def test_npy_has_ids_beside_it(encoder: Encoder, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    columns = Columns(id="name", keep=("year",))
    embed_files(encoder, [tmp_path / "a.jsonl"], tmp_path / "out", columns=columns, output_format="npy")
    near(np.load(tmp_path / "out/part-000000.npy"), encoder.encode_document([str(row["text"]) for row in ROWS]))
    lines = (tmp_path / "out/part-000000.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"id": row["name"], "year": row["year"]} for row in ROWS]


@pytest.mark.parametrize(("output_format", "dtype"), [(f, d) for f in ("parquet", "npy") for d in ("float16", "int8")])
def test_smaller_vectors_are_close_and_say_their_scale(
    encoder: Encoder, tmp_path: Path, output_format: Any, dtype: Any
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [tmp_path / "a.jsonl"], tmp_path / "out", output_format=output_format, dtype=dtype)
    expected = encoder.encode_document([str(row["text"]) for row in ROWS])
    if output_format == "npy":
        vectors = np.load(tmp_path / "out/part-000000.npy")
        scales = np.load(tmp_path / "out/part-000000.scale.npy") if dtype == "int8" else 1
    else:
        table = pq.read_table(tmp_path / "out/part-000000.parquet")
        vectors = np.array(table.column("embedding").to_pylist(), dtype)
        scales = table.column("embedding_scale").to_numpy() if dtype == "int8" else 1
    assert str(vectors.dtype) == dtype
    restored = vectors.astype(np.float32) * np.reshape(scales, (-1, 1))
    most = np.abs(expected).max(axis=1, keepdims=True) / 127 / 2 if dtype == "int8" else np.abs(expected) / 2048
    assert (np.abs(restored - expected) <= most + 1e-6).all()


@pytest.mark.parametrize(("output_format", "dtype"), [("parquet", "binary"), ("npy", "ubinary")])
def test_signs_are_those_of_the_vectors(encoder: Encoder, tmp_path: Path, output_format: Any, dtype: Any) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    for name, kind in [("bits", dtype), ("floats", "float32")]:
        embed_files(encoder, [tmp_path / "a.jsonl"], tmp_path / name, output_format=output_format, dtype=kind)
    if output_format == "npy":
        bits, floats = (np.load(tmp_path / name / "part-000000.npy") for name in ("bits", "floats"))
    else:
        columns = (pq.read_table(tmp_path / name / "part-000000.parquet")["embedding"] for name in ("bits", "floats"))
        bits, floats = (np.array(column.to_pylist()) for column in columns)
    expected = np.packbits(floats > 0, axis=1).astype(int) - (128 if dtype == "binary" else 0)
    np.testing.assert_array_equal(bits, expected)


@pytest.mark.parametrize(("output_format", "dtype"), [("parquet", "uint8"), ("npy", "int8")])
def test_ranges_are_those_of_the_whole_corpus(encoder: Encoder, tmp_path: Path, output_format: Any, dtype: Any) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    floats = encoder.encode_document([str(row["text"]) for row in ROWS])
    ranges = quantization_ranges(floats[:5])  # a sample: other vectors exceed it
    out, options = tmp_path / "out", {"output_format": output_format, "dtype": dtype, "part_rows": 3}
    embed_files(encoder, [tmp_path / "a.jsonl"], out, ranges=ranges, **options)
    if output_format == "npy":
        stored = np.concatenate([np.load(path) for path in sorted(out.glob("part-*.npy"))])
    else:
        table = pq.read_table(out)
        assert "embedding_scale" not in table.column_names
        stored = np.array(table["embedding"].to_pylist())
    steps = np.clip(np.floor((floats - ranges[0]) / ((ranges[1] - ranges[0]) / 255)), 0, 255)
    expected = steps - (128 if dtype == "int8" else 0)
    # a component at the edge of two steps may fall on either side, as texts run in other batches here
    assert (np.abs(stored.astype(int) - expected) <= 1).all()
    assert (stored == expected).mean() > 0.999
    settings = json.loads((out / "_e5onnx" / "summary.json").read_text())["settings"]
    np.testing.assert_array_equal(np.array(settings["ranges"], np.float32), ranges)
    with pytest.raises(JobChangedError, match=r"ranges '[0-9a-f]{12}', now '[0-9a-f]{12}'"):
        embed_files(encoder, [tmp_path / "a.jsonl"], out, ranges=ranges * 2, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "uint8"}, "uint8 needs `ranges`, one for the whole corpus"),
        ({"dtype": "binary", "ranges": [[0], [1]]}, "binary has no use for `ranges`"),
        ({"dtype": "uint8", "ranges": [[0], [1]]}, r"ranges must have shape \(2, 48\), got \(2, 1\)"),
        ({"dtype": "int8", "ranges": [[float("nan")] * 48] * 2}, "ranges holds NaN"),
    ],
)
def test_ranges_that_cannot_be_used_are_refused(
    encoder: Encoder, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(InputValueError, match=message):
        embed_files(encoder, [tmp_path / "a.jsonl"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_int8_of_zeros_is_zero() -> None:
    integers, scales = quantized(np.array([[0, 0], [-2, 1]], np.float32))
    assert (integers.tolist(), scales.tolist()) == ([[0, 0], [-127, 64]], [0, np.float32(2 / 127)])


def test_float16_that_would_be_infinite_is_refused(tmp_path: Path) -> None:
    def write(component: float) -> None:
        vectors = np.array([[1.0, component]], np.float32)
        write_part(tmp_path, "x", pa.table({"id": [0]}), vectors, output_format="npy", dtype="float16", metadata={})

    write(65519.0)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.array([[1, 65504]], np.float16))
    with pytest.raises(InputValueError, match="a component of a vector is too large for float16: use float32"):
        write(65520.0)


def test_json_lines_hold_null_for_numbers_that_json_does_not_have(encoder: Encoder, tmp_path: Path) -> None:
    maps = pa.array([[("a", float("nan")), ("b", 1.0)]], pa.map_(pa.string(), pa.float64()))
    table = pa.table({"text": ["a"], "n": [float("nan")], "l": [[1.5, float("inf")]], "m": maps})
    pq.write_table(table, tmp_path / "a.parquet")
    columns = Columns(keep=("n", "l", "m"))
    embed_files(encoder, [tmp_path / "a.parquet"], tmp_path / "out", columns=columns, output_format="npy")
    line = '{"id": 0, "n": null, "l": [1.5, null], "m": [["a", null], ["b", 1.0]]}\n'
    assert (tmp_path / "out/part-000000.jsonl").read_text() == line


def test_a_value_that_cannot_be_written_is_reported(encoder: Encoder, tmp_path: Path) -> None:
    times = pa.array([1], pa.timestamp("us", "Nowhere/Land"))
    pq.write_table(pa.table({"text": ["a"], "t": times}), tmp_path / "a.parquet")
    columns = Columns(keep=("t",))
    with pytest.raises(InputValueError, match=r"a kept column of .*part-000000 cannot be written: .*Nowhere/Land"):
        embed_files(encoder, [tmp_path / "a.parquet"], tmp_path / "out", columns=columns, output_format="npy")
