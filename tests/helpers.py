"""What tests in several folders share: how near two arrays are, and JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def near(found: Any, expected: Any, atol: float = 1e-5) -> None:
    """Assert that two arrays have one shape and that no number differs by more than `atol`; NaN always differs."""
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, equal_nan=False)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write a JSON document per line, making the file's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
