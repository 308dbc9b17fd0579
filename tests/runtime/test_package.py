"""The distribution: its dependencies, what it contains, and what it says where the export's packages are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HAS_EXPORT_PACKAGES = importlib.util.find_spec("torch") is not None


def test_the_runtime_has_exactly_three_dependencies() -> None:
    requirements = importlib.metadata.requires("e5onnx") or []
    core = {requirement.split(">=")[0] for requirement in requirements if "extra ==" not in requirement}
    assert core == {"numpy", "onnxruntime", "tokenizers"}


def test_the_version_is_the_distributions() -> None:
    import e5onnx

    assert importlib.metadata.version("e5onnx") == e5onnx.__version__


def test_both_packages_are_typed() -> None:
    for package in ("e5onnx", "e5onnx_export"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        assert Path(spec.origin).with_name("py.typed").is_file()


@pytest.mark.skipif(HAS_EXPORT_PACKAGES, reason="the export's packages are installed here")
def test_export_names_the_extra_that_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "e5onnx", "export", "sample", str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("e5onnx: error: export needs ")
    assert "pip install 'e5onnx[export]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(HAS_EXPORT_PACKAGES, reason="the export's packages are installed here")
def test_these_tests_run_on_the_installed_wheel() -> None:
    import e5onnx

    assert Path(e5onnx.__file__).is_relative_to(sys.prefix)
    for package in ("torch", "transformers", "optimum", "onnx", "sentence_transformers"):
        assert importlib.util.find_spec(package) is None
