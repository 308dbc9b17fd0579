"""The programs that are compared: what each runs on, and a handle on its worker process.

All run on one checkpoint. A program that cannot be installed, converted to, loaded or run is reported as failed with
the reason, and the others go on; without e5onnx, which the others are compared with, nothing does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from e5onnx.encoder import Precision, Provider

from .environments import PeerError, environment
from .forms import SHAPED, Checkpoint, form, last_line, log_of, offline

THREADS = 2
REFERENCE = "e5onnx"
Kind = Literal["query", "document", "raw"]
"""What a text is, which decides on its prefix; "raw" has none."""
Answer = TypeVar("Answer")

_PAUSE = 0.3
"""Seconds between two programs, in which the threads of the one before stop spinning."""
_WORKER = Path(__file__).with_name("worker.py")


class Peer(NamedTuple):
    """What a program runs on: environment, form of the checkpoint ("" for the checkpoint itself), and precision."""

    environment: str
    form: str
    precision: Literal["fp32", "bf16", "int8"] = "fp32"


PEERS: dict[str, Peer] = {
    "e5onnx": Peer("e5onnx", "e5onnx"),
    "e5onnx-int8": Peer("e5onnx", "e5onnx", "int8"),
    "e5onnx-kernels-int8": Peer("e5onnx", "e5onnx", "int8"),
    "e5onnx-kernels-bf16": Peer("e5onnx", "e5onnx", "bf16"),
    "e5onnx-openvino": Peer("openvino", "e5onnx", "bf16"),
    "e5onnx-openvino-cached": Peer("openvino", "e5onnx", "bf16"),
    "fastembed": Peer("fastembed", "onnx"),
    "chroma": Peer("chroma", "onnx"),
    "sentence-transformers-torch": Peer("sentence-transformers", ""),
    "sentence-transformers-torch-bf16": Peer("sentence-transformers", "", "bf16"),
    "sentence-transformers-onnx": Peer("sentence-transformers-onnx", "onnx"),
    "sentence-transformers-onnx-O3": Peer("sentence-transformers-onnx", "onnx"),
    "sentence-transformers-onnx-qint8": Peer("sentence-transformers-onnx", "onnx", "int8"),
    # bf16 where the CPU has it, which is OpenVINO's own choice
    "sentence-transformers-openvino": Peer("sentence-transformers-openvino", "openvino", "bf16"),
    "sentence-transformers-openvino-fp32": Peer("sentence-transformers-openvino", "openvino"),
    "ctranslate2": Peer("ctranslate2", "ctranslate2"),
    "ctranslate2-int8": Peer("ctranslate2", "ctranslate2", "int8"),
    "llama-cpp": Peer("llama-cpp", "gguf"),
    "llama-cpp-q8_0": Peer("llama-cpp", "gguf", "int8"),
    "infinity": Peer("infinity", ""),
    "openvino": Peer("openvino", "e5onnx"),
    "openvino-bf16": Peer("openvino", "e5onnx", "bf16"),
}
_OF_BATCHES = ("fastembed", "sentence-transformers", "ctranslate2", "llama-cpp")
BATCHED = tuple(name for name in PEERS if name.startswith(_OF_BATCHES))
"""Programs whose users choose the size of batches, or how many texts they hand over at a time."""
ENCODERS: dict[str, tuple[Precision, Provider]] = {
    "e5onnx": ("fp32", "cpu"),
    "e5onnx-int8": ("int8", "cpu"),
    "e5onnx-kernels-int8": ("int8", "kernels"),
    "e5onnx-kernels-bf16": ("bf16", "kernels"),
}
"""Precision and provider of the ways of e5onnx that run in the benchmark's own process or server."""


@dataclass(frozen=True)
class Encoded:
    """Seconds of every call, of all calls together, and the process's peak of resident memory so far."""

    seconds: list[float]
    elapsed: float
    peak_megabytes: float


@dataclass(frozen=True)
class Worker:
    """A program's process: it loads, says so, and takes requests."""

    name: str
    process: subprocess.Popen[str]
    log: Path

    def send(self, request: dict[str, Any]) -> None:
        """Write a request; the worker reads it when it has loaded."""
        if self.process.stdin is None:
            raise PeerError("the worker has no standard input")
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(last_line(self.log)) from error

    def receive(self) -> dict[str, Any]:
        """Wait for the next answer; the first one says that the program is loaded."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            self.process.wait()
            raise PeerError(last_line(self.log))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def encode(
        self, texts: Sequence[str], kind: Kind, *, each: bool = False, callers: int = 1, batch_size: int | None = None
    ) -> Encoded:
        """Time one call on all texts or, with `each`, a call on each text by one or several concurrent callers."""
        asked = {"texts": list(texts), "kind": kind, "each": each, "callers": callers, "batch_size": batch_size}
        self.send(asked)
        return Encoded(**self.receive())

    def vectors(self, texts: Sequence[str], kind: Kind) -> tuple[NDArray[np.float32], Encoded]:
        """Return the vectors of the texts, and the call that made them."""
        path = self.log.with_suffix(".npy")
        self.send({"texts": list(texts), "kind": kind, "each": False, "callers": 1, "save": str(path)})
        encoded = Encoded(**self.receive())
        return np.load(path), encoded

    def versions(self) -> dict[str, str]:
        """Return the versions of Python and of the packages that matter."""
        self.send({"versions": True})
        return self.receive()


@dataclass(frozen=True)
class Installation:
    """A program ready to be started: its environment's Python, and the model it reads."""

    name: str
    python: Path
    model: Path

    @contextmanager
    def launch(self) -> Iterator[Worker]:
        """Start the program; it has not loaded yet. It ends with the context."""
        log = log_of(self.name)
        command = [str(self.python), str(_WORKER), self.name, str(self.model), str(THREADS)]
        with log.open("w") as errors:
            # S603: a fixed command on paths of the harness
            process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=offline()
            )
        try:
            yield Worker(self.name, process, log)
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Programs:
    """The programs that run, what each said when it had loaded, and why others do not run."""

    workers: dict[str, Worker]
    loaded: dict[str, dict[str, Any]]
    failed: dict[str, str]

    def take_turns(self, request: Callable[[Worker], Answer]) -> dict[str, Answer]:
        """Ask one program after the other. One that fails is taken out; if that is e5onnx, its error is raised."""
        answers = {}
        for name, worker in list(self.workers.items()):
            time.sleep(_PAUSE)
            with attempt(name, self.failed):
                answers[name] = request(worker)
            if name in self.failed:
                del self.workers[name]
        return answers


@contextmanager
def attempt(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Note the reason if the program fails; only e5onnx's failure goes on."""
    try:
        yield
    except PeerError as error:
        if name == REFERENCE:
            raise
        failed[name] = str(error)
        sys.stderr.write(f"{name} failed: {error}\n")


def installed(name: str, checkpoint: Checkpoint = SHAPED) -> Installation:
    """Return a program, whose environment and model are made first where they are missing or outdated."""
    peer = PEERS[name]
    return Installation(name, environment(peer.environment), form(peer.form, checkpoint))


@contextmanager
def running(names: Sequence[str], checkpoint: Checkpoint = SHAPED) -> Iterator[Programs]:
    """Start the named programs side by side and wait until they have loaded."""
    programs = Programs({}, {}, {})
    with ExitStack() as processes:
        for name in names:
            with attempt(name, programs.failed):
                installation = installed(name, checkpoint)
                sys.stderr.write(f"loading {name}\n")
                worker = processes.enter_context(installation.launch())
                programs.loaded[name] = {**worker.receive(), "versions": worker.versions()}
                programs.workers[name] = worker
        yield programs


def e5onnx_model(checkpoint: Checkpoint = SHAPED) -> Path:
    """Return the model folder of e5onnx, exported first where it is missing."""
    return form(REFERENCE, checkpoint)
