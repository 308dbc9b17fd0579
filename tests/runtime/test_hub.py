"""Models by hub id, through the real huggingface_hub and a stand-in for the hub: downloads, cache, pins and errors.

huggingface_hub reads its environment when it is imported, so whatever may import it runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5onnx import Encoder, ModelNotFoundError, Tokenizer
from e5onnx.manifest import MANIFEST
from e5onnx.model_folder import ModelFolder, file_record, is_hub_id
from hub_stand_in import HubStandIn

QUERIES = ["how much protein should a female eat", "summit define", ""]
DOCUMENTS = ["As a general guideline, 46 grams a day.", "The highest point of a mountain : the top of a mountain. " * 9]
VECTORS = f"(lambda encoder: [encoder.encode_query({QUERIES}).tolist(), encoder.encode_document({DOCUMENTS}).tolist()])"
LOADING = ["embed", "serve", "similarity", "info", "verify"]  # commands that take a hub id
WEIGHTS = "onnx/model.onnx_data"  # of the graph of precision fp32
PORTABLE = "onnx/model_portable.onnx"
GRAPHS = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}

_PROGRAM = """
import json, pickle, sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits between its attempts
from e5onnx import E5OnnxError, Encoder, Tokenizer
from e5onnx.model_folder import open_model
try:
    answer = {"value": eval(sys.argv[1])}
except E5OnnxError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Answer:
    """What an expression gave: its value, or the class and the message of the error of e5onnx that it raised."""

    value: Any = None
    error: str = ""
    message: str = ""


@dataclass(frozen=True)
class Machine:
    """A user's machine: a hub cache and a current folder, both empty at first."""

    hub: HubStandIn
    folder: Path

    def evaluate(self, expression: str, **environment: str) -> Answer:
        """Evaluate an expression in a new process, where Encoder, Tokenizer and open_model are imported."""
        done = self._run("-c", _PROGRAM, expression, **environment)
        assert done.returncode == 0, done.stderr
        return Answer(**json.loads(done.stdout))

    def e5onnx(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return self._run("-m", "e5onnx", *map(str, arguments), **environment)

    def cached(self, repo_id: str, file: str) -> Path:
        """Return the one copy of a file in the cache."""
        repository = self.folder / "home/hub" / f"models--{repo_id.replace('/', '--')}"
        (path,) = repository.glob(f"snapshots/*/{file}")
        return path

    def _run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.hub.environment(self.folder / "home", **environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture
def machine(hub: HubStandIn, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(e5_model: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """A function that makes model folders whose two graphs are a few bytes of no meaning, quick to download."""

    def make(query_prompt: str = "query: ") -> Path:
        folder = tmp_path_factory.mktemp("model")
        manifest = ModelFolder.open(e5_model).manifest
        for record in manifest.files:
            shutil.copyfile(e5_model / record.file, folder / record.file)
        (folder / "onnx").mkdir()
        graphs = []
        for precision, file in GRAPHS.items():
            (folder / file).write_bytes(precision.encode() * 30_000)
            record = file_record(folder, file)
            weights = None
            if precision == "fp32":
                (folder / WEIGHTS).write_bytes(b"weights" * 30_000)
                weights = file_record(folder, WEIGHTS)
            graph = replace(manifest.graphs[0], file=file, sha256=record.sha256, size=record.size)
            graphs.append(replace(graph, precision=precision, weights=weights))
        prompts = {**manifest.prompts, "query": query_prompt}
        (folder / MANIFEST).write_text(replace(manifest, graphs=tuple(graphs), prompts=prompts).to_json(), "utf-8")
        (folder / "README.md").write_text("A card, which nobody needs to run the model.")
        return folder

    return make


@pytest.fixture(scope="session")
def small_model(make_model: MakeModel) -> Path:
    return make_model()


def tokenizer_files(model: Path) -> set[str]:
    """Return what a tokenizer needs: the manifest and the files that it lists, without graphs."""
    return {MANIFEST, *(record.file for record in ModelFolder.open(model).manifest.files)}


def break_in_the_middle(path: Path) -> None:
    """Cut a file of the cache, which is a link, to half its size."""
    path.resolve().write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class TestVectors:
    """With a model of full size, downloaded once."""

    @pytest.fixture(scope="class")
    def machine(self, e5_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
        with HubStandIn() as hub:
            hub.add("maker/e5", e5_model)
            yield Machine(hub, tmp_path_factory.mktemp("machine"))

    @pytest.fixture(scope="class")
    def downloaded(self, machine: Machine) -> Answer:
        return machine.evaluate(f"{VECTORS}(Encoder('maker/e5'))")

    @pytest.fixture(scope="class")
    def expected(self, e5_model: Path) -> list[Any]:
        encoder = Encoder(e5_model)
        return [encoder.encode_query(QUERIES), encoder.encode_document(DOCUMENTS)]

    def test_are_those_of_the_folder(self, downloaded: Answer, expected: list[Any]) -> None:
        assert_same_vectors(downloaded, expected)

    @pytest.mark.parametrize(
        ("arguments", "environment"),
        [("", {"HF_HUB_OFFLINE": "1"}), (", local_files_only=True", {})],
        ids=["HF_HUB_OFFLINE", "local_files_only"],
    )
    def test_come_from_the_cache_without_a_request(
        self,
        machine: Machine,
        downloaded: Answer,
        expected: list[Any],
        arguments: str,
        environment: dict[str, str],
    ) -> None:
        asked = len(machine.hub.requests)
        answer = machine.evaluate(f"{VECTORS}(Encoder('maker/e5'{arguments}))", **environment)
        assert_same_vectors(answer, expected)
        assert len(machine.hub.requests) == asked

    def test_are_the_same_after_pickling_and_ask_nothing_more(
        self, machine: Machine, downloaded: Answer, expected: list[Any]
    ) -> None:
        asked = len(machine.hub.requests)
        pickled = "pickle.loads(pickle.dumps(Encoder('maker/e5', local_files_only=True)))"
        assert_same_vectors(machine.evaluate(f"{VECTORS}({pickled})"), expected)
        assert len(machine.hub.requests) == asked

    def test_similarity_on_the_command_line_is_that_of_the_folder(
        self, machine: Machine, downloaded: Answer, e5_model: Path
    ) -> None:
        texts = ["-q", QUERIES[0], "-q", QUERIES[1], "-d", DOCUMENTS[0], "-d", DOCUMENTS[1]]
        by_id = machine.e5onnx("similarity", "maker/e5", *texts)
        assert (by_id.returncode, by_id.stderr) == (0, "")
        assert by_id.stdout == machine.e5onnx("similarity", e5_model, *texts).stdout


def assert_same_vectors(answer: Answer, expected: list[Any]) -> None:
    assert not answer.error, answer.message
    for vectors, folder_vectors in zip(answer.value, expected, strict=True):
        np.testing.assert_allclose(vectors, folder_vectors, rtol=0, atol=1e-6)


class TestDownloads:
    """What is asked of the hub, and what is not."""

    def test_the_graph_that_is_used_and_the_files_of_the_manifest(
        self, hub: HubStandIn, machine: Machine, small_model: Path
    ) -> None:
        hub.add("maker/small", small_model)
        first = machine.evaluate("str(open_model('maker/small', precision='int8').path)")
        assert sorted(hub.downloaded()) == sorted({*tokenizer_files(small_model), GRAPHS["int8"]})
        for file in hub.downloaded():
            assert (Path(first.value) / file).read_bytes() == (small_model / file).read_bytes()

        hub.requests.clear()
        second = machine.evaluate("str(open_model('maker/small', precision='fp32').path)")
        assert second == first
        assert hub.downloaded() == [GRAPHS["fp32"], WEIGHTS]

    def test_no_graph_for_a_tokenizer(self, hub: HubStandIn, machine: Machine, small_model: Path) -> None:
        hub.add("maker/small", small_model)
        answer = machine.evaluate("Tokenizer('maker/small').count_tokens('How many tokens is this?')")
        assert answer == Answer(Tokenizer(small_model).count_tokens("How many tokens is this?"))
        assert sorted(hub.downloaded()) == sorted(tokenizer_files(small_model))
        assert not any(request.authorization for request in hub.requests)

    def test_the_portable_graph_alone_for_another_provider(
        self, hub: HubStandIn, machine: Machine, sample_model: Path
    ) -> None:
        hub.add("maker/sample", sample_model)
        for precision in ("", "precision='fp32', "):
            hub.requests.clear()
            answer = machine.evaluate(f"str(open_model('maker/sample', {precision}provider='openvino').path)")
            assert (Path(answer.value) / PORTABLE).read_bytes() == (sample_model / PORTABLE).read_bytes()
            expected = {*tokenizer_files(sample_model), PORTABLE} if not precision else set()
            assert set(hub.downloaded()) == expected

    @pytest.mark.parametrize(("precision", "files"), [("bf16", {GRAPHS["fp32"], WEIGHTS}), ("int8", {GRAPHS["int8"]})])
    def test_our_kernels_need_the_graph_of_their_weights(
        self, hub: HubStandIn, machine: Machine, small_model: Path, precision: str, files: set[str]
    ) -> None:
        hub.add("maker/small", small_model)
        answer = machine.evaluate(f"str(open_model('maker/small', precision='{precision}', provider='kernels').path)")
        assert not answer.error
        assert set(hub.downloaded()) == {*tokenizer_files(small_model), *files}

    def test_nothing_but_the_manifest_where_the_portable_graph_is_missing(
        self, hub: HubStandIn, machine: Machine, small_model: Path
    ) -> None:
        hub.add("maker/small", small_model)
        answer = machine.evaluate("open_model('maker/small', provider='openvino')")
        assert answer.error == "InputValueError"
        assert "needs the portable graph, which this model does not have" in answer.message
        assert hub.downloaded() == [MANIFEST]

    def test_openvino_by_hub_id_gives_the_vectors_of_the_folder(
        self, hub: HubStandIn, machine: Machine, sample_model: Path
    ) -> None:
        pytest.importorskip("openvino")
        hub.add("maker/sample", sample_model)
        answer = machine.evaluate(f"{VECTORS}(Encoder('maker/sample', provider='openvino', precision='fp32'))")
        encoder = Encoder(sample_model, provider="openvino", precision="fp32")
        assert_same_vectors(answer, [encoder.encode_query(QUERIES), encoder.encode_document(DOCUMENTS)])
        assert set(hub.downloaded()) == {*tokenizer_files(sample_model), PORTABLE}

    def test_nothing_but_the_manifest_for_a_precision_that_is_not_there(
        self, hub: HubStandIn, machine: Machine, small_model: Path
    ) -> None:
        hub.add("maker/small", small_model)
        answer = machine.evaluate("Encoder('maker/small', precision='fp16')")
        assert answer.error == "InputValueError"
        assert "'fp16'; it has 'fp32', 'int8'" in answer.message
        assert hub.downloaded() == [MANIFEST]

    def test_nothing_for_a_folder_and_huggingface_hub_is_not_imported(
        self, hub: HubStandIn, machine: Machine, e5_model: Path
    ) -> None:
        answer = machine.evaluate(f"[Encoder({str(e5_model)!r}).dimension, 'huggingface_hub' in sys.modules]")
        assert answer == Answer([384, False])
        assert hub.requests == []

    def test_nothing_for_a_folder_that_is_named_like_a_hub_id(
        self, hub: HubStandIn, machine: Machine, make_model: MakeModel
    ) -> None:
        hub.add("maker/small", make_model("on the hub: "))
        shutil.copytree(make_model("in the folder: "), machine.folder / "maker/small")
        assert machine.evaluate("Tokenizer('maker/small').prompts['query']") == Answer("in the folder: ")

        (machine.folder / "maker/small" / MANIFEST).unlink()
        answer = machine.evaluate("Encoder('maker/small')")
        # it has a config.json, but no weights; and where the wheel is tested, the extra is missing
        assert answer.error in ("CheckpointError", "MissingDependencyError")
        assert str(machine.folder / "maker/small") in answer.message
        assert hub.requests == []

    @pytest.mark.parametrize(
        "name", ["", "small", "./maker/small", "maker/small/", "a/b/c", "/maker/small", "a--b/c", "maker/a..b"]
    )
    def test_nothing_for_what_is_no_hub_id(self, hub: HubStandIn, machine: Machine, name: str) -> None:
        answer = machine.evaluate(f"Encoder({name!r})")
        assert answer.error == "ModelNotFoundError"
        assert "folder" in answer.message
        assert hub.requests == []


class TestRevisions:
    """Branches, tags and commits, told apart by the prompt of the model that is there."""

    def test_are_honoured(self, hub: HubStandIn, machine: Machine, make_model: MakeModel) -> None:
        hub.add("maker/small", make_model("main: "))
        old = hub.add("maker/small", make_model("old: "), revision="v1.0")
        hub.add("maker/small", make_model("proposed: "), revision="refs/pr/1")
        prompts = {None: "main: ", "main": "main: ", "v1.0": "old: ", old: "old: ", "refs/pr/1": "proposed: "}
        load = f"[Tokenizer('maker/small', revision=revision).prompts['query'] for revision in {list(prompts)}]"
        assert machine.evaluate(load) == Answer(list(prompts.values()))

        hub.requests.clear()
        assert machine.evaluate(load, HF_HUB_OFFLINE="1") == Answer(list(prompts.values()))
        assert hub.requests == []

    def test_all_files_are_of_one_commit(self, hub: HubStandIn, machine: Machine, small_model: Path) -> None:
        commit = hub.add("maker/small", small_model)
        path = machine.evaluate("str(open_model('maker/small', precision='fp32').path)").value
        assert Path(path).name == commit
        assert {request.revision for request in hub.requests if request.file == MANIFEST} == {"main"}
        assert {request.revision for request in hub.requests if request.file not in (MANIFEST, None)} == {commit}

    def test_a_branch_that_moved_is_followed_and_a_commit_stays(
        self, hub: HubStandIn, machine: Machine, make_model: MakeModel
    ) -> None:
        commit = hub.add("maker/small", make_model("first: "))
        loaded = "Tokenizer('maker/small'%s).prompts['query']"
        assert machine.evaluate(loaded % "") == Answer("first: ")
        hub.add("maker/small", make_model("second: "))
        assert machine.evaluate(loaded % ", local_files_only=True") == Answer("first: ")
        assert machine.evaluate(loaded % "") == Answer("second: ")
        assert machine.evaluate(loaded % ", local_files_only=True") == Answer("second: ")

        hub.requests.clear()
        assert machine.evaluate(loaded % f", revision={commit!r}") == Answer("first: ")
        # a commit never changes, and it is in the cache
        assert [request for request in hub.requests if request.repo_id] == []

    def test_an_unknown_one_is_named(self, hub: HubStandIn, machine: Machine, small_model: Path) -> None:
        hub.add("maker/small", small_model)
        answer = machine.evaluate("Encoder('maker/small', revision='v9')")
        assert answer.error == "ModelNotFoundError"
        assert "maker/small" in answer.message
        assert "'v9'" in answer.message


class TestErrors:
    """The class of each error, and that its message says what to do."""

    def test_unknown_repository(self, machine: Machine) -> None:
        answer = machine.evaluate("Encoder('maker/unknown')")
        assert answer.error == "ModelNotFoundError"
        assert "no folder maker/unknown" in answer.message
        assert "no repository" in answer.message

    def test_repository_without_model_and_checkpoint(self, hub: HubStandIn, machine: Machine, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        (other / "README.md").write_text("# Something else")
        hub.add("maker/other", other)
        answer = machine.evaluate("Encoder('maker/other')")
        assert answer.error == "ModelNotFoundError"
        assert "maker/other on the hub is neither an exported model nor a checkpoint" in answer.message

    def test_repository_that_lacks_a_file_of_its_manifest(
        self, hub: HubStandIn, machine: Machine, make_model: MakeModel
    ) -> None:
        model = make_model()
        (model / "tokenizer.json").unlink()
        hub.add("maker/small", model)
        answer = machine.evaluate("Tokenizer('maker/small')")
        assert answer.error in ("ModelNotFoundError", "ModelDownloadError")
        assert "maker/small" in answer.message
        assert "tokenizer.json" in answer.message

    @pytest.mark.parametrize("environment", [{}, {"HF_TOKEN": "mine"}], ids=["anonymous", "terms not accepted"])
    def test_gated_repository(
        self, hub: HubStandIn, machine: Machine, small_model: Path, environment: dict[str, str]
    ) -> None:
        hub.add("maker/gated", small_model, gated=True)
        hub.add("me/mine", small_model, token="mine")
        answer = machine.evaluate("Encoder('maker/gated')", **environment)
        assert answer.error == "ModelDownloadError"
        assert "maker/gated is gated" in answer.message
        assert "HF_TOKEN" in answer.message

    def test_private_repository(self, hub: HubStandIn, machine: Machine, small_model: Path) -> None:
        hub.add("maker/private", small_model, token="secret")
        load = "Tokenizer('maker/private').max_tokens"
        anonymous = machine.evaluate(load)
        assert anonymous.error == "ModelNotFoundError"
        assert "a private one needs HF_TOKEN" in anonymous.message
        assert machine.evaluate(load, HF_TOKEN="expired").error == "ModelDownloadError"

        hub.requests.clear()
        assert machine.evaluate(load, HF_TOKEN="secret") == Answer(512)
        assert {request.authorization for request in hub.requests if request.repo_id} == {"Bearer secret"}

    @pytest.mark.parametrize(
        ("arguments", "environment", "remedy"),
        [("", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"), (", local_files_only=True", {}, "allow downloads")],
        ids=["HF_HUB_OFFLINE", "local_files_only"],
    )
    def test_not_in_the_cache_and_offline(
        self,
        hub: HubStandIn,
        machine: Machine,
        small_model: Path,
        arguments: str,
        environment: dict[str, str],
        remedy: str,
    ) -> None:
        hub.add("maker/small", small_model)
        answer = machine.evaluate(f"Encoder('maker/small'{arguments})", **environment)
        assert answer.error == "ModelDownloadError"
        assert "no folder maker/small" in answer.message
        assert remedy in answer.message
        assert hub.requests == []

        assert machine.evaluate("Tokenizer('maker/small').max_tokens") == Answer(512)
        hub.requests.clear()
        answer = machine.evaluate(f"Encoder('maker/small'{arguments})", **environment)  # its graph is not there yet
        assert answer.error == "ModelDownloadError"
        assert remedy in answer.message
        assert hub.requests == []

    @pytest.mark.parametrize("file", [MANIFEST, "tokenizer.json", GRAPHS["fp32"], WEIGHTS])
    def test_connection_that_breaks_in_a_file_and_another_attempt(
        self, hub: HubStandIn, machine: Machine, small_model: Path, file: str
    ) -> None:
        hub.add("maker/small", small_model)
        hub.broken_files.add(file)
        load = "str(open_model('maker/small', precision='fp32').path)"
        answer = machine.evaluate(load)
        assert answer.error == "ModelDownloadError"
        assert "maker/small" in answer.message

        hub.broken_files.clear()
        path = Path(machine.evaluate(load).value)
        assert (path / file).read_bytes() == (small_model / file).read_bytes()

    def test_hub_that_does_not_answer(self, tmp_path: Path, small_model: Path) -> None:
        with HubStandIn() as hub:
            hub.add("maker/small", small_model)
            machine = Machine(hub, tmp_path)
            assert machine.evaluate("Tokenizer('maker/small').max_tokens") == Answer(512)
        assert machine.evaluate("Tokenizer('maker/small').max_tokens") == Answer(512)
        for model in ("maker/small", "maker/other"):  # the graph, the manifest
            answer = machine.evaluate(f"Encoder({model!r})")
            assert answer.error == "ModelDownloadError"
            assert model in answer.message
            assert "check the network" in answer.message

    @pytest.mark.parametrize("file", [MANIFEST, "tokenizer.json", GRAPHS["fp32"], WEIGHTS])
    def test_truncated_file_in_the_cache(self, hub: HubStandIn, machine: Machine, small_model: Path, file: str) -> None:
        hub.add("maker/small", small_model)
        assert machine.evaluate("open_model('maker/small', precision='fp32').manifest.dimension") == Answer(384)
        cached = machine.cached("maker/small", file)
        break_in_the_middle(cached)
        answer = machine.evaluate("Encoder('maker/small')")
        assert answer.error == "ModelFolderError"
        assert str(cached) in answer.message

    def test_cache_that_cannot_be_written(self, hub: HubStandIn, machine: Machine, small_model: Path) -> None:
        hub.add("maker/small", small_model)
        (machine.folder / "home").write_text("a file where the folder of the cache should be")
        answer = machine.evaluate("Encoder('maker/small')")
        assert answer.error == "ModelDownloadError"
        assert str(machine.folder / "home") in answer.message

    def test_huggingface_hub_is_not_installed(self, machine: Machine) -> None:
        answer = machine.evaluate("[sys.modules.update(huggingface_hub=None), Encoder('maker/small')]")
        assert answer.error == "MissingDependencyError"
        assert "pip install huggingface_hub" in answer.message


class TestMistypedPaths:
    """A name whose first part is a folder here is a path, and nobody asks the hub for it."""

    @pytest.mark.parametrize("command", ["export", "portable", "pack-lambda", *LOADING])
    @pytest.mark.parametrize("name", ["models/typo", "models/e5-small-v2"])
    def test_every_command_says_what_is_there(self, hub: HubStandIn, machine: Machine, command: str, name: str) -> None:
        pytest.importorskip({"export": "torch", "portable": "onnx", "serve": "uvicorn"}.get(command, "e5onnx"))
        (machine.folder / "models/sample").mkdir(parents=True)
        outputs = {"export": ["out"], "pack-lambda": ["out.zip"]}.get(command, [])
        done = machine.e5onnx(command, name, *outputs)
        assert_one_line(done, f"there is no folder {machine.folder / name if command == 'portable' else name}")
        if command != "portable":  # it takes no hub id
            assert f"models{os.sep} holds: sample. " in done.stderr
        assert hub.requests == []
        assert sorted(path.name for path in machine.folder.iterdir()) == ["models"]

    @pytest.mark.parametrize(
        ("folders", "there"),
        [
            ([], "no folder"),
            ([".hidden"], "no folder"),
            (["b", "a", "C"], "C, a, b"),
            ([f"m{i:02}" for i in range(10)], ", ".join(f"m{i:02}" for i in range(10))),
            ([f"m{i:02}" for i in range(11)], ", ".join([*(f"m{i:02}" for i in range(10)), "..."])),
        ],
    )
    def test_ten_folders_are_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], there: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for folder in folders:
            (tmp_path / "models" / folder).mkdir(parents=True)
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models/file").touch()
        with pytest.raises(ModelNotFoundError) as caught:
            is_hub_id("models/typo")
        assert str(caught.value) == (
            f"there is no folder models/typo; models{os.sep} holds: {there}. (To load models/typo from the hub, run "
            "this where there is no folder models.)"
        )
        assert not any(is_hub_id(f"models/{folder}") for folder in folders)

    @pytest.mark.parametrize("name", ["models/file", "models/sample2", "Models2/sample", "models2/x"])
    def test_of_others_the_hub_is_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.chdir(tmp_path)
        assert is_hub_id(name)
        (tmp_path / "models").write_text("a file")
        assert is_hub_id(name)

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "/",
            "models",
            "./a/b",
            "../a/b",
            "a/b/",
            "a//b",
            "/a/b",
            "a/b/c",
            "~/a",
            "a\\b",
            "C:/b",
            "a /b",
            "-a/b",
            ".a/b",
            "a/.b",
            "a/-b",
            "a/b\n",
            "a/b?",
            "é/b",
            "https://a/b",
            "a/b@main",
            "a/b\0",
        ],
    )
    def test_what_cannot_be_a_hub_id_is_a_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert not is_hub_id(name)


class TestHubThatDoesNotAnswer:
    """Connections are accepted and closed, and counted: no verdict depends on time."""

    @pytest.fixture
    def silent(self) -> Iterator[tuple[str, list[None]]]:
        """The address of such a hub, and the connections to it."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            accepted: list[None] = []

            def accept() -> None:
                with contextlib.suppress(OSError):  # closed, at the end
                    while True:
                        server.accept()[0].close()
                        accepted.append(None)

            thread = threading.Thread(target=accept)
            thread.start()
            yield f"http://127.0.0.1:{server.getsockname()[1]}", accepted
            server.shutdown(socket.SHUT_RDWR)
            thread.join()

    @pytest.mark.parametrize("command", LOADING)
    def test_is_one_line_after_one_attempt(
        self, machine: Machine, silent: tuple[str, list[None]], command: str
    ) -> None:
        pytest.importorskip("uvicorn" if command == "serve" else "e5onnx")
        endpoint, accepted = silent
        assert_one_line(machine.e5onnx(command, "maker/small", HF_ENDPOINT=endpoint), "check the network")
        assert len(accepted) <= 2  # huggingface_hub 2 also fetches a list of programs

    def test_is_asked_once_for_what_the_cache_has(
        self, hub: HubStandIn, machine: Machine, silent: tuple[str, list[None]], small_model: Path
    ) -> None:
        hub.add("maker/small", small_model)
        assert machine.e5onnx("info", "maker/small").returncode == 0
        endpoint, accepted = silent
        assert machine.e5onnx("info", "maker/small", HF_ENDPOINT=endpoint).returncode == 0
        assert len(accepted) <= 2
        accepted.clear()
        # the manifest is there, the graph is not
        assert_one_line(machine.e5onnx("similarity", "maker/small", HF_ENDPOINT=endpoint), "check the network")
        assert len(accepted) <= 3


class TestCommandLine:
    """The commands with a hub id instead of a folder."""

    def test_info(self, hub: HubStandIn, machine: Machine, small_model: Path) -> None:
        commit = hub.add("maker/small", small_model, revision="v1")
        by_id = machine.e5onnx("info", "maker/small", "--revision", "v1", "--json")
        assert by_id.returncode == 0, by_id.stderr
        assert by_id.stdout == machine.e5onnx("info", small_model, "--json").stdout
        assert not {*GRAPHS.values(), WEIGHTS} & set(hub.downloaded())
        text = machine.e5onnx("info", "maker/small", "--revision", commit)
        assert text.returncode == 0, text.stderr
        assert commit in text.stdout

    def test_verify(self, hub: HubStandIn, machine: Machine, small_model: Path) -> None:
        hub.add("maker/small", small_model)
        by_id = machine.e5onnx("verify", "maker/small", "--json")
        assert by_id.returncode == 0, by_id.stderr
        by_folder = machine.e5onnx("verify", small_model, "--json")
        assert json.loads(by_id.stdout)["files"] == json.loads(by_folder.stdout)["files"]

    def test_verify_finds_a_change_of_the_same_size(self, hub: HubStandIn, machine: Machine, small_model: Path) -> None:
        hub.add("maker/small", small_model)
        assert machine.evaluate("[open_model('maker/small', precision=p) and p for p in ('fp32', 'int8')]").value
        cached = machine.cached("maker/small", "config.json")
        cached.resolve().write_bytes(bytes(cached.stat().st_size))
        assert_one_line(machine.e5onnx("verify", "maker/small"), str(cached))

    @pytest.mark.parametrize("command", ["info", "verify", "similarity"])
    @pytest.mark.parametrize(
        ("model", "environment", "expected"),
        [
            (["maker/unknown"], {}, "no folder maker/unknown"),
            (["maker/small", "--revision", "v9"], {}, "'v9'"),
            (["maker/other"], {}, "neither an exported model nor a checkpoint"),
            (["maker/gated"], {}, "HF_TOKEN"),
            (["maker/small"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ],
        ids=["unknown", "revision", "other", "gated", "offline"],
    )
    def test_errors(
        self,
        hub: HubStandIn,
        machine: Machine,
        small_model: Path,
        command: str,
        model: list[str],
        environment: dict[str, str],
        expected: str,
    ) -> None:
        hub.add("maker/small", small_model)
        hub.add("maker/other", machine.folder)
        hub.add("maker/gated", small_model, gated=True)
        assert_one_line(machine.e5onnx(command, *model, **environment), expected)


def assert_one_line(done: subprocess.CompletedProcess[str], expected: str) -> None:
    """Check that a command failed with one line that holds `expected`."""
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("e5onnx: error: ")
    assert expected in line
