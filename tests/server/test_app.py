"""The application: with the clients that people use, over sockets and without."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from e5onnx import Encoder, ModelFolderError
from e5onnx.server.app import Service
from e5onnx.server.options import ServerOptions
from e5onnx.server.scheduler import Run
from helpers import near
from serving import Server, answers, connect, running, serving, wait_for
from texts import TEXTS


def test_a_model_that_was_replaced_while_it_is_loaded_is_not_served(
    tiny_model: Path, sample_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    encoder = Encoder(folder, threads=2)
    shutil.rmtree(folder)
    shutil.copytree(sample_model, folder)
    with pytest.raises(ModelFolderError, match="model was replaced by another model while the server was loading it"):
        Service(encoder, ServerOptions())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_died_turns_health_red(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run) -> None:
        raise ValueError("a defect")

    assert answers(service, ("/ping", None))[0].status_code == 200
    monkeypatch.setattr(service.metrics, "observe", fail)
    answers(service, ("/embed", {"inputs": "a"}))
    (worker,) = service.scheduler._threads
    worker.join(60)
    for reply in answers(service, ("/ping", None), ("/health", None)):
        assert (reply.status_code, reply.json()) == (503, {"status": "failed"})


def test_vectors_have_the_length_that_was_asked_for(tiny_model: Path) -> None:
    encoder = Encoder(tiny_model, threads=1)
    assert not encoder.manifest.normalize
    service = Service(encoder, ServerOptions())
    texts = ["one", "a second text"]
    *embed, v1 = answers(
        service,
        *(("/embed", {"inputs": texts, "normalize": normalize}) for normalize in (None, True, False)),
        ("/v1/embeddings", {"input": texts}),  # as the checkpoint has them
    )
    vectors = [reply.json() for reply in embed] + [[item["embedding"] for item in v1.json()["data"]]]
    for found, normalized in zip(vectors, (True, True, False, False), strict=True):
        expected = encoder.encode(texts, normalize_embeddings=normalized)  # the checkpoint does not normalise
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    service.close()


def test_tokens_that_are_sent_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenized(*numbers: int) -> list[int]:
        requests = [("/tokenize", {"inputs": ["a " * 20] * number}) for number in numbers]
        return [reply.status_code for reply in answers(service, *requests)]

    (reply,) = answers(service, ("/tokenize", {"inputs": ["a " * 20] * 10}))
    size = len(reply.content)  # and a bracket or a comma beside every item
    monkeypatch.setattr("e5onnx.server.app._MOST_TOKEN_BYTES", size - 11)
    assert tokenized(10) == [200]
    assert tokenized(11) == [413]
    assert tokenized(10) == [200]


def test_the_openai_client_gets_the_encoders_vectors(server: Server, encoder: Encoder) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    name = client.models.list().data[0].id
    assert client.models.retrieve(name).id == name
    reply = client.embeddings.create(model=name, input=TEXTS)  # base64, by default
    near([item.embedding for item in reply.data], encoder.encode_document(TEXTS))
    reply = client.embeddings.create(
        model=name, input="a question", encoding_format="float", extra_body={"input_type": "query"}
    )
    near(reply.data[0].embedding, encoder.encode_query("a question"))
    assert reply.usage.total_tokens == encoder.count_tokens("query: a question")
    with pytest.raises(BadRequestError, match="token ids"):
        client.embeddings.create(model=name, input=[1, 2, 3])
    with pytest.raises(BadRequestError, match="--force-dimensions"):
        client.embeddings.create(model=name, input="a", dimensions=128)
    with pytest.raises(NotFoundError, match="there is no model"):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def test_the_openai_client_gets_bits_as_numbers_only(server: Server, encoder: Encoder) -> None:
    """Without `encoding_format` the client would decode whatever comes as float32."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    bits = np.packbits(encoder.encode_document(TEXTS) > 0, axis=1)
    for output_dtype, expected in (("ubinary", bits), ("binary", bits.astype(int) - 128)):
        extra = {"output_dtype": output_dtype}
        reply = client.embeddings.create(model="e5-small-v2", input=TEXTS, encoding_format="float", extra_body=extra)
        np.testing.assert_array_equal([item.embedding for item in reply.data], expected)
        with pytest.raises(BadRequestError, match="base64 holds float32 only"):
            client.embeddings.create(model="e5-small-v2", input="a", extra_body=extra)


def test_programs_with_a_fixed_name_and_length_work(e5_model: Path, encoder: Encoder, tmp_path: Path) -> None:
    names = ("text-embedding-3-small", "team/embedder")
    expected = encoder.encode_document(TEXTS)[:, :128].astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    options = [*(f"--served-model-name={name}" for name in names), "--force-dimensions"]
    with serving(e5_model, tmp_path / "log", *options) as running:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == list(names)
        for name in names:
            assert client.models.retrieve(name).to_dict()["root"] == "e5-small-v2"
            for form in ("float", "base64"):
                reply = client.embeddings.create(model=name, input=TEXTS, dimensions=128, encoding_format=form)
                assert reply.model == name
                vectors: Any = [item.embedding for item in reply.data]
                near(
                    [np.frombuffer(base64.b64decode(each), "<f4") if form == "base64" else each for each in vectors],
                    expected,
                )
        for name in ("e5-small-v2", "other"):
            with pytest.raises(NotFoundError, match="this is 'text-embedding-3-small' or 'team/embedder'"):
                client.embeddings.create(model=name, input="a")
            with pytest.raises(NotFoundError, match=f"there is no model '{name}'"):
                client.models.retrieve(name)
        with pytest.raises(BadRequestError, match="a whole number from 1 to 384, got 512"):
            client.embeddings.create(model=names[0], input="a", dimensions=512)
        langchain = pytest.importorskip("langchain_openai")
        embeddings = langchain.OpenAIEmbeddings(
            model=names[0],
            base_url=f"{running.url}/v1",
            api_key="none",
            dimensions=128,
            check_embedding_ctx_length=False,
        )
        near(embeddings.embed_documents(TEXTS), expected)
        embed = {"inputs": TEXTS, "dimensions": 128, "truncate": True}
        near(httpx.post(f"{running.url}/embed", json=embed, timeout=60).json(), expected)
        pooled = encoder.encode_document(TEXTS, output_value="pooled_embedding")[:, :128]
        found = httpx.post(f"{running.url}/embed", json=embed | {"normalize": False}, timeout=60).json()
        np.testing.assert_allclose(found, pooled, rtol=1e-5, atol=1e-5)
        refused = httpx.post(f"{running.url}/embed", json={"inputs": "a", "dimensions": 0}, timeout=60)
        assert (refused.status_code, "from 1 to 384, got 0" in refused.json()["error"]) == (422, True)


def test_the_pages_example_runs(server: Server, encoder: Encoder) -> None:
    page = (Path(__file__).parents[2] / "docs/server.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:8080", server.url).replace("intfloat/", ""), names)
    near(names["query"].data[0].embedding, encoder.encode_query("how much protein"))
    near(names["reply"].data[1].embedding, encoder.encode_document("the top of a hill"))


def test_the_asynchronous_client_sends_many_at_once(server: Server, encoder: Encoder) -> None:
    async def requests() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            calls = [client.embeddings.create(model="e5-small-v2", input=text) for text in TEXTS * 3]
            return await asyncio.gather(*calls)

    vectors = [reply.data[0].embedding for reply in asyncio.run(requests())]
    near(vectors, np.tile(encoder.encode_document(TEXTS), (3, 1)), 1e-6)


def test_langchain_embeds_queries_and_documents(server: Server, encoder: Encoder) -> None:
    langchain = pytest.importorskip("langchain_openai")
    options = {"model": "e5-small-v2", "base_url": f"{server.url}/v1", "api_key": "none"}
    embeddings = langchain.OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    near(embeddings.embed_documents(TEXTS), encoder.encode_document(TEXTS))
    queries = langchain.OpenAIEmbeddings(
        **options, check_embedding_ctx_length=False, model_kwargs={"extra_body": {"input_type": "query"}}
    )
    near(queries.embed_query("a question"), encoder.encode_query("a question"))


def test_langchain_that_sends_token_ids_is_told_what_to_set(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    langchain = pytest.importorskip("langchain_openai")
    tiktoken = pytest.importorskip("tiktoken")
    # the real library, with an encoding that needs no download: a token for every byte
    encoding = tiktoken.Encoding(
        "bytes", pat_str=".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", encoding)
    embeddings = langchain.OpenAIEmbeddings(model="e5-small-v2", base_url=f"{server.url}/v1", api_key="none")
    with pytest.raises(BadRequestError, match=r"token ids.*check_embedding_ctx_length=False"):
        embeddings.embed_documents(TEXTS)


@pytest.mark.parametrize(
    ("provider", "precision", "package"), [("openvino", "fp32", "openvino"), ("kernels", "int8", "e5onnx_kernels")]
)
def test_another_provider_serves_its_own_vectors(
    sample_model: Path, tmp_path: Path, provider: Any, precision: Any, package: str
) -> None:
    imported = pytest.importorskip(package)
    if provider == "kernels" and not imported.supports(precision):
        pytest.skip(f"{package} has no {precision} for this processor")
    expected = Encoder(sample_model, provider=provider, precision=precision).encode_document(TEXTS)
    with serving(sample_model, tmp_path / "log", "--provider", provider, "--precision", precision) as running:
        info = httpx.get(f"{running.url}/info").json()
        assert (info["provider"], info["model_dtype"]) == (provider, {"fp32": "float32"}.get(precision, precision))
        near(httpx.post(f"{running.url}/embed", json={"inputs": TEXTS}, timeout=60).json(), expected)
        for text, vector in zip(TEXTS, expected, strict=True):  # one at a time: another way through the scheduler
            near(httpx.post(f"{running.url}/embed", json={"inputs": text}, timeout=60).json()[0], vector)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", b"", 400),
        ("/v1/embeddings", b"{", 400),
        ("/v1/embeddings", b'{"input": NaN}', 400),
        ("/v1/embeddings", b'{"input": "\\ud800"}', 400),
        ("/v1/embeddings", b'{"input": "a", "\\ud800": 1}', 400),
        ("/v1/embeddings", json.dumps({"input": "a", "model": "m" * 100_000}).encode(), 404),
        ("/v1/embeddings", json.dumps({"input": "a", "dimensions": [[]] * 10_000}).encode(), 400),
        ("/v1/embeddings", json.dumps({"input": "a", "dimensions": [[]] * 100_000}).encode(), 413),
        ("/v1/embeddings", b'{"input": "\xff"}', 400),
        ("/v1/embeddings", b'{"input": "a", "input": "b"}', 400),
        ("/v1/embeddings", b"[" * 20_000, 400),
        ("/v1/embeddings", b"[" * 200_000, 413),
        ("/v1/embeddings", b'{"input": ["a", 1]}', 400),
        ("/v1/embeddings", json.dumps({"input": ["a"] * 101}).encode(), 413),
        ("/v1/embeddings", json.dumps({"input": "a" * 100_001}).encode(), 413),
        ("/v1/embeddings", b" " * 2_000_001, 413),
        ("/v1/embeddings", json.dumps({"input": "word " * 600, "truncate": "error"}).encode(), 400),
        ("/embed", b"{}", 422),
        ("/embed", b'{"inputs": []}', 422),
        ("/embed", b'{"inputs": "a", "truncate": "yes"}', 422),
        ("/embed", b'{"inputs": "a", "prompt_name": "other"}', 422),
        ("/embed", json.dumps({"inputs": "a", "prompt_name": "n" * 100_000}).encode(), 422),
        ("/embed", b'{"inputs": "a", "unknown": 1}', 422),
        ("/embed", json.dumps({"inputs": "word " * 600}).encode(), 413),
        ("/similarity", b'{"inputs": {"source_sentence": "a"}}', 422),
        ("/similarity", json.dumps({"inputs": {"source_sentence": "a", "sentences": ["word " * 600]}}).encode(), 413),
        ("/similarity", b'{"inputs": [], "parameters": []}', 422),
        *(
            (path, b'{"inputs": {"source_sentence": "a", "sentences": "b"}, "parameters": %b}' % parameters, 422)
            for path in ("/similarity", "/")
            for parameters in (b'{"truncation_direction": "left"}', b"[]", b"0", b"false", b'""')
        ),
        ("/tokenize", b'{"inputs": null}', 422),
        ("/nothing", b"{}", 404),
        ("/embed/", b"{}", 404),  # a redirect would go to a host that the client names
        ("/info", b"{}", 405),
    ],
)
def test_what_is_wrong_is_said_and_the_server_lives_on(http: httpx.Client, path: str, body: bytes, status: int) -> None:
    reply = http.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert len(reply.content) < 1000  # what was sent is not sent back
    error = reply.json()["error"]
    assert error if isinstance(error, str) else error["message"]
    assert http.get("/health").status_code == 200


def test_what_is_exactly_at_a_limit_is_answered(http: httpx.Client, encoder: Encoder) -> None:
    words = 512 - encoder.count_tokens("passage: ")
    for path, content in (
        ("/v1/embeddings", {"input": "a" * 100_000}),
        ("/v1/embeddings", {"input": ["a"] * 100}),
        ("/v1/embeddings", {"input": "word " * words, "truncate": "error"}),
        ("/embed", {"inputs": "word " * words}),
        ("/tokenize", {"inputs": ["a"] * 100}),
    ):
        assert http.post(path, json=content).status_code == 200
    for size, status in ((2_000_000, 200), (2_000_001, 413)):
        body = b'{"inputs": "a"}'.ljust(size)
        for sent in (body, iter([body[:1000], body[1000:]])):  # with a Content-Length, and without
            reply = http.post("/embed", content=sent, headers={"content-type": "application/json"})
            assert reply.status_code == status


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}],
)
def test_only_json_is_read(http: httpx.Client, headers: dict[str, str]) -> None:
    reply = http.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert reply.status_code == 415
    assert reply.headers["connection"] == "close"


def test_no_other_origin_is_let_in(http: httpx.Client) -> None:
    reply = http.options("/v1/embeddings", headers={"origin": "https://example.org"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


# --- load, and clients that leave


class Held:
    """A service, when its model has begun to run, and whether it may go on."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()


@pytest.fixture
def held(service: Service, monkeypatch: pytest.MonkeyPatch) -> Held:
    """The service, whose runs wait until they are let through."""
    held, run = Held(service), service.encoder.encode_tokenized

    def encode(*arguments: Any, **named: Any) -> Any:
        held.entered.release()
        assert held.open.wait(60)
        return run(*arguments, **named)

    monkeypatch.setattr(service.encoder, "encode_tokenized", encode)
    return held


def test_a_full_queue_is_429_and_the_others_get_their_vectors(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held.service.scheduler._queue, "_max_requests", 1)
    with running(held.service.app(), []) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(httpx.post, f"{url}/embed", json={"inputs": TEXTS[0]}, timeout=60)
        assert held.entered.acquire(timeout=60)
        second = pool.submit(httpx.post, f"{url}/embed", json={"inputs": TEXTS[1]}, timeout=60)
        wait_for(lambda: held.service.scheduler.waiting_requests)
        refused = httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=60)
        held.open.set()
        vectors = [reply.result().json()[0] for reply in (first, second)]
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    assert "connection" not in refused.headers  # it stays open: a busy server has no time for new ones
    near(vectors, held.service.encoder.encode_document(TEXTS[:2], normalize_embeddings=True), 1e-6)


def test_a_request_that_takes_too_long_is_503(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held.service, "options", ServerOptions(request_timeout=0.1))
    (reply,) = answers(held.service, ("/v1/embeddings", {"input": "a"}))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert "not done within" in reply.json()["error"]["message"]
    held.open.set()
    monkeypatch.setattr(held.service, "options", ServerOptions())
    assert answers(held.service, ("/v1/embeddings", {"input": "a"}))[0].status_code == 200


def test_the_work_of_clients_that_left_is_dropped(held: Held) -> None:
    body = json.dumps({"inputs": ["word " * 500] * 50, "truncate": True}).encode()
    head = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(held.service.app(), []) as url:
        with connect(url) as leaving:
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert held.entered.acquire(timeout=60)
        wait_for(lambda: not held.service.scheduler.waiting_tokens)
        wait_for(lambda: 'path="/embed",status="499"} 1.0' in held.service.metrics.page().decode())
        held.open.set()


def test_slow_clients_hold_nobody_up(http: httpx.Client, server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            stack.enter_context(connect(server.url)).sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
