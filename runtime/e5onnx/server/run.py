"""The server's process: its socket, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..encoder import Encoder
from ..errors import E5OnnxError
from .app import Service, Settings, log

_KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers do (60), which answer 502 at times otherwise."""
_HEAD_TIMEOUT = 15.0
"""Seconds in which the head of a request has to arrive."""


class AddressError(E5OnnxError, OSError):
    """The server cannot listen where it was told to."""


def serve(encoder: Encoder, settings: Settings, *, host: str, port: int, drain_seconds: float) -> None:
    """Serve a model until a signal ends it.

    SIGTERM and SIGINT turn `/health` red at once; requests are taken for `drain_seconds` more, until a load balancer
    has noticed, and what is in flight then is answered before the process ends. A second signal ends it at once.

    Raises:
        AddressError: the address is taken or impossible.
    """
    listening = _listen(host, port)
    _log_to_standard_error()
    service = Service(encoder, settings)
    encoder.warmup()
    config = uvicorn.Config(
        service.app(),
        http=_Protocol,
        timeout_keep_alive=_KEEP_ALIVE,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
    )
    name, bound = listening.getsockname()[:2]
    log.info(json.dumps({"event": "listening", "url": f"http://{f'[{name}]' if ':' in name else name}:{bound}"}))
    try:
        _Server(config, service, drain_seconds).run(sockets=[listening])
    finally:
        service.close()
        log.info(json.dumps({"event": "ended"}))


class _Server(uvicorn.Server):
    """uvicorn's server, which ends later than told."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at the first signal, and end at the second."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        log.info(json.dumps({"event": "draining", "signal": signal.Signals(sig).name}))
        asyncio.get_running_loop().call_soon_threadsafe(self._end_later)

    def _end_later(self) -> None:
        asyncio.get_running_loop().call_later(self._drain_seconds, setattr, self, "should_exit", True)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which hangs up on clients whose requests never get beyond their head."""

    _hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._stop_expecting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._stop_expecting()
        self._hang_up = self.loop.call_later(_HEAD_TIMEOUT, self.transport.close)

    def _stop_expecting(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise AddressError(f"cannot listen on {host}, port {port}: ports are 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)  # before anybody is told that it does
    except OSError as error:
        raise AddressError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return listening


def _log_to_standard_error() -> None:
    """Write a line of JSON for every event. What uvicorn says of the process is no event, its errors are."""
    handler = logging.StreamHandler(sys.stderr)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    errors = logging.getLogger("uvicorn.error")
    errors.addHandler(handler)
    errors.setLevel(logging.ERROR)
    errors.propagate = False
