"""The API of text-embeddings-inference: requests to `/embed`, `/similarity` and `/tokenize`, `/info`, and errors.

It follows that server's OpenAPI document (https://huggingface.github.io/text-embeddings-inference). As there, a text
that is too long is refused unless `truncate` is true. `prompt_name` names one of the model's prompts; without it the
server's default role decides, save in `/similarity`. This file knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..checks import json_type
from ..dimensions import shorten
from ..encoder import Encoder
from ..errors import InputValueError, RequestError, TextTooLongError
from ..openai_api import Limits, check_request_texts, requested_dimensions, shown
from ..tokenizer import Role, TokenizedText, Tokenizer
from .options import ServerOptions

PATHS = frozenset(("/", "/embed", "/similarity", "/tokenize"))
"""Where errors have the shape of :func:`error_body`."""
_ERROR_TYPES = {429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_EMBED_KEYS = ("inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions")
_PARAMETERS = ("truncate", "truncation_direction", "prompt_name")


@dataclass(frozen=True)
class EmbedRequest:
    """A request to `/embed`: the vectors of texts; `dimensions` is how many components to keep, None for all."""

    texts: list[str]
    prompt: str
    truncate: bool
    normalize: bool
    dimensions: int | None

    @classmethod
    def from_json(cls, content: Any, encoder: Encoder, options: ServerOptions) -> EmbedRequest:
        """Check the content of a request; raise :class:`RequestError` if it cannot be answered."""
        checked = _object(content, _EMBED_KEYS)
        return cls(
            texts=_texts(checked, "inputs", options.limits),
            prompt=_prompt(checked, encoder.tokenizer, options.default_role),
            truncate=_truncate(checked),
            normalize=_flag(checked, "normalize", True),
            dimensions=requested_dimensions(checked, encoder.dimension, encoder.shorter_dimensions, status=422),
        )

    def check(self, tokenized: Sequence[TokenizedText], tokenizer: Tokenizer) -> None:
        """Raise :class:`RequestError` if a text is too long and `truncate` is not set."""
        if not self.truncate:
            _check_lengths(tokenized, tokenizer)

    def reply(self, vectors: NDArray[np.float32]) -> Any:
        """Return the content of the reply."""
        if self.dimensions is not None:
            vectors = shorten(vectors, self.dimensions, normalize=self.normalize)
        return list(vectors)


@dataclass(frozen=True)
class SimilarityRequest:
    """A request to `/similarity`: the cosines of the first text with all the others."""

    texts: list[str]
    prompt: str
    truncate: bool
    normalize: ClassVar = True

    @classmethod
    def from_json(cls, content: Any, encoder: Encoder, options: ServerOptions) -> SimilarityRequest:
        """Check the content of a request; raise :class:`RequestError` if it cannot be answered."""
        checked = _object(content, ("inputs", "parameters"))
        inputs = _object(checked.get("inputs"), ("source_sentence", "sentences"))
        given = checked.get("parameters")
        parameters = _object({} if given is None else given, _PARAMETERS)
        source = inputs.get("source_sentence")
        if not isinstance(source, str):
            raise _unprocessable(f"'source_sentence' must be a text, got {json_type(source)}", "source_sentence")
        sources, sentences = (_texts(inputs, key, options.limits) for key in ("source_sentence", "sentences"))
        return cls(
            texts=sources + sentences,
            prompt=_prompt(parameters, encoder.tokenizer, "query"),  # E5's card: the prompt of symmetric tasks
            truncate=_truncate(parameters),
        )

    def check(self, tokenized: Sequence[TokenizedText], tokenizer: Tokenizer) -> None:
        """Raise :class:`RequestError` if a text is too long and `truncate` is not set."""
        if not self.truncate:
            _check_lengths(tokenized, tokenizer)

    def reply(self, vectors: NDArray[np.float32]) -> Any:
        """Return the content of the reply; the vectors have unit length."""
        return np.clip(vectors[1:] @ vectors[0], -1, 1)


@dataclass(frozen=True)
class TokenizeRequest:
    """A request to `/tokenize`: the tokens of texts."""

    texts: list[str]
    prompt: str
    special_tokens: bool

    @classmethod
    def from_json(cls, content: Any, encoder: Encoder, options: ServerOptions) -> TokenizeRequest:
        """Check the content of a request; raise :class:`RequestError` if it cannot be answered."""
        checked = _object(content, ("inputs", "add_special_tokens", "prompt_name"))
        return cls(
            texts=_texts(checked, "inputs", options.limits),
            prompt=_prompt(checked, encoder.tokenizer, "raw"),
            special_tokens=_flag(checked, "add_special_tokens", True),
        )


def root_request(content: Any, encoder: Encoder, options: ServerOptions) -> EmbedRequest | SimilarityRequest:
    """Read a request to `/`, where clients of Hugging Face's inference endpoints send both kinds."""
    is_similarity = isinstance(content, dict) and isinstance(content.get("inputs"), dict)
    return (SimilarityRequest if is_similarity else EmbedRequest).from_json(content, encoder, options)


def info(encoder: Encoder, options: ServerOptions) -> dict[str, Any]:
    """Return the reply of `/info`: its keys, and some of ours."""
    manifest = encoder.manifest
    return {
        "model_id": manifest.checkpoint,
        "model_sha": manifest.revision,
        "model_dtype": _DTYPES.get(encoder.precision, encoder.precision),
        "model_type": {"embedding": {"pooling": manifest.pooling}},
        "dimension": manifest.dimension,
        "prompts": dict(manifest.prompts),
        "default_role": options.default_role,
        "fingerprint": encoder.fingerprint,
        "provider": encoder.provider,
        "threads": encoder.threads,
        "max_input_length": manifest.max_tokens,
        "max_client_batch_size": options.max_texts,
        "max_batch_tokens": options.max_waiting_tokens,
        "max_concurrent_requests": options.max_waiting_requests,
        "version": __version__,
    }


def error_body(error: RequestError) -> dict[str, str]:
    """Return the content of the reply to a request that failed."""
    return {"error": str(error), "error_type": _ERROR_TYPES.get(error.status, "Validation")}


def _unprocessable(message: str, param: str) -> RequestError:
    return RequestError(message, status=422, param=param)


def _object(content: Any, keys: Sequence[str]) -> Mapping[str, Any]:
    """Return `content` if it is an object without any other keys."""
    if not isinstance(content, dict):
        raise _unprocessable(f"the request must be a JSON object, got {json_type(content)}", "inputs")
    checked: dict[str, Any] = content
    for name in checked:
        if name not in keys:
            raise _unprocessable(f"unknown key {shown(name)}; known are {', '.join(keys)}", name)
    return checked


def _texts(content: Mapping[str, Any], name: str, limits: Limits) -> list[str]:
    """Return one text or a list of them as a list."""
    given = content.get(name)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        what = "an empty list" if texts == [] else json_type(given)
        raise _unprocessable(f"{name!r} must be a text or a list of texts, got {what}", name)
    check_request_texts(texts, limits, name, status=422)
    return texts


def _flag(content: Mapping[str, Any], name: str, default: bool) -> bool:
    value = content.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _unprocessable(f"{name!r} must be true or false, got {json_type(value)}", name)
    return value


def _truncate(content: Mapping[str, Any]) -> bool:
    if content.get("truncation_direction") not in (None, "Right", "right"):
        raise _unprocessable('only "Right" is supported: texts are cut at their end', "truncation_direction")
    return _flag(content, "truncate", False)


def _prompt(content: Mapping[str, Any], tokenizer: Tokenizer, role: Role) -> str:
    """Return the prompt that a request names, or else that of the role."""
    name = content.get("prompt_name")
    if name is not None and not isinstance(name, str):
        raise _unprocessable(f"'prompt_name' must be a string, got {json_type(name)}", "prompt_name")
    try:
        return tokenizer.prompt_for(role, prompt_name=name)
    except InputValueError as error:
        raise _unprocessable(str(error)[:200], "prompt_name") from error  # cut, as it repeats the name


def _check_lengths(tokenized: Sequence[TokenizedText], tokenizer: Tokenizer) -> None:
    for position, text in enumerate(tokenized):
        try:
            tokenizer.check_length(text, f"the text at position {position}", '"truncate": true')
        except TextTooLongError as error:
            raise RequestError(str(error), status=413, param="inputs") from error
