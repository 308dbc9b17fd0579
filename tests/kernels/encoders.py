"""Small encoders with random weights: as graphs, in onnxruntime with and without the library, and in plain numpy.

`last_hidden_state` is written from the description of the arithmetic, in float64 but for what the library rounds. It
shares no code with the library or with the export's own reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from e5onnx_export.build import FUSED, build_encoder, embedding_weights, layer_weights
from e5onnx_export.network import Layer, Linear, Network, Norm
from e5onnx_export.quantize import INT8, quantize
from e5onnx_export.reference import erf
from kernels.access import BF16

Array = NDArray[Any]
WORDS, MAX_TOKENS, PADDING_ID = 300, 512, 1


def random_network(
    hidden: int = 128,
    heads: int = 4,
    *,
    inner: int | None = None,
    layers: int = 2,
    family: str = "bert",
    activation: str = "gelu",
    seed: int = 0,
) -> Network:
    """Return an encoder of a family of `network.FAMILIES`; DistilBERT's is BERT's here."""
    rng = np.random.default_rng(seed)
    counts_from_padding = family in ("roberta", "mpnet")

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return rng.normal(size=shape, scale=scale).astype(np.float32)

    def linear(inputs: int, outputs: int, scale: float = 1.0) -> Linear:
        return Linear(normal(inputs, outputs, scale=scale * inputs**-0.5), normal(outputs, scale=0.2))

    def norm() -> Norm:
        return Norm(rng.uniform(0.5, 1.5, hidden).astype(np.float32), normal(hidden, scale=0.2))

    inner = inner or 2 * hidden
    made = [
        Layer(
            query=linear(hidden, hidden, 1.5),  # so that some keys win
            key=linear(hidden, hidden, 1.5),
            value=linear(hidden, hidden),
            attention_output=linear(hidden, hidden),
            attention_norm=norm(),
            intermediate=linear(hidden, inner),
            output=linear(inner, hidden),
            output_norm=norm(),
        )
        for _ in range(layers)
    ]
    return Network(
        heads=heads,
        epsilon=1e-12,
        activation=activation,
        words=normal(WORDS, hidden),
        positions=normal(MAX_TOKENS + (PADDING_ID + 1 if counts_from_padding else 0), hidden, scale=0.5),
        embedding_norm=norm(),
        layers=tuple(made),
        padding_id=PADDING_ID if counts_from_padding else None,
        distance_bias=normal(heads, 2 * MAX_TOKENS - 1) if family == "mpnet" else None,
    )


@dataclass
class Tensors:
    """The tensors of a graph, as build.py names them."""

    network: Network
    precision: str
    embeddings: dict[str, Array]
    layers: list[dict[str, Array]]

    def graph(self) -> onnx.ModelProto:
        variant = INT8 if self.precision == "int8" else FUSED
        return build_encoder(self.network, variant, self.embeddings, self.layers)


def tensors(network: Network, precision: str) -> Tensors:
    """Return the tensors of the graph that a precision of the library reads."""
    if precision == "bf16":
        layers: list[dict[str, Array]] = [{**layer_weights(network, layer, FUSED)} for layer in network.layers]
        return Tensors(network, precision, {**embedding_weights(network)}, layers)
    rng = np.random.default_rng(1)
    calibration = [rng.integers(2, WORDS, 24).astype(np.int32) for _ in range(24)]
    embeddings, layers = quantize(network, calibration, lambda done, of: None)
    return Tensors(network, precision, embeddings, layers)


def session(
    model: onnx.ModelProto,
    library: Path | None,
    threads: int | str | None = 1,
    *,
    optimize: bool = True,
    intra: int = 0,
) -> onnxruntime.InferenceSession:
    """Return a session, with the library's operator if one is given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra or (threads if isinstance(threads, int) else 1)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        if threads is not None:
            options.add_session_config_entry("e5onnx.threads", str(threads))
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, ids: Array, mask: Array) -> Array:
    """Return the hidden states of a batch."""
    (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return np.asarray(hidden)


def random_texts(lengths: list[int], seed: int = 0) -> tuple[Array, Array]:
    """Return token ids and masks of a padded batch."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask == 1, rng.integers(2, WORDS, mask.shape), PADDING_ID)
    return ids, mask


def bfloat16(x: Array) -> Array:
    """Return the nearest bfloat16 numbers."""
    rounded: Array = x.astype(np.float32).astype(BF16).astype(np.float64)
    return rounded


def by_bytes(x: Array) -> Array:
    """Return what is left of rows as bytes, each with a scale and zero point that cover the row and zero."""
    low, high = np.minimum(x.min(axis=1), 0)[:, None], np.maximum(x.max(axis=1), 0)[:, None]
    scale = (high - low) / 255
    scale[scale == 0] = 1
    zero = np.rint(-low / scale)
    values: Array = (np.clip(np.rint(x / scale + zero), 0, 255) - zero) * scale
    return values


def last_hidden_state(source: Tensors, ids: Array, mask: Array, *, rounds_elements: bool) -> Array:
    """Return the hidden states of a text `[tokens, hidden]`; zeros where its mask is 0, but for the first token.

    `rounds_elements` says whether queries, keys and values are bfloat16, as where the processor multiplies those.
    """
    network, is_int8 = source.network, source.precision == "int8"
    keys = mask == 1
    result = np.zeros((len(ids), network.hidden_size))
    if not keys.any():
        return result
    is_read = keys | (np.arange(len(ids)) == 0)
    places = np.flatnonzero(is_read)
    attended = keys[is_read]
    element = bfloat16 if rounds_elements else (lambda x: x)
    prepared = by_bytes if is_int8 else bfloat16
    hidden = norm(embeddings(source, ids)[is_read], source.embeddings, "embedding_norm", network.epsilon)
    for layer in source.layers:
        x = prepared(smoothed(hidden, layer, "hidden"))
        size = network.hidden_size // network.heads
        factor = size**-0.5 * math.log2(math.e)  # softmax is a power of two
        q = linear(x, layer, "query", is_int8, factor).reshape(len(x), network.heads, size + 1)[..., :size]
        k = linear(x, layer, "key", is_int8).reshape(len(x), network.heads, size + 1)[..., :size]
        v = linear(x, layer, "value", is_int8).reshape(len(x), network.heads, size)
        q, k, v = (element(each).transpose(1, 0, 2) for each in (q, k, v))
        scores = q @ k.transpose(0, 2, 1)
        if "distance_bias" in source.embeddings:
            table = source.embeddings["distance_bias"]
            distances = places[None, :] - places[:, None]
            scores = scores + math.log2(math.e) * table[:, distances + table.shape[1] // 2]
        scores = scores[:, :, attended]
        powers = 2 ** (scores - scores.max(axis=2, keepdims=True))
        context = element(powers) @ v[:, attended] / powers.sum(axis=2, keepdims=True)
        context = context.transpose(1, 0, 2).reshape(hidden.shape)
        sums = linear(prepared(context), layer, "attention_output", is_int8)
        hidden = norm(hidden + sums, layer, "attention_norm", network.epsilon)
        inner = linear(prepared(smoothed(hidden, layer, "attention_normed")), layer, "intermediate", is_int8)
        activated = gelu(inner, network.activation)
        sums = linear(prepared(smoothed(activated, layer, "activated")), layer, "output", is_int8)
        hidden = norm(hidden + sums, layer, "output_norm", network.epsilon)
    result[is_read] = hidden
    return result


def embeddings(source: Tensors, ids: Array) -> Array:
    words = source.embeddings["word_table"][ids].astype(np.float64)
    if source.precision == "int8":
        words = words * source.embeddings["word_scales"][ids]
    positions = np.arange(len(ids))
    if source.network.padding_id is not None:
        counted = ids != source.network.padding_id
        positions = np.where(counted, np.cumsum(counted), 0) + source.network.padding_id
    table: Array = source.embeddings["position_table"].astype(np.float64)
    return np.asarray(words + table[positions])


def smoothed(x: Array, layer: Mapping[str, Array], name: str) -> Array:
    return np.asarray(x * layer.get(f"{name}_smoothing", 1.0))


def linear(x: Array, layer: Mapping[str, Array], name: str, is_int8: bool, factor: float = 1) -> Array:
    """Return x W + b, times a factor; keys and values have no bias."""
    weight = layer[f"{name}_weight"] * factor
    weight = weight * layer[f"{name}_weight_scale"] if is_int8 else bfloat16(weight)
    return np.asarray(x @ weight + layer.get(f"{name}_bias", np.float64(0)) * factor)


def norm(x: Array, tensors: Mapping[str, Array], name: str, epsilon: float) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
    return np.asarray(normed * tensors[f"{name}_scale"] + tensors[f"{name}_shift"])


def gelu(x: Array, name: str) -> Array:
    if name == "gelu":
        return np.asarray(x * (1 + erf(x / math.sqrt(2))) / 2)
    return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)
