"""The HTTP interface: OpenAI's embeddings, text-embeddings-inference's shapes, health, metrics.

Every error has a JSON body that says what to do, in OpenAI's shape, or under the paths of text-embeddings-inference in
its. No text of a request is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .. import __version__
from ..checks import json_type
from ..encoder import Encoder
from ..errors import InputValueError, ModelFolderError, RequestError, TextTooLongError
from ..openai_api import EmbeddingsRequest, Limits, shown
from ..tokenizer import Role, TokenizedText
from .body import Bodies
from .metrics import Metrics
from .middleware import ConnectionMiddleware, HostMiddleware, KeyMiddleware, RequestMiddleware, state_of
from .openapi import document
from .replies import HANDLERS, PAGES, json_reply, page, refusal, to_json
from .scheduler import Scheduler
from .tei import read_embed, read_flag, read_object, read_parameters, read_texts
from .tokenizing import Tokenizing

OPEN_PATHS = frozenset(("/health", "/ping", "/openapi.json", *PAGES))
"""Read without a key: by load balancers and kubelets, and by people who have yet to type theirs into the page."""

_MOST_TOKENIZED = 16 * 2**20
"""Bytes of a reply with tokens, of which each takes some 70: more would hold everybody up as they are sent."""

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
    loopback: bool = False
    allowed_hosts: Sequence[str] = ()


class Service:
    """One model being served."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        """Start the threads that run the model; :meth:`close` ends them."""
        self.encoder = encoder
        self.settings = settings
        self.model = encoder.manifest.checkpoint
        self.draining = False
        self.scheduler = Scheduler(
            encoder,
            worker_encoder=_worker_encoder(encoder),
            max_waiting_tokens=settings.max_waiting_tokens,
            max_waiting_requests=settings.max_waiting_requests,
            observe=lambda run: self.metrics.observe(run),
        )
        self.metrics = Metrics(
            encoder,
            waiting_requests=lambda: self.scheduler.waiting_requests,
            waiting_tokens=lambda: self.scheduler.waiting_tokens,
        )
        self._bodies = Bodies(
            max_body=settings.max_body, max_texts=settings.limits.texts, seconds=settings.body_timeout
        )
        self._tokenizing = Tokenizing()

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        starlette = Starlette(routes=self.routes(), exception_handlers=HANDLERS)
        starlette.router.redirect_slashes = False  # to a host that the client names
        app: ASGIApp = KeyMiddleware(starlette, api_keys=self.settings.api_keys, open_paths=OPEN_PATHS)
        app = HostMiddleware(app, loopback=self.settings.loopback, allowed_hosts=self.settings.allowed_hosts)
        app = RequestMiddleware(
            app,
            metrics=self.metrics,
            paths=frozenset(route.path for route in self.routes()),
            refuse=refusal,
            is_draining=lambda: self.draining,
            release=self._bodies.release,
        )
        return ConnectionMiddleware(app, is_draining=lambda: self.draining)

    def routes(self) -> list[Route]:
        """Return what answers at which path."""
        return [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.named_model, methods=["GET"]),
            Route("/embed", self.embed, methods=["POST"]),
            Route("/similarity", self.similarity, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/info", self.info, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ping", self.ping, methods=["GET"]),
            Route("/metrics", self.metrics_page, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/", self.embed_or_compare, methods=["POST"]),
            *(Route(path, page(path), methods=["GET"]) for path in PAGES),
        ]

    def close(self) -> None:
        """Run what waits, then end the threads."""
        self.scheduler.close()
        self._tokenizing.close()

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`, as OpenAI's."""
        content = await self._bodies.read_json(request)
        asked = EmbeddingsRequest.from_json(
            content,
            model=self.model,
            dimension=self.encoder.dimension,
            default_role=self.settings.default_role,
            limits=self.settings.limits,
        )

        def check(tokenized: Sequence[TokenizedText]) -> None:
            asked.check(tokenized, self.encoder.tokenizer)

        prompt = self.encoder.tokenizer.prompt_for(asked.role)
        embedding = self._embedded(request, asked.texts, prompt, check, self.encoder.manifest.normalize)
        tokenized, vectors = await self._unless_gone(request, embedding)
        content = asked.reply(vectors, tokenized, model=self.model, floats=lambda vector: vector)
        return self._held(request, json_reply(content))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`, as OpenAI's."""
        return json_reply({"object": "list", "data": [self._model_object()]})

    async def named_model(self, request: Request) -> Response:
        """`GET /v1/models/{name}`, as OpenAI's."""
        name = request.path_params["name"]
        if name != self.model:
            message = f"the model {shown(name)} is not here; this is {self.model!r}"
            raise RequestError(message, status=404, param="model", code="model_not_found")
        return json_reply(self._model_object())

    async def embed(self, request: Request) -> Response:
        """`POST /embed`, as text-embeddings-inference's: a list of vectors."""
        return await self._embed(request, await self._bodies.read_json(request))

    async def similarity(self, request: Request) -> Response:
        """`POST /similarity`, as text-embeddings-inference's: the cosine of one sentence with each of several."""
        return await self._compare(request, await self._bodies.read_json(request))

    async def embed_or_compare(self, request: Request) -> Response:
        """`POST /`: one of these two, as clients of Hugging Face's inference endpoints send them."""
        content = await self._bodies.read_json(request)
        if isinstance(content, dict) and isinstance(content.get("inputs"), dict):
            return await self._compare(request, content)
        return await self._embed(request, content)

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`, as text-embeddings-inference's."""
        content = read_object(await self._bodies.read_json(request), ("inputs", "add_special_tokens", "prompt_name"))
        texts = read_texts(content.get("inputs"), self.settings.limits)
        name = content.get("prompt_name")
        prompt = "" if name is None else self._prompt(name)
        special = read_flag(content, "add_special_tokens", True)

        def tokenize(piece: Sequence[str], start: int) -> list[bytes]:
            """Return the reply's items: so many tokens are too many to write in the event loop."""
            tokens = self.encoder.tokenizer.tokens(piece, prompt, special_tokens=special)
            return [to_json([token._asdict() for token in each]) for each in tokens]

        def hold(items: Sequence[bytes]) -> None:
            state = state_of(request)
            self._bodies.hold_reply(state, sum(map(len, items)))
            if state.reply_bytes > _MOST_TOKENIZED:
                message = f"the tokens take more than {_MOST_TOKENIZED:,} bytes: send several requests"
                raise RequestError(message, status=413, param="inputs")

        items = await self._unless_gone(request, self._tokenizing.run(texts, tokenize, hold))
        return Response(b"[%b]" % b",".join(items), media_type="application/json")

    async def info(self, request: Request) -> Response:
        """`GET /info`: the model and the limits, with text-embeddings-inference's names where it has them."""
        manifest, settings = self.encoder.manifest, self.settings
        return json_reply(
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
        """`GET /health`: whether to send requests here. 503 as soon as the server has been told to end."""
        return json_reply({"status": "draining"}, 503) if self.draining else await self.ping(request)

    async def ping(self, request: Request) -> Response:
        """`GET /ping`: whether the process is sound. 503 if it should be replaced."""
        return json_reply({"status": "ok"}) if self.scheduler.works else json_reply({"status": "failed"}, 503)

    async def metrics_page(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        return Response(self.metrics.page(), media_type=Metrics.media_type)

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return json_reply(document(secured=bool(self.settings.api_keys)))

    def _model_object(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "created": 0, "owned_by": "e5onnx"}

    def _prompt(self, name: Any, role: Role | None = None) -> str:
        """Return the prompt of that name, or without a name that of a role."""
        if name is not None and not isinstance(name, str):
            message = f"'prompt_name' must be a string, got {json_type(name)}"
            raise RequestError(message, status=422, param="prompt_name")
        try:
            return self.encoder.tokenizer.prompt_for(role or self.settings.default_role, prompt_name=name)
        except InputValueError as error:
            raise RequestError(str(error)[:200], status=422, param="prompt_name") from error  # it repeats the name

    async def _embed(self, request: Request, content: Any) -> Response:
        checked = read_embed(content, self.encoder.dimension)
        texts = read_texts(checked.get("inputs"), self.settings.limits)
        prompt = self._prompt(checked.get("prompt_name"))
        check = self._too_long_unless(read_flag(checked, "truncate", False))
        embedding = self._embedded(request, texts, prompt, check, read_flag(checked, "normalize", True))
        _, vectors = await self._unless_gone(request, embedding)
        return self._held(request, json_reply(list(vectors)))

    async def _compare(self, request: Request, content: Any) -> Response:
        checked = read_object(content, ("inputs", "parameters"))
        inputs = read_object(checked.get("inputs"), ("source_sentence", "sentences"))
        parameters = read_parameters(checked.get("parameters"))
        source = inputs.get("source_sentence")
        if not isinstance(source, str):
            message = f"'source_sentence' must be a text, got {json_type(source)}"
            raise RequestError(message, status=422, param="source_sentence")
        sentences = read_texts(inputs.get("sentences"), self.settings.limits, "sentences")
        texts = [*read_texts(source, self.settings.limits, "source_sentence"), *sentences]
        # a symmetric task: one prompt for both sides, that of queries
        prompt = self._prompt(parameters.get("prompt_name"), "query")
        check = self._too_long_unless(read_flag(parameters, "truncate", False))
        _, vectors = await self._unless_gone(request, self._embedded(request, texts, prompt, check, True))
        return json_reply([float(score) for score in self.encoder.similarity(vectors[:1], vectors[1:])[0]])

    def _held(self, request: Request, reply: Response) -> Response:
        self._bodies.hold_reply(state_of(request), len(reply.body))
        return reply

    def _too_long_unless(self, truncate: bool) -> Callable[[Sequence[TokenizedText]], None]:
        """Return a check for texts that would be cut."""

        def check(tokenized: Sequence[TokenizedText]) -> None:
            if truncate:
                return
            for position, text in enumerate(tokenized):
                try:
                    self.encoder.tokenizer.check_length(text, f"the text at position {position}", '"truncate": true')
                except TextTooLongError as error:
                    raise RequestError(str(error), status=413, param="inputs") from error

        return check

    async def _embedded(
        self,
        request: Request,
        texts: Sequence[str],
        prompt: str,
        check: Callable[[Sequence[TokenizedText]], None],
        normalize: bool,
    ) -> tuple[list[TokenizedText], NDArray[np.float32]]:
        """Return the tokens of texts and their vectors `[texts, dimension]`; `check` may refuse them in between."""
        tokenizer = self.encoder.tokenizer
        tokenized = await self._tokenizing.run(
            texts, lambda piece, start: tokenizer.tokenize(piece, prompt, start=start)
        )
        check(tokenized)
        vectors = await self.scheduler.embed(tokenized, normalize=normalize)
        state = state_of(request)
        state.texts, state.tokens = len(tokenized), sum(len(text.ids) for text in tokenized)
        self.metrics.texts.inc(len(tokenized))
        self.metrics.truncated.inc(sum(text.is_cut for text in tokenized))
        return tokenized, vectors

    async def _unless_gone(self, request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Await work, and cancel it if the client goes away or it takes too long."""
        timeout = self.settings.request_timeout
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
    """Return the same model for workers of one thread each, if that is of use: OpenVINO's would run in turns."""
    if encoder.provider != "cpu" or encoder.threads == 1:
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
