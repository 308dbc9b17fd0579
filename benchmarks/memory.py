"""How the peak of resident memory depends on the number of texts in a call, and on their length.

Every point is a process of its own, which loads the program, embeds once and says its peak. The texts, and the vectors
at 1.5 kB a text, are part of it. The others get fewer texts, since they are slow: 10,000 questions are for e5onnx only.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from e5onnx import Tokenizer

from .peers import REFERENCE, Kind, attempt, e5onnx_model, installed
from .report import add_peers, parser, with_reference, write
from .texts import passages_of, queries, require_data, short_passages, token_count

_PEERS = (REFERENCE, "fastembed", "sentence-transformers-torch")
_DIFFERENT = 500
"""Different texts; longer lists repeat them."""

Points = dict[int, list[str]]
"""Number of texts or tokens of each -> the texts of one call."""


def main() -> None:
    """Run as a program."""
    options = parser("memory", __doc__, rounds=1)
    add_peers(options, _PEERS)
    options.add_argument("--passages", type=int, nargs="+", default=[10, 100, 500], help="numbers of short passages")
    options.add_argument("--questions", type=int, nargs="+", default=[500, 10000], help="numbers, for e5onnx only")
    options.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512], help="tokens of a passage")
    options.add_argument("--texts", type=int, default=100, help="passages of a length (default: %(default)s)")
    arguments = options.parse_args()
    require_data()
    names, rounds, model = with_reference(arguments.peers), arguments.rounds, e5onnx_model()
    tokenizer = Tokenizer(model)
    passages = {number: _repeated(short_passages(_DIFFERENT), number) for number in arguments.passages}
    questions = {number: _repeated(queries(_DIFFERENT), number) for number in arguments.questions}
    lengths = {
        tokens: _repeated(passages_of(tokens, arguments.texts, tokenizer), arguments.texts)
        for tokens in arguments.lengths
    }
    failed: dict[str, str] = {}
    sets = {
        "number_of_passages": _measure("document", passages, names, rounds, failed, model),
        "number_of_questions": _measure("query", questions, [REFERENCE], rounds, failed, model),
        "tokens_of_a_passage": _measure("document", lengths, names, rounds, failed, model),
    }
    write(arguments.output, {"benchmark": "memory", "rounds": rounds, "failed": failed, "sets": sets})


def _measure(
    kind: Kind, points: Points, names: Sequence[str], rounds: int, failed: dict[str, str], model: Path
) -> dict[str, Any]:
    """Return each program's peak at each point. A program that fails at one has none at those after it."""
    programs: dict[str, dict[int, Any]] = {name: {} for name in names}
    for key, texts in points.items():
        for name in names:
            if name not in failed:
                with attempt(name, failed):
                    programs[name][key] = _peak(name, kind, texts, rounds)
    described = {
        key: {"texts": len(texts), "different": len(set(texts)), "tokens": token_count(texts, model)}
        for key, texts in points.items()
    }
    return {"points": described, "programs": programs}


def _peak(name: str, kind: Kind, texts: list[str], rounds: int) -> dict[str, Any]:
    """Return the median peak of fresh processes in megabytes, after loading and after one call on all texts."""
    installation = installed(name)
    after_load, after_call, seconds = [], [], []
    for _ in range(rounds):
        sys.stderr.write(f"{name}: {len(texts)} texts\n")
        with installation.launch() as worker:
            after_load.append(worker.receive()["peak_megabytes"])
            encoded = worker.encode(texts, kind)
        after_call.append(encoded.peak_megabytes)
        seconds.append(encoded.elapsed)
    return {
        "loaded_peak_megabytes": statistics.median(after_load),
        "peak_megabytes": statistics.median(after_call),
        "peaks_megabytes": after_call,
        "seconds": seconds,
    }


def _repeated(texts: list[str], number: int) -> list[str]:
    return list(islice(cycle(texts), number))


if __name__ == "__main__":
    main()
