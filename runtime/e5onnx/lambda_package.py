"""The deployment zip of an AWS Lambda function: the handler, its three dependencies and one graph of a model.

Only pip uses the network, to download the dependencies. Deploys nothing. The same input gives the same zip.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from .atomic import written_whole
from .errors import E5OnnxError, InputValueError, MissingDependencyError
from .kernels import check_precision
from .manifest import MANIFEST, GraphRecord
from .model_folder import ModelFolder, open_model

UNUSED = (
    "bin",
    "numpy/**/tests",
    "numpy/f2py",
    "numpy/_core/include",
    "numpy/**/*.pyi",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "**/__pycache__",
)
"""Patterns of the dependencies' paths that inference does not import."""
_UNUSED_MODULES = {
    "__main__",
    "benchmark",
    "cli",
    "host",
    "kinds",
    "lambda_package",
    "openvino_engine",
    "publish",
    "terminal",
}
"""Modules of e5onnx that the handler does not import."""
_LAMBDA_PYTHONS = ("3.12", "3.13", "3.14")
"""Lambda's Python runtimes on Amazon Linux 2023. Earlier ones have a C library too old for onnxruntime's wheels."""
_DEPENDENCIES: tuple[str, ...] = ("numpy", "onnxruntime", "tokenizers")
_GLIBC = range(34, 16, -1)  # Amazon Linux 2023 has 2.34
_LARGEST = 250 * 2**20
"""Bytes; AWS' documentation, "Lambda quotas": deployment package, unzipped."""
_LARGEST_UPLOAD = 50 * 2**20


def pack_lambda(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: Literal["fp32", "int8", "bf16"] = "int8",
    provider: Literal["cpu", "kernels"] = "cpu",
    python: str | None = None,
    architecture: Literal["x86_64", "arm64"] = "x86_64",
    revision: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a zip to deploy on AWS Lambda, with `e5onnx.aws_lambda.handler` as its handler.

    pip installs the dependencies for Lambda's Linux, in the versions installed here. If the function's Python is the
    one running now, the zip holds byte code too; without it, every start of a container compiles the sources.

    Args:
        model: a model folder or hub id.
        output: the zip to write; an existing file is replaced.
        precision: what the function will compute in, which decides the graph to pack.
        provider: "kernels" adds e5onnx-kernels. The function needs `E5ONNX_PROVIDER=kernels` in its environment, and a
            processor that the kernels have instructions for; AWS does not promise one.
        python: the function's Python version, such as "3.13"; None for this Python's if Lambda has it, else "3.13".
        architecture: the function's processor.
        revision: branch, tag or commit of a hub id.
        report: called with a line of text for every step.

    Returns:
        The path of the zip.

    Raises:
        InputValueError: the model has no such graph, the output cannot be a file, or the content exceeds Lambda's
            limit.
        OSError: the output cannot be written; this is checked before the download.
        MissingDependencyError: pip or the provider is not installed.
        E5OnnxError: pip could not install the dependencies.
    """
    output = Path(output).absolute()
    if output.is_dir():
        raise InputValueError(f"{output} is a folder: name the zip to write, such as {output / 'function.zip'}")
    if not output.parent.is_dir():
        raise InputValueError(f"there is no folder {output.parent} to write {output.name} to; make it first")
    dependencies = _DEPENDENCIES
    if provider == "kernels":
        check_precision(precision)
        dependencies += ("e5onnx-kernels",)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = python or (here if here in _LAMBDA_PYTHONS else "3.13")
    with written_whole(output) as zipped, tempfile.TemporaryDirectory() as temporary:
        zipped.touch(exist_ok=False)  # fails before the download if it cannot be written
        folder = open_model(model, precision=precision, provider=provider, revision=revision)
        graph = folder.manifest.graph(precision, provider)  # likewise if there is no such graph
        content = Path(temporary)
        versions = [f"{name}=={_version(name)}" for name in dependencies]
        if python not in _LAMBDA_PYTHONS:
            report(f"Lambda runs Python {', '.join(_LAMBDA_PYTHONS)}; Python {python} needs a container image")
        report(f"Installing {', '.join(versions)} for Python {python}, {architecture}")
        _install(versions, content, python, architecture)
        remove_unused(content)
        (content / "e5onnx").mkdir()
        for module in Path(__file__).parent.glob("*.py"):
            if module.stem not in _UNUSED_MODULES and (module.stem != "kernels" or provider == "kernels"):
                shutil.copy(module, content / "e5onnx")
        if python == here:
            _compile(content)
        else:
            report(f"  without byte code, which only Python {python} can compile: a container takes longer to start")
        _copy_model(folder, graph, content / "model")
        size = sum(path.stat().st_size for path in content.rglob("*") if path.is_file())
        if size > _LARGEST:
            raise InputValueError(
                f"the function has {size / 2**20:.0f} MiB unzipped, Lambda allows {_LARGEST / 2**20:.0f}: "
                "use precision int8, or a container image"
            )
        report(f"Compressing {size / 2**20:.0f} MiB")
        _zip(content, zipped)
    size = output.stat().st_size
    way = "" if size <= _LARGEST_UPLOAD else ", too large for a direct upload: put it on S3"
    report(f"Wrote {output} ({size / 2**20:.0f} MiB{way})")
    report(f"  runtime python{python}, architecture {architecture}, handler e5onnx.aws_lambda.handler")
    if provider == "kernels":
        report("  environment variable E5ONNX_PROVIDER=kernels")
    return output


def remove_unused(packages: Path) -> None:
    """Delete the files of the installed dependencies that inference does not import."""
    for pattern in UNUSED:
        for path in list(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(f"{package} is not installed here: pip install {package}") from error


def _install(versions: list[str], folder: Path, python: str, architecture: str) -> None:
    machine = {"arm64": "aarch64"}.get(architecture, architecture)
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC] + [f"manylinux2014_{machine}"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-compile", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [*(f"--platform={platform}" for platform in platforms), "--target", str(folder), *versions]
    # S603: the arguments are our own, except the Python version, which pip checks
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise MissingDependencyError("pack-lambda needs pip: python -m ensurepip")
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise E5OnnxError(f"pip could not install {', '.join(versions)} for Python {python}: {errors[-1]}")


def _compile(folder: Path) -> None:
    """Compile all sources to byte code that is not compared with their dates, which the zip does not keep."""
    compileall.compile_dir(
        folder, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, stripdir=str(folder)
    )


def _copy_model(folder: ModelFolder, graph: GraphRecord, target: Path) -> None:
    """Copy a model folder with only one of its graphs, and a manifest to match."""
    manifest = folder.manifest
    manifest = replace(manifest, graphs=(graph,))
    for record in manifest.records():
        path = target / record.file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.check(record), path)
    (target / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _zip(folder: Path, output: Path) -> None:
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # dated 1980
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target)
