"""How much disk the runtime and a model take: as pip installs them, without what a local folder never needs, pruned.

Every variant is installed into a folder of its own and then run from there alone, with its int8 model, before its size
counts. Sizes are of files, unpacked, without the byte code that the run leaves behind.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from e5onnx.lambda_package import UNUSED, remove_unused

from .environments import REPOSITORY
from .peers import e5onnx_model
from .report import parser, write

_CORE = ("numpy", "onnxruntime", "tokenizers")
_ENCODE = """
import sys
sys.path.insert(0, sys.argv[1])
from e5onnx import Encoder
assert Encoder(sys.argv[2], precision="int8").encode_query("text").shape == (384,)
"""


def main() -> None:
    """Run as a program."""
    arguments = parser("footprint", __doc__, rounds=1).parse_args()
    model = e5onnx_model()
    with tempfile.TemporaryDirectory() as folder:
        int8 = _int8_only(model, Path(folder, "model"))
        whole, core = Path(folder, "whole"), Path(folder, "core")
        _install(whole, str(REPOSITORY))
        _install(core, "--no-deps", str(REPOSITORY), *_CORE)
        pruned = shutil.copytree(core, Path(folder, "pruned"))
        remove_unused(pruned)
        variants = {"with dependencies": whole, "three packages": core, "pruned": pruned}
        results = {name: _describe(path, int8) for name, path in variants.items()}
        content = {"model_int8_megabytes": _megabytes(int8), "variants": results, "pruned_patterns": UNUSED}
    write(arguments.output, {"benchmark": "footprint", **content})


def _int8_only(model: Path, folder: Path) -> Path:
    """Copy a model folder without its other graphs; the manifest still names them."""
    unwanted = shutil.ignore_patterns("model.onnx*", "model_portable.onnx*")
    return shutil.copytree(model, folder, ignore=unwanted)


def _install(folder: Path, *packages: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(folder),
    ]
    # S603: fixed package names
    subprocess.run([*command, "--no-compile", *packages], check=True)  # noqa: S603


def _describe(folder: Path, model: Path) -> dict[str, Any]:
    command = [sys.executable, "-I", "-S", "-B", "-c", _ENCODE, str(folder), str(model)]
    # S603: this interpreter on this file's code
    subprocess.run(command, check=True)  # noqa: S603
    parts = {path.name: _megabytes(path) for path in sorted(folder.iterdir()) if _megabytes(path) >= 0.1}
    return {
        "megabytes": _megabytes(folder),
        "with_model_megabytes": _megabytes(folder) + _megabytes(model),
        "parts": parts,
    }


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


if __name__ == "__main__":
    main()
