"""The fused fp32 graph in standard ONNX operators, for engines other than onnxruntime. Needs onnx, no torch.

It is made from the fused graph alone, so it can be added to a model folder without the checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper

from e5onnx.atomic import written_whole
from e5onnx.errors import InputValueError
from e5onnx.model_folder import ModelFolder

from .folder import PORTABLE_GRAPH, graph_record, write_manifest
from .graph import remove_unused
from .validate import compare_with_fp32

_DOMAIN = "e5onnx"
# Replacements for onnxruntime's operators: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1,
# for each head; Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
_ATTENTION = """
<domain: "{domain}", opset_import: ["" : 18]>
Attention (queries, keys, values, mask) => (attended)
{{
    by_head = Constant<value = int64[4] {{0, 0, {heads}, -1}}>()
    together = Constant<value = int64[3] {{0, 0, -1}}>()
    scale = Constant<value = float {{{scale}}}>()
    queries_4d = Reshape(queries, by_head)
    keys_4d = Reshape(keys, by_head)
    values_4d = Reshape(values, by_head)
    queries_of_heads = Transpose<perm = [0, 2, 1, 3]>(queries_4d)
    keys_of_heads = Transpose<perm = [0, 2, 3, 1]>(keys_4d)
    values_of_heads = Transpose<perm = [0, 2, 1, 3]>(values_4d)
    products = MatMul(queries_of_heads, keys_of_heads)
    scaled = Mul(products, scale)
    scores = Add(scaled, mask)
    weights = Softmax<axis = -1>(scores)
    attended_of_heads = MatMul(weights, values_of_heads)
    attended_4d = Transpose<perm = [0, 2, 1, 3]>(attended_of_heads)
    attended = Reshape(attended_4d, together)
}}
"""
_ACTIVATIONS = {
    "Gelu": """
<domain: "{domain}", opset_import: ["" : 18]>
Gelu (x) => (y)
{{
    root_2 = Constant<value = float {{1.4142135}}>()
    one = Constant<value = float {{1.0}}>()
    half = Constant<value = float {{0.5}}>()
    scaled = Div(x, root_2)
    error = Erf(scaled)
    sum = Add(error, one)
    product = Mul(x, sum)
    y = Mul(product, half)
}}
""",
    # The paper's approximation by tanh: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    "FastGelu": """
<domain: "{domain}", opset_import: ["" : 18]>
FastGelu (x) => (y)
{{
    cubic_share = Constant<value = float {{0.044715}}>()
    root = Constant<value = float {{0.7978845608}}>()
    one = Constant<value = float {{1.0}}>()
    half = Constant<value = float {{0.5}}>()
    square = Mul(x, x)
    share = Mul(square, cubic_share)
    factor = Add(share, one)
    sum = Mul(x, factor)
    scaled = Mul(sum, root)
    tangent = Tanh(scaled)
    weight = Add(tangent, one)
    product = Mul(x, weight)
    y = Mul(product, half)
}}
""",
    # The paper's approximation by the logistic function: x sigmoid(1.702 x).
    "QuickGelu": """
<domain: "{domain}", opset_import: ["" : 18]>
QuickGelu (x) => (y)
{{
    alpha = Constant<value = float {{1.702}}>()
    scaled = Mul(x, alpha)
    weight = Sigmoid(scaled)
    y = Mul(x, weight)
}}
""",
}


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
        onnx.save(in_standard_operators(onnx.load(fused.path)), path)
        parity = compare_with_fp32(folder, path)
    report(f"  {PORTABLE_GRAPH}: largest difference from fp32 {parity['max_abs_difference']:.1e}")
    record = replace(graph_record(folder.path, PORTABLE_GRAPH, "fp32"), parity=parity)
    write_manifest(folder.path, replace(folder.manifest, graphs=(*folder.manifest.graphs, record)))
    return ModelFolder.open(folder.path)


def in_standard_operators(fused: onnx.ModelProto) -> onnx.ModelProto:
    """Return the finished fp32 graph of `fuse.py` and `head.py` in standard ONNX operators. `fused` is consumed.

    Padding moves from the keys, where `fuse.py` put it for onnxruntime, back into a mask of the scores: other engines
    look for that form, and heads keep the size that their kernels expect.
    """
    graph = fused.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}

    def narrow(name: str, heads: int) -> None:
        """Drop the last component of every head of a weight or bias."""
        wide: NDArray[np.float32] = numpy_helper.to_array(weights[name])
        kept = wide.reshape(*wide.shape[:-1], heads, -1)[..., :-1].reshape(*wide.shape[:-1], -1)
        weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), name))

    heads = scale = 0
    first = next(index for index, node in enumerate(graph.node) if "token_scores_3d" in node.output)
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2], np.int64), "head_and_query_axes"))
    graph.node.insert(first, helper.make_node("Unsqueeze", ["token_scores", "head_and_query_axes"], ["score_mask"]))
    for node in graph.node:
        if node.op_type == "MultiHeadAttention":
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            heads, scale = attributes["num_heads"], attributes["scale"]
            queries, keys = (producers[name] for name in node.input[:2])  # an Add each, of a bias and of the mask
            for name in (producers[queries.input[0]].input[1], queries.input[1], producers[keys.input[0]].input[1]):
                narrow(name, heads)
            node.CopyFrom(
                helper.make_node(
                    "Attention",
                    [node.input[0], keys.input[0], node.input[2], "score_mask"],
                    node.output,
                    node.name,
                    domain=_DOMAIN,
                )
            )
        elif node.op_type in _ACTIVATIONS:
            node.domain = _DOMAIN
            del node.attribute[:]
    functions = [
        _ATTENTION.format(domain=_DOMAIN, heads=heads, scale=repr(scale)),
        *(function.format(domain=_DOMAIN) for function in _ACTIVATIONS.values()),
    ]
    fused.functions.extend(map(onnx.parser.parse_function, functions))
    standard = [helper.make_opsetid("", opset.version) for opset in fused.opset_import if not opset.domain]
    del fused.opset_import[:]
    fused.opset_import.extend([*standard, helper.make_opsetid(_DOMAIN, 1)])
    inlined: onnx.ModelProto = inliner.inline_local_functions(fused)
    del inlined.opset_import[:]
    inlined.opset_import.extend(standard)
    remove_unused(inlined.graph)
    onnx.checker.check_model(inlined, full_check=True)
    return inlined
