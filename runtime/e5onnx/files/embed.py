"""`embed_files`: files in, vectors out, from where the last run stood."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

from ..checks import whole_number
from ..encoder import Encoder
from ..errors import InputTypeError, InputValueError, JobChangedError
from ..tokenizer import Role
from . import local, ray_engine
from .columns import Columns
from .inputs import Format, InputFile, describe_file, find_files, warn_of_ignored
from .job import Done, Job, Plan, Settings, check_unchanged, opened_folder, read_plan, write_plan
from .local import OnError
from .outputs import DType, OutputFormat
from .plan import PART_ROWS, Part, plan_parts
from .schema import check_columns, typed_columns

Engine = Literal["local", "ray"]
Truncate = Literal["warn", "error"]


@dataclass(frozen=True)
class Summary:
    """What an output folder holds once all is done. `tokens` are those of the texts, prompts included."""

    rows: int
    rejected: int
    truncated: int
    tokens: int
    parts: int
    dimension: int
    fingerprint: str


def embed_files(
    encoder: Encoder,
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    columns: Columns | None = None,
    column_types: Mapping[str, str] | None = None,
    role: Role = "document",
    input_format: Format | None = None,
    output_format: OutputFormat = "parquet",
    dtype: DType = "float32",
    truncate: Truncate = "warn",
    on_error: OnError = "stop",
    part_rows: int = PART_ROWS,
    engine: Engine = "local",
    address: str | None = None,
    show_progress_bar: bool = False,
) -> Summary:
    """Embed the rows of files into an output folder; go on where an earlier run of the same stood.

    Args:
        encoder: the model. For Ray: its folder and precision are what the actors load, its threads what each holds.
        inputs: files, globs and folders of JSON lines, CSV, Parquet and text, compressed (gz, bz2, xz, zst) or not.
        output: a folder; see the layout in `job.py`.
        columns: which columns hold texts, titles and ids, and which are kept.
        column_types: Arrow types, by name, of ids and kept columns whose type the first part does not show.
        role: which of the model's prompts to put before each text.
        input_format: of files whose name does not say it.
        output_format: "parquet", or "npy" with ids and kept columns as JSON lines beside it.
        dtype: of the vectors; "int8" has a scale a row, "embedding_scale".
        truncate: "error" rejects texts that are longer than the model's maximum.
        on_error: what a row that cannot be embedded does: "stop" raises, "skip" notes it in `rejects.jsonl`.
        part_rows: most records of a part.
        engine: "ray" for a cluster.
        address: of the Ray cluster.
        show_progress_bar: rows, tokens/s and the time left, on standard error.

    Returns:
        What the folder holds.

    Raises:
        RowError: a row cannot be embedded; what was done is kept.
        JobChangedError: the folder was begun with other input, another model or other options.
        InputTypeError: an argument has the wrong type.
        InputValueError: an option is impossible, or a file damaged.
        OSError: a file cannot be read or written.

    Example:
        >>> from e5onnx import Encoder
        >>> from e5onnx.files import embed_files
        >>> summary = embed_files(Encoder("models/sample"), ["corpus.jsonl"], "vectors")  # doctest: +SKIP
    """
    _check_choice("role", role, Role)
    _check_choice("output_format", output_format, OutputFormat)
    _check_choice("dtype", dtype, DType)
    _check_choice("truncate", truncate, Truncate)
    _check_choice("on_error", on_error, OnError)
    _check_choice("engine", engine, Engine)
    if input_format is not None:
        _check_choice("input_format", input_format, Format)
    if isinstance(inputs, str | os.PathLike):
        raise InputTypeError(f"inputs must be a list of names, got one: put {os.fspath(inputs)!r} into a list")
    part_rows = whole_number("part_rows", part_rows)
    if part_rows < 1:
        raise InputValueError(f"a part has at least 1 row, got {part_rows}")
    output = Path(output)
    wanted = Settings(
        checkpoint=encoder.manifest.checkpoint,
        revision=encoder.manifest.revision,
        fingerprint=encoder.fingerprint,
        dimension=encoder.dimension,
        role=role,
        prompt=encoder.tokenizer.prompt_for(role),
        columns=columns or Columns(),
        truncate=truncate,
        input_format=input_format,
        output_format=output_format,
        dtype=dtype,
        part_rows=part_rows,
    )
    unknown = set(column_types or ()).difference(wanted.columns.stored())
    if unknown:
        raise InputValueError(f"column_types names {', '.join(map(repr, unknown))}, neither an id nor a kept column")
    found = find_files([os.fspath(each) for each in inputs])
    warn_of_ignored(found.ignored)
    with opened_folder(output):
        plan = _planned(output, found.files, wanted, column_types or {}, show_progress_bar)
        with _bar(show_progress_bar, "Finding parts", len(plan.parts), "part") as bar:
            job = Job(output, plan, advance=bar.update)
        todo = job.todo()
        if todo:
            job.remove_summary()
        try:
            rows = sum(part.rows for part in todo)
            with _progress(show_progress_bar, rows, sum(part.rows for part in plan.parts)) as advance:
                for done in _run(encoder, job, todo, on_error, engine, address, advance):
                    job.note(done)
        finally:
            job.write_rejects()
        if todo:
            _check_files(plan.files, output)
        return _finished(job)


def _check_choice(name: str, given: object, literal: Any) -> None:
    if given not in get_args(literal):
        known = ", ".join(map(repr, get_args(literal)))
        raise InputValueError(f"{name} must be one of {known}, got {given!r:.80}")


def _planned(
    output: Path,
    paths: Sequence[Path],
    wanted: Settings,
    types: Mapping[str, str],
    show_progress_bar: bool,
) -> Plan:
    """Return the plan of the folder, which is made and written if there is none."""
    plan = read_plan(output)
    if plan is None:
        files = [describe_file(path, wanted.input_format) for path in paths]
        check_columns(files, wanted.columns)
        with _bar(show_progress_bar, "Reading input", sum(file.size for file in files), "B") as bar:
            parts = plan_parts(files, part_rows=wanted.part_rows, advance=bar.update)
        settings = replace(wanted, columns=typed_columns(wanted.columns, types, files, parts[0]))
        return write_plan(output, files, parts, settings)
    if list(map(os.path.realpath, paths)) != [os.path.realpath(file.path) for file in plan.files]:
        raise JobChangedError(f"{output} was begun with other input files: name another output folder")
    _check_files(plan.files, output)
    planned = plan.settings.columns
    begun = replace(wanted.columns, as_text=planned.as_text)
    check_unchanged(output, plan.settings, replace(wanted, columns=begun.with_types(planned.kinds(), types)))
    return plan


def _bar(show: bool, description: str, total: int, unit: str) -> tqdm:
    return tqdm(total=total, desc=description, unit=unit, unit_scale=True, disable=None if show else True)


def _check_files(files: Sequence[InputFile], output: Path) -> None:
    for file in files:
        if not file.is_unchanged():
            raise JobChangedError(f"{file.path} has changed since {output} was begun: name another output folder")


def _run(
    encoder: Encoder,
    job: Job,
    todo: Sequence[Part],
    on_error: OnError,
    engine: Engine,
    address: str | None,
    advance: Callable[[int, int], object],
) -> Iterator[Done]:
    if not todo:
        return
    if engine == "local":
        yield from local.run_parts(
            encoder, job.plan.files, todo, job.folder, job.plan.settings, on_error=on_error, advance=advance
        )
        return
    parts = ray_engine.run_parts(
        encoder.arguments(),
        job.plan,
        todo,
        job.folder,
        on_error=on_error,
        address=address,
        processors=encoder.threads,
    )
    for done in parts:
        advance(done.rows + len(done.rejects), done.tokens)
        yield done


def _finished(job: Job) -> Summary:
    rows = rejected = truncated = tokens = parts = 0
    for done in job.done():
        rows, rejected, parts = rows + done.rows, rejected + len(done.rejects), parts + 1
        truncated, tokens = truncated + done.truncated, tokens + done.tokens
    settings = job.plan.settings
    summary = Summary(rows, rejected, truncated, tokens, parts, settings.dimension, settings.fingerprint)
    job.write_summary({**asdict(summary), "settings": settings.to_json()})
    return summary


@contextmanager
def _progress(show: bool, rows: int, of: int) -> Iterator[Callable[[int, int], object]]:
    if not show:
        yield lambda rows, tokens: None
        return
    start, tokens_run = time.monotonic(), 0
    with tqdm(total=of, initial=of - rows, desc="Embedding", unit="row", unit_scale=True, disable=None) as bar:

        def advance(rows: int, tokens: int) -> None:
            nonlocal tokens_run
            tokens_run += tokens
            bar.set_postfix_str(f"{tokens_run / max(1e-3, time.monotonic() - start):,.0f} tokens/s", refresh=False)
            bar.update(rows)

        yield advance
