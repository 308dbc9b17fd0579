"""Turns a checkpoint into a model folder that `e5onnx` runs. Needs the extra `export`.

Example:
    >>> from e5onnx_export import export_model
    >>> folder = export_model("sample", "models/sample", force=True)
    >>> [graph.precision for graph in folder.manifest.graphs]
    ['fp32', 'int8']
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from e5onnx.errors import MissingDependencyError
from e5onnx.first_use import EXPORT_PACKAGES

if TYPE_CHECKING:
    from .export import export_model

__all__ = ["export_model"]


def __getattr__(name: str) -> Any:
    """Import what needs the extra when it is asked for: the command line reads the options without it."""
    if name != "export_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for package in EXPORT_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(f"export needs {package}: pip install 'e5onnx[export]'")
    from .export import export_model

    return export_model
