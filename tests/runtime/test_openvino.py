"""`provider="openvino"` on the real OpenVINO, and what is said where it is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from e5onnx import Encoder, InputValueError
from e5onnx.engine import Output
from e5onnx.errors import MissingDependencyError
from texts import TEXTS

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="OpenVINO is not installed")


@pytest.mark.skipif(HAS_OPENVINO, reason="OpenVINO is installed")
def test_without_openvino_the_error_says_what_to_install(sample_model: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'e5onnx\[openvino\]'"):
        Encoder(sample_model, provider="openvino")


def test_a_folder_without_the_portable_graph_says_how_to_make_it(e5_model: Path) -> None:
    with pytest.raises(InputValueError, match=r"needs the portable graph.*`e5onnx portable MODEL`"):
        Encoder(e5_model, provider="openvino")


@pytest.fixture(scope="module")
def fp32(sample_model: Path) -> Encoder:
    return Encoder(sample_model, provider="openvino", precision="fp32", threads=2)


@needs_openvino
def test_fp32_gives_the_vectors_of_the_default_provider(fp32: Encoder, sample_model: Path) -> None:
    expected = Encoder(sample_model)
    outputs: tuple[Output, ...] = ("sentence_embedding", "pooled_embedding")
    for output in outputs:
        vectors = fp32.encode(TEXTS, output_value=output)
        np.testing.assert_allclose(vectors, expected.encode(TEXTS, output_value=output), rtol=0, atol=1e-5)
    alone = np.stack([fp32.encode(text) for text in TEXTS])
    np.testing.assert_allclose(alone, fp32.encode(TEXTS), rtol=0, atol=1e-6)
    assert fp32.precision == "fp32"
    assert fp32.fingerprint != expected.fingerprint


@needs_openvino
def test_bf16_runs_where_the_processor_has_it_and_is_refused_elsewhere(fp32: Encoder, sample_model: Path) -> None:
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(InputValueError, match="has no bfloat16"):
            Encoder(sample_model, provider="openvino", precision="bf16")
        assert Encoder(sample_model, provider="openvino").precision == "fp32"
        return
    encoder = Encoder(sample_model, provider="openvino")
    assert encoder.precision == "bf16"
    assert encoder.fingerprint != fp32.fingerprint
    vectors, exact = encoder.encode(TEXTS), fp32.encode(TEXTS)
    cosines = np.einsum("ij,ij->i", vectors, exact) / np.linalg.norm(vectors, axis=1)
    assert 0.999 < cosines.min() < 0.9999999  # it is not float32 after all
    assert cosines.mean() > 0.9999


@needs_openvino
def test_the_command_line_takes_it(fp32: Encoder, sample_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    command = [sys.executable, "-m", "e5onnx", "embed", str(sample_model), "--output", str(output)]
    options = ["--provider", "openvino", "--precision", "fp32", "--compile-cache", str(tmp_path / "cache")]
    subprocess.run([*command, *options], input=b"a text\nanother one\n", check=True, timeout=300)
    np.testing.assert_allclose(np.load(output), fp32.encode(["a text", "another one"], prompt=""), rtol=0, atol=1e-6)
    assert any((tmp_path / "cache").iterdir())


@needs_openvino
def test_a_version_with_wrong_vectors_is_refused(sample_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvino.__version__", "2025.4.1-20426-82bbf0292c5-releases/2025/4")
    with pytest.raises(MissingDependencyError, match=r"too old.*--upgrade"):
        Encoder(sample_model, provider="openvino")


@needs_openvino
def test_threads_share_it_and_it_can_be_pickled(fp32: Encoder) -> None:
    expected = fp32.encode(TEXTS)
    with ThreadPoolExecutor(4) as threads:
        for vectors in threads.map(fp32.encode, [TEXTS] * 8):
            np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)
    copy = pickle.loads(pickle.dumps(fp32))
    assert (copy.provider, copy.precision, copy.threads) == ("openvino", "fp32", 2)
    np.testing.assert_allclose(copy.encode(TEXTS), expected, rtol=0, atol=1e-6)


@needs_openvino
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_it_works_after_a_fork(sample_model: Path) -> None:
    code = """
import os, sys
from e5onnx import Encoder
encoder = Encoder(sys.argv[1], provider="openvino", precision="fp32", threads=2)
before = encoder.encode(["a text", "another one"])
child = os.fork()
if child == 0:
    os._exit(0 if abs(encoder.encode(["a text", "another one"]) - before).max() < 1e-6 else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code, sample_model], check=True, timeout=120)


@needs_openvino
def test_only_the_named_folder_is_written_and_nobody_is_contacted(sample_model: Path, tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    code = """
import json, sys
events = []
watched = ("socket.", "subprocess.")
sys.addaudithook(lambda event, arguments: events.append(event) if event.startswith(watched) else None)
from e5onnx import Encoder
Encoder(sys.argv[1], provider="openvino", compile_cache=sys.argv[2]).encode("text")
print(json.dumps(events))
"""
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    before = {path: path.stat().st_mtime_ns for path in sample_model.rglob("*")}
    finished = subprocess.run(
        [sys.executable, "-c", code, sample_model, cache],
        env=environment,
        cwd=home,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert json.loads(finished.stdout) == []
    assert list(home.rglob("*")) == []
    assert {path: path.stat().st_mtime_ns for path in sample_model.rglob("*")} == before
    assert any(cache.iterdir())
