"""The examples of the docstrings and of the README run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shutil
from pathlib import Path

import pytest

import e5onnx
import e5onnx_export

MODULES = [
    module.name
    for package in (e5onnx, e5onnx_export)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]
README = Path(__file__).parents[2] / "README.md"
HAVE_EXAMPLES = {"e5onnx.encoder", "e5onnx.tokenizer", "e5onnx.batching", "e5onnx_export.head", "e5onnx_export.export"}


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_model: Path, e5_model: Path) -> Path:
    """A current folder with the models that the examples name."""
    for link, target in [("intfloat/e5-small-v2", e5_model), ("models/e5-small-v2", e5_model)]:
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(target)
    shutil.copytree(sample_model, tmp_path / "models/sample")  # an example exports it again
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["e5onnx", "e5onnx_export", *MODULES])
def test_docstring_examples_run(name: str, working_folder: Path) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in HAVE_EXAMPLES


def test_readme_examples_run(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
    assert re.fullmatch(r"\[\[[-0-9.]+ +[-0-9.]+ *\]\]\n", capsys.readouterr().out)
