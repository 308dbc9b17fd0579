"""How long one caller waits for one vector: short questions, and passages of 32, 128 and 512 tokens.

All programs are loaded side by side and take turns, a round of texts each; every text is one call. Nothing else calls.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from e5onnx import Tokenizer

from .peers import REFERENCE, Kind, PeerError, Worker, e5onnx_model, running
from .report import add_peers, cosines, loaded, parser, with_reference, write
from .texts import passages_of, queries, require_data

_PAUSE = 0.3
"""Seconds between two programs, in which the threads of the one before stop spinning."""


def main() -> None:
    """Run as a program."""
    options = parser("latency", __doc__, rounds=4)
    add_peers(options)
    options.add_argument("--queries", type=int, default=50, help="questions in a round (default: %(default)s)")
    options.add_argument("--passages", type=int, default=15, help="passages of a length (default: %(default)s)")
    arguments = options.parse_args()
    require_data()
    tokenizer = Tokenizer(e5onnx_model())
    sets: dict[str, tuple[Kind, list[str]]] = {"query": ("query", queries(arguments.queries))}
    for tokens in (32, 128, 512):
        sets[f"passage_{tokens}_tokens"] = ("document", passages_of(tokens, arguments.passages, tokenizer))
    with running(with_reference(arguments.peers)) as (workers, failed):
        results = {
            name: _measure(kind, texts, workers, failed, arguments.rounds) for name, (kind, texts) in sets.items()
        }
        content = {"programs": loaded(workers), "failed": failed, "sets": results}
    write(arguments.output, {"benchmark": "latency", "rounds": arguments.rounds, **content})


def _measure(
    kind: Kind, texts: list[str], workers: dict[str, Worker], failed: dict[str, str], rounds: int
) -> dict[str, Any]:
    """Check vectors and warm up, then time the rounds. A program that fails on the way is taken out."""
    vectors = {}
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, worker in list(workers.items()):
            time.sleep(_PAUSE)
            try:
                if turn == 0:
                    vectors[name], _ = worker.vectors(texts, kind)
                    worker.encode(texts[:5], kind, each=True)
                    seconds[name] = []
                else:
                    seconds[name] += worker.encode(texts, kind, each=True)
            except PeerError as error:
                failed[name] = str(error)
                del workers[name]
    median = {name: float(np.median(seconds[name])) for name in workers}
    return {
        "texts": len(texts),
        "programs": {
            name: {
                **_percentiles(seconds[name]),
                "p50_relative_to_e5onnx": median[name] / median[REFERENCE],
                "calls": len(seconds[name]),
                "cosine_to_e5onnx": cosines(vectors[name], vectors[REFERENCE]),
            }
            for name in workers
        },
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{percent}_ms": float(np.percentile(seconds, percent)) * 1000 for percent in (50, 95, 99)}


if __name__ == "__main__":
    main()
