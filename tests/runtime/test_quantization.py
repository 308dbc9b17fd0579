"""Quantised vectors, byte for byte those of sentence-transformers, and what is refused."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from e5onnx import InputTypeError, InputValueError
from e5onnx.quantization import OUTPUT_PRECISIONS, quantization_ranges, quantize_embeddings

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(150, 44)).astype(np.float32)
SMALL = [precision for precision in OUTPUT_PRECISIONS if precision != "float32"]


@pytest.fixture(scope="module")
def theirs() -> Any:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.util import quantize_embeddings

    return quantize_embeddings


def _major() -> int:
    return int(version("sentence-transformers").split(".")[0])


def same(ours: Any, theirs: Any) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("precision", OUTPUT_PRECISIONS)
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_bytes_are_those_of_sentence_transformers(theirs: Any, precision: Any, kind: Any) -> None:
    if kind is not np.float32 and _major() < 6:
        pytest.skip("sentence-transformers 5 computes ranges in the type of the vectors, 6 in float32")
    vectors = VECTORS.astype(kind)
    vectors[:, 3] = 0.25  # no range
    vectors[5, :9] = 0
    ranges = quantization_ranges(VECTORS)
    calibration = RNG.normal(size=(120, 44)).astype(kind)
    same(quantize_embeddings(vectors, precision), theirs(vectors, precision))
    same(quantize_embeddings(vectors, precision, ranges), theirs(vectors, precision, ranges))
    if "binary" not in precision or _major() >= 6:  # 5 gives one vector another shape
        same(quantize_embeddings(vectors[0], precision, ranges), theirs(vectors[0], precision, ranges))
    same(
        quantize_embeddings(vectors, precision, calibration_embeddings=calibration),
        theirs(vectors, precision, calibration_embeddings=calibration),
    )
    same(quantize_embeddings(list(vectors), precision), theirs(list(vectors), precision))


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 20)), elements=st.floats(-8, 8, width=32)),
    st.sampled_from(OUTPUT_PRECISIONS),
)
def test_any_vectors_give_the_same_bytes(theirs: Any, vectors: Any, precision: Any) -> None:
    ranges = np.stack([np.full(vectors.shape[1], -4, np.float32), np.full(vectors.shape[1], 4, np.float32)])
    same(quantize_embeddings(vectors, precision, ranges), theirs(vectors, precision, ranges))


@pytest.mark.parametrize("precision", OUTPUT_PRECISIONS)
def test_nothing_has_the_type_and_width_of_something(precision: Any) -> None:
    empty, some = quantize_embeddings(VECTORS[:0], precision), quantize_embeddings(VECTORS, precision)
    assert (empty.shape, empty.dtype) == ((0, some.shape[1]), some.dtype)


def test_the_signs_of_a_vector_that_is_no_multiple_of_eight_wide() -> None:
    assert quantize_embeddings([[1, -1, 0, 2, 3, -4, 5, -6, 7]], "ubinary").tolist() == [[0b10011010, 0b10000000]]
    assert quantize_embeddings([[1, -1, 0, 2, 3, -4, 5, -6, 7]], "binary").tolist() == [[0b10011010 - 128, 0]]


def test_ranges_of_few_vectors_are_warned_of_unless_given() -> None:
    with pytest.warns(UserWarning, match="ranges of int8 come from only 20 vectors") as caught:
        quantize_embeddings(VECTORS[:20], "int8")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_embeddings(VECTORS[:1], "int8", calibration_embeddings=VECTORS[:20])
        quantize_embeddings(VECTORS[:1], "binary")


@pytest.mark.parametrize("precision", SMALL)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(precision: Any, wrong: float) -> None:
    vectors = VECTORS.copy()
    vectors[7, 7] = wrong
    with pytest.raises(InputValueError, match="embeddings holds NaN, infinity"):
        quantize_embeddings(vectors, precision)
    if precision.endswith("int8"):
        with pytest.raises(InputValueError, match="ranges holds NaN, infinity"):
            quantize_embeddings(VECTORS, precision, np.full((2, 44), wrong))


def test_what_cannot_be_quantised_is_refused() -> None:
    for one in (VECTORS[0], VECTORS[:1]):
        with pytest.raises(InputValueError, match="one vector has no range to divide into the steps of uint8"):
            quantize_embeddings(one, "uint8")
    with pytest.raises(InputValueError, match="at least two vectors"):
        quantize_embeddings(VECTORS, "uint8", calibration_embeddings=VECTORS[0])
    with pytest.raises(InputTypeError, match="embeddings are uint8, quantised already"):
        quantize_embeddings(quantize_embeddings(VECTORS, "ubinary"), "binary")
    with pytest.raises(InputTypeError, match="embeddings must be an array of numbers"):
        quantize_embeddings(["text"], "binary")
    with pytest.raises(InputValueError, match="'int4'"):
        quantize_embeddings(VECTORS, "int4")  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match=r"must have shape \(2, 44\), got \(2, 43\)"):
        quantize_embeddings(VECTORS, "int8", quantization_ranges(VECTORS)[:, :43])
    with pytest.raises(InputValueError, match="its first row exceeds its second"):
        quantize_embeddings(VECTORS, "int8", quantization_ranges(VECTORS)[::-1])
    with pytest.raises(InputValueError, match=r"got shape \(2, 75, 44\)"):
        quantize_embeddings(VECTORS.reshape(2, 75, 44), "binary")
