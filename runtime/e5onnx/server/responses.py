"""Responses: JSON, and errors in the shape that clients of the path expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..errors import QueueFullError, RequestError, TextTooLongError
from . import tei
from .logs import log_failure
from .request_state import state_of

_HEADERS = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}, 503: {"retry-after": "1"}}


class JSONResponse(Response):
    """JSON, in which NumPy arrays are lists."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return to_json(content)


def to_json(content: Any) -> bytes:
    """Return JSON, in which NumPy arrays are lists."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def error_response(request: Request, error: Exception) -> Response:
    """Return what a client is told about an error, and log the error if it is the server's fault."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # for the log and the metrics: nobody is left to read it
    refusal, headers = _refusal(request, error)
    # not url.path, which starts with the Host header
    body = tei.error_body(refusal) if request.scope["path"] in tei.PATHS else refusal.body()
    return JSONResponse(body, refusal.status, headers)


def _refusal(request: Request, error: Exception) -> tuple[RequestError, Mapping[str, str] | None]:
    """Return an error as a client sees it, and the headers that go with it."""
    match error:
        case RequestError():
            return error, _HEADERS.get(error.status)
        case QueueFullError():
            refusal = RequestError(str(error), status=429, code="rate_limit_exceeded")
            return refusal, {"retry-after": f"{error.retry_after:.0f}"}
        case TextTooLongError():
            return RequestError(str(error), status=413), None
        case HTTPException(status_code=status, detail=detail, headers=headers):
            what = {404: "there is nothing at", 405: f"the method {request.method[:20]} is not allowed at"}
            return RequestError(f"{what.get(status, detail)} {request.scope['path'][:80]}", status=status), headers
    log_failure(error, state_of(request).id)
    what_failed = "there is not enough memory for" if isinstance(error, MemoryError) else "the server failed on"
    return RequestError(f"{what_failed} this request; the server's log says more", status=500), None
