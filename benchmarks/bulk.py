"""What embedding files costs beside the model: throughput against the encoder alone, Ray's overhead, memory.

Throughput: the same passages through `Encoder.encode_document` and, from JSON lines into Parquet, through
`embed_files`, in turns; then through two Ray actors of one thread each, where a cluster of this machine runs already:
their start counts, its start does not. Kept columns: processor time of reading 100,000 rows of Parquet with a small
object beside each text, without it, and by Arrow alone. Memory: that of the command over a million generated short
rows, read every second; what the first tenth needed at most is what the rest is compared with.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from e5onnx import Encoder
from e5onnx.files import Columns, embed_files
from e5onnx.files.inputs import describe_file
from e5onnx.files.plan import plan_parts
from e5onnx.files.rows import RowReader, typed_columns
from e5onnx.model_folder import ModelFolder

from .peers import ENCODERS, THREADS, e5onnx_model
from .report import parser, write
from .soak import random_words, resident_megabytes
from .texts import require_data, short_passages

_KEPT_ROWS = 100_000


def main() -> None:
    """Run as a program."""
    options = parser("bulk", __doc__, rounds=3)
    options.add_argument("--rows", type=int, default=2000, help="passages of a round (default: %(default)s)")
    options.add_argument("--memory-rows", type=int, default=1_000_000, help="0 for none (default: %(default)s)")
    options.add_argument("--memory-model", type=Path, help="model folder for them (default: that of E5-small's shape)")
    options.add_argument("--no-throughput", action="store_true", help="kept columns and memory only")
    arguments = options.parse_args()
    content: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.no_throughput:
            require_data()
            content["throughput"] = _throughput(Path(folder), arguments.rows, arguments.rounds)
        content["kept_columns"] = _kept_columns(Path(folder), arguments.rounds)
        if arguments.memory_rows:
            model = arguments.memory_model or e5onnx_model()
            content["memory"] = _memory(Path(folder), model, arguments.memory_rows)
    write(arguments.output, {"benchmark": "bulk", **content})


def _throughput(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    texts = list(islice(cycle(short_passages(512)), rows))
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    result: dict[str, Any] = {"rows": rows}
    for name, (precision, provider) in ENCODERS.items():
        encoder = Encoder(e5onnx_model(), precision=precision, provider=provider, threads=THREADS)
        one_thread = Encoder(e5onnx_model(), precision=precision, provider=provider, threads=1)
        encoder.encode_document(texts[:100])
        seconds: dict[str, list[float]] = {"encoder": [], "files": [], "ray": []}
        for number in range(rounds):
            files = partial(embed_files, inputs=[str(corpus)], part_rows=250)
            local, cluster = folder / f"local-{name}-{number}", folder / f"ray-{name}-{number}"
            seconds["encoder"].append(_seconds(partial(encoder.encode_document, texts)))
            seconds["files"].append(_seconds(partial(files, encoder, output=local)))
            ray.init(log_to_driver=False, logging_level="ERROR")
            seconds["ray"].append(_seconds(partial(files, one_thread, output=cluster, engine="ray")))
            ray.shutdown()
            sys.stderr.write(f"{name}: " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in seconds.items()) + "\n")
        result[name] = {
            "rows_per_second": {name: rows / statistics.median(each) for name, each in seconds.items()},
            "share_of_encoder": {
                name: statistics.median(a / b for a, b in zip(seconds["encoder"], seconds[name], strict=True))
                for name in ("files", "ray")
            },
            "seconds": seconds,
        }
    return result


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _kept_columns(folder: Path, rounds: int) -> dict[str, Any]:
    path = folder / "kept.parquet"
    objects = [{"a": number, "b": str(number), "c": number / 3} for number in range(_KEPT_ROWS)]
    pq.write_table(pa.table({"text": [f"text number {number}" for number in range(_KEPT_ROWS)], "k": objects}), path)
    files = [describe_file(path)]
    parts = plan_parts(files)

    def read(columns: Columns) -> None:
        reader = RowReader(files, typed_columns(columns, {}, files, parts[0]))
        for part in parts:
            reader.read(part)

    ways: dict[str, Callable[[], object]] = {
        "kept": partial(read, Columns(keep=("k",))),
        "texts": partial(read, Columns()),
        "arrow": partial(pq.read_table, path),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {"rows": _KEPT_ROWS, "median_processor_seconds": medians, "processor_seconds": seconds}


def _memory(folder: Path, model: Path, rows: int) -> dict[str, Any]:
    corpus, output = folder / "many.jsonl", folder / "many"
    generator = random.Random(0)  # noqa: S311 - no secret
    with corpus.open("w") as stream:
        for number in range(rows):
            text = random_words(generator, generator.randint(3, 12))
            stream.write(json.dumps({"id": f"row {number}", "text": text}) + "\n")
    command = [sys.executable, "-m", "e5onnx", "embed", str(model), str(corpus), "--id-column", "id"]
    command += ["--output", str(output), "--threads", str(THREADS)]
    samples: list[tuple[float, int, float]] = []
    start = time.perf_counter()
    with subprocess.Popen(command) as process:  # noqa: S603 - fixed arguments and paths of the harness
        while process.poll() is None:
            time.sleep(1)
            parts = len(list(output.glob("part-*.parquet")))
            memory = _memory_of(process.pid)
            if memory is not None and parts:
                samples.append((time.perf_counter() - start, parts, memory))
        if process.returncode:
            raise RuntimeError(f"e5onnx embed ended with {process.returncode}")
    parts = len(list(output.glob("part-*.parquet")))
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    manifest = ModelFolder.open(model).manifest
    return {
        "rows": rows,
        "model": {"layers": manifest.layers, "dimension": manifest.dimension},
        "seconds": seconds,
        "parts": parts,
        "megabytes_after_a_tenth": max(memory for _, part, memory in samples if part <= max(2, parts // 10)),
        "megabytes_at_most": max(memory for _, _, memory in samples),
        "megabytes_at_the_end": samples[-1][2],
        "samples": samples[:: max(1, len(samples) // 100)],
    }


def _memory_of(process: int) -> float | None:
    try:
        return resident_megabytes(Path(f"/proc/{process}/status"))
    except (OSError, RuntimeError):  # it has just ended
        return None


if __name__ == "__main__":
    main()
