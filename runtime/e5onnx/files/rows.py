"""Records -> rows: the text to embed, its id, the columns that are kept; and what is wrong with a record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from ..errors import InputValueError
from ..openai_api import kind_of
from .columns import ID, Columns, is_type
from .plan import Part, Piece
from .records import Reader, Record, columns_of, decoded
from .values import array_of, inferred, is_text

Parsed = dict[str, Any] | Exception
_SHOWN = 60
"""Most characters of a value that a message shows."""


class RowError(InputValueError):
    """A row cannot be embedded; the message names its file and number."""


@dataclass(frozen=True)
class Reject:
    """A row that cannot be embedded, and why."""

    file: str
    row: int
    reason: str

    def line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=True) + "\n"

    def error(self) -> RowError:
        """Return it as an error."""
        return RowError(f"{self.file}, row {self.row}: {self.reason}")


class Origin(NamedTuple):
    """Where a row comes from: its number in all the input, from 0, and its file and number there."""

    number: int
    file: str
    row: int


@dataclass
class Rows:
    """The rows of a part: texts, their columns as lists of the same length, and by number the records that are none."""

    texts: list[str] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    stored: dict[str, list[Any]] = field(default_factory=dict)
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
        self.stored = {name: [values[position] for position in kept] for name, values in self.stored.items()}

    def table(self, columns: Columns) -> pa.Table:
        """Return ids and kept columns."""
        types = dict(columns.types)
        names = [ID, *columns.keep]
        arrays = [
            array_of(self.stored[name], types.get(name, pa.int64()), as_text=name in columns.as_text)[0]
            for name in [columns.id or ID, *columns.keep]
        ]
        return pa.table(dict(zip(names, arrays, strict=True)))


def read_rows(reader: Reader, part: Part, columns: Columns) -> Rows:
    """Return the rows of a part, in order, and its rejects.

    Raises:
        InputValueError: a file is damaged.
        JobChangedError: a file is shorter than it was.
        OSError: a file cannot be read.
    """
    rows = Rows(stored={name: [] for name in (columns.stored() if columns.id else [ID, *columns.keep])})
    number = part.first
    for piece in part.pieces:
        path = reader.files[piece.file].path
        for record, content in parsed_records(reader, piece, columns):
            origin = Origin(number, path, record.place.row)
            try:
                _add(rows, origin, content, columns)
            except ValueError as error:
                rows.rejected[number] = Reject(origin.file, origin.row, _reason(error, record))
            number += 1
    _reject_wrong_types(rows, columns)
    return rows


def parsed_records(reader: Reader, piece: Piece, columns: Columns) -> Iterator[tuple[Record, Parsed]]:
    """Yield the records of a piece with what they say: a mapping of columns, or an error that is the row's own."""
    file = reader.files[piece.file]
    header = list(columns_of(file) or ()) if file.format in ("csv", "tsv") else []
    for record in reader.read(piece.file, piece.place, piece.rows):
        content = record.content
        if isinstance(content, list):
            yield record, _fields(content, header)
        elif isinstance(content, bytes):
            yield record, _line(content, record.place.row, columns.text if file.format == "text" else None)
        else:
            yield record, content


def _fields(content: list[str], header: list[str]) -> Parsed:
    if len(content) != len(header):
        return ValueError(f"it has {len(content)} fields, the header has {len(header)}")
    return dict(zip(header, content, strict=True))


def _line(line: bytes, row: int, text_column: str | None) -> Parsed:
    """Return what a line says, which is JSON unless it is all the text."""
    try:
        text = decoded(line, row)
        return _json_object(text) if text_column is None else {text_column: text}
    except ValueError as error:
        return error


def _json_object(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it is {kind_of(content)}, not a JSON object")
    return content


def _add(rows: Rows, origin: Origin, content: Parsed, columns: Columns) -> None:
    if isinstance(content, Exception):
        raise content
    text = _text(content, columns.text)
    if columns.title is not None and content.get(columns.title) is not None:
        text = f"{_text(content, columns.title)} {text}"
    if columns.id is not None and content.get(columns.id) is None:
        raise ValueError(f"its id, column {columns.id!r}, is missing")
    rows.texts.append(text)
    rows.origins.append(origin)
    for name, values in rows.stored.items():
        values.append(origin.number if columns.id is None and name == ID else content.get(name))


def _reason(error: Exception, record: Record) -> str:
    reason = f"it is not valid UTF-8: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
    if record.lines == 1:
        return reason
    line = record.place.line  # a stray quote takes in rows that are none of its own
    return f"{reason} (lines {line} to {line + record.lines - 1} of the file)"


def _text(content: dict[str, Any], column: str) -> str:
    text = content.get(column)
    if text is None:
        raise ValueError(f"its text, column {column!r}, is {'null' if column in content else 'missing'}")
    if not isinstance(text, str):
        kind = "binary" if isinstance(text, bytes) else kind_of(text)
        raise ValueError(f"column {column!r} is {kind}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"column {column!r} is not valid Unicode: {error.reason} at {error.start}") from error
    return text


def _reject_wrong_types(rows: Rows, columns: Columns) -> None:
    reasons: dict[int, str] = {}
    for name, kind in columns.types:
        values = rows.stored[name]
        array, wrong = array_of(values, kind, as_text=name in columns.as_text)
        for position in wrong:
            reasons.setdefault(position, _wrong_type(name, values[position], kind, columns))
        if name == columns.id and array.null_count > len(wrong):
            for position in set(array.is_null().to_numpy(zero_copy_only=False).nonzero()[0].tolist()).difference(wrong):
                reasons.setdefault(position, f"its id, column {name!r}, is empty")
    if reasons:
        rows.reject(reasons)


def _wrong_type(name: str, value: Any, kind: pa.DataType, columns: Columns) -> str:
    shown = ascii(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    reason = f"column {name!r} is {shown}, which is no {kind}"
    other = inferred([value])
    if other == kind or not is_type(str(other)):
        return reason
    option = "--id-column" if name == columns.id else "--keep-columns"
    remedies = [f"{option} {name}:{other}"]
    if is_text(kind) and isinstance(value, int | float) and not isinstance(value, bool):
        remedies.append(f"{option} {name}:string")
    return f"{reason}; {' or '.join(remedies)}, in a new folder, takes such values"
