"""The command line, `e5onnx`: one function a command, plain text for people and `--json` for programs.

Exit codes: 0; 1 for a failure, with one line on standard error; 2 for wrong usage; 130 for an interrupt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .atomic import written_whole
from .encoder import Encoder
from .errors import E5OnnxError, InputValueError, MissingDependencyError, TruncationWarning
from .host import describe_host, recommendations
from .model_folder import ModelFolder, open_model
from .server import cli as server_cli
from .tokenizer import DOCUMENT_PROMPTS, QUERY_PROMPTS

_EXAMPLE_QUERIES = ["how much protein should a female eat", "summit define"]
_EXAMPLE_DOCUMENTS = [
    "Most health agencies advise women aged 19 to 70 to eat about 46 grams of protein a day; expectant mothers and "
    "women who train for a race need more.",
    "Summit, noun: 1. the topmost point of a mountain. 2. the highest level that can be reached. 3. a meeting of the "
    "heads of several governments.",
]
_LINES_AT_ONCE = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments[:1] == ["export"]:
            _export(arguments[1:])
        else:
            options = _parser().parse_args(arguments)
            with _plain_warnings():
                options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has seen enough. Python flushes standard output once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (E5OnnxError, OSError, MemoryError) as error:
        _note(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="e5onnx", description="Text embeddings on a CPU from exported ONNX models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"e5onnx {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    # Parsed by e5onnx_export itself; here for the list of commands.
    commands.add_parser("export", help="turn a checkpoint into a model folder (extra: e5onnx[export])")

    portable = commands.add_parser("portable", help="add the graph of standard operators, for --provider openvino")
    portable.add_argument("model", metavar="MODEL", help="a model folder; it is changed in place (needs: onnx)")
    portable.set_defaults(command=_portable)

    pack = commands.add_parser("pack-lambda", help="make the deployment zip of an AWS Lambda function")
    _add_model(pack, encoder=False)
    pack.add_argument("output", metavar="OUTPUT.zip", type=Path, help="the zip to write")
    pack.add_argument("--precision", choices=["fp32", "int8"], default="int8", help="graph to pack (default: int8)")
    pack.add_argument("--python", metavar="3.X", help="the function's Python (default: this one's, or 3.13)")
    pack.add_argument("--architecture", choices=["x86_64", "arm64"], default="x86_64", help="default: x86_64")
    pack.set_defaults(command=_pack_lambda)

    _add_embed(commands.add_parser("embed", help="embed lines of text, or files of any size into a folder"))

    serve = commands.add_parser("serve", help="serve embeddings over HTTP, as OpenAI does (extra: e5onnx[serve])")
    _add_model(serve)
    server_cli.add_arguments(serve)
    serve.set_defaults(command=lambda options: server_cli.run(options, lambda: _load(options)))

    similarity = commands.add_parser("similarity", help="score documents against queries")
    _add_model(similarity)
    similarity.add_argument("--query", "-q", metavar="Q", nargs="+", default=[], help="one or more queries")
    similarity.add_argument("--document", "-d", metavar="D", nargs="+", default=[], help="one or more documents")
    similarity.add_argument("--json", action="store_true", help="the scores as JSON")
    similarity.set_defaults(command=_similarity, usage_error=similarity.error)

    info = commands.add_parser("info", help="say what a model folder holds, and what suits this host")
    _add_model(info, encoder=False, nargs="?")
    info.add_argument("--json", action="store_true", help="the manifest, and the host, as JSON")
    info.set_defaults(command=_info)

    verify = commands.add_parser("verify", help="compare every file of a model folder with its SHA-256")
    _add_model(verify, encoder=False)
    verify.add_argument("--json", action="store_true", help="the files as JSON")
    verify.set_defaults(command=_verify)
    return parser


def _add_embed(embed: argparse.ArgumentParser) -> None:
    _add_model(embed)
    embed.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="text files, one text a line; - or none: standard input. With --output FOLDER: see below",
    )
    embed.add_argument(
        "--as",
        dest="role",
        choices=["query", "document", "raw"],
        default="document",
        help="which of the model's prompts to put before each text; raw: none (default: document)",
    )
    embed.add_argument(
        "--output",
        metavar="X.npy|FOLDER",
        type=Path,
        help="X.npy: a float32 array [lines, dimension]; any other name: a folder for files of any size; "
        "default: JSON lines on standard output",
    )
    embed.add_argument("--truncate", choices=["warn", "error"], default="warn", help="what to do with too long texts")
    embed.add_argument("--json", action="store_true", help="with --output: say what was written as JSON")
    embed.set_defaults(command=_embed, usage_error=embed.error)

    folder = embed.add_argument_group(
        "with --output FOLDER (extra: e5onnx[bulk])",
        "FILE is JSON lines, CSV, TSV, Parquet or text, compressed or not, a folder of such files, or a quoted glob; "
        "standard input and pipes are not read. The same command after a crash goes on where it stood.",
    )
    actions = [
        folder.add_argument("--text-column", default="text", metavar="NAME", help="what to embed (default: text)"),
        folder.add_argument("--title-column", metavar="NAME", help="put before the text, with a space in between"),
        folder.add_argument(
            "--id-column", metavar="NAME[:TYPE]", help="becomes `id` (default: the row's number, from 0)"
        ),
        folder.add_argument(
            "--keep-columns",
            nargs="+",
            default=[],
            metavar="NAME[:TYPE]",
            help="columns to keep beside the vectors; TYPE is Arrow's, such as int64, or string, which makes text of "
            "numbers (default: that of the file, or of the first rows)",
        ),
        folder.add_argument(
            "--input-format", choices=["jsonl", "csv", "tsv", "parquet", "text"], help="default: by name"
        ),
        folder.add_argument("--format", choices=["parquet", "npy"], default="parquet", help="of the output"),
        folder.add_argument(
            "--dtype", choices=["float32", "float16", "int8"], default="float32", help="of the vectors"
        ),
        folder.add_argument(
            "--on-error",
            choices=["stop", "skip"],
            default="stop",
            help="what a row without a text does: stop, or be skipped and noted in rejects.jsonl (default: stop)",
        ),
        folder.add_argument(
            "--part-rows", type=int, default=10_000, metavar="N", help="rows of a part (default: 10000)"
        ),
        folder.add_argument("--engine", choices=["local", "ray"], default="local", help="ray: extra e5onnx[ray]"),
        folder.add_argument(
            "--address", help="of a Ray cluster; --threads are then the processors of an actor (default: 1)"
        ),
    ]
    embed.set_defaults(folder_options={action.dest: (action.option_strings[0], action.default) for action in actions})


def _add_model(parser: argparse.ArgumentParser, *, encoder: bool = True, nargs: str | None = None) -> None:
    parser.add_argument("model", metavar="MODEL", nargs=nargs, help="a model folder, or the hub id of one")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    if encoder:
        parser.add_argument(
            "--threads", type=int, metavar="N", help="threads (default: E5ONNX_THREADS, or the available processors)"
        )
        parser.add_argument("--precision", choices=["fp32", "int8", "bf16"], help="default: fp32; openvino: bf16")
        parser.add_argument(
            "--provider", choices=["cpu", "openvino"], default="cpu", help="what runs the graph (default: cpu)"
        )
        parser.add_argument("--compile-cache", metavar="FOLDER", help="where openvino keeps compiled graphs")


def _export(arguments: Sequence[str]) -> None:
    try:
        from e5onnx_export import cli as export_cli
    except ModuleNotFoundError as error:
        if error.name != "e5onnx_export":
            raise
        message = "the command `export` is not part of this installation: pip install 'e5onnx[export]'"
        raise MissingDependencyError(message) from error
    export_cli.main(arguments)


def _portable(options: argparse.Namespace) -> None:
    try:
        from e5onnx_export.portable import add_portable_graph
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingDependencyError("the command `portable` needs onnx: pip install onnx") from error
    add_portable_graph(options.model, report=_print)


def _pack_lambda(options: argparse.Namespace) -> None:
    from .lambda_package import pack_lambda

    pack_lambda(
        options.model,
        options.output,
        precision=options.precision,
        python=options.python,
        architecture=options.architecture,
        revision=options.revision,
        report=_print,
    )


def _embed_files(options: argparse.Namespace) -> None:
    if not options.files:
        options.usage_error("--output FOLDER needs at least one FILE")
    if options.part_rows < 1:
        options.usage_error(f"--part-rows is at least 1, got {options.part_rows}")
    try:
        from .files import embed_files
        from .files.columns import Columns, named_types
    except ModuleNotFoundError as error:
        if error.name not in ("pyarrow", "tqdm"):
            raise
        raise MissingDependencyError("embedding into a folder needs more: pip install 'e5onnx[bulk]'") from error
    if options.engine == "ray" and options.threads is None:
        options.threads = 1
    types: dict[str, str] = {}
    identifier, *keep = named_types([options.id_column or "", *options.keep_columns], types)
    encoder = _load(options)
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
        truncate=options.truncate,
        on_error=options.on_error,
        part_rows=options.part_rows,
        engine=options.engine,
        address=options.address,
        show_progress_bar=True,
    )
    if options.json:
        _print(json.dumps({"output": str(options.output), **asdict(summary)}))
        return
    seconds = time.perf_counter() - start
    _note(
        f"{options.output} holds {summary.rows:,} embeddings of dimension {summary.dimension} in {summary.parts:,} "
        f"parts ({seconds:,.1f} s)"
    )
    if summary.rejected:
        _note(f"warning: {summary.rejected:,} rows were skipped; {options.output}/_e5onnx/rejects.jsonl says why")
    if summary.truncated:
        _note(
            f"warning: {summary.truncated:,} texts were longer than the model's {encoder.max_tokens} tokens and were "
            "cut; use --truncate error to refuse them"
        )


def _embed(options: argparse.Namespace) -> None:
    if options.output is not None and options.output.suffix != ".npy":
        _embed_files(options)
        return
    for name, (option, default) in options.folder_options.items():
        if getattr(options, name) != default:
            options.usage_error(f"{option} needs --output FOLDER")
    encoder = _load(options)
    role = {"query": QUERY_PROMPTS, "document": DOCUMENT_PROMPTS}.get(options.role)
    prompt = encoder.tokenizer.prompt_for(None, None, role) if role else ""
    arrays = []
    lines = _read_lines(options.files)
    with _summed_truncation():
        while texts := list(islice(lines, _LINES_AT_ONCE)):
            embeddings = encoder.encode(texts, prompt=prompt, truncate=options.truncate)
            if options.output is None:
                for text, embedding in zip(texts, embeddings, strict=True):
                    # nine digits give back the same float32
                    numbers = ", ".join(f"{component:.9g}" for component in embedding.tolist())
                    _print(f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{numbers}]}}')
            else:
                arrays.append(embeddings)
    if options.output is not None:
        matrix = np.concatenate(arrays) if arrays else encoder.encode([])
        with written_whole(options.output) as path, path.open("xb") as stream:
            np.save(stream, matrix)
        if options.json:
            _print(
                json.dumps({"output": str(options.output), "shape": matrix.shape, "fingerprint": encoder.fingerprint})
            )
        else:
            _note(f"wrote {matrix.shape[0]} embeddings of dimension {matrix.shape[1]} to {options.output}")


def _similarity(options: argparse.Namespace) -> None:
    if bool(options.query) != bool(options.document):
        options.usage_error("--query and --document go together; without both, an example is shown")
    queries = options.query or _EXAMPLE_QUERIES
    documents = options.document or _EXAMPLE_DOCUMENTS
    encoder = _load(options)
    scores = encoder.similarity(encoder.encode_query(queries), encoder.encode_document(documents))
    ranking = np.argsort(-scores, axis=1, kind="stable").tolist()
    if options.json:
        results = [
            {
                "query": query,
                "documents": [{"document": documents[i], "index": i, "score": float(row[i])} for i in order],
            }
            for query, row, order in zip(queries, scores, ranking, strict=True)
        ]
        _print(json.dumps(results, ensure_ascii=False, indent=2))
        return
    for query, row, order in zip(queries, scores, ranking, strict=True):
        _print(f"query: {query}")
        for i in order:
            _print(f"  {row[i]:7.4f}  {_shortened(documents[i])}")


def _info(options: argparse.Namespace) -> None:
    folder = open_model(options.model, revision=options.revision) if options.model is not None else None
    host = describe_host()
    if options.json:
        content: dict[str, Any] = {}
        if folder is not None:
            precisions = {graph.precision for graph in folder.manifest.graphs if not graph.portable}
            content = json.loads(folder.manifest.to_json())
            content["fingerprints"] = {each: folder.manifest.fingerprint(each) for each in sorted(precisions)}
        content["host"] = {**asdict(host), "recommended": recommendations(host)}
        _print(json.dumps(content, ensure_ascii=False, indent=2))
        return
    rows = _describe_folder(folder) if folder is not None else []
    instructions = "not known on this system" if host.instructions is None else ", ".join(host.instructions) or "none"
    rows += [
        ("this host", f"{host.processor}, {host.architecture}, {host.processors} processors available"),
        ("  instructions", f"{instructions} (of those that matter here)"),
    ]
    for provider, version in host.providers.items():
        rows.append((f"  {provider}", version or f"not installed: pip install 'e5onnx[{provider}]'"))
    rows += [(f"  {wanted}", advice) for wanted, advice in recommendations(host).items()]
    for name, value in rows:
        _print(f"{name:<14} {value}")


def _describe_folder(folder: ModelFolder) -> list[tuple[str, str]]:
    manifest = folder.manifest
    revision = f" at {manifest.revision}" if manifest.revision else ""
    prompts = ", ".join(f"{name} {prompt!r}" for name, prompt in manifest.prompts.items())
    rows = [
        ("folder", str(folder.path)),
        ("checkpoint", manifest.checkpoint + revision),
        ("encoder", f"{manifest.layers} layers, dimension {manifest.dimension}"),
        ("maximum", f"{manifest.max_tokens} tokens"),
        ("pooling", manifest.pooling + (", normalised" if manifest.normalize else ", not normalised by default")),
        ("prompts", prompts or "none"),
    ]
    for graph in manifest.graphs:
        parity = ", ".join(f"{name} {value:.7g}" for name, value in graph.parity.items())
        size = sum(record.size for record in graph.records())
        rows.append((graph.precision, f"{graph.file}, {size / 1e6:.1f} MB"))
        rows.append(("  parity", parity))
        if graph.calibration is not None:
            rows.append(("  calibration", "; ".join(f"{name} {value}" for name, value in graph.calibration.items())))
        if graph.portable:
            rows.append(("  portable", "standard ONNX operators, for other engines"))
        else:
            rows.append(("  fingerprint", manifest.fingerprint(graph.precision)))
    rows.append(("made with", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())))
    return rows


def _verify(options: argparse.Namespace) -> None:
    folder = open_model(options.model, all_files=True, revision=options.revision)
    checked = folder.verify()
    if options.json:
        files = [{"file": record.file, "sha256": record.sha256, "size": record.size} for record in checked]
        _print(json.dumps({"folder": str(folder.path), "files": files}, indent=2))
        return
    for record in checked:
        _print(f"ok  {record.size:>12,}  {record.file}")
    _print(f"{folder.path} is as it was exported")


def _load(options: argparse.Namespace) -> Encoder:
    return Encoder(
        options.model,
        precision=options.precision,
        provider=options.provider,
        threads=options.threads,
        compile_cache=options.compile_cache,
        revision=options.revision,
    )


def _read_lines(files: Sequence[str]) -> Iterator[str]:
    """Iterate over the lines of files or standard input, without their line ends."""
    for file in files or ["-"]:
        name = "standard input" if file == "-" else file
        if file == "-" and sys.stdin.isatty():
            _note("reading from standard input, one text a line; end with Ctrl-D")
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputValueError(f"{name}, line {number}, is not valid UTF-8: {error}") from error
                yield text.rstrip("\r\n")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line for people, without the line of code they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _note(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


@contextmanager
def _summed_truncation() -> Iterator[None]:
    """Show one warning for the texts that were cut in all the calls, instead of one for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    cuts = [warning.message for warning in caught if isinstance(warning.message, TruncationWarning)]
    for warning in caught:
        if not isinstance(warning.message, TruncationWarning):
            _note(f"warning: {warning.message}")
    if cuts:
        longest = max(cut.longest for cut in cuts)
        _note(
            f"warning: {sum(cut.truncated for cut in cuts)} lines were longer than the model's {cuts[0].max_tokens} "
            f"tokens and were cut (the longest has {longest}); use --truncate error to refuse them"
        )


def _shortened(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _print(text: str) -> None:
    print(text)  # noqa: T201


def _note(text: str) -> None:
    print(f"e5onnx: {text}", file=sys.stderr)  # noqa: T201
