"""`provider="kernels"` on the built library, and what is said where it is missing or of no use.

The C++ itself is tested in `tests/kernels`.
"""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from e5onnx import Encoder, InputValueError, MissingDependencyError, ModelFolderError
from e5onnx.engine import Output
from e5onnx.manifest import MANIFEST, Manifest
from e5onnx.model_folder import ModelFolder
from helpers import near
from imports import REPOSITORY
from texts import TEXTS

IS_INSTALLED = importlib.util.find_spec("e5onnx_kernels") is not None
_EMULATOR = shutil.which("qemu-x86_64")
Precision = Literal["bf16", "int8"]
# smallest and mean cosine to fp32
COSINES: dict[str, tuple[float, float]] = {"bf16": (0.9999, 0.99995), "int8": (0.993, 0.9975)}

needs_package = pytest.mark.skipif(not IS_INSTALLED, reason="e5onnx-kernels is not installed")


def _needs(precision: Precision) -> pytest.MarkDecorator:
    if not IS_INSTALLED:
        return needs_package
    import e5onnx_kernels

    reason = f"e5onnx-kernels has no {precision} for this processor"
    return pytest.mark.skipif(not e5onnx_kernels.supports(precision), reason=reason)


PRECISIONS = [pytest.param(precision, marks=_needs(precision)) for precision in ("bf16", "int8")]
needs_int8 = _needs("int8")


@pytest.fixture(scope="module", params=PRECISIONS)
def encoder(request: pytest.FixtureRequest, sample_model: Path) -> Encoder:
    return Encoder(sample_model, provider="kernels", precision=request.param, threads=2)


def cosines(vectors: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    return np.asarray(np.einsum("ij,ij->i", vectors, expected) / lengths)


def linked(model: Path, folder: Path, manifest: Manifest) -> Path:
    """Return a folder with the files of a model and another manifest."""
    shutil.copytree(model, folder, copy_function=os.link)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


@needs_package
def test_examples_of_the_package_run() -> None:
    import e5onnx_kernels

    result = doctest.testmod(e5onnx_kernels)
    assert result.attempted > result.failed == 0


# Vectors


def test_vectors_are_near_those_of_fp32_and_are_not_the_stock_kernels(encoder: Encoder, sample_model: Path) -> None:
    exact = Encoder(sample_model)
    least, mean = COSINES[encoder.precision]
    outputs: tuple[Output, ...] = ("sentence_embedding", "pooled_embedding")
    for output in outputs:
        vectors = encoder.encode(TEXTS, output_value=output)
        expected = exact.encode(TEXTS, output_value=output)
        found = cosines(vectors, expected)
        assert found.min() > least
        assert found.mean() > mean
        lengths, expected_lengths = (np.linalg.norm(each, axis=1) for each in (vectors, expected))
        np.testing.assert_allclose(lengths, expected_lengths, rtol=1e-6 if output == "sentence_embedding" else 0.1)
    if encoder.precision == "int8":
        exact = Encoder(sample_model, precision="int8")
    assert np.abs(encoder.encode(TEXTS) - exact.encode(TEXTS)).max() > 1e-5


@pytest.mark.parametrize("precision", PRECISIONS[:1])
def test_twelve_layers_and_the_most_tokens(e5_model: Path, precision: Precision) -> None:
    texts = [*TEXTS, "one two three " * 300]
    exact = Encoder(e5_model)
    encoder = Encoder(e5_model, provider="kernels", precision=precision)
    with pytest.warns(UserWarning, match="512"):
        vectors, expected = encoder.encode_document(texts), exact.encode_document(texts)
    assert cosines(vectors, expected).min() > 0.9998  # random weights are far from each other


def test_vectors_depend_on_the_text_alone(encoder: Encoder, sample_model: Path) -> None:
    expected = encoder.encode(TEXTS)
    near(np.stack([encoder.encode(text) for text in TEXTS]), expected, 1e-6)
    near(encoder.encode(TEXTS[::-1])[::-1], expected, 1e-6)
    near(encoder.encode(TEXTS * 20), np.tile(expected, (20, 1)), 1e-6)
    near(encoder.encode(TEXTS, batch_size=3), expected, 1e-6)
    for threads in (1, 3):
        other = Encoder(**encoder.arguments(), threads=threads)
        near(other.encode(TEXTS), expected, 1e-6)


# An encoder of this provider


def test_threads_share_it(encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)
    orders = [np.random.default_rng(seed).permutation(len(TEXTS)) for seed in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(encoder.encode, ([TEXTS[place] for place in order] for order in orders))
        for order, vectors in zip(orders, found, strict=True):
            near(vectors, expected[order], 1e-6)


def test_it_can_be_pickled_and_made_in_any_thread(encoder: Encoder) -> None:
    copy = pickle.loads(pickle.dumps(encoder))
    assert (copy.provider, copy.precision, copy.threads) == ("kernels", encoder.precision, 2)
    assert (copy.fingerprint, repr(copy)) == (encoder.fingerprint, repr(encoder))
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(Encoder, **encoder.arguments()).result()
    for each in (copy, other):
        near(each.encode(TEXTS), encoder.encode(TEXTS), 1e-6)


@needs_int8
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_it_works_after_a_fork(sample_model: Path) -> None:
    code = """
import os, sys
from e5onnx import Encoder
encoder = Encoder(sys.argv[1], provider="kernels", precision="int8", threads=2)
before = encoder.encode(["a text", "another one"])
child = os.fork()
if child == 0:
    os._exit(0 if abs(encoder.encode(["a text", "another one"]) - before).max() < 1e-6 else 3)
assert os.waitpid(child, 0)[1] == 0
assert abs(encoder.encode(["a text", "another one"]) - before).max() < 1e-6
"""
    subprocess.run([sys.executable, "-c", code, sample_model], check=True, timeout=120)


def test_fingerprints_of_providers_differ(encoder: Encoder, sample_model: Path) -> None:
    manifest = ModelFolder.open(sample_model).manifest
    others = [("fp32", "cpu"), ("int8", "cpu"), ("fp32", "openvino"), ("bf16", "openvino")]
    others += [(precision, "kernels") for precision in COSINES if precision != encoder.precision]
    assert encoder.fingerprint not in {manifest.fingerprint(precision, provider) for precision, provider in others}


@pytest.mark.parametrize("precision", PRECISIONS[:1])
def test_bf16_is_the_default(sample_model: Path, precision: Precision) -> None:
    encoder = Encoder(sample_model, provider="kernels")
    assert (encoder.precision, encoder.provider) == (precision, "kernels")


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp32"}, "runs bf16 or int8, not fp32: use provider cpu"),
        ({"precision": "fp16"}, "runs bf16 or int8, not fp16$"),
        ({"compile_cache": "anywhere"}, "a compile cache needs provider openvino"),
    ],
)
def test_what_it_does_not_have_is_refused(sample_model: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputValueError, match=message):
        Encoder(sample_model, provider="kernels", **arguments)  # type: ignore[arg-type]


def test_without_the_package_the_error_says_what_to_install(
    sample_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "e5onnx_kernels", None)
    with pytest.raises(MissingDependencyError, match=r"needs e5onnx-kernels: pip install 'e5onnx\[kernels\]'"):
        Encoder(sample_model, provider="kernels")


def test_a_damaged_library_is_to_be_installed_again(
    sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "e5onnx_kernels"
    package.mkdir()
    shutil.copy(REPOSITORY / "kernels/e5onnx_kernels/__init__.py", package)
    for suffix in ("so", "dylib"):
        (package / f"libe5onnx_kernels.{suffix}").write_bytes(b"damaged")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "e5onnx_kernels", raising=False)
    with pytest.raises(MissingDependencyError, match=r"cannot be loaded \(.+\): pip install --force-reinstall"):
        Encoder(sample_model, provider="kernels")
    monkeypatch.delitem(sys.modules, "e5onnx_kernels")


@needs_int8
def test_a_graph_without_the_node_is_refused(sample_model: Path, tmp_path: Path) -> None:
    """The portable graph is one: its functions are resolved, as in the graphs of optimum."""
    manifest = ModelFolder.open(sample_model).manifest
    graph = next(graph for graph in manifest.graphs if graph.portable)
    graphs = (replace(graph, portable=False, precision="int8"),)
    folder = linked(sample_model, tmp_path / "model", replace(manifest, graphs=graphs))
    with pytest.raises(ModelFolderError, match=r"model_portable\.onnx has no node BertEncoder.*use provider cpu"):
        Encoder(folder, provider="kernels", precision="int8")


@pytest.mark.parametrize("precision", PRECISIONS[:1])
def test_a_size_that_is_not_covered_is_refused_by_name(tiny_model: Path, precision: Precision) -> None:
    with pytest.raises(ModelFolderError, match=r"provider kernels cannot run .+model\.onnx: .*48.*; use provider cpu"):
        Encoder(tiny_model, provider="kernels", precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS[:1])
def test_a_folder_of_the_other_precision_says_which(sample_model: Path, tmp_path: Path, precision: Precision) -> None:
    manifest = ModelFolder.open(sample_model).manifest
    graphs = tuple(graph for graph in manifest.graphs if graph.precision == "int8")
    folder = linked(sample_model, tmp_path / "model", replace(manifest, graphs=graphs))
    with pytest.raises(InputValueError, match="precision 'fp32', which bf16 is computed from; it has 'int8'"):
        Encoder(folder, provider="kernels")


@needs_package
@pytest.mark.skipif(_EMULATOR is None, reason="qemu-x86_64 is not installed (Debian: qemu-user)")
@pytest.mark.parametrize(("processor", "precision"), [("Nehalem", "int8"), ("Nehalem", "bf16"), ("Haswell", "bf16")])
def test_a_processor_that_cannot_run_it_is_told_what_to_use(processor: str, precision: str) -> None:
    code = "import sys; from e5onnx.kernels import check_processor; check_processor(sys.argv[1])"
    command = [str(_EMULATOR), "-cpu", processor, sys.executable, "-c", code, precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("e5onnx.errors.InputValueError: e5onnx-kernels ")
    assert "this processor" in error
    assert error.endswith("use provider cpu" if processor == "Nehalem" else "provider cpu")


# Commands, and Lambda


def test_commands_take_it(encoder: Encoder, tmp_path: Path) -> None:
    model, output = encoder.arguments()["model"], tmp_path / "x.npy"
    options = ["--provider", "kernels", "--precision", encoder.precision, "--threads", "1"]
    command = [sys.executable, "-m", "e5onnx"]
    subprocess.run([*command, "embed", model, "--output", output, *options], input=b"a text\nanother\n", check=True)
    near(np.load(output), encoder.encode_document(["a text", "another"]), 1e-6)
    arguments = ["-q", "a text", "-d", "another", "--json"]
    done = subprocess.run([*command, "similarity", model, *arguments, *options], check=True, capture_output=True)
    score = encoder.similarity(encoder.encode_query("a text"), encoder.encode_document("another"))
    near(json.loads(done.stdout)[0]["documents"][0]["score"], score[0, 0], 1e-6)


@needs_int8
@pytest.mark.skipif(sys.platform != "linux", reason="a wheel of this platform is not for Lambda's Linux")
def test_a_lambda_function_with_the_kernels(
    sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e5onnx.lambda_package import pack_lambda

    installed = distribution("e5onnx-kernels")
    wheel = tmp_path / f"e5onnx_kernels-{installed.version}-py3-none-manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in installed.files or []:
            if file.suffix != ".pyc":
                archive.write(str(file.locate()), str(file))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))  # the package index does not have it yet
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines: list[str] = []
    path = pack_lambda(sample_model, tmp_path / "function.zip", provider="kernels", python=python, report=lines.append)
    assert lines[-1].strip() == "environment variable E5ONNX_PROVIDER=kernels"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "code")
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from e5onnx import aws_lambda
reply = aws_lambda.handler({"input": "a text", "input_type": "raw"})
print(json.dumps([reply["data"][0]["embedding"], aws_lambda._load()[0].provider]))
"""
    environment = {"LAMBDA_TASK_ROOT": str(tmp_path / "code"), "E5ONNX_PROVIDER": "kernels"}
    command = [sys.executable, "-I", "-S", "-B", "-c", code, str(tmp_path / "code")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    vector, provider = json.loads(done.stdout)
    assert provider == "kernels"
    near(vector, Encoder(sample_model, provider="kernels", precision="int8").encode("a text", prompt=""), 1e-6)


def test_a_lambda_function_in_fp32_is_refused(sample_model: Path, tmp_path: Path) -> None:
    from e5onnx.lambda_package import pack_lambda

    with pytest.raises(InputValueError, match="runs bf16 or int8, not fp32"):
        pack_lambda(sample_model, tmp_path / "function.zip", provider="kernels", precision="fp32")
