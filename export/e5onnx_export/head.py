"""Pooling and L2 normalisation as ONNX nodes at the end of an encoder's graph. Needs onnx only, no torch."""

from __future__ import annotations

from typing import Literal

import onnx

# Mean of the hidden states over the attention mask, as `average_pool` on E5's model card. Multiplying by the mask as a
# row vector sums the unmasked tokens; a row without any gives zeros, because its sum of 0 is divided by 1.
_MEAN = """
    token_weights = Cast<to = 1>(attention_mask)
    token_count = ReduceSum<keepdims = 1>(token_weights, axis_1)
    token_divisor = Max(token_count, one)
    token_row = Unsqueeze(token_weights, axis_1)
    token_sum_3d = MatMul(token_row, last_hidden_state)
    token_sum = Squeeze(token_sum_3d, axis_1)
    {pooled} = Div(token_sum, token_divisor)
"""
# Hidden state of the first token; zeros for a row whose mask is all zero.
_CLS = """
    first_token = Gather<axis = 1>(last_hidden_state, index_0)
    token_weights = Cast<to = 1>(attention_mask)
    is_text = ReduceMax<keepdims = 1>(token_weights, axis_1)
    {pooled} = Mul(first_token, is_text)
"""
# The first numbers of the pooled states, as with sentence-transformers' truncate_dim.
_CUT = """
    pooled_embedding = Slice(pooled_states, from_0, to_dimension, axis_1)
"""
# x / max(|x|, 1e-12), as torch.nn.functional.normalize.
_NORMALIZE = """
    length = ReduceL2<keepdims = 1>(pooled_embedding, axis_1)
    divisor = Max(length, smallest_length)
    sentence_embedding = Div(pooled_embedding, divisor)
"""
_HEAD = """
<ir_version: 8, opset_import: ["" : 18]>
head (float[batch, sequence, {hidden_size}] last_hidden_state, int64[batch, sequence] attention_mask)
    => (float[batch, {dimension}] sentence_embedding, float[batch, {dimension}] pooled_embedding)
    <int64[1] axis_1 = {{1}}, int64 index_0 = {{0}}, float one = {{1.0}}, float smallest_length = {{1e-12}},
     int64[1] from_0 = {{0}}, int64[1] to_dimension = {{{dimension}}}>
{{
    {pooling}
    {cut}
    {normalize}
}}
"""


def build_head(pooling: Literal["mean", "cls"], hidden_size: int, dimension: int) -> onnx.ModelProto:
    """Return pooling and normalisation as a model of its own.

    Inputs `last_hidden_state`, float32 `[batch, sequence, hidden_size]`, and `attention_mask`, int64
    `[batch, sequence]`; outputs `sentence_embedding` (unit length) and `pooled_embedding`, float32
    `[batch, dimension]`. If `dimension` is less than `hidden_size`, only the first numbers of the pooled states are
    kept, and `sentence_embedding` still has unit length. sentence-transformers truncates after its Normalize module,
    and restores unit length only with `normalize_embeddings=True`.

    Example:
        >>> [output.name for output in build_head("mean", 384, 384).graph.output]
        ['sentence_embedding', 'pooled_embedding']
    """
    cut = _CUT if dimension < hidden_size else ""
    nodes = {"mean": _MEAN, "cls": _CLS}[pooling].format(pooled="pooled_states" if cut else "pooled_embedding")
    model: onnx.ModelProto = onnx.parser.parse_model(
        _HEAD.format(hidden_size=hidden_size, dimension=dimension, pooling=nodes, cut=cut, normalize=_NORMALIZE)
    )
    used = {name for node in model.graph.node for name in node.input}
    for constant in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(constant)
    return model


def append_head(encoder: onnx.ModelProto, pooling: Literal["mean", "cls"], hidden_size: int, dimension: int) -> None:
    """Append :func:`build_head` to an encoder whose output is `last_hidden_state`, and name the axes of its inputs."""
    head = build_head(pooling, hidden_size, dimension).graph
    graph = encoder.graph
    graph.node.extend(head.node)
    graph.initializer.extend(head.initializer)
    del graph.output[:]
    graph.output.extend(head.output)
    for value in graph.input:
        for axis, name in zip(value.type.tensor_type.shape.dim, ("batch", "sequence"), strict=True):
            axis.dim_param = name
    onnx.checker.check_model(encoder, full_check=True)
