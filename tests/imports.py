"""The imports of both packages, read from their sources: nothing is imported to find them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

REPOSITORY = Path(__file__).parents[1]


class Import(NamedTuple):
    """One import: `lazy` runs when a function is called, `typing` never."""

    source: str
    target: str
    when: Literal["load", "lazy", "typing"]


@cache
def modules() -> dict[str, Path]:
    """Return the files of both packages by module name."""
    found = {}
    for root in (REPOSITORY / "runtime", REPOSITORY / "export"):
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read_imports(module: str, path: Path) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, when: Literal["load", "lazy", "typing"]) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(module, name.name, when) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                target = f"{origin}.{name.name}"
                yield Import(module, target if target in modules() else origin, when)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for child in ast.iter_child_nodes(node):
                yield from walk(child, "lazy")
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, "typing")
            for child in node.orelse:
                yield from walk(child, when)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, when)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "load")


def used_by_the_export() -> set[Path]:
    """Return the files of the export and of the runtime that it imports, of the latter those that load with it."""
    found: set[str] = set()
    waiting = [module for module in modules() if module.startswith("e5onnx_export")]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            whens = ("load", "lazy") if module.startswith("e5onnx_export") else ("load",)
            targets = (each.target for each in read_imports(module, modules()[module]) if each.when in whens)
            waiting.extend(target for target in targets if target in modules())
    return {modules()[module] for module in found}
