"""The local engine; that on Ray has its own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpora import near, write_jsonl
from e5onnx import Encoder
from e5onnx.files import embed_files, engines


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
def test_a_part_may_have_more_texts_than_are_run_at_once(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_format: Literal["parquet", "npy"]
) -> None:
    monkeypatch.setattr(engines, "_WINDOW", 3)
    texts = [f"text {number} " * number for number in range(1, 9)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    embed_files(encoder, [path], tmp_path / "out", output_format=output_format)
    if output_format == "npy":
        vectors = np.load(tmp_path / "out/part-000000.npy")
    else:
        vectors = np.array(pq.read_table(tmp_path / "out/part-000000.parquet").column("embedding").to_pylist())
    near(vectors, encoder.encode_document(texts))
