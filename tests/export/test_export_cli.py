"""`e5onnx export` as a user runs it. What it exports is in test_export.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoints import make_checkpoint, write_json
from e5onnx import Encoder
from e5onnx.cli import parse
from e5onnx.model_folder import ModelFolder


def export(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "e5onnx", "export", "--precision", "fp32", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "encoding": "utf-8", **options}
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=300, check=False, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("cli") / "multilingual-e5-small", layers=1, hidden_size=48, heads=4)


def test_export_shows_its_decisions_and_steps(checkpoint: Path, tmp_path: Path) -> None:
    done = export(checkpoint, tmp_path / "m", "--query-prompt", "q: ", "--pooling", "cls", "--max-tokens", "99")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for line in (
        "pooling    cls (--pooling)",
        "normalise  yes (E5 family)",
        "maximum    99 tokens (--max-tokens)",
        "prompts    query 'q: ', document 'passage: ' (E5 family, --query-prompt)",
        "Tracing the encoder",
        "largest difference",
        f"Wrote {tmp_path / 'm'}",
    ):
        assert line in done.stdout
    encoder = Encoder(tmp_path / "m")
    assert (encoder.max_tokens, encoder.manifest.pooling) == (99, "cls")
    assert encoder.prompts == {"query": "q: ", "document": "passage: "}


def test_json_is_the_manifest_alone(checkpoint: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = export("--json", checkpoint, "--query-prompt", "Frage für 🙂: ", tmp_path / "m", env=environment)
    assert done.stdout == (tmp_path / "m/e5onnx.json").read_text(encoding="utf-8")
    assert json.loads(done.stdout)["prompts"] == {"query": "Frage für 🙂: ", "document": "passage: "}
    assert "e5onnx: Tracing the encoder\n" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="Windows reports pipes without a reader as other errors")
def test_the_work_is_done_though_nobody_reads_its_steps(checkpoint: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = export(checkpoint, tmp_path / "m", stdout=writing)
    assert (done.returncode, done.stderr) == (0, "")
    command = [sys.executable, "-m", "e5onnx", "portable", str(tmp_path / "m")]
    portable = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (portable.returncode, portable.stderr) == (0, b"")
    assert [graph.portable for graph in ModelFolder.open(tmp_path / "m").manifest.graphs] == [False, True]


def test_precisions_are_repeated_or_separated_by_commas() -> None:
    default = ["fp32", "int8"]
    for given, expected in {
        "": None,
        "--precision fp32": ["fp32"],
        "--precision int8 --precision fp32": ["int8", "fp32"],
        "--precision fp32,int8": default,
        "--precision=int8,fp32": default,
    }.items():
        assert parse(["export", *given.split(), "sample", "models/sample"]).precision == expected


def test_failures_are_one_line_and_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "roberta/config.json", {"model_type": "roberta"})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    for arguments, part in [
        ((tmp_path / "roberta", tmp_path / "m"), "'roberta'"),
        ((tmp_path / "nowhere/at/all", tmp_path / "m"), "there is no folder"),
        ((checkpoint, tmp_path / "taken", "--force"), "is not a model folder"),
        ((checkpoint, tmp_path / "m", "--max-tokens", "100000"), "--max-tokens"),
    ]:
        done = export(*arguments)
        assert done.returncode == 1
        assert done.stdout.count("\n") <= 1
        assert done.stderr.startswith("e5onnx: error: ")
        assert done.stderr.count("\n") == 1
        assert part in done.stderr
    assert not (tmp_path / "m").exists()


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    for arguments in [(), ("sample",), ("sample", tmp_path / "m", "--pooling", "lasttoken")]:
        done = export(*arguments)
        assert done.returncode == 2
        assert "usage: e5onnx export" in done.stderr
