"""The command `e5onnx embed`: its options and its output. Only an output folder needs the extra `bulk`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import written_whole
from ..encoder import Encoder
from ..errors import InputValueError, TextTooLongError
from ..progress import Advance, bar
from ..terminal import inform, note, print_line, shows_progress
from ..tokenizer import TokenizedText
from .columns import Columns, named_types
from .records import Reject
from .texts import open_texts, tokenized

_TEXTS_AT_ONCE = 1024
_CHARACTERS_AT_ONCE = 2**24


def add_arguments(embed: argparse.ArgumentParser) -> None:
    """Add the options of the command, except those of the model."""
    embed.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        default=[],
        help="JSON lines, CSV, TSV, Parquet or text with one text per line, compressed or not; a folder of such files, "
        "or a quoted glob; - or no FILE: standard input, which is text unless --input-format says otherwise",
    )
    source = embed.add_argument_group("input")
    source.add_argument(
        "--input-format", choices=["jsonl", "csv", "tsv", "parquet", "text"], help="format (default: by suffix)"
    )
    source.add_argument("--text-column", default="text", metavar="NAME", help="the column to embed (default: text)")
    source.add_argument("--title-column", metavar="NAME", help="a column to put before the text, separated by a space")
    source.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="what to do at a row that cannot be embedded: stop, or skip it and note it in rejects.jsonl with "
        "--output FOLDER, otherwise on standard error (default: stop)",
    )
    source.add_argument(
        "--truncate",
        choices=["warn", "error"],
        default="warn",
        help="what to do about texts that are too long: cut them and warn, or "
        "treat them as rows that cannot be embedded (default: warn)",
    )
    vectors = embed.add_argument_group("vectors")
    vectors.add_argument(
        "--as",
        dest="role",
        choices=["query", "document", "raw"],
        default="document",
        help="which of the model's prompts to put before each text; raw: none (default: document)",
    )
    vectors.add_argument("--dimensions", type=int, metavar="N", help="cut vectors to N components (default: all)")
    vectors.add_argument(
        "--force", action="store_true", help="cut vectors even if the model is not known to be trained for it"
    )
    output = embed.add_argument_group("output")
    output.add_argument(
        "--output",
        metavar="X.npy|FOLDER",
        type=Path,
        help="X.npy: a float32 array [texts, dimension]; any other name: a folder, for input of any size "
        "(default: JSON lines on standard output)",
    )
    output.add_argument("--json", action="store_true", help="with --output: report as JSON")

    folder = embed.add_argument_group(
        "with --output FOLDER (extra: e5onnx[bulk])",
        "Input must be files, not pipes. After a crash, the same command resumes where it stopped.",
    )
    actions = [
        folder.add_argument(
            "--id-column",
            metavar="NAME[:TYPE]",
            help="the column that becomes `id` (default: the number of the row, from 0)",
        ),
        folder.add_argument(
            "--keep-columns",
            action="append",
            default=[],
            metavar="NAME[:TYPE]",
            help="a column to keep beside the vectors; repeat it for more. TYPE is an Arrow type such as int64 or "
            "'list<string>', or json, which turns anything into text; string turns numbers into text (default: the "
            "type in the file or of the first rows)",
        ),
        folder.add_argument(
            "--format", choices=["parquet", "npy"], default="parquet", help="format of the parts (default: parquet)"
        ),
        folder.add_argument(
            "--dtype",
            choices=["float32", "float16", "int8", "uint8", "binary", "ubinary"],
            default="float32",
            help="type of the vectors; int8 has a scale per row or, like uint8, --ranges; binary and ubinary hold "
            "eight signs per byte (default: float32)",
        ),
        folder.add_argument(
            "--ranges",
            metavar="X.npy",
            type=Path,
            help="array of the smallest and largest value of each component, [2, dimension], measured on a sample",
        ),
        folder.add_argument(
            "--part-rows", type=int, default=10_000, metavar="N", help="rows per part (default: 10000)"
        ),
        folder.add_argument(
            "--engine",
            choices=["local", "ray"],
            default="local",
            help="where to run; ray is a cluster (extra: e5onnx[ray]; default: local)",
        ),
        folder.add_argument(
            "--address",
            metavar="HOST:PORT",
            help="address of the Ray cluster; --threads sets the processors per actor (default: 1)",
        ),
    ]
    embed.set_defaults(folder_options={action.dest: (action.option_strings[0], action.default) for action in actions})


def run(options: argparse.Namespace, load: Callable[[], Encoder]) -> None:
    """Run the command with the model that `load` returns."""
    if options.output is not None and options.output.suffix != ".npy":
        options.if_interrupted = "the same command goes on where it stopped"
        _embed_files(options, load)
        return
    if options.output is not None:
        options.if_interrupted = f"{options.output} was not written"
    for name, (option, default) in options.folder_options.items():
        if getattr(options, name) != default:
            options.usage_error(f"{option} needs --output FOLDER")
    files = options.files or ["-"]
    if "-" in files and sys.stdin is not None and sys.stdin.isatty():
        inform("reading one text per line from standard input; end with Ctrl-D")
    texts = _Texts(options, files)
    try:
        if options.output is not None:
            _write_array(options, load, texts)
            return
        with texts.progress(shows_progress() and not sys.stdout.isatty()):
            for some, embeddings in texts.embedded(load()):
                for text, embedding in zip(some, embeddings, strict=True):
                    # nine digits restore the same float32
                    numbers = ", ".join(f"{component:.9g}" for component in embedding.tolist())
                    print_line(f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{numbers}]}}')
    finally:
        texts.note_truncation()


class _Texts:
    """The texts of a command without an output folder."""

    def __init__(self, options: argparse.Namespace, files: Sequence[str]) -> None:
        self._options = options
        self._texts = open_texts(
            files,
            Columns(options.text_column, options.title_column),
            input_format=options.input_format,
            reject=self._reject,
        )
        self._truncated = self._longest = self._max_tokens = 0
        self._advance: Advance = lambda texts: None

    @contextmanager
    def progress(self, show: bool) -> Iterator[None]:
        """Count the texts in a bar inside the block."""
        with bar(show, "Embedding", None, "text") as self._advance:
            yield

    def embedded(self, encoder: Encoder) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Yield batches of texts and their vectors."""
        prompt = encoder.tokenizer.prompt_for(self._options.role)
        self._max_tokens = encoder.max_tokens
        texts: list[str] = []
        tokens: list[TokenizedText] = []
        characters = 0
        for text, source, row in self._texts:
            try:
                tokens.append(tokenized(encoder.tokenizer, text, prompt, self._options.truncate, "--truncate warn"))
            except TextTooLongError as error:
                self._reject(Reject.of(source, row, str(error)))
                continue
            texts.append(text)
            characters += len(text)
            if len(texts) == _TEXTS_AT_ONCE or characters > _CHARACTERS_AT_ONCE:
                yield self._run(encoder, texts, tokens)
                texts, tokens, characters = [], [], 0
        if texts:
            yield self._run(encoder, texts, tokens)

    def note_truncation(self) -> None:
        """Warn about texts that have been cut."""
        if self._truncated:
            _warn_of_cut(self._truncated, self._max_tokens, f" (the longest has {self._longest} tokens)")

    def _run(
        self, encoder: Encoder, texts: list[str], tokens: list[TokenizedText]
    ) -> tuple[list[str], NDArray[np.float32]]:
        cut = [each.tokens for each in tokens if each.is_cut]
        self._truncated += len(cut)
        self._longest = max(self._longest, *cut, 0)
        return texts, encoder.encode_tokenized(tokens, advance=lambda texts, tokens: self._advance(texts))

    def _reject(self, reject: Reject) -> None:
        if self._options.on_error == "stop":
            raise reject.error()
        note(f"warning: skipped: {reject.error()}")


def _write_array(options: argparse.Namespace, load: Callable[[], Encoder], texts: _Texts) -> None:
    if options.output.is_dir():
        raise IsADirectoryError(
            f"{options.output} is a folder: name a file, or a folder whose name does not end in .npy"
        )
    # opened before the model is loaded, to notice early that it cannot be written
    with written_whole(options.output) as path, path.open("xb") as stream:
        encoder = load()
        with texts.progress(shows_progress()):
            arrays = [embeddings for _, embeddings in texts.embedded(encoder)]
        matrix = np.concatenate(arrays) if arrays else encoder.encode([])
        np.save(stream, matrix)
    if options.json:
        print_line(
            json.dumps({"output": str(options.output), "shape": matrix.shape, "fingerprint": encoder.fingerprint})
        )
    else:
        inform(f"wrote {_counted(matrix.shape[0], 'embedding')} of dimension {matrix.shape[1]} to {options.output}")


def _embed_files(options: argparse.Namespace, load: Callable[[], Encoder]) -> None:
    if not options.files:
        options.usage_error("--output FOLDER needs at least one FILE")
    if options.part_rows < 1:
        options.usage_error(f"--part-rows must be at least 1, got {options.part_rows}")
    if options.address is not None and options.engine != "ray":
        options.usage_error("--address needs --engine ray")
    from . import embed_files

    if options.engine == "ray" and options.threads is None:
        options.threads = 1
    types: dict[str, str] = {}
    identifier, *keep = named_types([options.id_column or "", *options.keep_columns], types)
    encoder = load()
    start = time.perf_counter()
    summary = embed_files(
        encoder,
        options.files,
        options.output,
        columns=Columns(options.text_column, options.title_column, identifier or None, tuple(keep)),
        column_types=types,
        role=options.role,
        input_format=options.input_format,
        output_format=options.format,
        dtype=options.dtype,
        ranges=None if options.ranges is None else _array(options.ranges),
        truncate=options.truncate,
        on_error=options.on_error,
        part_rows=options.part_rows,
        engine=options.engine,
        address=options.address,
        show_progress_bar=shows_progress(),
    )
    if options.json:
        print_line(json.dumps({"output": str(options.output), **asdict(summary)}))
        return
    seconds = time.perf_counter() - start
    inform(
        f"{options.output} holds {_counted(summary.rows, 'embedding')} of dimension {summary.dimension} in "
        f"{_counted(summary.parts, 'part')} ({seconds:,.1f} s)"
    )
    if summary.rejected:
        reasons = f"{options.output}/_e5onnx/rejects.jsonl says why"
        note(f"warning: skipped {_counted(summary.rejected, 'row')}; {reasons}")
    if summary.truncated:
        _warn_of_cut(summary.truncated, encoder.max_tokens)


def _array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputValueError(f"{path} is not an array that numpy.save wrote: {error}") from error


def _warn_of_cut(texts: int, most: int, longest: str = "") -> None:
    cut = f"cut {_counted(texts, 'text')} longer than the model's {most} tokens{longest}"
    note(f"warning: {cut}; use --truncate error to refuse such texts")


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"
