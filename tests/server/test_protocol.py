"""Connections: slow clients, malformed requests, where one request ends, and bodies that are not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5onnx import Encoder
from e5onnx.server import middleware, protocol
from e5onnx.server.app import Service
from e5onnx.server.options import ServerOptions
from serving import Server, connect, running, serving, wait_for

_POSTS = ("/v1/embeddings", "/embed", "/similarity", "/tokenize", "/")
_KEYS = "input inputs model encoding_format dimensions input_type truncate prompt_name source_sentence sentences"
_KEYS += " parameters normalize add_special_tokens user output_dtype"
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)  # lone surrogates, too
    | st.sampled_from(("float", "base64", "query", "error", "e5-small-v2")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_KEYS.split()) | st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=12,
)


def head_of(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", "")).encode()


def post(path: str, content: Any, *headers: str) -> bytes:
    body = json.dumps(content).encode()
    return head_of("POST", path, "Content-Type: application/json", *headers, f"Content-Length: {len(body)}") + body


def until_closed(connection: socket.socket) -> bytes:
    """Return what comes until the other side hangs up."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(2**20):
            received += part
    return received


def until(connection: socket.socket, end: bytes) -> bytes:
    """Return what comes up to these bytes."""
    received = b""
    while not received.endswith(end):
        part = connection.recv(1)
        assert part, received
        received += part
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 ([0-9]{3}) ", received)]


def metric(url: str, name: str) -> float:
    (line,) = (line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith(name + " "))
    return float(line.rpartition(" ")[2])


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(_POSTS), content=_JSON, ascii_only=st.booleans())
def test_any_json_is_answered_or_refused(http: httpx.Client, path: str, content: Any, ascii_only: bool) -> None:
    body = json.dumps(content, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    reply = http.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text
    answer = json.loads(reply.content, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    if reply.status_code != 200:
        assert isinstance(answer["error"], str) or answer["error"]["message"]


@settings(max_examples=100, deadline=None)
@given(
    st.binary(min_size=1, max_size=200)
    | st.builds(
        lambda path, head, body: b"POST " + path + b" HTTP/1.1\r\n" + head + b"\r\n\r\n" + body,
        st.sampled_from([path.encode() for path in (*_POSTS, "/%ff", "//", "*")]),
        st.sampled_from(
            [b"Host: localhost", b"Content-Length: -1", b"Content-Length: 5\r\nTransfer-Encoding: chunked", b":"]
        ),
        st.binary(max_size=30),
    )
)
def test_bytes_that_are_not_http_end_their_own_connection_only(server: Server, http: httpx.Client, sent: bytes) -> None:
    with connect(server.url) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = connection.recv(65536)
    assert b" 500 " not in received.partition(b"\r\n")[0]
    assert http.get("/health").json() == {"status": "ok"}


@dataclass
class Impatient:
    """A server with our protocol in this process, and why it ended connections."""

    url: str
    ended: list[str]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Impatient]:
    """A server that waits half a second for the head of a request, or to be read."""
    monkeypatch.setattr(protocol, "_HEAD_TIMEOUT", 0.5)
    monkeypatch.setattr(protocol, "WRITE_TIMEOUT", 0.5)
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/slow":
            await asyncio.sleep(1.5)
        body = b"ok" * {"/large": 10**7, "/medium": 15_000}.get(scope["path"], 1)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    with running(app, ended, send_buffer=4096) as url:
        yield Impatient(url, ended)


@pytest.fixture
def hasty(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Impatient]:
    """The application, in this process, which waits half a second for bodies and as long for those it does not read."""
    monkeypatch.setattr(middleware, "_LINGER", 0.5)
    service = Service(Encoder(tiny_model, threads=1), ServerOptions(body_timeout=0.5))
    ended: list[str] = []
    with running(service.app(), ended) as url:
        yield Impatient(url, ended)
    service.close()


# --- heads


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_never_ends_is_hung_up_on(impatient: Impatient, sent: bytes) -> None:
    with connect(impatient.url) as connection:
        connection.sendall(sent)
        assert until_closed(connection) == b""
    assert impatient.ended == ["slow_head"]


@pytest.mark.parametrize("sent", [b"G", b"GET /"])
def test_a_second_head_that_never_ends_is_hung_up_on(impatient: Impatient, sent: bytes) -> None:
    with connect(impatient.url) as connection:
        connection.sendall(head_of("GET", "/"))
        until(connection, b"ok")
        connection.sendall(sent)
        assert until_closed(connection) == b""
    assert impatient.ended == ["slow_head"]


def test_a_head_that_trickles_in_is_hung_up_on(impatient: Impatient) -> None:
    with connect(impatient.url) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\n")
        while True:
            connection.sendall(b"X")
            time.sleep(0.1)
    assert impatient.ended == ["slow_head"]


def test_a_reply_in_flight_outlives_the_head_of_the_next_request(impatient: Impatient) -> None:
    with connect(impatient.url) as connection:
        connection.sendall(head_of("GET", "/slow") + b"GET / HTTP/1.1\r\nHo")  # longer than a head may take
        until(connection, b"ok")
        connection.sendall(b"st: localhost\r\n\r\n")
        until(connection, b"ok")
    assert impatient.ended == []


def test_pauses_between_requests_and_in_bodies_are_allowed(impatient: Impatient) -> None:
    with connect(impatient.url) as connection:
        for _ in range(2):
            connection.sendall(head_of("POST", "/", "Content-Length: 2") + b"{")
            time.sleep(0.7)
            connection.sendall(b"}")
            until(connection, b"ok")
            time.sleep(0.7)
    assert impatient.ended == []


def test_a_head_without_end_is_refused(server: Server) -> None:
    with connect(server.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        answer = b""
        with contextlib.suppress(OSError):
            for _ in range(1000):
                connection.sendall(b"X-Long: " + b"x" * 8000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(1000)
    assert answer == b"" or statuses(answer) == [400]
    assert httpx.get(f"{server.url}/health", headers={"X-Long": "x" * 30_000}).status_code == 200


# --- replies


@pytest.mark.parametrize("read_before", [0, 1])
@pytest.mark.parametrize(("path", "more"), [("/large", ()), ("/medium", ("Connection: close",)), ("/medium", ())])
def test_a_client_that_does_not_read_is_hung_up_on(
    impatient: Impatient, path: str, more: tuple[str, ...], read_before: int
) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = httpx.URL(impatient.url)
        connection.connect((address.host, address.port))
        for _ in range(read_before):
            connection.sendall(head_of("GET", "/medium"))
            until(connection, b"ok" * 15_000)
        connection.sendall(head_of("GET", path, *more))
        wait_for(lambda: impatient.ended == ["slow_reader"])
        connection.settimeout(30)
        assert len(until_closed(connection)) < 30_000


def test_a_client_that_goes_away_was_not_a_slow_reader(impatient: Impatient) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = httpx.URL(impatient.url)
        connection.connect((address.host, address.port))
        connection.sendall(head_of("GET", "/large"))
        until(connection, b"ok")
    time.sleep(1)  # longer than a reply may take
    assert impatient.ended == []


@pytest.mark.parametrize(
    ("path", "many", "begin"),
    [
        ("/tokenize", {"inputs": ["a " * 100] * 100}, b"[["),
        ("/embed", {"inputs": ["a"] * 1000}, b"[["),
        ("/v1/embeddings", {"input": ["a"] * 1000}, b'"data":['),
    ],
)
def test_a_reply_counts_until_it_is_read(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, path: str, many: Any, begin: bytes
) -> None:
    monkeypatch.setattr("e5onnx.server.body._HELD_REPLIES", 1)
    service = Service(Encoder(tiny_model, threads=1), ServerOptions())
    with running(service.app(), [], send_buffer=4096) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = httpx.URL(url)
        connection.connect((address.host, address.port))
        connection.sendall(post(path, many, "Connection: close"))
        received = until(connection, begin)
        assert httpx.post(url + path, json=many).status_code == 429
        few = {key: texts[:1] for key, texts in many.items()}
        assert httpx.post(url + path, json=few).status_code == 200
        received += until_closed(connection)
        assert json.loads(received.partition(b"\r\n\r\n")[2])
        wait_for(lambda: httpx.post(url + path, json=many).status_code == 200)
    service.close()


def test_many_requests_on_one_connection_are_not_a_long_head(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for _ in range(3):
            assert client.post("/embed", json={"inputs": ["a b " * 20_000], "truncate": True}).status_code == 200
            assert client.get("/health").status_code == 200


# --- where one request ends and the next begins


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_body_is_not_a_second_request_however_the_head_is_split(server: Server, cut: int) -> None:
    hidden = head_of("GET", "/metrics")
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__", "Upgrade: h2c")
    head = head_of("POST", "/embed", "Content-Type: application/json", *upgrade, f"Content-Length: {len(hidden)}")
    with connect(server.url) as connection:
        connection.sendall(head[:-cut])
        time.sleep(0.02)
        connection.sendall(head[-cut:] + hidden + head_of("GET", "/health", "Connection: close"))
        assert statuses(until_closed(connection)) == [400, 200]


def test_pipelined_requests_keep_their_bodies(server: Server, encoder: Encoder) -> None:
    texts = ["one", "two", "three"]
    upgrade = ("Connection: Upgrade", "Upgrade: h2c")
    sent = b"".join(post("/embed", {"inputs": text}, *upgrade) for text in texts)
    with connect(server.url) as connection:
        connection.sendall(sent + head_of("GET", "/health", "Connection: close"))
        received = until_closed(connection)
    assert statuses(received) == [200] * 4
    vectors = [json.loads(body)[0] for body in re.findall(rb"\r\n\r\n(\[\[.*?\]\])", received)]
    np.testing.assert_allclose(vectors, encoder.encode_document(texts), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 4"),
        ("Content-Length: 4", "Content-Length: 5"),
        ("Content-Length: +4",),
        ("Content-Length : 4",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: \x0bchunked",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("X: a\rContent-Length: 4",),
        ("Host: 127.0.0.1",),
    ],
)
@pytest.mark.parametrize("path", ["/embed", "/health"])
def test_an_ambiguous_request_is_the_last_of_its_connection(
    server: Server, path: str, headers: tuple[str, ...]
) -> None:
    with connect(server.url) as connection:
        head = head_of("POST", path, "Content-Type: application/json", *headers)
        connection.sendall(head + b"0\r\n\r\n" + head_of("GET", "/metrics"))
        received = until_closed(connection)
    (status,) = statuses(received)
    assert status == 400 or (path == "/health" and status == 405)


def test_the_wish_for_another_protocol_is_passed_over(server: Server) -> None:
    wish = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    reply = httpx.post(f"{server.url}/embed", json={"inputs": "a"}, headers=wish, timeout=60)
    assert reply.status_code == 200
    assert len(reply.json()[0]) == 384


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"nonsense\r\n\r\n", [400]),
        (head_of("POST", "/embed", "Content-Type: application/json", "Transfer-Encoding: chunked") + b"zz\r\n", [400]),
        (head_of("GET", "/health", "Transfer-Encoding: chunked") + b"zz\r\n", [400]),
        (head_of("GET", "/health") + b"nonsense\r\n\r\n", [200, 400]),
    ],
)
def test_what_is_not_http_is_counted_and_logged(server: Server, sent: bytes, answers: list[int]) -> None:
    def ended() -> tuple[float, int]:
        counted = metric(server.url, 'e5onnx_ended_connections_total{why="malformed"}')
        return counted, [line["event"] for line in server.log()].count("connection_ended")

    counted, logged = ended()
    with connect(server.url) as connection:
        connection.sendall(sent)
        assert statuses(until_closed(connection)) == answers
    assert ended() == (counted + 1, logged + 1)


def test_what_is_not_http_ends_a_reply_that_waits_for_its_body(
    hasty: Impatient, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(hasty.url) as connection:
        connection.sendall(head_of("GET", "/health", "Transfer-Encoding: chunked"))
        received = until(connection, b"}")  # the reply is there, and the rest of the body may still come
        connection.sendall(b"zz\r\n")
        assert until_closed(connection) == b""
    assert statuses(received) == [200]
    assert hasty.ended == ["malformed"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


# --- bodies


UNREAD = [("GET", "/health"), ("POST", "/nope"), ("PUT", "/embed"), ("GET", "/"), ("DELETE", "/v1/models/x")]


def test_a_body_that_nobody_reads_does_not_keep_the_connection(hasty: Impatient) -> None:
    received: dict[socket.socket, bytes] = {}
    with contextlib.ExitStack() as stack:
        for framing in ("Content-Length: 1000000000", "Transfer-Encoding: chunked"):
            for method, path in UNREAD:
                connection = stack.enter_context(connect(hasty.url))
                connection.sendall(head_of(method, path, framing))
                received[connection] = b""
        trickling, until = set(received), time.monotonic() + 60
        while trickling:
            assert time.monotonic() < until
            time.sleep(0.05)
            for connection in tuple(trickling):
                try:
                    connection.sendall(b"1\r\n \r\n")
                    if part := connection.recv(65536, socket.MSG_DONTWAIT):
                        received[connection] += part
                        continue
                except BlockingIOError:
                    continue
                except ConnectionError:
                    pass
                trickling.remove(connection)
    assert [statuses(each) for each in received.values()] == [[200], [404], [405], [200], [405]] * 2
    assert all(b"connection: close" in each for each in received.values())


def test_a_body_that_is_read_has_a_deadline(hasty: Impatient) -> None:
    with contextlib.ExitStack() as stack:
        connections = []
        for framing in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
            for path in _POSTS:
                connections.append(stack.enter_context(connect(hasty.url)))
                connections[-1].sendall(head_of("POST", path, "Content-Type: application/json", framing))
        for connection in connections:
            received = until_closed(connection)
            assert statuses(received) == [408]
            assert b"connection: close" in received


def test_others_have_their_turn_while_tiny_chunks_are_read() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        turns, size, more = 0, 0, True

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        task.cancel()
        body = f"{size} {turns}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})

    with running(app, []) as url, connect(url) as connection:
        connection.sendall(head_of("POST", "/", "Transfer-Encoding: chunked") + b"1\r\n \r\n" * 50_000 + b"0\r\n\r\n")
        size, turns = (int(number) for number in re.findall(rb"([0-9]+) ([0-9]+)", until_closed(connection))[-1])
    assert size == 50_000
    assert turns > 300_000 / 8192 / 2  # not two or three


def test_small_bodies_that_nobody_reads_are_not_a_next_request(server: Server) -> None:
    with connect(server.url) as connection:
        connection.sendall(head_of("GET", "/health", "Content-Length: 2") + b"{}" + head_of("GET", "/health"))
        assert statuses(until_closed(connection)) == [200]


def test_a_refused_body_is_not_waited_for(hasty: Impatient) -> None:
    with connect(hasty.url) as connection:
        connection.sendall(head_of("POST", "/embed", "Content-Length: 1000000000") + b"{")
        answer = until_closed(connection)
    assert statuses(answer) == [415]
    assert b"connection: close" in answer


def test_a_client_that_sends_all_of_a_refused_body_first_gets_the_reply(server: Server) -> None:
    with connect(server.url) as connection:
        connection.sendall(head_of("POST", "/embed", "Content-Length: 20000000") + b" " * 20_000_000)
        assert statuses(until_closed(connection)) == [415]


def test_a_client_that_expects_100_continue_sends_no_body_in_vain(hasty: Impatient) -> None:
    expect = ("Expect: 100-continue", "Content-Type: application/json")
    for path, length, status in (("/nope", 100, 404), ("/embed", ServerOptions.max_body + 1, 413)):
        with connect(hasty.url) as connection:
            connection.sendall(head_of("POST", path, *expect, f"Content-Length: {length}"))
            assert statuses(until_closed(connection)) == [status]
    with connect(hasty.url) as connection:
        connection.sendall(head_of("POST", "/embed", *expect, "Content-Length: 15", "Connection: close"))
        received = until(connection, b"\r\n\r\n")
        connection.sendall(b'{"inputs": "a"}')
        assert statuses(received + until_closed(connection)) == [100, 200]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process, as Linux has them")
def test_more_connections_than_descriptors_end_by_themselves(tiny_model: Path, tmp_path: Path) -> None:
    import resource

    with serving(tiny_model, tmp_path / "log") as running, contextlib.ExitStack() as stack:
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        heads = [head_of(method, path, "Content-Length: 1000000000") + b"{" for method, path in UNREAD]
        for number in range(80):
            connection = stack.enter_context(connect(running.url))
            connection.sendall(heads[number % len(heads)])
        assert httpx.get(f"{running.url}/health", timeout=60).json() == {"status": "ok"}
        running.log()  # every line is JSON, that of asyncio, too
