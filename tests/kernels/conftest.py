"""The library built from `kernels/src`, once per session; its kernels one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.access import TABLES, Kernels
from kernels.building import FAMILY, build


@pytest.fixture(scope="session")
def library() -> Path:
    return build()


@pytest.fixture(scope="session", params=[name for name in TABLES if name.startswith(FAMILY)])
def kernels(request: pytest.FixtureRequest, library: Path) -> Kernels:
    return Kernels(library, request.param)
