"""The command line, `e5onnx`: one function a command, plain text for people and `--json` for programs.

Exit codes: 0; 1 for a failure, with one line on standard error; 2 for wrong usage; 130 for an interrupt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .encoder import Encoder
from .errors import E5OnnxError, MissingDependencyError
from .files import cli as files_cli
from .host import describe_host, recommendations
from .model_folder import ModelFolder, open_model
from .server import cli as server_cli
from .terminal import note, print_line

_EXAMPLE_QUERIES = ["how much protein should a female eat", "summit define"]
_EXAMPLE_DOCUMENTS = [
    "Most health agencies advise women aged 19 to 70 to eat about 46 grams of protein a day; expectant mothers and "
    "women who train for a race need more.",
    "Summit, noun: 1. the topmost point of a mountain. 2. the highest level that can be reached. 3. a meeting of the "
    "heads of several governments.",
]


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
        note(f"error: {' '.join(str(error).split()) or type(error).__name__}")
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

    embed = commands.add_parser("embed", help="embed lines of text, or files of any size into a folder")
    _add_model(embed)
    files_cli.add_arguments(embed)
    embed.set_defaults(command=lambda options: files_cli.run(options, lambda: _load(options)), usage_error=embed.error)

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
    add_portable_graph(options.model, report=print_line)


def _pack_lambda(options: argparse.Namespace) -> None:
    from .lambda_package import pack_lambda

    pack_lambda(
        options.model,
        options.output,
        precision=options.precision,
        python=options.python,
        architecture=options.architecture,
        revision=options.revision,
        report=print_line,
    )


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
        print_line(json.dumps(results, ensure_ascii=False, indent=2))
        return
    for query, row, order in zip(queries, scores, ranking, strict=True):
        print_line(f"query: {query}")
        for i in order:
            print_line(f"  {row[i]:7.4f}  {_shortened(documents[i])}")


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
        print_line(json.dumps(content, ensure_ascii=False, indent=2))
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
        print_line(f"{name:<14} {value}")


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
        print_line(json.dumps({"folder": str(folder.path), "files": files}, indent=2))
        return
    for record in checked:
        print_line(f"ok  {record.size:>12,}  {record.file}")
    print_line(f"{folder.path} is as it was exported")


def _load(options: argparse.Namespace) -> Encoder:
    return Encoder(
        options.model,
        precision=options.precision,
        provider=options.provider,
        threads=options.threads,
        compile_cache=options.compile_cache,
        revision=options.revision,
    )


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line for people, without the line of code they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        note(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


def _shortened(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
