"""What every benchmark shares: its options, the facts about the machine, the cosine check, the JSON document."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .environments import REPOSITORY
from .peers import PEERS, REFERENCE, THREADS

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def parser(name: str, description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return the options that all benchmarks have."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    options.add_argument("--rounds", type=int, default=rounds, help="rounds of measurement (default: %(default)s)")
    output = REPOSITORY / f"benchmarks/results/{name}.json"
    options.add_argument("--output", type=Path, default=output, help="where the JSON document goes")
    return options


_DEFAULT = tuple(name for name in PEERS if name != "e5onnx-openvino-cached")  # only loads otherwise


def add_peers(options: argparse.ArgumentParser, default: Sequence[str] = _DEFAULT) -> None:
    """Add --peers; the reference always runs."""
    shown = "all" if default is _DEFAULT else " ".join(default)
    options.add_argument("--peers", nargs="+", choices=PEERS, default=default, help=f"programs (default: {shown})")


def with_reference(peers: Sequence[str]) -> list[str]:
    """Return the programs to run, e5onnx first: the ratios and cosines are against it."""
    return [REFERENCE, *(name for name in peers if name != REFERENCE)]


def cosines(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    """Return the smallest and the mean cosine of corresponding rows.

    Rows of the reference have unit length.
    """
    rows = np.einsum("ij,ij->i", vectors, reference) / np.linalg.norm(vectors, axis=1)
    return {"smallest": float(rows.min()), "mean": float(rows.mean())}


def write(output: Path, content: Mapping[str, Any]) -> None:
    """Write the document, with date and machine before its content, whole or not at all."""
    document = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(),
        "threads": THREADS,
        **content,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(output)
    sys.stderr.write(f"wrote {output}\n")


def _machine() -> dict[str, Any]:
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", platform.processor()),
        "family_model_stepping": [facts.get(key) for key in ("cpu family", "model", "stepping")],
        "flags": {flag: flag in flags for flag in _FLAGS},
        "processors": os.cpu_count(),
        "load_average_at_end": os.getloadavg()[0],
        "system": platform.platform(),
    }
