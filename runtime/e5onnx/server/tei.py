"""Requests in the shapes of text-embeddings-inference, as plain data: `/embed`, `/similarity`, `/tokenize`.

After its OpenAPI document (https://huggingface.github.io/text-embeddings-inference). As there, a text that is too
long is refused unless `truncate` is true, and `prompt_name` names one of the model's prompts; where it is missing,
the server's default role decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks import json_type
from ..errors import RequestError
from ..openai_api import Limits, check_request_texts, dimensions_error, shown

_EMBED_KEYS = ("inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions")
_PARAMETERS = ("truncate", "truncation_direction", "prompt_name")


def _unprocessable(message: str, param: str) -> RequestError:
    return RequestError(message, status=422, param=param)


def read_object(content: Any, keys: Sequence[str]) -> Mapping[str, Any]:
    """Return `content` if it is an object with no keys but these; raise :class:`RequestError` if not."""
    if not isinstance(content, dict):
        raise _unprocessable(f"the request must be a JSON object, got {json_type(content)}", "inputs")
    checked: dict[str, Any] = content
    for name in checked:
        if name not in keys:
            raise _unprocessable(f"unknown key {shown(name)}; known are {', '.join(keys)}", name)
    return checked


def read_texts(given: Any, limits: Limits, param: str = "inputs") -> list[str]:
    """Return the texts of a request, of which there may be one or a list."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        what = "an empty list" if texts == [] else json_type(given)
        raise _unprocessable(f"{param!r} must be a text or a list of texts, got {what}", param)
    check_request_texts(texts, limits, param, status=422)
    return texts


def read_flag(content: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a boolean of a request."""
    value = content.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _unprocessable(f"{name!r} must be true or false, got {json_type(value)}", name)
    return value


def read_embed(content: Any, dimension: int) -> Mapping[str, Any]:
    """Check the keys of an `/embed` request that are not about texts."""
    checked = _cut_on_the_right(read_object(content, _EMBED_KEYS))
    if wrong := dimensions_error(checked, dimension):
        raise _unprocessable(wrong, "dimensions")
    return checked


def read_parameters(given: Any) -> Mapping[str, Any]:
    """Check the `parameters` of a `/similarity` request, which may be missing."""
    return _cut_on_the_right(read_object({} if given is None else given, _PARAMETERS))


def _cut_on_the_right(checked: Mapping[str, Any]) -> Mapping[str, Any]:
    if checked.get("truncation_direction") not in (None, "Right", "right"):
        raise _unprocessable("texts are cut on the right only", "truncation_direction")
    return checked
