"""Turns a checkpoint into a model folder that `e5onnx` runs. Needs the extra `export` (torch, transformers, optimum).

Example:
    >>> from e5onnx_export import export_model
    >>> folder = export_model("sample", "models/sample", force=True)
    >>> [graph.precision for graph in folder.manifest.graphs]
    ['fp32', 'int8']
"""

from .export import export_model

__all__ = ["export_model"]
