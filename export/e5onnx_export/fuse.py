"""Rewrites the traced encoder with the operators that were measured to be fast on onnxruntime's CPU kernels.

onnxruntime's own transformer optimiser does the fusions. The runtime loads the result with graph optimisation off:
onnxruntime would fuse the slow forms again, and a graph that is already optimised loads faster.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model

from e5onnx.errors import CheckpointError

from .graph import consumer, remove_unused

_TYPES = "embeddings.token_type_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_PADDING = -1e30
"""Component of a padded token's key, far enough below any encoder's scores to make the token's weight zero."""


def fuse_encoder(model: onnx.ModelProto, *, heads: int, hidden_size: int, layers: int) -> onnx.ModelProto:
    """Return an encoder with attention and GELU as single nodes of onnxruntime's operators. `model` is consumed.

    Raises:
        CheckpointError: attention was not found in all of the `layers` layers.
    """
    options = FusionOptions("bert")
    # MultiHeadAttention with separate Q, K and V has faster kernels than Attention and QAttention.
    options.use_multi_head_attention = True
    # The mask itself instead of the length of each text, because padding may be anywhere.
    options.use_raw_attention_mask(True)
    # SkipLayerNormalization and BiasGelu are slower on a CPU than what they replace.
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    options.enable_embed_layer_norm = False
    options.enable_bias_gelu = False
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        optimized = optimize_model(
            model, "bert", num_heads=heads, hidden_size=hidden_size, optimization_options=options, opt_level=0
        )
    fused: onnx.ModelProto = optimized.model
    found = [node.op_type for node in fused.graph.node].count("MultiHeadAttention")
    if found != layers:
        raise CheckpointError(f"only {found} of {layers} attention layers were found in the traced graph")
    _move_mask_into_keys(fused.graph, heads, hidden_size // heads)
    if not any(opset.domain == "com.microsoft" for opset in fused.opset_import):
        fused.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return fused


def simplify_embeddings(model: onnx.ModelProto) -> None:
    """Read position embeddings, with token type 0 added, by one Slice; drop the input `token_type_ids`.

    Changes the model in place. It still has standard ONNX operators only.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    positions, types = (numpy_helper.to_array(weights[name]) for name in (_POSITIONS, _TYPES))
    producers = {output: node for node in graph.node for output in node.output}
    add_positions = next(node for node in graph.node if _adds_look_up(node, _POSITIONS, producers))
    add_types = next(node for node in graph.node if _adds_look_up(node, _TYPES, producers))
    words = next(name for name in add_types.input if producers[name].input[0] not in (_POSITIONS, _TYPES))

    # words + types, + positions  ->  words + (positions + types[0])[:length]
    length = helper.make_node("Shape", ["input_ids"], ["sequence_length"], start=1, end=2)
    cut = helper.make_node("Slice", ["position_table", "slice_start", "sequence_length"], ["positions"])
    total = helper.make_node("Add", [words, "positions"], [add_positions.output[0]])
    place = list(graph.node).index(add_positions)
    graph.node.remove(add_positions)
    for offset, node in enumerate((length, cut, total)):
        graph.node.insert(place + offset, node)
    for tensor in (weights[_POSITIONS], weights[_TYPES]):
        graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(positions + types[0], "position_table"))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "slice_start"))
    for value in graph.input:
        if value.name == "token_type_ids":
            graph.input.remove(value)
            break
    remove_unused(graph)


def _move_mask_into_keys(graph: onnx.GraphProto, heads: int, head_size: int) -> None:
    """Mark padding in the keys, so that attention needs no mask: only then does it have a flash kernel.

    Every head of queries and keys gets one more component: 1 in a query, 0 in the key of a token, and in the key of
    padding a negative number that makes the weight zero. The attention node's biases move out of it. Query biases
    become an Add. Key biases add the same number to all scores of a query, which softmax ignores. Value biases reach
    the output unchanged, because a query's weights sum to one, so they join the bias of the output projection.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    mask_columns = np.zeros((heads, head_size + 1), np.float32)
    mask_columns[:, head_size] = 1

    def value(name: str) -> NDArray[np.float32]:
        return numpy_helper.to_array(weights[name])

    def constant(name: str, values: NDArray[np.float32]) -> str:
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def widened(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append a column of zeros to every head."""
        columns = matrix.reshape(-1, heads, head_size)
        return np.pad(columns, ((0, 0), (0, 0), (0, 1))).reshape(len(columns), -1)

    padding = {
        "padding_score": np.array(_PADDING, np.float32),
        "is_token": np.array(1, np.float32),
        "mask_columns": mask_columns.reshape(-1),
    }
    for name, values in padding.items():
        constant(name, values)
    axis = numpy_helper.from_array(np.array([2], np.int64), "mask_axis")
    graph.initializer.append(axis)
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["attention_mask_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["is_token", "attention_mask_float"], ["is_padding"]),
        helper.make_node("Mul", ["is_padding", "padding_score"], ["token_scores"]),
        helper.make_node("Unsqueeze", ["token_scores", "mask_axis"], ["token_scores_3d"]),
        helper.make_node("Mul", ["token_scores_3d", "mask_columns"], ["key_mask"]),
    ]
    for node in graph.node:
        if node.op_type != "MultiHeadAttention":
            nodes.append(node)
            continue
        name = node.name
        query, key, values = (producers[source] for source in node.input[:3])
        query_bias, _, value_bias = np.split(value(node.input[3]), 3)
        for projection, part in ((query, "query"), (key, "key")):
            projection.input[1] = constant(f"{name}_{part}_weight", widened(value(projection.input[1])))
        bias = constant(f"{name}_query_bias", widened(query_bias)[0] + mask_columns.reshape(-1))
        output = consumer(graph, node.output[0], "MatMul")
        output_add = consumer(graph, output.output[0], "Add")
        bias_input = 1 - list(output_add.input).index(output.output[0])
        output_bias = value(output_add.input[bias_input]) + value_bias @ value(output.input[1])
        output_add.input[bias_input] = constant(f"{name}_output_bias", output_bias)
        attention = helper.make_node(
            "MultiHeadAttention",
            [f"{name}_queries", f"{name}_keys", values.output[0]],
            node.output,
            name,
            domain="com.microsoft",
            num_heads=heads,
            scale=head_size**-0.5,
        )
        nodes += [
            helper.make_node("Add", [query.output[0], bias], [f"{name}_queries"]),
            helper.make_node("Add", [key.output[0], "key_mask"], [f"{name}_keys"]),
            attention,
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused(graph)


def _adds_look_up(node: onnx.NodeProto, table: str, producers: dict[str, onnx.NodeProto]) -> bool:
    """Return whether a node adds rows looked up in `table`."""
    sources = [producers.get(name) for name in node.input]
    return node.op_type == "Add" and any(
        source is not None and source.op_type == "Gather" and source.input[0] == table for source in sources
    )
