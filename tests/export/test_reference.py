"""The encoder in numpy against transformers, and its poolings against sentence-transformers, in double precision."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Dense as TorchDense
from sentence_transformers.sentence_transformer.modules import Pooling as TorchPooling
from transformers import AutoConfig, AutoModel

from e5onnx.manifest import POOLINGS, Pooling
from e5onnx_export import reference
from e5onnx_export.build import ACTIVATIONS
from e5onnx_export.head import Dense
from e5onnx_export.json_file import JsonObject
from e5onnx_export.network import FAMILIES, Network, read_network
from e5onnx_export.weights import Weights
from helpers import near

_PADDING_ID = 1


def make_encoder(folder: Path, family: str, activation: str) -> tuple[Any, Network]:
    """Return a small random encoder in PyTorch, in double precision, and the same as the export reads it."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    others = {"hidden_act": activation, "vocab_size": 60, "max_position_embeddings": 180}
    names = {FAMILIES[family].key(name): value for name, value in {**sizes, **others}.items()}
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(family, pad_token_id=_PADDING_ID, **names))
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases start as zeros, and scales as ones
            parameter.normal_(0.5, 0.5) if parameter.ndim == 1 else parameter.normal_(0, 0.5)
    encoder.save_pretrained(folder)
    network = read_network(JsonObject.read(folder, "config.json"), partial(Weights, folder), _PADDING_ID)
    return encoder.eval().double(), network


def check(encoder: Any, network: Network) -> None:
    random = np.random.default_rng(0)
    for tokens in (1, 2, 17, 150):  # MPNet's distances have buckets of their own up to 128
        ids = random.integers(_PADDING_ID + 1, 60, tokens)
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(ids)[None]).last_hidden_state[0]
        near(reference.last_hidden_state(network, ids), expected.numpy(), 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_transformers(family: str, tmp_path: Path) -> None:
    check(*make_encoder(tmp_path, family, "gelu"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_equals_transformers(activation: str, tmp_path: Path) -> None:
    check(*make_encoder(tmp_path, "bert", activation))


def test_the_error_function_is_exact() -> None:
    x = np.concatenate([np.linspace(-8, 8, 20_001), [1e300, -1e300, math.inf, -math.inf]])
    near(reference.erf(x), [math.erf(number) for number in x], 1e-12)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return make_encoder(tmp_path_factory.mktemp("bert"), "bert", "gelu")[1]


def pooled(network: Network, ids: NDArray[np.int64], pooling: Pooling) -> torch.Tensor:
    """Return what sentence-transformers makes of the hidden states of a text, with padding after it."""
    hidden = torch.from_numpy(reference.last_hidden_state(network, ids))
    padded = torch.nn.functional.pad(hidden, (0, 0, 0, 3), value=9.0)[None]
    mask = (torch.arange(len(padded[0])) < len(ids)).long()[None]
    features = {"token_embeddings": padded, "attention_mask": mask}
    vector: torch.Tensor = TorchPooling(network.hidden_size, pooling)(features)["sentence_embedding"]
    return vector


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("tokens", [1, 9])
def test_every_pooling_equals_sentence_transformers(network: Network, pooling: Pooling, tokens: int) -> None:
    ids = np.arange(2, 2 + tokens)
    near(reference.embed(network, ids, pooling), pooled(network, ids, pooling)[0].numpy(), 1e-6)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("identity", torch.nn.Identity()),
        ("tanh", torch.nn.Tanh()),
        ("relu", torch.nn.ReLU()),
        ("gelu", torch.nn.GELU()),
        ("sigmoid", torch.nn.Sigmoid()),
    ],
)
def test_every_dense_layer_equals_sentence_transformers(network: Network, name: Any, activation: Any) -> None:
    torch.manual_seed(0)
    layer = TorchDense(network.hidden_size, 20, activation_function=activation).double()
    ids = np.arange(2, 11)
    with torch.inference_mode():
        expected = layer({"sentence_embedding": pooled(network, ids, "mean")})["sentence_embedding"][0]
    weight, bias = (parameter.detach().numpy() for parameter in (layer.linear.weight, layer.linear.bias))
    dense = Dense(weight.T, bias, name)
    near(reference.embed(network, ids, "mean", [dense]), expected.numpy(), 1e-9)
    near(reference.embed(network, ids, "mean", [dense], 7), expected[:7].numpy(), 1e-9)
