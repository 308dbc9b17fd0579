"""The server's process: its socket, its signals and its shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import socket
from functools import partial
from types import FrameType

import uvicorn

from ..encoder import Encoder
from ..errors import AddressError
from .app import Service
from .logs import log, log_to_standard_error
from .middleware import is_loopback
from .options import ServerOptions
from .protocol import HEAD_BYTES, KEEP_ALIVE, WRITE_TIMEOUT, Ended, Protocol


def serve(encoder: Encoder, options: ServerOptions) -> None:
    """Serve a model until a signal ends the server.

    SIGTERM and SIGINT turn `/health` red at once. The server then takes requests for `drain_seconds` more, until a load
    balancer has noticed, and answers those in flight before it ends. A second signal ends it at once.

    Raises:
        AddressError: the address is taken or impossible.
    """
    listening = _listen(options.host, options.port)
    log_to_standard_error(options.log_format)
    name, bound = listening.getsockname()[:2]
    service = Service(encoder, options, loopback=is_loopback(name))
    encoder.warmup()

    def on_ended(why: Ended) -> None:
        service.metrics.ended.labels(why).inc()
        log.info({"event": "connection_ended", "why": why})

    gc.collect()
    gc.freeze()  # so that no request pauses while the collector looks through everything that was loaded
    config = uvicorn.Config(
        service.app(),
        http=partial(Protocol, on_ended=on_ended),  # type: ignore[arg-type]  # called like the class
        ws="none",
        loop="asyncio",  # uvloop reads 256 KiB at a time, whatever the protocol says
        timeout_keep_alive=KEEP_ALIVE,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=math.ceil(options.request_timeout + WRITE_TIMEOUT) + 5,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nothing uses the client's address
        server_header=False,
        lifespan="off",
    )
    url = f"http://{f'[{name}]' if ':' in name else name}:{bound}"
    try:
        _Server(config, service, options.drain_seconds, url).run(sockets=[listening])
    finally:
        service.close()
        log.info({"event": "ended"})


class _Server(uvicorn.Server):
    """uvicorn's server, which keeps serving for `drain_seconds` after the signal."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float, url: str) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer, and only then say where: requests and signals are handled from here on."""
        await super().startup(sockets)
        log.info({"event": "listening", "url": self._url})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining at the first signal, and exit at the second."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        log.info({"event": "draining", "signal": signal.Signals(sig).name})
        asyncio.get_running_loop().call_soon_threadsafe(self._exit_later)

    def _exit_later(self) -> None:
        asyncio.get_running_loop().call_later(self._drain_seconds, setattr, self, "should_exit", True)


def _listen(host: str, port: int) -> socket.socket:
    try:
        with contextlib.ExitStack() as if_it_fails:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listening = if_it_fails.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(2048)  # before the log says so
            if_it_fails.pop_all()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "this is not the name of a host"
        raise AddressError(f"cannot listen on {host}, port {port}: {why}") from error
    return listening
