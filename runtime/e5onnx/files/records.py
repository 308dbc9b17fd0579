"""Files of lines and CSV -> records, in order; those of Parquet are in `parquet.py`.

A record is what one row is made of: a line of JSON or text, not yet looked into, or the fields of a CSV row. Records
can be read from the middle of a file on; where a file cannot be entered there (compressed ones), what comes before is
read and dropped.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import InputValueError, JobChangedError, MissingDependencyError
from .inputs import InputFile, Stream, suffixes

Source = InputFile | Stream
_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, csv.Error, UnicodeError)
RECORD_BYTES = 64 * 2**20
"""Most bytes of a line or CSV row: a quote that is never closed would take in the rest of the file."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_TOO_LONG = f"it has more than {RECORD_BYTES >> 20} MiB"

csv.field_size_limit(2**31 - 1)  # a text may be longer than the module's 128 KiB


class Place(NamedTuple):
    """Where a record begins: `row`, from 1 (the line, or the row without the header), the line, and the byte."""

    row: int = 1
    line: int = 1
    offset: int = 0


_BEGINNING = Place()


class Record(NamedTuple):
    """What a row is made of, and its length in bytes and lines.

    `content` is bytes of a line, a mapping of CSV fields, or an error that is the row's own.
    """

    place: Place
    content: bytes | dict[str, Any] | Exception
    length: int = 0
    lines: int = 1


class Reader:
    """Reads stretches of files. A file stays open as long as each begins where the last one ended, or is compressed."""

    def __init__(self, files: Sequence[InputFile]) -> None:
        self.files = files
        self._file: int | None = None
        self._records: Iterator[Record] = iter(())
        self._following: Record | None = None

    def read(self, file: int, place: Place, rows: int) -> Iterator[Record]:
        """Yield so many records of a file, by its position, from a place on.

        Raises:
            InputValueError: the file is damaged.
            JobChangedError: it has changed.
        """
        if self._file != file or not self._goes_on_at(place, bool(suffixes(Path(self.files[file].path))[1])):
            self._file, self._records, self._following = file, read_records(self.files[file], place), None
        for _ in range(rows):
            record = self._following or next(self._records, None)
            if record is None:
                raise JobChangedError(f"{self.files[file].path} has fewer rows than planned: name another folder")
            self._following = None
            yield record

    def _goes_on_at(self, place: Place, drop: bool) -> bool:
        """Tell whether the record at a place comes next, once those before it are dropped, if they may be."""
        self._following = self._following or next(self._records, None)
        while drop and self._following is not None and self._following.place < place:
            self._following = next(self._records, None)
        return self._following is not None and self._following.place == place


def read_header(file: Source) -> list[str]:
    """Return the columns that a CSV file names.

    Raises:
        InputValueError: the file is damaged, or names one twice.
    """
    with explained(file), _opened(file, 0) as stream:
        return _header(file, _csv_reader(file, _CsvLines(stream, _BEGINNING)))


def read_records(file: Source, place: Place = _BEGINNING) -> Iterator[Record]:
    """Yield the records of a file.

    Args:
        file: the file.
        place: of the first record wanted.

    Raises:
        InputValueError: the file is damaged.
    """
    read = _csv_records if file.format in ("csv", "tsv") else _line_records
    with explained(file), _opened(file, place.offset) as stream:
        yield from read(file, stream, place)


def decoded(line: bytes, row: int) -> str:
    """Return a line as text, without its end, and the first one without the mark that says it is UTF-8."""
    return line.decode("utf-8-sig" if row == 1 else "utf-8").rstrip("\r\n")


@contextmanager
def explained(file: Source) -> Iterator[None]:
    """Have errors name the file, and say when it is damaged."""
    try:
        yield
    except (InputValueError, MissingDependencyError):
        raise
    except OSError as error:
        if error.errno is None:  # a decompressor's
            raise damaged(file, error) from error
        error.filename = error.filename or file.path
        raise
    except _DAMAGED as error:
        raise damaged(file, error) from error


def damaged(file: Source, error: Exception) -> InputValueError:
    """Return the error that says so."""
    return InputValueError(f"{file.path} is damaged, or is not what its name says: {error}")


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield lines with their length; of too long ones only the beginning, which is longer than `RECORD_BYTES`."""
    read_line = partial(stream.readline, RECORD_BYTES + 1)
    while line := read_line():
        length, end = len(line), line
        while len(end) > RECORD_BYTES and not end.endswith(b"\n"):
            end = read_line()
            length += len(end)
        yield line, length


def _line_records(file: Source, stream: IO[bytes], place: Place) -> Iterator[Record]:
    is_json = file.format == "jsonl"
    begun = place.offset > 0
    for line, length in _lines(stream):
        if place.offset == 0 and line.startswith(_UTF_16):
            raise InputValueError(f"{file.path} is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)")
        if not (is_json and line.isspace()):
            if is_json and not begun and _begins_array(line):
                raise InputValueError(
                    f"{file.path} is one JSON array; what is wanted is an object a line (jq -c '.[]' makes that)"
                )
            begun = True
            yield Record(place, line if len(line) <= RECORD_BYTES else ValueError(_TOO_LONG), length)
        place = Place(place.row + 1, place.line + 1, place.offset + length)


def _begins_array(line: bytes) -> bool:
    """Tell whether the first line of a file is that of an array of objects, and not just a row that is wrong."""
    line = line.removeprefix(b"\xef\xbb\xbf").strip()
    return line.startswith(b"[") and line[1:].lstrip()[:1] in (b"", b"{")


def _csv_records(file: Source, stream: IO[bytes], place: Place) -> Iterator[Record]:
    """Yield mappings of fields; bytes that are not UTF-8 stay in them as lone surrogates."""
    lines = _CsvLines(stream, place)
    reader = _csv_reader(file, lines)
    header = _header(file, reader) if place.offset == 0 else read_header(file)
    row = place.row
    while True:
        place = lines.begin_record(row)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            content: dict[str, Any] | Exception = ValueError(f"not valid CSV: {error}")
        else:
            if not fields:
                continue  # a blank line
            if len(fields) == len(header):
                content = dict(zip(header, fields, strict=True))
            else:
                content = ValueError(f"it has {len(fields)} fields, the header has {len(header)}")
        number = lines.line - place.line
        if number > 1 and isinstance(content, Exception):
            raise InputValueError(
                f"{file.path}, row {row}: {content}. It takes in {number:,} lines, {place.line} to {lines.line - 1}, "
                "as a quote that is not closed does. Which rows those are cannot be told, so they are not skipped: "
                "correct the file"
            )
        yield Record(place, content, lines.offset - place.offset, number)
        row += 1


class _CsvLines:
    """Lines of a CSV file as text; says where the next one begins, and ends a record that is too long."""

    def __init__(self, stream: IO[bytes], place: Place) -> None:
        self._lines = _lines(stream)
        self.line, self.offset = place.line, place.offset
        self._begun = place.offset

    def begin_record(self, row: int) -> Place:
        self._begun = self.offset
        return Place(row, self.line, self.offset)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, length = next(self._lines)
        # only the very first line of the file may have the mark
        text = line.decode("utf-8-sig" if self.offset == 0 else "utf-8", errors="surrogateescape")
        self.line, self.offset = self.line + 1, self.offset + length
        if self.offset - self._begun > RECORD_BYTES:
            raise csv.Error(_TOO_LONG)
        return text


def _csv_reader(file: Source, lines: Iterator[str]) -> Any:
    return csv.reader(lines, "excel-tab" if file.format == "tsv" else "excel", strict=True)


def _header(file: Source, reader: Iterator[list[str]]) -> list[str]:
    header = next(reader, [])
    "".join(header).encode()  # fails where it is not valid Unicode
    if len(set(header)) != len(header):
        raise InputValueError(f"{file.path} names a column twice in its header: {', '.join(header)}")
    return header


@contextmanager
def _opened(file: Source, offset: int) -> Iterator[IO[bytes]]:
    compression = suffixes(Path(file.path))[1]
    with file.opened() as raw:
        if not compression:
            if offset:
                raw.seek(offset)
            yield raw
            return
        with _DECOMPRESSORS[compression](raw) as stream:
            while offset:
                offset -= len(stream.read(min(offset, 2**20))) or offset
            yield stream


def _zstd(stream: IO[bytes]) -> IO[bytes]:
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise MissingDependencyError("reading .zst files needs more: pip install 'e5onnx[bulk]'") from error
    return io.BufferedReader(pa.input_stream(stream, compression="zstd"))


class _Streams(io.RawIOBase):
    """What one or more bz2 or xz streams hold. bz2.open and lzma.open take damage after the first one for the end."""

    def __init__(self, begin: Callable[[], Any], compressed: IO[bytes]) -> None:
        self._begin, self._compressed = begin, compressed
        self._stream = begin()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = b""
        while not found:
            given = b""
            if self._stream.eof:
                given = self._next_beginning()
                if not given:
                    return 0
                self._stream = self._begin()
            elif self._stream.needs_input:
                given = self._compressed.read(_COMPRESSED_BLOCK)
                if not given:
                    raise EOFError("its last stream does not end")
            found = self._stream.decompress(given, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _next_beginning(self) -> bytes:
        """Return the first bytes of the next stream, b"" if there is none; zeros in between are padding."""
        given: bytes = self._stream.unused_data.lstrip(b"\0")
        while not given:
            block = self._compressed.read(_COMPRESSED_BLOCK)
            if not block:
                break
            given = block.lstrip(b"\0")
        return given


_COMPRESSED_BLOCK = 2**16
_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": lambda stream: io.BufferedReader(_Streams(bz2.BZ2Decompressor, stream)),
    ".xz": lambda stream: io.BufferedReader(_Streams(lzma.LZMADecompressor, stream)),
    ".zst": _zstd,
}
"""Compression, by the end of a name -> how it is opened."""
