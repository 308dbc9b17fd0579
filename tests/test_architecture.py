"""Who may import whom, read from the sources."""

from __future__ import annotations

import sys
from functools import cache
from graphlib import TopologicalSorter
from itertools import permutations
from pathlib import Path

import pytest

from imports import REPOSITORY, Import, modules, read_imports, used_by_the_export

EXPORT_ONLY = {"onnx", "optimum", "torch", "transformers"}
CORE = {"numpy", "onnxruntime", "tokenizers"}
HOME_OF = {"huggingface_hub": "e5onnx.hub", "openvino": "e5onnx.openvino_engine"}
"""Optional packages that only one module of the core may import."""
INTEGRATED = {
    "langchain_core": "e5onnx.integrations.langchain",
    "llama_index": "e5onnx.integrations.llama_index",
    "haystack": "haystack_integrations.components.embedders.e5onnx",
    "chromadb": "e5onnx.integrations.chroma",
    "lancedb": "e5onnx.integrations.lancedb",
}
"""Packages that only their integration imports."""


@cache
def imports() -> list[Import]:
    """Return every import of both packages but those of the standard library."""
    found = [each for module, path in modules().items() for each in read_imports(module, path)]
    return [each for each in found if top(each.target) not in sys.stdlib_module_names]


def top(module: str) -> str:
    return module.partition(".")[0]


def is_core(module: str) -> bool:
    return module.startswith("e5onnx") and modules()[module].parent == REPOSITORY / "runtime/e5onnx"


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_imports_of_every_form_are_read(tmp_path: Path) -> None:
    path = tmp_path / "local.py"
    path.write_text("""
import onnx.helper, numpy as np
from .. import __version__, encoder
from ..encoder import Encoder
from . import cli as files_cli
if TYPE_CHECKING:
    from .job import Job
class A:
    async def b(self):
        try:
            from .rows import Row
        except ImportError:
            import torch
""")
    assert [each[1:] for each in read_imports("e5onnx.files.local", path)] == [
        ("onnx.helper", "load"),
        ("numpy", "load"),
        ("e5onnx", "load"),
        ("e5onnx.encoder", "load"),
        ("e5onnx.encoder", "load"),
        ("e5onnx.files.cli", "load"),
        ("e5onnx.files.job", "typing"),
        ("e5onnx.files.rows", "lazy"),
        ("torch", "lazy"),
    ]
    path.write_text("from .encoder import Encoder\nfrom . import encoder")
    assert {each.target for each in read_imports("e5onnx", path.rename(tmp_path / "__init__.py"))} == {"e5onnx.encoder"}


@pytest.mark.parametrize("room", ["server", "files", "evaluate"])
def test_the_core_imports_rooms_only_for_their_commands(room: str) -> None:
    found = [each for each in imports() if is_core(each.source) and is_in(each.target, f"e5onnx.{room}")]
    assert found == [Import("e5onnx.cli", f"e5onnx.{room}.cli", "lazy")]


@pytest.mark.parametrize(("room", "other"), list(permutations(["server", "files", "integrations"], 2)))
def test_rooms_do_not_import_each_other(room: str, other: str) -> None:
    assert not [
        each for each in imports() if is_in(each.source, f"e5onnx.{room}") and is_in(each.target, f"e5onnx.{other}")
    ]


def test_only_an_integration_imports_what_it_integrates() -> None:
    found = {(top(each.target), each.source) for each in imports() if top(each.target) in INTEGRATED}
    assert found == set(INTEGRATED.items())


def test_the_package_does_not_import_integrations() -> None:
    """What integrations share, they import from one another's `encoders`; nothing else imports any of them."""
    found = {each for each in imports() if is_in(each.target, "e5onnx.integrations")}
    assert {each.target for each in found} == {"e5onnx.integrations.encoders"}
    assert {each.source for each in found} == set(INTEGRATED.values())


def test_the_runtime_imports_the_export_only_for_a_command_and_on_first_use() -> None:
    found = [each for each in imports() if top(each.source) == "e5onnx" and top(each.target) == "e5onnx_export"]
    assert {(each.source, each.when) for each in found} == {("e5onnx.cli", "lazy"), ("e5onnx.first_use", "lazy")}


def test_only_the_export_imports_its_packages() -> None:
    assert not [each for each in imports() if top(each.source) == "e5onnx" and top(each.target) in EXPORT_ONLY]


def test_the_core_needs_three_packages() -> None:
    others = [each for each in imports() if is_core(each.source) and not top(each.target).startswith("e5onnx")]
    assert {top(each.target) for each in others if each.when == "load"} - HOME_OF.keys() == CORE
    assert not [each for each in others if HOME_OF.get(top(each.target), each.source) != each.source]


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions count: they hide a circle, they do not break it.

    The one exception is first use: opening a checkpoint exports it, and the export checks its work with the runtime.
    """
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for each in imports():
        is_first_use = each.source == "e5onnx.first_use" and top(each.target) == "e5onnx_export"
        if each.when != "typing" and each.target in graph and not is_first_use:
            graph[each.source].add(each.target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_cached_models_depend_on_the_code_that_makes_them() -> None:
    paths = {path.relative_to(REPOSITORY).as_posix() for path in used_by_the_export()}
    assert {f"runtime/e5onnx/{name}.py" for name in ("batching", "engine", "errors", "tokenizer")} <= paths
    assert set((REPOSITORY / "export").rglob("*.py")) <= used_by_the_export()
    assert not [path for path in paths if "/server/" in path or "/files/" in path]
