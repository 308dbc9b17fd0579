"""The tests of the loops and of the operator again, on a library that checks addresses and undefined behaviour."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from imports import REPOSITORY
from kernels.building import build, compiler

SANITIZERS = "address,undefined"
LEFT_OUT = "not 768 and not 384 and not not_covered and not numbers_of_threads and not says_of"
"""What is large, or about messages alone."""


def test_no_sanitizer_complains() -> None:
    if platform.system() != "Linux":
        pytest.skip("sanitizers are loaded before Python on Linux only")
    build(SANITIZERS)
    # before Python's own libraries; with libstdc++, whose exceptions the sanitizer wraps
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    files = [
        subprocess.run([compiler(), f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout
        for name in names
    ]
    if not all(Path(file.strip()).is_absolute() for file in files):
        pytest.skip("libasan is not installed")
    environment = {
        **os.environ,
        "E5ONNX_SANITIZE": SANITIZERS,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "LD_PRELOAD": " ".join(file.strip() for file in files),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and onnxruntime keep what they have until the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    tests = [str(Path(__file__).with_name(name)) for name in ("test_loops.py", "test_operator.py")]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=no", "-k", LEFT_OUT]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert " passed" in result.stdout
