"""The checkpoints, and the same in the form that each program reads, under build/benchmarks.

Two checkpoints: one of E5-small-v2's shape with random weights, for speed, and the sample, all-MiniLM-L6-v2, whose
weights are real, for quality. Folders have the names of the models: exporters read the family of a model off it.

A form is kept until what made it changes: the code that makes it, the environment it is made in, or for e5onnx its own
sources. What is written into it is in prepare.py, which runs in that environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .environments import BUILD, REPOSITORY, PeerError, environment

_PREPARE = Path(__file__).with_name("prepare.py")
_CHECKPOINTS = REPOSITORY / "tests/checkpoints.py"
Checkpoint = Literal["e5-small-v2", "all-MiniLM-L6-v2"]
SHAPED: Checkpoint = "e5-small-v2"
SAMPLE: Checkpoint = "all-MiniLM-L6-v2"
_PREPARED_IN = {
    "onnx": "sentence-transformers-onnx",
    "openvino": "sentence-transformers-openvino",
    "ctranslate2": "ctranslate2",
    "gguf": "llama-cpp",
}


def checkpoint(name: Checkpoint) -> Path:
    """The checkpoint, written by a process of its own: this one stays small."""
    command = [sys.executable, str(_PREPARE), name, ""]
    variables = offline() | {"PYTHONPATH": str(REPOSITORY / "tests")}
    return _kept(BUILD / "checkpoints" / name, [_PREPARE, _CHECKPOINTS], command, variables)


def form(name: str, of: Checkpoint) -> Path:
    """A checkpoint in the form of that name; "" for the checkpoint itself."""
    source = checkpoint(of)
    if not name:
        return source
    made_of = [_PREPARE, _CHECKPOINTS]
    if name in _PREPARED_IN:
        python = environment(_PREPARED_IN[name])
        made_of.append(python.parents[1] / "requirements.txt")
    else:
        python = Path(sys.executable)
        sources = (path for root in ("runtime", "export") for path in (REPOSITORY / root).rglob("*.*"))
        made_of += sorted(path for path in sources if path.suffix in (".py", ".txt"))
    command = [str(python), str(_PREPARE), name, str(source)]
    return _kept(BUILD / "models" / name / of, made_of, command, offline())


def offline() -> dict[str, str]:
    """This process's environment variables, and no hub: whatever is not on this machine fails at once."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def log_of(name: str) -> Path:
    """Return the file for what a process writes, in a folder that exists."""
    log = BUILD / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return log


def last_line(log: Path) -> str:
    """Return the last line of a log, which says why a process ended, and where the rest is."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["it ended without a message"]
    return f"{lines[-1]} ({log.relative_to(REPOSITORY)})"


def _kept(folder: Path, made_of: Sequence[Path], command: list[str], variables: dict[str, str]) -> Path:
    """Return the folder; where it is missing, or the files it was made of have changed, it is made first."""
    stamp = folder.with_name(f"{folder.name}.stamp")
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest()
    if not folder.is_dir() or not stamp.is_file() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)
        _make(folder, command, variables)
        stamp.write_text(wanted)
    return folder


def _make(folder: Path, command: list[str], variables: dict[str, str]) -> None:
    """Run a command that takes an output folder as its last argument; the folder appears only when it is whole."""
    sys.stderr.write(f"making {folder.relative_to(REPOSITORY)}\n")
    partial = folder.parent / "partial" / folder.name
    for old in (folder, partial):
        shutil.rmtree(old, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    log = log_of(f"make-{folder.parent.name}-{folder.name}")
    with log.open("w") as output:
        # S603: a fixed command on paths of the harness
        made = subprocess.run([*command, str(partial)], stdout=output, stderr=output, env=variables)  # noqa: S603
    if made.returncode:
        raise PeerError(last_line(log))
    partial.rename(folder)
