"""The programs that are compared: what each runs on, and a handle on its worker process.

All run on one checkpoint of E5-small-v2's shape with seeded random weights: its speed is that of the real one. A
program that cannot be installed, converted to or loaded is reported as failed with the reason, and the others go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .environments import BUILD, REPOSITORY, InstallError, environment

THREADS = 2
REFERENCE = "e5onnx"
Kind = Literal["query", "document"]

# program -> (environment, form of the checkpoint that prepare.py makes; "" for the checkpoint itself)
PEERS: dict[str, tuple[str, str]] = {
    "e5onnx": ("e5onnx", "e5onnx"),
    "fastembed": ("fastembed", "onnx"),
    "sentence-transformers-torch": ("sentence-transformers", ""),
    "sentence-transformers-torch-bf16": ("sentence-transformers", ""),
    "sentence-transformers-onnx": ("sentence-transformers-onnx", "onnx"),
    "sentence-transformers-onnx-O3": ("sentence-transformers-onnx", "onnx"),
    "sentence-transformers-openvino": ("sentence-transformers-openvino", "openvino"),
    "sentence-transformers-openvino-fp32": ("sentence-transformers-openvino", "openvino"),
    "ctranslate2": ("ctranslate2", "ctranslate2"),
}

_PREPARED_IN = {
    "onnx": "sentence-transformers-onnx",
    "openvino": "sentence-transformers-openvino",
    "ctranslate2": "ctranslate2",
}


_PREPARE = Path(__file__).with_name("prepare.py")


class PeerError(RuntimeError):
    """A program could not be prepared, loaded or run; the message is the last line that it wrote."""


@dataclass(frozen=True)
class Worker:
    """A program that is loaded and waits for requests."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    loaded: dict[str, Any]

    def encode(self, texts: Sequence[str], kind: Kind, *, each: bool = False) -> list[float]:
        """Return the seconds of one call on all texts or, with `each`, of one call on each text by itself."""
        answer = _ask(self.process, self.log, {"texts": list(texts), "kind": kind, "each": each})
        seconds: list[float] = answer["seconds"]
        return seconds

    def vectors(self, texts: Sequence[str], kind: Kind) -> tuple[NDArray[np.float32], float]:
        """Return the vectors of the texts, and the process's peak of resident memory so far in megabytes."""
        path = self.log.with_suffix(".npy")
        answer = _ask(self.process, self.log, {"texts": list(texts), "kind": kind, "each": False, "save": str(path)})
        return np.load(path), answer["peak_megabytes"]


@contextmanager
def running(names: Sequence[str]) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """Start the named programs; yield the workers, and for each program that does not run the reason."""
    workers: dict[str, Worker] = {}
    failed: dict[str, str] = {}
    try:
        for name in names:
            try:
                workers[name] = _start(name)
            except (InstallError, PeerError) as error:
                failed[name] = str(error)
                sys.stderr.write(f"{name} failed: {error}\n")
        yield workers, failed
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()


def e5onnx_model() -> Path:
    """Return the model folder of e5onnx, exported first where it is missing."""
    return _form("e5onnx")


def _start(name: str) -> Worker:
    environment_name, form = PEERS[name]
    python = environment(environment_name)
    model = _form(form) if form else _checkpoint()
    log = BUILD / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(Path(__file__).with_name("worker.py")), name, str(model), str(THREADS)]
    sys.stderr.write(f"loading {name}\n")
    with log.open("w") as errors:
        # S603: a fixed command on paths of the harness
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=_offline()
        )
    return Worker(name, process, log, _answer(process, log))


def _ask(process: subprocess.Popen[str], log: Path, request: dict[str, Any]) -> dict[str, Any]:
    if process.stdin is None:
        raise PeerError("the worker has no standard input")
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    except BrokenPipeError as error:
        raise PeerError(_last_line(log)) from error
    return _answer(process, log)


def _answer(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        process.wait()
        raise PeerError(_last_line(log))
    answer: dict[str, Any] = json.loads(line)
    return answer


def _checkpoint() -> Path:
    """The checkpoint of E5-small-v2's shape that the tests make, made by a process of its own: this one stays small."""
    folder = BUILD / "checkpoints/e5-small-v2"
    if not folder.is_dir():
        python_path = {"PYTHONPATH": str(REPOSITORY / "tests")}
        _make(folder, "checkpoint", [sys.executable, str(_PREPARE), "checkpoint", ""], _offline() | python_path)
    return folder


def _form(form: str) -> Path:
    """The checkpoint in the form that a program reads; e5onnx's is made again whenever the code changes."""
    checkpoint = _checkpoint()
    folder = BUILD / "models" / form / "e5-small-v2"
    stamp = folder.parent / "stamp"
    wanted = _export_digest() if form == "e5onnx" else ""
    if not folder.is_dir() or not stamp.is_file() or stamp.read_text() != wanted:
        python = environment(_PREPARED_IN[form]) if form in _PREPARED_IN else Path(sys.executable)
        _make(folder, form, [str(python), str(_PREPARE), form, str(checkpoint)], _offline())
        stamp.write_text(wanted)
    return folder


def _make(folder: Path, name: str, command: list[str], variables: dict[str, str]) -> None:
    """Run a command that takes an output folder as its last argument; the folder appears only when it is whole."""
    sys.stderr.write(f"making {folder.relative_to(REPOSITORY)}\n")
    partial = folder.parent / "partial" / folder.name  # exporters read the family of a model off its folder's name
    for old in (folder, partial):
        shutil.rmtree(old, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    log = BUILD / "logs" / f"make-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        # S603: a fixed command on paths of the harness
        made = subprocess.run([*command, str(partial)], stdout=output, stderr=output, env=variables)  # noqa: S603
    if made.returncode:
        raise PeerError(_last_line(log))
    partial.rename(folder)


def _export_digest() -> str:
    sources = sorted(path for root in ("runtime", "export") for path in (REPOSITORY / root).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _offline() -> dict[str, str]:
    """This process's environment variables, and no hub: whatever is not on this machine fails at once."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["it ended without a message"]
    return f"{lines[-1]} ({log.relative_to(REPOSITORY)})"
