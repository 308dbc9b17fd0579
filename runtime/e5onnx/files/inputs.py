"""Finding the input files, telling their formats, and making sure that their bytes stay the same.

Planning reads every byte once and notes the SHA-256 of each block. Every later read, of a header or of rows, here or on
another machine, reads whole blocks and returns their bytes only if the SHA-256 still matches.
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
_READ_TWICE = "a run that can be resumed reads its input twice; write it to a file first"
STANDARD_INPUT = "standard input"
BLOCK = 2**20
"""Bytes per SHA-256."""
_RECENT_BLOCKS = 8
"""Blocks that an open file keeps: Parquet is read column by column."""
_NEW_NS = 2 * 10**9
"""Two changes within one tick of the file system's clock, up to 2 s, may leave the same times."""
JOB_FOLDER = "_e5onnx"
"""The folder inside every output folder, which also identifies one."""


@dataclass(frozen=True)
class Stream:
    """A file that is read once from start to end; it may be a pipe or standard input."""

    path: str
    format: Format

    def opened(self) -> IO[bytes]:
        """Open it for reading."""
        standard_input = self.path == STANDARD_INPUT
        return open(0 if standard_input else self.path, "rb", closefd=not standard_input)


@dataclass(frozen=True)
class InputFile:
    """A file, and the SHA-256 of each block read so far, by number.

    `path` is absolute, so it means the same in every process. `state` reveals most changes without reading the file; it
    is None if the file was so new that another change might leave the same times.
    """

    path: str
    format: Format
    size: int
    state: tuple[int, ...] | None
    blocks: dict[int, str] = field(default_factory=dict)

    def opened(self) -> IO[bytes]:
        """Open it for reading; reading a changed block raises JobChangedError."""
        return io.BufferedReader(self._checked(), BLOCK)

    def bytes_noted(self) -> int:
        """Return the size of the noted blocks, assuming that they are the first ones."""
        return min(self.size, len(self.blocks) * BLOCK)

    def note_rest(self) -> None:
        """Read the blocks that have not been read yet.

        Raises:
            JobChangedError: the file changes while it is read.
        """
        self._read(number for number in self._numbers() if number not in self.blocks)
        if not self.is_unchanged():
            raise JobChangedError(f"{self.path} changes while it is read: start when it is complete")

    def is_unchanged(self) -> bool:
        """Tell whether the file is the same as before; its bytes are read only if its state differs."""
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
        """Return a value that JSON can hold."""
        return [self.path, self.format, self.size, self.state, [self.blocks[number] for number in self._numbers()]]

    @classmethod
    def from_json(cls, content: Sequence[Any]) -> InputFile:
        """Read what :meth:`to_json` returned."""
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
    """The bytes of a file. The hash of each block is compared with the noted one, or noted if there is none yet."""

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
                    f"{self._file.path} has changed since it was first read: restore it, or name another output folder"
                )
            if len(self._recent) == _RECENT_BLOCKS:
                del self._recent[next(iter(self._recent))]
            self._recent[number] = block
        return self._recent[number]


class Found(NamedTuple):
    """The absolute paths of input files, and how many files in folders were ignored."""

    files: list[Path]
    ignored: int


def find_files(inputs: Sequence[str]) -> Found:
    """Return the files for paths, globs and folders: each file once, sorted within a glob or folder.

    A folder stands for all files below it with a known suffix, unless a name on the way begins with `.` or `_`; links
    to folders are followed. An output folder of e5onnx is input only if it is named itself: below a folder or behind a
    wildcard, it is the output of an earlier run.

    Raises:
        InputValueError: there is no such file, or it is not a regular file.
        OSError: a folder cannot be read.
    """
    files: dict[str, Path] = {}  # real path -> path as given
    ignored = 0
    for given in inputs:
        if not given or "\0" in given:
            raise InputValueError(f"{given!r} is not a file name")
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
            raise InputValueError(f"there are no files at {given} (in a folder, names must end in {known})")
        for each in found:
            if each != path and not each.is_file():
                raise InputValueError(f"{each} is not a regular file or a link to one: remove it")
            files.setdefault(os.path.realpath(each), each.absolute())  # Path.resolve raises for circular links
    return Found(list(files.values()), ignored)


def warn_of_ignored(files: int) -> None:
    """Warn the caller's caller that files in folders were ignored."""
    if files:
        message = f"files ignored in input folders because of their suffix: {files:,}"
        warnings.warn(message, IgnoredFilesWarning, stacklevel=3)


def describe_file(path: Path, given: Format | None = None) -> InputFile:
    """Return a file without hashes yet.

    Args:
        path: the file.
        given: its format; by default the suffix decides.

    Raises:
        InputValueError: the format is unknown, or it is not a regular file.
        OSError: there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for its writer
        raise InputValueError(f"{path} is not a regular file: {_READ_TWICE}")
    is_new = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _NEW_NS
    return InputFile(str(path), format_of(path, given), status.st_size, None if is_new else _state(status))


def format_of(path: Path, given: Format | None) -> Format:
    """Return the given format of a file, or the one that its suffix stands for.

    Raises:
        InputValueError: the suffix is unknown and no format is given.
    """
    kind = given or _SUFFIXES.get(suffixes(path)[0])
    if kind is None:
        formats = ", ".join(get_args(Format))
        raise InputValueError(
            f"the name of {path} does not tell its format: choose one with --input-format ({formats})"
        )
    return kind


def suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix of the format and that of the compression, "" for none."""
    names = [suffix.lower() for suffix in path.suffixes]
    compression = names.pop() if names and names[-1] in _COMPRESSIONS else ""
    return (names[-1] if names else ""), compression


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes with the content of a file; ctime cannot be set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _walk(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder except folders."""

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
    """Return everything that matches a glob except folders."""
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
