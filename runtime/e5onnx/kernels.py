"""The package `e5onnx-kernels`, for `provider="kernels"`: what it runs on this processor, and its place in a session.

The graph's node `BertEncoder` is a function of stock operators. The library registers an operator of the same name,
which onnxruntime takes instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputValueError, MissingDependencyError, ModelFolderError

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

_PRECISIONS = ("bf16", "int8")
_REFUSAL = "e5onnx-kernels: "
"""With this the library's errors begin, which onnxruntime puts into its own."""


def check_precision(precision: str) -> None:
    """Raise :class:`InputValueError` for a precision that the kernels do not have."""
    if precision not in _PRECISIONS:
        other = ": use provider cpu for fp32" if precision == "fp32" else ""
        raise InputValueError(f"provider kernels runs bf16 or int8, not {precision}{other}")


def check_processor(precision: str) -> None:
    """Check that the kernels are installed, and can run a precision on this processor.

    Raises:
        InputValueError: the processor cannot.
        MissingDependencyError: the kernels are not installed, or cannot be loaded.
    """
    try:
        import e5onnx_kernels

        runs = [each for each in _PRECISIONS if e5onnx_kernels.supports(each)]
    except ImportError as error:
        raise MissingDependencyError("provider kernels needs e5onnx-kernels: pip install 'e5onnx[kernels]'") from error
    except OSError as error:
        raise MissingDependencyError(
            f"the library of e5onnx-kernels cannot be loaded ({error}): pip install --force-reinstall e5onnx-kernels"
        ) from error
    if not runs:
        raise InputValueError("e5onnx-kernels has nothing for the instructions of this processor: use provider cpu")
    if precision not in runs:
        raise InputValueError(
            f"e5onnx-kernels cannot run {precision} on this processor, whose instructions are "
            f"{e5onnx_kernels.instructions()}: use precision {runs[0]}, or provider cpu"
        )


@contextmanager
def replaced_encoder(options: SessionOptions, threads: int, path: Path) -> Iterator[None]:
    """Let the kernels run the encoder of the session that the caller makes in this context, on this thread.

    Args:
        options: the options to make the session with.
        threads: threads that one call uses.
        path: the graph, for messages.

    Raises:
        ModelFolderError: the graph has no encoder for them, or one that they do not cover.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    import e5onnx_kernels

    options.add_session_config_entry("e5onnx.threads", str(threads))
    options.register_custom_ops_library(str(e5onnx_kernels.library_path()))
    before = e5onnx_kernels.created()
    try:
        yield
    except RuntimeException as error:
        _, ours, reason = str(error).partition(_REFUSAL)
        if not ours:
            raise
        raise ModelFolderError(f"provider kernels cannot run {path}: {reason}; use provider cpu") from error
    if e5onnx_kernels.created() == before:
        raise ModelFolderError(
            f"{path} has no node BertEncoder, which provider kernels runs: the model was exported by an older e5onnx "
            "(export it again) or traced by optimum (use provider cpu)"
        )
