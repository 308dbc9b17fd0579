"""The library built from `kernels/src`, once per session; its kernels one by one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernels.access import TABLES, Kernels
from kernels.building import build

SANITIZE = "E5ONNX_SANITIZE"
"""The environment variable by which test_sanitizers.py runs the other tests on a library with sanitizers."""


@pytest.fixture(scope="session")
def library() -> Path:
    return build(os.environ.get(SANITIZE, ""))


@pytest.fixture(scope="session", params=TABLES)
def kernels(request: pytest.FixtureRequest, library: Path) -> Kernels:
    return Kernels(library, request.param)
