"""The files of a model folder: their names and records, and that they appear whole or not at all."""

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
from e5onnx.model_folder import MANIFEST, FileRecord, GraphRecord, Manifest

Precision = Literal["fp32", "int8"]
GRAPHS: dict[Precision, str] = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
PORTABLE_GRAPH = "onnx/model_portable.onnx"
"""The fp32 graph in standard ONNX operators."""
_WEIGHTS_SUFFIX = "_data"


def save_with_weights(model: Any, path: Path) -> None:
    """Save a graph, which is used up, with its weights beside it, so that onnxruntime can map them into memory."""
    import onnx

    weights = path.name + _WEIGHTS_SUFFIX
    onnx.save(model, path, save_as_external_data=True, location=weights)
    shutil.copymode(path, path.with_name(weights))  # onnx lets nobody else read it


def graph_record(folder: Path, file: str, precision: Precision) -> GraphRecord:
    """Describe a graph of a folder for the manifest, without parity and calibration."""
    graph = FileRecord.of(folder, file)
    weights = FileRecord.of(folder, file + _WEIGHTS_SUFFIX) if (folder / (file + _WEIGHTS_SUFFIX)).is_file() else None
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
    """Refuse an output path that is in use by something that must not be lost."""
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST).is_file():
        raise InputValueError(f"{output} exists and is not a model folder; name another output")
    if not force:
        raise InputValueError(f"{output} exists; replace it with --force, or name another output")


@contextmanager
def staging(output: Path, force: bool) -> Iterator[Path]:
    """Yield a new folder beside `output` and move it there at the end; remove it if anything fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as staging:
        folder, replaced = Path(staging, "new"), Path(staging, "replaced")
        folder.mkdir()  # inside, as the temporary folder itself is closed to other users
        yield folder
        check_output(output, force)  # it may have appeared in the meantime
        if output.exists():
            output.rename(replaced)
        try:
            folder.rename(output)
        except OSError:
            if replaced.exists():
                replaced.rename(output)
            raise
