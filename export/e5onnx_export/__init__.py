"""Turns a checkpoint into a model folder that `e5onnx` runs. Needs the extra `export`.

Example:
    >>> from e5onnx_export import export_model
    >>> folder = export_model("sample", "models/sample", force=True)
    >>> [graph.precision for graph in folder.manifest.graphs]
    ['fp32', 'int8']
"""

import importlib.util

from e5onnx.errors import MissingDependencyError
from e5onnx.first_use import EXPORT_PACKAGES

for _package in EXPORT_PACKAGES[1:]:
    if importlib.util.find_spec(_package) is None:
        raise MissingDependencyError(f"the export needs {_package}: pip install 'e5onnx[export]'")

from .export import export_model  # noqa: E402 - its packages are there

__all__ = ["export_model"]
