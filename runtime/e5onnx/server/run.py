"""The server's process: its socket, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import socket
from dataclasses import replace
from functools import partial
from types import FrameType

import uvicorn

from ..encoder import Encoder
from ..errors import AddressError
from .app import Service, Settings
from .logs import log_to_standard_error
from .middleware import is_loopback, log
from .protocol import HEAD_BYTES, KEEP_ALIVE, WRITE_TIMEOUT, Ended, Protocol


def serve(encoder: Encoder, settings: Settings, *, host: str, port: int, drain_seconds: float) -> None:
    """Serve a model until a signal ends it.

    SIGTERM and SIGINT turn `/health` red at once; requests are taken for `drain_seconds` more, until a load balancer
    has noticed, and what is in flight then is answered before the process ends. A second signal ends it at once.

    Raises:
        AddressError: the address is taken or impossible.
    """
    listening = _listen(host, port)
    log_to_standard_error()
    name, bound = listening.getsockname()[:2]
    service = Service(encoder, replace(settings, loopback=is_loopback(name)))
    encoder.warmup()

    def on_ended(why: Ended) -> None:
        service.metrics.ended.labels(why).inc()
        log.info({"event": "connection_ended", "why": why})

    gc.collect()
    gc.freeze()  # what is loaded stays: no pause of a request is spent on looking through it
    config = uvicorn.Config(
        service.app(),
        http=partial(Protocol, on_ended=on_ended),  # type: ignore[arg-type]  # called like the class
        ws="none",
        loop="asyncio",  # uvloop would read 256 KiB at a time, whatever the protocol says
        timeout_keep_alive=KEEP_ALIVE,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=math.ceil(settings.request_timeout + WRITE_TIMEOUT) + 5,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody asks for the client's address
        server_header=False,
        lifespan="off",
    )
    log.info({"event": "listening", "url": f"http://{f'[{name}]' if ':' in name else name}:{bound}"})
    try:
        _Server(config, service, drain_seconds).run(sockets=[listening])
    finally:
        service.close()
        log.info({"event": "ended"})


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
        log.info({"event": "draining", "signal": signal.Signals(sig).name})
        asyncio.get_running_loop().call_soon_threadsafe(self._end_later)

    def _end_later(self) -> None:
        asyncio.get_running_loop().call_later(self._drain_seconds, setattr, self, "should_exit", True)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)  # before anybody is told that it does
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "this is no name of a host"
        raise AddressError(f"cannot listen on {host}, port {port}: {why}") from error
    return listening
