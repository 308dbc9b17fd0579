"""Virtual environments, one per set of packages that can live together, made with pip under build/benchmarks/venvs.

An environment is kept until its requirements change (for the checkout itself: until its sources change).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
BUILD = REPOSITORY / "build/benchmarks"

# Named beside every package that needs torch: without an upper bound pip may fetch gigabytes of CUDA libraries.
_TORCH = "torch>=2.6,<2.14"

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "e5onnx": (str(REPOSITORY), str(REPOSITORY / "kernels")),
    "sentence-transformers": ("sentence-transformers>=5.1", _TORCH),
    "sentence-transformers-onnx": ("sentence-transformers[onnx]>=5.1", _TORCH),
    "sentence-transformers-openvino": ("sentence-transformers[openvino]>=5.1", _TORCH),
    "fastembed": ("fastembed>=0.7",),
    "chroma": ("chromadb>=1.1",),
    "ctranslate2": ("ctranslate2>=4.6", "transformers>=4.49", _TORCH),
    # built from source, which takes some ten minutes on 2 cores
    "llama-cpp": ("llama-cpp-python>=0.3.23", "gguf", "safetensors", "tokenizers"),
    "server": (f"{REPOSITORY}[serve]", str(REPOSITORY / "kernels")),
    "infinity": ("infinity-emb[server,torch]", _TORCH),
    "openvino": (str(REPOSITORY), "openvino>=2026.0"),
}


# PyPI's torchvision, which comes with optimum-intel, does not load beside a CPU build of torch, and transformers then
# does not load either. Text needs none of it.
_REMOVED = {"sentence-transformers-openvino": ("torchvision",)}


class PeerError(RuntimeError):
    """A program could not be installed, prepared, loaded or run; the message is the last line that was written."""


def environment(name: str) -> Path:
    """Return the Python of an environment, which is made first where it is missing or outdated."""
    folder = BUILD / "venvs" / name
    python, stamp = folder / "bin/python", folder / "requirements.txt"
    requirements = "\n".join((sys.version, *REQUIREMENTS[name], *_checkout_digest(name)))
    if stamp.is_file() and stamp.read_text() == requirements:
        return python
    sys.stderr.write(f"installing {name}: {' '.join(REQUIREMENTS[name])}\n")
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name]])
    if name in _REMOVED:
        _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *_REMOVED[name]])
    stamp.write_text(requirements)
    return python


def _checkout_digest(name: str) -> tuple[str, ...]:
    if not any(requirement.startswith(str(REPOSITORY)) for requirement in REQUIREMENTS[name]):
        return ()
    sources = [REPOSITORY / "pyproject.toml", *sorted((REPOSITORY / "runtime").rglob("*.py"))]
    sources += sorted((REPOSITORY / "kernels").rglob("*.*"))
    return (hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest(),)


def _run(command: list[str]) -> None:
    # S603: the command is made of constants and paths of this file
    finished = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if finished.returncode:
        lines = (finished.stderr or finished.stdout).strip().splitlines() or ["no message"]
        raise PeerError(f"{' '.join(command[1:4])}: {lines[-1]}")
