"""The onnxruntime session: its options, the graph's contract checked at load, and its life across forks.

Knows token ids and vectors, not texts.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InferenceError, ModelFolderError

# onnxruntime's official builds report usage to Microsoft unless this is set before the import (Privacy.md, "Disabling
# Telemetry"). Whoever wants the reports sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

Output = Literal["sentence_embedding", "pooled_embedding"]

_INPUTS = dict.fromkeys(("input_ids", "attention_mask"), ("tensor(int64)", ["any", "any"]))
_OUTPUTS = ("sentence_embedding", "pooled_embedding")
# These share no base but Exception.
_ORT_ERRORS = tuple(
    error for error in vars(ort_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)


class Session:
    """A graph that maps token ids to embeddings, ready to run. Threads may share it, and it works after a fork."""

    def __init__(self, path: Path, *, dimension: int, threads: int) -> None:
        """Load the graph at `path` and check its inputs and outputs.

        Raises:
            ModelFolderError: the file is no ONNX graph, or not one with the inputs and outputs of a model folder.
        """
        self._path = path
        self._dimension = dimension
        self._threads = threads
        self._lock = threading.Lock()
        self._session: onnxruntime.InferenceSession | None = self._load()
        _sessions.add(self)

    def run(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], output: Output = "sentence_embedding"
    ) -> NDArray[np.float32]:
        """Return the embeddings `[batch, dimension]` of token ids `[batch, sequence]`.

        Raises:
            InferenceError: onnxruntime failed, for instance for lack of memory.
        """
        session = self._session or self._reload()
        try:
            result: NDArray[np.float32] = session.run(
                [output], {"input_ids": input_ids, "attention_mask": attention_mask}
            )[0]
        except _ORT_ERRORS as error:
            raise InferenceError(f"onnxruntime failed on token ids of shape {input_ids.shape}: {error}") from error
        return result

    def _load(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # The graph is final: optimising it again would bring back operators that are slow on a CPU.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Batches have hundreds of shapes, and a memory pattern would be kept for each.
        options.enable_mem_pattern = False
        # Threads spin while a run lasts, not after it: a waiting host is idle.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # errors are raised, not printed, and warnings here are for graph authors
        try:
            session = onnxruntime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise ModelFolderError(
                f"onnxruntime {onnxruntime.__version__} cannot load {self._path}: {error}"
            ) from error
        self._check_contract(session)
        return session

    def _check_contract(self, session: onnxruntime.InferenceSession) -> None:
        inputs = {value.name: (value.type, _shape(value)) for value in session.get_inputs()}
        outputs = {value.name: (value.type, _shape(value)) for value in session.get_outputs()}
        vectors = ("tensor(float)", ["any", self._dimension])
        if inputs != _INPUTS or outputs != dict.fromkeys(_OUTPUTS, vectors):
            raise ModelFolderError(
                f"{self._path} is not a graph of an e5onnx model folder: it has inputs {inputs} and outputs {outputs}, "
                f"expected inputs {_INPUTS} and outputs {dict.fromkeys(_OUTPUTS, vectors)}"
            )

    def _reload(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._session is None:
                self._session = self._load()
            return self._session

    def _after_fork(self) -> None:
        """Forget the parent's session, whose threads do not exist in this process; the next run loads a new one.

        The old one must stay alive for ever, since its destructor waits for its threads to end.
        """
        self._lock = threading.Lock()
        if self._session is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session = None


def _shape(value: onnxruntime.NodeArg) -> list[int | str]:
    """Return the shape of an input or output, "any" for an axis that is not fixed."""
    return [axis if isinstance(axis, int) else "any" for axis in value.shape]


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session._after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
