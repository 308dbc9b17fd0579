"""A traced encoder in int8: the products with constant weights, found in its graph, and the word embeddings.

How scales and weights are fitted is told in `quantize.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from e5onnx.batching import pad_batch, plan_batches
from e5onnx.errors import CheckpointError

from .folder import save_with_weights
from .quantize import (
    LARGEST_ACTIVATION,
    ROWS,
    Activations,
    Floats,
    activation_range,
    quantize_weights,
    smoothing_factors,
)

_TOGETHER = 16
"""Inputs of linear layers whose activations are in memory at a time."""


def quantize_encoder(
    model: onnx.ModelProto, token_ids: Sequence[NDArray[np.int32]], advance: Callable[[int, int], object]
) -> onnx.ModelProto:
    """Return an encoder with its linear layers and word embeddings in int8.

    Args:
        model: the graph, with `input_ids` and `attention_mask`; it is not changed.
        token_ids: the calibration texts.
        advance: gets how many inputs of linear layers are done, and of how many.

    Raises:
        CheckpointError: no linear layer was found, or the encoder computes values that int8 cannot express.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors: dict[str, NDArray[Any]] = {}
    replaced: dict[str, list[onnx.NodeProto]] = {}  # output of a node -> what stands in its place
    readers: dict[str, list[onnx.NodeProto]] = {}  # input of linear layers -> their products
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and len(weights[node.input[1]].dims) == 2:
            readers.setdefault(node.input[0], []).append(node)
        elif node.op_type == "Gather" and node.input[0] in weights and node.input[1] == "input_ids":
            replaced[node.output[0]] = _look_up(node, numpy_helper.to_array(weights[node.input[0]]), tensors)
    names, found = list(readers), 0
    for start in range(0, len(names), _TOGETHER):
        together = names[start : start + _TOGETHER]
        for source, seen in _collect(model, together, token_ids).items():
            matrices = [numpy_helper.to_array(weights[product.input[1]]) for product in readers[source]]
            replaced |= _products(source, readers[source], matrices, seen, tensors)
            found += 1
        advance(start + len(together), len(names))
    if not found:
        raise CheckpointError(
            "int8 needs linear layers, and none was found in the traced graph: write fp32 only (--precision fp32)"
        )
    nodes = [new for node in model.graph.node for new in replaced.get(node.output[0], [node])]
    read = {name for node in nodes for name in node.input}
    unused = {name for node in model.graph.node if node.output[0] in replaced for name in node.input} - read
    kept = [tensor for name, tensor in weights.items() if name not in unused]
    new = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "int8", model.graph.input, model.graph.output, [*kept, *new])
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _products(
    source: str,
    products: Sequence[onnx.NodeProto],
    matrices: Sequence[Floats],
    seen: Activations,
    tensors: dict[str, NDArray[Any]],
) -> dict[str, list[onnx.NodeProto]]:
    """Return what replaces the products of one input, which share its quantised form; add to `tensors`."""
    matrix = np.concatenate(matrices, axis=1)
    factors = smoothing_factors(seen, matrix)
    scale, zero_point = activation_range(seen, factors)
    fitted, scales, lost = quantize_weights(matrix * factors[:, None], seen.rows / factors, scale)
    smoothing, scale_name, zero_name = (f"{source}_{part}" for part in ("smoothing", "scale", "zero_point"))
    tensors |= {smoothing: 1 / factors, scale_name: np.asarray(scale), zero_name: np.asarray(zero_point)}
    nodes = [
        helper.make_node("Mul", [source, smoothing], [f"{source}_smoothed"]),
        helper.make_node("QuantizeLinear", [f"{source}_smoothed", scale_name, zero_name], [f"{source}_steps"]),
    ]
    ends = np.cumsum([each.shape[1] for each in matrices])[:-1]
    replaced = {}
    for product, part, part_scales, part_lost in zip(
        products, np.split(fitted, ends, axis=1), np.split(scales, ends), np.split(lost, ends), strict=True
    ):
        output = product.output[0]
        weight_name, weight_scale, lost_name = (f"{output}_{kind}" for kind in ("weight", "weight_scale", "lost"))
        tensors |= {weight_name: part, weight_scale: part_scales, lost_name: part_lost}
        inputs = [f"{source}_steps", weight_name, scale_name, weight_scale, zero_name, "", lost_name]
        nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [output], domain="com.microsoft"))
        replaced[output], nodes = nodes, []
    return replaced


def _look_up(node: onnx.NodeProto, table: Floats, tensors: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    """Return what replaces the look-up of rows of a table: int8, with a scale for each row; add to `tensors`."""
    ids, output = node.input[1], node.output[0]
    scales = np.abs(table).max(axis=1, keepdims=True) / 127
    scales[scales == 0] = 1
    rows_name, scales_name = f"{output}_rows", f"{output}_row_scales"
    tensors |= {rows_name: np.rint(table / scales).astype(np.int8), scales_name: scales}
    return [
        helper.make_node("Gather", [rows_name, ids], [f"{output}_row_steps"]),
        helper.make_node("Cast", [f"{output}_row_steps"], [f"{output}_row_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales_name, ids], [f"{output}_row_scale"]),
        helper.make_node("Mul", [f"{output}_row_float", f"{output}_row_scale"], [output]),
    ]


def _collect(
    model: onnx.ModelProto, names: Sequence[str], token_ids: Sequence[NDArray[np.int32]]
) -> dict[str, Activations]:
    """Run the graph on the calibration texts and return what goes through `names`, where that is a row per token."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        save_with_weights(watched, Path(folder, "watched.onnx"))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            str(Path(folder, "watched.onnx")), options, providers=["CPUExecutionProvider"]
        )
        return _run(session, names, token_ids)


def _run(
    session: onnxruntime.InferenceSession, names: Sequence[str], token_ids: Sequence[NDArray[np.int32]]
) -> dict[str, Activations]:
    share = ROWS / sum(map(len, token_ids))
    generator = np.random.default_rng(0)
    kept: dict[str, list[Floats]] = {name: [] for name in names}
    ranges: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in names}
    for texts in plan_batches([len(ids) for ids in token_ids]):
        input_ids, attention_mask = pad_batch([token_ids[text] for text in texts])
        is_token = attention_mask.reshape(-1) == 1
        chosen = generator.random(is_token.sum()) < share
        outputs = session.run(names, {"input_ids": input_ids, "attention_mask": attention_mask})
        for name, output in zip(names, outputs, strict=True):
            if output.shape[:-1] != input_ids.shape:
                kept.pop(name, None)
                continue
            rows = output.reshape(-1, output.shape[-1])[is_token]
            largest = np.abs(rows).max()
            if not largest < LARGEST_ACTIVATION:  # so that NaN fails
                raise CheckpointError(
                    f"the encoder computes {largest:.0e} at {name}, which int8 cannot express: its weights are "
                    "damaged, or it needs --precision fp32"
                )
            kept[name].append(rows[chosen])
            ranges[name].append((rows.min(axis=0), rows.max(axis=0)))
    return {
        name: Activations(
            np.concatenate(rows_of_batches),
            np.min([smallest for smallest, _ in ranges[name]], axis=0),
            np.max([largest for _, largest in ranges[name]], axis=0),
        )
        for name, rows_of_batches in kept.items()
    }
