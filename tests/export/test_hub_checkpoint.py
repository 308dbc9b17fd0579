"""`e5onnx export` of a hub id, through the real huggingface_hub and a stand-in for the hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sentence_transformers import SentenceTransformer

from e5onnx import Encoder
from e5onnx.manifest import Manifest
from e5onnx.model_folder import ModelFolder
from helpers import near, write_json
from hub_stand_in import HubStandIn

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
# What repositories also hold and an export does not need: weights for other programs, and what goes with them.
OTHER_WEIGHTS = [
    "onnx/model.onnx",
    "openvino/openvino_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
]
OTHER_FILES = ["onnx/config.json", "onnx/tokenizer.json", "onnx/vocab.txt", "openvino/openvino_model.xml", "README.md"]
TEXTS = ["how much protein should a female eat", "summit define"]


# huggingface_hub reads its environment when it is imported, hence a process of its own; torch takes long to import,
# so that all exports share one.
_PROGRAM = """
import contextlib, io, json, os, sys
from e5onnx.cli import main
for line in sys.stdin:
    folder, arguments = json.loads(line)
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as notes:
        code = main(arguments)
    print(json.dumps([code, output.getvalue(), notes.getvalue()]), flush=True)
"""
Export = Callable[..., "subprocess.CompletedProcess[str]"]


class Machine(NamedTuple):
    """The hub, a user's hub cache, and the process that exports."""

    hub: HubStandIn
    home: Path
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    home, pipe = tmp_path_factory.mktemp("home"), subprocess.PIPE
    command = [sys.executable, "-c", _PROGRAM]
    with (
        HubStandIn() as hub,
        subprocess.Popen(command, env=hub.environment(home), encoding="utf-8", stdin=pipe, stdout=pipe) as process,
    ):
        yield Machine(hub, home, process)
        process.communicate()  # which closes its input


@pytest.fixture
def hub(machine: Machine) -> HubStandIn:
    """A hub without repositories, for a user whose cache is empty."""
    machine.hub.repositories.clear()
    machine.hub.requests.clear()
    shutil.rmtree(machine.home)
    machine.home.mkdir()
    return machine.hub


@pytest.fixture
def export(machine: Machine, hub: HubStandIn, tmp_path: Path) -> Export:
    """A function that runs `e5onnx export`; a relative output is below `tmp_path`."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["export", *arguments, "--precision", "fp32"]
        assert machine.process.stdin
        assert machine.process.stdout
        print(json.dumps([str(tmp_path), command]), file=machine.process.stdin, flush=True)
        return subprocess.CompletedProcess(command, *json.loads(machine.process.stdout.readline()))

    return run


def exported(done: subprocess.CompletedProcess[str], model: Path) -> Manifest:
    """Return the manifest of a model folder that was made without an error and is complete."""
    assert done.returncode == 0, done.stderr
    folder = ModelFolder.open(model)
    folder.verify()
    return folder.manifest


def with_other_files(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint and put files beside it that an export must not fetch."""
    shutil.copytree(checkpoint, folder)
    for file in OTHER_WEIGHTS + OTHER_FILES:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("nobody should read this")
    return folder


def pickle_weights(folder: Path, *, keep_safetensors: bool) -> None:
    """Write the weights as PyTorch does without safetensors."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / WEIGHTS), folder / PICKLED)
    if not keep_safetensors:
        (folder / WEIGHTS).unlink()


def test_e5_is_exported_with_its_prompts_and_commit(
    hub: HubStandIn, export: Export, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    commit = hub.add("intfloat/e5-small-v2", tiny_checkpoint)
    done = export("intfloat/e5-small-v2", "model")
    manifest = exported(done, tmp_path / "model")
    assert (manifest.checkpoint, manifest.revision) == ("intfloat/e5-small-v2", commit)
    assert manifest.prompts == {"query": "query: ", "document": "passage: "}
    assert (manifest.pooling, manifest.normalize, manifest.max_tokens) == ("mean", True, 512)
    assert commit in done.stdout

    peer = SentenceTransformer(str(tiny_checkpoint), device="cpu", prompts={"query": "query: "})
    expected = peer.encode_query(TEXTS, normalize_embeddings=True)
    near(Encoder(tmp_path / "model").encode_query(TEXTS), expected)


def test_revision_pins_the_checkpoint_and_other_files_stay_on_the_hub(
    hub: HubStandIn, export: Export, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    (tmp_path / "unfinished").mkdir()
    hub.add("intfloat/e5-small-v2", tmp_path / "unfinished")
    commit = hub.add(
        "intfloat/e5-small-v2", with_other_files(tiny_checkpoint, tmp_path / "checkpoint"), revision="v1.0"
    )
    done = export("intfloat/e5-small-v2", "model", "--revision", "v1.0")
    manifest = exported(done, tmp_path / "model")
    assert (manifest.checkpoint, manifest.revision) == ("intfloat/e5-small-v2", commit)
    assert manifest.prompts == {"query": "query: ", "document": "passage: "}
    assert manifest.dimension == 48
    assert {request.revision for request in hub.requests if request.file} == {commit}
    assert {WEIGHTS, "config.json", "tokenizer.json"} <= set(hub.downloaded())
    assert not set(OTHER_WEIGHTS + OTHER_FILES) & set(hub.downloaded())


@pytest.mark.parametrize("keep_safetensors", [False, True], ids=["only .bin", "both"])
def test_pickled_weights_are_fetched_where_there_are_no_safetensors(
    hub: HubStandIn, export: Export, tmp_path: Path, tiny_checkpoint: Path, keep_safetensors: bool
) -> None:
    checkpoint = with_other_files(tiny_checkpoint, tmp_path / "checkpoint")
    pickle_weights(checkpoint, keep_safetensors=keep_safetensors)
    hub.add("maker/small", checkpoint)
    manifest = exported(export("maker/small", "model"), tmp_path / "model")
    assert (manifest.checkpoint, manifest.prompts) == ("maker/small", {})
    assert {WEIGHTS, PICKLED} & set(hub.downloaded()) == {WEIGHTS if keep_safetensors else PICKLED}
    assert not set(OTHER_WEIGHTS) & set(hub.downloaded())


@pytest.mark.parametrize("form", ["safetensors", "pickled", "safetensors in shards", "pickled in shards"])
def test_weights_are_fetched_from_the_encoders_own_folder(
    hub: HubStandIn, export: Export, tmp_path: Path, tiny_checkpoint: Path, form: str
) -> None:
    """Other weights, a stray adapter among them, are not fetched and do not hide the encoder's."""
    from transformers import BertModel

    checkpoint = tmp_path / "checkpoint"
    encoder = shutil.copytree(tiny_checkpoint, checkpoint / "0_Transformer")
    (encoder / WEIGHTS).unlink()
    size = "1MB" if "shards" in form else "1GB"
    bert = BertModel.from_pretrained(tiny_checkpoint)
    bert.save_pretrained(encoder, safe_serialization="safetensors" in form, max_shard_size=size)
    own = {path.relative_to(checkpoint).as_posix() for path in encoder.glob("*model*") if path.suffix != ".json"}
    others = ["adapter/adapter_model.safetensors", "adapter/model.safetensors", WEIGHTS, PICKLED]
    for file in others:
        (checkpoint / file).parent.mkdir(exist_ok=True)
        (checkpoint / file).write_text("nobody should read this")
    write_json(checkpoint / "adapter/adapter_config.json", {"peft_type": "LORA"})
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    write_json(checkpoint / "modules.json", modules)
    write_json(checkpoint / "1_Pooling/config.json", {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True})
    hub.add("maker/small", checkpoint)
    exported(export("maker/small", "model"), tmp_path / "model")
    fetched = {file for file in hub.downloaded() if not file.endswith((".json", ".txt"))}
    assert fetched == own
    assert len(fetched) == (2 if "shards" in form else 1)
    local = tmp_path / "local"
    exported(export(str(checkpoint), str(local)), local)
    assert ModelFolder.open(local).manifest.graphs == ModelFolder.open(tmp_path / "model").manifest.graphs


def test_a_stray_adapter_does_not_hide_the_weights(
    hub: HubStandIn, export: Export, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    checkpoint = with_other_files(tiny_checkpoint, tmp_path / "checkpoint")
    pickle_weights(checkpoint, keep_safetensors=False)
    for file in ("lora/adapter_model.safetensors", "lora/model.safetensors", "adapter_model.safetensors"):
        (checkpoint / file).parent.mkdir(exist_ok=True)
        (checkpoint / file).write_text("nobody should read this")
    hub.add("maker/small", checkpoint)
    exported(export("maker/small", "model"), tmp_path / "model")
    assert PICKLED in hub.downloaded()
    assert not [file for file in hub.downloaded() if file.endswith(".safetensors")]


def test_no_weights_are_fetched_of_what_is_refused(
    hub: HubStandIn, export: Export, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    write_json(checkpoint / "adapter_config.json", {"peft_type": "LORA"})
    hub.add("maker/small", checkpoint)
    done = export("maker/small", "model")
    assert done.returncode == 1
    assert "adapter_config.json" in done.stderr
    assert "config.json" in hub.downloaded()
    assert WEIGHTS not in hub.downloaded()


def test_a_mistyped_folder_is_not_asked_for_at_the_hub(hub: HubStandIn, export: Export, tmp_path: Path) -> None:
    (tmp_path / "checkpoints/small").mkdir(parents=True)
    done = export("checkpoints/smal", "model")
    assert done.returncode == 1
    assert "checkpoints/ holds: small" in done.stderr
    assert hub.requests == []


def test_a_revision_of_a_folder_is_refused(
    hub: HubStandIn, export: Export, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for checkpoint in (str(tiny_checkpoint), "sample"):
        done = export(checkpoint, "model", "--revision", "v1")
        assert done.returncode == 1
        assert "has no revision 'v1'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["maker/unknown"], "no folder maker/unknown"),
        (["maker/small", "--revision", "v9"], "'v9'"),
        (["maker/gated"], "HF_TOKEN"),
        (["maker/empty"], "config.json"),
    ],
    ids=["unknown", "revision", "gated", "no checkpoint"],
)
def test_errors_are_one_line_and_leave_no_folder(
    hub: HubStandIn, export: Export, tmp_path: Path, tiny_checkpoint: Path, arguments: list[str], expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.json").write_text("{}")
    hub.add("maker/small", tiny_checkpoint)
    hub.add("maker/gated", tiny_checkpoint, gated=True)
    hub.add("maker/empty", tmp_path / "empty")
    repository, *options = arguments
    done = export(repository, "out/model", *options)
    assert done.returncode == 1
    assert done.stdout == ""
    # huggingface_hub shows the progress of what it fetches on the same stream
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("e5onnx:")]
    assert line == done.stderr.splitlines()[-1]
    assert expected in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
