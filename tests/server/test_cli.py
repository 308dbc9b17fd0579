"""The options of `e5onnx serve`."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI

from e5onnx.cli import main, parse
from e5onnx.openai_api import Limits
from e5onnx.server.options import ServerOptions
from serving import Server, serving


def test_the_defaults_are_those_of_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    given, defaults = vars(parse(["serve", "MODEL"])), ServerOptions()
    names = {field.name for field in fields(ServerOptions)} - {"api_keys", "body_timeout", "served_model_name"}
    assert {name: given[name] for name in names} == {name: getattr(defaults, name) for name in names}
    assert defaults.limits == Limits()
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = " ".join(capsys.readouterr().out.split()).partition("options:")[2]
    for name in names - {"allowed_hosts", "log_format"}:
        (described,) = re.findall(rf"--{name.replace('_', '-')} .*?\(default: ([^)]*)\)", shown)
        assert described == str(getattr(defaults, name))
    named = parse(["serve", "MODEL", "--served-model-name", "a", "--served-model-name", "b/c"])
    assert vars(named)["served_model_name"] == ["a", "b/c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "must be 0 to 65535"),
        (["--max-texts", "0"], "must be at least 1"),
        (["--request-timeout", "nan"], "must be 0 to 86400 seconds"),
        (["--served-model-name", " "], "must be a name of printable characters, got ' '"),
        (["--served-model-name", "a\nb"], "must be a name of printable characters"),
        (["--served-model-name"], "expected one argument"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["/nowhere"], "there is no folder /nowhere"),
        (["MODEL", "--port", "TAKEN"], "cannot listen on 127.0.0.1, port [0-9]+: Address already in use"),
        (["MODEL", "--host", "a..b"], "cannot listen on a..b, port 8080: this is not the name of a host"),
        (["MODEL", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["MODEL", "--api-key-file", "empty"], "does not hold a key"),
        (["MODEL", "--api-key-file", "latin"], "latin is not UTF-8 text"),
        (["MODEL", "--api-key-file", "greek"], "holds a key that is not printable ASCII"),
        (["MODEL", "--api-key-file", "divided"], "holds a key that is not printable ASCII"),
        (["MODEL", "--api-key-file", "/nowhere"], "no such file"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    tiny_model: Path, tmp_path: Path, server: Server, options: list[str], message: str, capsys: Any
) -> None:
    keys = {"empty": b"", "latin": b"cl\xe9", "greek": "κλειδί".encode(), "divided": b"key\x0ck\x1ck"}  # not short keys
    for name, content in keys.items():
        (tmp_path / name).write_bytes(content)
    names = {"MODEL": str(tiny_model), "TAKEN": str(httpx.URL(server.url).port)}
    names |= {name: str(tmp_path / name) for name in keys}
    assert main(["serve", *(names.get(option, option) for option in options)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("e5onnx: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_a_blank_key_does_not_open_the_server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("E5ONNX_API_KEY", "  ")
    assert main(["serve", str(tiny_model)]) == 1
    assert "E5ONNX_API_KEY does not hold a key" in capsys.readouterr().err


def test_keys_are_required_and_never_logged(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\ufefffirst-key\n\nsecond-key\n")
    log = tmp_path / "log"
    with serving(tiny_model, log, "--api-key-file", str(keys), E5ONNX_API_KEY="third-key") as running:
        for key in ("first-key", "second-key", "third-key"):
            assert OpenAI(base_url=f"{running.url}/v1", api_key=key).models.list().data
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=f"{running.url}/v1", api_key="fourth-key").models.list()
        refused = httpx.post(f"{running.url}/embed", json={"inputs": "a"})
        assert refused.json()["error"].startswith("the API key is missing or wrong")
        assert "security" in httpx.get(f"{running.url}/openapi.json").json()
    assert "-key" not in log.read_text()
