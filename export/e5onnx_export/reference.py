"""The encoder in plain numpy, float64: what an exported graph is compared with where PyTorch is not installed.

One text at a time, without padding. Nothing here is shared with `build.py` but the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from e5onnx.manifest import Pooling

from .head import Dense
from .network import Linear, Network, Norm, score_bias

Array: TypeAlias = Any
"""Arrays of float64, and of token ids. Numpy's own types make such formulas unreadable."""


def last_hidden_state(network: Network, ids: Array) -> Array:
    """Return the hidden states of a text, `[tokens, hidden_size]`, for its token ids `[tokens]`."""
    if network.padding_id is None:
        places = np.arange(len(ids))
    else:
        counted = ids != network.padding_id
        places = np.cumsum(counted) * counted + network.padding_id
    hidden = norm(network.words[ids].astype(np.float64) + network.positions[places], network.embedding_norm, network)
    for layer in network.layers:
        queries, keys, values = (_by_head(linear(hidden, part), network.heads) for part in layer[:3])
        scores = queries @ keys.transpose(0, 2, 1) / math.sqrt(queries.shape[2])
        if network.distance_bias is not None:
            scores = scores + score_bias(network.distance_bias, len(ids))
        attended = softmax(scores) @ values
        together = attended.transpose(1, 0, 2).reshape(hidden.shape)
        hidden = norm(linear(together, layer.attention_output) + hidden, layer.attention_norm, network)
        inner = activation(network.activation, linear(hidden, layer.intermediate))
        hidden = norm(linear(inner, layer.output) + hidden, layer.output_norm, network)
    return hidden


def embed(
    network: Network,
    ids: Array,
    pooling: Pooling,
    dense: Sequence[Dense] = (),
    dimension: int | None = None,
) -> Array:
    """Return the vector of a text before normalisation, `[dimension]`: pooled, through Dense layers, and cut."""
    hidden = last_hidden_state(network, ids)
    weights = np.arange(1.0, len(ids) + 1) if pooling == "weightedmean" else np.ones(len(ids))
    if pooling in ("mean", "weightedmean"):
        vector = weights @ hidden / weights.sum()
    elif pooling == "mean_sqrt_len_tokens":
        vector = hidden.sum(axis=0) / math.sqrt(len(ids))
    else:
        vector = {"cls": hidden[0], "lasttoken": hidden[-1], "max": hidden.max(axis=0)}[pooling]
    for layer in dense:
        vector = vector @ layer.weight.astype(np.float64) + layer.bias
        if layer.activation == "sigmoid":
            vector = 1 / (1 + np.exp(-vector))
        elif layer.activation != "identity":
            vector = activation(layer.activation, vector)
    return vector[:dimension]


def linear(x: Array, layer: Linear) -> Array:
    """Return x W + b."""
    return x @ layer.weight.astype(np.float64) + layer.bias


def norm(x: Array, layer: Norm, network: Network) -> Array:
    """Return layer normalisation: every row with mean 0 and variance 1, scaled and shifted."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + network.epsilon) * layer.scale + layer.shift


def softmax(scores: Array) -> Array:
    """Return weights that are proportional to exp(score) and sum to one over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def activation(name: str, x: Array) -> Array:
    """Return what the feed-forward layer applies to each number."""
    if name in ("gelu", "gelu_python"):
        return x * (1 + erf(x / math.sqrt(2))) / 2
    if name.startswith("gelu"):  # the approximations of arXiv 1606.08415
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    if name == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    if name in ("silu", "swish"):
        return x / (1 + np.exp(-x))
    return np.maximum(x, 0) if name == "relu" else np.tanh(x)


_END, _FINENESS = 6, 4096  # from 6 on, erf is 1 in float64
_POINTS = np.arange(-_END * _FINENESS, _END * _FINENESS + 1) / _FINENESS
_ERF = np.array([math.erf(point) for point in _POINTS])
_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-(_POINTS**2))


def erf(x: Array) -> Array:
    """Return the error function to 1e-12: its Taylor series to the second power, about the nearest point of a table."""
    x = np.clip(x, -_END, _END)
    nearest = np.rint((x + _END) * _FINENESS).astype(int)
    point = _POINTS[nearest]
    step = x - point
    return _ERF[nearest] + _SLOPE[nearest] * step * (1 - point * step)


def _by_head(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)
