"""Checks of what callers pass, texts and numbers. An error names the argument, or the position of the text."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InputTypeError, InputValueError


def iterate_texts(inputs: Iterable[str]) -> Iterable[str]:
    """Return `inputs` if it is an ordered iterable of texts; raise :class:`InputTypeError` if not."""
    if isinstance(inputs, str):
        raise InputTypeError("expected an iterable of str, got one str: put it in a list")
    dimensions = getattr(inputs, "ndim", 1)  # iterating over a two-dimensional array or data frame gives its columns
    unordered = isinstance(inputs, (bytes, bytearray, memoryview, Mapping, set, frozenset))
    if unordered or not isinstance(inputs, Iterable) or dimensions != 1:
        shape = f" of {dimensions} dimensions" if dimensions != 1 else ""
        raise InputTypeError(f"expected a str or an ordered iterable of str, got {type(inputs).__name__}{shape}")
    return inputs


def check_texts(texts: Iterable[str], start: int = 0) -> None:
    """Raise an error that names the position of the first text that is not a str or not valid Unicode."""
    for position, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise InputTypeError(f"expected a str at position {position}, got {type(text).__name__}")
        check_encodable(text, f"the text at position {position}")


def check_encodable(text: str, what: str) -> None:
    """Raise :class:`InputValueError` if `text` holds a lone surrogate, which no Unicode encoding can express."""
    try:
        str.encode(text)
    except UnicodeEncodeError as error:
        raise InputValueError(
            f"{what} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "which is not valid Unicode; repair it with "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from error


def whole_number(name: str, value: Any) -> int:
    """Return an int, also from another library's integer such as numpy's; raise :class:`InputTypeError` for others.

    Example:
        >>> whole_number("threads", 4)
        4
    """
    if isinstance(value, bool):
        raise InputTypeError(f"{name} must be a whole number, got {value}")
    try:
        return operator.index(value)
    except TypeError as error:
        raise InputTypeError(f"{name} must be a whole number, got {value!r:.80}") from error


def json_type(value: Any) -> str:
    """Return the JSON name of a value's type, for messages.

    Example:
        >>> json_type([1])
        'a list'
    """
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")
