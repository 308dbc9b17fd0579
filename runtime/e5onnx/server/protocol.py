"""uvicorn's HTTP, which also bounds what a client can hold without sending a request or reading its reply."""

from __future__ import annotations

import asyncio
import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers do (60), which answer 502 at times otherwise."""
WRITE_TIMEOUT = 30.0
"""Seconds in which a client has to take more of its reply."""
_HEAD_TIMEOUT = 15.0
"""Seconds in which the head of a request has to arrive."""
_HEAD_BYTES = 64 * 1024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """One connection."""

    _in_body = False
    _head_bytes = 0
    """That came since the last head was complete or, if that has a body, since its last part."""
    _got_further = False
    """Whether a head was complete, or part of a body came, with the bytes at hand."""
    _hang_up: asyncio.TimerHandle | None = None
    _give_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Expect the head of a request."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        self._got_further = False
        begins = not self._in_body and self._head_bytes == 0
        super().data_received(_without_upgrade(data) if begins else data)
        if self._got_further:
            self._head_bytes = 0
            return
        idle = self.cycle is None or self.cycle.response_complete
        if self._hang_up is None and idle:  # bytes that begin no request, yet stop uvicorn's own clock
            self._expect_head()
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Note that a head is complete."""
        self._got_further = self._in_body = True
        self._stop_expecting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._got_further = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that what comes next is a head."""
        self._in_body = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Hang up on a client that does not read."""
        super().pause_writing()
        self._give_up = self.loop.call_later(WRITE_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it reads."""
        super().resume_writing()
        self._stop_giving_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._stop_expecting()
        self._stop_giving_up()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._stop_expecting()
        self._hang_up = self.loop.call_later(_HEAD_TIMEOUT, self.transport.close)

    def _stop_expecting(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None

    def _stop_giving_up(self) -> None:
        if self._give_up is not None:
            self._give_up.cancel()
            self._give_up = None


def _without_upgrade(data: bytes) -> bytes:
    """Return the beginning of a request without its wish for another protocol, which a server may pass over.

    Java's HTTP client and `curl --http2` express it with every request, and httptools drops the bodies of those.
    """
    end = data.find(b"\r\n\r\n")
    head = data[: end if end >= 0 else len(data)]
    return _UPGRADE.sub(b"\r\nx-upgrade:", head) + data[len(head) :] if b"pgrade" in head else data
