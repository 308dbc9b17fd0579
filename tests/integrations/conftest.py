"""What the tests of the integrations share: vectors made with the prompts spelled out, and no telemetry."""

from __future__ import annotations

import asyncio
import inspect
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from e5onnx import Encoder
from integrations.passages import QUERY, SHORT, TEXTS

# Haystack and Chroma report their use to their makers, and LangChain to LangSmith if it is set up.
os.environ.update(
    {"HAYSTACK_TELEMETRY_ENABLED": "False", "ANONYMIZED_TELEMETRY": "False", "LANGSMITH_TRACING": "false"}
)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run LangChain's asynchronous tests."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def query_vector(e5_model: Path) -> NDArray[np.float32]:
    """The vector of QUERY."""
    return Encoder(e5_model).encode(f"query: {QUERY}")


@pytest.fixture(scope="session")
def short_query_vector(e5_model: Path) -> NDArray[np.float32]:
    """The vector of QUERY, cut to 64 components."""
    return Encoder(e5_model, **SHORT).encode(f"query: {QUERY}")


@pytest.fixture(scope="session")
def document_vectors(e5_model: Path) -> NDArray[np.float32]:
    """The vectors of TEXTS."""
    return Encoder(e5_model).encode([f"passage: {text}" for text in TEXTS])


@pytest.fixture(scope="session")
def short_document_vectors(e5_model: Path) -> NDArray[np.float32]:
    """The vectors of TEXTS, cut to 64 components."""
    return Encoder(e5_model, **SHORT).encode([f"passage: {text}" for text in TEXTS])


@pytest.fixture
def model_that_changes(e5_model: Path, tmp_path: Path) -> Path:
    """A link to a model, for a test that lets it point to another."""
    (tmp_path / "model").symlink_to(e5_model)
    return tmp_path / "model"
