"""How long from the start of a process to its first vector, how much memory that takes, and how much disk.

Measured from outside: from the creation of the process until it has answered. What it says of itself divides that time
into import, load and first encode; the rest is the interpreter's own start. Files are in the page cache, as a first
start that does not count leaves them there: a disk's speed is not measured.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from .peers import REFERENCE, Installation, attempt, installed
from .report import add_peers, parser, with_reference, write
from .texts import queries, require_data

_PEERS: tuple[str, ...] = (REFERENCE, "e5onnx-int8", "e5onnx-kernels-int8", "e5onnx-kernels-bf16")
_PEERS += ("e5onnx-openvino", "e5onnx-openvino-cached", "fastembed", "chroma", "llama-cpp-q8_0", "ctranslate2")
_PEERS += ("sentence-transformers-torch", "sentence-transformers-onnx", "sentence-transformers-openvino")
_INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")
_STAGES = ("interpreter", "import", "load", "first_encode")


def main() -> None:
    """Run as a program."""
    options = parser("cold_start", __doc__, rounds=5)
    add_peers(options, _PEERS)
    arguments = options.parse_args()
    require_data()
    question = queries(1)[0]
    failed: dict[str, str] = {}
    installations = {}
    versions = {}
    for name in with_reference(arguments.peers):
        with attempt(name, failed):
            installations[name] = installed(name)
            _, versions[name] = _start(installations[name], question)
    starts: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for _ in range(arguments.rounds):
        for name in starts:
            with attempt(name, failed):
                starts[name].append(_start(installations[name], question)[0])
    results = _describe({name: each for name, each in starts.items() if name not in failed})
    for name, figures in results.items():
        figures["versions"] = versions[name]
        figures["disk"] = _disk(installations[name])
    content = {"stages": _STAGES, "failed": failed, "programs": results}
    write(arguments.output, {"benchmark": "cold_start", "rounds": arguments.rounds, **content})


def _start(installation: Installation, question: str) -> tuple[dict[str, float], dict[str, str]]:
    """Start a program once; return seconds and peak memory, and its versions, which are asked for afterwards."""
    sys.stderr.write(f"starting {installation.name}\n")
    start = time.perf_counter()
    with installation.launch() as worker:
        # Waits in the pipe until the program has loaded.
        worker.send({"texts": [question], "kind": "query", "each": True, "callers": 1})
        loaded = worker.receive()
        first = worker.receive()
        total = time.perf_counter() - start
        versions = worker.versions()
    seconds = {
        "import": loaded["import_seconds"],
        "load": loaded["load_seconds"],
        "first_encode": first["elapsed"],
    }
    return {
        "interpreter": total - sum(seconds.values()),
        **seconds,
        "total": total,
        "peak_megabytes": first["peak_megabytes"],
    }, versions


def _describe(starts: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    medians = {
        name: {key: statistics.median(start[key] for start in each) for key in each[0]} for name, each in starts.items()
    }
    return {
        name: {
            "median": median,
            "relative_to_e5onnx": {key: median[key] / medians[REFERENCE][key] for key in ("total", "peak_megabytes")},
            "starts": starts[name],
        }
        for name, median in medians.items()
    }


def _disk(installation: Installation) -> dict[str, float]:
    """Megabytes of the installed packages without the installers, and of the files of the model."""
    packages = [
        path
        for site in installation.python.parents[1].glob("lib/python*/site-packages")
        for path in site.rglob("*")
        if path.relative_to(site).parts[0].split("-")[0] not in _INSTALLERS
    ]
    # The folders serve several programs: of the graphs only the one that the program reads counts.
    graph = "model_int8" if installation.name.endswith("int8") else "model"
    model = [
        path for path in installation.model.rglob("*") if path.parent.name != "onnx" or path.name.split(".")[0] == graph
    ]
    return {"packages_megabytes": _megabytes(packages), "model_megabytes": _megabytes(model)}


def _megabytes(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20


if __name__ == "__main__":
    main()
