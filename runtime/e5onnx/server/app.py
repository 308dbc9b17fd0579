"""The HTTP interface: OpenAI's embeddings, text-embeddings-inference's shapes, health, metrics.

Every error has a JSON body that says what to do, in OpenAI's shape, or under the paths of text-embeddings-inference in
its. No text of a request is logged.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..encoder import Encoder
from ..errors import E5OnnxError, InputValueError
from ..openai_api import EmbeddingsRequest, Limits, RequestError, Role, kind_of, parse_json
from ..tokenizer import DOCUMENT_PROMPTS, QUERY_PROMPTS, TokenizedText
from .metrics import Metrics
from .openapi import document
from .scheduler import QueueFullError, Scheduler
from .tei import read_embed, read_flag, read_object, read_texts

log = logging.getLogger("e5onnx.server")

_INLINE_CHARACTERS = 4_000
"""Texts up to this are tokenised in the event loop, in less time than a thread takes to be woken."""
_PAGES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs.js": ("docs.js", "text/javascript"),
}
"""Path -> file of the folder `page`, and its type."""
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_OPEN_PATHS = frozenset(("/health", "/openapi.json", *_PAGES))
"""For those who have no key: load balancers and kubelets, and people who have yet to type theirs into the page."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Settings:
    """What the operator decides. Sizes are bytes, times seconds."""

    default_role: Role = "document"
    max_body: int = 8 * 2**20
    limits: Limits = field(default_factory=Limits)
    max_waiting_tokens: int = 65_536
    max_waiting_requests: int = 512
    request_timeout: float = 60.0
    body_timeout: float = 15.0
    api_keys: Sequence[str] = ()


class Service:
    """One model being served."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        """Start the thread that runs the model; :meth:`close` ends it."""
        self.encoder = encoder
        self.settings = settings
        self.model = encoder.manifest.checkpoint
        self.draining = False
        self.scheduler = Scheduler(
            encoder,
            max_waiting_tokens=settings.max_waiting_tokens,
            max_waiting_requests=settings.max_waiting_requests,
            observe=lambda run: self.metrics.observe(run),
        )
        self.metrics = Metrics(
            waiting_requests=lambda: self.scheduler.waiting_requests,
            waiting_tokens=lambda: self.scheduler.waiting_tokens,
        )

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        routes = [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.named_model, methods=["GET"]),
            Route("/embed", self.embed, methods=["POST"]),
            Route("/similarity", self.similarity, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/info", self.info, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics_page, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            *(Route(path, _static(path), methods=["GET"]) for path in _PAGES),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _answer_http_error,
            RequestError: _answer_request_error,
            QueueFullError: _answer_queue_full,
            ClientDisconnect: _answer_gone,
            E5OnnxError: _answer_failure,
            Exception: _answer_failure,
        }
        return _Front(Starlette(routes=routes, exception_handlers=handlers), self)

    def close(self) -> None:
        """Run what waits, then end the thread that runs the model."""
        self.scheduler.close()

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`, as OpenAI's."""
        content = await self._content(request)
        asked = EmbeddingsRequest.from_json(
            content,
            model=self.model,
            dimension=self.encoder.dimension,
            default_role=self.settings.default_role,
            limits=self.settings.limits,
        )
        tokenized = await _tokenized(asked.texts, lambda: asked.tokenize(self.encoder))
        vectors = await self._run(request, tokenized)
        return _json(asked.reply(vectors, tokenized, model=self.model, floats=lambda vector: vector))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`, as OpenAI's."""
        return _json({"object": "list", "data": [self._model_object()]})

    async def named_model(self, request: Request) -> Response:
        """`GET /v1/models/{name}`, as OpenAI's."""
        name = request.path_params["name"]
        if name != self.model:
            message = f"the model {name!r} is not here; this is {self.model!r}"
            raise RequestError(message, status=404, param="model", code="model_not_found")
        return _json(self._model_object())

    async def embed(self, request: Request) -> Response:
        """`POST /embed`, as text-embeddings-inference's: a list of vectors."""
        content = read_embed(await self._content(request), self.encoder.dimension)
        texts = read_texts(content.get("inputs"), self.settings.limits)
        normalize = read_flag(content, "normalize", True)
        truncate = read_flag(content, "truncate", False)
        prompt = self._prompt(content.get("prompt_name"))
        vectors = await self._embed(request, texts, prompt, truncate, normalize)
        return _json(list(vectors))

    async def similarity(self, request: Request) -> Response:
        """`POST /similarity`, as text-embeddings-inference's: the cosine of one sentence with each of several."""
        content = read_object(await self._content(request), ("inputs", "parameters"))
        inputs = read_object(content.get("inputs"), ("source_sentence", "sentences"))
        parameters = read_object(content.get("parameters") or {}, ("truncate", "truncation_direction", "prompt_name"))
        source = inputs.get("source_sentence")
        if not isinstance(source, str):
            message = f"'source_sentence' must be a text, got {kind_of(source)}"
            raise RequestError(message, status=422, param="source_sentence")
        sentences = read_texts(inputs.get("sentences"), self.settings.limits, "sentences")
        texts = [*read_texts(source, self.settings.limits, "source_sentence"), *sentences]
        # a symmetric task: one prompt for both sides, that of queries
        prompt = self._prompt(parameters.get("prompt_name"), "query")
        vectors = await self._embed(request, texts, prompt, read_flag(parameters, "truncate", False), True)
        return _json([float(score) for score in self.encoder.similarity(vectors[:1], vectors[1:])[0]])

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`, as text-embeddings-inference's, without the offsets."""
        content = read_object(await self._content(request), ("inputs", "add_special_tokens", "prompt_name"))
        texts = read_texts(content.get("inputs"), self.settings.limits)
        name = content.get("prompt_name")
        prompt = "" if name is None else self._prompt(name)
        special = read_flag(content, "add_special_tokens", True)
        tokens = await asyncio.to_thread(self.encoder.tokenizer.tokens, texts, prompt, special_tokens=special)
        return _json([[token._asdict() for token in each] for each in tokens])

    async def info(self, request: Request) -> Response:
        """`GET /info`: the model and the limits, with text-embeddings-inference's names where it has them."""
        manifest, settings = self.encoder.manifest, self.settings
        return _json(
            {
                "model_id": self.model,
                "model_sha": manifest.revision,
                "model_dtype": {"fp32": "float32", "bf16": "bfloat16"}.get(
                    self.encoder.precision, self.encoder.precision
                ),
                "model_type": {"embedding": {"pooling": manifest.pooling}},
                "dimension": manifest.dimension,
                "prompts": dict(manifest.prompts),
                "default_role": settings.default_role,
                "fingerprint": self.encoder.fingerprint,
                "provider": self.encoder.provider,
                "threads": self.encoder.threads,
                "max_input_length": manifest.max_tokens,
                "max_client_batch_size": settings.limits.texts,
                "max_batch_tokens": settings.max_waiting_tokens,
                "max_concurrent_requests": settings.max_waiting_requests,
                "version": __version__,
            }
        )

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200, or 503 as soon as the server has been told to end."""
        return _json({"status": "draining"}, 503) if self.draining else _json({"status": "ok"})

    async def metrics_page(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return _json(document(secured=bool(self.settings.api_keys)))

    def _model_object(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "created": 0, "owned_by": "e5onnx"}

    def _prompt(self, name: Any, role: str | None = None) -> str:
        """Return the prompt of that name, or without a name that of a role."""
        if name is not None and not isinstance(name, str):
            message = f"'prompt_name' must be a string, got {kind_of(name)}"
            raise RequestError(message, status=422, param="prompt_name")
        names = {"query": QUERY_PROMPTS, "document": DOCUMENT_PROMPTS}.get(role or self.settings.default_role)
        if name is None and names is None:
            return ""
        try:
            return self.encoder.tokenizer.prompt_for(None, name, names or ())
        except InputValueError as error:
            raise RequestError(str(error), status=422, param="prompt_name") from error

    async def _embed(
        self, request: Request, texts: list[str], prompt: str, truncate: bool, normalize: bool
    ) -> NDArray[np.float32]:
        tokenized = await _tokenized(texts, lambda: self.encoder.tokenizer.tokenize(texts, prompt))
        for position, text in enumerate(tokenized):
            if not truncate and text.tokens > self.encoder.max_tokens:
                raise RequestError(
                    f"the text at position {position} has {text.tokens} tokens, the model's maximum is "
                    f'{self.encoder.max_tokens}; split it, or let it be cut with "truncate": true',
                    status=413,
                    param="inputs",
                )
        return await self._run(request, tokenized, normalize)

    async def _run(
        self, request: Request, tokenized: Sequence[TokenizedText], normalize: bool | None = None
    ) -> NDArray[np.float32]:
        if normalize is None:
            normalize = self.encoder.manifest.normalize
        embedding = self.scheduler.embed(tokenized, normalize=normalize)
        vectors = await _unless_gone(request, embedding, self.settings.request_timeout)
        self.metrics.texts.inc(len(tokenized))
        self.metrics.truncated.inc(sum(text.tokens > len(text.ids) for text in tokenized))
        return vectors

    async def _content(self, request: Request) -> Any:
        """Return the content of the body, which may not be too long nor too slow."""
        body = bytearray()
        message = f"the body has more than {self.settings.max_body:,} bytes: send several requests"
        too_long = RequestError(message, status=413)
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.settings.max_body:
            raise too_long

        async def read() -> None:
            async for part in request.stream():
                body.extend(part)
                if len(body) > self.settings.max_body:
                    raise too_long

        try:
            await asyncio.wait_for(read(), self.settings.body_timeout)
        except asyncio.TimeoutError as error:
            message = f"the body did not arrive within {self.settings.body_timeout:.0f} s"
            raise RequestError(message, status=408) from error
        return parse_json(bytes(body))


class _Front:
    """What comes before every route: the key, the time it takes, the line in the log."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._keys = [key.encode() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        if scope["path"] in _OPEN_PATHS or self._is_allowed(scope):
            await self._app(scope, receive, noting_status)
        else:
            error = RequestError(
                "the API key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key"
            )
            response = _json(error.body(), 401, {"www-authenticate": "Bearer"})
            await response(scope, receive, noting_status)
        seconds = time.perf_counter() - start
        route = scope.get("route")
        path = route.path if isinstance(route, Route) else "other"
        self._service.metrics.requests.labels(path, str(status)).inc()
        self._service.metrics.seconds.labels(path).observe(seconds)
        line = {"event": "request", "method": scope["method"], "path": path, "status": status}
        log.info(json.dumps({**line, "milliseconds": round(seconds * 1000, 2)}))

    def _is_allowed(self, scope: Scope) -> bool:
        if not self._keys:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        # every key is compared, and in constant time
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return bool(scheme.lower() == b"bearer" and any(matches))


async def _tokenized(texts: Sequence[str], tokenize: Callable[[], list[TokenizedText]]) -> list[TokenizedText]:
    """Tokenise in this thread if that is quick, and in another if others would wait for it."""
    if sum(map(len, texts)) <= _INLINE_CHARACTERS:
        return tokenize()
    return await asyncio.to_thread(tokenize)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer], timeout: float) -> Answer:
    """Await work, and cancel it if the client goes away or it takes too long."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise RequestError(f"not done within {timeout:.0f} s: the server is busy, or the request too large", status=503)
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _static(path: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    name, media_type = _PAGES[path]
    content = Path(__file__).with_name("page").joinpath(name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, headers=_PAGE_HEADERS, media_type=media_type)

    return answer


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def _error(request: Request, error: RequestError, headers: dict[str, str] | None = None) -> Response:
    if request.url.path.startswith(("/embed", "/similarity", "/tokenize")):
        kinds = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
        kind = kinds.get(error.status, "Validation")
        return _json({"error": str(error), "error_type": kind}, error.status, headers)
    return _json(error.body(), error.status, headers)


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    what = {404: "there is nothing at", 405: f"{request.method} is not for"}.get(error.status_code, error.detail)
    refused = RequestError(f"{what} {request.url.path}", status=error.status_code)
    return _error(request, refused, dict(error.headers) if error.headers else None)


async def _answer_request_error(request: Request, error: RequestError) -> Response:
    return _error(request, error)


async def _answer_queue_full(request: Request, error: QueueFullError) -> Response:
    refused = RequestError(str(error), status=429, code="rate_limit_exceeded")
    return _error(request, refused, {"retry-after": f"{error.retry_after:.0f}"})


async def _answer_gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it; for the log and the metrics


async def _answer_failure(request: Request, error: Exception) -> Response:
    log.error(json.dumps({"event": "failure", "error": type(error).__name__, "message": str(error)[:500]}))
    return _error(request, RequestError("the model failed on this request; see the server's log", status=500))
