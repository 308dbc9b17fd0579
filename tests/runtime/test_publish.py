"""`e5onnx push`, through the real huggingface_hub and a stand-in for the hub: the files, the card, and errors."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from e5onnx import Encoder
from e5onnx.manifest import MANIFEST
from e5onnx.model_folder import ModelFolder
from folders import put_file
from helpers import near
from hub_stand_in import HubStandIn, read_card

pytest.importorskip("huggingface_hub")

TOKEN = "hf_writer"
TEXTS = ["how much protein should a female eat", "summit define"]


class User(NamedTuple):
    """A machine whose caches are empty at first."""

    hub: HubStandIn
    folder: Path

    def run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=self.hub.environment(self.folder / "home", **environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def push(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "e5onnx", "push", *arguments, **{"HF_TOKEN": TOKEN, **environment})

    def published(self, repo_id: str, revision: str = "main") -> Path:
        """Return the folder that the hub serves."""
        repository = self.hub.repositories[repo_id]
        return repository.commits[repository.revisions[revision]]


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    with HubStandIn() as hub:
        hub.writer = TOKEN
        yield User(hub, tmp_path)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that holds files which are not its own."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / ".cache").mkdir()
    (folder / ".cache/token").write_text("secret")
    return folder


def assert_refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("e5onnx: error: ")
    for text in expected:
        assert text in line


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


_LOAD = """
import json, sys
from e5onnx import Encoder
encoder = Encoder(sys.argv[1], **json.loads(sys.argv[2]))
assert not [name for name in ("torch", "transformers", "onnx", "e5onnx_export") if name in sys.modules]
print(json.dumps(encoder.encode(json.loads(sys.argv[3])).tolist()))
"""


def test_a_pushed_model_loads_by_id_with_the_runtime_alone(user: User, model: Path) -> None:
    done = user.push(model, "maker/tiny", "--message", "The first one")
    assert done.returncode == 0, done.stderr
    commit = user.hub.repositories["maker/tiny"].revisions["main"]
    assert done.stdout == f"Published {user.hub.url}/maker/tiny/commit/{commit}\n"

    manifest = ModelFolder.open(model).manifest
    there = files_of(user.published("maker/tiny"))
    own = {name: content for name, content in files_of(model).items() if name not in ("notes.txt", ".cache/token")}
    assert {MANIFEST, *(record.file for record in manifest.records())} == own.keys()
    assert there.keys() - own.keys() == {"README.md", ".gitattributes"}
    assert {name: there[name] for name in own} == own
    ((message, large),) = user.hub.repositories["maker/tiny"].uploads
    assert message == "The first one"
    assert {"onnx/model.onnx", "onnx/model.onnx_data"} <= set(large)

    other = User(user.hub, user.folder / "other")
    other.folder.mkdir()
    loaded = other.run("-c", _LOAD, "maker/tiny", "{}", json.dumps(TEXTS))
    assert loaded.returncode == 0, loaded.stderr
    near(json.loads(loaded.stdout), Encoder(model).encode(TEXTS), atol=1e-7)


def test_the_card_says_what_the_manifest_does_and_its_code_runs(user: User, sample_model: Path, tmp_path: Path) -> None:
    """Its metadata name the checkpoint and the licence of the checkpoint's card, at the commit that was exported."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# The model\n")
    manifest = ModelFolder.open(sample_model).manifest
    user.hub.add(manifest.checkpoint, base)
    done = user.push(sample_model, "maker/sample", "--revision", "v1/a")
    assert done.returncode == 0, done.stderr
    assert "README.md" not in files_of(user.published("maker/sample"))  # the main branch
    published = user.published("maker/sample", "v1/a")
    assert read_card(published / "README.md") == {
        "library_name": "e5onnx",
        "pipeline_tag": "sentence-similarity",
        "tags": ["e5onnx", "onnx", "onnxruntime", "text-embeddings"],
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "license": "apache-2.0",
    }
    card = (published / "README.md").read_text()
    for precision, provider in [("fp32", "cpu"), ("int8", "cpu"), ("fp32", "openvino")]:
        graph = manifest.graph(precision, provider)
        (row,) = [line for line in card.splitlines() if f"`{graph.file}`" in line]
        assert f"`{manifest.fingerprint(precision, provider)}`" in row
        assert all(f"{name} {value:.7g}" in row for name, value in graph.parity.items())
    program = card.split("```python\n")[1].split("```")[0]
    shown = user.run("-c", program)
    assert shown.returncode == 0, shown.stderr
    encoder = Encoder(sample_model)
    texts = (
        encoder.encode_query("how much protein should a female eat"),
        encoder.encode_document("Health agencies advise about 46 grams of protein a day."),
    )
    near(float(shown.stdout.strip("[]\n")), encoder.similarity(*texts)[0, 0])


def test_without_a_card_or_a_repository_of_the_checkpoint_there_is_no_licence(user: User, model: Path) -> None:
    assert user.push(model, "maker/tiny").returncode == 0
    metadata = read_card(user.published("maker/tiny") / "README.md")
    assert not {"license", "base_model"} & set(metadata)  # a checkpoint on disk is not on the hub


def test_a_second_push_replaces_the_first(user: User, model: Path) -> None:
    assert user.push(model, "maker/tiny").returncode == 0
    put_file(model, model, "config.json", b"{}")
    assert user.push(model, "maker/tiny").returncode == 0
    assert len(user.hub.repositories["maker/tiny"].uploads) == 2
    verified = user.run("-m", "e5onnx", "verify", "maker/tiny")
    assert verified.returncode == 0, verified.stderr
    assert files_of(user.published("maker/tiny"))["config.json"] == b"{}"


def test_a_private_one_needs_its_token_and_never_becomes_public(user: User, model: Path) -> None:
    assert user.push(model, "maker/tiny", "--private").returncode == 0
    assert user.hub.repositories["maker/tiny"].token == TOKEN
    load = "-c", "from e5onnx import Tokenizer; Tokenizer('maker/tiny')"
    assert user.run(*load).returncode == 1
    assert user.run(*load, HF_TOKEN=TOKEN).returncode == 0

    user.hub.add("maker/public", user.folder / "home")
    assert_refused(user.push(model, "maker/public", "--private"), "maker/public", "public")
    assert user.hub.repositories["maker/public"].uploads == []


def test_a_repository_of_something_else_is_not_overwritten(user: User, model: Path, tiny_checkpoint: Path) -> None:
    user.hub.add("maker/checkpoint", tiny_checkpoint)
    assert_refused(user.push(model, "maker/checkpoint"), "something other than a model folder")
    assert_refused(user.push(model, "maker/checkpoint", "--revision", "new"), "something other than a model folder")
    assert user.hub.repositories["maker/checkpoint"].uploads == []
    assert set(user.hub.repositories["maker/checkpoint"].revisions) == {"main"}


def test_a_damaged_folder_is_refused_before_anything_is_sent(user: User, model: Path) -> None:
    weights = model / "onnx/model.onnx_data"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert_refused(user.push(model, "maker/tiny"), str(weights), "SHA-256")
    assert user.hub.requests == []


@pytest.mark.parametrize("name", ["maker/tiny", "checkpoint", "absent"])
def test_only_a_model_folder_is_pushed(user: User, tiny_checkpoint: Path, name: str) -> None:
    shutil.copytree(tiny_checkpoint, user.folder / "checkpoint")
    expected = {
        "maker/tiny": "push uploads a model folder, which has to be on disk",
        "checkpoint": "holds a checkpoint, not an exported model",
        "absent": "there is no folder",
    }
    assert_refused(user.push(name, "maker/other"), name, expected[name])
    assert user.hub.requests == []


@pytest.mark.parametrize(
    ("repository", "environment", "expected"),
    [
        ("maker/tiny", {"HF_TOKEN": ""}, "set HF_TOKEN"),
        ("maker/tiny", {"HF_TOKEN": "hf_reader"}, "You may not write here"),
        ("maker/tiny", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ("not a name/of--a.git", {}, "not possible"),
    ],
)
def test_errors_are_one_line(
    user: User, model: Path, repository: str, environment: dict[str, str], expected: str
) -> None:
    assert_refused(user.push(model, repository, **environment), repository if "HF_T" not in expected else "", expected)
    assert user.hub.repositories == {}


def test_a_hub_that_does_not_answer_is_one_line(user: User, model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert_refused(user.push(model, "maker/tiny", HF_ENDPOINT=url), "maker/tiny", "failed")
