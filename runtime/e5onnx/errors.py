"""Every error and warning of the package.

Each error is an :class:`E5OnnxError` and also the built-in type that fits, so `except E5OnnxError` and
`except ValueError` both work. A message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import os
from typing import Any

MOST_SHOWN = 80
"""Characters of a request that a message quotes at most."""


class E5OnnxError(Exception):
    """Base of all errors that e5onnx raises."""


class ModelNotFoundError(E5OnnxError, FileNotFoundError):
    """There is no such model folder or hub repository, or a file of the model is missing."""


class ModelFolderError(E5OnnxError, ValueError):
    """A file of the model folder is damaged, does not belong to the model, or is too new."""


class ModelDownloadError(E5OnnxError, ConnectionError):
    """The hub is unreachable or refused the download, and the model is not in the local cache."""


class ModelUploadError(E5OnnxError, ConnectionError):
    """The hub is unreachable or refused the upload."""


class CacheError(E5OnnxError, OSError):
    """The cache, where first use builds model folders, cannot be found, written or locked."""


class InputTypeError(E5OnnxError, TypeError):
    """An argument or a text has the wrong type; the message names it or its position."""


class InputValueError(E5OnnxError, ValueError):
    """An argument or a text has the right type but an impossible value; the message names it or its position."""


class TextTooLongError(InputValueError):
    """A text exceeds the model's maximum and `truncate` is "error", or it is too long to tokenise."""


class InferenceError(E5OnnxError, RuntimeError):
    """onnxruntime or OpenVINO failed to run the graph, or the vectors are not finite."""


class MissingDependencyError(E5OnnxError, ImportError):
    """A feature needs a package that is not installed; the message gives the command to install it."""


class CheckpointError(E5OnnxError, ValueError):
    """The checkpoint is damaged, or needs something that the exported graph cannot do."""


class ParityError(E5OnnxError, RuntimeError):
    """The vectors of the exported graph differ from the checkpoint's."""


class RequestError(InputValueError):
    """A request is wrong.

    Attributes:
        status: the HTTP status of the reply.
        param: the key of the request that is wrong, if any.
        code: OpenAI's code for the error, if it has one.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = None if param is None else param[:MOST_SHOWN].encode(errors="backslashreplace").decode()
        self.code = code

    def body(self) -> dict[str, Any]:
        """Return the body of the reply, in OpenAI's format.

        Example:
            >>> RequestError("no texts", param="input").body()["error"]["type"]
            'invalid_request_error'
        """
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        kind = "server_error" if self.status >= 500 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class QueueFullError(E5OnnxError, RuntimeError):
    """The server's queue is full.

    Attributes:
        retry_after: estimated seconds until the queue has room.
    """

    def __init__(self, requests: int, tokens: int, retry_after: float) -> None:
        waiting = f"{plural(requests, 'request')} with {plural(tokens, 'token')} {'is' if requests == 1 else 'are'}"
        super().__init__(f"{waiting} waiting already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class AddressError(E5OnnxError, OSError):
    """The server cannot listen on the given host and port."""


class RowError(InputValueError):
    """A row cannot be embedded; the message names its file and number."""


class JobChangedError(InputValueError):
    """The output folder holds parts made from other input, with another model or with other options."""


class JobRunningError(E5OnnxError, OSError):
    """Another process is writing to the output folder."""


class JobLockError(E5OnnxError, OSError):
    """The output folder cannot be locked."""


class ClusterError(E5OnnxError, RuntimeError):
    """Ray or one of its actors failed."""


class MissingPromptWarning(UserWarning):
    """Texts have no prompt, but the model was trained with a prompt on every text."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model's maximum and were cut.

    Attributes:
        truncated: number of texts that were cut.
        texts: number of texts in the call.
        longest: number of tokens of the longest text, special tokens included.
        longest_position: position of the longest text in the call, from 0.
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
        return f'{self.summary()}. Split long texts (count_tokens helps), or pass truncate="error" to refuse them.'

    def summary(self) -> str:
        """Return what happened, without advice on arguments."""
        return (
            f"cut {self.truncated:,} of {plural(self.texts, 'text')} to the model's {self.max_tokens} tokens; "
            f"the longest, at position {self.longest_position}, has {self.longest} tokens"
        )


class IgnoredFilesWarning(UserWarning):
    """Files in an input folder were ignored because their names do not tell their format."""


def plural(number: int, noun: str) -> str:
    """Return a number with its noun, for messages.

    Example:
        >>> plural(1, "row"), plural(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_one_line(error: BaseException) -> str:
    """Return an error's message without line breaks and numbers of the operating system.

    Example:
        >>> in_one_line(FileNotFoundError(2, "No such file or directory", "texts.txt"))
        'no such file or directory: texts.txt'
    """
    message = str(error)
    if isinstance(error, OSError) and isinstance(error.strerror, str):
        message = error.strerror[:1].lower() + error.strerror[1:]
        if error.filename is not None:
            message += f": {error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)}"
    return " ".join(message.split())
