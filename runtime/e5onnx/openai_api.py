"""OpenAI's embeddings API as plain data: reads and checks a request, and makes the reply. Does not handle HTTP.

The keys `input`, `model`, `encoding_format`, `dimensions` and `user` of a request are OpenAI's
(https://platform.openai.com/docs/api-reference/embeddings/create). `input_type` is Cohere's and chooses the prompt.
`output_dtype` is Voyage's: "float", or "binary" or "ubinary" for one bit per component, eight to a number. Its "int8"
and "uint8" are refused: they need ranges measured on a corpus. Ranges of the texts of one request, which
sentence-transformers would take, give vectors that cannot be compared with those of the next request.
`truncate` is our own: "warn" (the reply counts the texts that were cut, in `truncated`) or "error".
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from .checks import check_texts, json_type
from .dimensions import shorten
from .encoder import Encoder
from .errors import MOST_SHOWN, InputTypeError, InputValueError, RequestError, TextTooLongError
from .quantization import quantize_embeddings
from .tokenizer import Role, TokenizedText, Tokenizer

INPUT_TYPES: dict[str, Role] = {
    "query": "query",
    "document": "document",
    "raw": "raw",
    "search_query": "query",
    "search_document": "document",
    "classification": "query",
    "clustering": "query",
}
"""The role of a text by `input_type`. As E5's card says, symmetric tasks and features use the prompt of queries."""
_MOST_DIGITS = 100
_KEYS = ("input", "model", "encoding_format", "dimensions", "user", "input_type", "output_dtype", "truncate")

OutputDType = Literal["float", "binary", "ubinary"]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. The only home of these defaults: the server's options take theirs from here."""

    texts: int = 2048  # OpenAI's own limit
    characters: int = 1_000_000


@dataclass(frozen=True)
class EmbeddingsRequest:
    """A checked request.

    Attributes:
        model: the name that the request gives the model, or else the first of its names.
        dimensions: how many components to keep; None for all.
    """

    texts: list[str]
    model: str
    role: Role
    truncate: Literal["warn", "error"]
    dimensions: int | None
    output_dtype: OutputDType
    base64: bool

    @classmethod
    def from_json(
        cls,
        content: Any,
        *,
        models: Sequence[str],
        dimension: int,
        shorter_dimensions: Container[int] = (),
        default_role: Role = "document",
        limits: Limits | None = None,
    ) -> EmbeddingsRequest:
        """Check the content of a request.

        Args:
            content: what the body holds.
            models: the names of the model, the main one first.
            dimension: number of components of its vectors.
            shorter_dimensions: the smaller numbers that requests may ask for, as
                :attr:`Encoder.shorter_dimensions`.
            default_role: role of the texts if the request has no `input_type`.
            limits: what a request may ask for.

        Raises:
            RequestError: the request is wrong; the message says why.

        Example:
            >>> request = EmbeddingsRequest.from_json({"input": "text"}, models=["e5"], dimension=384)
            >>> request.texts, request.role
            (['text'], 'document')
        """
        if not isinstance(content, dict):
            raise RequestError(f"the request must be a JSON object with the key 'input', got {json_type(content)}")
        for name in content:
            if name not in _KEYS:
                raise RequestError(f"unknown key {shown(name)}; known are {', '.join(_KEYS)}", param=name)
        wanted = content.get("model")
        if wanted is not None and not isinstance(wanted, str):
            raise RequestError(f"'model' must be a string, got {json_type(wanted)}", param="model")
        if wanted is not None and wanted not in models:
            raise no_such_model(wanted, models)
        output_dtype = _output_dtype(content)
        return cls(
            texts=_texts(content.get("input"), limits or Limits()),
            model=models[0] if wanted is None else wanted,
            role=INPUT_TYPES[_choice(content, "input_type", tuple(INPUT_TYPES), default_role)],
            truncate="error" if _choice(content, "truncate", ("warn", "error"), "warn") == "error" else "warn",
            dimensions=requested_dimensions(content, dimension, shorter_dimensions, status=400),
            output_dtype=output_dtype,
            base64=_base64(content, output_dtype),
        )

    def tokenize(self, encoder: Encoder) -> list[TokenizedText]:
        """Return the token ids of the texts with their role's prompt.

        Raises:
            RequestError: a text is too long, and `truncate` is "error".
        """
        tokenizer = encoder.tokenizer
        tokenized = tokenizer.tokenize(self.texts, tokenizer.prompt_for(self.role))
        self.check(tokenized, tokenizer)
        return tokenized

    def check(self, tokenized: Sequence[TokenizedText], tokenizer: Tokenizer) -> None:
        """Raise :class:`RequestError` if a text is too long and `truncate` is "error"."""
        if self.truncate == "warn":
            return
        for position, text in enumerate(tokenized):
            try:
                tokenizer.check_length(text, f"the text at position {position}", '"truncate": "warn"')
            except TextTooLongError as error:
                raise RequestError(str(error), param="input", code="context_length_exceeded") from error

    def reply(
        self,
        vectors: NDArray[np.float32],
        tokenized: Sequence[TokenizedText],
        *,
        normalize: bool,
        floats: Callable[[NDArray[np.float32]], Any],
    ) -> dict[str, Any]:
        """Return the content of the reply.

        Args:
            vectors: the model's own, `[texts, dimension]`.
            tokenized: the result of :meth:`tokenize`.
            normalize: whether `vectors` have unit length; shortened vectors then have it, too.
            floats: turns a vector into what the caller's JSON library writes; not used for base64 and bits.
        """
        tokens = sum(len(text.ids) for text in tokenized)
        finished: NDArray[Any] = vectors
        encode: Callable[[NDArray[Any]], Any] = _encode_base64 if self.base64 else floats
        if self.dimensions is not None:
            finished = shorten(vectors, self.dimensions, normalize=normalize)
        if self.output_dtype != "float":
            finished, encode = quantize_embeddings(finished, self.output_dtype), np.ndarray.tolist
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encode(vector)}
                for index, vector in enumerate(finished)
            ],
            "model": self.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "truncated": sum(text.is_cut for text in tokenized),
        }


def parse_json(body: bytes) -> Any:
    """Return the content of a request's body; raise :class:`RequestError` if it is not JSON in UTF-8.

    Example:
        >>> parse_json(b'{"input": "text"}')
        {'input': 'text'}
    """
    try:
        return json.loads(
            body.decode(), parse_constant=_refuse_constant, parse_int=_parse_int, object_pairs_hook=_parse_object
        )
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 text: {error}") from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error


def shortest_floats(vector: NDArray[np.float32]) -> list[float]:
    """Return the components rounded to nine digits, the fewest that always give back the same float32.

    Example:
        >>> shortest_floats(np.array([0.1], np.float32))
        [0.100000001]
    """
    return [float(f"{component:.9g}") for component in vector.tolist()]


def check_request_texts(texts: Sequence[Any], limits: Limits, param: str, *, status: int) -> None:
    """Raise :class:`RequestError`: 413 for too many or too long texts, `status` for anything that is not a text."""
    if texts and _is_token_ids(texts[0]):
        message = (
            f"{param!r} holds token ids, which are those of another model's tokenizer: send the texts instead "
            "(LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False)"
        )
        raise RequestError(message, status=status, param=param)
    if len(texts) > limits.texts:
        message = f"{param!r} has {len(texts)} texts, the limit is {limits.texts}: send several requests"
        raise RequestError(message, status=413, param=param)
    try:
        check_texts(texts)
    except (InputTypeError, InputValueError) as error:
        raise RequestError(f"{param!r}: {error}", status=status, param=param) from error
    for position, text in enumerate(texts):
        if len(text) > limits.characters:
            message = (
                f"the text at position {position} has {len(text):,} characters, the limit is {limits.characters:,}: "
                "split it"
            )
            raise RequestError(message, status=413, param=param)


def no_such_model(wanted: str, models: Sequence[str]) -> RequestError:
    """Return the error for a name that is not one of the loaded model's."""
    message = f"there is no model {shown(wanted)} here; this is {' or '.join(map(repr, models))}"
    return RequestError(message, status=404, param="model", code="model_not_found")


def requested_dimensions(
    content: Mapping[str, Any], dimension: int, shorter: Container[int], *, status: int
) -> int | None:
    """Return the key `dimensions` of a request; None if the vectors stay as they are.

    Raises:
        RequestError: it is not a number of components that the model can give; with `status`.
    """
    wanted = content.get("dimensions")
    if isinstance(wanted, float) and wanted.is_integer():
        wanted = int(wanted)  # JSON has one kind of number
    if wanted is None or (wanted == dimension and not isinstance(wanted, bool)):
        return None
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= dimension:
        message = f"'dimensions' must be a whole number from 1 to {dimension}, got {shown(wanted)}"
        raise RequestError(message, status=status, param="dimensions")
    if wanted not in shorter:
        message = (
            f"this model's vectors have {dimension} dimensions, and it is not known to be trained for "
            f"{wanted}: leave 'dimensions' out. Whoever runs the server can allow it with --force-dimensions, or on "
            "Lambda with E5ONNX_FORCE_DIMENSIONS=1; quality may drop"
        )
        raise RequestError(message, status=status, param="dimensions")
    return wanted


def shown(value: Any) -> str:
    """Return a short form of a value for a message.

    Example:
        >>> shown("model"), shown({"a": 1})
        ("'model'", 'an object')
    """
    if not isinstance(value, (str, int, float)):
        return json_type(value)
    text = repr(value[:MOST_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= MOST_SHOWN + 2 else f"{text[:MOST_SHOWN]}…"


def _texts(given: Any, limits: Limits) -> list[str]:
    if given is None:
        raise RequestError("the key 'input' is missing; it is a text or a list of texts", param="input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise RequestError(f"'input' must be a text or a list of texts, got {json_type(given)}", param="input")
    if not texts:
        raise RequestError("'input' is an empty list; send at least one text", param="input")
    check_request_texts(texts, limits, "input", status=400)
    return texts


def _output_dtype(content: dict[str, Any]) -> OutputDType:
    if (given := content.get("output_dtype")) in ("int8", "uint8"):
        message = (
            f"'output_dtype' cannot be {given}, which needs ranges measured on a corpus of yours: ask for float, and "
            "convert the vectors with quantize_embeddings of e5onnx.quantization or sentence_transformers.quantization"
        )
        raise RequestError(message, param="output_dtype")
    return cast(OutputDType, _choice(content, "output_dtype", get_args(OutputDType), "float"))


def _base64(content: dict[str, Any], output_dtype: OutputDType) -> bool:
    is_base64 = _choice(content, "encoding_format", ("float", "base64"), "float") == "base64"
    if is_base64 and output_dtype != "float":
        message = (
            f'base64 holds float32 only, as clients decode it: with "output_dtype": "{output_dtype}" send '
            '"encoding_format": "float" for a list of numbers (OpenAI\'s clients ask for base64 by themselves)'
        )
        raise RequestError(message, param="encoding_format")
    return is_base64


def _choice(content: dict[str, Any], name: str, choices: Sequence[str], default: str) -> str:
    given = content.get(name)
    if given is None:
        return default
    if not isinstance(given, str) or given not in choices:
        raise RequestError(f"{name!r} must be one of {', '.join(choices)}, got {shown(given)}", param=name)
    return given


def _is_token_ids(value: Any) -> bool:
    """Whether the first item of a request's input is a token id, or a list of them."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, int) and not isinstance(first, bool)


def _encode_base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # parsers disagree on which of them counts
        names = Counter(name for name, _ in pairs)
        twice = next(name for name, times in names.items() if times > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice in an object")
    return content


def _parse_int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:  # parsing takes quadratic time
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
