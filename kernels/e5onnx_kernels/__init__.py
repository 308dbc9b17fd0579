"""A library of onnxruntime custom operators that run BERT encoders in int8 and bf16. `e5onnx` loads it.

This package finds the library and asks what it can do on this processor. The library itself is C++, in `src`. For
onnxruntime without e5onnx: `SessionOptions.register_custom_ops_library(str(library_path()))`.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

__version__ = "0.1.0"


def library_path() -> Path:
    """Return the path of the shared library.

    Example:
        >>> library_path().is_file()
        True
    """
    return Path(__file__).with_name(f"libe5onnx_kernels.{'dylib' if sys.platform == 'darwin' else 'so'}")


def instructions() -> str:
    """Return the best instruction set of this processor that the library uses, such as "avx512-bf16"; "" for none.

    Example:
        >>> isinstance(instructions(), str)
        True
    """
    name: bytes = _library().e5onnx_kernels_instructions()
    return name.decode()


def supports(precision: str) -> bool:
    """Tell whether this processor can run a precision, "int8" or "bf16".

    Example:
        >>> supports("fp16")
        False
    """
    return bool(_library().e5onnx_kernels_has(precision.encode()))


def created() -> int:
    """Return how many encoders the calling thread has created so far.

    onnxruntime creates them with a session, on the thread that makes it. If the number stays the same, the graph has no
    node for the library, and onnxruntime runs it with its own kernels.

    Example:
        >>> created() >= 0
        True
    """
    return int(_library().e5onnx_kernels_created())


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.e5onnx_kernels_instructions.restype = ctypes.c_char_p
    library.e5onnx_kernels_has.argtypes = [ctypes.c_char_p]
    return library
