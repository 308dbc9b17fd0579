"""Files in: which ones a user means, what their format is, and that what is read of them stays the same.

Planning reads every byte once and notes the SHA-256 of each block. Whatever reads a file later, be it its header or
its rows, here or on another machine, reads whole blocks, and gets their bytes only if their SHA-256 is the noted one.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

from ..errors import IgnoredFilesWarning, InputValueError, JobChangedError

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
STANDARD_INPUT = "standard input"
BLOCK = 2**20
"""Bytes that have one SHA-256."""
_RECENT_BLOCKS = 8
"""Blocks that an open file keeps: columns of Parquet are read in turns."""
_NEW_NS = 2 * 10**9
"""A file changed twice within the steps of its clock, 2 s for some file systems, may have the same times."""
JOB_FOLDER = "_e5onnx"
"""What an output folder holds beside the parts, and is known by."""


@dataclass(frozen=True)
class Stream:
    """A file that is read once, from its beginning to its end; it may be a pipe, or standard input."""

    path: str
    format: Format

    def opened(self) -> IO[bytes]:
        """Open it for reading."""
        standard_input = self.path == STANDARD_INPUT
        return open(0 if standard_input else self.path, "rb", closefd=not standard_input)


@dataclass(frozen=True)
class InputFile:
    """A file, and the SHA-256 of the blocks that were read of it, by their number.

    `path` is absolute, so that it means the same wherever a process runs. `state` notices most changes without reading;
    it is None if the file was so new that another change might leave the same times.
    """

    path: str
    format: Format
    size: int
    state: tuple[int, ...] | None
    blocks: dict[int, str] = field(default_factory=dict)

    def opened(self) -> IO[bytes]:
        """Open it for reading; what is no longer what it was is a JobChangedError."""
        return io.BufferedReader(self._checked(), BLOCK)

    def bytes_noted(self) -> int:
        """Return how many bytes the noted blocks have, if they are the first ones."""
        return min(self.size, len(self.blocks) * BLOCK)

    def note_rest(self) -> None:
        """Read the blocks that were not read yet.

        Raises:
            JobChangedError: the file changes meanwhile.
        """
        self._read(number for number in self._numbers() if number not in self.blocks)
        if not self.is_unchanged():
            raise JobChangedError(f"{self.path} changes while it is read: begin when it is complete")

    def is_unchanged(self) -> bool:
        """Tell whether it is what it was; its bytes are read only if its state is another."""
        status = Path(self.path).stat()
        if self.state is not None and self.state == _state(status):
            return True
        if status.st_size != self.size or not stat.S_ISREG(status.st_mode):
            return False
        try:
            self._read(self._numbers())
        except JobChangedError:
            return False
        return True

    def to_json(self) -> list[Any]:
        """Return it as values of JSON."""
        return [self.path, self.format, self.size, self.state, [self.blocks[number] for number in self._numbers()]]

    @classmethod
    def from_json(cls, content: Sequence[Any]) -> InputFile:
        """Return what :meth:`to_json` wrote."""
        path, kind, size, state, blocks = content
        return cls(path, kind, size, None if state is None else tuple(state), dict(enumerate(blocks)))

    def _numbers(self) -> range:
        return range(-(-self.size // BLOCK))

    def _read(self, numbers: Iterable[int]) -> None:
        with self._checked() as file:
            for number in numbers:
                file.block(number)

    def _checked(self) -> _CheckedFile:
        return _CheckedFile(self, Path(self.path).open("rb"))


class _CheckedFile(io.RawIOBase):
    """The bytes of a file; every block is compared with what is noted of it, and noted if nothing is."""

    def __init__(self, file: InputFile, stream: IO[bytes]) -> None:
        self._file, self._stream = file, stream
        self._at = 0
        self._recent: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        number, start = divmod(self._at, BLOCK)
        block = memoryview(self.block(number)) if self._at < self._file.size else b""
        found = block[start : start + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()

    def block(self, number: int) -> bytes:
        if number not in self._recent:
            size = min(BLOCK, self._file.size - number * BLOCK)
            self._stream.seek(number * BLOCK)
            block = self._stream.read(size)
            digest = hashlib.sha256(block).hexdigest()
            if len(block) < size or self._file.blocks.setdefault(number, digest) != digest:
                raise JobChangedError(
                    f"{self._file.path} has changed since it was read first: name another output folder, or restore it"
                )
            if len(self._recent) == _RECENT_BLOCKS:
                del self._recent[next(iter(self._recent))]
            self._recent[number] = block
        return self._recent[number]


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
        InputValueError: nothing is meant, or something that is not a file.
        OSError: a folder cannot be read.
    """
    files: dict[str, Path] = {}  # real path -> as it was named
    ignored = 0
    for given in inputs:
        if not given or "\0" in given:
            raise InputValueError(f"{given!r} is not the name of a file")
        if given == "-":
            raise InputValueError(f"standard input is not a regular file: {_READ_TWICE}")
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
            if each != path and not each.is_file():
                raise InputValueError(f"{each} is not a regular file, or a link that leads to none: remove it")
            files.setdefault(
                os.path.realpath(each), each.absolute()
            )  # Path.resolve raises where links lead in a circle
    return Found(list(files.values()), ignored)


def warn_of_ignored(files: int) -> None:
    """Warn the caller's caller that files of folders were ignored."""
    if files:
        message = f"files ignored in input folders, as their names do not say a format: {files:,}"
        warnings.warn(message, IgnoredFilesWarning, stacklevel=3)


def describe_file(path: Path, given: Format | None = None) -> InputFile:
    """Return what is known of a file before its bytes are read.

    Args:
        path: the file.
        given: its format, if its name does not say it.

    Raises:
        InputValueError: the format cannot be told from the name, and is not given; or it is not a regular file.
        OSError: there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for its writer
        raise InputValueError(f"{path} is not a regular file: {_READ_TWICE}")
    is_new = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _NEW_NS
    return InputFile(str(path), format_of(path, given), status.st_size, None if is_new else _state(status))


def format_of(path: Path, given: Format | None) -> Format:
    """Return the format of a file.

    Raises:
        InputValueError: it cannot be told from the name, and is not given.
    """
    kind = given or _SUFFIXES.get(suffixes(path)[0])
    if kind is None:
        formats = ", ".join(get_args(Format))
        raise InputValueError(
            f"the format of {path} cannot be told from its name: name it by --input-format ({formats})"
        )
    return kind


def suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix that says the format, and that of the compression, "" for none."""
    names = [suffix.lower() for suffix in path.suffixes]
    compression = names.pop() if names and names[-1] in _COMPRESSIONS else ""
    return (names[-1] if names else ""), compression


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return what another content of a file changes; the time of the last change of its state cannot be set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _walk(folder: Path) -> Iterator[Path]:
    """Yield what is below a folder, save folders."""

    def fail(error: OSError) -> None:
        raise error

    entered: set[str] = set()  # a link may lead back up
    for where, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(where)
        if real in entered or (entered and _is_output(Path(where))):
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if _is_data(name))
        yield from (Path(where, name) for name in names if _is_data(name))


def _matching(pattern: Path) -> list[Path]:
    """Return what a glob means, save folders."""
    try:
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except (ValueError, NotImplementedError) as error:
        raise InputValueError(f"{pattern} is not a glob: {error}") from error
    named = next(position for position, name in enumerate(pattern.parts) if _is_pattern(name))
    return [
        each
        for each in found
        if not each.is_dir() and not any(_is_output(parent) for parent in each.parents if len(parent.parts) > named)
    ]


def _is_pattern(name: str) -> bool:
    return bool(set(name) & set("*?["))


def _is_output(folder: Path) -> bool:
    return (folder / JOB_FOLDER).is_dir()


def _is_data(name: str) -> bool:
    return not name.startswith((".", "_"))
