"""Builds `kernels/src` with the tests' way in, `access.cpp`, as one library that onnxruntime and ctypes can load.

Compiled files are kept under `build/tests-kernels`, by the content of what they are made of. The distribution is built
by CMake, with these flags and warnings as errors.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e5onnx.cpu import default_threads
from imports import REPOSITORY

SOURCES = REPOSITORY / "kernels/src"
BUILD = REPOSITORY / "build/tests-kernels"
SANITIZE = os.environ.get("E5ONNX_SANITIZE", "")
"""Sanitizers for the library, where test_sanitizers.py runs the other tests again."""
_AVX2 = "-mavx2 -mfma -mf16c"
_AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c"
# isa_NAME.cpp -> its flags; as in kernels/CMakeLists.txt, and in this order
_INSTRUCTIONS = {
    "avx2": _AVX2,
    "avx_vnni": f"{_AVX2} -mavxvnni",
    "avx512_vnni": _AVX512,
    "avx512_bf16": f"{_AVX512} -mavx512bf16",
}
_FLAGS = "-std=c++20 -fPIC -ffp-contract=off -fno-rtti -fvisibility=hidden -fvisibility-inlines-hidden"
_SANITIZED = "-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize="


def compiler() -> str:
    """Return the C++ compiler; skip the test if there is none."""
    name = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not name:
        pytest.skip("g++ is not installed")
    return name


def build(sanitize: str = SANITIZE) -> Path:
    """Return the library, built with sanitizers such as `address,undefined` or as it is shipped."""
    flags = shlex.split(f"{_FLAGS} {_SANITIZED}{sanitize}" if sanitize else f"{_FLAGS} -O3")
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    found = {name: SOURCES / f"isa_{name}.cpp" for name in _INSTRUCTIONS} if is_x86 else {}
    found = {name: path for name, path in found.items() if path.exists()}
    flags += [f"-DE5ONNX_ISA_{name.upper()}" for name in found]
    commands = {path: [*flags, *shlex.split(_INSTRUCTIONS[name])] for name, path in found.items()}
    others = [path for path in sorted(SOURCES.glob("*.cpp")) if not path.name.startswith("isa_")]
    commands |= dict.fromkeys((*others, Path(__file__).with_name("access.cpp")), flags)
    with ThreadPoolExecutor(default_threads()) as pool:
        objects = list(pool.map(_compile, commands, commands.values()))
    runtimes = [] if platform.system() == "Darwin" else ["-static-libstdc++", "-static-libgcc"]
    if sanitize:
        runtimes = [f"-fsanitize={sanitize}"]
    return _made("e5onnx_kernels.so", objects, [compiler(), "-shared", *runtimes, *map(str, objects)])


def _compile(source: Path, flags: list[str]) -> Path:
    command = [compiler(), *flags, f"-I{SOURCES}", "-c", str(source)]
    return _made(f"{source.stem}.o", [source, *sorted(SOURCES.glob("*.h"))], command)


def _made(name: str, sources: list[Path], command: list[str]) -> Path:
    """Return what a command makes of files. It lies in a folder that is named by the hash of both."""
    digest = hashlib.sha256("\0".join(command).encode())
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    target = BUILD / digest.hexdigest()[:16] / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{os.getpid()}-{name}")
        result = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
        if result.returncode:
            pytest.fail(f"{shlex.join(command)}\n{result.stderr[:5000]}")
        unfinished.rename(target)
    return target
