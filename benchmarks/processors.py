"""Whether vectors are the same on other processors: x86 without VNNI, and ARM64, all emulated by QEMU.

Needs Debian's `qemu-user` and `apt-get`; ARM64's Python comes from Debian, its wheels from the package index. Says
nothing about speed. Not part of `make bench`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5onnx import Encoder

from .environments import BUILD, REPOSITORY
from .forms import SAMPLE
from .peers import e5onnx_model
from .report import cosines, parser, write
from .texts import mixed_passages, queries, require_data

_X86 = {"Nehalem": "SSE4.2", "Haswell": "AVX2"}
_ARM64 = {"cortex-a53": "no dot product", "neoverse-n1": "dot product"}
_DEBIAN = (
    *("libc6", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "libexpat1", "zlib1g"),
    *("libstdc++6", "libgcc-s1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"),
)
# onnxruntime 1.32 ends in a segmentation fault when QEMU 7.2 imports it.
_WHEELS = ("onnxruntime==1.23.2", "tokenizers", "numpy")
_CODE = """
import json, sys
import numpy as np, onnxruntime
from e5onnx import Encoder

texts = json.load(sys.stdin)
vectors = {p: Encoder(sys.argv[1], precision=p, threads=1).encode(texts) for p in ("fp32", "int8")}
np.savez(sys.argv[2], onnxruntime=onnxruntime.__version__, **vectors)
"""


def main() -> None:
    """Run as a program."""
    arguments = parser("processors", __doc__, rounds=1).parse_args()
    require_data()
    model = e5onnx_model(SAMPLE)
    texts = [*queries(6), *mixed_passages(200)[:4]]
    here = {precision: Encoder(model, precision=precision).encode(texts) for precision in ("fp32", "int8")}
    results = {}
    root, site = _arm64()
    commands = {
        **{name: (["qemu-x86_64", "-cpu", name, sys.executable], "") for name in _X86},
        **{
            name: (["qemu-aarch64", "-cpu", name, "-L", str(root), f"{root}/usr/bin/python3.11"], site)
            for name in _ARM64
        },
    }
    for name, (python, packages) in commands.items():
        sys.stderr.write(f"emulating {name}\n")
        there = _run(python, packages, model, texts)
        results[name] = {
            "instructions": (_X86 | _ARM64)[name],
            "onnxruntime": str(there["onnxruntime"]),
            "largest_difference": {p: float(np.abs(there[p] - vectors).max()) for p, vectors in here.items()},
            "int8_cosine_to_int8_here": cosines(there["int8"], here["int8"]),
            "int8_cosine_to_fp32_there": cosines(there["int8"], there["fp32"]),
        }
    write(
        arguments.output,
        {
            "benchmark": "processors",
            "model": SAMPLE,
            "texts": len(texts),
            "int8_cosine_to_fp32_here": cosines(here["int8"], here["fp32"]),
            "processors": results,
        },
    )


def _run(python: list[str], packages: str, model: Path, texts: list[str]) -> dict[str, NDArray[Any]]:
    output = BUILD / "processors.npz"
    path = os.pathsep.join(filter(None, (packages, str(REPOSITORY / "runtime"))))
    # S603: a fixed command on paths of the harness
    subprocess.run(  # noqa: S603
        [*python, "-c", _CODE, str(model), str(output)],
        input=json.dumps(texts),
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return dict(np.load(output))


def _arm64() -> tuple[Path, str]:
    """Return a root folder with ARM64's Python, and the folder of its packages; both are made if they are missing."""
    folder = BUILD / "arm64"
    root, site, lists = folder / "root", folder / "site", folder / "apt"
    if not site.is_dir():
        for each in (root, lists / "lists/partial", lists / "archives/partial"):
            each.mkdir(parents=True, exist_ok=True)
        apt = ["apt-get", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
        apt += ["-o", f"Dir::State::Lists={lists}/lists", "-o", f"Dir::Cache={lists}"]
        commands: list[list[str]] = [[*apt, "update"], [*apt, "download", *_DEBIAN]]
        for command in commands:
            subprocess.run(command, check=True, cwd=lists, stdout=sys.stderr)  # noqa: S603 - fixed commands
        for package in lists.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)  # noqa: S603, S607 - Debian's own tool
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), "--only-binary=:all:"]
        pip += [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
        pip += ["--platform=manylinux2014_aarch64", "--python-version=3.11"]
        subprocess.run([*pip, *_WHEELS], check=True)  # noqa: S603 - a fixed command
    return root, str(site)


if __name__ == "__main__":
    main()
