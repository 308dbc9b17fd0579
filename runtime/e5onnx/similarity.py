"""Scores of pairs of vectors. Needs no model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputTypeError, InputValueError


def similarity(embeddings1: ArrayLike, embeddings2: ArrayLike, similarity_fn_name: str) -> NDArray[np.float32]:
    """Compare every vector of the first array with every vector of the second; see :meth:`e5onnx.Encoder.similarity`.

    Example:
        >>> similarity([[3.0, 4.0]], [[6.0, 8.0], [-4.0, 3.0]], "dot").tolist()
        [[50.0, 0.0]]
    """
    first, second = _vectors("embeddings1", embeddings1), _vectors("embeddings2", embeddings2)
    if first.shape[1] != second.shape[1]:
        raise InputValueError(f"cannot compare arrays of shapes {first.shape} and {second.shape}")
    if similarity_fn_name == "dot":
        scores = first @ second.T
    else:
        scores = np.clip(unit_length(first) @ unit_length(second).T, -1, 1)
    return scores.astype(np.float32, copy=False)


def similarity_pairwise(embeddings1: ArrayLike, embeddings2: ArrayLike, similarity_fn_name: str) -> NDArray[np.float32]:
    """Compare each vector with that of the same row; see :meth:`e5onnx.Encoder.similarity_pairwise`.

    Example:
        >>> similarity_pairwise([[3.0, 4.0], [1.0, 0.0]], [[6.0, 8.0], [0.0, 1.0]], "dot").tolist()
        [50.0, 0.0]
    """
    scores: NDArray[np.floating[Any]]
    first, second = _vectors("embeddings1", embeddings1), _vectors("embeddings2", embeddings2)
    if first.shape != second.shape:
        raise InputValueError(f"cannot compare arrays of shapes {first.shape} and {second.shape} row by row")
    if similarity_fn_name == "dot":
        scores = np.einsum("ij,ij->i", first, second)
    else:
        scores = np.clip(np.einsum("ij,ij->i", unit_length(first), unit_length(second)), -1, 1)
    return scores.astype(np.float32, copy=False)


def unit_length(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return vectors `[..., dimension]` with length 1; a vector of zeros stays as it is."""
    largest = np.abs(vectors).max(axis=-1, initial=0, keepdims=True)  # squares far from 1 would be 0 or infinite
    scaled = (vectors / np.where(largest == 0, 1, largest)).astype(np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(scaled, axis=-1, keepdims=True)
    return (scaled / np.maximum(lengths, 1)).astype(np.float32)


def _vectors(name: str, given: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return an argument as floats, float32 or wider, `[vectors, dimension]`."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a torch tensor that requires a gradient
        raise InputTypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputTypeError(f"{name} must be an array of numbers, got an array of {array.dtype}")
    vectors = np.atleast_2d(array.astype(np.result_type(array.dtype, np.float32), copy=False))
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise InputValueError(f"{name} must be a vector or a matrix of vectors, got shape {array.shape}")
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise InputValueError(f"{name} holds NaN or infinity in row {row}")
    return vectors
