"""What comes after the encoder, as ONNX nodes: pooling, Dense layers, L2 normalisation. Needs onnx and numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from e5onnx.manifest import Pooling

Activation = Literal["identity", "tanh", "relu", "gelu", "sigmoid"]


class Dense(NamedTuple):
    """A linear layer after pooling, sentence-transformers' `Dense`.

    `weight` is `[inputs, outputs]`; `bias` `[outputs]`, zeros where the checkpoint has none.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: Activation


# The product of the mask, as a row vector, with the hidden states sums the tokens that count. Mean: `average_pool` on
# E5's model card.
_SUM = """
    token_row = Unsqueeze (token_weights, axis_1)
    token_sum_3d = MatMul (token_row, last_hidden_state)
    token_sum = Squeeze (token_sum_3d, axis_1)
    weight_sum = ReduceSum <keepdims = 1> (token_weights, axis_1)
    divisor = Max (weight_sum, one)"""
_POOLING: dict[Pooling, str] = {
    "mean": f"""
    token_weights = Cast <to = 1> (attention_mask){_SUM}
    pooled = Div (token_sum, divisor)""",
    # as mean, but divided by the root of the number of tokens
    "mean_sqrt_len_tokens": f"""
    token_weights = Cast <to = 1> (attention_mask){_SUM}
    root = Sqrt (divisor)
    pooled = Div (token_sum, root)""",
    # mean with the weights 1, 2, 3, ... (Muennighoff, "SGPT", arXiv 2202.08904)
    "weightedmean": f"""
    ranks = CumSum (attention_mask, index_1)
    token_ranks = Mul (ranks, attention_mask)
    token_weights = Cast <to = 1> (token_ranks){_SUM}
    pooled = Div (token_sum, divisor)""",
    "cls": """
    pooled = Gather <axis = 1> (last_hidden_state, index_0)""",
    "lasttoken": """
    token_weights = Cast <to = 1> (attention_mask)
    last_index = ArgMax <axis = 1, keepdims = 1, select_last_index = 1> (token_weights)
    pooled = GatherND <batch_dims = 1> (last_hidden_state, last_index)""",
    "max": """
    token_weights = Cast <to = 1> (attention_mask)
    padding = Sub (one, token_weights)
    penalty = Mul (padding, lowest)
    penalty_3d = Unsqueeze (penalty, axis_2)
    tokens_only = Add (last_hidden_state, penalty_3d)
    pooled = ReduceMax <keepdims = 0> (tokens_only, axis_1)""",
}
_DENSE = """
    {output}_product = MatMul ({source}, {output}_weight)
    {output}_linear = Add ({output}_product, {output}_bias){activation}"""
_ACTIVATIONS: dict[Activation, str] = {
    "identity": """
    {output} = Identity ({output}_linear)""",
    "tanh": """
    {output} = Tanh ({output}_linear)""",
    "relu": """
    {output} = Relu ({output}_linear)""",
    "sigmoid": """
    {output} = Sigmoid ({output}_linear)""",
    "gelu": """
    {output}_scaled = Div ({output}_linear, root_2)
    {output}_error = Erf ({output}_scaled)
    {output}_sum = Add ({output}_error, one)
    {output}_doubled = Mul ({output}_linear, {output}_sum)
    {output} = Mul ({output}_doubled, half)""",
}
# A row whose mask is all zero gives zeros. The first numbers, as sentence-transformers' truncate_dim; then
# x / max(|x|, 1e-12), as torch.nn.functional.normalize.
_HEAD = """
<ir_version: 8, opset_import: ["" : 18]>
head (float[batch, sequence, {hidden_size}] last_hidden_state, int64[batch, sequence] attention_mask)
    => (float[batch, {dimension}] sentence_embedding, float[batch, {dimension}] pooled_embedding)
    <int64[1] axis_1 = {{1}}, int64[1] axis_2 = {{2}}, int64 index_0 = {{0}}, int64 index_1 = {{1}},
     float one = {{1.0}}, float half = {{0.5}}, float root_2 = {{1.4142135}}, float lowest = {{-1e30}},
     float smallest_length = {{1e-12}}, int64[1] from_0 = {{0}}, int64[1] to_dimension = {{{dimension}}}>
{{{pooling}{dense}
    token_found = ReduceMax <keepdims = 1> (attention_mask, axis_1)
    is_text = Cast <to = 1> (token_found)
    text_embedding = Mul ({last}, is_text)
    pooled_embedding = Slice (text_embedding, from_0, to_dimension, axis_1)
    length = ReduceL2 <keepdims = 1> (pooled_embedding, axis_1)
    length_or_more = Max (length, smallest_length)
    sentence_embedding = Div (pooled_embedding, length_or_more)
}}
"""


def build_head(pooling: Pooling, hidden_size: int, dimension: int, dense: Sequence[Dense] = ()) -> onnx.ModelProto:
    """Return everything after the encoder as a model of its own.

    Inputs `last_hidden_state`, float32 `[batch, sequence, hidden_size]`, and `attention_mask`, int64
    `[batch, sequence]`; outputs `sentence_embedding` (unit length) and `pooled_embedding`, float32
    `[batch, dimension]`. If `dimension` is smaller than what comes out of pooling and Dense layers, vectors are cut to
    their first numbers. `sentence_embedding` has unit length all the same: sentence-transformers cuts what its
    Normalize module made, and gives that unit length only with `normalize_embeddings=True`.

    Example:
        >>> [output.name for output in build_head("mean", 384, 384).graph.output]
        ['sentence_embedding', 'pooled_embedding']
    """
    names = ["pooled", *(f"dense_{number}" for number in range(1, len(dense) + 1))]
    layers = "".join(
        _DENSE.format(source=source, output=output, activation=_ACTIVATIONS[layer.activation].format(output=output))
        for source, output, layer in zip(names, names[1:], dense, strict=False)
    )
    model: onnx.ModelProto = onnx.parser.parse_model(
        _HEAD.format(
            hidden_size=hidden_size, dimension=dimension, pooling=_POOLING[pooling], dense=layers, last=names[-1]
        )
    )
    graph = model.graph
    for name, layer in zip(names[1:], dense, strict=True):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(layer.weight), f"{name}_weight"))
        graph.initializer.append(numpy_helper.from_array(layer.bias, f"{name}_bias"))
    used = {name for node in graph.node for name in node.input}
    for constant in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(constant)
    return model


def append_head(
    encoder: onnx.ModelProto, pooling: Pooling, hidden_size: int, dimension: int, dense: Sequence[Dense] = ()
) -> None:
    """Append :func:`build_head` to an encoder whose output is `last_hidden_state`."""
    head = build_head(pooling, hidden_size, dimension, dense).graph
    graph = encoder.graph
    graph.node.extend(head.node)
    graph.initializer.extend(head.initializer)
    del graph.output[:]
    graph.output.extend(head.output)
    numbers = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    if 4 * numbers < onnx.checker.MAXIMUM_PROTOBUF:  # the checker cannot read more
        onnx.checker.check_model(encoder)
