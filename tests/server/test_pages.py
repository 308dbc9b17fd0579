"""The page at `/` in a real browser: by keyboard alone, under its content security policy, without other servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e5onnx import Encoder
from serving import Server

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_PASSAGES = ["46 grams of protein a day", "the topmost point of a mountain", "<b>heads</b> of governments"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if _CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, whose requests and complaints are noted."""
    page = browser.new_page()
    page.noted = []
    page.on("request", lambda request: page.noted.append(request.url))
    page.on("console", lambda message: page.noted.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.noted.append(f"error: {error}"))
    page.goto(server.url)
    yield page
    page.close()


def test_passages_are_ranked_by_keyboard_alone(page: Any, server: Server, encoder: Encoder) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("how much protein")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.insert_text("\n".join(_PASSAGES))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#results:not([hidden])")
    scores = encoder.similarity(encoder.encode_query("how much protein"), encoder.encode_document(_PASSAGES))[0]
    expected = sorted(zip(scores.tolist(), _PASSAGES, strict=True), reverse=True)
    items = page.locator("#ranking li")
    shown = [items.nth(i).inner_text().split("\n")[0] for i in range(items.count())]
    assert [text.split(" ", 1)[1].strip() for text in shown] == [text for _, text in expected]  # as text, not as HTML
    for line, (score, _) in zip(shown, expected, strict=True):
        assert abs(float(line.split(" ")[0]) - score) < 1e-4
    cells = page.locator("#heat td").all_inner_texts()
    assert len(cells) == 1 + 16
    assert [cells[1 + 5 * i] for i in range(4)] == ["1.000"] * 4
    assert "3 passages in" in page.inner_text("#status")
    assert page.inner_text("#model") == "e5-small-v2"
    own = (f"{server.url}/", "blob:")
    assert [note for note in page.noted if not note.startswith(own)] == []


def test_an_error_is_shown(page: Any) -> None:
    page.fill("#passages", "word " * 30_000)
    page.click("button")
    page.wait_for_selector("#status.error")
    assert "has 149,999 characters, the limit is 100,000" in page.inner_text("#status")


def test_the_policy_forbids_everything_else(page: Any, server: Server) -> None:
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    blocked = page.evaluate("fetch('https://example.org').then(() => 'sent', (error) => 'blocked')")
    assert blocked == "blocked"
    assert any("Content Security Policy" in note for note in page.noted)


def test_the_interface_is_listed(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/docs")
    page.wait_for_selector("#operations dt")
    assert "POST /v1/embeddings" in page.locator("#operations dt").all_inner_texts()


def test_a_screenshot_can_be_taken(page: Any, tmp_path: Path) -> None:
    page.click("button")
    page.wait_for_selector("#results:not([hidden])")
    path = tmp_path / "page.png"
    page.screenshot(path=str(path), full_page=True)
    assert path.stat().st_size > 10_000
