"""The models that the tests run on, exported once and kept under `build/` until the code that made them changes.

Where the export's packages are missing (the wheel check's environment), the folders must be there already.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY.parent / "shared/data"


def _build_folder() -> Path:
    sources = [*sorted((REPOSITORY / "export").rglob("*.py")), REPOSITORY / "runtime/e5onnx/model_folder.py"]
    sources.append(REPOSITORY / "tests/checkpoints.py")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return REPOSITORY / "build/tests" / digest[:16]


def _exported(checkpoint: str, name: str) -> Path:
    folder = _build_folder() / "models" / name
    if not folder.is_dir():
        if importlib.util.find_spec("torch") is None:
            pytest.fail(f"{folder} is missing and cannot be exported here; run `make test`")
        from e5onnx_export import export_model

        export_model(checkpoint, folder)
    return folder


@pytest.fixture(scope="session")
def sample_model() -> Path:
    """The model folder of the sample, all-MiniLM-L6-v2 with its real weights."""
    return _exported("sample", "sample")


@pytest.fixture(scope="session")
def e5_checkpoint() -> Path:
    """A checkpoint of E5-small's shape and name, 12 layers, with random weights."""
    folder = _build_folder() / "checkpoints/e5-small-v2"
    if not folder.is_dir():
        from checkpoints import make_checkpoint

        make_checkpoint(folder, modules=("Transformer", "Pooling", "Normalize"), max_seq_length=512)
    return folder


@pytest.fixture(scope="session")
def e5_model(request: pytest.FixtureRequest) -> Path:
    """The model folder of :func:`e5_checkpoint`: prompts "query: " and "passage: ", at most 512 tokens."""
    folder = _build_folder() / "models/e5-small-v2"
    if folder.is_dir():
        return folder
    return _exported(str(request.getfixturevalue("e5_checkpoint")), "e5-small-v2")


@pytest.fixture(scope="session")
def data() -> Path:
    """The evaluation data beside the checkout, which is not part of the project."""
    if not DATA.is_dir():
        pytest.skip(f"the evaluation data is not there ({DATA})")
    return DATA
