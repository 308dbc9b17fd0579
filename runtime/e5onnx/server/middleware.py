"""ASGI middleware: connections, request ids with log and metrics, errors, memory, hosts, API keys."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Callable, Collection, Sequence

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import RequestError
from .logs import log
from .metrics import Metrics
from .request_state import RequestState
from .responses import error_response

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]@:/?#\s]+?)\.?)(?::[0-9]*)?", re.IGNORECASE)
_LINGER = 2.0
"""Seconds that a client has to finish a body that nobody reads, so that it gets to read the reply."""


class ConnectionMiddleware:
    """Closes the connection after a reply that was sent before the body was read, and after every reply at the end."""

    def __init__(self, app: ASGIApp, *, is_draining: Callable[[], bool]) -> None:
        self.app = app
        self.is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        headers = Headers(scope=scope)
        unread = "transfer-encoding" in headers or headers.get("content-length", "").strip("0") != ""
        unfinished = False

        async def note_body() -> Message:
            nonlocal unread
            message = await receive()
            unread = bool(message.get("more_body"))
            return message

        async def send_close(message: Message) -> None:
            nonlocal unfinished
            if message["type"] == "http.response.start" and (unread or self.is_draining()):
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif (
                message["type"] == "http.response.body" and unread
            ):  # uvicorn would close the connection at the end of the reply
                unfinished = not message.get("more_body")
                message = {**message, "more_body": True}
            await send(message)

        await self.app(scope, note_body, send_close)
        if unfinished:
            with anyio.move_on_after(_LINGER):
                while unread:
                    await note_body()
            await send({"type": "http.response.body"})


class RequestMiddleware:
    """Gives every request an id and a :class:`RequestState`, logs it and counts it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Collection[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths  # counted by name even if an error kept the request from its route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        given = Headers(scope=scope).get("x-request-id", "")
        state = scope["e5onnx"] = RequestState(given if _ID.fullmatch(given) else uuid.uuid4().hex)
        start, status = time.perf_counter(), 0

        async def send_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", state.id.encode()))
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, send_id)
        finally:
            self.metrics.in_flight.dec()
            self._note(scope, state, status, time.perf_counter() - start)

    def _note(self, scope: Scope, state: RequestState, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = route.path if isinstance(route, Route) else scope["path"] if scope["path"] in self.paths else "other"
        path = path.replace(":path}", "}")
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        line = {"event": "request", "id": state.id, "method": scope["method"][:20], "path": path, "status": status}
        if state.texts:
            line |= {"texts": state.texts, "tokens": state.tokens}
        log.info({**line, "milliseconds": round(seconds * 1000, 2)})


class MemoryMiddleware:
    """Reports when the client has read its reply, after which neither body nor reply is in memory."""

    def __init__(self, app: ASGIApp, *, release: Callable[[RequestState], object]) -> None:
        self.app = app
        self.release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""

        async def send_end_alone(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})  # sending the end waits until this has been read
                message = {"type": "http.response.body"}
            await send(message)

        try:
            await self.app(scope, receive, send_end_alone)
        finally:
            self.release(scope["e5onnx"])


class ErrorMiddleware:
    """Answers requests that raised an error. uvicorn would log its message, which may quote a text."""

    def __init__(self, app: ASGIApp, *, is_draining: Callable[[], bool]) -> None:
        self.app = app
        self.is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except asyncio.CancelledError:
            if not self.is_draining():  # a second signal cancels what is left
                raise
        except Exception as error:  # noqa: BLE001 - it is answered and logged
            if not started:
                await (await error_response(Request(scope), error))(scope, receive, send)


class HostMiddleware:
    """Refuses requests for other hosts: a web page whose name was made to point here (DNS rebinding) sends those.

    A server on the loopback interface answers to the names of that interface and to `allowed_hosts`. Any other server
    answers to every name or, if some are listed, to these and to addresses: health probes use addresses, and no page
    can be made to point at one. "*.example.org" allows every name below example.org, "*" allows all.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.loopback = loopback
        self.allowed_hosts = ["localhost", *(host.lower() for host in allowed_hosts)]
        self.allow_any = "*" in allowed_hosts or not (loopback or allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or raise :class:`RequestError`."""
        if not self.allow_any:
            given = Headers(scope=scope).getlist("host")
            match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
            if match is None or not self._is_allowed((match[1] or match[2]).lower()):
                what = f"the host {given[0][:80]!r}" if len(given) == 1 else "requests without exactly one Host header"
                raise RequestError(f"this server does not answer to {what}; see --allowed-hosts", code="invalid_host")
        await self.app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        for allowed in self.allowed_hosts:
            if host == allowed.removesuffix(".") or (allowed.startswith("*.") and host.endswith(allowed[1:])):
                return True
        return is_loopback(host) if self.loopback else _address(host) is not None


class KeyMiddleware:
    """Refuses requests without one of the API keys, save reads of `open_paths`. Without any keys it refuses none."""

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], open_paths: Collection[str]) -> None:
        self.app = app
        self.api_keys = [key.encode() for key in api_keys]
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or raise :class:`RequestError`."""
        is_open = not self.api_keys or (scope["path"] in self.open_paths and scope["method"] in ("GET", "HEAD"))
        if not is_open and not self._is_allowed(Headers(scope=scope).get("authorization", "")):
            message = "the API key is missing or wrong: send Authorization: Bearer KEY"
            raise RequestError(message, status=401, code="invalid_api_key")
        await self.app(scope, receive, send)

    def _is_allowed(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        # every key is compared, each in constant time
        matches = [hmac.compare_digest(key.strip().encode(), known) for known in self.api_keys]
        return scheme.lower() == "bearer" and any(matches)


def is_loopback(host: str) -> bool:
    """Return whether this is an address of the loopback interface."""
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # before Python 3.13, is_loopback is false for the mapped address ::ffff:127.0.0.1
    return getattr(address, "ipv4_mapped", None) or address
