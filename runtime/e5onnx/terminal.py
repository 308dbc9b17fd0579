"""The standard streams: lost output is an error, a lost note is not, whatever the locale and the parent process.

`quiet` silences what only says how the work goes: progress, steps and notes, but no warning and no error.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from .atomic import written_whole

quiet = False


class OutputClosedError(Exception):
    """The reader of standard output closed it. Not an OSError, to tell it from any other broken pipe."""


def prepare() -> None:
    """Make the standard streams usable: reserve those that are closed, and escape characters they cannot write.

    A closed stream is opened so that reading or writing still fails, and no other file gets its number.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):  # notes may get lost, output may not
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
    """Write UTF-8 to standard output from now on, as JSON requires."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A lone surrogate, as in a path that is not UTF-8, is escaped as in JSON.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def print_line(text: str) -> None:
    """Write a line of output.

    Raises:
        OutputClosedError: the reader closed standard output.
        OSError: writing failed, for example because the disk is full.
    """
    with _output_errors():
        print(text)  # noqa: T201


@contextmanager
def json_report(file: str | None) -> Iterator[Callable[[Any], bool]]:
    """Yield a function that writes a report as JSON, and tells whether it went to standard output.

    Args:
        file: where to, - for standard output, None for nowhere. A file is opened first, to notice early that it cannot
            be written, and appears at the end.
    """
    with ExitStack() as stack:
        stream = None
        if file is not None and file != "-":
            path = Path(file)
            temporary = stack.enter_context(written_whole(path.resolve() if path.is_file() else path))  # keeps a link
            stream = stack.enter_context(temporary.open("x", encoding="utf-8"))

        def write(content: Any) -> bool:
            if file == "-":
                print_line(json.dumps(content, ensure_ascii=False, indent=2))
            elif stream is not None:
                json.dump(content, stream, ensure_ascii=False, indent=2)
                stream.write("\n")
            return file == "-"

        yield write


def shows_progress() -> bool:
    """Tell whether somebody watches standard error, and wants to. Without tqdm there is nothing to see."""
    return not quiet and sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None


def progress(text: str) -> None:
    """Write a line about progress unless `quiet`; the work goes on if the reader closed standard output."""
    if quiet:
        return
    try:
        print_line(text)
        _flush()
    except OutputClosedError:
        _discard(sys.stdout)


def inform(text: str) -> None:
    """Write a line to standard error if possible, unless `quiet`."""
    if not quiet:
        note(text)


def note(text: str) -> None:
    """Write a warning or an error to standard error if possible."""
    try:
        print(f"e5onnx: {text}", file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        _discard(sys.stderr)


@contextmanager
def written_output() -> Iterator[None]:
    """Flush all output at the end, even if argparse exits, with the errors of :func:`print_line`."""
    try:
        yield
        _flush()
    except SystemExit as exit:
        if not exit.code:
            _flush()
        raise
    finally:
        # Python flushes again as it ends, and would report the same error again.
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
    """Discard everything written to a stream from now on."""
    with suppress(OSError, ValueError):  # ValueError: not a real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
