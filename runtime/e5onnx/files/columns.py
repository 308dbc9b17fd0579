"""Which columns of the input mean what, and the types of those that are in the output."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from ..errors import InputValueError
from .values import is_text

ID = "id"
"""The column of ids: a column of the input, or the row's number in all the input, from 0."""


@dataclass(frozen=True)
class Columns:
    """Which columns mean what; the types are those of the ids and the kept columns.

    `as_text` are columns whose type was given as text, so that numbers in them become text; elsewhere they are wrong.
    """

    text: str = "text"
    title: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()
    types: tuple[tuple[str, pa.DataType], ...] = ()
    as_text: tuple[str, ...] = ()

    def read(self) -> list[str]:
        """Return the columns to be read, each once."""
        return list(dict.fromkeys(name for name in (self.text, self.title, self.id, *self.keep) if name is not None))

    def stored(self) -> list[str]:
        """Return the columns of the input that are in the output."""
        return [*([self.id] if self.id is not None else []), *self.keep]

    def with_types(self, types: Mapping[str, pa.DataType], given: Mapping[str, str]) -> Columns:
        """Return the columns with types, of which some were given by name."""
        every = dict(types) | {name: type_named(kind, name) for name, kind in given.items()}
        texts = {name for name in given if is_text(every[name])} | set(self.as_text)
        return replace(
            self,
            types=tuple((name, every[name]) for name in dict.fromkeys(self.stored()) if name in every),
            as_text=tuple(sorted(texts.intersection(self.stored()))),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as values of JSON, the types as Arrow writes a schema."""
        schema = pa.schema(self.types).serialize().to_pybytes()
        return {**asdict(replace(self, types=())), "types": base64.b64encode(schema).decode()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Columns:
        """Return what :meth:`to_json` wrote."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(content["types"])))
        types = tuple(zip(schema.names, schema.types, strict=True))
        return cls(**{**content, "types": types, "keep": tuple(content["keep"]), "as_text": tuple(content["as_text"])})


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


def type_named(name: str, column: str) -> pa.DataType:
    """Return the simple type of a name.

    Raises:
        InputValueError: there is none.
    """
    try:
        return pa.type_for_alias(name)
    except ValueError as error:
        raise InputValueError(
            f"column {column!r}: {name!r} is not the name of a simple Arrow type, such as int64 or string"
        ) from error


def is_type(name: str) -> bool:
    """Tell whether a simple type has this name."""
    try:
        pa.type_for_alias(name)
    except ValueError:
        return False
    return True
