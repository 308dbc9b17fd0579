"""`e5onnx export`: its options, and the lines it shows."""

from __future__ import annotations

import argparse
from pathlib import Path

from e5onnx.terminal import note, print_line, progress

from .export import export_model
from .folder import GRAPHS, Precision


def run(options: argparse.Namespace) -> None:
    """Run `e5onnx export`; errors are for :func:`e5onnx.cli.main` to show."""
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
        force=options.force,
        report=note if options.json else progress,  # programs get the manifest on standard output
    )
    if options.json:
        print_line(folder.manifest.to_json().rstrip())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a hub id such as intfloat/e5-small-v2, a folder, or `sample` for the all-MiniLM-L6-v2 of e5onnx[sample]",
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the model folder to make")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument("--query-prompt", metavar="S", help="text before each query, instead of the checkpoint's own")
    parser.add_argument("--document-prompt", metavar="S", help="text before each document, instead of its own")
    parser.add_argument("--pooling", choices=["mean", "cls"], help="instead of the checkpoint's own")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="most tokens of a text, instead of its own")
    parser.add_argument(
        "--precision",
        action="extend",
        type=_precisions,
        metavar="{fp32,int8}",
        help="a graph to write; repeat it, or `fp32,int8`, for both (default: both)",
    )
    parser.add_argument(
        "--calibration", metavar="FILE", type=Path, help="texts to calibrate int8 on, one a line (default: built in)"
    )
    parser.add_argument(
        "--graph", choices=["portable"], help="also write a graph of standard ONNX operators, for other engines"
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it is a model folder, accept any int8")
    parser.add_argument("--json", action="store_true", help="the manifest on standard output, for programs")
    parser.set_defaults(run=run)


def _precisions(text: str) -> list[Precision]:
    names = text.split(",")
    if unknown := [name for name in names if name not in GRAPHS]:
        raise argparse.ArgumentTypeError(f"must be {' or '.join(GRAPHS)}, got {unknown[0]!r}")
    return [precision for precision in GRAPHS if precision in names]
