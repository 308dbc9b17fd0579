"""What surrounds every request: its id, the key, the time it takes, its line in the log, and that nothing escapes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..openai_api import RequestError
from .metrics import Metrics

log = logging.getLogger("e5onnx.server")

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_BODY_UNREAD = frozenset((401, 408, 413, 415, 429))
"""Statuses of replies that may come before the body was read; if it was not, the connection ends with them."""


@dataclass
class Exchange:
    """What is noted of a request while it is answered: for its line in the log, and what it holds of the memory."""

    id: str
    body_bytes: int = 0
    body_was_read: bool = False
    texts: int = 0
    tokens: int = 0


def exchange_of(request: Request) -> Exchange:
    """Return what is noted of a request."""
    exchange: Exchange = request.scope["e5onnx"]
    return exchange


class Front:
    """The application that wraps all others."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        paths: Collection[str],
        open_paths: Collection[str],
        api_keys: Sequence[str],
        refuse: Callable[[Request, RequestError], Response],
        is_draining: Callable[[], bool],
        release: Callable[[Exchange], object],
    ) -> None:
        """Wrap an application.

        Args:
            app: the application.
            metrics: where requests are counted.
            paths: those that are counted by name even if no route was reached.
            open_paths: those for which no key is needed.
            api_keys: the keys; without any, everything is open.
            refuse: makes a reply of an error.
            is_draining: whether the server has been told to end: connections are not kept then.
            release: is told when a request has been answered.
        """
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._open_paths = open_paths
        self._keys = [key.encode() for key in api_keys]
        self._refuse = refuse
        self._is_draining = is_draining
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        exchange = Exchange(given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex)
        scope["e5onnx"] = exchange
        start, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", exchange.id.encode()))
                if (status in _BODY_UNREAD and not exchange.body_was_read) or self._is_draining():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        request = Request(scope, receive)
        self._metrics.in_flight.inc()
        try:
            if scope["path"] in self._open_paths or self._is_allowed(headers.get(b"authorization", b"")):
                await self._app(scope, receive, answer)
            else:
                message = "the API key is missing or wrong: send Authorization: Bearer KEY"
                error = RequestError(message, status=401, code="invalid_api_key")
                await self._refuse(request, error)(scope, receive, answer)
        except asyncio.CancelledError:
            if not self._is_draining():  # told to end at once
                raise
        except Exception as error:  # noqa: BLE001 - uvicorn would log it with all that it says, the text among it
            if status == 0:
                log_failure(error, exchange.id)
                await self._refuse(request, failure(error))(scope, receive, answer)
        finally:
            self._release(exchange)
            self._metrics.in_flight.dec()
            self._note(scope, exchange, status, time.perf_counter() - start)

    def _note(self, scope: Scope, exchange: Exchange, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = route.path if isinstance(route, Route) else scope["path"] if scope["path"] in self._paths else "other"
        path = path.replace(":path}", "}")
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        line = {"event": "request", "id": exchange.id, "method": scope["method"], "path": path, "status": status}
        if exchange.texts:
            line |= {"texts": exchange.texts, "tokens": exchange.tokens}
        log.info({**line, "milliseconds": round(seconds * 1000, 2)})

    def _is_allowed(self, authorization: bytes) -> bool:
        if not self._keys:
            return True
        scheme, _, key = authorization.partition(b" ")
        # every key is compared, and in constant time
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return bool(scheme.lower() == b"bearer" and any(matches))


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
