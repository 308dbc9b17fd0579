"""What each column of the input is for: text, title, id, or kept; and the types of those in the output."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..checks import json_type
from ..errors import InputValueError
from .records import Parsed

if TYPE_CHECKING:
    import pyarrow as pa

ID = "id"
"""The column of ids in the output: a column of the input, or the number of the row in the whole input, from 0."""
_JSON = "json"


@dataclass(frozen=True)
class Columns:
    """What each column is for. `types` holds the types of the ids and the kept columns.

    `as_text` names the columns whose given type is text: numbers in them become text, while in other columns a number
    in place of a text is an error. `as_json` names the columns whose values become JSON text.
    """

    text: str = "text"
    title: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()
    types: tuple[tuple[str, pa.DataType], ...] = ()
    as_text: tuple[str, ...] = ()
    as_json: tuple[str, ...] = ()

    def embedded(self) -> list[str]:
        """Return the columns that make up the texts, each once."""
        return list(dict.fromkeys(name for name in (self.text, self.title) if name is not None))

    def stored(self) -> list[str]:
        """Return the columns of the input that are in the output, each once."""
        return list(dict.fromkeys((*([self.id] if self.id is not None else []), *self.keep)))

    def read(self) -> list[str]:
        """Return the columns to read, each once."""
        return list(dict.fromkeys((*self.embedded(), *self.stored())))

    def text_of(self, content: Parsed) -> str:
        """Return the text to embed: the title, if there is one, a space and the text.

        Raises:
            ValueError: there is no text, or it is not valid.
        """
        if isinstance(content, Exception):
            raise content
        text = _text(content, self.text)
        if self.title is not None and content.get(self.title) is not None:
            text = f"{_text(content, self.title)} {text}"
        return text

    def kinds(self) -> dict[str, pa.DataType | None]:
        """Return the type of each stored column, None for JSON text."""
        return {name: None if name in self.as_json else kind for name, kind in self.types}

    def with_types(self, types: Mapping[str, pa.DataType | None], given: Mapping[str, str]) -> Columns:
        """Return these columns with types, None for JSON text; `given` holds the names of types that users chose."""
        import pyarrow as pa

        from .values import is_text

        every = dict(types) | {name: type_named(kind, name) for name, kind in given.items()}
        kinds = {name: every[name] for name in self.stored() if name in every}
        texts = {name for name in given if kinds.get(name) is not None and is_text(kinds[name])} | set(self.as_text)
        return replace(
            self,
            types=tuple((name, pa.string() if kind is None else kind) for name, kind in kinds.items()),
            as_text=tuple(sorted(texts.intersection(kinds))),
            as_json=tuple(sorted(name for name, kind in kinds.items() if kind is None)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a value that JSON can hold, with the types as a serialised Arrow schema."""
        import pyarrow as pa

        schema = pa.schema(self.types).serialize().to_pybytes()
        return {**asdict(replace(self, types=())), "types": base64.b64encode(schema).decode()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Columns:
        """Read what :meth:`to_json` returned."""
        import pyarrow as pa

        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(content["types"])))
        types = tuple(zip(schema.names, schema.types, strict=True))
        lists = {name: tuple(content[name]) for name in ("keep", "as_text", "as_json")}
        return cls(**{**content, **lists, "types": types})


def named_types(columns: Sequence[str], types: dict[str, str]) -> list[str]:
    """Return the names in `NAME` or `NAME:TYPE`, and put the types into `types`."""
    names = []
    for given in columns:
        name, colon, kind = given.rpartition(":")
        if colon and is_type(kind):
            types[name] = kind
            names.append(name)
        else:
            names.append(given)
    return names


def type_named(name: str, column: str) -> pa.DataType | None:
    """Return the Arrow type with a name: a simple type, or a `list<...>` of one; None for `json`.

    Raises:
        InputValueError: no type has this name.
    """
    if name == _JSON:
        return None
    try:
        return _arrow_type(name)
    except ValueError as error:
        raise InputValueError(
            f"column {column!r}: {name!r} is not a type; int64, string, list<string> and json are examples"
        ) from error


def is_type(name: str) -> bool:
    """Tell whether a type has this name."""
    try:
        type_named(name, "")
    except InputValueError:
        return False
    return True


def name_of(kind: pa.DataType | None) -> str:
    """Return the name of a type as options take it, or Arrow's own if they do not take it."""
    import pyarrow as pa

    if kind is None:
        return _JSON
    return f"list<{name_of(kind.value_type)}>" if pa.types.is_list(kind) else str(kind)


def _arrow_type(name: str) -> pa.DataType:
    import pyarrow as pa

    if name.startswith("list<") and name.endswith(">"):
        return pa.list_(_arrow_type(name[len("list<") : -1]))
    return pa.type_for_alias(name)


def _text(content: dict[str, Any], column: str) -> str:
    text = content.get(column)
    if text is None:
        raise ValueError(f"its text, column {column!r}, is {'null' if column in content else 'missing'}")
    if not isinstance(text, str):
        kind = "binary" if isinstance(text, bytes) else json_type(text)
        raise ValueError(f"column {column!r} is {kind}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"column {column!r} is not valid Unicode: {error.reason} at {error.start}") from error
    return text
