"""Changes files of model folders together with their manifests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from e5onnx.manifest import MANIFEST
from e5onnx.model_folder import ModelFolder, file_record


def put_file(folder: Path, original: Path, name: str, content: bytes) -> None:
    """Write a graph, weights or another file, and the manifest of `original` with that file's new hash and size."""
    (folder / name).write_bytes(content)
    found = file_record(folder, name)
    manifest = ModelFolder.open(original).manifest
    new: dict[str, Any] = {"sha256": found.sha256, "size": found.size}
    files = tuple(replace(record, **new) if record.file == name else record for record in manifest.files)
    graphs = tuple(replace(record, **new) if record.file == name else record for record in manifest.graphs)
    graphs = tuple(
        replace(graph, weights=replace(graph.weights, **new)) if graph.weights and graph.weights.file == name else graph
        for graph in graphs
    )
    (folder / MANIFEST).write_text(replace(manifest, files=files, graphs=graphs).to_json())
