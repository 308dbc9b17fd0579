"""Reads JSON files of a checkpoint. Every mistake in them is a CheckpointError that names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from e5onnx.errors import CheckpointError, in_one_line

T = TypeVar("T")
_KINDS = {bool: "true or false", str: "text", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class JsonObject:
    """An object of a JSON file.

    Attributes:
        name: the file and the keys that lead to the object, for messages.
        content: the keys and values.
    """

    name: str
    content: Mapping[str, Any]

    @classmethod
    def read(cls, root: Path, file: str) -> JsonObject:
        """Return the object in a file; an empty one if the file does not exist."""
        content = read_json(root, file)
        return cls.of(file, {} if content is None else content)

    @classmethod
    def of(cls, name: str, content: Any) -> JsonObject:
        """Return `content` as an object that messages call `name`."""
        if not isinstance(content, dict):
            raise CheckpointError(f"{name} must be an object, not {content!r:.80}")
        return cls(name, content)

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return the bool, str or dict of a key; None if it is missing or null."""
        value = self.content.get(key)
        if value is not None and not isinstance(value, kind):
            raise self._wrong(key, _KINDS[kind])
        return value

    def number(self, key: str, *, least: float, default: float | None = None) -> float | None:
        """Return the number of a key, at least `least`; `default` if it is missing or null."""
        value = self.content.get(key)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= least:  # NaN is not
            raise self._wrong(key, f"a number, {least} or more")
        return value

    def integer(self, key: str, *, least: int, default: int | None = None) -> int:
        """Return the whole number of a key, at least `least`; without a `default` the key is required."""
        value = self.number(key, least=least, default=default)
        if value is None:
            raise CheckpointError(f"{self.name} lacks the key {key}")
        if not isinstance(value, int):
            raise self._wrong(key, "a whole number")
        return value

    def object(self, key: str) -> JsonObject:
        """Return the object of a key; an empty one if it is missing or null."""
        return JsonObject(f"{self.name}: {key}", self.get(key, dict) or {})

    def require(self, allowed: Mapping[str, Collection[Any]], others: Collection[str] | None = None) -> None:
        """Refuse every key whose value is neither null nor allowed.

        Args:
            allowed: for each key, the values that the export honours or that change nothing.
            others: further keys, with any value; if given, unknown keys are refused too.
        """
        for key, value in self.content.items():
            if key in allowed:
                if value is not None and value not in allowed[key]:
                    only = " or ".join(map(repr, allowed[key]))
                    reason = f"; only {only} is supported" if only else ", which is not supported"
                    raise CheckpointError(f"{self.name}: {key} is {value!r:.80}{reason}")
            elif others is not None and key not in others:
                raise CheckpointError(f"{self.name} sets {key!r:.80} to {value!r:.80}, which is not supported")

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: {key} must be {expected}, not {self.content[key]!r:.80}")


def read_json(root: Path, file: str) -> Any:
    """Return the content of a JSON file, or None if there is no such file."""
    path = root / file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {in_one_line(error)}") from error
    if content is None:
        raise CheckpointError(f"{path} holds null")
    return content
