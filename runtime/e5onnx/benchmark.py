"""The command `e5onnx benchmark`: speed and memory of each precision and provider of a model on this host.

Each kind has a process of its own, and they take turns, as the speed of many hosts changes from one second to the next.
The texts are made up: only their lengths matter.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import kinds as kinds_
from .errors import InferenceError
from .kinds import Kind
from .progress import bar
from .terminal import json_report, print_line, shows_progress
from .version import __version__

if TYPE_CHECKING:
    from .encoder import Encoder

_WORDS = (
    "the a an of to in for on with by at from and or but not is are was were has have it they we you this that city "
    "river protein summit history music water energy system market people country doctor school road winter engine "
    "small large early recent common local public higher slowly often never always between during after before under"
)
_PASSAGES = 512
_QUESTIONS = 20
_FEWEST_ROUNDS = 3
_ROUND_SECONDS = 1.0
"""About how long a kind embeds passages in a round."""
_R = TypeVar("_R")


@dataclass
class Measured:
    """What was measured of a kind.

    Attributes:
        loading_seconds: until the first vector, from the imports on.
        passages_per_second: one value for each round.
        question_seconds: of single questions, in all rounds.
        peak_memory: bytes of the process; None where the system does not tell.
    """

    fingerprint: str
    threads: int
    loading_seconds: float
    passages_per_second: list[float] = field(default_factory=list)
    question_seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, except the model's, to its parser."""
    kinds_.add_arguments(parser.add_argument_group("model"))
    parser.add_argument(
        "--seconds", type=_seconds, default=120, metavar="S", help="about how long to measure (default: 120)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all values as JSON to a file, or - for standard output")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from .host import describe_host

    with json_report(options.json) as report:
        kinds, left_out = kinds_.find_kinds(options)
        results = _measured(options, kinds)
        content = {
            "model": options.model,
            "e5onnx": __version__,
            "host": asdict(describe_host()),
            "tokens_per_passage": _tokens_per_passage(kinds_.load(options, kinds[0])),
            "results": [{**kind._asdict(), **asdict(results[kind])} for kind in kinds],
            "left_out": [each._asdict() for each in left_out],
        }
        if report(content):
            return
    _print_table(content)


def passages() -> list[str]:
    """Return made-up passages of 16 to 80 words, always the same."""
    return _texts(_PASSAGES, 16, 80)


def _texts(number: int, shortest: int, longest: int) -> list[str]:
    words = random.Random(0)  # noqa: S311 - nothing secret
    return [" ".join(words.choices(_WORDS.split(), k=words.randint(shortest, longest))) for _ in range(number)]


def _measured(options: argparse.Namespace, kinds: list[Kind]) -> dict[Kind, Measured]:
    end = time.monotonic() + options.seconds
    with ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        workers = {kind: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for kind in kinds}

        def ask(kind: Kind, function: Callable[..., _R], *arguments: Any) -> _R:
            try:
                return workers[kind].submit(function, *arguments).result()
            except BrokenProcessPool as error:
                raise InferenceError(
                    f"the process of {kind.provider} {kind.precision} died; perhaps the memory was not enough: "
                    "measure fewer kinds, with --precision and --provider"
                ) from error

        advance = stack.enter_context(bar(shows_progress(), "Measuring", len(kinds) * _FEWEST_ROUNDS, "turn"))
        model = argparse.Namespace(model=options.model, threads=options.threads, revision=options.revision)
        results = {kind: ask(kind, _load, model, kind) for kind in kinds}
        texts = {kind: max(1, round(_ROUND_SECONDS * ask(kind, _rate, 32))) for kind in kinds}  # also warms up
        rounds = 0
        while rounds < _FEWEST_ROUNDS or time.monotonic() < end:
            for kind in kinds[rounds % len(kinds) :] + kinds[: rounds % len(kinds)]:
                results[kind].passages_per_second.append(ask(kind, _rate, texts[kind]))
                results[kind].question_seconds += ask(kind, _questions)
                advance(1)
            rounds += 1
        for kind in kinds:
            results[kind].peak_memory = ask(kind, _peak_memory)
    return results


# In the process of a kind

_encoder: Encoder


def _load(model: argparse.Namespace, kind: Kind) -> Measured:
    global _encoder
    start = time.perf_counter()
    _encoder = kinds_.load(model, kind)
    _encoder.encode_query("the first vector")
    return Measured(_encoder.fingerprint, _encoder.threads, time.perf_counter() - start)


def _rate(number: int) -> float:
    texts = (passages() * (number // _PASSAGES + 1))[:number]
    start = time.perf_counter()
    _encoder.encode_document(texts)
    return number / (time.perf_counter() - start)


def _questions() -> list[float]:
    seconds = []
    for text in _texts(_QUESTIONS, 6, 12):
        start = time.perf_counter()
        _encoder.encode_query(text)
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak_memory() -> int | None:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the parent had at the fork
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# The table


def _tokens_per_passage(encoder: Encoder) -> float:
    prompt = encoder.tokenizer.prompt_for("document")
    return round(statistics.fmean(len(text.ids) for text in encoder.tokenizer.tokenize(passages(), prompt)), 1)


def _print_table(content: dict[str, Any]) -> None:
    rows = content["results"]
    rates = [statistics.median(row["passages_per_second"]) for row in rows]
    latencies = [statistics.median(row["question_seconds"]) for row in rows]
    host = content["host"]
    print_line(
        f"{host['processor']}, threads {rows[0]['threads']}; passages of {content['tokens_per_passage']:.0f} tokens on "
        f"average, {len(rows[0]['passages_per_second'])} rounds, medians; * is the best"
    )
    print_line("provider  precision   passages/s     question ms (95 %)   loaded in    memory")
    for row, rate, latency in zip(rows, rates, latencies, strict=True):
        late = statistics.quantiles(row["question_seconds"], n=20)[-1]
        memory = "not known" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.0f} MB"
        print_line(
            f"{row['provider']:<8}  {row['precision']:<9}  {rate:>10,.1f} {'*' if rate == max(rates) else ' '}"
            f"{latency * 1e3:>11.2f} {'*' if latency == min(latencies) else ' '} ({late * 1e3:6.2f})"
            f"{row['loading_seconds']:>12.2f} s{memory:>10}"
        )
    for each in content["left_out"]:
        print_line(f"left out: {each['provider']} {each['precision']}: {each['reason']}")


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= 86_400:  # also false for nan
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 86400 seconds, got {text}")
    return number
