"""Every error and warning of the package.

One base, :class:`E5OnnxError`; each error is also the built-in type that fits it, so `except ValueError` and
`except E5OnnxError` both work. Messages say what is wrong, where, and what to do.
"""

from __future__ import annotations

from typing import Any

MOST_SHOWN = 80
"""Characters of a request that a message repeats."""


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


class CheckpointError(E5OnnxError, ValueError):
    """The checkpoint is damaged, or asks for something that the exported graph could not do."""


class ParityError(E5OnnxError, RuntimeError):
    """The exported graph does not give the checkpoint's vectors."""


class RequestError(InputValueError):
    """A request that cannot be answered as it is.

    Attributes:
        status: the HTTP status that fits.
        param: the key of the request that is wrong, if it is one.
        code: a word for programs, as OpenAI has them for some errors.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = None if param is None else param[:MOST_SHOWN].encode(errors="backslashreplace").decode()
        self.code = code

    def body(self) -> dict[str, Any]:
        """Return the body of the reply, in OpenAI's shape.

        Example:
            >>> RequestError("no texts", param="input").body()["error"]["type"]
            'invalid_request_error'
        """
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": "server_error" if self.status >= 500 else kind,
                "param": self.param,
                "code": self.code,
            }
        }


class QueueFullError(E5OnnxError, RuntimeError):
    """Too much is waiting already.

    Attributes:
        retry_after: seconds until some of what waits now will have been run, at the speed of late.
    """

    def __init__(self, requests: int, tokens: int, retry_after: float) -> None:
        waiting = f"{requests:,} requests with {tokens:,} tokens are waiting already"
        super().__init__(f"{waiting}; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class AddressError(E5OnnxError, OSError):
    """The server cannot listen where it was told to."""


class RowError(InputValueError):
    """A row cannot be embedded; the message names its file and number."""


class JobChangedError(InputValueError):
    """The output folder holds parts of other input, another model or other options."""


class JobRunningError(E5OnnxError, OSError):
    """Another process writes into the output folder."""


class JobLockError(E5OnnxError, OSError):
    """The output folder cannot be locked."""


class ClusterError(E5OnnxError, RuntimeError):
    """Ray or one of its actors failed."""


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


class IgnoredFilesWarning(UserWarning):
    """Files of an input folder were ignored, as their names do not say a format."""
