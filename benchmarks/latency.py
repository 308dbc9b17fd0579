"""How long a caller waits for one vector: of a short question, and of passages of 32, 128 and 512 tokens.

All programs are loaded side by side and take turns, a round of texts each; every text is one call. First nothing else
calls; then four callers share the questions and call the same program concurrently.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from e5onnx import Tokenizer

from .peers import REFERENCE, Encoded, Kind, Programs, Worker, e5onnx_model, running
from .report import add_peers, cosines, parser, with_reference, write
from .texts import passages_of, queries, require_data

_CALLERS = 4
_LENGTHS = (32, 128, 512)
_WARM_UP = 2
"""Texts that each program gets one by one before it is timed; it has had all of them in one call by then."""


def main() -> None:
    """Run as a program."""
    options = parser("latency", __doc__, rounds=4)
    add_peers(options)
    options.add_argument("--queries", type=int, default=50, help="questions in a round (default: %(default)s)")
    options.add_argument("--passages", type=int, default=5, help="passages of a length (default: %(default)s)")
    arguments = options.parse_args()
    require_data()
    tokenizer = Tokenizer(e5onnx_model())
    questions = queries(arguments.queries)
    sets: dict[str, tuple[Kind, list[str]]] = {"query": ("query", questions)}
    for tokens in _LENGTHS:
        sets[f"passage_{tokens}_tokens"] = ("document", passages_of(tokens, arguments.passages, tokenizer))
    with running(with_reference(arguments.peers)) as programs:
        results = _one_caller(sets, programs, arguments.rounds)
        # Last, since a program that cannot be called concurrently ends here.
        results[f"query_{_CALLERS}_callers"] = _concurrent_callers(questions, programs, arguments.rounds)
    content = {"programs": programs.loaded, "failed": programs.failed, "sets": results}
    write(arguments.output, {"benchmark": "latency", "rounds": arguments.rounds, **content})


def _one_caller(sets: dict[str, tuple[Kind, list[str]]], programs: Programs, rounds: int) -> dict[str, Any]:
    """Check vectors and warm up, then time the rounds: in its turn, a program is called on the texts of all sets."""

    def first(worker: Worker) -> dict[str, Any]:
        vectors = {name: worker.vectors(texts, kind)[0] for name, (kind, texts) in sets.items()}
        for kind, texts in sets.values():
            worker.encode(texts[:_WARM_UP], kind, each=True)
        return vectors

    def timed(worker: Worker) -> dict[str, Encoded]:
        return {name: worker.encode(texts, kind, each=True) for name, (kind, texts) in sets.items()}

    vectors = programs.take_turns(first)
    turns = [programs.take_turns(timed) for _ in range(rounds)]
    results = {}
    for name, (_, texts) in sets.items():
        described = _describe([{program: turn[program][name] for program in programs.workers} for turn in turns])
        for program, figures in described.items():
            figures["cosine_to_e5onnx"] = cosines(vectors[program][name], vectors[REFERENCE][name])
        results[name] = {"texts": len(texts), "callers": 1, "programs": described}
    return results


def _concurrent_callers(questions: list[str], programs: Programs, rounds: int) -> dict[str, Any]:
    """Time the rounds of several callers at once, after one that warms up the threads."""

    def timed(worker: Worker) -> Encoded:
        return worker.encode(questions, "query", each=True, callers=_CALLERS)

    programs.take_turns(timed)
    turns = [programs.take_turns(timed) for _ in range(rounds)]
    described = _describe([{program: turn[program] for program in programs.workers} for turn in turns])
    return {"texts": len(questions), "callers": _CALLERS, "programs": described}


def _describe(turns: list[dict[str, Encoded]]) -> dict[str, dict[str, Any]]:
    """Return each program's percentiles over the calls of all turns, and its ratio to e5onnx."""
    seconds = {program: [call for turn in turns for call in turn[program].seconds] for program in turns[0]}
    reference = float(np.median(seconds[REFERENCE]))
    return {
        program: {
            **{f"p{percent}_ms": float(np.percentile(calls, percent)) * 1000 for percent in (50, 95, 99)},
            "p50_relative_to_e5onnx": float(np.median(calls)) / reference,
            "calls": len(calls),
            "calls_per_second": statistics.median(len(turn[program].seconds) / turn[program].elapsed for turn in turns),
        }
        for program, calls in seconds.items()
    }


if __name__ == "__main__":
    main()
