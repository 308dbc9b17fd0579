"""Bodies of requests: read within limits of size and time, and parsed."""

from __future__ import annotations

import gc
from typing import Any

import anyio
from starlette.requests import Request

from ..openai_api import RequestError, parse_json
from .front import Exchange, exchange_of

_HELD_BODIES = 8
"""How many bodies of the largest size may be held in memory at a time."""


class Bodies:
    """Reads bodies, and knows how much of them is in memory: from their first byte until the reply is sent."""

    def __init__(self, *, max_body: int, seconds: float) -> None:
        """Take bodies up to `max_body` bytes that arrive within that many seconds."""
        self._max_body = max_body
        self._seconds = seconds
        self._held = 0

    async def read_json(self, request: Request) -> Any:
        """Return the content of a body.

        Raises:
            RequestError: it is not JSON, too long, too slow, or there are too many.
        """
        headers = request.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            # what else a page of another origin could send to a server on its reader's machine
            message = f"send the body as JSON, with Content-Type: application/json, not {kind[:80] or 'nothing'!r}"
            raise RequestError(message, status=415)
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise RequestError(f"send the body as it is, without Content-Encoding: {encoding[:80]}", status=415)
        message = f"the body has more than {self._max_body:,} bytes: send several requests"
        too_long = RequestError(message, status=413)
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 20 or int(length) > self._max_body):
            raise too_long
        exchange, body = exchange_of(request), bytearray()
        try:
            with anyio.fail_after(self._seconds):
                async for part in request.stream():
                    body.extend(part)
                    if len(body) > self._max_body:
                        raise too_long
                    self._hold(exchange, len(part))
        except TimeoutError as error:
            raise RequestError(f"the body did not arrive within {self._seconds:.0f} s", status=408) from error
        exchange.body_was_read = True
        gc.disable()  # it would look through millions of lists again and again, if somebody sends them
        try:
            return parse_json(bytes(body))
        finally:
            gc.enable()

    def release(self, exchange: Exchange) -> None:
        """Note that a request was answered."""
        self._held -= exchange.body_bytes

    def _hold(self, exchange: Exchange, size: int) -> None:
        if self._held + size > _HELD_BODIES * self._max_body:
            raise RequestError("too much is being read already; try again", status=429, code="rate_limit_exceeded")
        self._held += size
        exchange.body_bytes += size
