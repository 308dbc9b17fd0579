"""What the commands write: lines on standard output, notes on standard error."""

from __future__ import annotations

import sys


def print_line(text: str) -> None:
    """Write a line of output."""
    print(text)  # noqa: T201


def note(text: str) -> None:
    """Write a line for people to standard error."""
    print(f"e5onnx: {text}", file=sys.stderr)  # noqa: T201
