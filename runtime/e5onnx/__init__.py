"""Text embeddings on a CPU from exported ONNX models: onnxruntime, tokenizers and numpy, nothing else.

Example:
    >>> from e5onnx import Encoder
    >>> encoder = Encoder("models/sample")
    >>> encoder.encode(["one text", "another"]).shape
    (2, 384)
"""

__version__ = "0.1.0"  # before the imports: the command line asks for it

from .encoder import Encoder
from .errors import (
    E5OnnxError,
    InferenceError,
    InputTypeError,
    InputValueError,
    MissingDependencyError,
    MissingPromptWarning,
    ModelDownloadError,
    ModelFolderError,
    ModelNotFoundError,
    TextTooLongError,
    TruncationWarning,
)
from .tokenizer import TokenizedText, Tokenizer

__all__ = [
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
    "TextTooLongError",
    "TokenizedText",
    "Tokenizer",
    "TruncationWarning",
    "__version__",
]
