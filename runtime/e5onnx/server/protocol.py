"""uvicorn's HTTP on h11, with limits on what a client can hold without sending a request or reading its reply.

h11 decides what a request is. This file only keeps clocks, bounds how much is read at a time, and tells of connections
that it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers do (60), which answer 502 at times otherwise."""
HEAD_BYTES = 64 * 1024
"""Largest head of a request."""
WRITE_TIMEOUT = 30.0
"""Seconds in which a client has to take its reply."""
_HEAD_TIMEOUT = 15.0
"""Seconds in which the head of a request has to arrive."""
_READ_BYTES = 8 * 1024
"""Most bytes read at a time, before others have their turn: in chunks of one byte, h11 takes 25 ms for as many."""

Ended = Literal["malformed", "slow_head", "slow_reader"]
"""Why a connection was ended."""


class Protocol(H11Protocol, asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, on_ended: Callable[[Ended], object], **named: Any) -> None:
        """Take uvicorn's arguments, and a function that is told why the connection was ended, if it was."""
        super().__init__(*arguments, **named)
        self._on_ended = on_ended
        self._buffer = bytearray(_READ_BYTES)
        self._head_clock: asyncio.TimerHandle | None = None
        self._write_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Expect a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # to be told of everything that is not read
        self._keep_head_clock()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the client sent."""
        self.data_received(bytes(self._buffer[:nbytes]))
        self._keep_head_clock()

    def send_400_response(self, msg: str) -> None:
        """End a connection whose bytes are not HTTP."""
        self._on_ended("malformed")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no reply has begun
            super().send_400_response(msg)
        self.transport.close()

    def pause_writing(self) -> None:
        """Give the client time to read."""
        super().pause_writing()
        self._write_clock = self.loop.call_later(WRITE_TIMEOUT, self._end, "slow_reader")

    def resume_writing(self) -> None:
        """Note that it did."""
        super().resume_writing()
        self._stop_write_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_head_clock()
        self._stop_write_clock()
        super().connection_lost(exc)

    def _keep_head_clock(self) -> None:
        """Let the clock run from the first byte of a head until it is complete; a reply in flight is not hurried."""
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
