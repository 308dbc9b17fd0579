"""From an empty virtual environment to a first vector: seconds, megabytes and packages of each way there.

Starts from what a user has: a checkpoint in a local folder, of E5-small-v2's shape, and pip with a warm cache. "ready"
ways start from a model in ONNX that somebody else has made, as fastembed downloads it. Models are local, and pip's
cache is filled by the first run of this program, so only the second one counts. pip takes most of the time, and it
compiles nothing that is not imported (`--no-compile`), for every program alike. Seconds of the processor are those of
all threads: they hardly depend on what else the machine does.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from .environments import REPOSITORY, REQUIREMENTS, PeerError
from .forms import SHAPED, checkpoint, form, offline
from .peers import attempt
from .report import parser, write

_TEXT = "how much protein should a female eat"
_ENCODE = f"""
import sys
from e5onnx import Encoder
assert Encoder(sys.argv[1], precision="{{}}").encode_query({_TEXT!r}).shape == (384,)
"""
_EXPORT = """
import sys
from e5onnx_export import export_model
export_model(sys.argv[1], "model", precisions=["{precision}"])
sys.argv[1] = "model"
"""
_FASTEMBED = f"""
import sys
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
name, pooling = "benchmark/e5-small-v2", PoolingType.MEAN
source = ModelSource(hf=name)
TextEmbedding.add_custom_model(name, pooling, True, source, dim=384, model_file="onnx/model.onnx")
model = TextEmbedding(name, specific_model_path=sys.argv[1])
assert next(iter(model.embed(["query: " + {_TEXT!r}]))).shape == (384,)
"""
_SENTENCE_TRANSFORMERS = f"""
import sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True{{}})
assert model.encode("query: " + {_TEXT!r}).shape == (384,)
"""
_ONNX = ', backend="onnx", model_kwargs={"provider": "CPUExecutionProvider", "export": True}'
_INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")
_LIST = ("-m", "pip", "list", "--format", "json", "--disable-pip-version-check", "--exclude", "pip")


class Way(NamedTuple):
    """What is installed, the form of the model it starts from ("" for the checkpoint), and the program."""

    requirements: tuple[str, ...]
    form: str
    program: str


WAYS: dict[str, Way] = {
    "e5onnx": Way((f"{REPOSITORY}[export]",), "", _EXPORT.format(precision="fp32") + _ENCODE.format("fp32")),
    "e5onnx-int8": Way((f"{REPOSITORY}[export]",), "", _EXPORT.format(precision="int8") + _ENCODE.format("int8")),
    "e5onnx-ready": Way((str(REPOSITORY),), "e5onnx", _ENCODE.format("fp32")),
    "fastembed-ready": Way(REQUIREMENTS["fastembed"], "onnx", _FASTEMBED),
    "sentence-transformers-torch": Way(REQUIREMENTS["sentence-transformers"], "", _SENTENCE_TRANSFORMERS.format("")),
    "sentence-transformers-onnx": Way(
        REQUIREMENTS["sentence-transformers-onnx"], "", _SENTENCE_TRANSFORMERS.format(_ONNX)
    ),
}


def main() -> None:
    """Run as a program."""
    options = parser("first_vector", __doc__, rounds=2)
    options.add_argument("--ways", nargs="+", choices=WAYS, default=tuple(WAYS), help="ways (default: all)")
    arguments = options.parse_args()
    failed: dict[str, str] = {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.ways}
    for _ in range(arguments.rounds):
        for name in runs:
            with attempt(name, failed):
                sys.stderr.write(f"{name}\n")
                runs[name].append(_first_vector(WAYS[name]))
            results = {each: _describe(done) for each, done in runs.items() if done}
            content = {"rounds": arguments.rounds, "failed": failed, "ways": results}
            write(arguments.output, {"benchmark": "first_vector", **content})


def _first_vector(way: Way) -> dict[str, Any]:
    model = form(way.form, SHAPED) if way.form else checkpoint(SHAPED)
    with tempfile.TemporaryDirectory() as folder:
        start, worked = time.perf_counter(), _processor_seconds()
        _run([sys.executable, "-m", "venv", "venv"], folder)
        python = f"{folder}/venv/bin/python"
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
        _run([python, *pip, *way.requirements], folder)
        install, install_work = time.perf_counter() - start, _processor_seconds() - worked
        size = _megabytes(Path(folder))
        packages = {each["name"]: each["version"] for each in json.loads(_run([python, *_LIST], folder))}
        start, worked = time.perf_counter(), _processor_seconds()
        _run([python, "-c", way.program, str(model)], folder)
        vector, vector_work = time.perf_counter() - start, _processor_seconds() - worked
    return {
        "seconds": {
            "install": install,
            "first_vector": vector,
            "total": install + vector,
            "install_processor": install_work,
            "first_vector_processor": vector_work,
            "total_processor": install_work + vector_work,
        },
        "packages_megabytes": size,
        "packages": {name: version for name, version in packages.items() if name not in _INSTALLERS},
    }


def _describe(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = {key: statistics.median(run["seconds"][key] for run in runs) for key in runs[0]["seconds"]}
    last = runs[-1]
    return {
        "median_seconds": seconds,
        "packages_megabytes": last["packages_megabytes"],
        "package_number": len(last["packages"]),
        "packages": last["packages"],
        "runs": [run["seconds"] for run in runs],
    }


def _megabytes(folder: Path) -> float:
    """Return the size of the installed packages without the installers."""
    files = (
        file
        for site in folder.glob("venv/lib/python*/site-packages")
        for file in site.rglob("*")
        if file.relative_to(site).parts[0].split("-")[0] not in _INSTALLERS
    )
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _processor_seconds() -> float:
    """Return the processor time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(command: list[str], folder: str) -> str:
    # S603: a fixed command on paths of the harness
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=offline())  # noqa: S603
    if finished.returncode:
        lines = (finished.stderr or finished.stdout).strip().splitlines() or ["no message"]
        raise PeerError(f"{' '.join(command[1:4])[:80]}: {lines[-1]}")
    return finished.stdout


if __name__ == "__main__":
    main()
