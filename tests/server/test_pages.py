"""The pages in a real browser: by keyboard alone, for assistive technology, under their policy, without other hosts."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from e5onnx import Encoder
from e5onnx.manifest import Manifest
from e5onnx.server import pages
from e5onnx.server.app import Service
from e5onnx.server.options import ServerOptions
from serving import Server, running

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_REDOC = "dcaf76612bc4a3fbcc923a8966dee2f6146a5f32e5ce1b6f02dd60cbbf89500b"
"""SHA-256 of `bundles/redoc.standalone.js` in redoc 2.5.4 of npm."""
_LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"
"""The one thing that Redoc asks another host for; the policy blocks it."""
_HOSTILE = "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"
_PASSAGES = ["46 grams of protein a day", "the topmost point of a mountain", "<b>heads</b> of governments"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if _CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core, which finds what people with disabilities would stumble over."""
    package = pytest.importorskip("axe_playwright_python")
    return Path(package.__file__).with_name("axe.min.js").read_text()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, whose requests and complaints are noted."""
    page = _noted(browser.new_page())
    page.goto(server.url)
    yield page
    page.close()


def _noted(page: Any) -> Any:
    page.noted = []
    page.on("request", lambda request: page.noted.append(request.url))
    page.on("console", lambda message: page.noted.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.noted.append(f"error: {error}"))
    return page


def _foreign(page: Any, url: str) -> list[str]:
    """Return what was noted, save requests to the server itself."""
    return [note for note in page.noted if not note.startswith(f"{url}/")]


def _rank(page: Any, query: str, passages: list[str]) -> None:
    page.fill("#query", query)
    page.fill("#passages", "\n".join(passages))
    page.click("text=Rank the passages >> visible=true")
    page.wait_for_selector("#results:not([hidden])")


def test_passages_are_ranked_by_keyboard_alone(page: Any, server: Server, encoder: Encoder) -> None:
    page.wait_for_selector("#prompt option", state="attached")
    for _ in range(3):  # after the two links
        page.keyboard.press("Tab")
    page.keyboard.type("how much protein")
    page.keyboard.press("Tab")
    page.keyboard.insert_text("\n".join(_PASSAGES))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#results:not([hidden])")
    vectors = [encoder.encode_query("how much protein"), *encoder.encode_document(_PASSAGES)]
    cosines = encoder.similarity(vectors, vectors)
    expected = sorted(zip(cosines[0, 1:].tolist(), _PASSAGES, strict=True), reverse=True)
    items = page.locator("#ranking li")
    shown = [items.nth(i).inner_text().strip() for i in range(items.count())]
    assert [text.split(" ", 1)[1].strip() for text in shown] == [text for _, text in expected]
    tracks = [each["width"] for each in page.locator(".track").evaluate_all(_BOXES)]
    bars = [each["width"] for each in page.locator(".bar").evaluate_all(_BOXES)]
    for line, (score, _), track, bar in zip(shown, expected, tracks, bars, strict=True):
        assert abs(float(line.split(" ")[0]) - score) < 1e-3
        assert abs(bar / track - score) < 5e-3  # a bar is as long as the cosine says
    cells = [float(text) for text in page.locator("#heat td").all_inner_texts()]
    assert abs(cosines.ravel() - cells).max() < 1e-3
    assert "3 passages in" in page.inner_text("#search-status")
    assert page.inner_text("#model") == "e5-small-v2 · 384 dimensions · at most 512 tokens"
    assert page.is_visible("text=InfoNCE")
    assert page.inner_text("#low") == "0.70 or less"
    assert not page.is_visible("#key")
    assert _foreign(page, server.url) == []


_BOXES = "nodes => nodes.map(node => node.getBoundingClientRect().toJSON())"


def test_one_click_loads_an_example(page: Any) -> None:
    page.click("#example")
    page.wait_for_selector("#results:not([hidden])")
    assert page.locator("#ranking li").count() == 12
    assert page.locator("#heat td").count() == 13 * 13


def test_tokens_of_a_text_are_shown(page: Any, encoder: Encoder) -> None:
    page.fill("#text", "an 🙂 embedding")
    page.click("text=Show the tokens")
    page.wait_for_selector("#pieces:not([hidden])")
    (tokens,) = encoder.tokenizer.tokens(["an 🙂 embedding"], "query: ")
    assert page.locator("#tokens span").all_inner_texts() == [token.text for token in tokens]
    assert page.locator("#tokens small").all_inner_texts() == [str(token.id) for token in tokens]
    assert page.locator("#tokens .prompt span").all_inner_texts() == ["query", ":"]
    assert page.inner_text("#tokens-status") == f"{len(tokens)} tokens of at most 512. Nothing is cut."
    assert not page.is_visible("#cut")


def test_it_shows_where_a_text_is_cut(page: Any, encoder: Encoder) -> None:
    text = " ".join(["🙂 protein"] * 300)
    prompt = encoder.manifest.prompts["document"]
    page.wait_for_selector("#prompt option", state="attached")
    page.select_option("#prompt", prompt)
    page.fill("#text", text)
    page.click("text=Show the tokens")
    page.wait_for_selector("#pieces:not([hidden])")
    (tokens,) = encoder.tokenizer.tokens([text], prompt)
    end = max(token.stop or 0 for token in tokens)
    total = encoder.count_tokens([text], prompt=prompt)[0]
    status = page.inner_text("#tokens-status")
    assert status == (
        f"{total} tokens, and the model takes 512: the text is cut after {end - len(prompt)} of {len(text)} characters."
    )
    assert page.text_content("#rest").startswith((prompt + text)[end : end + 600])


def test_an_error_is_shown(page: Any) -> None:
    page.fill("#query", "a")
    page.fill("#passages", "word " * 30_000)
    page.click("text=Rank the passages >> visible=true")
    page.wait_for_selector("#search-status.error")
    assert "has 149,999 characters, the limit is 100,000" in page.inner_text("#search-status")


def test_hostile_texts_and_names_are_only_text(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "e5onnx.json"
    manifest = Manifest.from_json(path.read_text(), path)
    path.write_text(replace(manifest, checkpoint=_HOSTILE, prompts={_HOSTILE: _HOSTILE}).to_json())
    service = Service(Encoder(folder, threads=1), ServerOptions())
    with running(service.app(), []) as url:
        page = browser.new_page()
        page.goto(url)
        _rank(page, _HOSTILE, [_HOSTILE, "b"])
        page.fill("#text", _HOSTILE * 40)
        page.click("text=Show the tokens")
        page.wait_for_selector("#pieces:not([hidden])")
        assert _HOSTILE in page.inner_text("#model")
        assert _HOSTILE in page.inner_text("#ranking")
        assert _HOSTILE in page.inner_text("#prompt option >> nth=0")
        assert page.locator("main img, main script, header img").count() == 0
        assert page.title() == "e5onnx: try the model"
        page.close()
    service.close()


def test_the_key_is_asked_for_where_one_is_needed(browser: Any, tiny_encoder: Encoder) -> None:
    service = Service(tiny_encoder, ServerOptions(api_keys=["right"]))
    with running(service.app(), []) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#key")
        page.fill("#key", "wrong")
        page.click("text=Use the key")
        page.wait_for_selector("#access-status.error")
        assert "the API key is missing or wrong" in page.inner_text("#access-status")
        page.fill("#key", "right")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=The key is right.")
        _rank(page, "a", ["b"])
        page.close()
    service.close()


def test_e5_is_explained_only_for_e5(browser: Any, sample_model: Path) -> None:
    encoder = Encoder(sample_model, threads=1)
    service = Service(encoder, ServerOptions())
    with running(service.app(), []) as url:
        page = browser.new_page()
        page.goto(url)
        _rank(page, "a", ["b"])
        assert not page.is_visible("text=InfoNCE")
        assert page.inner_text("#low") == "0.00 or less"
        page.close()
    service.close()


# contrast depends on the theme alone, layout on the width alone
@pytest.mark.parametrize(("width", "theme"), [(375, "dark"), (1280, "light")])
def test_both_pages_suit_every_screen_and_assistive_technology(
    browser: Any, server: Server, axe: str, theme: str, width: int, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    page.goto(server.url)
    page.click("#example")
    page.wait_for_selector("#results:not([hidden])")
    page.fill("#text", "word " * 600)
    page.click("text=Show the tokens")
    page.wait_for_selector("#pieces:not([hidden])")
    assert _violations(page, axe) == []
    page.goto(f"{server.url}/docs")
    page.wait_for_selector("text=Response samples")
    page.wait_for_selector("pre[tabindex]", state="attached")
    # Redoc gives some titles within an operation the fifth level
    assert _violations(page, axe) == ["heading-order"]
    page.close()


def _violations(page: Any, axe: str) -> list[str]:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate(f"{axe};0")
    return [violation["id"] for violation in page.evaluate("axe.run()")["violations"]]


def test_the_policy_forbids_everything_else(page: Any, server: Server) -> None:
    for path, style in (("/", "style-src 'self'; "), ("/docs", "style-src 'self' 'sha256-")):
        policy = httpx.get(f"{server.url}{path}").headers["content-security-policy"]
        assert style in policy
        assert "default-src 'none'; script-src 'self'; " in policy
        assert "unsafe" not in policy
    blocked = page.evaluate("fetch('https://example.org').then(() => 'sent', (error) => 'blocked')")
    assert blocked == "blocked"
    assert any("Content Security Policy" in note for note in page.noted)


def test_the_documentation_has_every_operation_and_asks_no_other_host(browser: Any, server: Server) -> None:
    page = _noted(browser.new_page())
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(f"{server.url}/docs")
    page.wait_for_selector("text=Response samples")
    text = page.inner_text("#docs")
    for operations in pages.openapi(secured=False)["paths"].values():
        for operation in operations.values():
            assert operation["summary"] in text
    page.focus("[role=tab] >> nth=0")
    page.keyboard.press("ArrowRight")
    # the samples have the address at which the page was found
    assert f"curl --fail-with-body {server.url}/v1/embeddings" in page.inner_text("#docs")
    policy = "violates the following Content Security Policy directive"
    assert [note for note in _foreign(page, server.url) if policy not in note and note not in failed] == []
    assert failed == [_LOGO]
    page.close()


def test_redoc_is_what_its_authors_published() -> None:
    folder = Path(pages.__file__).with_name("page")
    assert hashlib.sha256((folder / "redoc.standalone.js").read_bytes()).hexdigest() == _REDOC
    licence = (folder / "redoc.standalone.js.LICENSE.txt").read_text()
    assert "The MIT License" in licence
    assert 'Version: "2.5.4"' in licence


_OPERATIONS = [
    pytest.param(path, operation, id=f"{method} {path}")
    for path, operations in pages.openapi(secured=True)["paths"].items()
    for method, operation in operations.items()
]


@pytest.fixture(scope="module")
def documented(e5_model: Path) -> Iterator[str]:
    """A server as the samples expect it: with that key, and that name of the model."""
    options = ServerOptions(api_keys=["YOUR_API_KEY"], served_model_name=["intfloat/e5-small-v2"])
    service = Service(Encoder(e5_model, threads=1), options)
    with running(service.app(), []) as url:
        yield url
    service.close()


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
@pytest.mark.parametrize(("path", "operation"), _OPERATIONS)
def test_samples_run_and_get_replies_like_those_shown(
    documented: str, path: str, operation: dict[str, Any], language: str
) -> None:
    (source,) = (
        sample["source"] for sample in operation["x-codeSamples"] if sample.get("label", sample["lang"]) == language
    )
    # JavaScript prints for people, and leaves out what is long
    source = source.replace(pages.ADDRESS, documented).replace("print(reply.json())", "print(reply.text)")
    source = source.replace("console.log(await reply.json())", "console.log(JSON.stringify(await reply.json()))")
    command = {
        "curl": ["sh", "-c", source],
        "Python": [sys.executable, "-c", source],
        "JavaScript": ["node", "--input-type=module", "-e", source],
    }[language]
    if shutil.which("curl" if language == "curl" else command[0]) is None:
        pytest.skip(f"{'curl' if language == 'curl' else command[0]} is not installed")
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert printed.returncode == 0, printed.stderr
    if path == "/metrics":
        example = operation["responses"]["200"]["content"]["text/plain"]["example"]
        assert all(line.rpartition(" ")[0] in printed.stdout for line in example.splitlines())
        return
    described = operation["responses"]["200"]
    if "$ref" in described:
        described = pages.openapi(secured=True)["components"]["responses"][described["$ref"].rpartition("/")[2]]
    example = described["content"]["application/json"]["example"]
    assert _shape(json.loads(printed.stdout)) == _shape(example)


def _shape(value: Any) -> Any:
    """Return the types in a JSON value; lists of numbers may differ in length."""
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [float] if all(type(each) in (int, float) for each in value) else [_shape(each) for each in value]
    return type(value)
