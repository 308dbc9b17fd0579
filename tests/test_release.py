"""What a release says of itself, and what it holds.

The first tests read the sources. The others, of `make release-check`, install what `make dist` built into empty
environments and run it there; nothing is uploaded.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from numpy.typing import NDArray

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from e5onnx import Encoder
from imports import REPOSITORY

DIST = REPOSITORY / "dist"
TEXTS = ["query: how much protein should a female eat", "passage: 46 grams a day"]
ENCODE = f"""
import json, sys
from e5onnx import Encoder
encoder = Encoder(sys.argv[1], **json.loads(sys.argv[2]))
print(json.dumps(encoder.encode({TEXTS!r}).tolist()))
"""
SERVE = f"""
import json, subprocess, sys, urllib.request
command = [sys.executable, "-m", "e5onnx", "serve", sys.argv[1], "--port", "0", "--log-format", "json"]
server = subprocess.Popen(command, stderr=subprocess.PIPE)
try:
    url = json.loads(server.stderr.readline())["url"]
    body = json.dumps({{"input": {TEXTS!r}, "input_type": "raw"}}).encode()
    request = urllib.request.Request(url + "/v1/embeddings", body, {{"Content-Type": "application/json"}})
    reply = json.loads(urllib.request.urlopen(request, timeout=60).read())
    assert "<title>" in urllib.request.urlopen(url + "/", timeout=60).read().decode()
finally:
    server.kill()
print(json.dumps([item["embedding"] for item in reply["data"]]))
"""

release_check = pytest.mark.skipif("E5ONNX_RELEASE_CHECK" not in os.environ, reason="run `make release-check`")


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def only(pattern: str, text: str) -> str:
    """Return the group of the only match."""
    found: list[str] = re.findall(pattern, text, re.MULTILINE)
    assert len(found) == 1, f"{pattern} matches {len(found)} times, not once"
    return found[0]


VERSION = only(r'^__version__ = "(.+)"$', read("runtime/e5onnx/version.py"))
KERNELS = only(r'^__version__ = "(.+)"$', read("kernels/e5onnx_kernels/__init__.py"))
PROJECT: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (REPOSITORY / ".github/workflows").glob("*.yml")}


def test_every_file_names_the_same_version() -> None:
    assert only(r"^version: (.+)$", read("CITATION.cff")) == VERSION
    assert re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)[0] == VERSION
    (required,) = PROJECT["optional-dependencies"]["kernels"]
    assert required == f"e5onnx-kernels=={KERNELS.rpartition('.')[0]}.*"


@pytest.mark.skipif("RELEASE_TAG" not in os.environ, reason="only for a release: RELEASE_TAG=v0.1.0")
def test_the_tag_is_the_version_and_the_changelog_has_its_day() -> None:
    assert os.environ["RELEASE_TAG"] == f"v{VERSION}"
    day = only(rf"^## \[{re.escape(VERSION)}\] - (\d{{4}}-\d\d-\d\d)$", read("CHANGELOG.md"))
    assert only(r"^date-released: (.+)$", read("CITATION.cff")) == day


def test_the_workflows_run_every_python_that_the_project_allows() -> None:
    assert PROJECT["requires-python"] == ">=3.10"
    assert WORKFLOWS["ci"]["jobs"]["wheel"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]


def test_the_make_targets_of_workflows_and_guide_exist() -> None:
    named = set(re.findall(r"(?:^|\brun: |`)make ([a-z-]+)", read("CONTRIBUTING.md"), re.MULTILINE))
    for workflow in WORKFLOWS.values():
        commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        named |= set(re.findall(r"^make ([a-z-]+)", "\n".join(commands), re.MULTILINE))
    assert {"test", "wheel-check", "release-check"} <= named <= set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))


@pytest.fixture(scope="module")
def wheel() -> Path:
    return DIST / f"e5onnx-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def kernels_wheel() -> Path:
    (found,) = DIST.glob(f"e5onnx_kernels-{KERNELS}-py3-none-*.whl")
    return found


class Environment:
    """An environment of its own, with what pip installs into it."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        self.folder = folder
        self._python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.run("-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-compile", *requirements)

    def run(self, *arguments: str | Path) -> str:
        """Run its Python, in its folder and without the variables of this one."""
        hidden = ("PYTHON", "E5ONNX_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        command = [self._python.absolute(), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder, env=environment, timeout=600, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def vectors(self, program: str, *arguments: str | Path) -> NDArray[np.float32]:
        return np.array(json.loads(self.run("-c", program, *arguments)), dtype=np.float32)

    def packages(self) -> set[str]:
        listed = json.loads(self.run("-m", "pip", "--disable-pip-version-check", "list", "--format=json"))
        return {package["name"].lower().replace("_", "-") for package in listed}


@pytest.fixture(scope="module")
def core(wheel: Path, kernels_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("core"), str(wheel), str(kernels_wheel))


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> NDArray[np.float32]:
    """The vectors of sentence-transformers."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(tiny_checkpoint), device="cpu")
    vectors: NDArray[np.float32] = model.encode(TEXTS)
    return vectors


def tracked(*folders: str) -> set[str]:
    """Return the files that git knows."""
    done = subprocess.run(["git", "ls-files", *folders], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def members(path: Path) -> Iterator[str]:
    """Name the files of a wheel without its metadata, or of an sdist without its first folder."""
    if path.suffix == ".whl":
        yield from (name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name)
    else:
        with tarfile.open(path) as archive:
            yield from (member.name.partition("/")[2] for member in archive if not member.isdir())


@release_check
def test_there_is_a_wheel_and_an_sdist_of_both(wheel: Path, kernels_wheel: Path) -> None:
    sdists = {f"e5onnx-{VERSION}.tar.gz", f"e5onnx_kernels-{KERNELS}.tar.gz"}
    assert {path.name for path in DIST.iterdir()} == {wheel.name, kernels_wheel.name, *sdists}


@release_check
def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    sources = {path.partition("/")[2] for path in tracked("runtime", "export")}
    assert {
        "e5onnx/py.typed",
        "e5onnx_export/py.typed",
        "e5onnx/server/page/index.html",
        "e5onnx/server/page/redoc.standalone.js.LICENSE.txt",
        "haystack_integrations/components/embedders/e5onnx/__init__.py",
    } < sources
    assert set(members(wheel)) == sources


@release_check
def test_the_wheel_of_the_kernels_holds_the_library_and_nothing_else(kernels_wheel: Path) -> None:
    library = f"libe5onnx_kernels.{'dylib' if sys.platform == 'darwin' else 'so'}"
    assert set(members(kernels_wheel)) == {f"e5onnx_kernels/{name}" for name in ("__init__.py", "py.typed", library)}


@release_check
def test_the_sdists_hold_what_git_has_and_nothing_else() -> None:
    sources = tracked() - tracked(".ci", ".pre-commit-config.yaml")
    assert set(members(DIST / f"e5onnx-{VERSION}.tar.gz")) == sources | {"PKG-INFO"}
    kernels = {path.partition("/")[2] for path in tracked("kernels")}
    assert set(members(DIST / f"e5onnx_kernels-{KERNELS}.tar.gz")) == kernels | {"PKG-INFO"}


@release_check
def test_the_sdist_gives_the_same_wheel_as_the_sources(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), "."]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


@release_check
def test_the_core_needs_three_packages_and_gives_the_vectors(
    core: Environment, tiny_model: Path, expected: NDArray[np.float32]
) -> None:
    assert {"e5onnx", "numpy", "onnxruntime", "tokenizers"} <= core.packages()
    assert not {"onnx", "torch", "transformers", "starlette", "pyarrow"} & core.packages()
    assert core.run("-m", "e5onnx", "--version").split() == ["e5onnx", VERSION]
    np.testing.assert_allclose(core.vectors(ENCODE, tiny_model, "{}"), expected, atol=1e-5, rtol=0)


@release_check
def test_the_kernels_load_and_run(core: Environment, sample_model: Path) -> None:
    settings = tomllib.loads(read("kernels/pyproject.toml"))["tool"]["cibuildwheel"]
    python, *arguments = shlex.split(settings["test-command"])
    assert python == "python"
    if not core.run(*arguments).strip():
        pytest.skip("e5onnx-kernels has nothing for the instructions of this processor")
    options = json.dumps({"provider": "kernels", "precision": "int8"})
    cosines = (core.vectors(ENCODE, sample_model, options) * Encoder(sample_model).encode(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.993


@release_check
def test_the_extra_serve_starts_and_answers(
    wheel: Path, tiny_model: Path, expected: NDArray[np.float32], tmp_path: Path
) -> None:
    environment = Environment(tmp_path, f"{wheel}[serve]")
    np.testing.assert_allclose(environment.vectors(SERVE, tiny_model), expected, atol=1e-5, rtol=0)


@release_check
def test_the_extra_export_exports(
    wheel: Path, tiny_checkpoint: Path, expected: NDArray[np.float32], tmp_path: Path
) -> None:
    environment = Environment(tmp_path, f"{wheel}[export]")
    assert not {"torch", "transformers"} & environment.packages()
    environment.run("-m", "e5onnx", "export", tiny_checkpoint, tmp_path / "model", "--precision", "fp32")
    np.testing.assert_allclose(environment.vectors(ENCODE, tmp_path / "model", "{}"), expected, atol=1e-5, rtol=0)
