"""Builds `kernels/src` with the tests' way in, `access.cpp`, as one library that onnxruntime and ctypes can load.

Compiled files are kept under `build/tests-kernels`, by the content of what they are made of. Flags of instruction sets
are those of `kernels/CMakeLists.txt`, by which the distribution is built; CMake itself is not needed here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from e5onnx.cpu import default_threads
from imports import REPOSITORY

SOURCES = REPOSITORY / "kernels/src"
BUILD = REPOSITORY / "build/tests-kernels"
SANITIZE = os.environ.get("E5ONNX_SANITIZE", "")
"""Sanitizers for the library, where test_sanitizers.py runs the other tests again."""
_FLAGS = "-std=c++20 -fPIC -ffp-contract=off -fvisibility=hidden -fvisibility-inlines-hidden"
_SANITIZED = "-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize="
FAMILY = {"x86_64": "avx", "amd64": "avx", "aarch64": "neon", "arm64": "neon"}.get(platform.machine().lower(), "none")
"""What the names of this processor's instruction sets begin with."""


def compiler() -> str:
    """Return the C++ compiler; skip the test if there is none."""
    name = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not name:
        pytest.skip("g++ is not installed")
    return name


def build(sanitize: str = SANITIZE) -> Path:
    """Return the library, built with sanitizers such as `address,undefined` or as it is shipped."""
    flags = shlex.split(f"{_FLAGS} {_SANITIZED}{sanitize}" if sanitize else f"{_FLAGS} -O3")
    others = [path for path in sorted(SOURCES.glob("*.cpp")) if not path.name.startswith("isa_")]
    commands = dict.fromkeys((*others, Path(__file__).with_name("access.cpp")), flags)
    commands[SOURCES / "dispatch.cpp"] = [*flags, "-Dfind_kernels=find_best_kernels"]  # see access.cpp
    for name, own in _instruction_sets().items():
        commands[SOURCES / f"isa_{name}.cpp"] = [*flags, *own]
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / "lock"), ThreadPoolExecutor(default_threads()) as pool:
        objects = list(pool.map(_compile, commands, commands.values()))
    runtimes = [] if platform.system() == "Darwin" else ["-static-libstdc++", "-static-libgcc"]
    if sanitize:
        runtimes = [f"-fsanitize={sanitize}"]
    return _made("e5onnx_kernels.so", objects, [compiler(), "-shared", *runtimes, *map(str, objects)])


def _instruction_sets() -> dict[str, list[str]]:
    """Return the flags of each file isa_NAME.cpp for this kind of processor, from `set` and `add_isa` of CMake."""
    text = (REPOSITORY / "kernels/CMakeLists.txt").read_text()
    sets = dict(re.findall(r"set\((\w+) (-m[^)]*)\)", text))
    found = {
        name: shlex.split(re.sub(r"\$\{(\w+)\}", lambda match: sets[match[1]], flags))
        for name, flags in re.findall(r"add_isa\((\w+) ([^)]*)\)", text)
    }
    assert found.keys() == {path.stem[4:] for path in SOURCES.glob("isa_*.cpp")}
    return {name: flags for name, flags in found.items() if name.startswith(FAMILY)}


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
