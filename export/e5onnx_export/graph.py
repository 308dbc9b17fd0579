"""What the steps that rewrite an ONNX graph share."""

from __future__ import annotations

import onnx


def consumer(graph: onnx.GraphProto, name: str, op_type: str) -> onnx.NodeProto:
    """Return the first node of type `op_type` that reads `name`."""
    found: onnx.NodeProto = next(node for node in graph.node if node.op_type == op_type and name in node.input)
    return found


def remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes that no output of the graph depends on, and tensors that no remaining node reads."""
    used = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):  # nodes are in topological order
        if used.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            used.update(node.input)
    for tensor in list(graph.initializer):
        if tensor.name not in used:
            graph.initializer.remove(tensor)
