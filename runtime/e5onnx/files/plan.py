"""Which records make up which part of the output.

A part has up to `part_rows` records or `part_bytes` bytes, and small files share one. Planning reads the whole input
once and notes the hash of every byte. The plan depends only on the input, so every engine, and every run after a crash,
writes the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .inputs import InputFile
from .records import Place, read_extents

PART_ROWS = 10_000
PART_BYTES = 64 * 2**20


class Piece(NamedTuple):
    """Consecutive records of a file: the position of the file, the place of the first record, and how many."""

    file: int
    place: Place
    rows: int


class Part(NamedTuple):
    """The pieces of one part of the output. `first` is the number of its first record in the whole input, from 0."""

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
    """Divide the records of files into parts. Without records, one empty part keeps the output readable.

    Args:
        files: the input, whose hashes are noted.
        part_rows: maximum number of records of a part.
        part_bytes: maximum size of a part of more than one record.
        advance: called with the number of bytes read since the last call.

    Raises:
        InputValueError: a file is damaged.
        JobChangedError: a file changes while it is read.
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
        for place, length in read_extents(file):
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
