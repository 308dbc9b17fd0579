"""The encoder in int8: calibrated, smoothed, quantised with error feedback. Needs no torch.

Activations are quantised with *static* scales, found by calibration: unlike with dynamic quantisation, a text's vector
does not depend on what else is in the batch. The same weights serve operators that find a scale for each token instead,
which is nearer to fp32. For each input of linear layers:

1. Smoothing moves the range of large channels from the activations into the weights, by the factor
   max|x|^a / max|w|^(1-a) for each channel (Xiao et al., "SmoothQuant", arXiv 2211.10438).
2. The weights are rounded one input channel after the other, each passing its error on to the channels that follow
   (Frantar et al., "GPTQ", arXiv 2210.17323, in the form that Chee et al. show to be the same, "QuIP", arXiv
   2307.13304, section 3). What they are fitted to is how activations differ from their mean, before any quantisation.
3. What rounding changes in the output of the mean activation is put back by the bias.

Weights are symmetric int8, with a scale for each output channel; activations are uint8 with a zero point. On x86
processors without VNNI onnxruntime adds two neighbouring products in 16 bits with saturation (`vpmaddubsw`). No pair of
weights written here can reach that limit, so vectors are right there too.

One version of onnxruntime gives the same bytes on processors of one kind, whatever the number of threads and the
versions of numpy and onnx: moments are exact sums, and scales are rounded. Another version, and other instructions such
as AVX2 in place of AVX-512, may change the last bits of the activations, and with them some weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from e5onnx.batching import pad_batch, plan_batches
from e5onnx.cpu import default_threads
from e5onnx.errors import CheckpointError

from .build import (
    FUSED,
    LINEAR_INPUTS,
    Variant,
    build_encoder,
    build_layer,
    embedding_weights,
    exact_product,
    layer_inputs,
    layer_weights,
)
from .network import Network

Floats = NDArray[np.float32]

SMOOTHING = 0.8
"""Exponent of SmoothQuant. Larger ones fit the calibration texts better and clip more of what was not in them.

A scale for each token would be best with 0.6, which costs static scales far more than it gains.
"""
METHOD = f"static min-max activations, SmoothQuant {SMOOTHING}, GPTQ, corrected bias, pairs within 16 bits"
"""What the manifest says of how weights and scales were found."""
ROWS = 8192
"""Tokens whose activations are kept to fit the weights; ranges are those of all tokens."""
LARGEST_ACTIVATION = 1e15
"""A sound encoder stays far below."""
_DAMPING = 0.03
"""Of the mean of the diagonal of the activations' covariance, added to it, as in GPTQ."""
_FINENESS = 256
"""Parts of a step that the activations are rounded to, so that their products are whole numbers with exact sums."""
_BLOCK = 64
"""Input channels that are rounded before their errors are passed on to all that follow."""
_LARGEST, _LARGEST_PAIR = 127, 128  # 255 * 128 is below 2**15

_READERS = {
    "hidden": ("query", "key", "value"),
    "attended": ("attention_output",),
    "attention_normed": ("intermediate",),
    "activated": ("output",),
}
"""Input of linear layers -> which they are."""
_WORDS = """
        word_steps = Gather (word_table, input_ids)
        word_steps_float = Cast <to = 1> (word_steps)
        word_scale = Gather (word_scales, input_ids)
        words = Mul (word_steps_float, word_scale)"""


def _read(name: str) -> str:
    smoothed = name
    text = ""
    if name != "attended":  # a mean of values: their scales have its smoothing
        smoothed = f"{name}_smoothed"
        text = f"""
        {smoothed} = Mul ({name}, {name}_smoothing)"""
    return f"""{text}
        {name}_steps = QuantizeLinear ({smoothed}, {name}_scale, {name}_zero_point)"""


def _linear(output: str, source: str, name: str, bias: bool) -> str:
    return f"""
        {output} = com.microsoft.MatMulIntegerToFloat
            ({source}_steps, {name}_weight, {source}_scale, {name}_weight_scale, {source}_zero_point{
        f", , {name}_bias" if bias else ""
    })"""


INT8 = Variant(read=_read, linear=_linear, words=_WORDS, half_positions=True, fused=True, has_layers=False)


@dataclass(frozen=True)
class Activations:
    """What calibration saw at one input of linear layers, `[tokens, channels]`."""

    rows: Floats
    smallest: Floats
    largest: Floats


def quantize(
    network: Network,
    token_ids: Sequence[NDArray[np.int32]],
    advance: Callable[[int, int], object],
) -> tuple[dict[str, NDArray[Any]], list[dict[str, NDArray[Any]]]]:
    """Return the tensors of embeddings and layers in int8, for :func:`build_encoder` to write as `INT8`.

    Args:
        network: the encoder.
        token_ids: the calibration texts.
        advance: gets how many layers are done, and of how many.
    """
    layers: list[dict[str, NDArray[Any]]] = []
    calibration = Calibration(network, token_ids)

    def finish(pending: Future[dict[str, NDArray[Any]]]) -> None:
        layers.append(pending.result())
        advance(len(layers), len(network.layers))

    # Linear algebra in one thread gives the same sums on every number of processors. The others run the next layer.
    with threadpool_limits(1), ThreadPoolExecutor(1) as beside:
        pending = None
        for layer in network.layers:
            weights = layer_weights(network, layer, FUSED)
            seen = calibration.run(weights)
            if pending:
                finish(pending)
            pending = beside.submit(quantize_layer, weights, seen)
        if pending:
            finish(pending)
    return quantize_embeddings(network), layers


def quantize_layer(weights: Mapping[str, Floats], seen: dict[str, Activations]) -> dict[str, NDArray[Any]]:
    """Return the weights of a layer in int8, with the ranges of the inputs of its linear layers.

    Args:
        weights: those of :func:`layer_weights`.
        seen: what calibration saw; it is used up.
    """
    tensors: dict[str, NDArray[Any]] = {
        name: tensor for name, tensor in weights.items() if not name.endswith("_weight")
    }
    for source, names in _READERS.items():
        activations = seen.pop(source)
        matrix = np.concatenate([weights[f"{name}_weight"] for name in names], axis=1)
        factors = smoothing_factors(activations, matrix)
        scale, zero_point = activation_range(activations, factors)
        fitted, scales, lost = quantize_weights(matrix * factors[:, None], activations.rows / factors, scale)
        if source == "attended":
            tensors["value_weight_scale"] = tensors["value_weight_scale"] / factors
        else:
            tensors[f"{source}_smoothing"] = 1 / factors
        tensors[f"{source}_scale"], tensors[f"{source}_zero_point"] = np.asarray(scale), np.asarray(zero_point)
        ends = np.cumsum([weights[f"{name}_weight"].shape[1] for name in names])[:-1]
        parts = zip(names, np.split(fitted, ends, axis=1), np.split(scales, ends), np.split(lost, ends), strict=True)
        for name, part, part_scales, part_lost in parts:
            tensors[f"{name}_weight"], tensors[f"{name}_weight_scale"] = part, part_scales
            if name == "value":  # keys and values have no bias, see `layer_weights`
                passed_on = exact_product(part_lost, weights["attention_output_weight"])
                tensors["attention_output_bias"] = tensors["attention_output_bias"] + passed_on
            elif name != "key":
                tensors[f"{name}_bias"] = tensors[f"{name}_bias"] + part_lost
    return tensors


def quantize_embeddings(network: Network) -> dict[str, NDArray[Any]]:
    """Return the embeddings with words in int8, a scale for each, and positions in float16."""
    tensors: dict[str, NDArray[Any]] = {**embedding_weights(network)}
    scales = np.abs(network.words).max(axis=1, keepdims=True) / _LARGEST
    scales[scales == 0] = 1
    tensors["word_table"], tensors["word_scales"] = np.rint(network.words / scales).astype(np.int8), scales
    tensors["position_table"] = network.positions.astype(np.float16)
    return tensors


class Calibration:
    """The calibration texts on their way through the layers, in batches."""

    def __init__(self, network: Network, token_ids: Sequence[NDArray[np.int32]]) -> None:
        """Embed the texts."""
        self._network = network
        session = _session(build_encoder(network, FUSED, embedding_weights(network), []))
        share = ROWS / sum(map(len, token_ids))
        generator = np.random.default_rng(0)
        self._batches: list[_Batch] = []
        for texts in plan_batches([len(ids) for ids in token_ids]):
            input_ids, attention_mask = pad_batch([token_ids[text] for text in texts])
            (hidden,) = session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})
            is_token = attention_mask.reshape(-1) == 1
            self._batches.append(_Batch(hidden, attention_mask, is_token, generator.random(is_token.sum()) < share))

    def run(self, weights: Mapping[str, Floats]) -> dict[str, Activations]:
        """Run a layer, the next one, and return what goes into its linear layers, by the names of `LINEAR_INPUTS`."""
        session = _session(build_layer(self._network, weights))
        kept: dict[str, list[Floats]] = {name: [] for name in LINEAR_INPUTS}
        ranges: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in LINEAR_INPUTS}
        for batch in self._batches:
            feeds = layer_inputs(self._network, batch.hidden, batch.attention_mask)
            following, *inputs = session.run(None, feeds)
            for name, values in zip(LINEAR_INPUTS, [batch.hidden, *inputs], strict=True):
                rows = values.reshape(-1, values.shape[-1])[batch.is_token]
                low, high = rows.min(axis=0), rows.max(axis=0)
                largest = np.maximum(-low, high).max()
                if not largest < LARGEST_ACTIVATION:  # so that NaN fails
                    raise CheckpointError(
                        f"the encoder computes {largest:.0e}, which int8 cannot express: its weights are damaged, or "
                        "it needs --precision fp32"
                    )
                kept[name].append(rows[batch.chosen])
                ranges[name].append((low, high))
            batch.hidden = following
        return {
            name: Activations(
                np.concatenate(kept[name]),
                np.min([smallest for smallest, _ in ranges[name]], axis=0),
                np.max([largest for _, largest in ranges[name]], axis=0),
            )
            for name in LINEAR_INPUTS
        }


@dataclass
class _Batch:
    """Texts between two layers: hidden states `[batch, sequence, hidden_size]`, and which rows are kept."""

    hidden: Floats
    attention_mask: NDArray[np.int64]
    is_token: NDArray[np.bool_]
    chosen: NDArray[np.bool_]


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = default_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # numpy works between two runs
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def smoothing_factors(seen: Activations, weights: Floats) -> Floats:
    """Return SmoothQuant's factor of each input channel, `[channels]`; their geometric mean is about 1."""
    largest = np.maximum(np.maximum(-seen.smallest, seen.largest), 1e-6).astype(np.float64)
    factors = largest**SMOOTHING / np.maximum(np.abs(weights).max(axis=1), 1e-6) ** (1 - SMOOTHING)
    return coarse(factors / np.exp(np.log(factors).mean()))


def activation_range(seen: Activations, factors: Floats) -> tuple[np.float32, np.uint8]:
    """Return scale and zero point that cover all that calibration saw, and zero."""
    low, high = min((seen.smallest / factors).min(), 0.0), max((seen.largest / factors).max(), 0.0)
    scale = np.float32(max(high - low, 1e-6) / 255)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def quantize_weights(weights: Floats, rows: Floats, scale: np.float32) -> tuple[NDArray[np.int8], Floats, Floats]:
    """Return int8 weights `[inputs, outputs]` and a scale `[outputs]` that give `rows @ weights` best, with a bias.

    The bias `[outputs]` is what the mean row loses by rounding.

    Args:
        weights: float32 `[inputs, outputs]`.
        rows: activations `[tokens, inputs]`.
        scale: a step of the activations.
    """
    inputs = len(weights)
    unit = scale / _FINENESS
    seen = np.rint(rows / unit).astype(np.float64)
    mean = np.rint(seen.mean(axis=0))
    seen -= mean
    moments = seen.T @ seen
    moments[np.diag_indices(inputs)] += _DAMPING * max(float(np.diag(moments).mean()), 1e-6)
    scales = coarse(weight_scales(weights))
    factor = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]  # upper triangular; moments = factor @ factor.T
    shares = np.ascontiguousarray((factor / np.diag(factor)).T)  # of the errors before it that a channel takes over

    wanted = weights.astype(np.float64) / scales
    errors = np.zeros(weights.shape)
    steps = np.zeros(weights.shape, np.int8)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        shifted = wanted[start:end] + shares[start:end, :start] @ errors[:start]
        for row in range(start, end):
            # the limit of a pair, see the module's docstring
            before = steps[row - 1].astype(np.float64) if row % 2 else np.zeros(weights.shape[1])
            highest = np.minimum(_LARGEST, _LARGEST_PAIR - np.maximum(before, 0))
            lowest = np.maximum(-_LARGEST, -_LARGEST_PAIR - np.minimum(before, 0))
            target = shifted[row - start] + shares[row, start:row] @ errors[start:row]
            rounded = np.clip(np.rint(target), lowest, highest)
            steps[row] = rounded
            errors[row] = wanted[row] - rounded
    return steps, scales, coarse((mean * np.float64(unit)) @ (weights - steps * scales.astype(np.float64)))


def weight_scales(weights: Floats) -> NDArray[np.float64]:
    """Return the scale of each output channel by which no weight, and no pair of one sign, is too large."""
    pairs = weights[: len(weights) // 2 * 2].reshape(-1, 2, weights.shape[1])
    largest_pair = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1))
    scales: NDArray[np.float64] = (
        np.maximum(np.abs(weights).max(axis=0), largest_pair.max(axis=0, initial=0)) / _LARGEST
    )
    scales[scales == 0] = 1
    return scales


def coarse(values: NDArray[np.float64]) -> Floats:
    """Return the values with 12 significant bits, so that the last bits of a sum do not change them."""
    fractions, exponents = np.frexp(values)
    rounded: Floats = np.ldexp(np.rint(fractions * 2**12) / 2**12, exponents).astype(np.float32)
    return rounded
