"""The handler for AWS Lambda: called as a function, and packed, unzipped and served by AWS' own client."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.lambda_runtime import FunctionError, lambda_function
from e5onnx import Encoder, InputValueError, ModelNotFoundError, aws_lambda
from e5onnx.aws_lambda import handler
from e5onnx.errors import RequestError
from e5onnx.lambda_package import pack_lambda
from e5onnx.model_folder import ModelFolder

TEXTS = ["how much protein should a female eat", ""]


@pytest.fixture
def expected(e5_model: Path) -> Any:
    return Encoder(e5_model).encode_query(TEXTS)


@pytest.fixture(autouse=True)
def function(e5_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a function, which has not loaded yet."""
    monkeypatch.setenv("E5ONNX_MODEL", str(e5_model))
    aws_lambda._load.cache_clear()
    yield
    aws_lambda._load.cache_clear()


def api_gateway_v1(body: str | None, method: str = "POST") -> dict[str, Any]:
    """An event of a REST API, payload version 1.0."""
    return {
        "resource": "/v1/embeddings",
        "path": "/v1/embeddings",
        "httpMethod": method,
        "headers": {"Content-Type": "application/json"},
        "requestContext": {"resourcePath": "/v1/embeddings", "httpMethod": method, "stage": "prod"},
        "body": body,
        "isBase64Encoded": False,
    }


def api_gateway_v2(body: str | None, method: str = "POST") -> dict[str, Any]:
    """An event of an HTTP API or a function URL, payload version 2.0, which may encode the body."""
    encoded = None if body is None else base64.b64encode(body.encode(errors="surrogatepass")).decode()
    event = {
        "version": "2.0",
        "rawPath": "/v1/embeddings",
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": method, "path": "/v1/embeddings"}, "stage": "$default"},
        "isBase64Encoded": body is not None,
    }
    return event if body is None else {**event, "body": encoded}


http = pytest.mark.parametrize("event", [api_gateway_v1, api_gateway_v2])


@http
def test_http_events_are_answered_like_openai(event: Any, expected: Any) -> None:
    reply = handler(event(json.dumps({"input": TEXTS, "input_type": "query"})), None)
    assert (reply["statusCode"], reply["isBase64Encoded"]) == (200, False)
    assert reply["headers"] == {"content-type": "application/json"}
    vectors = [item["embedding"] for item in json.loads(reply["body"])["data"]]
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)


def test_a_plain_event_is_the_request_itself(expected: Any) -> None:
    reply = handler({"input": TEXTS[0], "input_type": "query"})
    np.testing.assert_allclose(reply["data"][0]["embedding"], expected[0], rtol=0, atol=1e-6)
    assert reply["model"].endswith("e5-small-v2")


def test_shorter_vectors_need_the_operators_consent(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"input": TEXTS[0], "input_type": "query", "dimensions": 64}
    with pytest.raises(RequestError, match="E5ONNX_FORCE_DIMENSIONS=1"):
        handler(event)
    monkeypatch.setenv("E5ONNX_FORCE_DIMENSIONS", "1")
    aws_lambda._load.cache_clear()
    cut = expected[0, :64] / np.linalg.norm(expected[0, :64])
    np.testing.assert_allclose(handler(event)["data"][0]["embedding"], cut, rtol=0, atol=1e-6)
    monkeypatch.setenv("E5ONNX_FORCE_DIMENSIONS", "yes")
    aws_lambda._load.cache_clear()
    with pytest.raises(InputValueError, match="must be 0 or 1, got 'yes'"):
        handler({"input": "a"})


@http
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (None, 400, "not valid JSON"),
        ("", 400, "not valid JSON"),
        ("{", 400, "not valid JSON"),
        ("\ud800", 400, "not UTF-8"),
        ("[]", 400, "must be a JSON object"),
        ("[" * 100_000, 400, "nested too deeply"),
        ("{}", 400, "'input' is missing"),
        ('{"input": [1, 2]}', 400, "token ids"),
        ('{"input": "\\ud800"}', 400, "lone surrogate"),
        ('{"input": "a", "model": "gpt"}', 404, "there is no model"),
        (json.dumps({"input": ["a"] * 3000}), 413, "the limit is 2048"),
    ],
)
def test_what_cannot_be_answered_is_a_4xx_with_the_reason(
    event: Any, body: str | None, status: int, message: str
) -> None:
    reply = handler(event(body))
    assert reply["statusCode"] == status
    assert message in json.loads(reply["body"])["error"]["message"]


@pytest.mark.parametrize(
    ("event", "status", "message"),
    [
        ({"requestContext": None}, 405, "got null"),
        ({"requestContext": None, "body": None}, 405, "got null"),
        ({"requestContext": "text"}, 405, "got null"),
        ({"requestContext": {"http": None}}, 405, "got null"),
        ({"requestContext": {"http": ["POST"]}}, 405, "got null"),
        ({"requestContext": {"http": {"method": None}}}, 405, "got null"),
        ({"requestContext": {"connectionId": "a web socket's"}}, 405, "got null"),
        ({"httpMethod": ["POST"]}, 405, "got a list"),
        ({"httpMethod": "post"}, 405, "got 'post'"),
        ({"httpMethod": "\ud800"}, 405, "must be POST"),
        ({"httpMethod": "POST"}, 400, "not valid JSON"),
        ({"httpMethod": "POST", "body": {"input": "a"}}, 400, "must be JSON text, got an object"),
        ({"httpMethod": "POST", "body": 1}, 400, "got a number"),
        ({"httpMethod": "POST", "body": False}, 400, "got a boolean"),
        ({"httpMethod": "POST", "body": [], "isBase64Encoded": True}, 400, "got a list"),
        ({"httpMethod": "POST", "body": "{}", "isBase64Encoded": True}, 400, "not valid base64"),
        ({"httpMethod": "POST", "body": "é", "isBase64Encoded": True}, 400, "not valid base64"),
        ({"httpMethod": "POST", "body": "\ud800", "isBase64Encoded": True}, 400, "not valid base64"),
        ({"httpMethod": "POST", "body": "e30", "isBase64Encoded": True}, 400, "not valid base64"),
        ({"httpMethod": "POST", "body": "e30=", "isBase64Encoded": True}, 400, "'input' is missing"),
        ({"httpMethod": "POST", "body": "/w==", "isBase64Encoded": True}, 400, "not UTF-8"),
        ({"httpMethod": "POST", "body": "{}", "headers": None, "isBase64Encoded": None}, 400, "'input' is missing"),
        ({"httpMethod": "POST", "body": "{}", "headers": "text"}, 400, "'input' is missing"),
        ({"httpMethod": "POST", "body": "1" * 5000}, 400, "not valid JSON"),
    ],
)
def test_damaged_http_events_are_a_4xx_with_the_reason(event: dict[str, Any], status: int, message: str) -> None:
    reply = handler(event)
    assert reply["statusCode"] == status
    assert message in json.loads(reply["body"])["error"]["message"]
    json.dumps(reply).encode()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
_BODIES = _JSON | _JSON.map(json.dumps) | st.binary().map(lambda content: base64.b64encode(content).decode())


@given(
    st.fixed_dictionaries(
        {"requestContext": _JSON | st.fixed_dictionaries({"http": st.just({"method": "POST"}) | _JSON})},
        optional={
            "httpMethod": st.just("POST") | _JSON,
            "body": _BODIES,
            "isBase64Encoded": st.booleans() | _JSON,
            "headers": _JSON,
        },
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_http_event_ends_in_an_exception(event: dict[str, Any]) -> None:
    reply = handler(event)
    assert 400 <= reply["statusCode"] < 500
    assert json.loads(reply["body"])["error"]["type"] == "invalid_request_error"
    json.dumps(reply).encode()


@given(_JSON.filter(lambda event: not (isinstance(event, dict) and {"httpMethod", "requestContext"} & set(event))))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_other_event_ends_in_another_exception(event: Any) -> None:
    with pytest.raises(RequestError):
        handler(event)


@http
def test_other_methods_are_refused(event: Any) -> None:
    reply = handler(event(None, method="GET"))
    assert (reply["statusCode"], reply["headers"]["allow"]) == (405, "POST")


def test_a_body_that_is_not_the_base64_it_should_be_is_refused() -> None:
    assert handler({**api_gateway_v1("{}"), "isBase64Encoded": True})["statusCode"] == 400


def test_a_reply_that_lambda_would_not_pass_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_lambda, "_LARGEST_REPLY", 5000)
    body = {"input": ["a", "b"]}
    reply = handler(api_gateway_v1(json.dumps(body)))
    assert reply["statusCode"] == 413
    assert "fewer texts" in json.loads(reply["body"])["error"]["message"]
    shorter = api_gateway_v1(json.dumps({**body, "encoding_format": "base64"}))
    passed_on = len(json.dumps(handler(shorter)))  # as Lambda's runtime sends it
    for limit, status in ((passed_on, 200), (passed_on - 1, 413)):
        monkeypatch.setattr(aws_lambda, "_LARGEST_REPLY", limit)
        assert handler(shorter)["statusCode"] == status


@pytest.mark.parametrize("event", [None, [], "text", {}, {"input": [1]}, {"Records": []}])
def test_other_events_are_errors(event: Any) -> None:
    with pytest.raises(RequestError):
        handler(event)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("E5ONNX_MODEL", "/nowhere", ModelNotFoundError),
        ("E5ONNX_MODEL", "", InputValueError),
        ("E5ONNX_PRECISION", "int4", InputValueError),
        ("E5ONNX_PROVIDER", "openvino", InputValueError),
        ("E5ONNX_PRECISION", "int8", InputValueError),  # the folder has fp32 only
        ("E5ONNX_DEFAULT_ROLE", "passage", InputValueError),
    ],
)
def test_an_impossible_environment_is_no_fault_of_the_request(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, error: type[Exception]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(error):
        handler(api_gateway_v1('{"input": "a"}'))


def test_the_default_role_and_precision_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, sample_model: Path, e5_model: Path, expected: Any
) -> None:
    monkeypatch.setenv("E5ONNX_DEFAULT_ROLE", "query")
    np.testing.assert_allclose(handler({"input": TEXTS[0]})["data"][0]["embedding"], expected[0], rtol=0, atol=1e-6)
    aws_lambda._load.cache_clear()
    monkeypatch.setenv("E5ONNX_MODEL", str(sample_model))
    assert aws_lambda._load()[0].precision == "fp32"
    aws_lambda._load.cache_clear()
    monkeypatch.setenv("E5ONNX_PRECISION", "int8")
    assert aws_lambda._load()[0].precision == "int8"


# --- the deployment zip


@pytest.fixture(scope="module")
def package(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unzipped deployment zip of the sample's int8 graph, for this Python."""
    folder = tmp_path_factory.mktemp("lambda")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with zipfile.ZipFile(pack_lambda(sample_model, folder / "function.zip", python=python)) as archive:
        archive.extractall(folder / "code")
    return folder / "code"


def test_the_zip_holds_what_a_function_needs_and_no_more(package: Path, sample_model: Path) -> None:
    assert {"e5onnx", "model", "numpy", "onnxruntime", "tokenizers"} <= {path.name for path in package.iterdir()}
    assert not list(package.glob("numpy/**/tests"))
    model = ModelFolder.open(package / "model")
    assert [graph.precision for graph in model.manifest.graphs] == ["int8"]
    assert {record.file for record in model.verify()} == {
        str(path.relative_to(model.path)) for path in model.path.rglob("*.*") if path.name != "e5onnx.json"
    }
    assert model.manifest.fingerprint("int8") == ModelFolder.open(sample_model).manifest.fingerprint("int8")
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) < 200e6


def test_the_zip_runs_alone_and_holds_no_more_of_e5onnx_than_it_imports(package: Path, sample_model: Path) -> None:
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from e5onnx.aws_lambda import handler
reply = handler({"input": "What is an embedding?", "input_type": "raw"})
imported = [name.partition(".")[2] or "__init__" for name in sys.modules if name.partition(".")[0] == "e5onnx"]
print(json.dumps([reply["data"][0]["embedding"], imported]))
"""
    command = [sys.executable, "-I", "-S", "-B", "-c", code, str(package)]
    done = subprocess.run(command, env={"LAMBDA_TASK_ROOT": str(package)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    vector, imported = json.loads(done.stdout)
    expected = Encoder(sample_model, precision="int8").encode("What is an embedding?")
    np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-6)
    python_files = {path.stem for path in (package / "e5onnx").rglob("*.py")}
    assert (
        {*imported, "hub", "first_use", "atomic"}
        == python_files
        == {path.name.split(".")[0] for path in package.glob("e5onnx/*/*.pyc")}
    )


def test_awss_own_client_serves_the_zip(package: Path, sample_model: Path) -> None:
    pytest.importorskip("awslambdaric")
    expected = Encoder(sample_model, precision="int8").encode("What is an embedding?", prompt="")
    content = {"input": "What is an embedding?", "input_type": "raw"}
    with lambda_function(package, {"HOME": "/nowhere"}) as running:
        for event in (api_gateway_v1(json.dumps(content)), api_gateway_v2(json.dumps(content))):
            reply = running.invoke(event)
            assert reply["statusCode"] == 200
            vector = json.loads(reply["body"])["data"][0]["embedding"]
            np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-6)
        assert running.invoke(api_gateway_v2("{"))["statusCode"] == 400
        with pytest.raises(FunctionError, match=r"'input' is missing.*RequestError"):
            running.invoke({})
        plain = running.invoke(content)  # the container lives on
        np.testing.assert_allclose(plain["data"][0]["embedding"], expected, rtol=0, atol=1e-6)


def test_a_container_without_model_says_so_as_it_starts(package: Path, tmp_path: Path) -> None:
    pytest.importorskip("awslambdaric")
    with lambda_function(package, {"E5ONNX_MODEL": str(tmp_path)}) as running:
        good, body = running.replies.get(timeout=60)  # nobody invoked it
    assert not good
    assert "is not an e5onnx model folder" in json.loads(body)["errorMessage"]


def test_a_zip_for_another_processor_and_python_does_not_depend_on_this_host(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from e5onnx.cli import main

    path = tmp_path / "function.zip"
    options = ["--precision", "fp32", "--python", "3.12", "--architecture", "arm64"]
    assert main(["pack-lambda", str(tiny_model), str(path), *options]) == 0
    assert "runtime python3.12, architecture arm64, handler e5onnx.aws_lambda.handler" in capsys.readouterr().out
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    assert any(name.endswith(".cpython-312-aarch64-linux-gnu.so") for name in names)
    assert not any(name.endswith(".pyc") for name in names)
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr for entry in entries} == {0o644 << 16}


def test_an_output_that_cannot_be_written_is_noticed_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from e5onnx.cli import main

    (tmp_path / "file").touch()
    outputs = {
        tmp_path: f"{tmp_path} is a folder: name the zip to write, such as {tmp_path / 'function.zip'}",
        tmp_path / "missing/a.zip": f"there is no folder {tmp_path / 'missing'} to write a.zip to; make it first",
        tmp_path / "file/a.zip": f"there is no folder {tmp_path / 'file'} to write a.zip to; make it first",
    }
    if sys.platform == "linux":
        outputs[Path("/proc/a.zip")] = ": /proc/a.zip"  # nobody can write there, not even root
    for output, message in outputs.items():
        assert main(["pack-lambda", str(tmp_path / "no model"), str(output)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("e5onnx: error: ")
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_packed_is_one_line_and_leaves_no_zip(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from e5onnx.cli import main

    output = tmp_path / "function.zip"
    for options, message in [
        ([], "no graph with precision 'int8'"),
        (["--precision", "fp32", "--python", "3.2"], "pip could not install"),
        (["--precision", "fp32", "--python", "three"], "pip could not install"),
    ]:
        assert main(["pack-lambda", str(tiny_model), str(output), *options]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
