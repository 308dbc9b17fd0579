"""`e5onnx export` as a user runs it, in this process. What it exports is in test_export.py."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from e5onnx import Encoder
from e5onnx.cli import main, parse
from e5onnx.model_folder import ModelFolder
from helpers import write_json

Export = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str]) -> Export:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["export", "--precision", "fp32", *map(str, arguments)]
        try:
            code = main(command)
        except SystemExit as exit:
            code = int(exit.code or 0)
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    return run


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with a name of the E5 family."""
    link = tmp_path / "checkpoints/multilingual-e5-small"
    link.parent.mkdir()
    link.symlink_to(tiny_checkpoint)
    return link


def test_export_shows_its_decisions_and_steps(export: Export, checkpoint: Path, tmp_path: Path) -> None:
    done = export(checkpoint, tmp_path / "m", "--query-prompt", "q: ", "--pooling", "cls", "--max-tokens", "99")
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "pooling    cls (--pooling)",
        "normalise  yes (E5 family)",
        "maximum    99 tokens (--max-tokens)",
        "prompts    query 'q: ', document 'passage: ' (E5 family, --query-prompt)",
        "Building the graph from the weights",
        "largest difference",
        f"Wrote {tmp_path / 'm'}",
    ):
        assert line in done.stdout
    encoder = Encoder(tmp_path / "m")
    assert (encoder.max_tokens, encoder.manifest.pooling) == (99, "cls")
    assert encoder.prompts == {"query": "q: ", "document": "passage: "}
    assert export(checkpoint, tmp_path / "quiet", "--quiet").stdout == ""


def test_json_is_the_manifest_alone(
    export: Export, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(output, "ascii"))
    done = export("--json", checkpoint, "--query-prompt", "Frage für 🙂: ", tmp_path / "m")
    assert output.getvalue() == (tmp_path / "m/e5onnx.json").read_bytes()
    assert json.loads(output.getvalue())["prompts"] == {"query": "Frage für 🙂: ", "document": "passage: "}
    assert re.search(r"^e5onnx: +\d+\.\d s  Building the graph from the weights$", done.stderr, re.MULTILINE)


@pytest.mark.skipif(os.name != "posix", reason="Windows reports pipes without a reader as other errors")
def test_the_work_is_done_though_nobody_reads_its_steps(
    export: Export, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", closefd=False) as stream:
        monkeypatch.setattr("sys.stdout", stream)
        done = export(checkpoint, tmp_path / "m")
        assert (done.returncode, done.stderr) == (0, "")
    os.close(writing)
    assert len(ModelFolder.open(tmp_path / "m").verify()) > 2


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


def test_failures_are_one_line_and_leave_nothing(export: Export, checkpoint: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "albert/config.json", {"model_type": "albert", "embedding_size": 8})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    for arguments, part in [
        ((tmp_path / "albert", tmp_path / "m"), "config.json lacks the key"),
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


def test_wrong_usage_is_exit_code_2(export: Export, tmp_path: Path) -> None:
    for arguments in [(), ("sample",), ("sample", tmp_path / "m", "--pooling", "attention")]:
        done = export(*arguments)
        assert done.returncode == 2
        assert "usage: e5onnx export" in done.stderr
