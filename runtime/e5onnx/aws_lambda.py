"""A handler for AWS Lambda: `e5onnx.aws_lambda.handler`.

It answers OpenAI's embeddings requests (:mod:`e5onnx.openai_api`) from API Gateway (REST and HTTP APIs), a function URL
or a load balancer, and plain events with the same content. `e5onnx pack-lambda` makes the deployment zip.

Environment variables: `E5ONNX_MODEL`, the model folder (default: `model` beside the code); `E5ONNX_PROVIDER`, "cpu"
(default) or "kernels"; `E5ONNX_PRECISION` (default: fp32, or bf16 with kernels, if the folder has the graph for it);
`E5ONNX_THREADS`; `E5ONNX_DEFAULT_ROLE`, the role of requests without `input_type`: "query", "document" (default) or
"raw"; `E5ONNX_FORCE_DIMENSIONS`, "1" to allow shorter vectors (`dimensions`) of a model not known to be trained for it.
"""

from __future__ import annotations

import base64
import functools
import json
import os
from typing import Any, Literal

from .checks import json_type
from .encoder import Encoder
from .errors import InputValueError, RequestError
from .model_folder import open_model
from .openai_api import EmbeddingsRequest, parse_json, shortest_floats, shown
from .tokenizer import ROLES, Role

_PRECISIONS: dict[Literal["cpu", "kernels"], tuple[Literal["fp32", "bf16", "int8"], ...]] = {
    "cpu": ("fp32", "int8"),
    "kernels": ("bf16", "int8"),
}
"""The precisions of each provider, the default first."""
_LARGEST_REPLY = 6 * 1024 * 1024
"""Bytes. AWS documentation, "Lambda quotas": payload of a synchronous invocation."""


def handler(event: Any, context: Any = None) -> dict[str, Any]:
    """Answer one event.

    Args:
        event: an HTTP request of API Gateway (payload version 1.0 or 2.0), a function URL or a load balancer, or the
            content of an embeddings request, such as `{"input": ["text"], "input_type": "query"}`.
        context: Lambda's context, which is not used.

    Returns:
        The HTTP reply (`statusCode`, `headers`, `body`); for a plain event only the content of the reply.

    Raises:
        RequestError: a plain event is wrong. A wrong HTTP request gets a reply with status 4xx instead.

    Example:
        >>> os.environ["E5ONNX_MODEL"] = "models/sample"
        >>> reply = handler({"input": "how much protein should a female eat", "input_type": "query"})
        >>> len(reply["data"][0]["embedding"])
        384
    """
    if not _is_http(event):
        return _answer(event)
    try:
        method = _method(event)
        if method != "POST":
            raise RequestError(f"the method must be POST, got {shown(method)}", status=405)
        reply = _reply(200, _answer(parse_json(_body(event))))
        size = len(json.dumps(reply))  # here a quotation mark in the body takes two bytes
        if size > _LARGEST_REPLY:
            message = f"the reply has {size:,} bytes, Lambda allows {_LARGEST_REPLY:,}: send fewer texts"
            raise RequestError(f'{message}, or "encoding_format": "base64"', status=413)
        return reply
    except RequestError as error:
        return _reply(error.status, error.body())


def _reply(status: int, content: dict[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json", **({"allow": "POST"} if status == 405 else {})}
    return {"statusCode": status, "headers": headers, "body": json.dumps(content), "isBase64Encoded": False}


def _answer(content: Any) -> dict[str, Any]:
    encoder, default_role = _load()
    request = EmbeddingsRequest.from_json(
        content,
        models=[encoder.manifest.checkpoint],
        dimension=encoder.dimension,
        shorter_dimensions=encoder.shorter_dimensions,
        default_role=default_role,
    )
    tokenized = request.tokenize(encoder)
    vectors = encoder.encode_tokenized(tokenized)
    return request.reply(vectors, tokenized, normalize=encoder.manifest.normalize, floats=shortest_floats)


@functools.cache
def _load() -> tuple[Encoder, Role]:
    """Return the encoder, loaded once per container, and the default role."""
    role = os.environ.get("E5ONNX_DEFAULT_ROLE") or "document"
    if role not in ROLES:
        raise InputValueError(f"E5ONNX_DEFAULT_ROLE must be one of {', '.join(ROLES)}, got {role!r}")
    model = os.environ.get("E5ONNX_MODEL")
    if not model:
        root = os.environ.get("LAMBDA_TASK_ROOT")
        if not root:
            raise InputValueError("set the environment variable E5ONNX_MODEL to the model folder")
        model = os.path.join(root, "model")  # noqa: PTH118 - saves importing Path
    provider = os.environ.get("E5ONNX_PROVIDER") or "cpu"
    if provider not in _PRECISIONS:
        raise InputValueError(f"E5ONNX_PROVIDER must be cpu or kernels, got {provider!r}")
    precisions = _PRECISIONS[provider]
    precision = os.environ.get("E5ONNX_PRECISION") or ("int8" if _is_int8_only(model) else precisions[0])
    if precision not in precisions:
        raise InputValueError(
            f"E5ONNX_PRECISION must be {' or '.join(precisions)} with provider {provider}, got {precision!r}"
        )
    force = os.environ.get("E5ONNX_FORCE_DIMENSIONS") or "0"
    if force not in ("0", "1"):
        raise InputValueError(f"E5ONNX_FORCE_DIMENSIONS must be 0 or 1, got {force!r}")
    return Encoder(model, precision=precision, provider=provider, force_truncate_dim=force == "1"), role


def _is_int8_only(model: str) -> bool:
    return [graph.precision for graph in open_model(model).manifest.graphs if not graph.portable] == ["int8"]


def _is_http(event: Any) -> bool:
    return isinstance(event, dict) and ("httpMethod" in event or "requestContext" in event)


def _method(event: dict[str, Any]) -> Any:
    """Return the method, whose place depends on the version of the payload."""
    context = event.get("requestContext")
    version_2 = context.get("http") if isinstance(context, dict) else None
    return event.get("httpMethod") or (version_2.get("method") if isinstance(version_2, dict) else None)


def _body(event: dict[str, Any]) -> bytes:
    body = event.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise RequestError(f"the event's body must be JSON text, got {json_type(body)}")
    if not event.get("isBase64Encoded"):
        return body.encode(errors="surrogatepass")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:  # also for a body that is not ASCII
        raise RequestError(f"the body is not valid base64: {error}") from error


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # Lambda gives a container more processor time while it starts than later.
    _load()
