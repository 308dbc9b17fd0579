"""Turns a checkpoint into a model folder that `e5onnx` runs. Needs the extra `export` (torch, transformers, optimum).

Example:
    >>> from e5onnx_export import export_model
    >>> folder = export_model("sample", "models/sample", force=True)
    >>> folder.manifest.dimension
    384
"""

from .export import export_model

__all__ = ["export_model"]
