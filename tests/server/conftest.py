"""One server that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e5onnx import Encoder
from serving import Server, serving


@pytest.fixture(scope="session")
def server(e5_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of E5-small's shape, with small limits."""
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(e5_model, log, "--max-body", "2000000", "--max-texts", "100", "--max-characters", "100000") as running:
        yield running


@pytest.fixture(scope="session")
def encoder(e5_model: Path) -> Encoder:
    """The same model, in this process."""
    return Encoder(e5_model)
