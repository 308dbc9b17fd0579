"""The servers that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from e5onnx import Encoder
from e5onnx.server.app import Service
from e5onnx.server.options import ServerOptions
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


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    """A client of the server."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: Path) -> Encoder:
    """A tiny model with one thread."""
    return Encoder(tiny_model, threads=1)


@pytest.fixture
def service(tiny_encoder: Encoder) -> Iterator[Service]:
    """The application in this process, without a socket."""
    service = Service(tiny_encoder, ServerOptions(max_body=200_000, max_texts=200))
    yield service
    service.close()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What runs tests that are coroutines."""
    return "asyncio"
