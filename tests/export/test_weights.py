"""The tensors of a checkpoint in every form that it comes in, and what is wrong with damaged ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from e5onnx.errors import CheckpointError
from e5onnx_export.weights import Weights
from helpers import write_json

TENSOR = torch.tensor([[1.5, -2.25, 3.0], [0.0, 1e-3, 7.0]])


def save(folder: Path, file: str = "model.safetensors", **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / file)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_number_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    found = Weights(save(tmp_path, a=TENSOR.to(dtype)), "bert.").take("a", 2, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, TENSOR.to(dtype).float().numpy())


def test_names_begin_after_the_prefix_and_follow_the_new_norm(tmp_path: Path) -> None:
    save_file(
        {"bert.x.LayerNorm.gamma": TENSOR, "bert.x.LayerNorm.beta": TENSOR + 1, "cls.y": TENSOR + 2},
        tmp_path / "model.safetensors",
    )
    weights = Weights(tmp_path, "bert.")
    np.testing.assert_array_equal(weights.take("x.LayerNorm.weight", 2, 3), TENSOR.numpy())
    np.testing.assert_array_equal(weights.take("x.LayerNorm.bias", 2, 3), (TENSOR + 1).numpy())
    assert "cls.y" not in weights


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    save(tmp_path, "model-00001-of-00002.safetensors", a=TENSOR)
    save(tmp_path, "model-00002-of-00002.safetensors", b=TENSOR * 2)
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": files})
    weights = Weights(tmp_path, "")
    np.testing.assert_array_equal(weights.take("b", 2, 3), (TENSOR * 2).numpy())
    (tmp_path / files["b"]).unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002\.safetensors, a part of the weights"):
        Weights(tmp_path, "")
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"a": "../elsewhere"}})
    with pytest.raises(CheckpointError, match=r"'\.\./elsewhere', which is not the name of a file beside it"):
        Weights(tmp_path, "")


@pytest.mark.parametrize(
    ("shape", "value", "named"),
    [
        ((3, 2), 1.0, r"do not belong to its config\.json: a has shape \(2, 3\), expected \(3, 2\)"),
        ((2, 3), float("nan"), "a holds NaN or infinity"),
        ((2, 3), float("inf"), "a holds NaN or infinity"),
    ],
)
def test_what_a_tensor_must_not_be(tmp_path: Path, shape: tuple[int, ...], value: float, named: str) -> None:
    weights = Weights(save(tmp_path, a=torch.full((2, 3), value)), "")
    with pytest.raises(CheckpointError, match=named):
        weights.take("a", *shape)
    with pytest.raises(CheckpointError, match="lack the tensor b"):
        weights.take("b", 2, 3)


def test_half_a_download_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, a=TENSOR) / "model.safetensors"
    for size in (0, 4, 20, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(CheckpointError, match="is damaged"):
            Weights(tmp_path, "")
        save(tmp_path, a=TENSOR)
    path.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        Weights(tmp_path, "")


def test_pickles_need_torch_and_run_no_code(tmp_path: Path) -> None:
    torch.save({"a": TENSOR.half()}, tmp_path / "pytorch_model.bin")
    np.testing.assert_array_equal(Weights(tmp_path, "").take("a", 2, 3), TENSOR.half().float().numpy())
    program = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from e5onnx import MissingDependencyError
from e5onnx_export.weights import Weights
try:
    Weights(Path(sys.argv[1]), "")
except MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert "pytorch_model.bin is a pickle, which only PyTorch reads: pip install 'torch>=2.6'" in done.stdout

    torch.save({"a": Path()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is damaged"):
        Weights(tmp_path, "")
