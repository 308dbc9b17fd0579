"""Bodies: how many are in memory, and how many JSON values they hold."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from e5onnx.openai_api import parse_json
from e5onnx.server.app import Service
from e5onnx.server.body import _Values

_SIZE = 200_000
_TEXTS = st.text(st.sampled_from('",[]{}:\\\n aé'), max_size=8)
_JSON = st.recursive(
    st.none() | st.integers() | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=20,
)


def values_of(content: Any) -> int:
    """Return how many values begin with a bracket, or with a comma, inside of this one."""
    if not isinstance(content, (list, dict)):
        return 0
    children = content.values() if isinstance(content, dict) else content
    return 1 + max(0, len(content) - 1) + sum(map(values_of, children))


@given(content=_JSON, cuts=st.lists(st.integers(0, 400)), indent=st.sampled_from((None, 2)))
@example(content=["\\", '"', '\\"', "\\\\", "a,[{"], cuts=list(range(60)), indent=None)
def test_values_are_counted_outside_of_strings_however_they_come(
    content: Any, cuts: list[int], indent: int | None
) -> None:
    body = json.dumps(content, indent=indent).encode()
    values, places = _Values(), [0, *sorted(cuts), len(body)]
    counts = [values.count(body[start:end]) for start, end in pairwise(places)]
    assert counts[-1] == 1 + values_of(content)
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    "filler", [b"[]", b"{}", b"1", b'""', b'{"a":1}', b"[[[[]]]]", b"null", b'"\\\\"', b'"\\"",'[:-1]]
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_bodies_of_too_many_values_are_refused_before_they_are_parsed(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str, filler: bytes
) -> None:
    monkeypatch.setattr(service._bodies, "_max_values", 1100)
    parsed: list[int] = []
    monkeypatch.setattr("e5onnx.server.body.parse_json", lambda body: parsed.append(len(body)))

    async def post(number: int) -> int:
        transport = httpx.ASGITransport(service.app())
        body = b'{"inputs":[' + b",".join([filler] * number) + b"]}"
        async with httpx.AsyncClient(transport=transport, base_url="http://e5") as client:
            reply = await client.post(path, content=body, headers={"content-type": "application/json"})
            return reply.status_code

    each = values_of([json.loads(filler)])
    exact = (1100 - 2) // each  # beside the object and the list
    assert asyncio.run(post(exact)) != 413
    assert len(parsed) == 1
    assert asyncio.run(post(exact + 1)) == 413
    assert len(parsed) == 1


@pytest.mark.parametrize("body", [b'{"inputs": "a"}', b"{", b'{"inputs": "a"}'.ljust(10_000), b"{".ljust(10_000)])
def test_the_collector_runs_again_after_a_body(service: Service, body: bytes) -> None:
    async def post() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://e5") as client:
            headers = {"content-type": "application/json"}
            return (await client.post("/embed", content=body, headers=headers)).status_code

    assert asyncio.run(post()) == (400 if body.startswith(b"{ ") or body == b"{" else 200)
    assert gc.isenabled()


def test_others_have_their_turn_between_bodies_that_come_together(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        turn, parsed = 0, []
        parse = parse_json

        def watched(content: bytes) -> Any:
            parsed.append(turn)
            return parse(content)

        async def other() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        monkeypatch.setattr("e5onnx.server.body.parse_json", watched)
        task = asyncio.create_task(other())
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://e5") as client:
            content = {"inputs": ["a"] * 201 + ["word " * 1000]}
            replies = await asyncio.gather(*(client.post("/embed", json=content) for _ in range(20)))
        task.cancel()
        assert [reply.status_code for reply in replies] == [413] * 20
        assert len(set(parsed)) == len(parsed) == 20

    asyncio.run(run())


def test_small_bodies_do_not_wait_for_large_ones(service: Service) -> None:
    async def run() -> None:
        go_on, begun = asyncio.Event(), 0

        async def stalled() -> AsyncIterator[bytes]:
            nonlocal begun
            yield b'{"input": "' + b" " * (_SIZE - 12)  # one byte short
            begun += 1
            await go_on.wait()
            yield b'"'

        transport = httpx.ASGITransport(service.app())
        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://e5") as client:
            # eight of the largest size, and what the small share of each adds to that
            uploads = [
                asyncio.create_task(client.post("/embed", content=stalled(), headers=headers)) for _ in range(11)
            ]
            while begun < 11:
                await asyncio.sleep(0.01)
            large = await client.post("/embed", json={"inputs": "word " * 39_000})
            assert large.status_code == 429
            assert large.headers["retry-after"] == "1"
            for text in ("a question", "word " * 10_000):
                small = await client.post("/embed", json={"inputs": text, "truncate": True})
                assert small.status_code == 200
            go_on.set()
            await asyncio.gather(*uploads)
            large = await client.post("/embed", json={"inputs": "word " * 39_000, "truncate": True})
            assert large.status_code == 200  # they are forgotten with their replies

    asyncio.run(asyncio.wait_for(run(), 120))
