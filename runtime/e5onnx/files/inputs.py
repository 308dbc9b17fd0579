"""Files in: which ones a user means, what their format is, and whether they are still what they were."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ..errors import InputValueError

Format = Literal["jsonl", "csv", "tsv", "parquet", "text"]
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_READ_TWICE = "a run that can be resumed reads its input twice, so write it to a file first"
JOB_FOLDER = "_e5onnx"
"""What an output folder holds beside the parts, and is known by."""


class JobChangedError(InputValueError):
    """The output folder holds parts of other input, another model or other options."""


class IgnoredFilesWarning(UserWarning):
    """Files of an input folder were ignored, as their names do not say a format."""


@dataclass(frozen=True)
class InputFile:
    """A file as its bytes were read: their SHA-256, and what notices a change without reading them again.

    `path` is absolute, so that it means the same wherever a process runs. The times are in ns.
    """

    path: str
    format: Format
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str


class Found(NamedTuple):
    """Input files, by absolute paths, and how many files of folders were ignored."""

    files: list[Path]
    ignored: int


def find_files(inputs: Sequence[str]) -> Found:
    """Return the files that are meant by paths, globs and folders, each once, those of a glob or folder sorted.

    Of a folder these are the files below it with a known suffix, unless a name on the way begins with `.` or `_`; links
    to folders are followed. Output folders of e5onnx are input only where they are named themselves: what lies in one
    below a folder, or behind a wildcard, is the output of an earlier run.

    Raises:
        InputValueError: nothing is meant.
    """
    files: dict[Path, Path] = {}  # resolved -> as it was named
    ignored = 0
    for given in inputs:
        if not given:
            raise InputValueError("an empty argument names no file")
        if given == "-":
            raise InputValueError(f"standard input is no regular file: {_READ_TWICE}")
        path = Path(given)
        if path.is_dir():
            inside = sorted(_walk(path))
            found = [each for each in inside if suffixes(each)[0] in _SUFFIXES]
            ignored += len(inside) - len(found)
        elif path.exists() or not _is_pattern(given):
            found = [path]
        else:
            found = _matching(path)
        if not found:
            known = " ".join(_SUFFIXES)
            raise InputValueError(f"there are no files at {given} (in folders, those that end in {known} count)")
        for each in found:
            files.setdefault(each.resolve(), each.absolute())
    return Found(list(files.values()), ignored)


def describe_file(
    path: Path, given: Format | None = None, *, advance: Callable[[int], object] = lambda size: None
) -> InputFile:
    """Return what is known of a file once all its bytes were read.

    Args:
        path: the file.
        given: its format, if its name does not say it.
        advance: is told of bytes that were read.

    Raises:
        InputValueError: the format cannot be told from the name, and is not given; or it is no regular file.
        JobChangedError: it changes meanwhile.
        OSError: it cannot be read.
    """
    kind = given or _SUFFIXES.get(suffixes(path)[0])
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for its writer
        raise InputValueError(f"{path} is no regular file: {_READ_TWICE}")
    if kind is None:
        formats = ", ".join(get_args(Format))
        raise InputValueError(
            f"the format of {path} cannot be told from its name: name it by --input-format ({formats})"
        )
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        before = _state(os.fstat(stream.fileno()))
        while block := stream.read(2**20):
            digest.update(block)
            advance(len(block))
        if _state(os.fstat(stream.fileno())) != before:
            raise JobChangedError(f"{path} changes while it is read: begin when it is complete")
    return InputFile(str(path), kind, *before, digest.hexdigest())


def is_unchanged(file: InputFile) -> bool:
    """Tell whether a file is what it was when it was described; its bytes are read only if its state is another."""
    if _state(Path(file.path).stat()) == (file.size, file.mtime_ns, file.ctime_ns, file.inode):
        return True
    return describe_file(Path(file.path), file.format).sha256 == file.sha256


def suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix that says the format, and that of the compression, "" for none."""
    names = [suffix.lower() for suffix in path.suffixes]
    compression = names.pop() if names and names[-1] in _COMPRESSIONS else ""
    return (names[-1] if names else ""), compression


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return what another content of a file changes; the time of the last change of its state cannot be set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder."""
    entered: set[str] = set()  # a link may lead back up
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in entered or (entered and _is_output(Path(where))):
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if _is_data(name))
        files = (Path(where, name) for name in names if _is_data(name))
        yield from (file for file in files if file.is_file())


def _matching(pattern: Path) -> list[Path]:
    """Return the files that a glob means."""
    try:
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except (ValueError, NotImplementedError) as error:
        raise InputValueError(f"{pattern} is no glob: {error}") from error
    named = next(position for position, name in enumerate(pattern.parts) if _is_pattern(name))
    return [
        each
        for each in found
        if each.is_file() and not any(_is_output(parent) for parent in each.parents if len(parent.parts) > named)
    ]


def _is_pattern(name: str) -> bool:
    return bool(set(name) & set("*?["))


def _is_output(folder: Path) -> bool:
    return (folder / JOB_FOLDER).is_dir()


def _is_data(name: str) -> bool:
    return not name.startswith((".", "_"))
