"""uvicorn's HTTP protocol on h11, which ends connections whose clients neither send a request nor read a reply.

h11 parses requests. This file adds timeouts, bounds how much is read at a time, and reports connections that it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: if load balancers (60) kept it longer, some requests would get 502."""
HEAD_BYTES = 64 * 1024
"""Largest head of a request."""
WRITE_TIMEOUT = 30.0
"""Seconds that a client has to read its reply."""
_HEAD_TIMEOUT = 15.0
"""Seconds that a client has to send the head of a request."""
_READ_BYTES = 8 * 1024
"""Most bytes read before other connections get their turn. h11 needs 25 ms if they are chunks of one byte."""

Ended = Literal["malformed", "slow_head", "slow_reader"]
"""Why a connection was ended."""


class Protocol(H11Protocol, asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, on_ended: Callable[[Ended], object], **named: Any) -> None:
        """Take uvicorn's arguments, and a function that is called with the reason if the connection is ended."""
        super().__init__(*arguments, **named)
        self._on_ended = on_ended
        self._buffer = bytearray(_READ_BYTES)
        self._head_clock: asyncio.TimerHandle | None = None
        self._write_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that pause_writing is called whenever anything is unread
        self._keep_head_clock()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return the buffer to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle bytes from the client."""
        self.data_received(bytes(self._buffer[:nbytes]))
        self._keep_head_clock()

    def send_400_response(self, msg: str) -> None:
        """End a connection whose bytes are not HTTP."""
        self._on_ended("malformed")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no reply has begun
            super().send_400_response(msg)
        self.transport.close()

    def pause_writing(self) -> None:
        """Start the timeout of a client that does not read."""
        super().pause_writing()
        self._write_clock = self.loop.call_later(WRITE_TIMEOUT, self._end, "slow_reader")

    def resume_writing(self) -> None:
        """Stop that timeout."""
        super().resume_writing()
        self._stop_write_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timeouts."""
        self._stop_head_clock()
        self._stop_write_clock()
        super().connection_lost(exc)

    def _keep_head_clock(self) -> None:
        """Let the timeout run until the next head is complete. It does not run while a request is being answered."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_clock()
        elif self._head_clock is None:
            self._head_clock = self.loop.call_later(_HEAD_TIMEOUT, self._end, "slow_head")

    def _stop_head_clock(self) -> None:
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None

    def _stop_write_clock(self) -> None:
        if self._write_clock is not None:
            self._write_clock.cancel()

    def _end(self, why: Ended) -> None:
        self._on_ended(why)
        self.transport.abort()
