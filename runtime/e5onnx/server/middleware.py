"""What surrounds every request: its connection, its id and line in the log, the host it is meant for, the key."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import RequestError
from .metrics import Metrics

log = logging.getLogger("e5onnx.server")

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]@:/?#\s]+?)\.?)(?::[0-9]*)?", re.IGNORECASE)
_LINGER = 2.0
"""Seconds in which a client may finish a body that nobody reads, so that it gets to read the reply."""


@dataclass
class RequestState:
    """What is noted of a request while it is answered."""

    id: str
    held_bytes: int = 0
    reply_bytes: int = 0
    texts: int = 0
    tokens: int = 0


def state_of(request: Request) -> RequestState:
    """Return what is noted of a request."""
    state: RequestState = request.scope["e5onnx"]
    return state


class ConnectionMiddleware:
    """Ends the connection with a reply that is sent before the body was read, and with every reply at the end."""

    def __init__(self, app: ASGIApp, *, is_draining: Callable[[], bool]) -> None:
        """Wrap an application; connections are not kept while `is_draining`."""
        self._app = app
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        unread, unfinished = _has_body(scope), False

        async def read() -> Message:
            nonlocal unread
            message = await receive()
            unread = bool(message.get("more_body"))
            return message

        async def answer(message: Message) -> None:
            nonlocal unfinished
            if message["type"] == "http.response.start" and (unread or self._is_draining()):
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif message["type"] == "http.response.body" and unread:  # the server would hang up at the end of it
                unfinished = not message.get("more_body")
                message = {**message, "more_body": True}
            await send(message)

        await self._app(scope, read, answer)
        if unfinished:
            with anyio.move_on_after(_LINGER):
                while unread:
                    await read()
            await send({"type": "http.response.body"})


class RequestMiddleware:
    """Gives every request an id, a line in the log and its place in the metrics, and answers what failed."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        paths: Collection[str],
        refuse: Callable[[Request, RequestError], Response],
        is_draining: Callable[[], bool],
        release: Callable[[RequestState], object],
    ) -> None:
        """Wrap an application.

        Args:
            app: the application.
            metrics: where requests are counted.
            paths: those that are counted by name even if no route was reached.
            refuse: makes a reply of an error.
            is_draining: whether the server has been told to end.
            release: is told when a request has been answered and its reply read.
        """
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._refuse = refuse
        self._is_draining = is_draining
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        state = scope["e5onnx"] = RequestState(given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex)
        start, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", state.id.encode()))
            elif not message.get("more_body"):  # the end waits until the rest was read: so long it is in memory
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}
            await send(message)

        request = Request(scope, receive)
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, answer)
        except RequestError as error:
            await self._refuse(request, error)(scope, receive, answer)
        except asyncio.CancelledError:
            if not self._is_draining():  # told to end at once
                raise
        except Exception as error:  # noqa: BLE001 - uvicorn would log it with all that it says, the text among it
            if status == 0:
                log_failure(error, state.id)
                await self._refuse(request, failure(error))(scope, receive, answer)
        finally:
            self._release(state)
            self._metrics.in_flight.dec()
            self._note(scope, state, status, time.perf_counter() - start)

    def _note(self, scope: Scope, state: RequestState, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = route.path if isinstance(route, Route) else scope["path"] if scope["path"] in self._paths else "other"
        path = path.replace(":path}", "}")
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        line = {"event": "request", "id": state.id, "method": scope["method"][:20], "path": path, "status": status}
        if state.texts:
            line |= {"texts": state.texts, "tokens": state.tokens}
        log.info({**line, "milliseconds": round(seconds * 1000, 2)})


class HostMiddleware:
    """Refuses requests that are meant for another host: pages whose name was made to point here (DNS rebinding)."""

    def __init__(self, app: ASGIApp, *, loopback: bool, allowed_hosts: Sequence[str]) -> None:
        """Wrap an application.

        Args:
            app: the application.
            loopback: whether the server listens on the loopback interface only. If it does, it answers to that
                interface's names and to those listed; if not, to any, or, where some are listed, to these and to
                addresses, which health probes use and no page can be made to point at.
            allowed_hosts: names, "*.example.org" for all below one, or "*" for any.
        """
        self._app = app
        self._loopback = loopback
        self._allowed = [host.lower() for host in allowed_hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or raise :class:`RequestError`."""
        if (self._loopback or self._allowed) and "*" not in self._allowed:
            given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
            if match is None or not self._is_allowed((match[1] or match[2]).lower()):
                what = f"the host {given[0][:80]!r}" if len(given) == 1 else "requests without one Host header"
                raise RequestError(f"this server does not answer to {what}; see --allowed-hosts", code="invalid_host")
        await self._app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        for allowed in ("localhost", *self._allowed):
            if host == allowed.removesuffix(".") or (allowed.startswith("*.") and host.endswith(allowed[1:])):
                return True
        return is_loopback(host) if self._loopback else _address(host) is not None


class KeyMiddleware:
    """Refuses requests without one of the keys."""

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], open_paths: Collection[str]) -> None:
        """Wrap an application; `open_paths` can be read without a key, and without any keys everything is open."""
        self._app = app
        self._keys = [key.encode() for key in api_keys]
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or raise :class:`RequestError`."""
        is_open = scope["path"] in self._open_paths and scope["method"] in ("GET", "HEAD")
        if not is_open and not self._is_allowed(dict(scope["headers"]).get(b"authorization", b"")):
            message = "the API key is missing or wrong: send Authorization: Bearer KEY"
            raise RequestError(message, status=401, code="invalid_api_key")
        await self._app(scope, receive, send)

    def _is_allowed(self, authorization: bytes) -> bool:
        if not self._keys:
            return True
        scheme, _, key = authorization.partition(b" ")
        # every key is compared, and in constant time
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return bool(scheme.lower() == b"bearer" and any(matches))


def is_loopback(host: str) -> bool:
    """Return whether this is an address of the loopback interface."""
    address = _address(host)
    return address is not None and address.is_loopback


def failure(error: Exception) -> RequestError:
    """Return what a client is told of a failure."""
    message = "there is not enough memory for this request" if isinstance(error, MemoryError) else "the server failed"
    return RequestError(f"{message} on this request; its log says more", status=500)


def log_failure(error: Exception, identity: str) -> None:
    """Log what failed where, not what the error says: that may quote the text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    log.error({"event": "failure", "id": identity, "error": type(error).__name__, "where": where})


def _has_body(scope: Scope) -> bool:
    """Return whether a request has a body, which in HTTP/1.1 its headers say."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
        for name, value in scope["headers"]
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # Python looks inside a mapped address, ::ffff:127.0.0.1, only from 3.13 on
    return getattr(address, "ipv4_mapped", None) or address
