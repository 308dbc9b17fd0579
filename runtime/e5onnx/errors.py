"""Every error and warning of the package.

One base, :class:`E5OnnxError`; each error is also the built-in type that fits it, so `except ValueError` and
`except E5OnnxError` both work. Messages say what is wrong, where, and what to do.
"""

from __future__ import annotations


class E5OnnxError(Exception):
    """Base of all errors that e5onnx raises on purpose."""


class ModelNotFoundError(E5OnnxError, FileNotFoundError):
    """No model folder, no such hub repository, or a file of the model is missing."""


class ModelFolderError(E5OnnxError, ValueError):
    """The model folder is there, but a file in it is damaged, foreign or too new."""


class ModelDownloadError(E5OnnxError, ConnectionError):
    """The hub could not be reached or refused, and the model is not in the local cache."""


class InputTypeError(E5OnnxError, TypeError):
    """An argument or a text has the wrong type; the message names its position."""


class InputValueError(E5OnnxError, ValueError):
    """An argument or a text has the right type and an impossible value; the message names its position."""


class TextTooLongError(InputValueError):
    """A text is too long: for the model where `truncate="error"` was given, or for the tokenizer."""


class InferenceError(E5OnnxError, RuntimeError):
    """The engine, onnxruntime or OpenVINO, failed while it ran the graph."""


class MissingDependencyError(E5OnnxError, ImportError):
    """A feature needs a package that is not installed; the message holds the install command."""


class MissingPromptWarning(UserWarning):
    """Texts without a prompt went to a model that was trained with one on every text."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model's maximum and were cut.

    Attributes:
        truncated: number of texts that were cut.
        texts: number of texts in the call.
        longest: number of tokens of the longest text, special tokens included.
        longest_position: its position among the texts of the call, from 0.
        max_tokens: the model's maximum, special tokens included.
    """

    def __init__(self, truncated: int, texts: int, longest: int, longest_position: int, max_tokens: int) -> None:
        super().__init__(truncated, texts, longest, longest_position, max_tokens)
        self.truncated = truncated
        self.texts = texts
        self.longest = longest
        self.longest_position = longest_position
        self.max_tokens = max_tokens

    def __str__(self) -> str:
        return (
            f"{self.truncated} of {self.texts} texts were longer than the model's {self.max_tokens} tokens and were "
            f"cut; the longest, at position {self.longest_position}, has {self.longest} tokens. "
            'Split long texts before encoding (count_tokens helps), or pass truncate="error" to refuse them.'
        )
