"""What the integrations have in common: one encoder per model and arguments in a process, and vectors as lists."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..encoder import Encoder, Precision, Provider
from ..errors import InputTypeError, ModelFolderError

_encoders: dict[tuple[object, ...], Encoder] = {}


def shared_encoder(
    model: str | os.PathLike[str],
    *,
    precision: Precision | None = None,
    provider: Provider = "cpu",
    threads: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    fingerprint: str | None = None,
) -> Encoder:
    """Return this process's encoder for the arguments. It is loaded on the first call and stays in memory.

    Chroma and LanceDB make a new embedding function for nearly every call, which must not load the model again.

    Args:
        model: as for :class:`e5onnx.Encoder`, like all other arguments but the last.
        precision: see there.
        provider: see there.
        threads: see there.
        revision: see there.
        local_files_only: see there.
        fingerprint: the fingerprint that the encoder must have: that of the vectors in an index.

    Raises:
        ModelFolderError: the encoder has another fingerprint.

    Example:
        >>> shared_encoder("models/sample") is shared_encoder("models/sample")
        True
    """
    # a relative path means another folder in another working directory
    place = os.path.abspath(model) if os.path.isdir(model) else model  # noqa: PTH100, PTH112 - as model_folder.py does
    key = (place, precision, provider, threads, revision, local_files_only)
    encoder = _encoders.get(key)
    if encoder is None:
        loaded = Encoder(
            model,
            precision=precision,
            provider=provider,
            threads=threads,
            revision=revision,
            local_files_only=local_files_only,
        )
        encoder = _encoders.setdefault(key, loaded)  # another thread's, if it was faster
    if fingerprint is not None and encoder.fingerprint != fingerprint:
        raise ModelFolderError(
            f"{os.fspath(model)} has the fingerprint {encoder.fingerprint}, but the stored vectors have {fingerprint}, "
            "and must not be compared with vectors of another model, precision or provider. Use the model that made "
            "them, or embed the documents again"
        )
    return encoder


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
