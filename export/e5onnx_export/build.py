"""An encoder as an ONNX graph, written from its weights. Needs onnx and numpy only.

The graph is one node, `BertEncoder`, a function whose body embeds the tokens and calls `EncoderLayer` once per layer.
Both are written below as text, in the order of the papers (Vaswani et al., "Attention Is All You Need", arXiv
1706.03762; Devlin et al., "BERT", arXiv 1810.04805). Weights are inputs of the functions, so another program can
register an operator of the same name in place of a function.

One description gives every variant. Variants differ in how they write a linear layer, attention and the activation:

- `FUSED`: onnxruntime's own operators, those that measured fastest on a CPU;
- `PORTABLE`: standard ONNX operators only;
- `INT8`: as `FUSED`, with the linear layers of `quantize.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper

from e5onnx.errors import InputValueError

from .network import Floats, Layer, Network, score_bias

DOMAIN = "e5onnx"
OPSET = 18
_IR_VERSION = 8  # the first with functions
_LARGEST_MESSAGE = 2**31 - 1
"""Bytes that protocol buffers can hold."""
_PADDING = -1e30
"""Added to the score of a padded token: so far below the scores of any encoder that its weight is zero."""

# Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415: the function itself, and its approximations by
# tanh and by the logistic function. `fused` are onnxruntime's own operators, `standard` the same in ONNX's.
_GELU = """
        root_2 = Constant <value: tensor = float {1.4142135}> ()
        one = Constant <value: tensor = float {1.0}> ()
        half = Constant <value: tensor = float {0.5}> ()
        scaled = Div (inner, root_2)
        error = Erf (scaled)
        weight = Add (error, one)
        product = Mul (inner, weight)
        activated = Mul (product, half)"""
_GELU_BY_TANH = """
        cubic_share = Constant <value: tensor = float {0.044715}> ()
        root = Constant <value: tensor = float {0.7978845608}> ()
        one = Constant <value: tensor = float {1.0}> ()
        half = Constant <value: tensor = float {0.5}> ()
        square = Mul (inner, inner)
        share = Mul (square, cubic_share)
        shared = Add (share, one)
        cubic = Mul (inner, shared)
        scaled = Mul (cubic, root)
        tangent = Tanh (scaled)
        weight = Add (tangent, one)
        product = Mul (inner, weight)
        activated = Mul (product, half)"""
_GELU_BY_SIGMOID = """
        alpha = Constant <value: tensor = float {1.702}> ()
        scaled = Mul (inner, alpha)
        weight = Sigmoid (scaled)
        activated = Mul (inner, weight)"""
_FUSED_GELU = """
        activated = com.microsoft.Gelu (inner)"""
_FUSED_GELU_BY_TANH = """
        activated = com.microsoft.FastGelu (inner)"""
_FUSED_GELU_BY_SIGMOID = """
        activated = com.microsoft.QuickGelu <alpha: float = 1.702> (inner)"""
_SILU = """
        weight = Sigmoid (inner)
        activated = Mul (inner, weight)"""
_RELU = """
        activated = Relu (inner)"""
_TANH = """
        activated = Tanh (inner)"""
# name in config.json -> how it is written with onnxruntime's operators, and with ONNX's
ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), (_FUSED_GELU, _GELU)),
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"),
        (_FUSED_GELU_BY_TANH, _GELU_BY_TANH),
    ),
    "quick_gelu": (_FUSED_GELU_BY_SIGMOID, _GELU_BY_SIGMOID),
    **dict.fromkeys(("silu", "swish"), (_SILU, _SILU)),
    "relu": (_RELU, _RELU),
    "tanh": (_TANH, _TANH),
}

# Section 3.2.2: every head attends with its own part of the queries, keys and values. The operator has its fastest
# kernel where it gets no mask, so each key says itself whether its token is padding: every head of queries and keys has
# one component more, 1 in a query, 0 in the key of a token, and `_PADDING` in that of padding.
_FUSED_ATTENTION = """
        masked_keys = Add (keys, key_mask)
        attended = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads, scale: float = @scale>
            (queries, masked_keys, values{bias})"""
# Equation 1, with padding as a mask of the scores, the form that other engines look for.
_STANDARD_ATTENTION = """
        by_head = Constant <value: tensor = int64[4] {{0, 0, {heads}, -1}}> ()
        together = Constant <value: tensor = int64[3] {{0, 0, -1}}> ()
        factor = Constant <value_float: float = @scale> ()
        queries_4d = Reshape (queries, by_head)
        keys_4d = Reshape (keys, by_head)
        values_4d = Reshape (values, by_head)
        queries_of_heads = Transpose <perm = [0, 2, 1, 3]> (queries_4d)
        keys_of_heads = Transpose <perm = [0, 2, 3, 1]> (keys_4d)
        values_of_heads = Transpose <perm = [0, 2, 1, 3]> (values_4d)
        dot_products = MatMul (queries_of_heads, keys_of_heads)
        scaled_products = Mul (dot_products, factor)
        {scores}
        probabilities = Softmax <axis = -1> (scores)
        attended_of_heads = MatMul (probabilities, values_of_heads)
        attended_4d = Transpose <perm = [0, 2, 1, 3]> (attended_of_heads)
        attended = Reshape (attended_4d, together)"""
_SCORES = "scores = Add (scaled_products, score_mask)"
_SCORES_BY_DISTANCE = """masked = Add (scaled_products, score_mask)
        scores = Add (masked, score_bias)"""

# Figure 1, left: attention and feed-forward, each added to its input and normalised.
_LAYER = """
<domain: "{domain}", opset_import: ["" : {opset}, "com.microsoft" : 1]>
EncoderLayer <num_heads, scale, epsilon> (hidden, {inputs}) => ({outputs})
{{{hidden}{queries}{keys}{values}{attention}{attended}{attention_output}
        attention_sum = Add (attention_output, hidden)
        attention_normed = LayerNormalization <axis = -1, epsilon: float = @epsilon>
            (attention_sum, attention_norm_scale, attention_norm_shift){attention_normed}
        {inner}{activation}{activated}{feed_forward}
        output_sum = Add (feed_forward, attention_normed)
        output = LayerNormalization <axis = -1, epsilon: float = @epsilon>
            (output_sum, output_norm_scale, output_norm_shift)
}}
"""
_ENCODER = """
<domain: "{domain}", opset_import: ["" : {opset}, "com.microsoft" : 1, "{domain}" : 1]>
BertEncoder <num_heads, scale, epsilon, activation, padding_id>
    (input_ids, attention_mask, {inputs}) => (last_hidden_state)
{{{words}{positions}
        embedded = Add (words, positions)
        {first} = LayerNormalization <axis = -1, epsilon: float = @epsilon>
            (embedded, embedding_norm_scale, embedding_norm_shift)
        mask = Cast <to = 1> (attention_mask)
        one = Constant <value: tensor = float {{1.0}}> ()
        is_padding = Sub (one, mask)
        padding_score = Constant <value: tensor = float {{{padding}}}> ()
        token_scores = Mul (is_padding, padding_score){mask}{bias}{layers}
}}
"""
_CALL = """
        {output} = {domain}.EncoderLayer <num_heads: int = @num_heads, scale: float = @scale, epsilon: float = @epsilon>
            ({inputs})"""
_KEY_MASK = """
        mask_axis = Constant <value: tensor = int64[1] {{2}}> ()
        token_scores_3d = Unsqueeze (token_scores, mask_axis)
        mask_columns = Constant <value: tensor = float[{size}] {{{columns}}}> ()
        key_mask = Mul (token_scores_3d, mask_columns)"""
_SCORE_MASK = """
        head_and_query_axes = Constant <value: tensor = int64[2] {1, 2}> ()
        score_mask = Unsqueeze (token_scores, head_and_query_axes)"""
_WORDS = """
        words = Gather (word_table, input_ids)"""
_POSITIONS = """
        first_position = Constant <value: tensor = int64[1] {{0}}> ()
        length = Shape <start = 1, end = 2> (input_ids)
        {positions} = Slice (position_table, first_position, length)"""
# Liu et al., "RoBERTa", arXiv 1907.11692, as its first implementation counts: padding has the position `padding_id`.
_POSITIONS_AFTER_PADDING = """
        padding_id = Constant <value: tensor = int64 {{{padding_id}}}> ()
        sequence_axis = Constant <value: tensor = int64 {{1}}> ()
        is_padding_id = Equal (input_ids, padding_id)
        is_counted = Not (is_padding_id)
        counted = Cast <to = 7> (is_counted)
        ranks = CumSum (counted, sequence_axis)
        token_ranks = Mul (ranks, counted)
        position_ids = Add (token_ranks, padding_id)
        {positions} = Gather (position_table, position_ids)"""
_CAST_POSITIONS = """
        positions = Cast <to = 1> (stored_positions)"""
# Song et al., "MPNet", arXiv 2004.09297: a bias for each head and distance of two tokens, the same in all layers.
_SCORE_BIAS = """
        zero = Constant <value: tensor = int64 {{0}}> ()
        step = Constant <value: tensor = int64 {{1}}> ()
        row_axis = Constant <value: tensor = int64[1] {{0}}> ()
        column_axis = Constant <value: tensor = int64[1] {{1}}> ()
        farthest = Constant <value: tensor = int64 {{{farthest}}}> ()
        tokens = Shape <start = 1, end = 2> (input_ids)
        token_number = Squeeze (tokens, row_axis)
        places = Range (zero, token_number, step)
        key_places = Unsqueeze (places, row_axis)
        query_places = Unsqueeze (places, column_axis)
        distances = Sub (key_places, query_places)
        distance_ids = Add (distances, farthest)
        bias_of_heads = Gather <axis = 1> (distance_bias, distance_ids)
        score_bias = Unsqueeze (bias_of_heads, row_axis)"""


@dataclass(frozen=True)
class Variant:
    """How the graph is written.

    Attributes:
        read: writes what is done to the input of linear layers, such as quantising it; given its name.
        linear: writes a linear layer; given the names of its output, its input and its weights, and whether it has a
            bias.
        words: writes the look-up of word embeddings, `words`.
        half_positions: whether the table of positions is float16.
        fused: whether onnxruntime's own operators are used.
        has_layers: whether layers are calls of `EncoderLayer`. If not, their nodes stand in `BertEncoder`, which
            onnxruntime loads faster: int8 has many nodes and is chosen to start fast.
    """

    read: Callable[[str], str]
    linear: Callable[[str, str, str, bool], str]
    words: str
    half_positions: bool
    fused: bool
    has_layers: bool = True


def _linear(output: str, source: str, name: str, bias: bool) -> str:
    if not bias:
        return f"""
        {output} = MatMul ({source}, {name}_weight)"""
    return f"""
        {output}_product = MatMul ({source}, {name}_weight)
        {output} = Add ({output}_product, {name}_bias)"""


FUSED = Variant(read=lambda name: "", linear=_linear, words=_WORDS, half_positions=False, fused=True)
PORTABLE = Variant(read=lambda name: "", linear=_linear, words=_WORDS, half_positions=False, fused=False)

LINEAR_INPUTS = ("hidden", "attended", "attention_normed", "activated")
"""What goes into a layer's linear layers, by their names in `EncoderLayer`."""


def layer_weights(network: Network, layer: Layer, variant: Variant) -> dict[str, Floats]:
    """Return the weights of a layer by the names of `EncoderLayer`'s inputs, in their order.

    Keys and values have no bias. That of the keys would add the same to all scores of a query, which softmax ignores.
    That of the values would reach the output unchanged, since the weights of a query sum to one, and so goes into the
    bias of the output projection. Where padding is a component of the keys, queries and keys get that component.
    """
    query, key, value, projection = layer.query, layer.key, layer.value, layer.attention_output
    query_weight, query_bias, key_weight = query.weight, query.bias, key.weight
    if variant.fused:
        query_weight, key_weight = _widened(query_weight, network.heads), _widened(key_weight, network.heads)
        query_bias = _widened(query_bias[None], network.heads)[0] + mask_columns(network)
    return {
        "query_weight": query_weight,
        "query_bias": query_bias,
        "key_weight": key_weight,
        "value_weight": value.weight,
        "attention_output_weight": projection.weight,
        "attention_output_bias": projection.bias + exact_product(value.bias, projection.weight),
        "attention_norm_scale": layer.attention_norm.scale,
        "attention_norm_shift": layer.attention_norm.shift,
        "intermediate_weight": layer.intermediate.weight,
        "intermediate_bias": layer.intermediate.bias,
        "output_weight": layer.output.weight,
        "output_bias": layer.output.bias,
        "output_norm_scale": layer.output_norm.scale,
        "output_norm_shift": layer.output_norm.shift,
    }


def embedding_weights(network: Network) -> dict[str, Floats]:
    """Return the weights of the embeddings by the names of `BertEncoder`'s inputs."""
    weights = {
        "word_table": network.words,
        "position_table": network.positions,
        "embedding_norm_scale": network.embedding_norm.scale,
        "embedding_norm_shift": network.embedding_norm.shift,
    }
    if network.distance_bias is not None:
        weights["distance_bias"] = network.distance_bias
    return weights


def build_encoder(
    network: Network,
    variant: Variant,
    embeddings: Mapping[str, NDArray[Any]],
    layers: Sequence[Mapping[str, NDArray[Any]]],
) -> onnx.ModelProto:
    """Return an encoder as a graph of one node.

    Inputs `input_ids` and `attention_mask`, int64 `[batch, sequence]`; output `last_hidden_state`, float32
    `[batch, sequence, hidden_size]`.

    Args:
        network: the encoder.
        variant: how it is written.
        embeddings: the tensors of :func:`embedding_weights`, or what the variant makes of them.
        layers: for each layer the tensors of :func:`layer_weights`, or what the variant makes of them.
    """
    tensors = dict(embeddings)
    for number, layer in enumerate(layers):
        tensors |= {f"layer_{number}_{name}": tensor for name, tensor in layer.items()}
    fixed = _fixed(network, variant)
    calls = [
        _CALL.format(
            domain=DOMAIN,
            output="last_hidden_state" if number == len(layers) - 1 else f"hidden_{number + 1}",
            inputs=", ".join([f"hidden_{number}", *fixed, *(f"layer_{number}_{name}" for name in layer)]),
        )
        for number, layer in enumerate(layers)
    ]
    encoder = _ENCODER.format(
        domain=DOMAIN,
        opset=OPSET,
        inputs=", ".join(tensors),
        first="hidden_0" if layers else "last_hidden_state",
        words=variant.words,
        positions=_positions(network, variant),
        padding=_PADDING,
        mask=_mask(network, variant),
        bias=_SCORE_BIAS.format(farthest=network.max_tokens - 1) if _is_relative(network) else "",
        layers="".join(calls),
    )
    functions = [layer_function(network, variant, layer) for layer in layers[:1]]
    functions.append(onnx.parser.parse_function(encoder))
    if not variant.has_layers:
        functions = [_inlined(*functions)]
    axes = ["batch", "sequence"]
    call = helper.make_node(
        "BertEncoder",
        ["input_ids", "attention_mask", *tensors],
        ["last_hidden_state"],
        domain=DOMAIN,
        activation=network.activation,
        padding_id=-1 if network.padding_id is None else network.padding_id,
        **_attributes(network),
    )
    graph = helper.make_graph(
        [call],
        "encoder",
        [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, axes) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, [*axes, network.hidden_size])],
        [numpy_helper.from_array(np.ascontiguousarray(tensor), name) for name, tensor in tensors.items()],
    )
    return _model(graph, functions)


def build_layer(network: Network, weights: Mapping[str, Floats]) -> onnx.ModelProto:
    """Return one layer as a graph, for calibration: what :func:`layer_inputs` names goes in.

    Outputs are the hidden states after it, and all of :data:`LINEAR_INPUTS` but the first, which goes in.
    """
    watched = LINEAR_INPUTS[1:]
    fixed = _fixed(network, FUSED)
    call = helper.make_node(
        "EncoderLayer", ["hidden", *fixed, *weights], ["output", *watched], domain=DOMAIN, **_attributes(network)
    )
    graph = helper.make_graph(
        [call],
        "layer",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("hidden", *fixed)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("output", *watched)],
        [numpy_helper.from_array(np.ascontiguousarray(tensor), name) for name, tensor in weights.items()],
    )
    return _model(graph, [layer_function(network, FUSED, weights, watched=watched)])


def layer_inputs(network: Network, hidden: Floats, attention_mask: NDArray[np.int64]) -> dict[str, Floats]:
    """Return the inputs of :func:`build_layer` for hidden states `[batch, sequence, hidden_size]` and their mask."""
    is_padding = (1 - attention_mask)[:, :, None].astype(np.float32)
    inputs = {"hidden": hidden, "key_mask": is_padding * np.float32(_PADDING) * mask_columns(network)}
    if network.distance_bias is not None:
        inputs["score_bias"] = score_bias(network.distance_bias, hidden.shape[1])[None]
    return inputs


def layer_function(
    network: Network, variant: Variant, weights: Iterable[str], *, watched: Sequence[str] = ()
) -> onnx.FunctionProto:
    """Return `EncoderLayer`, with names of :data:`LINEAR_INPUTS` as further outputs."""
    read, linear = variant.read, variant.linear
    fused, standard = ACTIVATIONS[network.activation]
    if variant.fused:
        attention = _FUSED_ATTENTION.format(bias=", , , score_bias" if _is_relative(network) else "")
    else:
        scores = _SCORES_BY_DISTANCE if _is_relative(network) else _SCORES
        attention = _STANDARD_ATTENTION.format(heads=network.heads, scores=scores)
    text = _LAYER.format(
        domain=DOMAIN,
        opset=OPSET,
        inputs=", ".join([*_fixed(network, variant), *weights]),
        outputs=", ".join(["output", *watched]),
        **{name: read(name) for name in LINEAR_INPUTS},
        queries=linear("queries", "hidden", "query", True),
        keys=linear("keys", "hidden", "key", False),
        values=linear("values", "hidden", "value", False),
        attention=attention,
        attention_output=linear("attention_output", "attended", "attention_output", True),
        inner=linear("inner", "attention_normed", "intermediate", True),
        activation=fused if variant.fused else standard,
        feed_forward=linear("feed_forward", "activated", "output", True),
    )
    function: onnx.FunctionProto = onnx.parser.parse_function(text)
    return function


def _inlined(layer: onnx.FunctionProto, encoder: onnx.FunctionProto) -> onnx.FunctionProto:
    """Return `BertEncoder` with the nodes of `EncoderLayer` in place of its calls.

    onnx's own inliner makes up names, which may change with its version, and the fingerprint with them.
    """
    nodes = []
    for node in encoder.node:
        if node.op_type != "EncoderLayer":
            nodes.append(node)
            continue
        names = dict(zip((*layer.input, *layer.output), (*node.input, *node.output), strict=True))
        for inner in layer.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(inner)
            for values in (copy.input, copy.output):
                values[:] = [names.get(value, f"{node.output[0]}_{value}") if value else "" for value in values]
            nodes.append(copy)
    del encoder.node[:]
    encoder.node.extend(nodes)
    return encoder


def flattened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph without functions, for engines that do not read them.

    Raises:
        InputValueError: it is too large for onnx to do so.
    """
    if model.ByteSize() > _LARGEST_MESSAGE:
        raise InputValueError("a graph of more than 2 GB cannot be written in standard operators; leave that out")
    flat: onnx.ModelProto = inliner.inline_local_functions(model)
    standard = [opset for opset in model.opset_import if not opset.domain]
    del flat.opset_import[:]
    flat.opset_import.extend(standard)
    return flat


def mask_columns(network: Network) -> Floats:
    """Return 1 at the last component of every head, and 0 at the others: `[heads * (head_size + 1)]`."""
    columns = np.zeros((network.heads, network.hidden_size // network.heads + 1), np.float32)
    columns[:, -1] = 1
    return columns.reshape(-1)


def exact_product(vector: Floats, matrix: Floats) -> Floats:
    """Return `vector @ matrix`, rounded once: the same on every machine, whatever its linear algebra adds up first."""
    products = vector[:, None].astype(np.float64) * matrix  # exact: 24 bits times 24 bits
    return np.array([math.fsum(column) for column in products.T], np.float32)


def _widened(matrix: Floats, heads: int) -> Floats:
    """Append a column of zeros to every head."""
    columns = matrix.reshape(len(matrix), heads, -1)
    return np.pad(columns, ((0, 0), (0, 0), (0, 1))).reshape(len(matrix), -1)


def _positions(network: Network, variant: Variant) -> str:
    text = _POSITIONS if network.padding_id is None else _POSITIONS_AFTER_PADDING
    found = "stored_positions" if variant.half_positions else "positions"
    looked_up = text.format(positions=found, padding_id=network.padding_id)
    return looked_up + (_CAST_POSITIONS if variant.half_positions else "")


def _mask(network: Network, variant: Variant) -> str:
    if not variant.fused:
        return _SCORE_MASK
    columns = mask_columns(network)
    return _KEY_MASK.format(size=len(columns), columns=", ".join(f"{column:.1f}" for column in columns))


def _fixed(network: Network, variant: Variant) -> list[str]:
    """Return the inputs that all layers share."""
    return ["key_mask" if variant.fused else "score_mask", *(["score_bias"] if _is_relative(network) else [])]


def _is_relative(network: Network) -> bool:
    return network.distance_bias is not None


def _attributes(network: Network) -> dict[str, Any]:
    head_size = network.hidden_size // network.heads
    return {"num_heads": network.heads, "scale": head_size**-0.5, "epsilon": network.epsilon}


def _model(graph: onnx.GraphProto, functions: Sequence[onnx.FunctionProto]) -> onnx.ModelProto:
    domains = (("", OPSET), ("com.microsoft", 1), (DOMAIN, 1))
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*domain) for domain in domains],
        functions=functions,
        ir_version=_IR_VERSION,
    )
