"""Files -> records, in order.

A record is what one row is made of, not yet looked into: a line of JSON or text, the fields of a CSV row, the values
of a Parquet row. Records can be read from the middle of a file on; where a file cannot be entered there (compressed
ones), what comes before is read and dropped.
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
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputValueError
from .inputs import InputFile, JobChangedError, suffixes

_OPENERS: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(pa.input_stream(path.open("rb"), compression="zstd")),
}
"""Compression, by the end of a name -> how it is opened."""
_PARQUET_ROWS = 1024
_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, csv.Error, UnicodeError, pa.ArrowException)
RECORD_BYTES = 64 * 2**20
"""Most bytes of a line or CSV row: a quote that is never closed would take in the rest of the file."""
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

    `content` is bytes of a line, a list of CSV fields, a mapping of Parquet values, or an error that is the row's own.
    """

    place: Place
    content: bytes | list[str] | dict[str, Any] | Exception
    length: int = 0
    lines: int = 1


class Reader:
    """Reads stretches of files. A file stays open as long as each begins where the last one ended, or is compressed."""

    def __init__(self, files: Sequence[InputFile], columns: Sequence[str]) -> None:
        """Read from these files; `columns` are what is wanted of those in Parquet."""
        self.files = files
        self._columns = columns
        self._file: int | None = None
        self._records: Iterator[Record] = iter(())

    def read(self, file: int, place: Place, rows: int) -> Iterator[Record]:
        """Yield so many records of a file, by its position, from a place on.

        Raises:
            InputValueError: the file is damaged.
            JobChangedError: it has fewer records.
        """
        rest = self._records if self._file == file else iter(())
        if suffixes(Path(self.files[file].path))[1]:  # it could only be read from its beginning on
            rest = dropwhile(lambda record: record.place < place, rest)
        following = next(rest, None)
        if following is not None and following.place == place:
            self._records = chain([following], rest)
        else:
            self._file, self._records = file, read_records(self.files[file], place, self._columns)
        number = 0
        for record in islice(self._records, rows):
            yield record
            number += 1
        if number < rows:
            raise JobChangedError(f"{self.files[file].path} has become shorter since it was planned: begin anew")


def columns_of(file: InputFile) -> dict[str, pa.DataType | None] | None:
    """Return the columns that a file declares, with their types where it does that too; None if it declares none.

    Raises:
        InputValueError: the file is damaged.
    """
    with _explained(file):
        if file.format == "parquet":
            with opened_parquet(file) as parquet:
                schema = parquet.schema_arrow
            return dict(zip(schema.names, schema.types, strict=True))
        if file.format in ("csv", "tsv"):
            return dict.fromkeys(_header(file), pa.string())
    return None


def read_records(file: InputFile, place: Place = _BEGINNING, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """Yield the records of a file.

    Args:
        file: the file.
        place: of the first record wanted.
        columns: what is wanted of Parquet files; None for all.

    Raises:
        InputValueError: the file is damaged.
    """
    with _explained(file):
        if file.format == "parquet":
            yield from _parquet_records(file, place.row, columns)
        elif file.format in ("csv", "tsv"):
            yield from _csv_records(file, place)
        else:
            yield from _line_records(file, place)


def decoded(line: bytes, row: int) -> str:
    """Return a line as text, without its end, and the first one without the mark that says it is UTF-8."""
    return line.decode("utf-8-sig" if row == 1 else "utf-8").rstrip("\r\n")


@contextmanager
def opened_parquet(file: InputFile) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file so that large row groups are read bit by bit, whatever bytes its name has."""
    with (
        Path(file.path).open("rb") as stream,
        pq.ParquetFile(stream, pre_buffer=False, buffer_size=2**20) as parquet,
    ):
        yield parquet


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield lines with their length; of too long ones only the beginning, which is longer than `RECORD_BYTES`."""
    read_line = partial(stream.readline, RECORD_BYTES + 1)
    while line := read_line():
        length, end = len(line), line
        while len(end) > RECORD_BYTES and not end.endswith(b"\n"):
            end = read_line()
            length += len(end)
        yield line, length


def _line_records(file: InputFile, place: Place) -> Iterator[Record]:
    is_json = file.format == "jsonl"
    begun = place.offset > 0
    with _opened(file, place.offset) as stream:
        for line, length in _lines(stream):
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


def _csv_records(file: InputFile, place: Place) -> Iterator[Record]:
    """Yield lists of fields; bytes that are no UTF-8 stay in them as lone surrogates."""
    with _opened(file, place.offset) as stream:
        lines = _CsvLines(stream, place)
        reader = _csv_reader(file, lines)
        if place.offset == 0:
            next(reader, None)  # the header
        row = place.row
        while True:
            place = lines.begin_record(row)
            content: list[str] | Exception
            try:
                content = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # the reader goes on with the next line
                content = ValueError(f"no valid CSV: {error}")
            if content == []:
                continue  # a blank line
            yield Record(place, content, lines.offset - place.offset, lines.line - place.line)
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


def _csv_reader(file: InputFile, lines: Iterator[str]) -> Any:
    return csv.reader(lines, "excel-tab" if file.format == "tsv" else "excel", strict=True)


def _header(file: InputFile) -> list[str]:
    with _opened(file, 0) as stream:
        header: list[str] = next(_csv_reader(file, _CsvLines(stream, _BEGINNING)), [])
    "".join(header).encode()  # fails where it is not valid Unicode
    if len(set(header)) != len(header):
        raise InputValueError(f"{file.path} names a column twice in its header: {', '.join(header)}")
    return header


def _parquet_records(file: InputFile, row: int, columns: Sequence[str] | None) -> Iterator[Record]:
    with opened_parquet(file) as parquet:
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
                    yield Record(Place(number, number), content)
            first += batch.num_rows


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """Yield rows; Parquet looks neither into its strings nor whether Python has such dates."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        for position in range(batch.num_rows):
            yield _row(batch.slice(position, 1))
    else:
        yield from rows


def _row(row: pa.RecordBatch) -> dict[str, Any] | Exception:
    try:
        (values,) = row.to_pylist()
    except UnicodeDecodeError as error:
        return error
    except (ValueError, OverflowError) as error:
        return ValueError(f"one of its values cannot be read: {error}")
    return dict(values)


@contextmanager
def _opened(file: InputFile, offset: int) -> Iterator[IO[bytes]]:
    compression = suffixes(Path(file.path))[1]
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
    except _DAMAGED as error:
        raise InputValueError(f"{file.path} is damaged, or is not what its name says: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputValueError(f"{file.path} is damaged, or is not what its name says: {error}") from error
