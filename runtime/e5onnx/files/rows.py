"""Records -> rows: the text to embed, its id, the columns that are kept; and what is wrong with a record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from ..errors import InputValueError
from ..openai_api import kind_of
from .inputs import InputFile, Record, columns_of, decoded, read_records
from .plan import Part, Piece

ID = "id"
"""The column of ids: a column of the input, or the row's number in all the input, from 0."""


class RowError(InputValueError):
    """A row cannot be embedded; the message names its file and number."""


@dataclass(frozen=True)
class Columns:
    """Which columns mean what. The types, by Arrow's names, are those of the ids and the kept columns."""

    text: str = "text"
    title: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()
    types: tuple[tuple[str, str], ...] = ()

    def read(self) -> list[str]:
        """Return the columns to be read, each once."""
        return list(dict.fromkeys(name for name in (self.text, self.title, self.id, *self.keep) if name is not None))

    def stored(self) -> list[str]:
        """Return the columns of the input that are in the output."""
        return [*([self.id] if self.id is not None else []), *self.keep]


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


@dataclass
class Rows:
    """The rows of a part: texts, their columns as arrays of the same length, and the records that are no rows."""

    texts: list[str] = field(default_factory=list)
    places: list[tuple[InputFile, int]] = field(default_factory=list)
    stored: dict[str, list[Any]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)

    def reject(self, reasons: dict[int, str]) -> None:
        """Move rows, by position, to the rejects."""
        for position, reason in reasons.items():
            file, row = self.places[position]
            self.rejects.append(Reject(file.path, row, reason))
        kept = [position for position in range(len(self.texts)) if position not in reasons]
        self.texts = [self.texts[position] for position in kept]
        self.places = [self.places[position] for position in kept]
        self.stored = {name: [values[position] for position in kept] for name, values in self.stored.items()}

    def table(self, columns: Columns) -> pa.Table:
        """Return ids and kept columns."""
        types = dict(columns.types)
        names = [ID, *columns.keep]
        arrays = [
            _array(self.stored[name], _type(types[name]) if name in types else pa.int64())
            for name in [columns.id or ID, *columns.keep]
        ]
        return pa.table(dict(zip(names, arrays, strict=True)))


def named_types(columns: Sequence[str], types: dict[str, str]) -> list[str]:
    """Return the names in `NAME` or `NAME:TYPE`, and put the types into `types`."""
    names = []
    for given in columns:
        name, colon, kind = given.rpartition(":")
        if colon and _is_type(kind):
            types[name] = kind
            names.append(name)
        else:
            names.append(given)
    return names


def check_columns(files: Sequence[InputFile], columns: Columns) -> None:
    """Raise InputValueError if a file declares its columns and lacks one, or two of the output had one name."""
    outputs = [ID, *columns.keep, "embedding", "embedding_scale"]
    twice = {name for name in outputs if outputs.count(name) > 1}
    if twice:
        raise InputValueError(f"the output would have two columns {', '.join(sorted(twice))}: rename one in the input")
    for file in files:
        declared = columns_of(file)
        if file.format == "text":
            declared = {columns.text: None}
        missing = [name for name in columns.read() if declared is not None and name not in declared]
        if missing:
            has = ", ".join(map(repr, declared or ())) or "none"
            raise InputValueError(f"{file.path} has no column {', '.join(map(repr, missing))}; it has {has}")


def with_types(columns: Columns, given: dict[str, str], files: Sequence[InputFile], first: Part) -> Columns:
    """Return the columns with a type for each that is stored: given, declared by a file, or that of the first rows."""
    types = dict(given)
    for name in types:
        _type(types[name])
    declared = columns_of(files[first.pieces[0].file]) or {}
    unknown = [name for name in columns.stored() if name not in types]
    if unknown and not declared:
        rows = read_rows(files, first, columns)
        for name in unknown:
            types[name] = _inferred(rows.stored[name])
    for name in unknown:
        types.setdefault(name, str(declared.get(name) or pa.string()))
        _type(types[name], name)
    return Columns(columns.text, columns.title, columns.id, columns.keep, tuple(sorted(types.items())))


def read_rows(files: Sequence[InputFile], part: Part, columns: Columns) -> Rows:
    """Return the rows of a part, in order, and its rejects.

    Raises:
        InputValueError: a file is damaged.
        OSError: a file cannot be read.
    """
    rows = Rows(stored={name: [] for name in (columns.stored() if columns.id else [ID, *columns.keep])})
    number = part.first
    for piece in part.pieces:
        for record in _records(files[piece.file], piece, columns):
            _add(rows, files[piece.file], record, number, columns)
            number += 1
    _reject_wrong_types(rows, columns)
    rows.rejects.sort(key=lambda reject: _position(files, part, reject))
    return rows


def _records(file: InputFile, piece: Piece, columns: Columns) -> Iterable[Record]:
    wanted = columns.read()
    header = list(columns_of(file) or ()) if file.format in ("csv", "tsv") else []
    for record in islice(read_records(file, row=piece.row, offset=piece.offset, columns=wanted), piece.rows):
        content = record.content
        if isinstance(content, list):
            if len(content) != len(header):
                content = ValueError(f"it has {len(content)} fields, the header has {len(header)}")
            else:
                content = dict(zip(header, content, strict=True))
        elif isinstance(content, bytes) and file.format == "text":
            content = _attempt(lambda line=content, row=record.row: {columns.text: decoded(line, row)})
        elif isinstance(content, bytes):
            content = _attempt(lambda line=content, row=record.row: _json_object(decoded(line, row)))
        yield Record(record.row, content, record.end)


def _attempt(parse: Any) -> dict[str, Any] | Exception:
    try:
        parsed: dict[str, Any] = parse()
    except UnicodeDecodeError as error:
        return ValueError(f"it is not valid UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))
    return parsed


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


def _add(rows: Rows, file: InputFile, record: Record, number: int, columns: Columns) -> None:
    content = record.content
    if not isinstance(content, dict):
        rows.rejects.append(Reject(file.path, record.row, _printable(content)))
        return
    try:
        text = _text(content, columns.text)
        if columns.title is not None and content.get(columns.title) is not None:
            text = f"{_text(content, columns.title)} {text}"
        if columns.id is not None and content.get(columns.id) is None:
            raise ValueError(f"its id, column {columns.id!r}, is missing")
    except ValueError as error:
        rows.rejects.append(Reject(file.path, record.row, str(error)))
        return
    rows.texts.append(text)
    rows.places.append((file, record.row))
    for name, values in rows.stored.items():
        values.append(number if columns.id is None and name == ID else content.get(name))


def _text(content: dict[str, Any], column: str) -> str:
    text = content.get(column)
    if text is None:
        raise ValueError(f"its text, column {column!r}, is {'null' if column in content else 'missing'}")
    if not isinstance(text, str):
        raise ValueError(f"column {column!r} is {kind_of(text)}, not a text")
    _check_unicode(text, column)
    return text


def _check_unicode(text: str, column: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"column {column!r} is not valid Unicode: {error.reason} at {error.start}") from error


def _reject_wrong_types(rows: Rows, columns: Columns) -> None:
    reasons: dict[int, str] = {}
    for name, kind in columns.types:
        values, wanted = rows.stored[name], _type(kind)
        try:
            _array(values, wanted)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            for position, value in enumerate(values):
                try:
                    _array([value], wanted)
                except (pa.ArrowException, UnicodeEncodeError, OverflowError):
                    shown = ascii(value)
                    shown = shown if len(shown) <= 60 else shown[:60] + "..."
                    reasons.setdefault(position, f"column {name!r} is {shown}, which is no {kind}")
    if reasons:
        rows.reject(reasons)


def _array(values: list[Any], wanted: pa.DataType) -> pa.Array:
    """Return values as an array of a type; texts, as CSV has them, may say numbers."""
    try:
        return pa.array(values, wanted)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        if not any(isinstance(value, str) for value in values):
            raise
        return pa.array([_read(value, wanted) if isinstance(value, str) else value for value in values], wanted)


def _read(text: str, wanted: pa.DataType) -> Any:
    """Return what a text says; an empty field of CSV says that there is nothing."""
    return pa.scalar(text or None, pa.string()).cast(wanted).as_py()


def _inferred(values: list[Any]) -> str:
    try:
        kind = pa.array([value for value in values if value is not None]).type
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        kinds = {type(value) for value in values if value is not None}
        kind = pa.float64() if kinds == {int, float} else pa.string()
    try:
        _type(str(kind))
    except InputValueError as error:
        raise InputValueError(f"{error}: only numbers, texts, booleans and times can be kept") from error
    return "string" if pa.types.is_null(kind) else str(kind)


def _type(name: str, column: str = "") -> pa.DataType:
    try:
        return pa.type_for_alias(name)
    except ValueError as error:
        where = f"column {column!r}: " if column else ""
        raise InputValueError(
            f"{where}{name!r} is not the name of a simple Arrow type, such as int64 or string"
        ) from error


def _is_type(name: str) -> bool:
    try:
        pa.type_for_alias(name)
    except ValueError:
        return False
    return True


def _printable(error: object) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not valid UTF-8: {error}"
    return str(error)


def _position(files: Sequence[InputFile], part: Part, reject: Reject) -> tuple[int, int]:
    order = {files[piece.file].path: position for position, piece in enumerate(part.pieces)}
    return order[reject.file], reject.row
