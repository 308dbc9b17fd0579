"""Corpora that the tests embed, and the output folders that they get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON lines, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parts(output: Path) -> dict[str, bytes]:
    """Return the files of all parts by name."""
    return {path.name: path.read_bytes() for path in output.glob("part-*")}


def rejects(output: Path) -> list[dict[str, Any]]:
    """Return the rows that were rejected."""
    path = output / "_e5onnx/rejects.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
