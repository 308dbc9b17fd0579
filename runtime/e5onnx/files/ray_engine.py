"""Many machines: the parts of a plan on a pool of Ray actors, one Encoder an actor.

Input, model folder and output folder must be at the same paths on every node (a shared file system; the model may be a
hub id), and e5onnx installed there. An actor has as many threads as it holds processors of the cluster. When a node is
lost, Ray gives its parts to others; a part that was written twice has the same bytes.
"""

from __future__ import annotations

import json
import logging
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..encoder import Encoder
from ..errors import ClusterError, E5OnnxError, InputValueError, JobChangedError, MissingDependencyError, RowError
from .job import Done, Plan, read_plan
from .local import OnError, embed, prepare, write
from .plan import Part
from .rows import RowReader

_CONNECT_SECONDS = 5.0
_TASKS_AHEAD = 2
"""Parts handed to an actor: it begins the next one without asking."""


def run_parts(
    model: Mapping[str, Any],
    plan: Plan,
    parts: Sequence[Part],
    folder: Path,
    *,
    on_error: OnError,
    address: str | None,
    processors: int,
) -> Iterator[Done]:
    """Yield parts as they are done, in any order.

    Args:
        model: arguments of :class:`Encoder` save `threads`.
        plan: the folder's, which the actors read there.
        parts: what to do.
        folder: where they go.
        on_error: "stop" raises at the first row that cannot be embedded.
        address: of the cluster; None for one that is running here, or else one of this machine's own.
        processors: that one actor holds.

    Raises:
        RowError, InputValueError, OSError, InferenceError: as from the local engine.
        ClusterError: Ray failed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("--engine ray needs Ray: pip install 'e5onnx[ray]'") from error
    begun_here = not ray.is_initialized()
    if begun_here:
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ClusterError(f"there is no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield from _on_actors(model, plan.sha256, parts, folder, on_error, processors)
    finally:
        if begun_here:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise ClusterError if nothing listens at HOST:PORT: Ray itself would try for minutes, and tell in pages."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"there is no Ray cluster at {address}: {error}") from error


def _on_actors(
    model: Mapping[str, Any],
    plan: str,
    parts: Sequence[Part],
    folder: Path,
    on_error: OnError,
    processors: int,
) -> Iterator[Done]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    actors = int(ray.cluster_resources().get("CPU", 0)) // processors
    if actors < 1:
        raise InputValueError(f"no node of the cluster has {processors} processors for an actor: lower --threads")
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # or it reports on every run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its defaults are deprecated by itself
        context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # the work is in the actors: rows of these data sets are the numbers of parts
    numbers = ray.data.from_items([{"part": part.number} for part in parts], override_num_blocks=len(parts))
    done = numbers.map_batches(
        _Worker,
        fn_constructor_args=(dict(model), plan, folder.absolute(), on_error),
        batch_size=1,
        num_cpus=processors,
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=min(actors, len(parts)),
            initial_size=min(actors, len(parts)),
            max_tasks_in_flight_per_actor=_TASKS_AHEAD,
        ),
    )
    try:
        for row in done.iter_rows():
            if row["error"] is not None:
                raise _raised(row["error"])
            yield Done.from_json(json.loads(row["done"]))
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error


class _Worker:
    """An actor: one encoder, which runs the parts it is given."""

    def __init__(
        self,
        model: dict[str, Any],
        sha256: str,
        folder: Path,
        on_error: OnError,
    ) -> None:
        import ray

        plan = read_plan(folder)
        if plan is None or plan.sha256 != sha256:
            raise ClusterError(f"{folder} is not the same folder on this node")
        self._parts, self._settings = plan.parts, plan.settings
        self._reader = RowReader(plan.files, self._settings.columns)
        self._folder, self._on_error = folder, on_error
        held = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        self._encoder = Encoder(**model, threads=max(1, int(held)))
        if self._encoder.fingerprint != self._settings.fingerprint:
            raise ClusterError("the model is another one on this node")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        dones: list[str | None] = []
        errors: list[str | None] = []
        for number in batch["part"]:
            try:
                part = self._parts[int(number)]
                prepared = prepare(self._encoder, self._reader, part, self._settings, on_error=self._on_error)
                done = write(self._folder, embed(self._encoder, prepared, lambda rows, tokens: None), self._settings)
            except (E5OnnxError, OSError) as error:
                # told as a value: Ray would retry it, and wrap it in pages of traces
                dones.append(None)
                errors.append(_told(error))
            else:
                dones.append(json.dumps(asdict(done)))
                errors.append(None)
        return {"done": np.array(dones, object), "error": np.array(errors, object)}


def _told(error: Exception) -> str:
    return json.dumps([type(error).__name__, str(error)])  # a file's name need not be UTF-8


def _raised(told: str) -> Exception:
    name, message = json.loads(told)
    kinds: dict[str, type[E5OnnxError]] = {each.__name__: each for each in (RowError, JobChangedError, InputValueError)}
    return kinds.get(name, ClusterError)(message)
