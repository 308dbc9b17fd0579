"""The server over real sockets, with the clients that people use."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError, OpenAI

from e5onnx import Encoder
from e5onnx.cli import main
from serving import Server, serving
from texts import TEXTS


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def near(vectors: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(vectors, np.float32), expected, rtol=0, atol=1e-6)


# --- clients


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
    with pytest.raises(BadRequestError, match="384 dimensions"):
        client.embeddings.create(model=name, input="a", dimensions=128)
    with pytest.raises(NotFoundError, match="is not here"):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def test_the_readmes_example_runs(server: Server, encoder: Encoder) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = (each for each in re.findall(r"```py\n(.*?)```", readme, re.DOTALL) if "openai" in each)
    names: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:8080", server.url).replace("intfloat/", ""), names)
    near(names["query"].data[0].embedding, encoder.encode_query("how much protein"))
    near(names["reply"].data[1].embedding, encoder.encode_document("the top of a hill"))


def test_the_asynchronous_client_sends_many_at_once(server: Server, encoder: Encoder) -> None:
    async def requests() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            calls = [client.embeddings.create(model="e5-small-v2", input=text) for text in TEXTS * 10]
            return await asyncio.gather(*calls)

    vectors = [reply.data[0].embedding for reply in asyncio.run(requests())]
    near(vectors, np.tile(encoder.encode_document(TEXTS), (10, 1)))


def test_langchain_embeds_queries_and_documents(server: Server, encoder: Encoder) -> None:
    langchain = pytest.importorskip("langchain_openai")
    options = {"model": "e5-small-v2", "base_url": f"{server.url}/v1", "api_key": "none"}
    embeddings = langchain.OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    near(embeddings.embed_documents(TEXTS), encoder.encode_document(TEXTS))
    queries = langchain.OpenAIEmbeddings(
        **options, check_embedding_ctx_length=False, model_kwargs={"extra_body": {"input_type": "query"}}
    )
    near(queries.embed_query("a question"), encoder.encode_query("a question"))


def test_another_provider_serves_its_own_vectors(sample_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    expected = Encoder(sample_model, provider="openvino", precision="fp32").encode_document(TEXTS)
    with serving(sample_model, tmp_path / "log", "--provider", "openvino", "--precision", "fp32") as running:
        assert httpx.get(f"{running.url}/info").json()["provider"] == "openvino"
        near(httpx.post(f"{running.url}/embed", json={"inputs": TEXTS}, timeout=60).json(), expected)


def test_curl_with_the_shapes_of_text_embeddings_inference(server: Server, encoder: Encoder) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(path: str, content: Any) -> Any:
        command = ["curl", "--silent", "--fail-with-body", f"{server.url}{path}", "-d", json.dumps(content)]
        command += ["-H", "content-type: application/json"]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    near(curl("/embed", {"inputs": TEXTS[0]}), encoder.encode_document(TEXTS[:1]))
    near(curl("/embed", {"inputs": TEXTS, "prompt_name": "query", "truncate": True}), encoder.encode_query(TEXTS))
    pooled = encoder.encode_document(TEXTS[:2], normalize_embeddings=False)
    np.testing.assert_allclose(curl("/embed", {"inputs": TEXTS[:2], "normalize": False}), pooled, rtol=1e-5, atol=1e-5)
    sentences = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:4]}
    near(
        curl("/similarity", {"inputs": sentences}),
        encoder.similarity(encoder.encode_query(TEXTS[0]), encoder.encode_query(TEXTS[1:4]))[0],
    )
    tokens = curl("/tokenize", {"inputs": ["hello world"]})[0]
    assert [token["text"] for token in tokens] == ["[CLS]", "hello", "world", "[SEP]"]
    assert [token["special"] for token in tokens] == [True, False, False, True]


# --- what it says of itself


def test_info_health_and_metrics(http: httpx.Client, encoder: Encoder) -> None:
    info = http.get("/info").json()
    assert (info["dimension"], info["max_input_length"]) == (384, 512)
    assert info["fingerprint"] == encoder.fingerprint
    assert http.get("/health").json() == {"status": "ok"}

    def metric(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    names = ("e5onnx_texts_total", "e5onnx_truncated_texts_total", "e5onnx_tokens_total", "e5onnx_batch_texts_sum")
    before = {name: metric(name) for name in names}
    reply = http.post("/v1/embeddings", json={"input": ["word " * 600, "short"]}).json()
    assert reply["truncated"] == 1
    after = {name: metric(name) for name in names}
    tokens = 512 + encoder.count_tokens("passage: short")
    assert [after[name] - before[name] for name in names] == [2, 1, tokens, 2]
    assert metric('e5onnx_requests_total{path="/v1/embeddings",status="200"}') >= 1
    assert (metric("e5onnx_waiting_tokens"), metric("e5onnx_waiting_requests")) == (0, 0)


def test_the_log_has_a_line_a_request_and_no_text(http: httpx.Client, server: Server, encoder: Encoder) -> None:
    http.post("/v1/embeddings", json={"input": "a secret text"}, headers={"x-request-id": "secretly-1"})
    http.post("/embed", json={"inputs": 1, "another secret": 2}, headers={"x-request-id": "secretly-2"})
    http.post("/v1/embeddings", json={"input": ["word " * 600, ""]}, headers={"x-request-id": "cut-1"})
    cut = server.logged("cut-1")
    assert (cut["texts"], cut["tokens"]) == (2, 512 + encoder.count_tokens("passage: "))
    last = [server.logged(f"secretly-{number}") for number in (1, 2)]
    assert [(line["path"], line["status"]) for line in last] == [("/v1/embeddings", 200), ("/embed", 422)]
    assert not any("secret" in str(line[name]) for line in last for name in line if name != "id")
    assert "secret text" not in server.log_file.read_text()
    assert "another secret" not in server.log_file.read_text()


# --- what is refused


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


def test_a_body_without_a_length_is_limited_too(http: httpx.Client) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(300):
            yield b" " * 10_000

    reply = http.post("/v1/embeddings", content=parts(), headers={"content-type": "application/json"})
    assert reply.status_code == 413


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}],
)
def test_only_json_is_read(http: httpx.Client, headers: dict[str, str]) -> None:
    reply = http.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert reply.status_code == 415
    assert reply.headers["connection"] == "close"


def test_requests_have_an_id(http: httpx.Client, server: Server) -> None:
    reply = http.post("/v1/embeddings", json={"input": ["a", "b"]}, headers={"x-request-id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"
    other = http.get("/nothing", headers={"x-request-id": 'no"line'}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", other)
    mine, others = server.logged("mine-1"), server.logged(other)
    assert (mine["path"], mine["status"], mine["texts"]) == ("/v1/embeddings", 200, 2)
    assert (others["path"], others["status"]) == ("other", 404)


def test_hugging_faces_client_finds_its_paths(server: Server, encoder: Encoder) -> None:
    client = InferenceClient(server.url, timeout=60)
    near(client.feature_extraction("a passage"), encoder.encode_document(["a passage"]))
    first, *others = encoder.encode_query(["one", "two", "three"])
    near(client.sentence_similarity("one", ["two", "three"]), encoder.similarity(first, others)[0])


def test_no_other_origin_is_let_in(http: httpx.Client) -> None:
    reply = http.options("/v1/embeddings", headers={"origin": "https://example.org"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_keys_are_asked_for_and_never_logged(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\ufefffirst-key\n\nsecond-key\n")
    log = tmp_path / "log"
    with serving(tiny_model, log, "--api-key-file", str(keys), E5ONNX_API_KEY="third-key") as running:
        for key in ("first-key", "second-key", "third-key"):
            client = OpenAI(base_url=f"{running.url}/v1", api_key=key)
            assert client.models.list().data
            assert httpx.get(f"{running.url}/info", headers={"authorization": f"bearer {key}"}).status_code == 200
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=f"{running.url}/v1", api_key="fourth-key").models.list()
        assert httpx.get(f"{running.url}/metrics").status_code == 401
        refused = httpx.post(f"{running.url}/embed", json={"inputs": "a"})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["error"].startswith("the API key is missing or wrong")
        for path in ("/health", "/ping", "/", "/page.js", "/openapi.json"):
            assert httpx.get(f"{running.url}{path}").status_code == 200
    assert "-key" not in log.read_text()


# --- load, clients that leave, and the end


def test_a_full_queue_is_429_and_nobody_is_lost(e5_model: Path, encoder: Encoder, tmp_path: Path) -> None:
    texts = ["word " * 200] * 8
    expected = encoder.encode_document(texts)
    with serving(e5_model, tmp_path / "log", "--max-waiting-tokens", "2000") as running:

        def request(_: int) -> int:
            reply = httpx.post(f"{running.url}/v1/embeddings", json={"input": texts}, timeout=120)
            if reply.status_code == 200:
                near([item["embedding"] for item in reply.json()["data"]], expected)
            else:
                assert reply.status_code == 429
                assert int(reply.headers["retry-after"]) >= 1
                assert "connection" not in reply.headers  # it is kept: a busy server has no time for new ones
                assert reply.json()["error"]["code"] == "rate_limit_exceeded"
            return reply.status_code

        with ThreadPoolExecutor(12) as pool:
            statuses = list(pool.map(request, range(24)))
    assert set(statuses) == {200, 429}


def test_a_request_that_takes_too_long_is_503(e5_model: Path, tmp_path: Path) -> None:
    with serving(e5_model, tmp_path / "log", "--request-timeout", "2") as running:
        body = {"input": ["word " * 500] * 100}
        reply = httpx.post(f"{running.url}/v1/embeddings", json=body, timeout=60)
        assert reply.status_code == 503
        assert "not done within" in reply.json()["error"]["message"]
        assert httpx.post(f"{running.url}/v1/embeddings", json={"input": "a"}, timeout=60).status_code == 200


def test_work_of_clients_that_left_is_dropped(http: httpx.Client, server: Server) -> None:
    body = json.dumps({"input": ["word " * 500] * 100}).encode()  # some ten seconds of work
    address = httpx.URL(server.url)

    def given_up() -> int:
        return sum(line.get("status") == 499 for line in server.log())

    before = given_up()
    for _ in range(3):
        with socket.create_connection((address.host, address.port)) as leaving:
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.3)
    until = time.monotonic() + 60
    while given_up() < before + 3 or "e5onnx_waiting_tokens 0.0" not in http.get("/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_slow_clients_hold_nobody_up(http: httpx.Client, server: Server) -> None:
    address = httpx.URL(server.url)
    slow = [socket.create_connection((address.host, address.port)) for _ in range(50)]
    try:
        for connection in slow:
            head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
def test_a_signal_turns_health_red_first_and_what_is_in_flight_is_answered(
    e5_model: Path, encoder: Encoder, tmp_path: Path
) -> None:
    texts = ["word " * 100] * 100
    replies: list[httpx.Response] = []
    with serving(e5_model, tmp_path / "log", "--drain-seconds", "3") as running:

        def request() -> None:
            replies.append(httpx.post(f"{running.url}/v1/embeddings", json={"input": texts}, timeout=120))

        thread = threading.Thread(target=request)
        thread.start()
        address, body = httpx.URL(running.url), b'{"inputs": "slow"}'
        uploading = socket.create_connection((address.host, address.port), timeout=60)
        head = f"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        uploading.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:5])
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert httpx.get(f"{running.url}/health").status_code == 503
        assert httpx.get(f"{running.url}/ping").status_code == 200  # or it would be replaced before it is done
        assert httpx.post(f"{running.url}/embed", json={"inputs": "late"}, timeout=60).status_code == 200
        thread.join()
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                socket.create_connection((address.host, address.port)).close()
                time.sleep(0.02)
        time.sleep(2)
        uploading.sendall(body[5:])
        assert uploading.recv(2**20).startswith(b"HTTP/1.1 200 ")
        uploading.close()
        assert running.process.wait(30) == 0
    near([item["embedding"] for item in replies[0].json()["data"]], encoder.encode_document(texts))


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
def test_a_second_signal_ends_it_at_once(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path / "log", "--drain-seconds", "3600") as running, httpx.Client() as client:
        assert client.get(f"{running.url}/health").status_code == 200  # and stays connected
        address = httpx.URL(running.url)
        uploading = socket.create_connection((address.host, address.port))
        head = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        uploading.sendall(head.encode())
        running.process.send_signal(signal.SIGTERM)
        while (reply := client.get(f"{running.url}/health")).status_code == 200:
            time.sleep(0.02)
        assert reply.headers["connection"] == "close"
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        assert running.log()[-1]["event"] == "ended"
        uploading.close()
        (upload,) = (line for line in running.log() if line.get("path") == "/embed")
        assert upload["status"] == 0  # it was not waited for, or it would have been told


@pytest.mark.parametrize("path", ["/v1/models/", "/"])
def test_a_long_path_is_not_sent_back(http: httpx.Client, path: str) -> None:
    reply = http.get(path + "a" * 60_000)
    assert (reply.status_code, len(reply.content) < 500) == (404, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["/nowhere"], "there is no folder /nowhere"),
        (["MODEL", "--port", "TAKEN"], "cannot listen on 127.0.0.1, port [0-9]+: Address already in use"),
        (["MODEL", "--host", "a..b"], "cannot listen on a..b, port 8080: this is not the name of a host"),
        (["MODEL", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["MODEL", "--api-key-file", "EMPTY"], "does not hold a key"),
        (["MODEL", "--api-key-file", "LATIN"], "latin is not UTF-8 text"),
        (["MODEL", "--api-key-file", "GREEK"], "holds a key that is not printable ASCII"),
        (["MODEL", "--api-key-file", "DIVIDED"], "holds a key that is not printable ASCII"),
        (["MODEL", "--api-key-file", "/nowhere"], "No such file"),
    ],
)
def test_what_it_cannot_start_with_is_one_line(
    tiny_model: Path, tmp_path: Path, server: Server, options: list[str], message: str
) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    latin, greek, divided = tmp_path / "latin", tmp_path / "greek", tmp_path / "divided"
    divided.write_bytes(b"key\x0ck\x1ck")  # no short keys
    latin.write_bytes(b"cl\xe9")
    greek.write_text("κλειδί")
    names = {"MODEL": str(tiny_model), "TAKEN": str(httpx.URL(server.url).port), "EMPTY": str(empty)}
    names |= {"LATIN": str(latin), "GREEK": str(greek), "DIVIDED": str(divided)}
    command = [sys.executable, "-m", "e5onnx", "serve", *(names.get(option, option) for option in options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("e5onnx: error: ")
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "must be 0 to 65535"),
        (["--max-texts", "0"], "must be at least 1"),
        (["--request-timeout", "nan"], "must be 0 to 86400 seconds"),
        (["--drain-seconds", "-1"], "must be 0 to 86400 seconds"),
        (["--allowed-hosts", "a.example,https://b.example"], "holds 'https://b.example', which is not a name"),
        (["--allowed-hosts", "a.example:80"], "holds 'a.example:80', which is not a name"),
        (["--allowed-hosts", "a.*.example"], "holds 'a.*.example', which is not a name"),
    ],
)
def test_impossible_options_are_wrong_usage(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "MODEL", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_blank_key_is_no_open_server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("E5ONNX_API_KEY", "  ")
    assert main(["serve", str(tiny_model)]) == 1
    assert "E5ONNX_API_KEY does not hold a key" in capsys.readouterr().err
