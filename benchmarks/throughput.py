"""How many passages, and tokens, per second each program embeds.

Two sets of real passages: short ones as on the web, and ones of 8 to 512 tokens. All programs are loaded side by side
and take turns, round by round, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from .ceiling import measure
from .peers import REFERENCE, Programs, e5onnx_model, running
from .report import add_peers, cosines, parser, with_reference, write
from .texts import mixed_passages, require_data, short_passages, token_count


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
    turns = [programs.take_turns(lambda worker: worker.encode(texts, "document")) for _ in range(rounds)]
    tokens = token_count(texts, model)
    reference, _ = first[REFERENCE]
    seconds = {name: [turn[name].elapsed for turn in turns] for name in programs.workers}
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "passages": len(texts),
        "tokens": tokens,
        "programs": {
            name: {
                "passages_per_second": len(texts) / median[name],
                "tokens_per_second": tokens / median[name],
                "speed_relative_to_e5onnx": median[REFERENCE] / median[name],
                "seconds": seconds[name],
                "cosine_to_e5onnx": cosines(first[name][0], reference),
                "peak_megabytes": first[name][1].peak_megabytes,
            }
            for name in programs.workers
        },
    }


if __name__ == "__main__":
    main()
