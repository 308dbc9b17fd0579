"""The model and the command of these tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e5onnx import Encoder
from e5onnx.cli import main


@pytest.fixture(scope="session")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, threads=1)


@pytest.fixture
def e5onnx(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in this process, and return what a process would have left."""

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [*map(str, arguments)]
        try:
            code: Any = main(command)
        except SystemExit as exit:
            code = exit.code
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    return run
