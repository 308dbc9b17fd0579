"""How many passages, and tokens, per second each program embeds.

Two sets of real passages: short ones as on the web, and ones of 8 to 512 tokens. All programs are loaded side by side
and take turns, round by round, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .ceiling import measure
from .peers import REFERENCE, PeerError, Worker, e5onnx_model, running
from .report import add_peers, cosines, loaded, parser, with_reference, write
from .texts import mixed_passages, require_data, short_passages, token_count

_PAUSE = 0.3
"""Seconds between two programs, in which the threads of the one before stop spinning."""


def main() -> None:
    """Run as a program."""
    options = parser("throughput", __doc__, rounds=3)
    add_peers(options)
    options.add_argument("--texts", type=int, help="only so many texts of each set, for a trial")
    arguments = options.parse_args()
    require_data()
    sets: dict[str, Callable[[], list[str]]] = {"short": short_passages, "mixed": mixed_passages}
    model = e5onnx_model()
    ceiling = measure()
    with running(with_reference(arguments.peers)) as (workers, failed):
        results = {
            name: _measure(passages()[: arguments.texts], workers, failed, arguments.rounds, model, ceiling)
            for name, passages in sets.items()
        }
        content = {"programs": loaded(workers), "failed": failed, "ceiling": ceiling, "sets": results}
    write(arguments.output, {"benchmark": "throughput", "rounds": arguments.rounds, **content})


def _measure(
    texts: list[str],
    workers: dict[str, Worker],
    failed: dict[str, str],
    rounds: int,
    model: Path,
    ceiling: dict[str, Any],
) -> dict[str, Any]:
    """Check vectors, which also warms up; then time the rounds. A program that fails on the way is taken out."""
    vectors, peaks = {}, {}
    seconds: dict[str, list[float]] = {}
    for name, worker in list(workers.items()):
        try:
            vectors[name], peaks[name] = worker.vectors(texts, "document")
            seconds[name] = []
        except PeerError as error:
            failed[name] = str(error)
            del workers[name]
    for _ in range(rounds):
        for name, worker in list(workers.items()):
            time.sleep(_PAUSE)
            try:
                seconds[name] += worker.encode(texts, "document")
            except PeerError as error:
                failed[name] = str(error)
                del workers[name]
    tokens = token_count(texts, model)
    median = {name: statistics.median(seconds[name]) for name in workers}
    return {
        "passages": len(texts),
        "tokens": tokens,
        "programs": {
            name: {
                "passages_per_second": len(texts) / median[name],
                "tokens_per_second": tokens / median[name],
                "speed_relative_to_e5onnx": median[REFERENCE] / median[name],
                "share_of_fp32_ceiling": tokens / median[name] / ceiling["tokens_per_second"],
                "seconds": seconds[name],
                "cosine_to_e5onnx": cosines(vectors[name], vectors[REFERENCE]),
                "peak_megabytes": peaks[name],
            }
            for name in workers
        },
    }


if __name__ == "__main__":
    main()
