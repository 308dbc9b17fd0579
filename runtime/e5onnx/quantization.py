"""Vectors of fewer bytes: int8, uint8 and bits, with sentence-transformers' names and results. Needs no model."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputTypeError, InputValueError

OutputPrecision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
"""The type of finished vectors. It says nothing about what the model computes in: see `precision` of `Encoder`."""
OUTPUT_PRECISIONS: tuple[OutputPrecision, ...] = get_args(OutputPrecision)

_FEW = 100
"""Ranges from fewer vectors get a warning, as in sentence-transformers."""


def quantize_embeddings(
    embeddings: ArrayLike,
    precision: OutputPrecision,
    ranges: ArrayLike | None = None,
    calibration_embeddings: ArrayLike | None = None,
) -> NDArray[Any]:
    """Turn float vectors into a smaller type, as `sentence_transformers.quantization.quantize_embeddings` does.

    "int8" and "uint8" divide the range of each component into 256 steps. Compare such vectors only if they were made
    with the same ranges, so keep the ranges beside an index. "binary" and "ubinary" keep the sign of each component,
    eight to a byte, for Hamming distance; "binary" is "ubinary" minus 128.

    Args:
        embeddings: float vectors `[n, dimension]`, or one vector `[dimension]`.
        precision: "float32", "int8", "uint8", "binary" or "ubinary".
        ranges: smallest and largest value of each component, `[2, dimension]`, for int8 and uint8; see
            :func:`quantization_ranges`.
        calibration_embeddings: vectors to take the ranges from, if there are no `ranges`. Without either, the ranges
            are those of `embeddings`.

    Returns:
        `[n, dimension]` as float32, int8 or uint8, or `[n, ceil(dimension / 8)]` as int8 ("binary") or uint8
        ("ubinary"); without `n` for one vector.

    Raises:
        InputTypeError: an argument does not hold numbers, or `embeddings` are int8 or uint8 already.
        InputValueError: an argument has an impossible value or shape, or int8 or uint8 would take its ranges from one
            vector.

    Example:
        >>> quantize_embeddings([[0.1, -0.3], [0.3, 0.25]], "uint8", ranges=[[-1, -1], [1, 1]]).tolist()
        [[140, 89], [165, 159]]
    """
    if precision not in OUTPUT_PRECISIONS:
        known = ", ".join(map(repr, OUTPUT_PRECISIONS))
        raise InputValueError(f"precision of vectors must be one of {known}, got {precision!r:.80}")
    vectors = _floats("embeddings", embeddings)
    if vectors.dtype in (np.uint8, np.int8):
        raise InputTypeError(f"embeddings are {vectors.dtype}, quantised already: pass the float vectors")
    if vectors.ndim not in (1, 2) or vectors.shape[-1] == 0:
        raise InputValueError(f"embeddings must be a vector or a matrix of vectors, got shape {vectors.shape}")
    if precision == "float32":
        return vectors.astype(np.float32)
    if precision in ("int8", "uint8"):
        if len(vectors) == 0:
            return vectors.astype(precision)
        return _in_steps(vectors, precision, _ranges(vectors, precision, ranges, calibration_embeddings))
    bits = np.packbits(vectors > 0, axis=-1)
    return bits if precision == "ubinary" else (bits - 128).astype(np.int8)


def quantization_ranges(calibration_embeddings: ArrayLike) -> NDArray[np.float32]:
    """Return the smallest and largest value of each component `[2, dimension]`, for :func:`quantize_embeddings`.

    Example:
        >>> quantization_ranges([[1, -2], [3, 2], [2, 0]]).tolist()
        [[1.0, -2.0], [3.0, 2.0]]
    """
    vectors = _floats("calibration_embeddings", calibration_embeddings)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise InputValueError(
            f"calibration_embeddings must be a matrix of at least two vectors, got shape {vectors.shape}"
        )
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32, copy=False)


def check_ranges(ranges: ArrayLike, dimension: int) -> NDArray[np.float32]:
    """Return ranges for :func:`quantize_embeddings` as float32 `[2, dimension]`.

    Raises:
        InputTypeError: they are not an array of numbers.
        InputValueError: they have another shape, hold NaN or infinity, or a smallest value that exceeds the largest.

    Example:
        >>> check_ranges([[-1, -1], [1, 1]], 2).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """
    checked = _floats("ranges", ranges).astype(np.float32, copy=False)
    if checked.shape != (2, dimension):
        raise InputValueError(f"ranges must have shape (2, {dimension}), got {checked.shape}")
    if (checked[0] > checked[1]).any():
        raise InputValueError("ranges must hold the smallest values first: its first row exceeds its second")
    return checked


def _ranges(
    vectors: NDArray[Any], precision: str, given: ArrayLike | None, calibration: ArrayLike | None
) -> NDArray[np.float32]:
    if given is not None:
        return check_ranges(given, vectors.shape[-1])
    if calibration is not None:
        ranges = quantization_ranges(calibration)
    elif vectors.ndim == 1 or len(vectors) == 1:
        raise InputValueError(
            f"one vector has no range to divide into the steps of {precision}: call "
            "e5onnx.quantization.quantize_embeddings with `ranges` or `calibration_embeddings`"
        )
    else:
        if len(vectors) < _FEW:
            warnings.warn(
                f"the ranges of {precision} come from only {len(vectors)} vectors; vectors that were quantised with "
                "other ranges cannot be compared with these. Call e5onnx.quantization.quantize_embeddings with "
                "`ranges` or `calibration_embeddings`",
                stacklevel=3,  # the caller of quantize_embeddings
            )
        ranges = quantization_ranges(vectors)
    return check_ranges(ranges, vectors.shape[-1])


def _in_steps(vectors: NDArray[Any], precision: str, ranges: NDArray[np.float32]) -> NDArray[Any]:
    starts, ends = ranges
    steps = (ends - starts) / 255
    steps = np.where(steps == 0, 1, steps)  # a component that is always the same
    values: NDArray[Any] = np.clip(np.floor((vectors - starts) / steps), 0, 255)
    return values.astype(np.uint8) if precision == "uint8" else (values - 128).astype(np.int8)


def _floats(name: str, given: ArrayLike) -> NDArray[Any]:
    """Return an argument as an array of finite numbers."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a torch tensor that requires a gradient
        raise InputTypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "iuf":
        raise InputTypeError(f"{name} must be an array of numbers, got an array of {array.dtype}")
    if not (np.abs(array) <= np.finfo(np.float32).max).all():  # so that NaN fails
        raise InputValueError(f"{name} holds NaN, infinity or a number beyond float32")
    return array
