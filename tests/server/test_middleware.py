"""Hosts and keys, for every route, including those added later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from e5onnx import Encoder
from e5onnx.server.app import OPEN_PATHS, Service
from e5onnx.server.options import ServerOptions

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
_BODIES = ({"inputs": "a"}, {"input": "a"}, {"inputs": {"source_sentence": "a", "sentences": ["b"]}})


@pytest.fixture
def locked(tiny_encoder: Encoder) -> Iterator[Service]:
    service = Service(tiny_encoder, ServerOptions(api_keys=["key"]))
    yield service
    service.close()


def test_no_route_and_no_method_runs_the_model_without_a_key(locked: Service) -> None:
    paths = [route.path.replace("{name:path}", "name") for route in locked.routes()]
    assert set(paths) >= OPEN_PATHS

    async def run() -> None:
        transport = httpx.ASGITransport(locked.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in [*paths, "/nothing", "/v1/", "/Embed", "/%65mbed"]:
                for method in _METHODS:
                    for body in _BODIES:
                        reply = await client.request(method, path, json=body)
                        if method in ("GET", "HEAD") and path in OPEN_PATHS:
                            assert reply.status_code == 200, (method, path)
                        else:
                            assert reply.status_code == 401, (method, path)
                            assert reply.headers["www-authenticate"] == "Bearer"
            assert "e5onnx_texts_total 0.0" in locked.metrics.page().decode()
            for scheme in ("Bearer", "bearer", "BEARER"):
                reply = await client.post("/", json=_BODIES[0], headers={"authorization": f"{scheme} key"})
                assert reply.status_code == 200

    asyncio.run(run())
    assert "e5onnx_texts_total 3.0" in locked.metrics.page().decode()


@pytest.mark.parametrize(
    "header", ["", "key", "Basic key", "Bearer", "Bearer ", "Bearer  ", "Bearer ke", "Bearer keys"]
)
def test_what_is_not_a_key_opens_nothing(locked: Service, header: str) -> None:
    assert status(locked, [(b"authorization", header.encode())], path="/info") == 401


def status(service: Service, headers: Sequence[tuple[bytes, bytes]], path: str = "/health") -> int:
    """Return the status of a reply to exactly these headers."""
    statuses: list[int] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}

    async def call() -> None:
        await service.app()({**scope, "scheme": "http", "headers": list(headers)}, receive, send)

    asyncio.run(call())
    (only,) = statuses
    return only


_LOOPBACK = ["localhost", "LocalHost:8080", "localhost.", "localhost.:80", "127.0.0.1", "127.0.0.1:8080", "127.9.9.9"]
_LOOPBACK += ["[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]", "[::ffff:7f00:1]"]
_ADDRESSES = ["10.0.0.7:8080", "192.168.1.1", "[fe80::1]:80", "[2001:db8::1]"]
_NONSENSE = [
    "",
    ":",
    ":80",
    "[",
    "[]",
    "[::1",
    "::1",
    "localhost:80:80",
    "localhost:x",
    "x@localhost",
    "localhost/",
    ".",
]
_NONSENSE += ["localhost, evil.example", "localhost evil.example", "localhost?", "localhost#", "localhost.."]
_NONSENSE += ["[localhost]"]
_FOREIGN = ["evil.example", "evil.example:80", "localhost.evil.example", "evil.localhost", "127.0.0.1.evil.example"]


@pytest.mark.parametrize(
    ("loopback", "listed", "accepted", "refused"),
    [
        (True, [], _LOOPBACK, [*_ADDRESSES, *_NONSENSE, *_FOREIGN, "api.example.org"]),
        (
            True,
            ["API.example.org", "*.example.net"],
            [*_LOOPBACK, "api.example.org", "Api.Example.Org.:80", "a.example.net", "a.b.example.net:1"],
            [*_ADDRESSES, *_NONSENSE, *_FOREIGN, "b.api.example.org", "example.net", "aexample.net"],
        ),
        (False, [], [*_LOOPBACK, *_ADDRESSES, *_NONSENSE, *_FOREIGN], []),
        (False, ["a.example."], [*_LOOPBACK, *_ADDRESSES, "a.example", "a.example."], [*_NONSENSE, *_FOREIGN]),
        (True, ["*"], [*_LOOPBACK, *_FOREIGN], []),
    ],
)
def test_only_its_own_hosts_are_answered(
    tiny_encoder: Encoder, loopback: bool, listed: list[str], accepted: list[str], refused: list[str]
) -> None:
    service = Service(tiny_encoder, ServerOptions(allowed_hosts=listed), loopback=loopback)
    for host in accepted:
        assert status(service, [(b"host", host.encode())]) == 200, host
    for host in refused:
        assert status(service, [(b"host", host.encode())]) == 400, host
    if refused:
        for headers in ([], [(b"host", b"localhost")] * 2, [(b"host", b"localhost"), (b"host", b"evil.example")]):
            assert status(service, headers) == 400
        assert status(service, [(b"host", b"evil.example")], path="/nothing") == 400
        assert status(service, [(b"host", b"local\xe9host")]) == 400
    service.close()


def test_a_host_that_is_not_a_name_breaks_no_reply(tiny_encoder: Encoder) -> None:
    service = Service(tiny_encoder, ServerOptions())
    for host in ("[", "[::1", "a/b", "a?b"):
        assert status(service, [(b"host", host.encode())], path="/nothing") == 404
        assert status(service, [(b"host", host.encode())], path="/embed") == 405
    service.close()
