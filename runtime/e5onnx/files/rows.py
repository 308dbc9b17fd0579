"""The rows of a part: texts, ids, kept columns and rejects; and the types of the columns, found before the first part.

What goes wrong with a row is its own: the row is rejected with a reason. What goes wrong with a file is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..checks import check_encodable
from ..errors import InputValueError
from .columns import ID, Columns, is_type, name_of
from .inputs import InputFile
from .plan import Part, Piece
from .records import (
    Parsed,
    Place,
    Record,
    RecordReader,
    Reject,
    TableReader,
    parsed,
    parsed_table,
    read_header,
    read_records,
    read_schema,
    reason_of,
)
from .values import Values, array_of, inferred, is_text, printable, storable

_MOST_SHOWN = 60
"""Characters of a value that a message shows."""


class Origin(NamedTuple):
    """The source of a row: its number in the whole input, from 0, its file, and its row there."""

    number: int
    file: InputFile
    row: int


@dataclass
class Rows:
    """The rows of a part: texts, origins, ids and kept columns; rejected records by their number."""

    texts: list[str] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    columns: pa.Table = None
    rejected: dict[int, Reject] = field(default_factory=dict)

    @property
    def rejects(self) -> list[Reject]:
        """The rejected rows, in input order."""
        return [self.rejected[number] for number in sorted(self.rejected)]

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Move rows, given by position, to the rejects."""
        for position, reason in reasons.items():
            origin = self.origins[position]
            self.rejected[origin.number] = Reject.of(origin.file, origin.row, reason)
        kept = [position for position in range(len(self.texts)) if position not in reasons]
        self.texts = [self.texts[position] for position in kept]
        self.origins = [self.origins[position] for position in kept]
        self.columns = self.columns.take(pa.array(kept, pa.int64()))


class RowReader:
    """Reads the rows of parts. Parts read in order never make it go back in a file."""

    def __init__(self, files: Sequence[InputFile], columns: Columns) -> None:
        """Read these columns, whose types are known, of these files."""
        self._files = files
        self._columns = columns
        self._records = RecordReader(files)
        self._tables = TableReader(files, columns.read())

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
        rows, file, columns = Rows(), self._files[piece.file], self._columns
        contents: list[Any] = []
        kept: list[int] = []
        table: pa.Table | None = None
        records: Iterable[tuple[Record, Parsed]]
        if file.format == "parquet":
            table = self._tables.read(piece.file, piece.place.row, piece.rows)
            records = (
                (Record(Place(row, row), b""), content)
                for row, content in enumerate(parsed_table(table, columns.embedded()), piece.place.row)
            )
        else:
            found = self._records.read(piece.file, piece.place, piece.rows)
            records = ((record, parsed(record, file, columns.text)) for record in found)
        for position, (record, content) in enumerate(records):
            origin = Origin(number + position, file, record.place.row)
            try:
                rows.texts.append(columns.text_of(content))
            except ValueError as error:
                rows.rejected[origin.number] = Reject.of(file, origin.row, reason_of(error, record))
                continue
            rows.origins.append(origin)
            kept.append(position)
            if table is None:
                contents.append(content)

        def stored(name: str) -> Values:
            if table is None:
                return [content.get(name) for content in contents]
            array = table.column(name).combine_chunks()  # chunks depend on where reading began
            return array if len(kept) == len(array) else array.take(pa.array(kept, pa.int64()))

        in_csv = file.format in ("csv", "tsv")
        self._store(rows, {name: stored(name) for name in columns.stored()}, empty_is_null=in_csv)
        return rows

    def _store(self, rows: Rows, stored: dict[str, Values], *, empty_is_null: bool = False) -> None:
        """Put ids and kept columns into rows, and reject rows with a value of another type."""
        columns = self._columns
        arrays: dict[str, pa.Array] = {}
        reasons: dict[int, str] = {}
        for name, kind in columns.kinds().items():
            values = stored[name]
            as_text = name in columns.as_text
            arrays[name], wrong = array_of(values, kind, as_text=as_text, empty_is_null=empty_is_null)
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


def check_columns(files: Sequence[InputFile], columns: Columns) -> None:
    """Raise InputValueError if a file declares its columns and lacks one, or the output could not be named so."""
    for name in columns.read():
        check_encodable(name, "the name of a column")
    outputs = [ID, *columns.keep, "embedding", "embedding_scale"]
    twice = {name for name in outputs if outputs.count(name) > 1}
    if twice:
        raise InputValueError(f"the output would have two columns {', '.join(sorted(twice))}: rename one in the input")
    for file in files:
        declared = {columns.text: pa.string()} if file.format == "text" else _declared(file)
        missing = [name for name in columns.read() if declared is not None and name not in declared]
        if missing:
            raise InputValueError(f"{file.path} has no column {_listed(missing)}; it has {_listed(declared or ())}")


def typed_columns(columns: Columns, given: Mapping[str, str], files: Sequence[InputFile], first: Part) -> Columns:
    """Return the columns with types for those in the output: given, declared by a file, or those of the first rows.

    Raises:
        InputValueError: a type does not exist or cannot be stored, or the first rows lack a column.
    """
    unknown = [name for name in columns.stored() if name not in given]
    declared = (_declared(files[first.pieces[0].file]) if first.pieces else None) or {}
    types: dict[str, pa.DataType | None] = {name: storable(declared[name]) for name in unknown if name in declared}
    contents = list(_json_contents(files, first, columns))
    if contents and len(types) < len(unknown):
        types |= {name: inferred([each.get(name) for each in contents]) for name in unknown if name not in types}
    _check_keys(columns, given, files, first, contents)
    columns = columns.with_types(dict.fromkeys(unknown, pa.string()) | types, given)
    for name, kind in columns.types:
        _check_storable(name, kind)
    return columns


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
    shown = shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + "..."
    reason = f"column {name!r} is {shown}, which is not of type {name_of(kind)}"
    takes = [other_name for other_name in [name_of(other)] if other_name != name_of(kind) and is_type(other_name)]
    if kind is not None and is_text(kind) and isinstance(value, int | float) and not isinstance(value, bool):
        takes.append("string")
    if kind is not None and isinstance(value, list | dict):
        takes.append("json")
    option = "--id-column" if name == columns.id else "--keep-columns"
    remedies = [f"{option} '{name}:{each}'" for each in dict.fromkeys(takes)]
    return f"{reason}; {' or '.join(remedies)} accepts it, in a new output folder" if remedies else reason


def _check_storable(name: str, kind: pa.DataType) -> None:
    """Raise InputValueError if Arrow cannot select rows of a type, or cannot write them."""
    try:
        rows = pa.table({name: pa.array([None], kind)}).take(pa.array([0]))
        pq.write_table(rows, pa.BufferOutputStream())
    except (pa.ArrowException, NotImplementedError) as error:
        raise InputValueError(
            f"column {name!r} is of type {kind}, which cannot be kept ({error}): leave it out, or keep it as text "
            f"with --keep-columns '{name}:json'"
        ) from error


def _declared(file: InputFile) -> dict[str, pa.DataType] | None:
    """Return the columns that a file declares, with their types; None if it declares none."""
    if file.format == "parquet":
        schema = read_schema(file)
        return dict(zip(schema.names, schema.types, strict=True))
    return dict.fromkeys(read_header(file), pa.string()) if file.format in ("csv", "tsv") else None


def _json_contents(files: Sequence[InputFile], part: Part, columns: Columns) -> Iterator[dict[str, Any]]:
    for piece in part.pieces:
        file = files[piece.file]
        if file.format == "jsonl":
            for record in islice(read_records(file, piece.place), piece.rows):
                content = parsed(record, file, columns.text)
                if isinstance(content, dict):
                    yield content


def _check_keys(
    columns: Columns,
    given: Mapping[str, str],
    files: Sequence[InputFile],
    first: Part,
    contents: Sequence[Mapping[str, Any]],
) -> None:
    """Raise InputValueError if no JSON object of the first part has a column, unless its type was given."""
    wanted = [name for name in (columns.text, columns.title, *columns.keep) if name is not None and name not in given]
    if any(files[piece.file].format != "jsonl" for piece in first.pieces):
        return
    keys = {key for content in contents for key in content}
    missing = [name for name in wanted if name not in keys]
    if contents and missing:
        later = " (if it appears later, give its type: --keep-columns NAME:TYPE)"
        raise InputValueError(
            f"the first part has no column {_listed(missing)}; its columns are {_listed(sorted(keys))}"
            + (later if set(missing).intersection(columns.keep) else "")
        )


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    """Return names for a message, and why a name with a colon was not read as a name and a type."""
    kinds = [name.rpartition(":")[2] for name in names if ":" in name]
    wrong = "".join(f" ({kind!r} is not a type)" for kind in kinds if not is_type(kind))
    return (", ".join(map(repr, names)) or "none") + wrong
