"""Which records make up which part of the output.

The plan is made once, by reading all input, of which every byte is noted: a part has up to so many records, or so many
bytes, across files if they are small. It depends on the input alone, so every engine, and every run after a crash,
writes the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .inputs import InputFile
from .records import Place, read_records

PART_ROWS = 10_000
PART_BYTES = 64 * 2**20


class Piece(NamedTuple):
    """Consecutive records of a file: its position among the files, where the first one begins, how many."""

    file: int
    place: Place
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


def plan_parts(
    files: Sequence[InputFile],
    *,
    part_rows: int = PART_ROWS,
    part_bytes: int = PART_BYTES,
    advance: Callable[[int], object] = lambda size: None,
) -> list[Part]:
    """Divide the records of files into parts; one without any if there are none, so that the output can be read.

    Args:
        files: the input, whose bytes are noted.
        part_rows: most records of a part.
        part_bytes: most bytes of a part of more than one record.
        advance: is told of bytes that were read.

    Raises:
        InputValueError: a file is damaged.
        JobChangedError: a file changes meanwhile.
    """
    parts: list[Part] = []
    pieces: list[Piece] = []
    first = rows = size = 0

    def end_part() -> None:
        nonlocal first, rows, size
        if rows or not parts:
            parts.append(Part(len(parts), first, tuple(pieces)))
            pieces.clear()
            first, rows, size = first + rows, 0, 0

    for position, file in enumerate(files):
        begun: Piece | None = None
        blocks = noted = 0
        for place, length in _extents(file):
            if len(file.blocks) > blocks:
                advance(file.bytes_noted() - noted)
                blocks, noted = len(file.blocks), file.bytes_noted()
            if rows == part_rows or (rows and size + length > part_bytes):
                if begun is not None:
                    pieces.append(begun)
                    begun = None
                end_part()
            begun = Piece(position, place, 1) if begun is None else begun._replace(rows=begun.rows + 1)
            rows, size = rows + 1, size + length
        if begun is not None:
            pieces.append(begun)
        file.note_rest()
        advance(file.size - noted)
    end_part()
    return parts


def _extents(file: InputFile) -> Iterator[tuple[Place, int]]:
    """Yield place and length in bytes of every record."""
    if file.format == "parquet":
        from .parquet import read_extents

        yield from ((Place(row, row), length) for row, length in enumerate(read_extents(file), 1))
        return
    for record in read_records(file):
        yield record.place, record.length
