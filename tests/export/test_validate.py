"""The checks of weights and finished graphs find NaN anywhere, and padding that leaks into vectors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from e5onnx.errors import CheckpointError, ParityError
from e5onnx.model_folder import ModelFolder
from e5onnx.tokenizer import Tokenizer
from e5onnx_export import export_model
from e5onnx_export.built import Built
from e5onnx_export.checkpoint import read_checkpoint
from e5onnx_export.folder import graph_record
from e5onnx_export.validate import compare_with_fp32, measure_fidelity, measure_parity

FP32, INT8, PORTABLE = "onnx/model.onnx", "onnx/model_int8.onnx", "onnx/model_portable.onnx"
IDS = [np.array([101, *range(2000, 2000 + length), 102], np.int32) for length in (1, 5, 40)]


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tiny_checkpoint, tmp_path_factory.mktemp("validate") / "model", portable=True).path


def changed(exported: Path, folder: Path, file: str, tensor_name: str, change: Callable[[Any], None]) -> ModelFolder:
    """Return a copy of a model folder with a weight or constant of a graph changed, and a manifest that agrees."""
    shutil.copytree(exported, folder)
    graph = onnx.load(folder / file)
    nodes = [node for part in (graph.graph, *graph.functions) for node in part.node if node.op_type == "Constant"]
    constants = {node.output[0].split("__")[0]: node.attribute[0].t for node in nodes}  # flattening numbers them
    tensor = ({tensor.name: tensor for tensor in graph.graph.initializer} | constants)[tensor_name]
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor_name))
    if file == PORTABLE:
        onnx.save(graph, folder / file)
    else:
        (folder / f"{file}_data").unlink()
        onnx.save(graph, folder / file, save_as_external_data=True, location=f"{Path(file).name}_data")
    manifest = ModelFolder.open(exported).manifest
    portable = {graph.file: graph.portable for graph in manifest.graphs}
    graphs = tuple(graph_record(folder, graph.file, graph.precision) for graph in manifest.graphs)  # type: ignore[arg-type]
    assert {graph.file: graph.portable for graph in graphs} == portable
    return ModelFolder(folder, replace(manifest, graphs=graphs))


def fill(value: float) -> Callable[[NDArray[Any]], None]:
    return lambda values: values.fill(value)


def put_nan_in_a_row(values: NDArray[Any]) -> None:
    """Damage only the vectors of texts with the token 2003."""
    values[2003] = np.nan


def parity(checkpoint: Path, folder: ModelFolder) -> dict[str, float]:
    embed = Built(read_checkpoint(checkpoint)).references()["numpy"]
    return measure_parity(folder, folder.manifest.graph("fp32"), "numpy", embed)


def test_parity_is_as_the_export_measured_it(tiny_checkpoint: Path, exported: Path) -> None:
    folder = ModelFolder.open(exported)
    found, measured = parity(tiny_checkpoint, folder), folder.manifest.graph("fp32").parity
    assert found == pytest.approx({name: measured[name] for name in found}, abs=1e-6)
    assert measured["pytorch_max_abs_difference"] < 1e-5


def test_parity_notices_nan_in_a_single_vector(tiny_checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    token = Tokenizer(ModelFolder.open(exported)).tokenize(["the"])[0].ids[1]  # in some texts of the check only

    def damage(values: NDArray[Any]) -> None:
        values[token] = np.nan

    folder = changed(exported, tmp_path / "m", FP32, "word_table", damage)
    with pytest.raises(ParityError, match="differs from the checkpoint by up to nan"):
        parity(tiny_checkpoint, folder)


def test_parity_notices_padding_that_counts(tiny_checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    folder = changed(exported, tmp_path / "m", FP32, "padding_score", fill(0.0))
    with pytest.raises(ParityError, match="differs from the checkpoint by up to"):
        parity(tiny_checkpoint, folder)


def test_the_portable_graph_is_compared_with_padding_and_nan(exported: Path, tmp_path: Path) -> None:
    for name, value in [("padding_score", 0.0), ("smallest_length", np.nan)]:
        folder = changed(exported, tmp_path / name, PORTABLE, name, fill(value))
        with pytest.raises(ParityError, match="portable graph differs"):
            compare_with_fp32(folder, folder.path / PORTABLE)
    folder = ModelFolder.open(exported)
    assert compare_with_fp32(folder, folder.path / PORTABLE)["max_abs_difference"] < 1e-5


@pytest.mark.parametrize("any_fidelity", [False, True])
def test_int8_with_nan_is_refused_even_by_force(exported: Path, tmp_path: Path, any_fidelity: bool) -> None:
    folder = changed(exported, tmp_path / "m", INT8, "word_scales", put_nan_in_a_row)
    with pytest.raises(ParityError, match="NaN"):
        measure_fidelity(folder, IDS, any_fidelity=any_fidelity)
    assert measure_fidelity(ModelFolder.open(exported), IDS)["mean_cosine"] > 0.98


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path, value: float) -> None:
    source = shutil.copytree(tiny_checkpoint, tmp_path / "c")
    tensors = load_file(source / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][7] = value
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.0\.output\.dense\.bias holds NaN or infinity"):
        export_model(source, tmp_path / "out/model", precisions=["fp32"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_weights_that_overflow_are_refused(tiny_checkpoint: Path, tmp_path: Path, precision: Any) -> None:
    source = shutil.copytree(tiny_checkpoint, tmp_path / "c")
    tensors = load_file(source / "model.safetensors")
    for part in ("intermediate", "output"):
        tensors[f"encoder.layer.0.{part}.dense.weight"] *= 1e30
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.dtype == torch.float32)
    with pytest.raises((ParityError, CheckpointError), match=r"nan|int8 cannot express"):
        export_model(source, tmp_path / "out/model", precisions=[precision], force=True)
    assert not any((tmp_path / "out").iterdir())
