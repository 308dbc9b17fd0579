"""How many passages, and tokens, per second each program embeds.

Two sets of real passages: short ones as on the web, and ones of 8 to 512 tokens. All programs are loaded side by side
and take turns, round by round, so that what disturbs the machine disturbs all of them. Programs with batches run with
their default size and with the one that is fastest here, so that none is held back.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from .ceiling import measure
from .peers import BATCHED, REFERENCE, Programs, Worker, e5onnx_model, running
from .report import add_peers, cosines, parser, with_reference, write
from .texts import mixed_passages, require_data, short_passages, token_count

_BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def main() -> None:
    """Run as a program."""
    options = parser("throughput", __doc__, rounds=3)
    add_peers(options)
    options.add_argument("--texts", type=int, help="only so many texts of each set, for a trial")
    arguments = options.parse_args()
    require_data()
    sets = {"short": short_passages()[: arguments.texts], "mixed": mixed_passages()[: arguments.texts]}
    model = e5onnx_model()
    ceilings = [measure()]
    with running(with_reference(arguments.peers)) as programs:
        results = {name: _measure(texts, programs, arguments.rounds, model) for name, texts in sets.items()}
    ceilings.append(measure())
    best = max(ceiling["tokens_per_second"] for ceiling in ceilings)
    for result in results.values():
        for program in result["programs"].values():
            program["share_of_fp32_ceiling"] = program["tokens_per_second"] / best
    content = {"programs": programs.loaded, "failed": programs.failed, "sets": results}
    ceiling = {"fp32_ceiling_tokens_per_second": best, "ceilings_before_and_after": ceilings}
    write(arguments.output, {"benchmark": "throughput", "rounds": arguments.rounds, **ceiling, **content})


def _measure(texts: list[str], programs: Programs, rounds: int, model: Path) -> dict[str, Any]:
    """Check vectors, which also warms up; then time the rounds."""
    first = programs.take_turns(lambda worker: worker.vectors(texts, "document"))
    tried = programs.take_turns(lambda worker: _tried(worker, texts))
    best = {name: max(rates, key=rates.__getitem__) for name, rates in tried.items() if rates}

    def timed(worker: Worker) -> list[float]:
        sizes = [None, best[worker.name]] if worker.name in best else [None]
        return [worker.encode(texts, "document", batch_size=size).elapsed for size in sizes]

    turns = [programs.take_turns(timed) for _ in range(rounds)]
    tokens = token_count(texts, model)
    reference, _ = first[REFERENCE]
    seconds = {name: [list(each) for each in zip(*(turn[name] for turn in turns), strict=True)] for name in turns[-1]}
    e5onnx = statistics.median(seconds[REFERENCE][0])

    def speed(seconds: list[float]) -> dict[str, Any]:
        median = statistics.median(seconds)
        return {
            "passages_per_second": len(texts) / median,
            "tokens_per_second": tokens / median,
            "speed_relative_to_e5onnx": e5onnx / median,
            "seconds": seconds,
        }

    return {
        "passages": len(texts),
        "tokens": tokens,
        "programs": {
            name: {
                **speed(own),
                "cosine_to_e5onnx": cosines(first[name][0], reference),
                "peak_megabytes": first[name][1].peak_megabytes,
                **({"best_batch": {"size": best[name], "tried": tried[name], **speed(*tuned)}} if tuned else {}),
            }
            for name, (own, *tuned) in seconds.items()
        },
    }


def _tried(worker: Worker, texts: list[str]) -> dict[int, float]:
    """Return the passages a second at each size of batches, if the program has batches."""
    sizes = _BATCH_SIZES if worker.name in BATCHED else ()
    return {size: len(texts) / worker.encode(texts, "document", batch_size=size).elapsed for size in sizes}


if __name__ == "__main__":
    main()
