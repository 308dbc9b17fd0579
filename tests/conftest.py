"""The models that the tests run on, exported once and kept under `build/` until the code that made them changes.

Where the export's packages are missing (the wheel check's environment), the folders must be there already.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY.parent / "shared/data"


def _build_folder() -> Path:
    sources = [
        *sorted((REPOSITORY / "export/e5onnx_export").glob("*.*")),
        REPOSITORY / "runtime/e5onnx/manifest.py",
        REPOSITORY / "runtime/e5onnx/model_folder.py",
    ]
    sources.append(REPOSITORY / "tests/checkpoints.py")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return REPOSITORY / "build/tests" / digest[:16]


# name -> how tests/checkpoints.py makes it
_CHECKPOINTS: dict[str, dict[str, Any]] = {
    "e5-small-v2": {"modules": ("Transformer", "Pooling", "Normalize"), "max_seq_length": 512},
    "tiny": {"layers": 1, "hidden_size": 48, "heads": 4},
}


_OPTIONS: dict[str, dict[str, Any]] = {"sample": {"precisions": ["fp32", "int8"], "portable": True}}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other processes that run tests from making the same folders meanwhile."""
    try:
        import fcntl
    except ImportError:  # Windows, where tests run in one process
        yield
        return
    _build_folder().parent.mkdir(parents=True, exist_ok=True)
    with (_build_folder().parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checkpoint(name: str) -> str:
    if name == "sample":
        return name
    folder = _build_folder() / "checkpoints" / name
    if not folder.is_dir():
        from checkpoints import make_checkpoint

        make_checkpoint(folder, **_CHECKPOINTS[name])
    return str(folder)


def _model(name: str) -> Path:
    folder = _build_folder() / "models" / name
    if not folder.is_dir():
        if importlib.util.find_spec("torch") is None:
            pytest.fail(f"{folder} is missing and cannot be exported here; run `make test`")
        from e5onnx_export import export_model

        for outdated in _build_folder().parent.glob("*"):
            if outdated.is_dir() and outdated != _build_folder():
                shutil.rmtree(outdated)
        export_model(_checkpoint(name), folder, **_OPTIONS.get(name, {"precisions": ["fp32"]}))
    return folder


@pytest.fixture(scope="session")
def e5_checkpoint() -> Path:
    """A checkpoint of E5-small's shape and name, 12 layers, with random weights."""
    with _alone():
        return Path(_checkpoint("e5-small-v2"))


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The checkpoint of :func:`tiny_model`."""
    with _alone():
        return Path(_checkpoint("tiny"))


@pytest.fixture(scope="session")
def sample_model() -> Path:
    """The model folder of the sample, all-MiniLM-L6-v2 with its real weights: fp32, int8, portable."""
    with _alone():
        return _model("sample")


@pytest.fixture(scope="session")
def e5_model() -> Path:
    """The model folder of :func:`e5_checkpoint`: prompts "query: " and "passage: ", at most 512 tokens."""
    with _alone():
        return _model("e5-small-v2")


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A model of one narrow layer and 512 tokens, for what needs many tokens and no meaning."""
    with _alone():
        return _model("tiny")


@pytest.fixture(scope="session")
def data() -> Path:
    """The evaluation data beside the checkout, which is not part of the project."""
    if not DATA.is_dir():
        pytest.skip(f"the evaluation data is not there ({DATA})")
    return DATA
