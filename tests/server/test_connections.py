"""Connections that say nothing, too little, or nonsense."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from e5onnx.server import protocol
from serving import Server

_POSTS = ("/v1/embeddings", "/embed", "/similarity", "/tokenize", "/")
_KEYS: tuple[str, ...] = (
    "input",
    "inputs",
    "model",
    "encoding_format",
    "dimensions",
    "input_type",
    "truncate",
    "prompt_name",
)
_KEYS += ("source_sentence", "sentences", "parameters", "normalize", "add_special_tokens", "user")
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)  # lone surrogates, too
    | st.sampled_from(("float", "base64", "query", "error", "e5-small-v2")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_KEYS) | st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=12,
)


def connect(url: str) -> socket.socket:
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port or 80), timeout=10)


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(_POSTS), content=_JSON, ascii_only=st.booleans())
def test_any_json_is_answered_or_refused(server: Server, path: str, content: Any, ascii_only: bool) -> None:
    body = json.dumps(content, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    reply = httpx.post(server.url + path, content=body, headers={"content-type": "application/json"}, timeout=60)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text
    answer = json.loads(reply.content, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    if reply.status_code != 200:
        assert isinstance(answer["error"], str) or answer["error"]["message"]


@settings(max_examples=150, deadline=None)
@given(
    st.binary(min_size=1, max_size=200)
    | st.builds(
        lambda path, head, body: b"POST " + path + b" HTTP/1.1\r\n" + head + b"\r\n\r\n" + body,
        st.sampled_from([path.encode() for path in (*_POSTS, "/%ff", "//", "*")]),
        st.sampled_from([b"Host: localhost", b"Content-Length: -1", b"Content-Length: 5\r\nTransfer-Encoding: chunked", b":"]),
        st.binary(max_size=30),
    )
)
def test_bytes_that_are_no_http_end_their_own_connection_only(server: Server, sent: bytes) -> None:
    with connect(server.url) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = connection.recv(65536)
    assert b" 500 " not in received.partition(b"\r\n")[0]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server with our protocol, which waits half a second for the head of a request, or to be read."""
    monkeypatch.setattr(protocol, "_HEAD_TIMEOUT", 0.5)
    monkeypatch.setattr(protocol, "WRITE_TIMEOUT", 0.5)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        body = b"ok" * (10**7 if scope["path"] == "/large" else 1)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    server = uvicorn.Server(uvicorn.Config(app, http=protocol.Protocol, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_head_that_never_ends_is_hung_up_on(impatient: str, sent: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_second_head_that_never_ends_is_hung_up_on(impatient: str) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1000).endswith(b"ok")
        connection.sendall(b"GET /")
        assert connection.recv(1) == b""


def test_pauses_between_requests_and_in_bodies_are_nobodys_business(impatient: str) -> None:
    with connect(impatient) as connection:
        for _ in range(2):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{")
            time.sleep(0.7)
            connection.sendall(b"}")
            assert connection.recv(1000).endswith(b"ok")
            time.sleep(0.7)


def test_bytes_that_begin_no_request_do_not_keep_a_connection(impatient: str) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1000).endswith(b"ok")
        connection.sendall(b"\r\n")
        assert connection.recv(1) == b""


def test_a_client_that_does_not_read_is_hung_up_on(impatient: str) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(2**20):
                received += len(part)
    assert received < 2 * 10**7


def test_a_head_without_end_is_refused(server: Server) -> None:
    with connect(server.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        answer = b""
        with contextlib.suppress(OSError):
            for _ in range(1000):
                connection.sendall(b"X-Long: " + b"x" * 8000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert httpx.get(f"{server.url}/health", headers={"X-Long": "x" * 30_000}).status_code == 200


def test_many_requests_on_one_connection_are_no_long_head(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for _ in range(3):
            assert client.post("/embed", json={"inputs": ["a b " * 20_000], "truncate": True}).status_code == 200
            assert client.get("/health").status_code == 200


def test_the_wish_for_another_protocol_is_passed_over(server: Server) -> None:
    wish = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    reply = httpx.post(f"{server.url}/embed", json={"inputs": "a"}, headers=wish, timeout=60)
    assert reply.status_code == 200
    assert len(reply.json()[0]) == 384


def test_a_refused_body_is_not_waited_for(server: Server) -> None:
    with connect(server.url) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n{")
        answer = b""
        while part := connection.recv(1000):
            answer += part
    assert b"HTTP/1.1 415 " in answer
    assert b"connection: close" in answer.lower()
