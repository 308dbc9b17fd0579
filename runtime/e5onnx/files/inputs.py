"""Files in: which ones a user means, in what format they are, and their records in order.

A record is what one row is made of, not yet looked into: a line of JSON or text, the fields of a CSV row, the values
of a Parquet row. Records can be read from the middle of a file on; where a file cannot be entered there (compressed
ones), what comes before is read and dropped.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import lzma
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.parquet as pq

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
_OPENERS: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(pa.input_stream(str(path), compression="zstd")),
}
"""Compression, by the end of a name -> how it is opened."""
_PARQUET_ROWS = 1024
_DAMAGED = (EOFError, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowException)

csv.field_size_limit(2**31 - 1)  # a text may be longer than the module's 128 KiB


@dataclass(frozen=True)
class InputFile:
    """A file, with what notices a change: `size` in bytes, `mtime_ns`, and the SHA-256 of its bytes."""

    path: str
    format: Format
    size: int
    mtime_ns: int
    sha256: str


class Record(NamedTuple):
    """What a row is made of, where it is (`row`, from 1: the line, or the row without the header), and where it ends.

    `content` is bytes of a line, a list of CSV fields, a mapping of Parquet values, or an error that is the row's own.
    """

    row: int
    content: bytes | list[str] | dict[str, Any] | Exception
    end: int


def find_files(inputs: Sequence[str]) -> list[Path]:
    """Return the files that are meant by paths, globs and folders, each once, those of a glob or folder sorted.

    Of a folder these are the files below it with a known suffix, unless a name on the way begins with `.` or `_`.

    Raises:
        InputValueError: nothing is meant.
    """
    files: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if _is_data(each.relative_to(path)) and each.is_file())
            found = [each for each in inside if _suffixes(each)[0] in _SUFFIXES]
        elif path.exists() or not set(given) & set("*?["):
            found = [path]
        else:
            found = [
                each for each in sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if each.is_file()
            ]
        if not found:
            known = " ".join(_SUFFIXES)
            raise InputValueError(f"there are no files at {given} (in folders, those that end in {known} count)")
        files.update(dict.fromkeys(found))
    return list(files)


def describe_file(path: Path, given: Format | None = None) -> InputFile:
    """Return what is known of a file once all its bytes were read.

    Raises:
        InputValueError: the format cannot be told from the name, and is not given.
        OSError: it cannot be read.
    """
    kind = given or _SUFFIXES.get(_suffixes(path)[0])
    if kind is None:
        formats = ", ".join(get_args(Format))
        raise InputValueError(
            f"the format of {path} cannot be told from its name: name it by --input-format ({formats})"
        )
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    status = path.stat()
    return InputFile(str(path), kind, status.st_size, status.st_mtime_ns, digest.hexdigest())


def columns_of(file: InputFile) -> dict[str, pa.DataType | None] | None:
    """Return the columns that a file declares, with their types where it does that too; None if it declares none.

    Raises:
        InputValueError: the file is damaged.
    """
    with _explained(file):
        if file.format == "parquet":
            schema = pq.read_schema(file.path)
            return dict(zip(schema.names, schema.types, strict=True))
        if file.format in ("csv", "tsv"):
            return dict.fromkeys(_header(file), pa.string())
    return None


def read_records(
    file: InputFile, *, row: int = 1, offset: int = 0, columns: Sequence[str] | None = None
) -> Iterator[Record]:
    """Yield the records of a file.

    Args:
        file: the file.
        row: number of the first record wanted.
        offset: where it begins, as the `end` of the record before it said.
        columns: what is wanted of Parquet files; None for all.

    Raises:
        InputValueError: the file is damaged.
    """
    with _explained(file):
        if file.format == "parquet":
            yield from _parquet_records(file, row, columns)
        elif file.format in ("csv", "tsv"):
            yield from _csv_records(file, row, offset)
        else:
            yield from _line_records(file, row, offset)


def decoded(line: bytes, row: int) -> str:
    """Return a line as text, without its end, and the first one without the mark that says it is UTF-8."""
    return line.decode("utf-8-sig" if row == 1 else "utf-8").rstrip("\r\n")


def _line_records(file: InputFile, row: int, offset: int) -> Iterator[Record]:
    skips_blank = file.format == "jsonl"
    with _opened(file, offset) as stream:
        for number, line in enumerate(stream, row):
            offset += len(line)
            if not (skips_blank and line.isspace()):
                yield Record(number, line, offset)


def _csv_records(file: InputFile, row: int, offset: int) -> Iterator[Record]:
    """Yield lists of fields; bytes that are no UTF-8 stay in them as lone surrogates."""
    end = offset

    def lines(stream: IO[bytes]) -> Iterator[str]:
        nonlocal end
        for line in stream:
            # only the very first line of the file may have the mark
            text = line.decode("utf-8-sig" if end == 0 else "utf-8", errors="surrogateescape")
            end += len(line)
            yield text

    with _opened(file, offset) as stream:
        reader = csv.reader(lines(stream), "excel-tab" if file.format == "tsv" else "excel", strict=True)
        if offset == 0:
            next(reader, None)  # the header
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Record(row, ValueError(f"no valid CSV: {error}"), end)
            else:
                if not fields:
                    continue  # a blank line
                yield Record(row, fields, end)
            row += 1


def _header(file: InputFile) -> list[str]:
    with _opened(file, 0) as stream:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(stream))
        header = next(csv.reader(lines, "excel-tab" if file.format == "tsv" else "excel"), [])
    if len(set(header)) != len(header):
        raise InputValueError(f"{file.path} names a column twice in its header: {', '.join(header)}")
    return header


def _parquet_records(file: InputFile, row: int, columns: Sequence[str] | None) -> Iterator[Record]:
    with pq.ParquetFile(file.path) as parquet:
        first = 1
        groups: list[int] = []
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if groups or first + rows > row:
                groups.append(group)
            else:
                first += rows
        if not groups:
            return
        for batch in parquet.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=columns):
            if first + batch.num_rows > row:
                wanted = batch.slice(max(0, row - first))
                for number, content in enumerate(_values(wanted), max(row, first)):
                    yield Record(number, content, 0)
            first += batch.num_rows


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # Parquet does not look into its strings
        for position in range(batch.num_rows):
            try:
                (values,) = batch.slice(position, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield error
            else:
                yield values


def _suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix that says the format, and that of the compression, "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    return (suffixes[-1] if suffixes else ""), compression


def _is_data(path: Path) -> bool:
    return not any(name.startswith((".", "_")) for name in path.parts)


@contextmanager
def _opened(file: InputFile, offset: int) -> Iterator[IO[bytes]]:
    compression = _suffixes(Path(file.path))[1]
    with _OPENERS[compression](Path(file.path)) as stream:
        if compression:
            while offset:
                offset -= len(stream.read(min(offset, 2**20))) or offset
        else:
            stream.seek(offset)
        yield stream


@contextmanager
def _explained(file: InputFile) -> Iterator[None]:
    try:
        yield
    except InputValueError:
        raise
    except (*_DAMAGED, UnicodeDecodeError) as error:
        raise InputValueError(f"{file.path} is damaged, or is not what its name says: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputValueError(f"{file.path} is damaged, or is not what its name says: {error}") from error
