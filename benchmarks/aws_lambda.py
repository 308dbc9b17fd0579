"""How long a function on AWS Lambda takes to start and to answer, as far as that shows without AWS.

The deployment zip is made, unzipped and served by AWS' own client (`awslambdaric`) against a stand-in of Lambda's
runtime API on this machine, with one thread, as a function of 1769 MB gets one processor. Cold is the time from the
start of the process to the reply to an event that waits; warm that of the same event afterwards. Files are in the
page cache: what a container takes to be placed and to fetch the zip is not in it.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from e5onnx.lambda_package import pack_lambda

from .lambda_runtime import lambda_function
from .peers import e5onnx_model
from .report import parser, write

_EVENT = {"input": "how much protein should a female eat", "input_type": "query"}
_WARM = 50


def main() -> None:
    """Run as a program."""
    arguments = parser("aws_lambda", __doc__, rounds=7).parse_args()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as temporary:
        archive = pack_lambda(e5onnx_model(), Path(temporary, "function.zip"), python=python)
        code, without = Path(temporary, "code"), Path(temporary, "without byte code")
        with zipfile.ZipFile(archive) as content:
            content.extractall(code)
        shutil.copytree(code, without, ignore=shutil.ignore_patterns("__pycache__"))
        variants = {"with byte code": code, "without byte code": without}
        for folder in variants.values():
            _serve(folder)  # so that files are in the page cache
        served: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
        for _ in range(arguments.rounds):
            for name, folder in variants.items():
                served[name].append(_serve(folder))
        results: dict[str, Any] = {
            name: {
                "median": {key: statistics.median(each[key] for each in starts) for key in starts[0]},
                "unzipped_megabytes": _megabytes(variants[name]),
                "starts": starts,
            }
            for name, starts in served.items()
        }
        content_of = {"python": python, "zip_megabytes": archive.stat().st_size / 1e6, "variants": results}
    write(arguments.output, {"benchmark": "aws_lambda", "rounds": arguments.rounds, **content_of})


def _serve(code: Path) -> dict[str, float]:
    start = time.perf_counter()
    with lambda_function(code, {"E5ONNX_THREADS": "1", "HOME": "/nowhere"}) as function:
        function.invoke(_EVENT)
        cold = time.perf_counter() - start
        warm = []
        for _ in range(_WARM):
            start = time.perf_counter()
            function.invoke(_EVENT)
            warm.append(time.perf_counter() - start)
    return {"cold_seconds": cold, "warm_seconds": statistics.median(warm)}


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
