"""Which records make up which part of the output.

The plan is made once, by reading all input: a part has up to so many records, or so many bytes, across files if they
are small. It depends on the input alone, so every engine, and every run after a crash, writes the same parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from .inputs import InputFile, read_records

PART_ROWS = 10_000
PART_BYTES = 64 * 2**20


class Piece(NamedTuple):
    """Consecutive records of a file: its position among the files, the first row, where that begins, how many."""

    file: int
    row: int
    offset: int
    rows: int


class Part(NamedTuple):
    """What one part of the output is made of. `first` is the number, from 0, of its first record in all the input."""

    number: int
    first: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Number of records."""
        return sum(piece.rows for piece in self.pieces)


def plan_parts(files: Sequence[InputFile], *, part_rows: int = PART_ROWS, part_bytes: int = PART_BYTES) -> list[Part]:
    """Divide the records of files into parts.

    Raises:
        InputValueError: a file is damaged.
    """
    parts: list[Part] = []
    pieces: list[Piece] = []
    first = rows = size = 0

    def end_part() -> None:
        nonlocal first, rows, size
        if rows:
            parts.append(Part(len(parts), first, tuple(pieces)))
            pieces.clear()
            first, rows, size = first + rows, 0, 0

    for position, file in enumerate(files):
        begun: Piece | None = None
        for row, offset, length in _extents(file):
            if rows == part_rows or (rows and size + length > part_bytes):
                if begun is not None:
                    pieces.append(begun)
                    begun = None
                end_part()
            begun = Piece(position, row, offset, 1) if begun is None else begun._replace(rows=begun.rows + 1)
            rows, size = rows + 1, size + length
        if begun is not None:
            pieces.append(begun)
    end_part()
    return parts


def _extents(file: InputFile) -> Iterator[tuple[int, int, int]]:
    """Yield row, offset and length in bytes of every record."""
    if file.format == "parquet":
        yield from _parquet_extents(file)
        return
    offset = 0
    for record in read_records(file):
        yield record.row, offset, record.end - offset
        offset = record.end


def _parquet_extents(file: InputFile) -> Iterator[tuple[int, int, int]]:
    """Yield the same without reading the rows, whose lengths are taken to be all those of their group."""
    for _ in read_records(file):  # fails where the file is damaged
        break
    metadata = pq.read_metadata(file.path)
    row = 1
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        length = described.total_byte_size // max(1, described.num_rows)
        for _ in range(described.num_rows):
            yield row, 0, length
            row += 1
