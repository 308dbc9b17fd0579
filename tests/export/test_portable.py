"""`e5onnx portable`: a model folder is given the portable graph without its checkpoint, whole or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e5onnx import InputValueError, ModelFolderError
from e5onnx.model_folder import ModelFolder
from e5onnx_export import export_model
from e5onnx_export.portable import add_portable_graph


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was exported with the portable graph."""
    folder = tmp_path_factory.mktemp("portable") / "model"
    return export_model(tiny_checkpoint, folder, precisions=["fp32"], portable=True).path


@pytest.fixture
def without(tiny_model: Path, tmp_path: Path) -> Path:
    """The same exported without it."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_it_is_the_graph_that_the_export_writes_and_torch_is_not_needed(exported: Path, without: Path) -> None:
    code = """
import sys
for name in ("torch", "transformers", "optimum"):
    sys.modules[name] = None
from e5onnx.cli import main
sys.exit(main(["portable", sys.argv[1]]))
"""
    done = subprocess.run([sys.executable, "-c", code, without], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "largest difference from fp32" in done.stdout
    assert contents(without) == contents(exported)
    assert len(ModelFolder.open(without).verify()) == len(ModelFolder.open(exported).verify())


def test_a_second_time_changes_nothing(exported: Path) -> None:
    before = contents(exported)
    said: list[str] = []
    add_portable_graph(exported, report=said.append)
    assert contents(exported) == before
    assert "already" in said[0]


def test_a_folder_without_fp32_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = export_model(tiny_checkpoint, tmp_path / "int8", precisions=["int8"], force=True).path
    with pytest.raises(InputValueError, match="has no fp32 graph"):
        add_portable_graph(model)


def test_a_damaged_folder_is_refused_and_left_as_it_is(without: Path) -> None:
    weights = without / "onnx/model.onnx_data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    before = contents(without)
    with pytest.raises(ModelFolderError, match=r"model\.onnx_data was changed"):
        add_portable_graph(without)
    assert contents(without) == before


def test_a_failure_leaves_the_folder_as_it_was(without: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(without)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("e5onnx_export.portable.save_whole", full)
    with pytest.raises(OSError, match="No space left"):
        add_portable_graph(without)
    assert contents(without) == before
