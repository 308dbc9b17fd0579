"""Bodies of requests: read within limits of size, time and number of values, and parsed; and how much is in memory."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
from starlette.requests import Request

from ..errors import RequestError
from ..openai_api import parse_json
from .middleware import RequestState, state_of

_HELD_BODIES = 8
"""How many bodies of the largest size may be held in memory at a time."""
_SMALL = 64 * 1024
"""Bytes of every body and reply that do not count, so that small requests never wait for large ones."""
_INLINE_BODY = 4 * 1024
"""Bytes of a body that is parsed at once. Larger ones take turns, and others have theirs in between."""
_HELD_REPLIES = 64 * 2**20
"""Bytes of replies that clients have yet to read. One that is alone may be larger."""
_MOST_VALUES = 20_000
"""Values in the JSON of a body, beside one for every text: parsing as many holds everybody up for some 10 ms."""


class Bodies:
    """Reads bodies, and knows how much of them is in memory: from their first byte until the reply is sent."""

    def __init__(self, *, max_body: int, max_texts: int, seconds: float) -> None:
        """Take bodies up to `max_body` bytes that arrive within that many seconds."""
        self._max_body = max_body
        self._max_values = _MOST_VALUES + max_texts
        self._seconds = seconds
        self._held = 0
        self._held_replies = 0
        self._turn = asyncio.Lock()

    async def read_json(self, request: Request) -> Any:
        """Return the content of a body.

        Raises:
            RequestError: it is not JSON, too long, too slow, has too many values, or there are too many bodies.
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
        length = headers.get("content-length")
        if length is not None and "transfer-encoding" in headers:  # whoever stands between may have taken the other
            raise RequestError("send either Content-Length or Transfer-Encoding, not both")
        too_long = RequestError(f"the body has more than {self._max_body:,} bytes: send several requests", status=413)
        if length is not None and int(length) > self._max_body:
            raise too_long
        state, body, values = state_of(request), bytearray(), _Values()
        try:
            with anyio.fail_after(self._seconds):
                async for part in request.stream():
                    body.extend(part)
                    if len(body) > self._max_body:
                        raise too_long
                    self._hold(state, len(body))
                    if values.count(part) > self._max_values:
                        message = f"the body has more than {self._max_values:,} JSON values: send texts, not numbers"
                        raise RequestError(message, status=413)
        except TimeoutError as error:
            raise RequestError(f"the body did not arrive within {self._seconds:.0f} s", status=408) from error
        if len(body) <= _INLINE_BODY:
            return _parse(body)
        async with self._turn:
            await asyncio.sleep(0)  # whoever else is ready comes before the next of those that arrived together
            return _parse(body)

    def hold_reply(self, state: RequestState, more: int) -> None:
        """Note that the reply to a request has grown; raise :class:`RequestError` if all are too large together."""
        others = self._held_replies - _counted(state.reply_bytes)
        state.reply_bytes += more
        own = _counted(state.reply_bytes)
        self._held_replies = others + own
        if others and own and others + own > _HELD_REPLIES:
            raise RequestError("too much is being sent already; try again", status=429, code="rate_limit_exceeded")

    def release(self, state: RequestState) -> None:
        """Note that a request was answered."""
        self._held -= state.held_bytes
        self._held_replies -= _counted(state.reply_bytes)
        state.held_bytes = state.reply_bytes = 0

    def _hold(self, state: RequestState, size: int) -> None:
        more = _counted(size) - state.held_bytes
        if self._held + more > _HELD_BODIES * self._max_body:
            raise RequestError("too much is being read already; try again", status=429, code="rate_limit_exceeded")
        self._held += more
        state.held_bytes += more


def _counted(size: int) -> int:
    return max(0, size - _SMALL)


def _parse(body: bytearray) -> Any:
    gc.disable()  # it would look through all the values again and again
    try:
        return parse_json(bytes(body))
    finally:
        gc.enable()


class _Values:
    """Counts the values of JSON as its parts come, and with them what it would cost to parse."""

    def __init__(self) -> None:
        self._number = 1
        self._in_string = False
        self._left = b""

    def count(self, part: bytes) -> int:
        """Return how many values there are with this part: all that a comma or a bracket outside of strings begins."""
        part = self._left + part
        if (len(part) - len(part.rstrip(b"\\"))) % 2:
            part, self._left = part[:-1], part[-1:]  # what follows is escaped by it
        else:
            self._left = b""
        pieces = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        self._in_string ^= len(pieces) % 2 == 0
        self._number += sum(map(outside.count, (b",", b"[", b"{")))
        return self._number
