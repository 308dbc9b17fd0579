"""Files -> records, in order: lines of JSON or text, rows of CSV, tables of Parquet.

A record becomes one row: a line that is not parsed yet, or the fields of a CSV row. Reading may start in the middle of
a file; in a compressed file, everything before that point is read and dropped. Only Parquet and .zst need pyarrow.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..checks import json_type
from ..errors import InputValueError, JobChangedError, MissingDependencyError, RowError
from .inputs import InputFile, Stream, suffixes

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Source = InputFile | Stream
Parsed = dict[str, Any] | Exception
"""A record's columns, or the error that rejects the record."""
RECORD_BYTES = 64 * 2**20
"""Maximum size of a line or CSV row: an unclosed quote would swallow the rest of the file."""
_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, csv.Error, UnicodeError)
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_TOO_LONG = f"it has more than {RECORD_BYTES >> 20} MiB"
_BATCH_ROWS = 1024

csv.field_size_limit(2**31 - 1)  # a text may exceed the module's limit of 128 KiB


class Place(NamedTuple):
    """Where a record begins: its row from 1 (the line, or the row below the header), its line and its byte."""

    row: int = 1
    line: int = 1
    offset: int = 0


_BEGINNING = Place()


class Record(NamedTuple):
    """The content of a row, with its length in bytes and lines.

    `content` is the bytes of a line, a mapping of CSV fields, or the error that rejects the row.
    """

    place: Place
    content: bytes | dict[str, Any] | Exception
    length: int = 0
    lines: int = 1


@dataclass(frozen=True)
class Reject:
    """A row that cannot be embedded, and why. `unit` says what `row` counts: lines, or rows of CSV and Parquet."""

    file: str
    row: int
    reason: str
    unit: str = "row"

    @classmethod
    def of(cls, file: Source, row: int, reason: str) -> Reject:
        """Reject a row of a file."""
        return cls(file.path, row, reason, "line" if file.format in ("jsonl", "text") else "row")

    def to_line(self) -> str:
        """Return a line of JSON with file, row and reason."""
        content = asdict(self)
        del content["unit"]
        return json.dumps(content) + "\n"

    def error(self) -> RowError:
        """Return the error to raise."""
        return RowError(f"{self.file}, {self.unit} {self.row}: {self.reason}")


class RecordReader:
    """Reads stretches of files. A file stays open while each stretch starts where the last ended, or is compressed."""

    def __init__(self, files: Sequence[InputFile]) -> None:
        self.files = files
        self._file: int | None = None
        self._records: Iterator[Record] = iter(())
        self._following: Record | None = None

    def read(self, file: int, place: Place, rows: int) -> Iterator[Record]:
        """Yield `rows` records of the file at this position in the list, starting at a place.

        Raises:
            InputValueError: the file is damaged.
            JobChangedError: it has changed.
        """
        if self._file != file or not self._continues_at(place, bool(suffixes(Path(self.files[file].path))[1])):
            self._file, self._records, self._following = file, read_records(self.files[file], place), None
        for _ in range(rows):
            record = self._following or next(self._records, None)
            if record is None:
                raise _fewer_rows(self.files[file])
            self._following = None
            yield record

    def _continues_at(self, place: Place, drop: bool) -> bool:
        """Tell whether the record at a place comes next, after dropping those before it if `drop` is set."""
        self._following = self._following or next(self._records, None)
        while drop and self._following is not None and self._following.place < place:
            self._following = next(self._records, None)
        return self._following is not None and self._following.place == place


class TableReader:
    """Reads stretches of Parquet files. A file stays open while each stretch starts where the last ended."""

    def __init__(self, files: Sequence[InputFile], columns: Sequence[str]) -> None:
        """Read these columns of these files."""
        self.files = files
        self._columns = columns
        self._next: tuple[int, int] | None = None  # file, row
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._left: pa.RecordBatch | None = None

    def read(self, file: int, row: int, rows: int) -> pa.Table:
        """Return `rows` rows of the file at this position in the list, starting at a row.

        Raises:
            InputValueError: the file is damaged.
            JobChangedError: it has changed.
        """
        import pyarrow as pa

        if self._next != (file, row):
            self._batches, self._left = read_batches(self.files[file], self._columns, row), None
        batches: list[pa.RecordBatch] = []
        missing = rows
        while missing:
            batch = next(self._batches, None) if self._left is None else self._left
            if batch is None:
                raise _fewer_rows(self.files[file])
            batches.append(batch.slice(0, missing))
            self._left = batch.slice(missing) if batch.num_rows > missing else None
            missing -= batches[-1].num_rows
        self._next = file, row + rows
        return pa.Table.from_batches(batches)


def read_header(file: Source) -> list[str]:
    """Return the column names in the header of a CSV file.

    Raises:
        InputValueError: the file is damaged, or two columns have the same name.
    """
    with _explained(file), _opened(file, 0) as stream:
        return _header(file, _csv_reader(file, _CsvLines(stream, _BEGINNING)))


def read_schema(file: Source) -> pa.Schema:
    """Return the names and types of the columns of a Parquet file.

    Raises:
        InputValueError: the file is damaged, or two columns have the same name.
    """
    with _opened_parquet(file) as parquet:
        schema = parquet.schema_arrow
    _check_names(file, schema.names)
    return schema


def read_records(file: Source, place: Place = _BEGINNING) -> Iterator[Record]:
    """Yield the records of a file of lines or CSV, starting at a place.

    Raises:
        InputValueError: the file is damaged.
    """
    read = _csv_records if file.format in ("csv", "tsv") else _line_records
    with _explained(file), _opened(file, place.offset) as stream:
        yield from read(file, stream, place)


def read_batches(file: Source, columns: Sequence[str], row: int = 1) -> Iterator[pa.RecordBatch]:
    """Yield these columns of a Parquet file, starting at a row.

    Raises:
        InputValueError: the file is damaged.
    """
    with _opened_parquet(file) as parquet:
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
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
            if first + batch.num_rows > row:
                yield batch.slice(max(0, row - first))
            first += batch.num_rows


def read_extents(file: InputFile) -> Iterator[tuple[Place, int]]:
    """Yield the place and the bytes of every record; for Parquet, the average bytes of a row in its row group.

    Raises:
        InputValueError: the file is damaged.
    """
    if file.format != "parquet":
        yield from ((record.place, record.length) for record in read_records(file))
        return
    with _opened_parquet(file) as parquet:
        next(parquet.iter_batches(1), None)
        metadata = parquet.metadata
    row = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for _ in range(group.num_rows):
            yield Place(row, row), group.total_byte_size // group.num_rows
            row += 1


def parsed(record: Record, file: Source, text_column: str) -> Parsed:
    """Return a record's columns, or the error that rejects it; the line of a text file is its text column."""
    content = record.content
    if not isinstance(content, bytes):
        return content
    try:
        # only the first line of a file may begin with a byte order mark
        line = content.decode("utf-8-sig" if record.place.row == 1 else "utf-8").rstrip("\r\n")
        return {text_column: _whole_line(line)} if file.format == "text" else _json_object(line)
    except ValueError as error:
        return error


def parsed_table(table: pa.Table | pa.RecordBatch, columns: Sequence[str]) -> Iterator[Parsed]:
    """Yield these columns of each row of a table, or the error that rejects the row."""
    table = table.select([name for name in columns if name in table.schema.names])
    try:
        contents = table.to_pylist()
    except (ValueError, OverflowError):  # reading Parquet does not validate strings
        contents = map(_parsed_row, (table.slice(position, 1) for position in range(table.num_rows)))
    yield from contents


def reason_of(error: Exception, record: Record) -> str:
    """Return why a record is rejected."""
    reason = f"it is not valid UTF-8: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
    if record.lines == 1:
        return reason
    line = record.place.line  # a stray quote may have swallowed other rows
    return f"{reason} (lines {line} to {line + record.lines - 1} of the file)"


def _parsed_row(row: pa.Table | pa.RecordBatch) -> Parsed:
    try:
        (content,) = row.to_pylist()
    except UnicodeDecodeError as error:
        return error
    except (ValueError, OverflowError) as error:
        return ValueError(f"one of its values cannot be read: {error}")
    return dict(content)


def _whole_line(line: str) -> str:
    if "\r" in line:
        raise ValueError("it contains a carriage return, an old line ending: remove it or replace it by a line feed")
    return line


def _json_object(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it is {json_type(content)}, not a JSON object")
    return content


@contextmanager
def _explained(file: Source) -> Iterator[None]:
    """Name the file in errors, and turn decoding errors into one that says the file is damaged."""
    try:
        yield
    except (InputValueError, MissingDependencyError):
        raise
    except OSError as error:
        if error.errno is None:  # from a decompressor
            raise _damaged(file, error) from error
        error.filename = error.filename or file.path
        raise
    except _DAMAGED as error:
        raise _damaged(file, error) from error


def _damaged(file: Source, error: Exception) -> InputValueError:
    return InputValueError(f"{file.path} is damaged, or its name gives the wrong format: {error}")


def _fewer_rows(file: InputFile) -> JobChangedError:
    return JobChangedError(f"{file.path} has fewer rows than planned: name another output folder")


def _check_names(file: Source, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise InputValueError(f"{file.path} has two columns with the same name: {', '.join(names)}")


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield lines and their lengths; a line longer than `RECORD_BYTES` is cut to just above that."""
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
                    f"{file.path} is one JSON array, not one object per line: convert it (jq -c '.[]')"
                )
            begun = True
            yield Record(place, line if len(line) <= RECORD_BYTES else ValueError(_TOO_LONG), length)
        place = Place(place.row + 1, place.line + 1, place.offset + length)


def _begins_array(line: bytes) -> bool:
    """Tell whether the first line of a file opens an array of objects, rather than being one bad row."""
    line = line.removeprefix(b"\xef\xbb\xbf").strip()
    return line.startswith(b"[") and line[1:].lstrip()[:1] in (b"", b"{")


def _csv_records(file: Source, stream: IO[bytes], place: Place) -> Iterator[Record]:
    """Yield mappings of fields; bytes that are not UTF-8 become lone surrogates."""
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
        except csv.Error as error:  # the reader continues with the next line
            content: dict[str, Any] | Exception = ValueError(f"not valid CSV: {error}")
        else:
            if not fields:
                continue  # a blank line
            if len(fields) == len(header):
                content = dict(zip(header, fields, strict=True))
            else:
                content = ValueError(f"its number of fields is {len(fields)}, not {len(header)} as in the header")
        number = lines.line - place.line
        if number > 1 and isinstance(content, Exception):
            raise InputValueError(
                f"{file.path}, row {row}: {content}. It spans {number:,} lines, {place.line} to {lines.line - 1}, "
                "probably because a quote is not closed. The rows inside cannot be told apart, so they cannot be "
                "skipped: correct the file"
            )
        yield Record(place, content, lines.offset - place.offset, number)
        row += 1


class _CsvLines:
    """The lines of a CSV file as text. Knows where the next one begins, and stops a record that is too long."""

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
        text = line.decode("utf-8-sig" if self.offset == 0 else "utf-8", errors="surrogateescape")
        self.line, self.offset = self.line + 1, self.offset + length
        if self.offset - self._begun > RECORD_BYTES:
            raise csv.Error(_TOO_LONG)
        return text


def _csv_reader(file: Source, lines: Iterator[str]) -> Any:
    return csv.reader(lines, "excel-tab" if file.format == "tsv" else "excel", strict=True)


def _header(file: Source, reader: Iterator[list[str]]) -> list[str]:
    header = next(reader, [])
    "".join(header).encode()  # fails if it is not valid Unicode
    _check_names(file, header)
    return header


@contextmanager
def _opened_parquet(file: Source) -> Iterator[pq.ParquetFile]:
    """Open a file so that large row groups are read piece by piece, even if its name is not UTF-8."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingDependencyError("reading Parquet needs more: pip install 'e5onnx[bulk]'") from error
    with _explained(file):
        try:
            with file.opened() as stream:
                if not stream.seekable():
                    raise InputValueError(
                        f"{file.path} is a pipe, but Parquet is read from its end: write it to a file"
                    )
                with pq.ParquetFile(
                    stream, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
                ) as parquet:
                    yield parquet
        except pa.ArrowException as error:
            raise _damaged(file, error) from error


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
    """One or more bz2 or xz streams. bz2.open and lzma.open take damage after the first stream for the end."""

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
        """Return the first bytes of the next stream, b"" if there is none; zeros between streams are padding."""
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
"""The suffix of a compression -> the function that opens it."""
