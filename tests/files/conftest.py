"""The model of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from e5onnx import Encoder


@pytest.fixture(scope="session")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, threads=1)
