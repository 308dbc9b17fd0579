"""Pooling and normalisation nodes against plain numpy, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from e5onnx.manifest import POOLINGS, Pooling
from e5onnx_export.head import Activation, Dense, build_head
from helpers import near

DIMENSION = 5
SESSIONS = {
    pooling: onnxruntime.InferenceSession(build_head(pooling, DIMENSION, DIMENSION).SerializeToString())
    for pooling in POOLINGS
}


def run(pooling: Pooling, hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    outputs: list[NDArray[np.float32]] = SESSIONS[pooling].run(
        ["pooled_embedding", "sentence_embedding"], {"last_hidden_state": hidden, "attention_mask": mask}
    )
    return outputs


def reference(pooling: Pooling, hidden: NDArray[Any], mask: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pool and normalise row by row, in double precision."""
    pooled = np.zeros((len(hidden), DIMENSION))
    for row, (states, kept) in enumerate(zip(hidden.astype(np.float64), mask.astype(bool), strict=True)):
        if kept.any():
            tokens = states[kept]
            ranks = np.arange(1, len(tokens) + 1)[:, None]
            pooled[row] = {
                "mean": tokens.mean(0),
                "mean_sqrt_len_tokens": tokens.sum(0) / np.sqrt(len(tokens)),
                "weightedmean": (tokens * ranks).sum(0) / ranks.sum(),
                "cls": states[0],
                "lasttoken": tokens[-1],
                "max": tokens.max(0),
            }[pooling]
    return pooled, pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


@st.composite
def batches(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    # no subnormal lengths: their squares underflow in float32
    numbers = st.floats(0.0009765625, 1000, width=32) | st.floats(-1000, -0.0009765625, width=32)
    hidden = draw(arrays.arrays(np.float32, (rows, columns, DIMENSION), elements=numbers))
    lengths = draw(st.lists(st.integers(0, columns), min_size=rows, max_size=rows))
    mask = (np.arange(columns) < np.array(lengths)[:, None]).astype(np.int64)
    return hidden, mask


@pytest.mark.parametrize("pooling", POOLINGS)
@settings(deadline=None)
@given(batch=batches())
def test_head_equals_numpy(pooling: Pooling, batch: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    hidden, mask = batch
    found, expected = run(pooling, hidden, mask), reference(pooling, hidden, mask)
    scale = np.abs(hidden).max()  # sums of terms that cancel keep an error of this size
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5 * scale)
    reliable = np.linalg.norm(expected[0], axis=1) > 1e-2 * scale
    np.testing.assert_allclose(found[1][reliable], expected[1][reliable], atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_row_without_tokens_gives_zeros(pooling: Pooling) -> None:
    hidden = np.full((2, 3, DIMENSION), 7, np.float32)
    for output in run(pooling, hidden, np.array([[0, 0, 0], [1, 1, 0]])):
        np.testing.assert_array_equal(output[0], np.zeros(DIMENSION))
        assert (output[1] > 0).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_hidden_states_of_zero_give_zeros_and_not_nan(pooling: Pooling) -> None:
    for output in run(pooling, np.zeros((1, 3, DIMENSION), np.float32), np.ones((1, 3), np.int64)):
        np.testing.assert_array_equal(output, np.zeros((1, DIMENSION)))


def test_masked_tokens_have_no_influence() -> None:
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(1, 6, DIMENSION)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 0, 0]])
    other = hidden.copy()
    other[:, 4:] = 1e4
    for first, second in zip(run("mean", hidden, mask), run("mean", other, mask), strict=True):
        np.testing.assert_array_equal(first, second)
    cut = run("mean", hidden[:, :4], mask[:, :4])
    np.testing.assert_allclose(cut[1], run("mean", hidden, mask)[1], atol=1e-6)


def test_dense_layers_equal_pytorch() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    hidden, mask = (
        generator.normal(size=(3, 4, DIMENSION)).astype(np.float32),
        np.array([[1, 1, 0, 0], [1] * 4, [0] * 4]),
    )
    activations: dict[Activation, Any] = {
        "identity": torch.nn.Identity(),
        "tanh": torch.nn.Tanh(),
        "relu": torch.nn.ReLU(),
        "gelu": torch.nn.GELU(),
        "sigmoid": torch.nn.Sigmoid(),
    }
    sizes = [DIMENSION, 7, 6, 8, 4, 3]
    layers = [
        Dense(generator.normal(size=(a, b)).astype(np.float32), generator.normal(size=b).astype(np.float32), activation)
        for a, b, activation in zip(sizes, sizes[1:], activations, strict=False)
    ]
    expected = torch.from_numpy(reference("mean", hidden, mask)[0][:2]).float()
    for weight, bias, activation in layers:
        expected = activations[activation](expected @ torch.from_numpy(weight) + torch.from_numpy(bias))
    session = onnxruntime.InferenceSession(build_head("mean", DIMENSION, 2, layers).SerializeToString())
    unit, pooled = session.run(None, {"last_hidden_state": hidden, "attention_mask": mask})
    near(pooled[:2], expected.numpy()[:, :2])
    near(unit[:2], torch.nn.functional.normalize(expected[:, :2]).numpy())
    np.testing.assert_array_equal(pooled[2], [0, 0])  # a row without tokens
