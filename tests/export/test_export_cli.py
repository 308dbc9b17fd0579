"""`e5onnx export` as a user runs it. What it exports is in test_export.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import make_checkpoint, write_json
from e5onnx import Encoder


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "e5onnx", "export", *map(str, arguments), "--precision", "fp32"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


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
    done = export(checkpoint, tmp_path / "m", "--json")
    assert json.loads(done.stdout)["checkpoint"] == "multilingual-e5-small"
    assert "Tracing" in done.stderr


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
