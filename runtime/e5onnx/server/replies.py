"""Replies: JSON, errors in the shape that the path promises, and the files of the page."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..errors import E5OnnxError, QueueFullError, RequestError, TextTooLongError
from .middleware import failure, log_failure, state_of

PAGES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs.js": ("docs.js", "text/javascript"),
}
"""Path -> file of the folder `page`, and its type."""
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_TEI_PATHS = ("/", "/embed", "/similarity", "/tokenize")
_TEI_KINDS = {429: "Overloaded", 500: "Backend", 503: "Unhealthy"}


def page(path: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Return what answers with a file of the page."""
    name, media_type = PAGES[path]
    content = Path(__file__).with_name("page").joinpath(name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, headers=_PAGE_HEADERS, media_type=media_type)

    return answer


def json_reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a reply of JSON; vectors may be arrays."""
    return Response(to_json(content), status, headers, media_type="application/json")


def to_json(content: Any) -> bytes:
    """Return JSON; vectors may be arrays."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def refusal(request: Request, error: RequestError) -> Response:
    """Return what a client is told of an error."""
    headers = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}, 503: {"retry-after": "1"}}
    return _refusal(request, error, headers.get(error.status))


def _refusal(request: Request, error: RequestError, headers: dict[str, str] | None) -> Response:
    if request.scope["path"] in _TEI_PATHS:  # not url.path: that begins with whatever the Host header says
        content = {"error": str(error), "error_type": _TEI_KINDS.get(error.status, "Validation")}
        return json_reply(content, error.status, headers)
    return json_reply(error.body(), error.status, headers)


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    what = {404: "there is nothing at", 405: f"{request.method[:20]} is not for"}.get(error.status_code, error.detail)
    refused = RequestError(f"{what} {request.scope['path'][:80]}", status=error.status_code)
    return _refusal(request, refused, dict(error.headers) if error.headers else None)


async def _answer_request_error(request: Request, error: RequestError) -> Response:
    return refusal(request, error)


async def _answer_queue_full(request: Request, error: QueueFullError) -> Response:
    refused = RequestError(str(error), status=429, code="rate_limit_exceeded")
    return _refusal(request, refused, {"retry-after": f"{error.retry_after:.0f}"})


async def _answer_too_long(request: Request, error: TextTooLongError) -> Response:
    return refusal(request, RequestError(str(error), status=413))


async def _answer_gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it; for the log and the metrics


async def _answer_failure(request: Request, error: Exception) -> Response:
    log_failure(error, state_of(request).id)
    return refusal(request, failure(error))


HANDLERS: dict[Any, Any] = {
    HTTPException: _answer_http_error,
    RequestError: _answer_request_error,
    QueueFullError: _answer_queue_full,
    TextTooLongError: _answer_too_long,
    ClientDisconnect: _answer_gone,
    E5OnnxError: _answer_failure,
    Exception: _answer_failure,
}
"""What answers for which exception."""
