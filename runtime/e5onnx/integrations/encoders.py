"""What the integrations have in common: their arguments, one encoder per model and arguments, and vectors as lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, TypedDict

from ..encoder import Encoder, Precision, Provider
from ..errors import InputTypeError, ModelFolderError

if TYPE_CHECKING:
    from typing_extensions import Unpack  # Python 3.11 has it in typing


class EncoderArguments(TypedDict, total=False):
    """The arguments of :class:`e5onnx.Encoder` that integrations take. The defaults are those of the encoder."""

    precision: Precision | None
    provider: Provider
    threads: int | None
    revision: str | None
    local_files_only: bool
    truncate_dim: int | None
    force_truncate_dim: bool


_encoders: dict[tuple[object, ...], Encoder] = {}


def shared_encoder(
    model: str | os.PathLike[str], *, fingerprint: str | None = None, **arguments: Unpack[EncoderArguments]
) -> Encoder:
    """Return this process's encoder for the arguments. It is loaded on the first call and stays in memory.

    Chroma and LanceDB make a new embedding function for nearly every call, which must not load the model again.

    Args:
        model: as for :class:`e5onnx.Encoder`.
        fingerprint: the fingerprint that the encoder must have: that of the vectors in an index.
        arguments: as for :class:`e5onnx.Encoder`.

    Raises:
        InputTypeError: there is no such argument.
        ModelFolderError: the encoder has another fingerprint.

    Example:
        >>> shared_encoder("models/sample") is shared_encoder("models/sample")
        True
    """
    # a relative path means another folder in another working directory
    place = os.path.abspath(model) if os.path.isdir(model) else model  # noqa: PTH100, PTH112 - as model_folder.py does
    complete = all_arguments(**arguments)
    key = (place, *complete.values())
    encoder = _encoders.get(key)
    if encoder is None:
        loaded = Encoder(model, **complete)
        encoder = _encoders.setdefault(key, loaded)  # another thread's, if it was faster
    if fingerprint is not None and encoder.fingerprint != fingerprint:
        raise ModelFolderError(
            f"{os.fspath(model)} has the fingerprint {encoder.fingerprint}, but the stored vectors have {fingerprint}, "
            "and must not be compared with vectors of another model, precision, provider or dimension. Use the model "
            "that made them, or embed the documents again"
        )
    return encoder


def all_arguments(**arguments: Unpack[EncoderArguments]) -> dict[str, Any]:
    """Return the arguments, with the encoder's defaults for those that are not given.

    Raises:
        InputTypeError: there is no such argument.

    Example:
        >>> all_arguments(threads=1)["provider"]
        'cpu'
    """
    parameters = signature(Encoder).parameters
    complete = {name: parameters[name].default for name in EncoderArguments.__annotations__}
    if unknown := sorted(arguments.keys() - complete.keys()):
        raise InputTypeError(f"there is no argument {unknown[0]!r}; those of the encoder are {', '.join(complete)}")
    return complete | arguments


def query_vector(encoder: Encoder, text: str) -> list[float]:
    """Embed one query.

    Raises:
        InputTypeError: `text` is not a str.
    """
    if not isinstance(text, str):
        raise InputTypeError(f"a query must be a str, got {type(text).__name__}")
    vector: list[float] = encoder.encode_query(text).tolist()
    return vector


def document_vectors(encoder: Encoder, texts: Sequence[str]) -> list[list[float]]:
    """Embed documents.

    Raises:
        InputTypeError: `texts` is a single str, or one of them is not a str.
    """
    if isinstance(texts, str):
        raise InputTypeError("documents must be a list of str, got one str")
    vectors: list[list[float]] = encoder.encode_document(texts).tolist()
    return vectors
