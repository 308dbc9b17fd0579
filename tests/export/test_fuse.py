"""The fused and the portable graph: which operators they hold, and that both give PyTorch's vectors for any mask."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertModel

from checkpoints import TINY, make_checkpoint
from e5onnx import Encoder
from e5onnx_export import export_model
from helpers import near

GRAPHS = ("onnx/model.onnx", "onnx/model_portable.onnx")
LAYERS = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("fuse") / "c", **{**TINY, "layers": LAYERS})


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    return export_model(checkpoint, checkpoint.parent / "model", precisions=["fp32"], portable=True).path


def batch() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids, and masks with padding on the right, on the left, in the middle, and none."""
    ids = np.random.default_rng(0).integers(1000, 30000, (5, 40))
    mask = np.ones_like(ids)
    mask[1, 30:] = mask[2, :13] = mask[3, 7:21] = mask[4, 1:] = 0
    return ids, mask


def reference(checkpoint: Path, length: int = 40) -> NDArray[Any]:
    """Return PyTorch's pooled vectors of :func:`batch`, whose texts are cut to `length`."""
    ids, mask = (torch.from_numpy(each[:, :length]) for each in batch())
    encoder = BertModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    with torch.inference_mode():
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled: NDArray[Any] = ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
    return pooled


def assert_graphs_give(model: Path, expected: NDArray[Any], length: int = 40) -> None:
    """Compare both graphs, run on :func:`batch`, with its pooled vectors."""
    ids, mask = (each[:, :length] for each in batch())
    for file in GRAPHS:
        session = onnxruntime.InferenceSession(model / file)
        outputs = ["pooled_embedding", "sentence_embedding"]
        pooled, unit = session.run(outputs, {"input_ids": ids, "attention_mask": mask})
        near(pooled, expected)
        near(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True))


def test_any_mask_gives_the_vectors_of_pytorch(checkpoint: Path, model: Path) -> None:
    assert_graphs_give(model, reference(checkpoint))


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu"])
def test_other_activations_give_the_vectors_of_pytorch(tiny_checkpoint: Path, tmp_path: Path, activation: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **TINY, hidden_act=activation)
    model = export_model(checkpoint, tmp_path / "model", precisions=["fp32"], portable=True).path
    expected = reference(checkpoint)
    assert np.abs(expected - reference(tiny_checkpoint)).max() > 2e-5  # a graph with the exact GELU would fail
    assert_graphs_give(model, expected)


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"type_vocab_size": 1}, 4),
        ({"type_vocab_size": 5}, 1),
        ({"max_position_embeddings": 14}, 48),
    ],
)
def test_unusual_sizes_give_the_vectors_of_pytorch(tmp_path: Path, config: dict[str, Any], heads: int) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **{**TINY, "heads": heads, **config})
    model = export_model(checkpoint, tmp_path / "model", precisions=["fp32"], portable=True).path
    length = config.get("max_position_embeddings", 40)
    assert_graphs_give(model, reference(checkpoint, length), length)


@pytest.mark.parametrize("factor", [1e6, 1e12])
def test_padding_has_no_weight_however_large_the_scores_are(tmp_path: Path, factor: float) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **TINY)
    encoder = BertModel.from_pretrained(checkpoint).eval()
    query = encoder.encoder.layer[0].attention.self.query
    with torch.no_grad():
        query.weight *= factor
        query.bias *= factor
    encoder.save_pretrained(checkpoint)
    model = export_model(checkpoint, tmp_path / "model", precisions=["fp32"], portable=True).path
    assert_graphs_give(model, reference(checkpoint))


def test_the_fused_graph_has_no_surplus_nodes(model: Path) -> None:
    graph = onnx.load(model / GRAPHS[0]).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["MultiHeadAttention"] == operators["Gelu"] == LAYERS
    assert operators["LayerNormalization"] == 2 * LAYERS + 1
    assert operators["MatMul"] == 6 * LAYERS + 1  # Q, K, V, output, two of the feed-forward layer; the mean
    assert operators["Add"] == 7 * LAYERS + 1  # four biases, the mask and two residuals; positions
    assert operators["Gather"] == operators["Slice"] == operators["Shape"] == 1
    assert not {"Reshape", "Transpose", "Softmax", "Erf", "SkipLayerNormalization", "BiasGelu"} & set(operators)
    assert len(graph.node) <= 17 * LAYERS + 25


def test_the_portable_graph_is_standard_onnx(model: Path) -> None:
    portable = onnx.load(model / GRAPHS[1])
    onnx.checker.check_model(portable, full_check=True)
    assert {opset.domain for opset in portable.opset_import} == {""}
    assert {node.domain for node in portable.graph.node} == {""}


def test_openvino_runs_the_portable_graph(checkpoint: Path, model: Path) -> None:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(str(model / GRAPHS[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids, mask = batch()
    outputs = compiled({"input_ids": ids, "attention_mask": mask})
    near(outputs["pooled_embedding"], reference(checkpoint))


def test_the_manifest_tells_the_graphs_apart(model: Path) -> None:
    encoder = Encoder(model)
    graphs = {graph.file: graph for graph in encoder.manifest.graphs}
    assert set(graphs) == set(GRAPHS)
    assert [graphs[file].portable for file in GRAPHS] == [False, True]
    assert all(graph.parity["max_abs_difference"] < 1e-5 for graph in graphs.values())
    assert encoder.manifest.graph("fp32").file == GRAPHS[0]


def test_the_portable_graph_is_written_only_if_asked(e5_model: Path) -> None:
    assert not any(graph.portable for graph in Encoder(e5_model).manifest.graphs)
