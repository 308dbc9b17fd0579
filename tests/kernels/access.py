"""The tables of kernels through ctypes: numpy arrays in, numpy arrays out. Computes nothing itself."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
RANGE = np.dtype([("scale", np.float32), ("zero", np.float32)])
BF16 = np.dtype(ml_dtypes.bfloat16)
TABLES = (
    "avx512-bf16 int8",
    "avx512-bf16 bf16",
    "avx512-vnni int8",
    "avx-vnni int8",
    "avx2 int8",
    "neon-dotprod int8",
    "neon-i8mm int8",
)
"""In the order of access.cpp."""
GUARD = 64
"""Bytes after each output that must stay as they are."""


class _Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "column_sums", "bias")]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("hidden", "heads", "farthest")),
        ("epsilon", ctypes.c_float),
        *(
            (name, ctypes.c_void_p)
            for name in ("word_table", "word_steps", "word_scales", "position_table", "distance_bias")
        ),
        *((name, ctypes.c_void_p) for name in ("norm_scale", "norm_shift", "smoothing")),
    ]


class Norm(NamedTuple):
    scale: Array
    shift: Array
    smoothing: Array | None = None


@dataclass
class Model:
    """What `attend` and `embed` read of an encoder."""

    hidden: int
    heads: int
    farthest: int = 0
    epsilon: float = 1e-12
    tensors: dict[str, Array] = field(default_factory=dict)


class Inputs(NamedTuple):
    """What enters a linear layer: bytes with the range of each row, or bfloat16 and no ranges."""

    values: Array
    ranges: Array | None

    def rows(self, begin: int, end: int) -> Inputs:
        ranges = None if self.ranges is None else np.ascontiguousarray(self.ranges[begin:end])
        return Inputs(np.ascontiguousarray(self.values[begin:end]), ranges)

    def same(self, other: Inputs) -> bool:
        ranges = (b"" if each.ranges is None else each.ranges.tobytes() for each in (self, other))
        return self.values.tobytes() == other.values.tobytes() and next(ranges) == next(ranges)


@dataclass
class Linear:
    """Packed weights, and what they were packed from."""

    weight: Array
    packed: Array
    bias: Array
    scale: Array | None = None
    column_sums: Array | None = None


class Kernels:
    """One table."""

    def __init__(self, library: Path, name: str) -> None:
        self.library, self.number, self.name = ctypes.CDLL(str(library)), TABLES.index(name), name
        self.library.access_table.restype = ctypes.c_char_p
        self.library.access_attention_bytes.restype = ctypes.c_size_t
        facts = (ctypes.c_int64 * 6)()
        instructions = self.library.access_table(self.number, facts)
        if instructions is None:
            pytest.skip(f"the library has no {name} for this processor")
        assert f"{instructions.decode()} {'int8' if facts[3] == 1 else 'bf16'}" == name
        self.columns, self.depth, self.adds_pairs = facts[0], facts[1], bool(facts[2])
        self.is_int8 = facts[3] == 1
        self.element = {2: BF16, 4: np.dtype(np.float32)}[facts[4]]
        self.middle = {2: BF16, 4: np.dtype(np.float32)}[facts[5]]

    def inputs(self, rows: int, columns: int) -> Inputs:
        """Return room for what enters a linear layer."""
        if self.is_int8:
            return Inputs(np.full((rows, columns), 0xAB, np.uint8), np.full(rows, -1, RANGE))
        return Inputs(np.full((rows, columns), -1, BF16), None)

    def pack(self, weight: Array, bias: Array, scale: Array | None = None) -> Linear:
        outputs = weight.shape[1]
        if not self.is_int8:
            packed, is_finite = pack_bfloat16(self.library, weight, (outputs, outputs, outputs), self.columns)
            assert is_finite
            return Linear(weight, packed, bias)
        packed, sums = pack_int8(self.library, weight, (outputs, outputs, outputs), self.columns)
        return Linear(weight, packed, bias, scale, sums)

    def project(self, x: Inputs, linear: Linear, panels: tuple[int, int], stride: int) -> Array:
        return self._product("project", x, linear, panels, stride, self.element)

    def multiply(self, x: Inputs, linear: Linear, panels: tuple[int, int], stride: int) -> Array:
        return self._product("multiply", x, linear, panels, stride, np.dtype(np.float32))

    def activate(
        self, x: Inputs, linear: Linear, panels: tuple[int, int], stride: int, by_tanh: bool, smoothing: Array | None
    ) -> Array:
        options = (ctypes.c_int(by_tanh), _pointer(smoothing))
        return self._product("activate", x, linear, panels, stride, self.middle, *options)

    def attend(
        self, model: Model, elements: Array, places: Array, keys: int, queries: tuple[int, int], heads: tuple[int, int]
    ) -> Array:
        """Return `[queries, hidden]`; columns of other heads are NaN."""
        size = self.library.access_attention_bytes(self.number, keys, model.hidden // model.heads)
        memory = _aligned(size)
        to = _nan((queries[1] - queries[0], model.hidden), self.middle)
        assert elements.dtype == self.element
        self.library.access_attend(
            self.number,
            ctypes.byref(_model(model)),
            _pointer(elements),
            _pointer(places),
            *map(ctypes.c_int, (keys, *queries, *heads)),
            _pointer(memory),
            _pointer(to),
        )
        return _guarded(to, (queries[1] - queries[0]) * model.hidden)

    def quantize(self, values: Array) -> Inputs:
        to = self.inputs(*values.shape)
        self.library.access_quantize(
            self.number, _pointer(values), *map(ctypes.c_int, values.shape), _pointer(to.values), _pointer(to.ranges)
        )
        return to

    def add_norm(self, sums: Array, hidden: Array, norm: Norm, epsilon: float) -> tuple[Array, Inputs]:
        hidden, to = hidden.copy(), self.inputs(*hidden.shape)
        self.library.access_add_norm(
            self.number,
            _pointer(sums),
            *map(ctypes.c_int, sums.shape),
            *map(_pointer, norm),
            ctypes.c_float(epsilon),
            _pointer(hidden),
            _pointer(to.values),
            _pointer(to.ranges),
        )
        return hidden, to

    def embed(self, model: Model, ids: Array, positions: Array) -> tuple[Array, Inputs]:
        hidden, to = np.full((len(ids), model.hidden), np.nan, np.float32), self.inputs(len(ids), model.hidden)
        self.library.access_embed(
            self.number,
            ctypes.byref(_model(model)),
            _pointer(ids),
            _pointer(positions),
            ctypes.c_int(len(ids)),
            _pointer(hidden),
            _pointer(to.values),
            _pointer(to.ranges),
        )
        return hidden, to

    def _product(
        self,
        name: str,
        x: Inputs,
        linear: Linear,
        panels: tuple[int, int],
        stride: int,
        dtype: np.dtype[Any],
        *options: Any,
    ) -> Array:
        """Return `[rows, stride]`; what was not written is NaN."""
        rows, inputs = x.values.shape
        to = _nan((rows, stride), dtype)
        pointers = map(_pointer, (linear.packed, linear.scale, linear.column_sums, linear.bias))
        getattr(self.library, f"access_{name}")(
            self.number,
            _pointer(x.values),
            _pointer(x.ranges),
            ctypes.c_int(rows),
            ctypes.c_int(inputs),
            ctypes.byref(_Linear(*pointers)),
            *options,
            *map(ctypes.c_int, panels),
            _pointer(to),
            ctypes.c_long(stride),
        )
        return _guarded(to, rows * stride)


def pack_int8(
    library: ctypes.CDLL, weight: Array, columns: tuple[int, int, int], width: int
) -> tuple[NDArray[np.int8], Array]:
    """Return packed weights, and the sum of each column; `columns` are those of pack.h."""
    packed = _aligned(len(weight) * columns[0]).view(np.int8)
    sums = np.full(columns[0], np.nan, np.float32)
    library.access_pack_int8(
        _pointer(weight),
        ctypes.c_long(weight.shape[1]),
        *map(ctypes.c_int, (*columns, len(weight), width, 4)),
        _pointer(packed),
        _pointer(sums),
    )
    return packed, sums


def pack_bfloat16(
    library: ctypes.CDLL, weight: Array, columns: tuple[int, int, int], width: int, factor: float = 1
) -> tuple[Array, bool]:
    """Return packed weights, and whether all of them are finite."""
    packed = _aligned(2 * len(weight) * columns[0]).view(BF16)
    is_finite = library.access_pack_bfloat16(
        _pointer(weight),
        ctypes.c_long(weight.shape[1]),
        *map(ctypes.c_int, (*columns, len(weight), width, 2)),
        ctypes.c_float(factor),
        _pointer(packed),
    )
    return packed, bool(is_finite)


def _model(model: Model) -> _Model:
    structure = _Model(model.hidden, model.heads, model.farthest, model.epsilon)
    for name, tensor in model.tensors.items():
        setattr(structure, name, tensor.ctypes.data)
    return structure


def _pointer(array: Array | None) -> ctypes.c_void_p:
    assert array is None or array.flags.c_contiguous
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def _aligned(size: int) -> NDArray[np.uint8]:
    memory = np.full(size + 64, 0xFF, np.uint8)  # 0xFFFF is NaN in bfloat16
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


def _nan(shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Return NaN of one kind, with a guard after the last row."""
    size = shape[0] * shape[1] * dtype.itemsize
    return np.full(size + GUARD, 0xFF, np.uint8)[: size + GUARD].view(dtype)[: shape[0] * shape[1]].reshape(shape)


def _guarded(to: Array, count: int) -> Array:
    base = to
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert (base.view(np.uint8)[count * to.itemsize :] == 0xFF).all(), "wrote past the end"
    return to
