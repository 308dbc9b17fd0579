"""The command line, `e5onnx`: a table of commands, with plain text for people and `--json` for programs.

Exit codes: 0 for success; 1 for a failure, with one line on standard error; 2 for wrong usage; 130 for an interrupt.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import __version__, terminal
from .errors import E5OnnxError, MissingDependencyError, TruncationWarning, in_one_line, plural
from .progress import Steps, bar
from .terminal import inform, note, print_line

# Commands import numpy, onnxruntime and what needs them, so that help is quick and an interrupt ends quietly.
if TYPE_CHECKING:
    from .encoder import Encoder
    from .model_folder import ModelFolder

_PRECISIONS = ["fp32", "int8", "bf16"]
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
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # errors are reported here, in one line
    terminal.prepare()
    options = argparse.Namespace(if_interrupted="")
    try:
        with terminal.written_output():
            parse(arguments, options)
            terminal.quiet = options.quiet
            if options.quiet:
                os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
            if options.json:
                terminal.use_utf8()
            with _plain_warnings(), _shown_log():
                options.run(options)
    except terminal.OutputClosedError:
        return 0
    except KeyboardInterrupt:
        return _interrupted(options)
    except (E5OnnxError, OSError, MemoryError) as error:
        note(f"error: {_described(error)}")
        return 1
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # as pybind11 reports it
            return _interrupted(options)
        raise
    return 0


def _interrupted(options: argparse.Namespace) -> int:
    if options.if_interrupted:
        note(f"interrupted; {options.if_interrupted}")
    return 130


def _described(error: BaseException) -> str:
    message = in_one_line(error) or type(error).__name__
    name = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and isinstance(name, str) and not os.path.isabs(name):  # noqa: PTH117
        message += f" (the current folder is {os.getcwd()})"  # noqa: PTH109
    return message


def parse(arguments: Sequence[str], options: argparse.Namespace | None = None) -> argparse.Namespace:
    """Parse a command's options, model and files, in any order; exit with a message if they are wrong.

    Args:
        arguments: the command and what follows it.
        options: takes the result; None for a new one.

    Example:
        >>> parse(["verify", "--json", "models/sample"]).model
        'models/sample'
    """
    parser = _Parser(
        prog="e5onnx", description="Text embeddings on a CPU from exported ONNX models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"e5onnx {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(
            name,
            help=command.purpose,
            description=f"{command.purpose[0].upper()}{command.purpose[1:]}.",
            epilog="\n  ".join(["examples:", *command.examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    if not arguments:
        parser.print_help()
        parser.exit()
    if arguments[0] not in COMMANDS:
        parser.parse_args(arguments[:1])
        parser.error("the first argument must be the command")
    chosen: argparse.ArgumentParser = commands.choices[arguments[0]]
    chosen.add_argument("--quiet", action="store_true", help="show neither progress nor notes, only warnings")
    COMMANDS[arguments[0]].add_arguments(chosen)
    formatter = argparse.HelpFormatter(chosen.prog, width=1000)
    formatter.add_usage(None, [action for action in chosen._actions if not action.option_strings], [], "")
    chosen.usage = formatter.format_help().strip().replace(chosen.prog, f"{chosen.prog} [OPTIONS]", 1)
    parsed, surplus = chosen.parse_known_args(_options_first(chosen, arguments[1:]), options)
    if surplus:
        chosen.error(f"too many arguments: {' '.join(surplus)}; an option takes one value, repeat it for several")
    return parsed


def _options_first(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Move all positional arguments to the end, where argparse always finds them.

    argparse's own parse_intermixed_args loses `--`. This works because no option takes more than one value.
    """
    known = parser._option_string_actions
    options: list[str] = []
    positionals: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            positionals += rest
        elif not argument.startswith("-") or argument == "-":
            positionals.append(argument)
        elif argument in known:
            options += [argument, *islice(rest, known[argument].nargs != 0)]
        elif argument.partition("=")[0] in known or argument[:2] in known:
            if argument.endswith("--"):
                name = argument[: -len("--")].rstrip("=")
                if name in known:  # argparse would drop it before Python 3.13
                    parser.error(f"argument {name}: a value cannot be --")
            options.append(argument)
        else:
            parser.error(f"unknown option {argument}; put -- before names that begin with a dash")
    return [*options, "--", *positionals] if positionals else options


def _export(parser: argparse.ArgumentParser) -> None:
    try:
        from e5onnx_export import cli as export_cli
    except ModuleNotFoundError as error:
        if error.name != "e5onnx_export":
            raise
        message = "the command `export` is not part of this installation: pip install 'e5onnx[export]'"
        raise MissingDependencyError(message) from error
    export_cli.add_arguments(parser)
    parser.set_defaults(run=export_cli.run)


def _portable(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, changed in place (needs the package onnx)")
    parser.set_defaults(run=_run_portable, json=False)


def _pack_lambda(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, encoder=False)
    parser.add_argument("output", metavar="OUTPUT.zip", type=Path, help="the zip to write")
    parser.add_argument("--precision", choices=_PRECISIONS, default="int8", help="what to compute in (default: int8)")
    parser.add_argument("--provider", choices=["cpu", "kernels"], default="cpu", help="what computes (default: cpu)")
    parser.add_argument("--python", metavar="3.X", help="the function's Python (default: this one, or 3.13)")
    parser.add_argument("--architecture", choices=["x86_64", "arm64"], default="x86_64", help="default: x86_64")
    parser.set_defaults(run=_run_pack_lambda, json=False)


def _embed(parser: argparse.ArgumentParser) -> None:
    from .files import cli as files_cli

    _add_model(parser)
    files_cli.add_arguments(parser)

    def run(options: argparse.Namespace) -> None:
        terminal.use_utf8()  # JSON lines
        if options.force and options.dimensions is None:
            parser.error("--force needs --dimensions")
        files_cli.run(options, lambda: _load(options))

    parser.set_defaults(run=run, usage_error=parser.error)


def _serve(parser: argparse.ArgumentParser) -> None:
    from .server import cli as server_cli

    _add_model(parser)
    server_cli.add_arguments(parser)
    parser.set_defaults(run=lambda options: server_cli.run(options, lambda: _load(options)), json=False)


def _similarity(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    for name in ("--query", "--document"):
        text = f"a {name[2:]}; repeat the option for more"
        parser.add_argument(name, name[1:3], metavar=name[2].upper(), action="append", default=[], help=text)
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.set_defaults(run=_run_similarity, usage_error=parser.error)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    from .evaluate import cli as evaluate_cli

    _add_model(parser, encoder=False)
    evaluate_cli.add_arguments(parser)
    parser.set_defaults(run=evaluate_cli.run, usage_error=parser.error)


def _benchmark(parser: argparse.ArgumentParser) -> None:
    from . import benchmark

    _add_model(parser, encoder=False)
    benchmark.add_arguments(parser)
    parser.set_defaults(run=benchmark.run)


def _info(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, encoder=False, nargs="?")
    parser.add_argument("--json", action="store_true", help="print the manifest and the host as JSON")
    parser.set_defaults(run=_run_info)


def _verify(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, encoder=False)
    parser.add_argument("--json", action="store_true", help="print the files as JSON")
    parser.set_defaults(run=_run_verify)


def _push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder on disk")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository, made if need be")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch, made if need be (default: main)")
    parser.add_argument("--message", metavar="S", help="message of the commit")
    parser.set_defaults(run=_run_push, json=False)


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage with its exit code even if nobody can read why, as Python 3.12's does."""

    def _print_message(self, message: str, file: Any = None) -> None:
        try:
            super()._print_message(message, file)
        except OSError:
            if file is not sys.stderr:
                raise


class Command(NamedTuple):
    """A command: one sentence, what adds its arguments to a parser and sets `run` to call it, and two examples."""

    purpose: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, str]


COMMANDS = {
    "export": Command(
        "export a checkpoint to a model folder (extra: e5onnx[export])",
        _export,
        (
            "e5onnx export intfloat/e5-small-v2 models/e5-small-v2",
            "e5onnx export checkpoints/mine models/mine --precision int8 --calibration texts.txt",
        ),
    ),
    "portable": Command(
        "add a graph of standard ONNX operators, for --provider openvino",
        _portable,
        ("e5onnx portable models/e5-small-v2", "e5onnx portable models/e5-small-v2 --quiet"),
    ),
    "pack-lambda": Command(
        "make the deployment zip of an AWS Lambda function",
        _pack_lambda,
        (
            "e5onnx pack-lambda models/e5-small-v2 function.zip",
            "e5onnx pack-lambda models/e5-small-v2 function.zip --python 3.13 --architecture arm64",
        ),
    ),
    "embed": Command(
        "embed lines of text, or files of any size",
        _embed,
        (
            "e5onnx embed models/e5-small-v2 questions.txt --as query --output questions.npy",
            "e5onnx embed models/e5-small-v2 corpus.jsonl --keep-columns title --output vectors",
        ),
    ),
    "serve": Command(
        "serve OpenAI's embeddings API over HTTP (extra: e5onnx[serve])",
        _serve,
        (
            "e5onnx serve models/e5-small-v2 --precision int8",
            "e5onnx serve models/e5-small-v2 --host 0.0.0.0 --api-key-file keys.txt",
        ),
    ),
    "similarity": Command(
        "score documents against queries",
        _similarity,
        (
            "e5onnx similarity models/e5-small-v2",
            'e5onnx similarity models/e5-small-v2 -q "how high is it" -d "It has 8,849 metres." -d "It is blue."',
        ),
    ),
    "evaluate": Command(
        "score every precision and provider on your own retrieval or similarity data",
        _evaluate,
        (
            "e5onnx evaluate models/e5-small-v2 scifact",
            "e5onnx evaluate models/e5-small-v2 pairs.tsv --precision fp32,int8 --json results.json",
        ),
    ),
    "benchmark": Command(
        "measure speed and memory of every precision and provider on this host",
        _benchmark,
        (
            "e5onnx benchmark models/e5-small-v2",
            "e5onnx benchmark models/e5-small-v2 --precision int8 --seconds 10 --json speed.json",
        ),
    ),
    "info": Command(
        "describe a model folder, and what suits this host",
        _info,
        ("e5onnx info", "e5onnx info models/e5-small-v2 --json"),
    ),
    "push": Command(
        "publish a model folder on the Hugging Face hub, with a model card",
        _push,
        (
            "e5onnx push models/e5-small-v2 me/e5-small-v2-onnx",
            "e5onnx push models/e5-small-v2 me/e5-small-v2-trial --private",
        ),
    ),
    "verify": Command(
        "compare every file of a model folder with its SHA-256",
        _verify,
        ("e5onnx verify models/e5-small-v2", "e5onnx verify models/e5-small-v2 --json"),
    ),
}


def _add_model(parser: argparse.ArgumentParser, *, encoder: bool = True, nargs: str | None = None) -> None:
    parser.add_argument("model", metavar="MODEL", nargs=nargs, help="a model folder, a checkpoint, or a hub id")
    group = parser.add_argument_group("model") if encoder else parser
    if encoder:
        group.add_argument(
            "--precision", choices=_PRECISIONS, help="what to compute in (default: fp32; bf16 with kernels, openvino)"
        )
        group.add_argument(
            "--provider",
            choices=["cpu", "kernels", "openvino"],
            default="cpu",
            help="what computes: onnxruntime's own kernels, ours or OpenVINO (default: cpu)",
        )
        group.add_argument(
            "--threads", type=int, metavar="N", help="threads (default: E5ONNX_THREADS, or the available processors)"
        )
        group.add_argument(
            "--compile-cache", metavar="FOLDER", help="where openvino keeps compiled graphs (default: none)"
        )
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id (default: the main branch)")


def _run_portable(options: argparse.Namespace) -> None:
    try:
        from e5onnx_export.portable import add_portable_graph
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingDependencyError("the command `portable` needs onnx: pip install onnx") from error
    with Steps(terminal.progress, live=terminal.shows_progress()) as report:
        add_portable_graph(options.model, report=report)


def _run_pack_lambda(options: argparse.Namespace) -> None:
    from .lambda_package import pack_lambda

    options.if_interrupted = f"{options.output} was not written; the same command starts again"
    with Steps(terminal.progress, live=terminal.shows_progress()) as report:
        pack_lambda(
            options.model,
            options.output,
            precision=options.precision,
            provider=options.provider,
            python=options.python,
            architecture=options.architecture,
            revision=options.revision,
            report=report,
        )


def _run_similarity(options: argparse.Namespace) -> None:
    import numpy as np

    if bool(options.query) != bool(options.document):
        options.usage_error("--query and --document go together; leave both out to see an example")
    queries = options.query or _EXAMPLE_QUERIES
    documents = options.document or _EXAMPLE_DOCUMENTS
    encoder = _load(options)
    scores = encoder.similarity(encoder.encode_query(queries), encoder.encode_document(documents))
    results: list[dict[str, Any]] = []
    for query, row in zip(queries, scores, strict=True):
        order = np.argsort(-row, kind="stable").tolist()
        ranked = [{"document": documents[i], "index": i, "score": float(row[i])} for i in order]
        results.append({"query": query, "documents": ranked})
    if options.json:
        print_line(json.dumps(results, ensure_ascii=False, indent=2))
        return
    for result in results:
        print_line(f"query: {result['query']}")
        for entry in result["documents"]:
            print_line(f"  {entry['score']:7.4f}  {_shortened(entry['document'])}")


def _run_info(options: argparse.Namespace) -> None:
    from .host import describe_host, recommendations
    from .model_folder import open_model

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
        ("this host", f"{host.processor}, {host.architecture}, {plural(host.processors, 'processor')} available"),
        ("  instructions", f"{instructions} (only those that matter here)"),
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
        ("encoder", f"{plural(manifest.layers, 'layer')}, dimension {manifest.dimension}"),
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


def _run_verify(options: argparse.Namespace) -> None:
    from .model_folder import open_model

    folder = open_model(options.model, all_files=True, revision=options.revision)
    size = sum(record.size for record in folder.manifest.records())
    with bar(terminal.shows_progress(), "Reading", size, "B") as advance:
        checked = folder.verify(advance)
    if options.json:
        files = [{"file": record.file, "sha256": record.sha256, "size": record.size} for record in checked]
        print_line(json.dumps({"folder": str(folder.path), "files": files}, indent=2))
        return
    for record in checked:
        print_line(f"ok  {record.size:>12,}  {record.file}")
    print_line(f"{folder.path} is unchanged since the export")


def _run_push(options: argparse.Namespace) -> None:
    from .publish import push_model

    message = {} if options.message is None else {"message": options.message}
    url = push_model(options.model, options.repository, private=options.private, revision=options.revision, **message)
    print_line(f"Published {url}")


def _load(options: argparse.Namespace) -> Encoder:
    from .encoder import Encoder

    return Encoder(
        options.model,
        precision=options.precision,
        provider=options.provider,
        threads=options.threads,
        compile_cache=options.compile_cache,
        revision=options.revision,
        truncate_dim=getattr(options, "dimensions", None),  # of `embed` alone
        force_truncate_dim=getattr(options, "force", False),
    )


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line, without the code that it comes from or advice on Python arguments."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        note(f"warning: {message.summary() if isinstance(message, TruncationWarning) else message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


@contextmanager
def _shown_log() -> Iterator[None]:
    """Show the steps of first use on standard error, as standard output is for the command's own."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            inform(record.getMessage())

    logger, handler = logging.getLogger("e5onnx"), Notes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _shortened(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
