"""The engines that embed the parts of a plan: this machine, or a Ray cluster.

Locally, one thread reads and tokenises the next parts and another writes the last one while the model runs.

On Ray, every actor has an encoder and takes one part at a time. Input, model folder and output folder must have the
same paths on every node (a shared file system; the model may be a hub id), and e5onnx must be installed there. An actor
has as many threads as processors of the cluster. If an actor or its node dies, Ray restarts the actor and runs its
parts again; a part that is written twice has the same bytes.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..encoder import Advance, Encoder
from ..errors import ClusterError, E5OnnxError, InputValueError, MissingDependencyError, TextTooLongError, in_one_line
from ..tokenizer import TokenizedText
from .job import Done, JobOptions, Plan, part_name, read_plan
from .outputs import write_part
from .plan import Part
from .records import Reject
from .rows import RowReader
from .texts import tokenized

OnError = Literal["stop", "skip"]
"""Called with the number of rows and tokens embedded since the last call."""
_REMEDY = 'truncate="warn" (--truncate warn on the command line)'
_WINDOW = 1024
"""Texts that are sorted by length together; progress is reported after each window."""
_CONNECT_SECONDS = 5.0
_PARTS_AHEAD = 2
"""Parts that are read ahead, or handed to an actor at a time, so that neither the model nor an actor waits."""
_MOST_RESTARTS = 5
"""Times that an actor may die: a part that kills it must end the run. Retries are not counted, as Ray retries many
times before it notices that a node is lost."""


class Prepared(NamedTuple):
    """A part that has been read and tokenised."""

    part: Part
    tokenized: list[TokenizedText]
    columns: pa.Table
    rejects: list[Reject]


def run_locally(
    encoder: Encoder, plan: Plan, parts: Sequence[Part], folder: Path, *, on_error: OnError, advance: Advance
) -> Iterator[Done]:
    """Yield parts, in order, as soon as they are on disk.

    Args:
        encoder: the model.
        plan: the plan of the folder.
        parts: the parts to write.
        folder: where to write them.
        on_error: "stop" raises at the first row that cannot be embedded, once the parts before it are written.
        advance: progress.

    Raises:
        RowError: a row cannot be embedded.
        InputValueError, OSError, InferenceError: the input, the output or the model failed.
    """
    rows = RowReader(plan.files, plan.options.columns)
    prepared = (prepare(encoder, rows, part, plan.options, on_error=on_error) for part in parts)
    with ThreadPoolExecutor(1, "e5onnx-read") as reader, ThreadPoolExecutor(1, "e5onnx-write") as writer:
        writing = None
        reading = deque(reader.submit(next, prepared, None) for _ in range(_PARTS_AHEAD))
        try:
            while (ready := reading.popleft().result()) is not None:
                reading.append(reader.submit(next, prepared, None))
                vectors = embed(encoder, ready, advance)
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(write, folder, ready, vectors, plan.options)
        except (E5OnnxError, OSError):
            if writing is not None:  # the part before the one that failed is complete
                yield writing.result()
            raise
        if writing is not None:
            yield writing.result()


def run_on_ray(
    encoder: Encoder,
    plan: Plan,
    parts: Sequence[Part],
    folder: Path,
    *,
    on_error: OnError,
    advance: Advance,
    address: str | None,
) -> Iterator[Done]:
    """Yield parts as they are done, in any order.

    Args:
        encoder: its arguments make the encoders of the actors; its threads are the processors of each actor.
        plan: the plan of the folder, which the actors read there.
        parts: the parts to write.
        folder: where to write them.
        on_error: "stop" raises at the first row that cannot be embedded.
        advance: progress.
        address: of the cluster; by default one that runs here, or else a new one on this machine.

    Raises:
        RowError, InputValueError, OSError, InferenceError: as the local engine.
        ClusterError: Ray failed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("--engine ray needs Ray: pip install 'e5onnx[ray]'") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ClusterError(f"there is no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        arguments = (encoder.arguments(), plan.sha256, folder.absolute(), on_error)
        for done in _on_actors(arguments, parts, encoder.threads):
            advance(done.rows + len(done.rejects), done.tokens)
            yield done
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if is_ours:
            ray.shutdown()


def prepare(encoder: Encoder, reader: RowReader, part: Part, options: JobOptions, *, on_error: OnError) -> Prepared:
    """Read and tokenise a part.

    Raises:
        RowError: a row cannot be embedded, and `on_error` is "stop".
    """
    rows = reader.read(part)
    texts, too_long = [], {}
    for position, text in enumerate(rows.texts):
        try:
            texts.append(tokenized(encoder.tokenizer, text, options.prompt, options.truncate, _REMEDY))
        except TextTooLongError as error:
            too_long[position] = str(error)
    if too_long:
        rows.reject(too_long)
    if rows.rejects and on_error == "stop":
        raise rows.rejects[0].error()
    return Prepared(part, texts, rows.columns, rows.rejects)


def embed(encoder: Encoder, prepared: Prepared, advance: Advance) -> NDArray[np.float32]:
    """Return the vectors `[rows, dimension]` of a part."""
    vectors = np.empty((len(prepared.tokenized), encoder.dimension), np.float32)
    for start in range(0, len(vectors), _WINDOW):
        window = prepared.tokenized[start : start + _WINDOW]
        vectors[start : start + _WINDOW] = encoder.encode_tokenized(window, advance=advance)
    return vectors


def write(folder: Path, prepared: Prepared, vectors: NDArray[np.float32], options: JobOptions) -> Done:
    """Write a part, and return its note."""
    files = write_part(
        folder,
        part_name(prepared.part.number),
        prepared.columns,
        vectors,
        output_format=options.output_format,
        dtype=options.dtype,
        ranges=options.ranges,
        metadata=options.metadata(),
    )
    return Done(
        part=prepared.part.number,
        rows=len(prepared.tokenized),
        tokens=sum(len(text.ids) for text in prepared.tokenized),
        truncated=sum(text.is_cut for text in prepared.tokenized),
        rejects=tuple(prepared.rejects),
        files=files,
    )


def _check_reachable(address: str | None) -> None:
    """Raise ClusterError if nothing listens at HOST:PORT; Ray itself would try for minutes and then print pages."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"there is no Ray cluster at {address}: {in_one_line(error)}") from error


def _on_actors(arguments: tuple[Any, ...], parts: Sequence[Part], processors: int) -> Iterator[Done]:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    actors = sum(int(resources.get("CPU", 0)) // processors for resources in nodes)
    if actors < 1:
        raise InputValueError(f"no node of the cluster has {processors} processors for an actor: lower --threads")
    options = {"num_cpus": processors, "max_restarts": _MOST_RESTARTS, "max_task_retries": -1}
    actor = ray.remote(**options)(Worker)
    todo = iter(parts)
    running: dict[Any, Any] = {}  # the result to come -> its actor
    for worker in [actor.remote(*arguments) for _ in range(min(actors, len(parts)))] * _PARTS_AHEAD:
        running |= {worker.run.remote(part.number): worker for part in islice(todo, 1)}
    del worker  # an actor without references ends, and frees its place for one that lost its node
    try:
        while running:
            (ready,), _ = ray.wait(list(running))
            worker = running.pop(ready)
            running |= {worker.run.remote(part.number): worker for part in islice(todo, 1)}
            del worker
            result = ray.get(ready)
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        for worker in set(running.values()):
            ray.kill(worker)


class Worker:
    """A Ray actor: an encoder that embeds the parts it is given."""

    def __init__(self, model: dict[str, Any], sha256: str, folder: Path, on_error: OnError) -> None:
        import ray

        plan = read_plan(folder)
        if plan is None or plan.sha256 != sha256:
            raise ClusterError(f"{folder} is not the same folder on this node")
        self._plan, self._folder, self._on_error = plan, folder, on_error
        self._reader = RowReader(plan.files, plan.options.columns)
        held = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        self._encoder = Encoder(**model, threads=max(1, int(held)))
        if self._encoder.fingerprint != plan.options.fingerprint:
            raise ClusterError("this node has a different model")

    def run(self, number: int) -> Done | Exception:
        """Write a part. Errors are returned, as Ray would wrap those that are raised in pages of traces."""
        try:
            part, options = self._plan.parts[number], self._plan.options
            prepared = prepare(self._encoder, self._reader, part, options, on_error=self._on_error)
            return write(self._folder, prepared, embed(self._encoder, prepared, lambda *_: None), options)
        except (E5OnnxError, OSError) as error:
            return error
