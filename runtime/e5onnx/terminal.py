"""The standard streams: output arrives or is an error, notes do no harm, whatever the locale and the parent process."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class OutputClosedError(Exception):
    """The reader of standard output has seen enough. Not an OSError: no other broken pipe may be taken for it."""


def prepare() -> None:
    """Make the standard streams usable: open those that are closed, and let no character be an error.

    A closed stream is opened such that reading and writing fail, as they should, and no other file takes its number.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):  # notes may be lost, output may not
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", newline="\n")


def use_utf8() -> None:
    """Write UTF-8 to standard output from now on, as JSON asks for."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The escape of a lone surrogate, as in a path that is not UTF-8, is JSON's as well.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def print_line(text: str) -> None:
    """Write a line of output.

    Raises:
        OutputClosedError: nobody reads it any more.
        OSError: it could not be written, for example to a full disk.
    """
    with _output_errors():
        print(text)  # noqa: T201


def progress(text: str) -> None:
    """Write a line about work that goes on when nobody reads it any more."""
    try:
        print_line(text)
        _flush()
    except OutputClosedError:
        _discard(sys.stdout)


def note(text: str) -> None:
    """Write a line for people to standard error, if that is possible."""
    try:
        print(f"e5onnx: {text}", file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        _discard(sys.stderr)


@contextmanager
def written_output() -> Iterator[None]:
    """See to it that all output is written at the end, also that of argparse, which exits; errors as in print_line."""
    try:
        yield
        _flush()
    except SystemExit as exit:
        if not exit.code:
            _flush()
        raise
    finally:
        # Python flushes once more when it ends, and would report an error that we have reported.
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                _discard(stream)


def _flush() -> None:
    with _output_errors():
        sys.stdout.flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosedError from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def _discard(stream: TextIO) -> None:
    """Let what is written to a stream vanish."""
    with suppress(OSError, ValueError):  # ValueError: not a real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
