"""Reads the bodies of requests within limits of size, time and number of values, and bounds what is in memory."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
from starlette.requests import Request

from ..errors import RequestError
from ..openai_api import parse_json
from .request_state import RequestState, state_of

_HELD_BODIES = 8
"""How many bodies of the largest size may be in memory at a time."""
_SMALL = 64 * 1024
"""Bytes of every body and reply that do not count, so that small requests are never refused because of large ones."""
_INLINE_BODY = 4 * 1024
"""Largest body that is parsed at once. The event loop does other work between two larger ones."""
_HELD_REPLIES = 64 * 2**20
"""Bytes of all replies that clients have yet to read. A single reply may be larger."""
_MOST_VALUES = 20_000
"""Most JSON values in a body, besides one for every text. Parsing that many blocks the event loop for some 10 ms."""


class BodyReader:
    """Reads bodies, and counts bodies and replies in memory: from the first byte until the client has its reply."""

    def __init__(self, *, max_body: int, max_texts: int, seconds: float) -> None:
        """Read bodies of up to `max_body` bytes that arrive within `seconds`."""
        self._max_body = max_body
        self._max_values = _MOST_VALUES + max_texts
        self._seconds = seconds
        self._held = 0
        self._held_replies = 0
        self._turn = asyncio.Lock()

    async def read_json(self, request: Request) -> Any:
        """Return the content of a body.

        Raises:
            RequestError: it is not JSON, too long, too slow or has too many values, or there are too many bodies.
        """
        headers = request.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            # a web page can send other types to a server on its reader's machine without asking it first
            message = f"send JSON, with Content-Type: application/json, not {kind[:80] or 'nothing'!r}"
            raise RequestError(message, status=415)
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise RequestError(f"send the body uncompressed, without Content-Encoding: {encoding[:80]}", status=415)
        length = headers.get("content-length")
        if length is not None and "transfer-encoding" in headers:  # a proxy may go by the other one
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
            await asyncio.sleep(0)  # other tasks run before the next body is parsed
            return _parse(body)

    def hold_reply(self, state: RequestState, more: int) -> None:
        """Note that a reply has grown; raise :class:`RequestError` if all replies together are too large."""
        others = self._held_replies - _counted(state.reply_bytes)
        state.reply_bytes += more
        own = _counted(state.reply_bytes)
        self._held_replies = others + own
        if others and own and others + own > _HELD_REPLIES:
            raise _busy("sending")

    def release(self, state: RequestState) -> None:
        """Forget the body and the reply of a request."""
        self._held -= state.held_bytes
        self._held_replies -= _counted(state.reply_bytes)
        state.held_bytes = state.reply_bytes = 0

    def _hold(self, state: RequestState, size: int) -> None:
        more = _counted(size) - state.held_bytes
        if self._held + more > _HELD_BODIES * self._max_body:
            raise _busy("reading")
        self._held += more
        state.held_bytes += more


def _busy(doing: str) -> RequestError:
    return RequestError(f"the server is {doing} too much already; try again", status=429, code="rate_limit_exceeded")


def _counted(size: int) -> int:
    return max(0, size - _SMALL)


def _parse(body: bytearray) -> Any:
    gc.disable()  # it would scan all the values again and again
    try:
        return parse_json(bytes(body))
    finally:
        gc.enable()


class _Values:
    """Counts JSON values as the parts of a body arrive: they are what makes parsing expensive."""

    def __init__(self) -> None:
        self._number = 1
        self._in_string = False
        self._left = b""

    def count(self, part: bytes) -> int:
        """Return the number of values so far: a comma or an opening bracket outside strings starts another one."""
        part = self._left + part
        if (len(part) - len(part.rstrip(b"\\"))) % 2:
            part, self._left = part[:-1], part[-1:]  # it escapes the first byte of the next part
        else:
            self._left = b""
        pieces = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        self._in_string ^= len(pieces) % 2 == 0
        self._number += sum(map(outside.count, (b",", b"[", b"{")))
        return self._number
