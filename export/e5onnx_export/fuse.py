"""The traced encoder rewritten for onnxruntime's CPU kernels, by what was measured to be fast on them.

onnxruntime's own transformer optimiser does the fusions. The result is final: the runtime loads it with graph
optimisation off, as onnxruntime would fuse the slow forms again, and an optimised graph loads faster.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model

_TYPES = "embeddings.token_type_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"


def fuse_encoder(model: onnx.ModelProto, *, heads: int, hidden_size: int, layers: int) -> onnx.ModelProto:
    """Return an encoder, which is used up, with attention and GELU as single nodes of onnxruntime's own operators.

    Raises:
        ValueError: the attention of some of the `layers` layers was not found.
    """
    options = FusionOptions("bert")
    # MultiHeadAttention with separate Q, K and V has the faster kernels, Attention and QAttention do not.
    options.use_multi_head_attention = True
    # The mask itself rather than a length for each text: padding may be anywhere.
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
        raise ValueError(f"{found} of {layers} attention layers could be fused")
    if not any(opset.domain == "com.microsoft" for opset in fused.opset_import):
        fused.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return fused


def simplify_embeddings(model: onnx.ModelProto) -> None:
    """Take the position embeddings by one Slice, with those of token type 0 added; drop the input `token_type_ids`.

    The model is changed in place, and keeps to standard ONNX operators.
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
    _remove_unused_nodes(graph)


def _adds_look_up(node: onnx.NodeProto, table: str, producers: dict[str, onnx.NodeProto]) -> bool:
    """Return whether a node adds rows that are looked up in `table`."""
    sources = [producers.get(name) for name in node.input]
    return node.op_type == "Add" and any(
        source is not None and source.op_type == "Gather" and source.input[0] == table for source in sources
    )


def _remove_unused_nodes(graph: onnx.GraphProto) -> None:
    used = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):  # nodes are in topological order
        if used.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            used.update(node.input)
