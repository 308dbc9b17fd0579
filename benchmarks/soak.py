"""Whether memory stays flat over very many calls: one text of any length a call, every tenth call a small batch.

Memory is that of this process. It is read a hundred times; what the first tenth of the calls needed at most is what the
rest is compared with.
"""

from __future__ import annotations

import math
import random
import sys
import time
from itertools import count
from pathlib import Path

from e5onnx import Encoder
from e5onnx.model_folder import ModelFolder

from .peers import e5onnx_model
from .report import parser, write

_WORDS = ["time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child"]
_WORDS += ["eye", "woman", "place", "work", "week", "case", "point", "company"]
_BATCH = 8


def main() -> None:
    """Run as a program."""
    options = parser("soak", __doc__, rounds=1)
    options.add_argument("--calls", type=int, default=1_000_000, help="calls of encode (default: %(default)s)")
    options.add_argument("--minutes", type=float, default=math.inf, help="stop earlier after so long")
    options.add_argument("--model", type=Path, help="model folder (default: the checkpoint of E5-small's shape)")
    options.add_argument("--precision", choices=["fp32", "int8"], default="int8")
    options.add_argument("--threads", type=int, default=2)
    arguments = options.parse_args()
    model = arguments.model or e5onnx_model()
    encoder = Encoder(model, precision=arguments.precision, threads=arguments.threads)
    generator = random.Random(0)  # noqa: S311 - no secret
    samples: list[tuple[int, float, float]] = []
    tokens, start, sampled = 0, time.perf_counter(), 0
    for call in count(1):
        texts = [random_text(generator) for _ in range(_BATCH if call % 10 == 0 else 1)]
        encoder.encode(texts, prompt="")
        tokens += sum(text.count(" ") + 3 for text in texts)
        seconds = time.perf_counter() - start
        share = max(call / arguments.calls, seconds / 60 / arguments.minutes)
        if share * 100 >= sampled:
            sampled += 1
            samples.append((call, seconds, resident_megabytes()))
            sys.stderr.write(f"{call:>9} calls, {seconds:8.1f} s, {samples[-1][2]:.1f} MB\n")
        if share >= 1:
            break
    manifest = ModelFolder.open(model).manifest
    settled = max(megabytes for _, _, megabytes in samples[: max(1, len(samples) // 10)])
    content = {
        "model": {"layers": manifest.layers, "dimension": manifest.dimension, "precision": arguments.precision},
        "encoder_threads": arguments.threads,
        "calls": samples[-1][0],
        "seconds": samples[-1][1],
        "tokens": tokens,
        "megabytes_after_a_tenth": settled,
        "megabytes_at_most": max(megabytes for _, _, megabytes in samples),
        "megabytes_at_the_end": samples[-1][2],
        "samples": samples,
    }
    write(arguments.output, {"benchmark": "soak", **content})


def random_text(generator: random.Random) -> str:
    """Return a text of 1 to 500 words, every order of magnitude as often as another."""
    return random_words(generator, round(math.exp(generator.uniform(0, math.log(500)))))


def random_words(generator: random.Random, number: int) -> str:
    """Return a text of so many words."""
    return " ".join(generator.choices(_WORDS, k=number))


def resident_megabytes(status: Path = Path("/proc/self/status")) -> float:
    """Return the memory of a process in use."""
    for line in status.read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{status} has no VmRSS")


if __name__ == "__main__":
    main()
