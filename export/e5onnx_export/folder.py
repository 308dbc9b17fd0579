"""Writes the files of a model folder, whole or not at all, and their records. What graphs hold is decided elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from e5onnx.atomic import written_whole
from e5onnx.errors import InputValueError
from e5onnx.manifest import MANIFEST, GraphRecord, Manifest
from e5onnx.model_folder import file_record

Precision = Literal["fp32", "int8"]
GRAPHS: dict[Precision, str] = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
PORTABLE_GRAPH = "onnx/model_portable.onnx"
"""The fp32 graph in standard ONNX operators."""
_WEIGHTS_SUFFIX = "_data"
_STAGING = ".partial"


_LEAST_MAPPED = 1024
_ALIGNMENT = 4096
"""Bytes; the size of a page, at which a mapping begins."""


def save_with_weights(model: Any, path: Path) -> None:
    """Save a graph, and its weights beside it, where onnxruntime can map them into memory. `model` is consumed.

    The bytes depend on the graph alone, not on the version of onnx: they are part of the fingerprint.
    """
    from onnx.external_data_helper import set_external_data

    weights = path.with_name(path.name + _WEIGHTS_SUFFIX)
    with weights.open("wb") as stream:
        for tensor in model.graph.initializer:
            size = len(tensor.raw_data)
            if size >= _LEAST_MAPPED:
                stream.write(bytes(-stream.tell() % _ALIGNMENT))
                set_external_data(tensor, weights.name, stream.tell(), size)
                stream.write(tensor.raw_data)
                tensor.ClearField("raw_data")
    save_whole(model, path)


def save_whole(model: Any, path: Path) -> None:
    """Save a graph with its weights."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def graph_record(folder: Path, file: str, precision: Precision) -> GraphRecord:
    """Describe a graph of a folder for the manifest, without parity and calibration."""
    graph = file_record(folder, file)
    weights = file_record(folder, file + _WEIGHTS_SUFFIX) if (folder / (file + _WEIGHTS_SUFFIX)).is_file() else None
    return GraphRecord(
        file,
        graph.sha256,
        graph.size,
        precision=precision,
        portable=file == PORTABLE_GRAPH,
        parity={},
        weights=weights,
        calibration=None,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `e5onnx.json`, whole or not at all."""
    with written_whole(folder / MANIFEST) as path:
        path.write_text(manifest.to_json(), encoding="utf-8")


def check_output(output: Path, force: bool) -> None:
    """Refuse an output that cannot be written, or that is anything but a model folder to be replaced by force."""
    there = next(path for path in (output, *output.parents) if os.path.lexists(path))
    if there.is_dir() and not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise InputValueError(f"{output} cannot be written: {there} is read-only for you; name another output")
    if there != output and there.is_dir():
        return
    if not there.is_dir() or (_contents(there) and not (there / MANIFEST).is_file()):
        raise InputValueError(f"{there} exists and is not a model folder; name another output")
    if _contents(there) and not force:
        raise InputValueError(f"{output} exists; replace it with --force, or name another output")


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start an export that needs more bytes than the disk of `folder` has free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputValueError(
            f"no space left: the export needs about {needed / 1e6:.0f} MB, and the disk of the output has "
            f"{free / 1e6:.0f} MB free; free some space, or name another output"
        )


@contextmanager
def staging(output: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder whose contents become those of `output` at the end; remove it if anything fails.

    It is beside `output`, or inside if that exists: an existing folder may be a mount point or the caller's current
    folder, so it stays, and only its contents are replaced.
    """
    within = output.is_dir()
    if not within:
        output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{output.name}.", suffix=_STAGING, dir=output if within else output.parent
    ) as staging:
        folder, replaced = Path(staging, "new"), Path(staging, "replaced")
        folder.mkdir()  # a subfolder, as other users cannot read a temporary folder
        yield folder
        check_output(output, force)  # it may have appeared in the meantime
        if output.is_dir():
            _replace_contents(output, folder, replaced)
        else:
            folder.rename(output)


def _replace_contents(output: Path, new: Path, replaced: Path) -> None:
    """Move the contents of `output` to `replaced`, manifest first, then those of `new` to `output`, manifest last."""
    replaced.mkdir()
    moves = [(path, replaced / path.name) for path in sorted(_contents(output), key=lambda path: path.name != MANIFEST)]
    moves += [(path, output / path.name) for path in sorted(new.iterdir(), key=lambda path: path.name == MANIFEST)]
    done = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:  # whatever the reason, nothing may be lost
        for source, target in reversed(done):
            target.rename(source)
        raise


def _contents(folder: Path) -> list[Path]:
    """Return the entries of a folder, except unfinished exports and what every new file system contains."""
    return [path for path in folder.iterdir() if not path.name.endswith(_STAGING) and path.name != "lost+found"]
