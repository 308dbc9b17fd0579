"""`embed_files`: embed files into an output folder, and resume where the last run stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from numpy.typing import ArrayLike

from ..checks import whole_number
from ..encoder import Advance, Encoder
from ..errors import InputTypeError, InputValueError, JobChangedError
from ..progress import bar
from ..quantization import check_ranges
from ..tokenizer import Role
from . import engines
from .columns import Columns
from .engines import OnError
from .inputs import Format, InputFile, describe_file, find_files, warn_of_ignored
from .job import Job, JobOptions, Plan, check_unchanged, opened_folder, read_plan, write_plan
from .outputs import DType, OutputFormat
from .plan import PART_ROWS, plan_parts
from .rows import check_columns, typed_columns

Engine = Literal["local", "ray"]
Truncate = Literal["warn", "error"]


@dataclass(frozen=True)
class Summary:
    """The content of a complete output folder. `tokens` counts those of all texts, prompts included."""

    rows: int
    rejected: int
    truncated: int
    tokens: int
    parts: int
    dimension: int
    fingerprint: str


def embed_files(
    encoder: Encoder,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    columns: Columns | None = None,
    column_types: Mapping[str, str] | None = None,
    role: Role = "document",
    input_format: Format | None = None,
    output_format: OutputFormat = "parquet",
    dtype: DType = "float32",
    ranges: ArrayLike | None = None,
    truncate: Truncate = "warn",
    on_error: OnError = "stop",
    part_rows: int = PART_ROWS,
    engine: Engine = "local",
    address: str | None = None,
    show_progress_bar: bool = False,
) -> Summary:
    """Embed the rows of files into an output folder. The same call after a crash resumes where the last run stopped.

    Args:
        encoder: the model. On Ray, each actor loads the same folder and precision, with as many threads.
        inputs: one or more files, globs and folders of JSON lines, CSV, Parquet and text, compressed (gz, bz2, xz,
            zst) or not.
        output: a folder; `job.py` shows its layout.
        columns: the columns of texts, titles and ids, and those to keep.
        column_types: Arrow types, by name, of ids and kept columns, if the first part does not reveal them.
        role: which of the model's prompts to put before each text.
        input_format: the format of all files; by default the suffix of each decides.
        output_format: "parquet", or "npy" with ids and kept columns in JSON lines beside it.
        dtype: the type of the vectors; "int8" without `ranges` adds a scale per row, "embedding_scale". The others are
            those of :func:`e5onnx.quantization.quantize_embeddings`: "uint8", and "int8" with `ranges`, have 256 steps
            per component; "binary" and "ubinary" keep its sign, eight to a byte.
        ranges: smallest and largest value of each component, `[2, dimension]`, for "uint8" and "int8"; see
            :func:`e5onnx.quantization.quantization_ranges`. The summary keeps them.
        truncate: "error" rejects texts longer than the model's maximum.
        on_error: what to do about a row that cannot be embedded: "stop" raises, "skip" notes it in `rejects.jsonl`.
        part_rows: maximum number of records of a part.
        engine: "local" for this machine, "ray" for a cluster.
        address: the address of the Ray cluster.
        show_progress_bar: show rows, tokens/s and the time left.

    Returns:
        The content of the folder.

    Raises:
        RowError: a row cannot be embedded; finished parts are kept.
        JobChangedError: the folder was started with another input, another model or other options.
        InputTypeError: an argument has the wrong type.
        InputValueError: an option has an impossible value, or a file is damaged.
        OSError: a file cannot be read or written.

    Example:
        >>> from e5onnx import Encoder
        >>> from e5onnx.files import embed_files
        >>> summary = embed_files(Encoder("models/sample"), "corpus.jsonl", "vectors")  # doctest: +SKIP
    """
    _check_choice("role", role, Role)
    _check_choice("output_format", output_format, OutputFormat)
    _check_choice("dtype", dtype, DType)
    _check_choice("truncate", truncate, Truncate)
    _check_choice("on_error", on_error, OnError)
    _check_choice("engine", engine, Engine)
    if input_format is not None:
        _check_choice("input_format", input_format, Format)
    if ranges is None and dtype == "uint8":
        raise InputValueError("uint8 needs `ranges`, one for the whole corpus: measure them on vectors of a sample")
    if ranges is not None and dtype not in ("int8", "uint8"):
        raise InputValueError(f"{dtype} has no use for `ranges`: leave them out")
    part_rows = whole_number("part_rows", part_rows)
    if part_rows < 1:
        raise InputValueError(f"part_rows must be at least 1, got {part_rows}")
    output = Path(output)
    options = JobOptions(
        checkpoint=encoder.manifest.checkpoint,
        revision=encoder.manifest.revision,
        precision=encoder.precision,
        provider=encoder.provider,
        fingerprint=encoder.fingerprint,
        dimension=encoder.dimension,
        role=role,
        prompt=encoder.tokenizer.prompt_for(role),
        columns=columns or Columns(),
        truncate=truncate,
        input_format=input_format,
        output_format=output_format,
        dtype=dtype,
        ranges=None if ranges is None else check_ranges(ranges, encoder.dimension).tolist(),
        part_rows=part_rows,
    )
    unknown = set(column_types or ()).difference(options.columns.stored())
    if unknown:
        raise InputValueError(f"column_types names {', '.join(map(repr, unknown))}, which is neither the id nor kept")
    found = find_files(_names(inputs))
    warn_of_ignored(found.ignored)
    with opened_folder(output):
        plan = _planned(output, found.files, options, column_types or {}, show_progress_bar)
        with bar(show_progress_bar, "Checking parts", len(plan.parts), "part") as advance:
            job = Job(output, plan, advance=advance)
        if job.todo():
            _run(encoder, job, on_error, engine, address, show_progress_bar)
            _check_files(plan.files, output)
        return _finished(job)


def _names(inputs: Any) -> list[str]:
    """Return the names of files, folders and globs, or say what is not one."""
    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    if not isinstance(given, Iterable):
        raise InputTypeError(f"inputs must be a file, a folder or a list of these, got {type(given).__name__}")
    names = []
    for position, each in enumerate(given):
        name = os.fspath(each) if isinstance(each, str | os.PathLike) else each
        if not isinstance(name, str):
            raise InputTypeError(f"inputs must be str or Path, got {type(name).__name__} at position {position}")
        names.append(name)
    return names


def _check_choice(name: str, given: object, literal: Any) -> None:
    if given not in get_args(literal):
        known = ", ".join(map(repr, get_args(literal)))
        raise InputValueError(f"{name} must be one of {known}, got {given!r:.80}")


def _planned(
    output: Path, paths: Sequence[Path], wanted: JobOptions, types: Mapping[str, str], show_progress_bar: bool
) -> Plan:
    """Return the plan of the folder; make and write it if there is none."""
    plan = read_plan(output)
    if plan is None:
        files = [describe_file(path, wanted.input_format) for path in paths]
        check_columns(files, wanted.columns)
        with bar(show_progress_bar, "Reading input", sum(file.size for file in files), "B") as advance:
            parts = plan_parts(files, part_rows=wanted.part_rows, advance=advance)
        options = replace(wanted, columns=typed_columns(wanted.columns, types, files, parts[0]))
        return write_plan(output, files, parts, options)
    if list(map(os.path.realpath, paths)) != [os.path.realpath(file.path) for file in plan.files]:
        raise JobChangedError(f"{output} was started with other input files: name another output folder")
    _check_files(plan.files, output)
    planned = plan.options.columns
    columns = replace(wanted.columns, as_text=planned.as_text).with_types(planned.kinds(), types)
    check_unchanged(output, plan.options, replace(wanted, columns=columns))
    return plan


def _check_files(files: Sequence[InputFile], output: Path) -> None:
    for file in files:
        if not file.is_unchanged():
            raise JobChangedError(f"{file.path} has changed since {output} was started: name another output folder")


def _run(
    encoder: Encoder, job: Job, on_error: OnError, engine: Engine, address: str | None, show_progress_bar: bool
) -> None:
    """Write the parts that are missing, and note each."""
    todo = job.todo()
    job.remove_summary()
    try:
        rows = sum(part.rows for part in job.plan.parts)
        with _progress(show_progress_bar, rows - sum(part.rows for part in todo), rows) as advance:
            parts = (
                engines.run_locally(encoder, job.plan, todo, job.folder, on_error=on_error, advance=advance)
                if engine == "local"
                else engines.run_on_ray(
                    encoder, job.plan, todo, job.folder, on_error=on_error, advance=advance, address=address
                )
            )
            for done in parts:
                job.note(done)
    finally:
        job.write_rejects()


def _finished(job: Job) -> Summary:
    rows = rejected = truncated = tokens = parts = 0
    for done in job.done():
        rows, rejected, parts = rows + done.rows, rejected + len(done.rejects), parts + 1
        truncated, tokens = truncated + done.truncated, tokens + done.tokens
    options = job.plan.options
    summary = Summary(rows, rejected, truncated, tokens, parts, options.dimension, options.fingerprint)
    job.write_summary({**asdict(summary), "settings": options.to_json()})
    return summary


@contextmanager
def _progress(show: bool, done: int, rows: int) -> Iterator[Advance]:
    start, tokens_run = time.monotonic(), 0
    with bar(show, "Embedding", rows, "row", done=done) as shown:

        def advance(rows: int, tokens: int) -> None:
            nonlocal tokens_run
            tokens_run += tokens
            shown(rows, f"{tokens_run / max(1e-3, time.monotonic() - start):,.0f} tokens/s")

        yield advance
