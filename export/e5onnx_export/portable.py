"""Gives a model folder the graph in standard ONNX operators, made from its fp32 graph alone, without the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from e5onnx.atomic import written_whole
from e5onnx.errors import InputValueError
from e5onnx.model_folder import ModelFolder

from .build import PORTABLE, build_encoder, embedding_weights, flattened, layer_weights
from .folder import PORTABLE_GRAPH, graph_record, save_whole, write_manifest
from .network import Floats, Layer, Linear, Network, Norm
from .validate import compare_with_fp32


def add_portable_graph(
    model: str | os.PathLike[str], *, report: Callable[[str], None] = lambda line: None
) -> ModelFolder:
    """Add the graph in standard ONNX operators to a model folder that has the fp32 graph. The checkpoint is not needed.

    Args:
        model: a model folder. The hub's cache is never changed: copy a model from there first.
        report: called with one line of text for every step.

    Returns:
        The folder, now with the portable graph; unchanged if it already had one.

    Raises:
        InputValueError: the folder has no fp32 graph.
        ModelNotFoundError: there is no such folder.
        ModelFolderError: one of its files is damaged.
        ParityError: the new graph does not reproduce the fp32 graph's vectors.

    Example:
        >>> add_portable_graph("models/sample").manifest.graph("fp32", "openvino").portable
        True
    """
    folder = ModelFolder.open(model)
    if any(graph.portable for graph in folder.manifest.graphs):
        report(f"{folder.path} already has the portable graph")
        return folder
    if not any(graph.precision == "fp32" for graph in folder.manifest.graphs):
        raise InputValueError(f"{folder.path} has no fp32 graph to make the portable one from; export it again")
    folder.verify()
    report("Writing the fp32 graph in standard ONNX operators")
    with written_whole(folder.path / PORTABLE_GRAPH) as path, folder.graph("fp32") as fused:
        save_whole(in_standard_operators(onnx.load(fused.path)), path)
        parity = compare_with_fp32(folder, path)
    report(f"  {PORTABLE_GRAPH}: largest difference from fp32 {parity['max_abs_difference']:.1e}")
    record = replace(graph_record(folder.path, PORTABLE_GRAPH, "fp32"), parity=parity)
    write_manifest(folder.path, replace(folder.manifest, graphs=(*folder.manifest.graphs, record)))
    return ModelFolder.open(folder.path)


def in_standard_operators(fused: onnx.ModelProto) -> onnx.ModelProto:
    """Return the fp32 graph of `build.py` and `head.py` in standard ONNX operators.

    Raises:
        InputValueError: it was not built there.
    """
    graph = fused.graph
    if graph.node[0].op_type != "BertEncoder":
        raise InputValueError("the fp32 graph was not built from the weights of its checkpoint; export it again")
    network = read_built(graph)
    layers = [layer_weights(network, layer, PORTABLE) for layer in network.layers]
    portable = build_encoder(network, PORTABLE, embedding_weights(network), layers)
    head = graph.node[1:]
    portable.graph.node.extend(head)
    read = {name for node in head for name in node.input}
    portable.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    del portable.graph.output[:]
    portable.graph.output.extend(graph.output)
    return flattened(portable)


def read_built(graph: onnx.GraphProto) -> Network:
    """Return the encoder of a graph that :func:`build_encoder` wrote as `FUSED`, with what it did to weights undone.

    The biases that :func:`layer_weights` drops or moves are zero.
    """
    tensors: dict[str, Floats] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    attributes = {each.name: helper.get_attribute_value(each) for each in graph.node[0].attribute}
    heads, padding_id = attributes["num_heads"], attributes["padding_id"]

    def narrowed(matrix: Floats) -> Floats:
        return matrix.reshape(len(matrix), heads, -1)[:, :, :-1].reshape(len(matrix), -1)

    def layer(number: int) -> Layer:
        prefix = f"layer_{number}_"
        weights = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        nothing = np.zeros(weights["value_weight"].shape[1], np.float32)
        return Layer(
            query=Linear(narrowed(weights["query_weight"]), narrowed(weights["query_bias"][None])[0]),
            key=Linear(narrowed(weights["key_weight"]), nothing),
            value=Linear(weights["value_weight"], nothing),
            attention_output=Linear(weights["attention_output_weight"], weights["attention_output_bias"]),
            attention_norm=Norm(weights["attention_norm_scale"], weights["attention_norm_shift"]),
            intermediate=Linear(weights["intermediate_weight"], weights["intermediate_bias"]),
            output=Linear(weights["output_weight"], weights["output_bias"]),
            output_norm=Norm(weights["output_norm_scale"], weights["output_norm_shift"]),
        )

    return Network(
        heads=heads,
        epsilon=attributes["epsilon"],
        activation=attributes["activation"].decode(),
        words=tensors["word_table"],
        positions=tensors["position_table"],
        embedding_norm=Norm(tensors["embedding_norm_scale"], tensors["embedding_norm_shift"]),
        layers=tuple(layer(number) for number in range(sum(name.endswith("_query_bias") for name in tensors))),
        padding_id=None if padding_id < 0 else padding_id,
        distance_bias=tensors.get("distance_bias"),
    )
