"""`e5onnx export`: its options, and the lines it shows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .export import export_model


def main(arguments: Sequence[str]) -> None:
    """Run `e5onnx export`; errors are for :func:`e5onnx.cli.main` to show."""
    options = _parser().parse_args(arguments)
    # Decisions and steps are for people; programs get the manifest on standard output.
    stream = sys.stderr if options.json else sys.stdout
    folder = export_model(
        options.checkpoint,
        options.output,
        revision=options.revision,
        query_prompt=options.query_prompt,
        document_prompt=options.document_prompt,
        pooling=options.pooling,
        max_tokens=options.max_tokens,
        precisions=options.precision,
        calibration=options.calibration,
        portable=options.graph == "portable",
        force=options.force,
        report=lambda line: print(line, file=stream, flush=True),
    )
    if options.json:
        print(folder.manifest.to_json(), end="")  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="e5onnx export",
        description="Turn a checkpoint of a BERT encoder into a model folder, and compare the two.",
        allow_abbrev=False,
    )
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
        nargs="+",
        choices=["fp32", "int8"],
        default=["fp32", "int8"],
        help="which graphs to write (default: both)",
    )
    parser.add_argument(
        "--calibration", metavar="FILE", type=Path, help="texts to calibrate int8 on, one a line (default: built in)"
    )
    parser.add_argument(
        "--graph", choices=["portable"], help="also write a graph of standard ONNX operators, for other engines"
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it is a model folder, accept any int8")
    parser.add_argument("--json", action="store_true", help="the manifest on standard output, for programs")
    return parser
