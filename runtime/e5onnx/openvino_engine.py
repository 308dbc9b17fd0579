"""The engine `provider="openvino"`: OpenVINO on the portable graph, in bfloat16 where the processor has it.

OpenVINO is called directly, not through onnxruntime's plugin for it (onnxruntime-ep-openvino 1.8), which has the same
kernels: the plugin finds no device on processors other than Intel's (microsoft/onnxruntime#31981), exists for x86-64
only, and does not say which precision it runs.

OpenVINO 2026.4 reads the fused graph too, as fast without AMX. The portable graph is used because its heads have a size
that suits AMX's tiles, and because older versions read it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batching import TOKEN_BUDGET
from .errors import InferenceError, InputValueError, MissingDependencyError, ModelFolderError

_OLDEST = 2026
"""OpenVINO 2025.3 to 2025.4.1 gives wrong vectors in bf16 (their cosine to fp32 is 0.2)."""
_NAMES = {"bf16": "bf16", "fp32": "f32"}
_TYPES = {"i64": "tensor(int64)", "f32": "tensor(float)"}


class OpenVinoEngine:
    """OpenVINO's CPU device; see :class:`e5onnx.engine.Engine`. Its `precision` is read back from OpenVINO."""

    def __init__(
        self, path: Path, *, threads: int, precision: str | None, compile_cache: str | os.PathLike[str] | None
    ) -> None:
        """Compile the graph at `path`.

        Args:
            path: a graph of standard ONNX operators.
            threads: threads that one call uses. They are not pinned, as other processes use the processors too.
            precision: "bf16", "fp32", or None for bf16 if the processor has it.
            compile_cache: folder that keeps the compiled graph for the next process; None to keep nothing.

        Raises:
            MissingDependencyError: OpenVINO is not installed.
            InputValueError: this processor has no bfloat16.
            ModelFolderError: OpenVINO cannot read the graph, or cannot write to `compile_cache`.
        """
        openvino = _import_openvino()
        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            name = core.get_property("CPU", "FULL_DEVICE_NAME")
            raise InputValueError(f"this processor ({name}) has no bfloat16: use precision fp32, or provider cpu")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _NAMES[precision or ("bf16" if has_bf16 else "fp32")],
            "ENABLE_CPU_PINNING": False,
        }
        if compile_cache is not None:
            settings["CACHE_DIR"] = os.fspath(compile_cache)
        try:
            self._model = core.compile_model(os.fspath(path), "CPU", settings)
        except RuntimeError as error:
            raise ModelFolderError(f"OpenVINO {openvino.__version__} cannot load {path}: {error}") from error
        used = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = next((name for name, hint in _NAMES.items() if hint == used), used)
        self.token_budget = TOKEN_BUDGET
        self.inputs = {port.any_name: _signature(port) for port in self._model.inputs}
        self.outputs = {port.any_name: _signature(port) for port in self._model.outputs}
        self._idle: list[Any] = []  # requests that no call is using; there are as many requests as simultaneous callers

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], output: str) -> NDArray[np.float32]:
        """Run the graph; see :class:`e5onnx.engine.Engine`."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            request.infer({"input_ids": input_ids, "attention_mask": attention_mask}, share_inputs=True)
            result: NDArray[np.float32] = request.get_tensor(output).data.copy()
        except RuntimeError as error:
            raise InferenceError(f"OpenVINO failed on token ids of shape {input_ids.shape}: {error}") from error
        self._idle.append(request)
        return result


def _import_openvino() -> Any:
    """Import OpenVINO without its usage reports, which would write a client id to the home folder."""
    reports = "openvino_telemetry"
    blocked = "openvino" not in sys.modules and reports not in sys.modules
    if blocked:
        sys.modules[reports] = None  # type: ignore[assignment]  # documented: None makes its import fail
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError("provider openvino needs OpenVINO: pip install 'e5onnx[openvino]'") from error
    finally:
        if blocked:
            del sys.modules[reports]
    if int(openvino.__version__.partition(".")[0]) < _OLDEST:
        raise MissingDependencyError(
            f"OpenVINO {openvino.__version__} is too old, {_OLDEST} is needed: pip install --upgrade 'e5onnx[openvino]'"
        )
    return openvino


def _signature(port: Any) -> tuple[str, list[int | str]]:
    """Return the type and shape of an input or output."""
    name = port.get_element_type().get_type_name()
    shape = ["any" if axis.is_dynamic else axis.get_length() for axis in port.get_partial_shape()]
    return _TYPES.get(name, name), shape
