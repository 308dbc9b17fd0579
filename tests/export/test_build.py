"""The encoder's graph as it is built: its form, its variants, and padding anywhere, against the encoder in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from e5onnx_export.build import (
    ACTIVATIONS,
    FUSED,
    PORTABLE,
    Variant,
    build_encoder,
    embedding_weights,
    exact_product,
    flattened,
    layer_weights,
)
from e5onnx_export.json_file import JsonObject
from e5onnx_export.network import FAMILIES, Network, read_network
from e5onnx_export.portable import read_built
from e5onnx_export.weights import Weights
from helpers import near

VOCABULARY, TOKENS = 60, 40
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": TOKENS + 2,
}
Load = Callable[..., tuple[Any, Network]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Make an encoder of a family, whose every weight is random, and return it in PyTorch and as a network."""

    def load(family: str = "bert", activation: str = "gelu") -> tuple[Any, Network]:
        torch.manual_seed(1)
        names = dict(FAMILIES[family].keys)
        settings: dict[str, Any] = {names.get(key, key): value for key, value in SIZES.items()}
        settings[names.get("hidden_act", "hidden_act")] = activation
        model = AutoModel.from_config(CONFIG_MAPPING[family](**settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(tmp_path)
        return model, read_network(JsonObject.read(tmp_path, "config.json"), partial(Weights, tmp_path))

    return load


def build(network: Network, variant: Variant) -> onnx.ModelProto:
    layers = [layer_weights(network, layer, variant) for layer in network.layers]
    model = build_encoder(network, variant, embedding_weights(network), layers)
    return flattened(model) if variant is PORTABLE else model


def run(model: onnx.ModelProto, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return np.asarray(hidden)


def padded(padding_id: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return texts padded on the right, on the left and in the middle, and one that is whole."""
    ids = generator.integers(3, VOCABULARY, (4, 17))
    mask = np.ones_like(ids)
    mask[0, 9:] = mask[1, :5] = mask[2, 4:7] = 0
    ids[mask == 0] = padding_id
    return ids, mask


@pytest.mark.parametrize("variant", [FUSED, PORTABLE], ids=["fused", "portable"])
@pytest.mark.parametrize(
    ("family", "activation"), [*((f, "gelu") for f in FAMILIES), *(("bert", a) for a in ACTIVATIONS)]
)
def test_hidden_states_equal_pytorch(load: Load, family: str, activation: str, variant: Variant) -> None:
    model, network = load(family, activation)
    ids, mask = padded(network.padding_id or 0, np.random.default_rng(0))
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    found = run(build(network, variant), ids, mask)
    near(found[mask == 1], expected.numpy()[mask == 1])
    assert np.abs(found[0, 0] - found[1, 5]).max() > 0.1  # the weights tell tokens apart


def test_the_graph_is_one_node_of_two_functions(load: Load) -> None:
    model = build(load()[1], FUSED)
    assert [node.op_type for node in model.graph.node] == ["BertEncoder"]
    assert [function.name for function in model.functions] == ["EncoderLayer", "BertEncoder"]
    assert [node.op_type for node in model.functions[1].node].count("EncoderLayer") == 2
    assert {"MultiHeadAttention", "Gelu"} <= {node.op_type for node in model.functions[0].node}


def test_the_portable_graph_has_standard_operators_alone(load: Load) -> None:
    model = build(load()[1], PORTABLE)
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_built_graph_can_be_read_back(load: Load, family: str) -> None:
    network = load(family)[1]
    again = read_built(build(network, FUSED).graph)
    assert build(again, FUSED).SerializeToString() == build(network, FUSED).SerializeToString()
    assert build(again, PORTABLE).SerializeToString() == build(network, PORTABLE).SerializeToString()


def test_a_product_is_rounded_once() -> None:
    vector, matrix = np.array([1e8, 1, -1e8], np.float32), np.array([[1], [1.25], [1]], np.float32)
    assert exact_product(vector, matrix).tolist() == [1.25]
