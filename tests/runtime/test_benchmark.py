"""`e5onnx benchmark`: what it measures, on a small model."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from e5onnx import Encoder, InferenceError, benchmark
from e5onnx.cli import main
from e5onnx.kinds import Kind


def measured(model: Path, *options: str) -> int:
    return main(["benchmark", str(model), "--seconds", "0.1", *options])


def test_every_kind_is_measured_in_each_round(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(tiny_model, "--provider", "cpu", "--threads", "1", "--json", str(tmp_path / "x.json")) == 0
    content: dict[str, Any] = json.loads((tmp_path / "x.json").read_text())
    (row,) = content["results"]
    encoder = Encoder(tiny_model, threads=1)
    assert (row["provider"], row["precision"], row["threads"]) == ("cpu", "fp32", 1)
    assert row["fingerprint"] == encoder.fingerprint
    assert len(row["passages_per_second"]) == 3
    assert len(row["question_seconds"]) == 60
    assert min(row["passages_per_second"] + row["question_seconds"]) > 0
    assert row["peak_memory"] is None or 30e6 < row["peak_memory"] < 1e9
    assert content["left_out"][0]["reason"].startswith("this model has no graph with precision 'int8'")
    lengths = encoder.count_tokens(benchmark.passages(), prompt_name="document")
    assert content["tokens_per_passage"] == pytest.approx(sum(lengths) / 512, abs=0.05)
    host, heading, line, *left_out = capsys.readouterr().out.splitlines()
    assert "threads 1" in host
    assert heading.split()[:2] == ["provider", "precision"]
    assert line.split()[:2] == ["cpu", "fp32"]
    assert line.count("*") == 2
    assert all(each.startswith("left out: ") for each in left_out)


def test_json_alone_goes_to_standard_output(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measured(tiny_model, "--precision", "fp32", "--provider", "cpu", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == []


def test_what_cannot_run_is_an_error(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measured(tiny_model, "--precision", "int8") == 1
    assert "int8 cannot run: this model has no graph" in capsys.readouterr().err
    for wrong in ("0", "nan", "-1"):
        with pytest.raises(SystemExit):
            measured(tiny_model, "--seconds", wrong)


def test_a_process_that_dies_is_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_rate", os._exit)
    options = Namespace(model=tiny_model, threads=1, revision=None, seconds=0.1)
    with pytest.raises(InferenceError, match="the process of cpu fp32 died; perhaps the memory was not enough"):
        benchmark._measured(options, [Kind("cpu", "fp32")])
