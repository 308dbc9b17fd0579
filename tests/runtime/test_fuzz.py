"""Damaged and hostile content of every file, and of every input: only the documented errors ever come out.

The checksums are made to fit, as otherwise they stop everything that follows.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e5onnx import E5OnnxError, Encoder, InputTypeError, InputValueError, ModelFolderError
from e5onnx.cli import main
from e5onnx.manifest import MANIFEST, _digest
from e5onnx.model_folder import ModelFolder
from folders import put_file
from texts import TEXTS

fuzz = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
_NUMBERS = st.integers() | st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**30, 10**400]) | st.floats()
_TEXT = st.text() | st.sampled_from(
    ["", "\0", "\ud800", "..", "/etc/passwd", "onnx/model.onnx", "tokenizer.json", "[UNK]", "int8", "query"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose manifest and tokenizer every example writes anew."""
    return shutil.copytree(tiny_model, tmp_path_factory.mktemp("fuzz") / "model")


def places(content: Any, path: tuple[Any, ...] = (), limit: int = 40) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a JSON document, of large objects those of the first few only."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    return [path, *(place for key in list(keys)[:limit] for place in places(content[key], (*path, key), limit))]


def changed(content: Any, path: tuple[Any, ...], value: Any, delete: bool) -> Any:
    """Return a copy with the value at a path replaced, or taken out."""
    if not path:
        return value
    result = copy.copy(content)
    if len(path) == 1 and delete:
        del result[path[0]]
    else:
        result[path[0]] = changed(content[path[0]], path[1:], value, delete)
    return result


def _like(content: Any, path: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """Return values to put at a path, half of them of the type that is there."""
    for key in path:
        content = content[key]
    if isinstance(content, str):
        return _JSON | _TEXT
    if isinstance(content, (bool, type(None))):
        return _JSON | st.booleans()
    if isinstance(content, (int, float)):
        return _JSON | _NUMBERS
    return _JSON


def only_documented_errors(use: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(E5OnnxError):
            use()


def use(folder: Path) -> None:
    encoder = Encoder(folder, threads=1)
    assert len(encoder.encode(TEXTS)) == len(encoder.encode_query(TEXTS)) == len(TEXTS)


@fuzz
@given(st.data())
def test_any_change_of_the_manifest(folder: Path, tiny_model: Path, data: st.DataObject) -> None:
    content = json.loads((tiny_model / MANIFEST).read_text())
    del content["checksum"]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(content)[1:]))
        content = changed(content, path, data.draw(_like(content, path)), data.draw(st.booleans()))
    content["checksum"] = _digest(content)
    (folder / MANIFEST).write_text(json.dumps(content))
    only_documented_errors(lambda: use(folder))
    only_documented_errors(lambda: ModelFolder.open(folder).verify())
    assert main(["info", str(folder)]) in (0, 1)


def test_a_number_too_large_for_a_float(folder: Path, tiny_model: Path) -> None:
    content = json.loads((tiny_model / MANIFEST).read_text())
    del content["checksum"]
    content["graphs"][0]["parity"]["numpy_max_abs_difference"] = 10**400
    content["checksum"] = _digest(content)
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match="a whole number of 1329 bits"):
        ModelFolder.open(folder)


@fuzz
@given(st.data())
def test_any_change_of_the_tokenizer(folder: Path, tiny_model: Path, data: st.DataObject) -> None:
    content = json.loads((tiny_model / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]  # a tenth is enough, and loads in a tenth of the time
    content["model"]["vocab"] = {token: number for token, number in vocabulary.items() if number < 3000}
    path = data.draw(st.sampled_from(places(content)))
    content = changed(content, path, data.draw(_like(content, path)), data.draw(st.booleans()))
    put_file(folder, tiny_model, "tokenizer.json", json.dumps(content).encode())
    only_documented_errors(lambda: use(folder))


# onnxruntime is native code, which a damaged graph might crash: in a process of its own
_GRAPHS = """
import random, sys, warnings
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from e5onnx import E5OnnxError
from folders import put_file
from test_fuzz import use
folder, original = Path(sys.argv[1]), Path(sys.argv[2])
warnings.simplefilter("ignore")
good = (original / "onnx/model.onnx").read_bytes()
random.seed(0)
for _ in range(120):
    damaged = bytearray(good)
    for _ in range(random.choice([1, 1, 20])):
        damaged[random.randrange(len(good))] = random.randrange(256)
    end = random.choice([None, None, random.randrange(len(good))])
    put_file(folder, original, "onnx/model.onnx", bytes(damaged[:end]))
    try:
        use(folder)
    except E5OnnxError:
        pass
"""


def test_damaged_graphs(folder: Path, tiny_model: Path) -> None:
    here = Path(__file__)
    paths = [str(here.parent), str(here.parents[1])]
    command = [sys.executable, "-c", _GRAPHS, str(folder), str(tiny_model), *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


_ANYTHING: st.SearchStrategy[Any] = (
    st.text() | st.text(st.characters(categories=["Cs", "Cc", "Co", "So"])) | st.integers() | st.binary()
)
_ANYTHING = _ANYTHING | st.none() | st.floats() | st.lists(st.text(), max_size=2)


@fuzz
@given(_ANYTHING | st.lists(_ANYTHING, max_size=6) | st.dictionaries(st.text(), st.text(), max_size=2))
def test_any_input(tiny_encoder: Encoder, inputs: Any) -> None:
    try:
        vectors = tiny_encoder.encode(inputs, normalize_embeddings=True)
    except (InputTypeError, InputValueError):
        return
    assert vectors.shape == ((48,) if isinstance(inputs, str) else (len(inputs), 48))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def tiny_encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, threads=1)
