"""Text embeddings on a CPU from exported ONNX models, with onnxruntime, tokenizers and numpy alone.

Example:
    >>> from e5onnx import Encoder
    >>> encoder = Encoder("models/sample")
    >>> encoder.encode(["one text", "another"]).shape
    (2, 384)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import (
    CacheError,
    CheckpointError,
    E5OnnxError,
    InferenceError,
    InputTypeError,
    InputValueError,
    MissingDependencyError,
    MissingPromptWarning,
    ModelDownloadError,
    ModelFolderError,
    ModelNotFoundError,
    ParityError,
    TextTooLongError,
    TruncationWarning,
)
from .version import __version__

if TYPE_CHECKING:
    from .encoder import Encoder
    from .tokenizer import TokenizedText, Tokenizer

# onnxruntime's official builds report usage to Microsoft unless this is set before the import (Privacy.md, "Disabling
# Telemetry"). Set it to 0 to send the reports.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "CacheError",
    "CheckpointError",
    "E5OnnxError",
    "Encoder",
    "InferenceError",
    "InputTypeError",
    "InputValueError",
    "MissingDependencyError",
    "MissingPromptWarning",
    "ModelDownloadError",
    "ModelFolderError",
    "ModelNotFoundError",
    "ParityError",
    "TextTooLongError",
    "TokenizedText",
    "Tokenizer",
    "TruncationWarning",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import what needs numpy and onnxruntime on first use: `e5onnx --help` needs neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import encoder, tokenizer

    return getattr(encoder if name == "Encoder" else tokenizer, name)


def __dir__() -> list[str]:
    return __all__
