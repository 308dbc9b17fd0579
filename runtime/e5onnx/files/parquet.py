"""Parquet files -> tables of Arrow: which columns they have, how large their rows are, and stretches of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputValueError, JobChangedError
from .inputs import InputFile
from .records import Source, damaged, explained

_BATCH_ROWS = 1024


class ParquetReader:
    """Reads stretches of files. A file stays open as long as each begins where the last one ended."""

    def __init__(self, files: Sequence[InputFile], columns: Sequence[str]) -> None:
        """Read these columns of these files."""
        self.files = files
        self._columns = columns
        self._next: tuple[int, int] | None = None  # file, row
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._left: pa.RecordBatch | None = None

    def read(self, file: int, row: int, rows: int) -> pa.Table:
        """Return so many rows of a file, by its position, from a row on.

        Raises:
            InputValueError: the file is damaged.
            JobChangedError: it has changed.
        """
        if self._next != (file, row):
            self._batches, self._left = read_batches(self.files[file], self._columns, row), None
        batches: list[pa.RecordBatch] = []
        missing = rows
        while missing:
            batch = next(self._batches, None) if self._left is None else self._left
            if batch is None:
                raise JobChangedError(f"{self.files[file].path} has fewer rows than planned: name another folder")
            batches.append(batch.slice(0, missing))
            self._left = batch.slice(missing) if batch.num_rows > missing else None
            missing -= batches[-1].num_rows
        self._next = file, row + rows
        return pa.Table.from_batches(batches)


def read_schema(file: Source) -> pa.Schema:
    """Return names and types of a file's columns.

    Raises:
        InputValueError: the file is damaged, or two columns have one name.
    """
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
    if len(set(schema.names)) != len(schema.names):
        raise InputValueError(f"{file.path} names a column twice: {', '.join(schema.names)}")
    return schema


def read_extents(file: InputFile) -> Iterator[int]:
    """Yield the length in bytes of every row without reading it: the lengths are taken to be all those of its group.

    Raises:
        InputValueError: the file is damaged.
    """
    with _opened(file) as parquet:
        next(parquet.iter_batches(1), None)
        metadata = parquet.metadata
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for _ in range(group.num_rows):
            yield group.total_byte_size // group.num_rows


def read_batches(file: Source, columns: Sequence[str], row: int = 1) -> Iterator[pa.RecordBatch]:
    """Yield these columns of a file from a row on, a stretch at a time.

    Raises:
        InputValueError: the file is damaged.
    """
    with _opened(file) as parquet:
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


@contextmanager
def _opened(file: Source) -> Iterator[pq.ParquetFile]:
    """Open a file so that large row groups are read bit by bit, whatever bytes its name has."""
    with explained(file):
        try:
            with file.opened() as stream:
                if not stream.seekable():
                    raise InputValueError(
                        f"{file.path} is a pipe, and Parquet is read from its end: write it to a file"
                    )
                with pq.ParquetFile(
                    stream, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
                ) as parquet:
                    yield parquet
        except pa.ArrowException as error:
            raise damaged(file, error) from error
