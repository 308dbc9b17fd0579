"""The HTTP application: its routes, and what connects them to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..encoder import Encoder
from ..errors import E5OnnxError, ModelFolderError, RequestError
from ..openai_api import EmbeddingsRequest, no_such_model
from ..tokenizer import TokenizedText
from . import tei
from .body import BodyReader
from .metrics import Metrics
from .middleware import (
    ConnectionMiddleware,
    ErrorMiddleware,
    HostMiddleware,
    KeyMiddleware,
    MemoryMiddleware,
    RequestMiddleware,
)
from .options import ServerOptions
from .pages import PAGES, openapi, page
from .request_state import state_of
from .responses import JSONResponse, error_response, to_json
from .scheduler import Scheduler
from .tokenization import Tokenization

OPEN_PATHS = frozenset(("/health", "/ping", "/openapi.json", *PAGES))
"""Readable without a key: by load balancers, kubelets, and people who have yet to enter their key in the page."""
_MOST_TOKEN_BYTES = 16 * 2**20
"""Largest reply of `/tokenize`, where a token takes some 70 bytes. Sending a larger one would block the event loop."""

Answer = TypeVar("Answer")


class Service:
    """One model being served."""

    def __init__(self, encoder: Encoder, options: ServerOptions, *, loopback: bool = False) -> None:
        """Start the threads that run the model; :meth:`close` ends them.

        Args:
            encoder: the model.
            options: the limits, keys and so on.
            loopback: whether the server listens on the loopback interface only.
        """
        self.encoder = encoder
        self.options = options
        self.names = list(dict.fromkeys(options.served_model_name)) or [encoder.manifest.checkpoint]
        self.draining = False
        self.scheduler = Scheduler(
            encoder,
            worker_encoder=_worker_encoder(encoder),
            max_waiting_tokens=options.max_waiting_tokens,
            max_waiting_requests=options.max_waiting_requests,
            observe=lambda run: self.metrics.observe(run),
        )
        self.metrics = Metrics(encoder, self.scheduler)
        self._loopback = loopback
        self._bodies = BodyReader(max_body=options.max_body, max_texts=options.max_texts, seconds=options.body_timeout)
        self._tokenization = Tokenization()

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        errors = (HTTPException, E5OnnxError, ClientDisconnect, Exception)
        starlette = Starlette(routes=self.routes(), exception_handlers=dict.fromkeys(errors, error_response))
        starlette.router.redirect_slashes = False  # a redirect would lead to the host that the client names
        app: ASGIApp = KeyMiddleware(starlette, api_keys=self.options.api_keys, open_paths=OPEN_PATHS)
        app = HostMiddleware(app, loopback=self._loopback, allowed_hosts=self.options.allowed_hosts)
        app = ErrorMiddleware(app, is_draining=lambda: self.draining)
        app = MemoryMiddleware(app, release=self._bodies.release)
        app = RequestMiddleware(app, metrics=self.metrics, paths=[route.path for route in self.routes()])
        return ConnectionMiddleware(app, is_draining=lambda: self.draining)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.named_model, methods=["GET"]),
            Route("/embed", partial(self.embed, read=tei.EmbedRequest.from_json), methods=["POST"]),
            Route("/similarity", partial(self.embed, read=tei.SimilarityRequest.from_json), methods=["POST"]),
            Route("/", partial(self.embed, read=tei.root_request), methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/info", self.info, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ping", self.ping, methods=["GET"]),
            Route("/metrics", self.metrics_page, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            *(Route(path, page(path), methods=["GET"]) for path in PAGES),
        ]

    def close(self) -> None:
        """Run what waits, then end the threads."""
        self.scheduler.close()
        self._tokenization.close()

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings` of OpenAI."""
        asked = EmbeddingsRequest.from_json(
            await self._bodies.read_json(request),
            models=self.names,
            dimension=self.encoder.dimension,
            shorter_dimensions=self.encoder.shorter_dimensions,
            default_role=self.options.default_role,
            limits=self.options.limits,
        )
        prompt, normalize = self.encoder.tokenizer.prompt_for(asked.role), self.encoder.manifest.normalize
        tokenized, vectors = await self._unless_gone(request, self._embedded(request, asked, prompt, normalize))
        content = asked.reply(vectors, tokenized, normalize=normalize, floats=lambda vector: vector)
        return self._held(request, JSONResponse(content))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models` of OpenAI."""
        return JSONResponse({"object": "list", "data": [self._model_object(name) for name in self.names]})

    async def named_model(self, request: Request) -> Response:
        """`GET /v1/models/{name}` of OpenAI."""
        name = request.path_params["name"]
        if name not in self.names:
            raise no_such_model(name, self.names)
        return JSONResponse(self._model_object(name))

    async def embed(
        self,
        request: Request,
        *,
        read: Callable[[Any, Encoder, ServerOptions], tei.EmbedRequest | tei.SimilarityRequest],
    ) -> Response:
        """`POST /embed`, `/similarity` and `/` of text-embeddings-inference."""
        asked = read(await self._bodies.read_json(request), self.encoder, self.options)
        work = self._embedded(request, asked, asked.prompt, asked.normalize)
        _, vectors = await self._unless_gone(request, work)
        return self._held(request, JSONResponse(asked.reply(vectors)))

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize` of text-embeddings-inference."""
        content = await self._bodies.read_json(request)
        asked = tei.TokenizeRequest.from_json(content, self.encoder, self.options)

        def tokenize(piece: Sequence[str], start: int) -> list[bytes]:
            """Return items of the reply as JSON: writing so many would block the event loop."""
            tokens = self.encoder.tokenizer.tokens(piece, asked.prompt, special_tokens=asked.special_tokens)
            return [to_json([token._asdict() for token in each]) for each in tokens]

        def hold(items: Sequence[bytes]) -> None:
            state = state_of(request)
            self._bodies.hold_reply(state, sum(map(len, items)))
            if state.reply_bytes > _MOST_TOKEN_BYTES:
                message = f"the tokens take more than {_MOST_TOKEN_BYTES:,} bytes: send several requests"
                raise RequestError(message, status=413, param="inputs")

        items = await self._unless_gone(request, self._tokenization.run(asked.texts, tokenize, hold))
        return Response(b"[%b]" % b",".join(items), media_type="application/json")

    async def info(self, request: Request) -> Response:
        """`GET /info` of text-embeddings-inference."""
        return JSONResponse(tei.info(self.encoder, self.options))

    async def health(self, request: Request) -> Response:
        """`GET /health`: whether to send requests here. It is 503 after the first signal."""
        return JSONResponse({"status": "draining"}, 503) if self.draining else await self.ping(request)

    async def ping(self, request: Request) -> Response:
        """`GET /ping`: whether the process works. It is 503 if the process should be replaced."""
        return JSONResponse({"status": "ok"}) if self.scheduler.works else JSONResponse({"status": "failed"}, 503)

    async def metrics_page(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        return Response(self.metrics.page(), media_type=Metrics.media_type)

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return JSONResponse(openapi(secured=bool(self.options.api_keys)))

    def _model_object(self, name: str) -> dict[str, Any]:
        """Return a model of OpenAI's list; `root`, the name of what really runs, is vLLM's."""
        root = self.encoder.manifest.checkpoint
        return {"id": name, "object": "model", "created": 0, "owned_by": "e5onnx", "root": root}

    def _held(self, request: Request, response: Response) -> Response:
        self._bodies.hold_reply(state_of(request), len(response.body))
        return response

    async def _embedded(
        self,
        request: Request,
        asked: EmbeddingsRequest | tei.EmbedRequest | tei.SimilarityRequest,
        prompt: str,
        normalize: bool,
    ) -> tuple[list[TokenizedText], NDArray[np.float32]]:
        """Return the tokens of the texts and their vectors `[texts, dimension]`."""
        tokenizer = self.encoder.tokenizer
        tokenized = await self._tokenization.run(
            asked.texts, lambda piece, start: tokenizer.tokenize(piece, prompt, start=start)
        )
        asked.check(tokenized, tokenizer)
        vectors = await self.scheduler.embed(tokenized, normalize=normalize)
        state = state_of(request)
        state.texts, state.tokens = len(tokenized), sum(len(text.ids) for text in tokenized)
        self.metrics.texts.inc(len(tokenized))
        self.metrics.truncated.inc(sum(text.is_cut for text in tokenized))
        return tokenized, vectors

    async def _unless_gone(self, request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Await work; cancel it if the client disconnects or it takes too long."""
        timeout = self.options.request_timeout
        with anyio.move_on_after(timeout) as scope:
            watch = asyncio.create_task(_cancel_if_gone(request, scope))
            try:
                return await work
            finally:
                gone = watch.done()
                watch.cancel()
        if gone:
            raise ClientDisconnect
        raise RequestError(f"not done within {timeout:.0f} s: the server is busy, or the request too large", status=503)


def _worker_encoder(encoder: Encoder) -> Encoder | None:
    """Return the same model with one thread for the workers; None for OpenVINO, which would run their work in turns."""
    if encoder.provider == "openvino" or encoder.threads == 1:
        return None
    worker = Encoder(**encoder.arguments(), threads=1)
    if worker.fingerprint != encoder.fingerprint:
        path = encoder.arguments()["model"]
        raise ModelFolderError(f"{path} was replaced by another model while the server was loading it: start it again")
    worker.warmup()
    return worker


async def _cancel_if_gone(request: Request, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
