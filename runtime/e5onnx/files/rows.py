"""The rows of a part: texts, ids, kept columns, and what was rejected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from .columns import ID, Columns, is_type, name_of
from .inputs import InputFile
from .parquet import ParquetReader
from .plan import Part, Piece
from .records import Place, Reader, Record
from .texts import Parsed, Reject, parsed, reason_of, table_contents, text_of
from .values import Values, array_of, inferred, is_text, printable, storable

_SHOWN = 60
"""Most characters of a value that a message shows."""


class Origin(NamedTuple):
    """Where a row comes from: its number in all the input, from 0, and its file and number there."""

    number: int
    file: str
    row: int


@dataclass
class Rows:
    """The rows of a part: texts, origins, ids and kept columns; by number, the records that are rejected."""

    texts: list[str] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    columns: pa.Table = None
    rejected: dict[int, Reject] = field(default_factory=dict)

    @property
    def rejects(self) -> list[Reject]:
        """What was rejected, in the order of the input."""
        return [self.rejected[number] for number in sorted(self.rejected)]

    def reject(self, reasons: dict[int, str]) -> None:
        """Move rows, by position, to the rejects."""
        for position, reason in reasons.items():
            number, file, row = self.origins[position]
            self.rejected[number] = Reject(file, row, reason)
        kept = [position for position in range(len(self.texts)) if position not in reasons]
        self.texts = [self.texts[position] for position in kept]
        self.origins = [self.origins[position] for position in kept]
        self.columns = self.columns.take(pa.array(kept, pa.int64()))


class RowReader:
    """Reads the rows of parts; parts in order are read without going back."""

    def __init__(self, files: Sequence[InputFile], columns: Columns) -> None:
        """Read these columns, whose types are known, of these files."""
        self._files = files
        self._columns = columns
        self._records = Reader(files)
        self._tables = ParquetReader(files, columns.read())

    def read(self, part: Part) -> Rows:
        """Return the rows of a part, in order, and its rejects.

        Raises:
            InputValueError: a file is damaged.
            JobChangedError: a file has changed.
            OSError: a file cannot be read.
        """
        rows = Rows()
        number = part.first
        tables = [self._empty()]
        for piece in part.pieces:
            each = self._read_piece(piece, number)
            number += piece.rows
            rows.texts += each.texts
            rows.origins += each.origins
            rows.rejected |= each.rejected
            tables.append(each.columns)
        rows.columns = pa.concat_tables(tables)
        return rows

    def _read_piece(self, piece: Piece, number: int) -> Rows:
        rows, path, columns = Rows(), self._files[piece.file].path, self._columns
        contents: list[Any] = []
        kept: list[int] = []
        table: pa.Table | None = None
        records: Iterable[tuple[Record, Parsed]]
        if self._files[piece.file].format == "parquet":
            table = self._tables.read(piece.file, piece.place.row, piece.rows)
            records = (
                (Record(Place(row, row), b""), content)
                for row, content in enumerate(table_contents(table, columns), piece.place.row)
            )
        else:
            file = self._files[piece.file]
            found = self._records.read(piece.file, piece.place, piece.rows)
            records = ((record, parsed(record, file, columns)) for record in found)
        for position, (record, content) in enumerate(records):
            origin = Origin(number + position, path, record.place.row)
            try:
                rows.texts.append(text_of(content, columns))
            except ValueError as error:
                rows.rejected[origin.number] = Reject(path, origin.row, reason_of(error, record))
                continue
            rows.origins.append(origin)
            kept.append(position)
            if table is None:
                contents.append(content)

        def stored(name: str) -> Values:
            if table is None:
                return [content.get(name) for content in contents]
            array = table.column(name).combine_chunks()  # which does not depend on where reading began
            return array if len(kept) == len(array) else array.take(pa.array(kept, pa.int64()))

        self._store(rows, {name: stored(name) for name in columns.stored()})
        return rows

    def _store(self, rows: Rows, stored: dict[str, Values]) -> None:
        """Put ids and kept columns into rows, and reject those whose values are not of the type."""
        columns = self._columns
        arrays: dict[str, pa.Array] = {}
        reasons: dict[int, str] = {}
        for name, kind in columns.kinds().items():
            values = stored[name]
            arrays[name], wrong = array_of(values, kind, as_text=name in columns.as_text)
            for position in wrong:
                reasons.setdefault(position, _wrong_type(name, values, position, kind, columns))
            if name == columns.id and arrays[name].null_count > len(wrong):
                for position, missing in enumerate(arrays[name].is_null().to_pylist()):
                    if missing:
                        reasons.setdefault(position, f"its id, column {name!r}, is missing or empty")
        ids = pa.array([origin.number for origin in rows.origins], pa.int64())
        names = {ID: columns.id} | {name: name for name in columns.keep}
        rows.columns = pa.table({name: ids if given is None else arrays[given] for name, given in names.items()})
        if reasons:
            rows.reject(reasons)

    def _empty(self) -> pa.Table:
        rows = Rows()
        self._store(rows, {name: [] for name in self._columns.stored()})
        return rows.columns


def _wrong_type(name: str, values: Values, position: int, kind: pa.DataType | None, columns: Columns) -> str:
    if isinstance(values, pa.Array):
        other = storable(values.type)
        try:
            (value,) = printable(values.slice(position, 1)).to_pylist()
        except UnicodeDecodeError as error:
            return f"column {name!r} is not valid UTF-8: {error}"
    else:
        value = values[position]
        other = inferred([value])
    shown = ascii(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    reason = f"column {name!r} is {shown}, which is not of type {name_of(kind)}"
    takes = [other_name for other_name in [name_of(other)] if other_name != name_of(kind) and is_type(other_name)]
    if kind is not None and is_text(kind) and isinstance(value, int | float) and not isinstance(value, bool):
        takes.append("string")
    if kind is not None and isinstance(value, list | dict):
        takes.append("json")
    option = "--id-column" if name == columns.id else "--keep-columns"
    remedies = [f"{option} '{name}:{each}'" for each in dict.fromkeys(takes)]
    return f"{reason}; {' or '.join(remedies)}, in a new folder, takes such values" if remedies else reason
