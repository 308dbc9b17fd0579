"""First use of a checkpoint: what is built, when it is used again, and what may go wrong meanwhile.

Checkpoints are folders and repositories of a stand-in for the hub. Every machine has a cache of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5onnx import CacheError, CheckpointError, E5OnnxError, Encoder, InputValueError, Tokenizer
from e5onnx.cache import cache_folder, cached_folder
from e5onnx.manifest import MANIFEST
from e5onnx.model_folder import ModelFolder, open_model
from helpers import near, write_json
from hub_stand_in import HubStandIn

pytest.importorskip("onnx")

TEXTS = ["how much protein should a female eat", "summit define", ""]
linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts are Linux'")

_PROGRAM = """
import json, logging, sys
missing = sys.argv[2].split()
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in missing else find_spec(name, package)
sys.meta_path.insert(0, Blocker())
log = []
class Handler(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.INFO:
            log.append(record.getMessage())
logging.getLogger("e5onnx").addHandler(Handler())
logging.getLogger("e5onnx").setLevel(logging.INFO)
from e5onnx import E5OnnxError, Encoder, Tokenizer
texts = json.loads(sys.argv[3])
try:
    answer = {"value": eval(sys.argv[1])}
except E5OnnxError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps({**answer, "log": log}))
"""


@dataclass(frozen=True)
class Answer:
    """What an expression gave: its value, or the error of e5onnx that it raised; and the lines of the log."""

    value: Any = None
    error: str = ""
    message: str = ""
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """A user's machine: the caches, and a current folder."""

    hub: HubStandIn
    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "home/e5onnx"

    def start(self, expression: str, *, missing: str = "", **environment: str) -> subprocess.Popen[str]:
        """Start to evaluate an expression in a process where some packages are missing."""
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, expression, missing, json.dumps(TEXTS)],
            env=self.hub.environment(self.folder / "home", **environment),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def evaluate(self, expression: str, *, missing: str = "torch transformers", **environment: str) -> Answer:
        return finish(self.start(expression, missing=missing, **environment))

    def e5onnx(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "e5onnx", *map(str, arguments)],
            env=self.hub.environment(self.folder / "home", **environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def built(self) -> list[Path]:
        """Return the model folders of the cache."""
        return sorted(path.parent for path in self.cache.rglob(MANIFEST))


def finish(process: subprocess.Popen[str]) -> Answer:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors == ""
    content = json.loads(output)
    return Answer(**{**content, "log": tuple(content["log"])})


ENCODE = "Encoder('maker/tiny').encode(texts).tolist()"
NO_EXTRA = "onnx safetensors ml_dtypes torch transformers"  # huggingface_hub needs filelock, too


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture
def machine(hub: HubStandIn, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this process, still empty."""
    monkeypatch.setenv("E5ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Any:
    return Encoder(tiny_model).encode(TEXTS)


class TestHub:
    """A checkpoint on the hub."""

    def test_it_is_built_once_and_then_used_without_the_extra(
        self, machine: Machine, tiny_checkpoint: Path, expected: Any
    ) -> None:
        commit = machine.hub.add("maker/tiny", tiny_checkpoint)
        first = machine.evaluate(ENCODE)
        near(first.value, expected, atol=1e-6)
        (folder,) = machine.built()
        assert folder.relative_to(machine.cache).parts[:2] == ("maker--tiny", commit)
        assert folder.name == "fp32"
        building, built = first.log
        assert building.startswith(f"Building fp32 for maker/tiny at {commit} in {folder.parent}")
        assert built.startswith(f"Built {folder} in ")
        manifest = ModelFolder.open(folder).manifest
        assert (manifest.checkpoint, manifest.revision) == ("maker/tiny", commit)

        machine.hub.requests.clear()
        again = machine.evaluate(ENCODE, missing=NO_EXTRA)
        assert again == Answer(first.value)
        assert machine.hub.downloaded() == []

    def test_offline_the_last_commit_is_used(self, machine: Machine, tiny_checkpoint: Path, tmp_path: Path) -> None:
        """Also where the hub's own cache was emptied, and where huggingface_hub is not installed."""
        commit = machine.hub.add("maker/tiny", tiny_checkpoint)
        first = machine.evaluate(ENCODE)
        offline = {"HF_HUB_OFFLINE": "1"}
        assert machine.evaluate(ENCODE, **offline) == Answer(first.value)
        shutil.rmtree(machine.folder / "home/hub")
        machine.hub.requests.clear()
        local = "Encoder('maker/tiny', local_files_only=True).encode(texts).tolist()"
        pinned = f"Encoder('maker/tiny', revision={commit!r}).encode(texts).tolist()"
        assert machine.evaluate(ENCODE, **offline) == Answer(first.value)
        assert machine.evaluate(local) == Answer(first.value)
        assert machine.evaluate(pinned) == Answer(first.value)
        assert machine.evaluate(ENCODE, missing="huggingface_hub") == Answer(first.value)
        assert machine.evaluate(ENCODE, HF_ENDPOINT="http://127.0.0.1:9") == Answer(first.value)
        assert machine.hub.requests == []
        for expression in ("Encoder('maker/tiny', precision='int8')", "Encoder('maker/tiny', revision='v2')"):
            assert machine.evaluate(expression, **offline).error == "ModelDownloadError"

    def test_a_new_commit_is_built_beside_the_old_one(self, machine: Machine, checkpoint: Path, tmp_path: Path) -> None:
        old = machine.hub.add("maker/tiny", checkpoint)
        assert machine.evaluate("Tokenizer('maker/tiny').max_tokens").value == 512
        newer = Path(shutil.copytree(checkpoint, tmp_path / "newer"))
        write_json(newer / "tokenizer_config.json", {"model_max_length": 64})
        new = machine.hub.add("maker/tiny", newer)
        assert machine.evaluate("Tokenizer('maker/tiny').max_tokens").value == 64
        assert machine.evaluate("Tokenizer('maker/tiny').max_tokens", HF_HUB_OFFLINE="1").value == 64
        assert machine.evaluate(f"Tokenizer('maker/tiny', revision={old!r}).max_tokens").value == 512
        assert {folder.parts[-3] for folder in machine.built()} == {old, new}

    def test_every_command_takes_one(self, machine: Machine, tiny_checkpoint: Path) -> None:
        """Standard output is the command's own; the steps are on standard error."""
        machine.hub.add("maker/tiny", tiny_checkpoint)
        first = machine.e5onnx("info", "maker/tiny", "--json")
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout)["checkpoint"] == "maker/tiny"
        notes = first.stderr.splitlines()
        assert notes[0].startswith("e5onnx: Building fp32 for maker/tiny")
        assert "e5onnx: Building the graph from the weights" in notes
        assert notes[-1].startswith("e5onnx: Built ")
        verified = machine.e5onnx("verify", "maker/tiny")
        assert (verified.returncode, verified.stderr) == (0, "")
        scores = machine.e5onnx("similarity", "maker/tiny", "-q", "one", "-d", "two", "--json")
        assert (scores.returncode, scores.stderr) == (0, "")
        assert len(json.loads(scores.stdout)) == 1

    def test_without_the_extra_the_error_names_it_before_the_download(
        self, machine: Machine, tiny_checkpoint: Path
    ) -> None:
        machine.hub.add("maker/tiny", tiny_checkpoint)
        answer = machine.evaluate(ENCODE, missing=NO_EXTRA)
        assert answer.error == "MissingDependencyError"
        assert "pip install 'e5onnx[export]'" in answer.message
        assert "e5onnx export" in answer.message
        assert machine.hub.downloaded() == []
        assert machine.built() == []

    def test_two_processes_at_once_build_once(self, machine: Machine, tiny_checkpoint: Path, expected: Any) -> None:
        machine.hub.add("maker/tiny", tiny_checkpoint)
        answers = [finish(process) for process in [machine.start(ENCODE, missing="torch") for _ in range(3)]]
        for answer in answers:
            near(answer.value, expected, atol=1e-6)
        lines = [line for answer in answers for line in answer.log]
        assert len([line for line in lines if line.startswith("Building ")]) == 1
        assert len([line for line in lines if line.startswith("Built ")]) == 1
        assert len(machine.built()) == 1


class TestFolder:
    """A checkpoint on disk."""

    def test_it_is_built_once(self, checkpoint: Path, cache: Path, expected: Any, tmp_path: Path) -> None:
        encoder = Encoder(checkpoint)
        near(encoder.encode(TEXTS), expected, atol=1e-6)
        folder = Path(encoder.arguments()["model"])
        assert cached_folder(folder / "onnx/model.onnx") == folder
        state = (folder / MANIFEST).stat().st_mtime_ns
        assert Encoder(str(checkpoint)).fingerprint == encoder.fingerprint
        assert Tokenizer(checkpoint).max_tokens == encoder.max_tokens
        assert open_model(checkpoint, all_files=True).path == folder
        assert (folder / MANIFEST).stat().st_mtime_ns == state
        assert list(cache.rglob(MANIFEST)) == [folder / MANIFEST]
        assert encoder.manifest.checkpoint == "tiny"
        near(pickle.loads(pickle.dumps(encoder)).encode(TEXTS), expected, atol=1e-6)
        with pytest.raises(InputValueError, match="a revision is for a hub id"):
            Encoder(checkpoint, revision="main")

    def test_each_graph_is_built_when_it_is_first_asked_for(self, checkpoint: Path, cache: Path) -> None:
        fp32 = open_model(checkpoint, precision="fp32")
        before = {path: path.stat().st_mtime_ns for path in fp32.path.rglob("*")}
        int8 = open_model(checkpoint, precision="int8")
        portable = open_model(checkpoint, provider="openvino")
        assert open_model(checkpoint, precision="bf16", provider="kernels").path == fp32.path
        assert open_model(checkpoint, precision="int8", provider="kernels").path == int8.path
        assert [graph.precision for graph in int8.manifest.graphs] == ["int8"]
        assert [graph.portable for graph in portable.manifest.graphs] == [False, True]
        assert {fp32.path.name, int8.path.name, portable.path.name} == {"fp32", "int8", "portable"}
        assert before == {path: path.stat().st_mtime_ns for path in fp32.path.rglob("*")}
        shutil.rmtree(fp32.path)
        assert open_model(checkpoint, precision="fp32").path == portable.path
        with pytest.raises(InputValueError, match="fp32 or int8, not 'int4'"):
            open_model(checkpoint, precision="int4")

    def test_a_changed_one_is_never_served_from_the_cache(self, checkpoint: Path, cache: Path) -> None:
        """Not even if its size and time of modification are those of before."""
        seen = {open_model(checkpoint).path}
        for file, old, new in [
            ("config.json", b"", b""),
            ("model.safetensors", b"", b""),
            ("tokenizer_config.json", b": 512", b": 500"),
        ]:
            path = checkpoint / file
            status, content = path.stat(), path.read_bytes()
            path.write_bytes(content.replace(old, new) if old else content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            opened = open_model(checkpoint)
            assert opened.path not in seen
            seen.add(opened.path)
        assert opened.manifest.max_tokens == 500
        (checkpoint / "modules.json").write_text("[]")
        with pytest.raises(CheckpointError, match=r"modules\.json"):
            open_model(checkpoint)

    def test_a_folder_within_that_is_a_link_counts(self, checkpoint: Path, cache: Path, tmp_path: Path) -> None:
        """A link to a folder around it does not keep the search going."""
        outside = tmp_path / "outside"
        write_json(outside / "a.json", 1)
        (checkpoint / "linked").symlink_to(outside)
        (checkpoint / "around").symlink_to(checkpoint)
        old = open_model(checkpoint).path
        assert open_model(checkpoint).path == old
        write_json(outside / "a.json", 2)
        assert open_model(checkpoint).path != old

    def test_one_that_changes_while_it_is_exported_is_refused(
        self, checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import e5onnx_export

        export = e5onnx_export.export_model

        def change(*arguments: Any, **options: Any) -> None:
            export(*arguments, **options)
            (checkpoint / "late.json").write_text("{}")

        monkeypatch.setattr(e5onnx_export, "export_model", change)
        with pytest.raises(CheckpointError, match="changed while it was exported"):
            open_model(checkpoint)
        assert list(cache.rglob(MANIFEST)) == []

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda folder: write_json(folder / "config.json", {"model_type": "bert"}), "config.json lacks the key"),
            (lambda folder: (folder / "model.safetensors").write_bytes(b"half a file"), "is damaged"),
            (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        ],
    )
    def test_the_exporters_errors_are_those_of_first_use(
        self, checkpoint: Path, cache: Path, damage: Callable[[Path], object], message: str
    ) -> None:
        damage(checkpoint)
        with pytest.raises(E5OnnxError, match=message):
            Encoder(checkpoint)
        assert list(cache.rglob(MANIFEST)) == []
        assert list(cache.rglob("*.unfinished")) == []

    def test_pickled_weights_need_torch(self, machine: Machine, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
        answer = machine.evaluate("Encoder('tiny')")
        assert answer.error == "MissingDependencyError"
        assert "torch" in answer.message
        assert machine.built() == []


class TestCache:
    """Where the cache is, and what happens to it."""

    def test_its_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("E5ONNX_CACHE", str(tmp_path))
        assert cache_folder() == tmp_path
        monkeypatch.delenv("E5ONNX_CACHE")
        monkeypatch.setenv("HOME", "/home/me")
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        monkeypatch.setenv("LOCALAPPDATA", "/local")
        for platform, place in {
            "linux": "/xdg/e5onnx",
            "darwin": "/home/me/Library/Caches/e5onnx",
            "win32": "/local/e5onnx/Cache",
        }.items():
            with monkeypatch.context() as context:
                context.setattr(sys, "platform", platform)
                assert cache_folder() == Path(place)
        for unusable in ("", "relative"):
            monkeypatch.setenv("XDG_CACHE_HOME", unusable)
            assert cache_folder() == Path("/home/me/.cache/e5onnx")

    def test_a_damaged_folder_is_noticed_and_what_to_delete_is_said(self, checkpoint: Path, cache: Path) -> None:
        folder = open_model(checkpoint, precision="fp32").path
        for file in (MANIFEST, "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"):
            path = folder / file
            content = path.read_bytes()
            changed = bytearray(content)
            changed[len(content) // 2] ^= 1
            for damaged in (changed, content[:-2], None):
                path.unlink()
                if damaged is not None:
                    path.write_bytes(damaged)
                for model in (checkpoint, folder):
                    with pytest.raises(E5OnnxError, match=f"Delete {folder}, and it is built again"):
                        Encoder(model)
                path.write_bytes(content)
        assert Encoder(checkpoint).dimension == 48
        shutil.rmtree(folder)
        assert Encoder(checkpoint).arguments()["model"] == str(folder)

    def test_a_killed_build_leaves_nothing_that_is_used(
        self, machine: Machine, tiny_checkpoint: Path, expected: Any
    ) -> None:
        machine.hub.add("maker/tiny", tiny_checkpoint)
        process = machine.start(ENCODE)
        deadline = time.monotonic() + 60
        while not list(machine.cache.rglob("tokenizer.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        remains = list(machine.cache.rglob("*.unfinished"))
        assert remains
        assert machine.evaluate(ENCODE, HF_HUB_OFFLINE="1").error == "ModelDownloadError"
        near(machine.evaluate(ENCODE).value, expected, atol=1e-6)
        assert not remains[0].exists()
        assert len(machine.built()) == 1

    @linux
    def test_a_full_and_a_read_only_disk_are_one_line(self, machine: Machine, checkpoint: Path) -> None:
        """What is there already is used from a read-only one."""
        disk = machine.folder / "disk"
        disk.mkdir()
        isolated = ["unshare", "--mount", "sh", "-c"]
        if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], check=False).returncode:
            pytest.skip("no file system can be mounted here")
        similarity = f'"{sys.executable}" -m e5onnx similarity tiny -q a -d b'
        script = f"""
            cd {machine.folder}; export E5ONNX_CACHE={disk}
            mount -t tmpfs -o size=1m tmpfs {disk}; {similarity}; echo $?; find {disk} -type f -size +0
            mount -o remount,size=6100k {disk}; {similarity}; echo $?; find {disk} -type f -size +0
            mount -o remount,ro {disk}; {similarity}; echo $?
            mount -o remount,rw,size=90m {disk}; {similarity}; echo $?
            mount -o remount,ro {disk}; {similarity}; echo $?"""
        environment = machine.hub.environment(machine.folder / "home")
        done = subprocess.run([*isolated, script], env=environment, capture_output=True, text=True, timeout=300)
        codes = [line for line in done.stdout.splitlines() if line.isdigit()]
        assert codes == ["1", "1", "1", "0", "0"], done.stderr
        assert str(disk) not in done.stdout
        errors = [line for line in done.stderr.splitlines() if line.startswith("e5onnx: error: ")]
        assert len(errors) == 3
        for error, reason in zip(errors, ["no space left", "no space left", "read-only file system"], strict=True):
            assert reason in error
            assert f"cannot be built in the cache, {disk}" in error
            assert "E5ONNX_CACHE" in error

    def test_a_file_in_its_place_is_an_error(self, checkpoint: Path, cache: Path) -> None:
        cache.write_text("")
        with pytest.raises(CacheError, match="E5ONNX_CACHE"):
            Encoder(checkpoint)

    def test_a_model_folder_is_not_built_again(self, tiny_model: Path, cache: Path) -> None:
        assert Encoder(tiny_model).dimension == 48
        assert not cache.exists()


def test_int8_of_first_use_is_that_of_an_export(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    from e5onnx_export import export_model

    export_model(checkpoint, tmp_path / "exported", precisions=["int8"])
    exported = Encoder(tmp_path / "exported", precision="int8")
    encoder = Encoder(checkpoint, precision="int8")
    assert encoder.fingerprint == exported.fingerprint
    np.testing.assert_array_equal(encoder.encode(TEXTS), exported.encode(TEXTS))
