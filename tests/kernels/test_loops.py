"""Every kernel of every instruction set by itself, against numpy in float64, over random shapes.

Tolerances are those of the arithmetic: products of bytes are exact, a float32 operation is rounded by at most 2^-24 of
its result, one that ends in bfloat16 by at most 2^-8.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from e5onnx_export.reference import activation, softmax
from kernels.access import BF16, RANGE, Inputs, Kernels, Linear, Model, Norm, pack_bfloat16, pack_int8
from kernels.building import SANITIZE

Array = NDArray[Any]
SEEDS = st.integers(0, 2**32 - 1)
UNIT = 2.0**-24
"""Half of the distance of two float32 numbers at 1."""
BF16_UNIT = 2.0**-8
PHI_ERROR = 5.5e-5
"""Of the polynomial in gemm.h, which gives Phi(x); GELU is x times that."""
POWER_ERROR = 1e-4
"""Of the polynomial for 2^x in attention.h, where weights become bfloat16."""

loops = settings(max_examples=8 if SANITIZE else 25, deadline=None, derandomize=True, database=None)


def pairs(weight: Array) -> Array:
    """Return int8 weights whose neighbours processors without VNNI can add in 16 bits, as the export makes them."""
    return (weight // 2).astype(np.int8)


def random_inputs(kernels: Kernels, rng: np.random.Generator, rows: int, columns: int) -> Inputs:
    if not kernels.is_int8:
        return Inputs(rng.normal(size=(rows, columns)).astype(BF16), None)
    ranges = np.zeros(rows, RANGE)
    ranges["scale"], ranges["zero"] = rng.uniform(1e-3, 1e-1, rows), rng.integers(0, 256, rows)
    return Inputs(rng.integers(0, 256, (rows, columns), np.uint8), ranges)


def random_linear(kernels: Kernels, rng: np.random.Generator, inputs: int, outputs: int) -> Linear:
    bias = rng.normal(size=outputs).astype(np.float32)
    if not kernels.is_int8:
        return kernels.pack(rng.normal(size=(inputs, outputs), scale=inputs**-0.5).astype(np.float32), bias)
    weight = rng.integers(-127, 128, (inputs, outputs)).astype(np.int8)
    scale = rng.uniform(1e-3, 1e-2, outputs).astype(np.float32)
    return kernels.pack(pairs(weight) if kernels.adds_pairs else weight, bias, scale)


def product(x: Inputs, linear: Linear) -> tuple[Array, Array]:
    """Return x W + b in float64, and how far float32 may be from it."""
    if x.ranges is None:
        values, weight = x.values.astype(np.float64), linear.weight.astype(BF16).astype(np.float64)
        magnitude = np.abs(values) @ np.abs(weight) + np.abs(linear.bias)
        # sums of float32, whose errors are random: their bound would be the number of inputs
        return values @ weight + linear.bias, 1e-6 * magnitude
    assert linear.scale is not None
    totals = x.values.astype(np.float64) @ linear.weight
    zeros = x.ranges["zero"][:, None].astype(np.float64) * linear.weight.sum(axis=0, dtype=np.int64)
    scale = x.ranges["scale"][:, None].astype(np.float64) * linear.scale
    # rounded are the total, the difference, both products
    return (totals - zeros) * scale + linear.bias, 4 * UNIT * ((np.abs(totals) + np.abs(zeros)) * scale + 1)


def close(found: Array, expected: Array, tolerance: Array | float) -> None:
    """Assert that no number is further off than its own tolerance, nor NaN."""
    error = np.abs(found.astype(np.float64) - expected)
    assert found.shape == expected.shape
    assert (error <= tolerance).all(), f"off by up to {np.nanmax(error / tolerance)} times the tolerance"


def rounding(dtype: np.dtype[Any], values: Array) -> Array:
    """Return how far rounding to a number format may take a value."""
    return np.abs(values) * (BF16_UNIT if dtype == BF16 else UNIT)


def check_columns(found: Array, expected: Array, tolerance: Array, panels: tuple[int, int], width: int) -> None:
    """Compare the columns of some panels; nothing else may have been written."""
    columns = slice(panels[0] * width, panels[1] * width)
    close(found[:, columns], expected[:, columns], tolerance[:, columns])
    untouched = np.ones(found.shape[1], bool)
    untouched[columns] = False
    assert np.isnan(found[:, untouched].astype(np.float32)).all()


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, tuple[int, int], int]:
    """Return rows, inputs, outputs, a range of panels in thirds of 64 columns, and a seed."""
    panels = draw(st.integers(1, 4))
    first = draw(st.integers(0, panels - 1))
    last = draw(st.integers(first, panels))
    return draw(st.integers(1, 40)), 64 * draw(st.integers(1, 9)), 64 * panels, (first, last), draw(SEEDS)


def in_panels(kernels: Kernels, range_of_64: tuple[int, int]) -> tuple[int, int]:
    factor = 64 // kernels.columns
    return range_of_64[0] * factor, range_of_64[1] * factor


# Packing


@given(st.integers(1, 4), st.integers(1, 6), st.sampled_from([16, 64]), st.sampled_from([16, 32, 64]), st.data())
@loops
def test_pack_keeps_every_weight(
    library: Path, units: int, steps: int, width: int, head: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(SEEDS))
    outputs, inputs, gap = 64 * units, 64 * steps, data.draw(st.integers(0, 1))
    start = data.draw(st.integers(0, 1))
    in_file = np.arange(outputs) // head * (head + gap) + np.arange(outputs) % head
    table = rng.integers(-127, 128, (inputs, in_file[-1] + 1 + start)).astype(np.int8)
    columns = (outputs, head, head + gap)
    loaded = ctypes.CDLL(str(library))

    packed, sums = pack_int8(loaded, table, columns, width)
    expected = table[:, in_file]
    np.testing.assert_array_equal(packed.reshape(-1, inputs // 4, width, 4), panels_of(expected, width, 4))
    np.testing.assert_array_equal(sums, expected.sum(axis=0, dtype=np.int64))
    assert (
        loaded.access_largest_pair(packed.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(packed.size))
        == np.abs(expected.astype(int)[::2] + expected[1::2]).max()
    )

    factor = float(np.float32(data.draw(st.sampled_from([1.0, 0.25503486]))))
    floats = rng.normal(size=table.shape).astype(np.float32)
    found, is_finite = pack_bfloat16(loaded, floats, columns, width, factor)
    rounded = (floats[:, in_file] * np.float32(factor)).astype(BF16)
    assert is_finite
    np.testing.assert_array_equal(found.reshape(-1, inputs // 2, width, 2), panels_of(rounded, width, 2))


def panels_of(weight: Array, width: int, depth: int) -> Array:
    """Return weights as pack.h describes: `[columns / width, inputs / depth, width, depth]`."""
    inputs, outputs = weight.shape
    return weight.reshape(inputs // depth, depth, outputs // width, width).transpose(2, 0, 3, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])  # the last one is infinite in bfloat16
def test_pack_finds_weights_that_are_not_finite(library: Path, value: float) -> None:
    weight = np.zeros((64, 64), np.float32)
    for place in ((0, 0), (63, 63), (17, 40)):
        weight[:] = 1e30
        weight[place] = value
        assert pack_bfloat16(ctypes.CDLL(str(library)), weight, (64, 64, 64), 64)[1] is False
    weight[:] = 1e38
    assert pack_bfloat16(ctypes.CDLL(str(library)), weight, (64, 64, 64), 64)[1] is True


# Linear layers


@given(shapes(), st.integers(0, 2))
@loops
def test_multiply(kernels: Kernels, shape: tuple[int, int, int, tuple[int, int], int], gap: int) -> None:
    rows, inputs, outputs, some, seed = shape
    rng = np.random.default_rng(seed)
    x, linear = random_inputs(kernels, rng, rows, inputs), random_linear(kernels, rng, inputs, outputs)
    panels = in_panels(kernels, some)
    found = kernels.multiply(x, linear, panels, outputs + gap * 64)
    expected, tolerance = (np.pad(each, ((0, 0), (0, gap * 64))) for each in product(x, linear))
    check_columns(found, expected, tolerance, panels, kernels.columns)


@given(shapes())
@loops
def test_project(kernels: Kernels, shape: tuple[int, int, int, tuple[int, int], int]) -> None:
    rows, inputs, outputs, some, seed = shape
    rng = np.random.default_rng(seed)
    x, linear = random_inputs(kernels, rng, rows, inputs), random_linear(kernels, rng, inputs, outputs)
    panels = in_panels(kernels, some)
    found = kernels.project(x, linear, panels, outputs)
    expected, tolerance = product(x, linear)
    check_columns(found, expected, tolerance + rounding(kernels.element, expected), panels, kernels.columns)


@given(shapes(), st.booleans())
@loops
def test_activate(kernels: Kernels, shape: tuple[int, int, int, tuple[int, int], int], by_tanh: bool) -> None:
    rows, inputs, outputs, some, seed = shape
    rng = np.random.default_rng(seed)
    x, linear = random_inputs(kernels, rng, rows, inputs), random_linear(kernels, rng, inputs, outputs)
    smoothing = rng.uniform(0.2, 3, outputs).astype(np.float32) if kernels.is_int8 else None
    panels = in_panels(kernels, some)
    found = kernels.activate(x, linear, panels, outputs, by_tanh, smoothing)
    inner, tolerance = product(x, linear)
    expected = activation("gelu_new" if by_tanh else "gelu", inner)
    # the slope of GELU is at most 1.13
    tolerance = 1.13 * tolerance + PHI_ERROR * np.abs(inner)
    if smoothing is not None:
        expected, tolerance = expected * smoothing, tolerance * smoothing
    tolerance = tolerance + rounding(kernels.middle, expected)
    check_columns(found, expected, tolerance, panels, kernels.columns)


@pytest.mark.parametrize("by_tanh", [False, True])
def test_gelu_at_every_size(kernels: Kernels, by_tanh: bool) -> None:
    """From the bias alone, so that nothing else is rounded."""
    bias = np.concatenate([np.linspace(-12, 12, 4096 - 8), [0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 4.25, -4.25]])
    bias = bias.astype(np.float32)
    x = random_inputs(kernels, np.random.default_rng(0), 1, 64)
    weight = np.zeros((64, len(bias)), np.int8 if kernels.is_int8 else np.float32)
    linear = kernels.pack(weight, bias, np.ones(len(bias), np.float32) if kernels.is_int8 else None)
    smoothing = np.ones(len(bias), np.float32) if kernels.is_int8 else None
    found = kernels.activate(x, linear, (0, len(bias) // kernels.columns), len(bias), by_tanh, smoothing)[0]
    expected = activation("gelu_new" if by_tanh else "gelu", bias.astype(np.float64))
    tolerance = PHI_ERROR * np.abs(bias) + rounding(kernels.middle, expected) + UNIT**2
    close(found, expected, tolerance)


# Attention


def attention(model: Model, elements: Array, places: Array, keys: int, queries: tuple[int, int]) -> tuple[Array, Array]:
    """Return what heads attend to, `[queries, hidden]`, and how far rounded weights may be from it."""
    by_head = elements.astype(np.float64).reshape(len(elements), 3, model.heads, -1).transpose(1, 2, 0, 3)
    q, k, v = by_head[0][:, queries[0] : queries[1]], by_head[1][:, :keys], by_head[2][:, :keys]
    scores = q @ k.transpose(0, 2, 1)
    noise = 8 * UNIT * (np.abs(q) @ np.abs(k).transpose(0, 2, 1)).max()
    if "distance_bias" in model.tensors:
        distances = places[None, :keys] - places[queries[0] : queries[1], None]
        scores = scores + model.tensors["distance_bias"][:, distances + model.farthest]
    weights = softmax(scores * math.log(2))
    mean = weights @ v
    # errors of polynomial and scores bias all weights; those of rounding are independent of each other
    is_rounded = elements.dtype == BF16
    tolerance = (POWER_ERROR if is_rounded else 2e-6) + noise
    tolerance = tolerance * (weights @ np.abs(v) + np.abs(mean))
    if is_rounded:
        tolerance = tolerance + BF16_UNIT * 1.5 * np.sqrt(weights**2 @ v**2)
    together = [each.transpose(1, 0, 2).reshape(queries[1] - queries[0], -1) for each in (mean, tolerance)]
    return together[0], together[1]


def random_attention(
    kernels: Kernels, rng: np.random.Generator, rows: int, keys: int, heads: int, head_size: int, has_bias: bool
) -> tuple[Model, Array, Array]:
    """Return a model, elements `[rows, 3 * hidden]`, and places, with holes."""
    model = Model(heads * head_size, heads)
    elements = rng.normal(size=(rows, 3, heads * head_size))
    elements[:, 0] *= 3 * head_size**-0.5
    places = np.sort(rng.choice(2 * rows, keys, replace=False)).astype(np.int32)
    places = np.concatenate([places, np.zeros(rows - keys, np.int32)])
    if has_bias:
        model.farthest = 2 * rows
        model.tensors["distance_bias"] = rng.normal(size=(heads, 4 * rows + 1), scale=2).astype(np.float32)
    return model, np.ascontiguousarray(elements.reshape(rows, -1)).astype(kernels.element), places


@given(
    st.one_of(st.integers(1, 70), st.integers(1, 600)),
    st.integers(0, 1),
    st.integers(1, 4),
    st.sampled_from([32, 64]),
    st.booleans(),
    st.data(),
)
@loops
def test_attend(
    kernels: Kernels, keys: int, more: int, heads: int, head_size: int, has_bias: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(SEEDS))
    rows = keys + more  # a query that is not among the keys: a masked first token
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, min(rows, begin + 60)))
    first = data.draw(st.integers(0, heads - 1))
    last = data.draw(st.integers(first + 1, heads))
    model, elements, places = random_attention(kernels, rng, rows, keys, heads, head_size, has_bias)
    found = kernels.attend(model, elements, places, keys, (begin, end), (first, last))
    expected, tolerance = attention(model, elements, places, keys, (begin, end))
    if kernels.middle == BF16:
        tolerance = tolerance + rounding(BF16, expected)
    check_columns(found, expected, tolerance, (first, last), head_size)


def test_attend_where_one_key_wins(kernels: Kernels) -> None:
    """Scores far apart, as of trained encoders: the weights of the others vanish, and nothing overflows."""
    for keys in (1, 15, 16, 17, 33, 64):
        for winner in range(0, keys, 5):
            elements = np.zeros((keys, 3, 32), np.float32)
            elements[:, 0, 0], elements[:, 1, 0] = 1, -3e4
            elements[winner, 1, 0] = 3e4
            elements[:, 2] = np.arange(keys)[:, None]
            places = np.arange(keys, dtype=np.int32)
            elements = elements.reshape(keys, 96).astype(kernels.element)
            found = kernels.attend(Model(32, 1), elements, places, keys, (0, keys), (0, 1))
            expected = np.full((keys, 32), winner).astype(kernels.middle)
            # the power at 0 is 1 to the polynomial's error
            close(found, expected.astype(np.float64), winner * 3 * BF16_UNIT if kernels.element == BF16 else 1e-5)


# Rows


def needs_int8(kernels: Kernels) -> None:
    if not kernels.is_int8:
        pytest.skip("bf16 does not quantise activations")


def check_ranges(inputs: Inputs, values: Array) -> None:
    """Assert that bytes are the nearest to float32 values by the range of the row, which covers it and zero."""
    assert inputs.ranges is not None
    low, high = np.minimum(values.min(axis=1), 0), np.maximum(values.max(axis=1), 0)
    scale = (high - low) / np.float32(255)
    scale[scale == 0] = 1
    np.testing.assert_array_equal(inputs.ranges["scale"], scale)
    np.testing.assert_array_equal(inputs.ranges["zero"], np.rint(-low / scale))
    steps = values.astype(np.float64) / scale[:, None] + inputs.ranges["zero"][:, None]
    # 255 steps, each known to three roundings; at most the half step of the zero point is beyond 0 and 255
    close(inputs.values, np.clip(steps, 0, 255), 0.5 + 3 * 256 * UNIT)


@given(st.integers(1, 40), st.integers(1, 12), SEEDS)
@loops
def test_quantize(kernels: Kernels, rows: int, units: int, seed: int) -> None:
    needs_int8(kernels)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 64 * units)) * 10.0 ** rng.integers(-6, 6, rows)[:, None]
    values += rng.normal(size=(rows, 1)) * rng.integers(0, 3, rows)[:, None] * np.abs(values).max(axis=1, keepdims=True)
    values = values.astype(np.float32)
    check_ranges(kernels.quantize(values), values)


def test_quantize_at_the_ends(kernels: Kernels) -> None:
    needs_int8(kernels)
    rows = np.array([np.full(64, value) for value in (0, 1, -1, 1e30, -1e-30)], np.float32)
    rows[1, 5] = rows[2, 63] = 0
    inputs = kernels.quantize(rows)
    check_ranges(inputs, rows)
    one_value = np.zeros((64, 64), np.float32)
    np.fill_diagonal(one_value, np.where(np.arange(64) % 2, 3, -2))  # the largest at each place in turn
    check_ranges(kernels.quantize(one_value), one_value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_go_on_as_nan(kernels: Kernels, value: float) -> None:
    """Wherever it stands. As bytes with a plain scale they would become numbers that look sound."""
    needs_int8(kernels)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(64, 128)).astype(np.float32)
    norm = Norm(*np.ones((3, 128), np.float32))
    for place in (0, 15, 16, 63, 64, 127):
        damaged = rows.copy()
        damaged[place // 2, place] = value
        expected = np.arange(64) == place // 2
        found = kernels.quantize(damaged)
        assert found.ranges is not None
        np.testing.assert_array_equal(np.isnan(found.ranges["scale"] * 0), expected)
        hidden, inputs = kernels.add_norm(np.zeros_like(rows), damaged, norm, 1e-12)
        assert inputs.ranges is not None
        np.testing.assert_array_equal(np.isnan(inputs.ranges["scale"]), expected)
        np.testing.assert_array_equal(np.isnan(hidden).all(axis=1), expected)


def check_normed(kernels: Kernels, before: Array, norm: Norm, epsilon: float, hidden: Array, inputs: Inputs) -> None:
    """Compare layer normalisation of float64 rows, and what it passes on."""
    mean = before.mean(axis=1, keepdims=True)
    deviation = np.sqrt(before.var(axis=1, keepdims=True) + epsilon)
    normed = (before - mean) / deviation
    # of the rows, their mean and the variance, then two more operations
    largest = np.abs(before).max(axis=1, keepdims=True) / deviation
    close(
        hidden,
        normed * norm.scale + norm.shift,
        6 * UNIT * ((largest + np.abs(normed)) * np.abs(norm.scale) + np.abs(norm.shift)),
    )
    if not kernels.is_int8:
        np.testing.assert_array_equal(inputs.values, hidden.astype(BF16))
    elif norm.smoothing is not None:
        check_ranges(inputs, hidden * norm.smoothing)
    else:  # after the last layer nothing reads them
        assert inputs.same(kernels.inputs(*hidden.shape))


def random_norm(kernels: Kernels, rng: np.random.Generator, columns: int, smooths: bool) -> Norm:
    scale, shift = rng.normal(size=(2, columns)).astype(np.float32)
    return Norm(scale, shift, rng.uniform(0.2, 3, columns).astype(np.float32) if smooths and kernels.is_int8 else None)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.sampled_from([1e-12, 1e-5]), SEEDS)
@loops
def test_add_norm(kernels: Kernels, rows: int, units: int, smooths: bool, epsilon: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums, hidden = rng.normal(size=(2, rows, 64 * units)).astype(np.float32)
    sums += rng.normal(size=(rows, 1)).astype(np.float32) * 3
    norm = random_norm(kernels, rng, 64 * units, smooths)
    found, inputs = kernels.add_norm(sums, hidden, norm, epsilon)
    check_normed(kernels, (hidden + sums).astype(np.float64), norm, epsilon, found, inputs)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), SEEDS)
@loops
def test_embed(kernels: Kernels, rows: int, units: int, smooths: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, ids, positions, before = random_embeddings(kernels, rng, rows, 64 * units)
    norm = random_norm(kernels, rng, 64 * units, smooths)
    add_embedding_norm(model, norm)
    found, inputs = kernels.embed(model, ids, positions)
    check_normed(kernels, before, norm, model.epsilon, found, inputs)


def random_embeddings(
    kernels: Kernels, rng: np.random.Generator, rows: int, hidden: int
) -> tuple[Model, Array, Array, Array]:
    """Return a model, token ids, positions, and the sums of their rows."""
    words, places = 50, 60
    ids, positions = (rng.integers(0, size, rows).astype(np.int32) for size in (words, places))
    table = rng.normal(size=(places, hidden)).astype(np.float32)
    model = Model(hidden, 1, epsilon=1e-12, tensors={"position_table": table})
    if kernels.is_int8:
        steps = rng.integers(-127, 128, (words, hidden)).astype(np.int8)
        scales = rng.uniform(0.01, 0.1, words).astype(np.float32)
        model.tensors |= {"word_steps": steps, "word_scales": scales}
        found = steps[ids] * scales[ids, None].astype(np.float64)
    else:
        model.tensors["word_table"] = rng.normal(size=(words, hidden)).astype(np.float32)
        found = model.tensors["word_table"][ids].astype(np.float64)
    return model, ids, positions, found + table[positions]


def add_embedding_norm(model: Model, norm: Norm) -> None:
    model.tensors |= {"norm_scale": norm.scale, "norm_shift": norm.shift}
    if norm.smoothing is not None:
        model.tensors["smoothing"] = norm.smoothing


# A row's result is the same, bit for bit, whatever is computed beside it.

ROWS = 40


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, int]:
    begin = draw(st.integers(0, ROWS - 1))
    return begin, draw(st.integers(begin + 1, ROWS))


@pytest.mark.parametrize("kernel", ["project", "multiply", "activate"])
def test_products_are_the_same_beside_any_rows_and_panels(kernels: Kernels, kernel: str) -> None:
    rng = np.random.default_rng(1)
    x, linear = random_inputs(kernels, rng, ROWS, 192), random_linear(kernels, rng, 192, 256)
    options = (False, np.ones(256, np.float32) if kernels.is_int8 else None) if kernel == "activate" else ()
    run: Callable[..., Array] = getattr(kernels, kernel)
    panels = 256 // kernels.columns
    whole = run(x, linear, (0, panels), 256, *options)
    for count in range(1, ROWS + 1):
        begin = int(rng.integers(0, ROWS - count + 1))
        first = int(rng.integers(0, panels))
        last = int(rng.integers(first + 1, panels + 1))
        columns = slice(first * kernels.columns, last * kernels.columns)
        found = run(x.rows(begin, begin + count), linear, (first, last), 256, *options)
        assert found[:, columns].tobytes() == whole[begin : begin + count, columns].tobytes(), (begin, count)


@pytest.mark.parametrize("kernel", ["quantize", "add_norm", "embed"])
def test_rows_are_the_same_beside_any_rows(kernels: Kernels, kernel: str) -> None:
    rng = np.random.default_rng(2)
    model, ids, positions, _ = random_embeddings(kernels, rng, ROWS, 192)
    norm = random_norm(kernels, rng, 192, True)
    add_embedding_norm(model, norm)
    sums, hidden = rng.normal(size=(2, ROWS, 192)).astype(np.float32)

    def run(begin: int, end: int) -> tuple[Array | None, Inputs]:
        if kernel == "quantize":
            return None, kernels.quantize(hidden[begin:end])
        if kernel == "add_norm":
            return kernels.add_norm(sums[begin:end], hidden[begin:end], norm, 1e-12)
        return kernels.embed(model, ids[begin:end], positions[begin:end])

    if kernel == "quantize":
        needs_int8(kernels)
    all_hidden, all_inputs = run(0, ROWS)
    for count in range(1, ROWS + 1):
        begin = int(rng.integers(0, ROWS - count + 1))
        found, inputs = run(begin, begin + count)
        assert inputs.same(all_inputs.rows(begin, begin + count))
        if found is not None and all_hidden is not None:
            assert found.tobytes() == all_hidden[begin : begin + count].tobytes()


@pytest.mark.parametrize("has_bias", [False, True])
def test_attention_is_the_same_for_any_queries_and_heads(kernels: Kernels, has_bias: bool) -> None:
    rng = np.random.default_rng(3)
    for keys in (1, 17, 39):
        model, elements, places = random_attention(kernels, rng, ROWS, keys, 4, 32, has_bias)
        whole = kernels.attend(model, elements, places, keys, (0, ROWS), (0, 4))
        for count in range(1, ROWS + 1):
            begin = int(rng.integers(0, ROWS - count + 1))
            first = int(rng.integers(0, 4))
            last = int(rng.integers(first + 1, 5))
            found = kernels.attend(model, elements, places, keys, (begin, begin + count), (first, last))
            columns = slice(32 * first, 32 * last)
            assert found[:, columns].tobytes() == whole[begin : begin + count, columns].tobytes()
