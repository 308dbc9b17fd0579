"""A loaded graph: which engine runs it, its inputs and outputs, onnxruntime's options, and what a fork does to it.

Handles token ids and vectors, not texts.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from .batching import TOKEN_BUDGET, UNPADDED_TOKEN_BUDGET
from .cpu import processors_for_threads
from .errors import InferenceError, InputTypeError, InputValueError, ModelFolderError
from .model_folder import OpenedGraph

Output = Literal["sentence_embedding", "pooled_embedding"]

_INPUTS = dict.fromkeys(("input_ids", "attention_mask"), ("tensor(int64)", ["any", "any"]))
_OUTPUTS = ("sentence_embedding", "pooled_embedding")
# onnxruntime's own errors share no base but Exception. A damaged name in a message raises UnicodeDecodeError.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(error for error in vars(ort_errors).values() if isinstance(error, type) and issubclass(error, Exception)),
    ValueError,
    RuntimeError,
    MemoryError,
)


class Engine(Protocol):
    """A runtime with a graph loaded. Several threads may run it at the same time.

    Attributes:
        precision: the precision that really runs.
        token_budget: tokens in one run with which it is fastest.
        inputs: type and shape of each input, as onnxruntime names them; "any" for a dynamic axis.
        outputs: the same for the outputs.
    """

    precision: str
    token_budget: int
    inputs: dict[str, tuple[str, list[int | str]]]
    outputs: dict[str, tuple[str, list[int | str]]]

    def run(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], output: Output
    ) -> NDArray[np.float32]:
        """Return one output for token ids and mask `[batch, sequence]`; raise :class:`InferenceError`."""


def engine_for(
    provider: str, precision: str | None, compile_cache: str | os.PathLike[str] | None
) -> tuple[Callable[..., Engine], str | None]:
    """Return a function that loads a provider's engine, and the precision to ask of the folder; see `Encoder`."""
    if provider not in ("cpu", "kernels", "openvino"):
        raise InputValueError(f"provider must be 'cpu', 'kernels' or 'openvino', got {provider!r}")
    if compile_cache is not None and provider != "openvino":
        raise InputValueError("a compile cache needs provider openvino: onnxruntime does not compile")
    if provider == "cpu":
        if precision == "bf16":
            raise InputValueError("bf16 needs provider kernels or openvino: onnxruntime's own kernels do not have it")
        given = precision or "fp32"
        return partial(OnnxRuntimeEngine, precision=given), given
    if provider == "kernels":
        from .kernels import check_precision, check_processor, replaced_encoder

        given = precision or "bf16"
        check_precision(given)
        check_processor(given)
        return partial(
            OnnxRuntimeEngine, precision=given, token_budget=UNPADDED_TOKEN_BUDGET, prepared=replaced_encoder
        ), given
    if compile_cache is not None and not isinstance(compile_cache, (str, os.PathLike)):
        raise InputTypeError(f"compile_cache must be a folder, got {type(compile_cache).__name__}")
    if precision not in ("bf16", "fp32", None):
        raise InputValueError(f"provider openvino runs bf16 or fp32, not {precision}")
    from .openvino_engine import OpenVinoEngine

    return partial(OpenVinoEngine, precision=precision, compile_cache=compile_cache), precision


class LoadedGraph:
    """A graph that maps token ids to embeddings. Threads may share it, and it works after a fork."""

    def __init__(
        self,
        graph: OpenedGraph,
        *,
        dimension: int,
        load: Callable[[Path], Engine],
        reopen: Callable[[], AbstractContextManager[OpenedGraph]] | None = None,
    ) -> None:
        """Load a graph into an engine and check its inputs and outputs.

        Args:
            graph: the files of the graph.
            dimension: the dimension that its vectors must have.
            load: loads a graph into an engine.
            reopen: opens the files again after a fork, and checks that they have not changed.

        Raises:
            ModelFolderError: the file is not an ONNX graph, or its inputs and outputs are not those of a model folder.
        """
        self._graph = graph
        self._dimension = dimension
        self._load = load
        self._reopen = reopen or (lambda: nullcontext(graph))
        self._lock = threading.Lock()
        self._engine: Engine | None = self._load_checked(graph)
        self.precision = self._engine.precision
        self.token_budget = self._engine.token_budget
        _loaded_graphs.add(self)

    def run(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], output: Output = "sentence_embedding"
    ) -> NDArray[np.float32]:
        """Return the embeddings `[batch, dimension]` of token ids `[batch, sequence]`.

        Raises:
            InferenceError: the engine failed, for example because memory ran out.
            ModelFolderError: the weights were overwritten, or a file of the model changed before the first run after a
                fork.
        """
        engine = self._engine or self._reload()
        result = engine.run(input_ids, attention_mask, output)
        self._graph.check()  # afterwards, to cover the whole run
        return result

    def _load_checked(self, graph: OpenedGraph) -> Engine:
        engine = self._load(graph.path)
        vectors = ("tensor(float)", ["any", self._dimension])
        if engine.inputs != _INPUTS or engine.outputs != dict.fromkeys(_OUTPUTS, vectors):
            raise ModelFolderError(
                f"{graph.path} is not a graph of an e5onnx model folder: it has inputs {engine.inputs} and outputs "
                f"{engine.outputs}, expected inputs {_INPUTS} and outputs {dict.fromkeys(_OUTPUTS, vectors)}"
            )
        return engine

    def _reload(self) -> Engine:
        with self._lock:
            if self._engine is None:
                with self._reopen() as graph:
                    engine = self._load_checked(graph)
                self._graph, self._engine = graph, engine  # only now: leaving the context may raise
            return self._engine

    def _after_fork(self) -> None:
        """Drop the parent's engine, whose threads do not exist in this process; the next run loads a new one.

        The old engine must never be freed: its destructor would wait for its threads to end.
        """
        self._lock = threading.Lock()
        if self._engine is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._engine))
            self._engine = None


class OnnxRuntimeEngine:
    """onnxruntime's CPU provider, with its own kernels or those of `kernels.py`. See :class:`Engine`."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        precision: str,
        token_budget: int = TOKEN_BUDGET,
        prepared: Callable[[Any, int, Path], AbstractContextManager[None]] = lambda *_: nullcontext(),
    ) -> None:
        """Load a graph.

        Args:
            path: the graph.
            threads: threads that one call uses.
            precision: what the graph's weights have, or what the kernels compute with.
            token_budget: see :class:`Engine`.
            prepared: called with the session's options, `threads` and `path`; the session is made in its context.

        Raises:
            ModelFolderError: onnxruntime or the kernels cannot load the graph.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if processors := processors_for_threads(threads):
            numbers = ";".join(str(processor + 1) for processor in processors[1:])  # onnxruntime counts from 1
            options.add_session_config_entry("session.intra_op_thread_affinities", numbers)
        # The graph is final: optimising it again would bring back operators that are slow on a CPU.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Batches have hundreds of shapes, and onnxruntime would keep a memory pattern for each.
        options.enable_mem_pattern = False
        # Threads spin only during a run, so that a waiting host is idle.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # errors are raised anyway, and warnings are for authors of graphs
        try:
            with prepared(options, threads, path):
                self._session = onnxruntime.InferenceSession(
                    str(path),
                    options,
                    providers=["CPUExecutionProvider"],
                    enable_fallback=0,  # it would print, and try again in the same way
                )
        except ModelFolderError:  # from `prepared`; it is a ValueError, too
            raise
        except _ORT_ERRORS as error:
            raise ModelFolderError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {error}") from error
        self.precision = precision
        self.token_budget = token_budget
        self.inputs = {value.name: (value.type, _shape(value)) for value in self._session.get_inputs()}
        self.outputs = {value.name: (value.type, _shape(value)) for value in self._session.get_outputs()}

    def run(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], output: Output
    ) -> NDArray[np.float32]:
        """Run the graph; see :class:`Engine`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        try:
            result: NDArray[np.float32] = self._session.run([output], inputs)[0]
        except _ORT_ERRORS as error:
            raise InferenceError(f"onnxruntime failed on token ids of shape {input_ids.shape}: {error}") from error
        return result


def _shape(value: onnxruntime.NodeArg) -> list[int | str]:
    """Return the shape of an input or output, with "any" for a dynamic axis."""
    return [axis if isinstance(axis, int) else "any" for axis in value.shape]


_loaded_graphs: weakref.WeakSet[LoadedGraph] = weakref.WeakSet()


def _after_fork() -> None:
    for graph in list(_loaded_graphs):
        graph._after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
