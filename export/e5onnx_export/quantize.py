"""The fused graph in int8: calibrated, smoothed, quantised with error feedback. Needs onnx, onnxruntime and numpy only.

Activations are quantised with *static* scales, found by calibration: unlike with dynamic quantisation, a text's vector
does not depend on what else is in the batch. For each input of linear layers:

1. Smoothing moves the range of large channels from the activations into the weights, by the factor
   max|x|^a / max|w|^(1-a) for each channel (Xiao et al., "SmoothQuant", arXiv 2211.10438).
2. The weights are refitted by least squares to give the layer's true output from the quantised activations, then
   rounded one input channel at a time, each passing its error on to the channels that follow (Frantar et al., "GPTQ",
   arXiv 2210.17323).

Weights are symmetric int8 with one scale per output channel; activations are uint8 with a zero point. On x86 processors
without VNNI, onnxruntime adds two neighbouring products in 16 bits with saturation (`vpmaddubsw`). No pair of weights
written here can reach that limit, so the vectors are correct there too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from e5onnx.batching import pad_batch, plan_batches
from e5onnx.errors import CheckpointError

Floats = NDArray[np.float32]

SMOOTHING = 0.8
"""Exponent of SmoothQuant. Larger values fit the calibration texts better and clip more in other texts."""
METHOD = f"static min-max activations, SmoothQuant {SMOOTHING}, least squares, GPTQ, pairs within 16 bits"
"""How weights and scales were found, for the manifest."""
_ROWS = 8192
"""Number of tokens whose activations are kept to fit the weights. Ranges cover all tokens."""
_LARGEST_ACTIVATION = 1e15
"""Up to here the sum of the squares of all rows is finite in float32."""
_DAMPING = 0.01
"""Share of the mean of the second moments' diagonal that is added to the diagonal, as in GPTQ."""
_BLOCK = 64
_LARGEST, _LARGEST_PAIR = 127, 128  # 255 * 128 is below 2**15


@dataclass(frozen=True)
class Activations:
    """What calibration saw at one input of linear layers: rows `[tokens, channels]`, and the range of each channel."""

    rows: Floats
    smallest: Floats
    largest: Floats


def quantize_graph(model: onnx.ModelProto, token_ids: Sequence[NDArray[np.int32]]) -> onnx.ModelProto:
    """Return a fused graph with its linear layers and word embeddings in int8.

    Args:
        model: the finished fp32 graph of `fuse.py` and `head.py`; it is not changed.
        token_ids: the calibration texts.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers = _linear_layers(graph)
    activations = _collect(model, list(layers), token_ids)
    builder = _Builder(graph)
    attention = {node.output[0]: node for node in graph.node if node.op_type == "MultiHeadAttention"}
    for source, products in layers.items():
        # Attention gives means of values, so its output is smoothed by the scales of the values' projection.
        values = attention[source].input[2] if source in attention else None
        matrices = [numpy_helper.to_array(weights[product.input[1]]) for product in products]
        builder.quantize(source, products, matrices, activations.pop(source), values)
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in weights and node.input[1] == "input_ids":
            builder.quantize_table(node, numpy_helper.to_array(weights[node.input[0]]))
        elif node.op_type == "Slice" and node.input[0] in weights:
            builder.halve_table(node, numpy_helper.to_array(weights[node.input[0]]))
    return builder.finish(model)


class _Builder:
    """The nodes that replace those of a graph, and their tensors."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._tensors: dict[str, NDArray[Any]] = {}
        self._scales: dict[str, str] = {}  # output of a product -> name of its weights' scales
        self._replaced: dict[str, list[onnx.NodeProto]] = {}  # first output of a node -> what stands in its place
        self._count = itertools.count()

    def quantize(
        self,
        source: str,
        products: Sequence[onnx.NodeProto],
        matrices: Sequence[Floats],
        seen: Activations,
        values: str | None,
    ) -> None:
        """Replace the products that share the input `source` and its quantised form."""
        name = f"linear_{next(self._count)}"
        factors = smoothing_factors(seen, np.concatenate(matrices, axis=1))
        scale, zero_point = activation_range(seen, factors)
        rows = seen.rows / factors
        steps = np.clip(np.rint(rows / scale) + zero_point, 0, 255) - zero_point
        weights, weight_scales = quantize_weights(
            np.concatenate(matrices, axis=1) * factors[:, None], rows, (steps * scale).astype(np.float32)
        )
        nodes = []
        smoothed = source
        if values is not None:
            self._tensors[self._scales[values]] = self._tensors[self._scales[values]] / factors
        else:
            smoothed = f"{name}_smoothed"
            nodes.append(helper.make_node("Mul", [source, self._add(f"{name}_smoothing", 1 / factors)], [smoothed]))
        range_names = [self._add(f"{name}_scale", scale), self._add(f"{name}_zero_point", zero_point)]
        nodes.append(helper.make_node("QuantizeLinear", [smoothed, *range_names], [f"{name}_input"]))
        ends = np.cumsum([matrix.shape[1] for matrix in matrices])
        for index, (product, end) in enumerate(zip(products, ends, strict=True)):
            part = slice(end - matrices[index].shape[1], end)
            inputs = [
                f"{name}_input",
                self._add(f"{name}_{index}_weight", weights[:, part]),
                range_names[0],
                self._add(f"{name}_{index}_weight_scale", weight_scales[part]),
                range_names[1],
                "",  # weights are symmetric
            ]
            self._scales[product.output[0]] = inputs[3]
            output = product.output[0]
            add = self._bias(output)
            if add is not None:
                inputs.append(add.input[1 - list(add.input).index(output)])
                output = add.output[0]
                self._replaced[output] = []
            nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [output], domain="com.microsoft"))
            self._replaced[product.output[0]] = nodes
            nodes = []

    def quantize_table(self, node: onnx.NodeProto, table: Floats) -> None:
        """Replace a look-up in a table by one in int8, with a scale per row."""
        scales = np.abs(table).max(axis=1, keepdims=True) / _LARGEST
        scales[scales == 0] = 1
        names = [self._add("word_rows", np.rint(table / scales).astype(np.int8)), self._add("word_scales", scales)]
        ids, output = node.input[1], node.output[0]
        self._replaced[output] = [
            helper.make_node("Gather", [names[0], ids], ["word_steps"]),
            helper.make_node("Cast", ["word_steps"], ["word_steps_float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [names[1], ids], ["word_scale"]),
            helper.make_node("Mul", ["word_steps_float", "word_scale"], [output]),
        ]

    def halve_table(self, node: onnx.NodeProto, table: Floats) -> None:
        """Replace a slice of a table by one in float16."""
        name, output = self._add("position_table_half", table.astype(np.float16)), node.output[0]
        self._replaced[output] = [
            helper.make_node("Slice", [name, *node.input[1:]], ["positions_half"]),
            helper.make_node("Cast", ["positions_half"], [output], to=TensorProto.FLOAT),
        ]

    def finish(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model with the nodes replaced."""
        nodes = [new for node in self._graph.node for new in self._replaced.get(node.output[0], [node])]
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        new = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in self._tensors.items()]
        graph = helper.make_graph(nodes, "int8", self._graph.input, self._graph.output, [*kept, *new])
        return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)

    def _add(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self._tensors[name] = np.asarray(value)
        return name

    def _bias(self, output: str) -> onnx.NodeProto | None:
        """Return the node that adds a constant vector to `output`, if there is one."""
        vectors = {tensor.name for tensor in self._graph.initializer if len(tensor.dims) == 1}
        adds = (node for node in self._graph.node if node.op_type == "Add" and output in node.input)
        return next((node for node in adds if vectors.intersection(node.input)), None)


def smoothing_factors(seen: Activations, weights: Floats) -> Floats:
    """Return SmoothQuant's factor of each input channel, `[channels]`; their geometric mean is 1."""
    largest = np.maximum(np.maximum(-seen.smallest, seen.largest), 1e-6)
    factors = largest**SMOOTHING / np.maximum(np.abs(weights).max(axis=1), 1e-6) ** (1 - SMOOTHING)
    normalized: Floats = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return normalized


def activation_range(seen: Activations, factors: Floats) -> tuple[np.float32, np.uint8]:
    """Return the scale and zero point that cover everything calibration saw, and zero."""
    low, high = min((seen.smallest / factors).min(), 0.0), max((seen.largest / factors).max(), 0.0)
    scale = np.float32(max(high - low, 1e-6) / 255)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def quantize_weights(weights: Floats, rows: Floats, quantized_rows: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return int8 weights `[inputs, outputs]` and scales `[outputs]` that approximate `rows @ weights` best.

    Args:
        weights: float32 `[inputs, outputs]`.
        rows: activations `[tokens, inputs]`.
        quantized_rows: the same activations as the graph will see them.
    """
    inputs = len(weights)
    moments = (quantized_rows.T @ quantized_rows).astype(np.float64)
    damping = _DAMPING * max(float(np.diag(moments).mean()), 1e-6)
    moments[np.diag_indices(inputs)] += damping
    mixed = (quantized_rows.T @ rows).astype(np.float64)
    mixed[np.diag_indices(inputs)] += damping
    best = np.asarray(np.linalg.solve(moments, mixed @ weights), np.float64)
    scales = weight_scales(best)
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T

    left = best / scales
    steps = np.zeros(best.shape, np.int8)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = np.zeros((end - start, best.shape[1]))
        for row in range(start, end):
            # the limit of a pair, see the module's docstring
            before = steps[row - 1].astype(np.float64) if row % 2 else np.zeros(best.shape[1])
            highest = np.minimum(_LARGEST, _LARGEST_PAIR - np.maximum(before, 0))
            lowest = np.maximum(-_LARGEST, -_LARGEST_PAIR - np.minimum(before, 0))
            rounded = np.clip(np.rint(left[row]), lowest, highest)
            steps[row] = rounded
            errors[row - start] = (left[row] - rounded) / factor[row, row]
            left[row:end] -= np.outer(factor[row, row:end], errors[row - start])
        left[end:] -= factor[start:end, end:].T @ errors
    return steps, scales.astype(np.float32)


def weight_scales(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scale of each output channel at which no weight, and no pair of the same sign, is too large."""
    pairs = weights[: len(weights) // 2 * 2].reshape(-1, 2, weights.shape[1])
    largest_pair = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1))
    scales: NDArray[np.float64] = (
        np.maximum(np.abs(weights).max(axis=0), largest_pair.max(axis=0, initial=0)) / _LARGEST
    )
    scales[scales == 0] = 1
    return scales


def _linear_layers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the products with constant weights, by the name of their input, in the order of the graph."""
    constants = {tensor.name for tensor in graph.initializer}
    layers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            layers.setdefault(node.input[0], []).append(node)
    return layers


def _collect(
    model: onnx.ModelProto, names: Sequence[str], token_ids: Sequence[NDArray[np.int32]]
) -> dict[str, Activations]:
    """Run the graph on the calibration texts and return the activations at `names`."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    share = _ROWS / sum(map(len, token_ids))
    generator = np.random.default_rng(0)
    kept: dict[str, list[Floats]] = {name: [] for name in names}
    ranges: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in names}
    for batch in plan_batches([len(ids) for ids in token_ids]):
        input_ids, attention_mask = pad_batch([token_ids[text] for text in batch])
        is_token = attention_mask.reshape(-1) == 1
        chosen = generator.random(is_token.sum()) < share
        outputs = session.run(names, {"input_ids": input_ids, "attention_mask": attention_mask})
        for name, output in zip(names, outputs, strict=True):
            rows = output.reshape(-1, output.shape[-1])[is_token]
            largest = np.abs(rows).max()
            if not largest < _LARGEST_ACTIVATION:  # so that NaN fails
                raise CheckpointError(
                    f"the encoder computes {largest:.0e} at {name}, which int8 cannot express: its weights are "
                    "damaged, or it needs --precision fp32"
                )
            kept[name].append(rows[chosen])
            ranges[name].append((rows.min(axis=0), rows.max(axis=0)))
    return {
        name: Activations(
            np.concatenate(kept[name]),
            np.min([smallest for smallest, _ in ranges[name]], axis=0),
            np.max([largest for _, largest in ranges[name]], axis=0),
        )
        for name in names
    }
