"""The model folder: manifest, sizes and checksums, fingerprint, and graphs that do not keep the contract."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5onnx import (
    Encoder,
    InputValueError,
    ModelFolderError,
    ModelNotFoundError,
    Tokenizer,
    model_folder,
)
from e5onnx.engine import LoadedGraph, OnnxRuntimeEngine
from e5onnx.manifest import MANIFEST, FileRecord, GraphRecord, Manifest
from e5onnx.model_folder import ModelFolder, OpenedGraph, file_record

PATH = Path("models/some/e5onnx.json")
GRAPH = "onnx/model.onnx"
WEIGHTS = "onnx/model.onnx_data"
FILES = (GRAPH, WEIGHTS, "config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
SHA256 = "0123456789abcdef" * 4

GRAPH_CONTENT: dict[str, Any] = {
    "file": GRAPH,
    "sha256": SHA256,
    "size": 133_000_000,
    "precision": "fp32",
    "portable": False,
    "parity": {"min_cosine": 0.9999998807907104, "texts": 15},
    "weights": {"file": WEIGHTS, "sha256": SHA256[3:] + SHA256[:3], "size": 132_999_000},
    "calibration": None,
}
FILE_CONTENT: dict[str, Any] = {"file": "tokenizer.json", "sha256": SHA256[::-1], "size": 711_396}
CONTENT: dict[str, Any] = {
    "format_version": "1.0",
    "checkpoint": "intfloat/e5-small-v2",
    "revision": None,
    "dimension": 384,
    "layers": 12,
    "max_tokens": 512,
    "pooling": "mean",
    "normalize": True,
    "prompts": {"query": "query: ", "document": "passage: "},
    "default_prompt_name": None,
    "graphs": [
        GRAPH_CONTENT,
        {
            **GRAPH_CONTENT,
            "file": "onnx/model_int8.onnx",
            "sha256": "0" * 64,
            "precision": "int8",
            "weights": None,
            "calibration": {"texts": 371},
        },
    ],
    "files": [FILE_CONTENT, {"file": "config.json", "sha256": "f" * 64, "size": 577}],
    "tools": {"e5onnx": "0.1.0"},
    "similarity_fn_name": "cosine",
}


def signed(content: Any) -> str:
    """Return the text of a manifest with its checksum: SHA-256 of the rest as JSON with sorted keys and no spaces."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "checksum": hashlib.sha256(canonical.encode()).hexdigest()})


def read(content: Any) -> Manifest:
    return Manifest.from_json(signed(content), PATH)


def without(content: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


MANIFEST_OBJECT = read(CONTENT)

# --- the manifest's text

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(_TEXT, values, max_size=3),
    max_leaves=5,
)


def unknown_keys(known: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = _TEXT | st.sampled_from(["extra", "path", "self", "checksums"])
    return st.dictionaries(names.filter(lambda name: name not in {*known, "checksum"}), _JSON, max_size=4)


@settings(deadline=None)
@given(
    top=unknown_keys(CONTENT),
    in_graph=unknown_keys(GRAPH_CONTENT),
    in_weights=unknown_keys(FILE_CONTENT),
    in_file=unknown_keys(FILE_CONTENT),
    known=st.fixed_dictionaries(
        {
            "checkpoint": _TEXT,
            "revision": st.none() | _TEXT,
            "dimension": st.integers(1, 4096),
            "normalize": st.booleans(),
            "prompts": st.dictionaries(_TEXT, _TEXT, max_size=3),
            "tools": st.dictionaries(_TEXT, _TEXT, max_size=3),
        }
    ),
)
def test_round_trip_keeps_every_key_where_it_was(
    top: dict[str, Any],
    in_graph: dict[str, Any],
    in_weights: dict[str, Any],
    in_file: dict[str, Any],
    known: dict[str, Any],
) -> None:
    content = {
        **CONTENT,
        **known,
        **top,
        "graphs": [{**GRAPH_CONTENT, **in_graph, "weights": {**GRAPH_CONTENT["weights"], **in_weights}}],
        "files": [{**FILE_CONTENT, **in_file}],
    }
    manifest = read(content)
    assert (manifest.extra, manifest.graphs[0].extra, manifest.files[0].extra) == (top, in_graph, in_file)
    assert manifest.graphs[0].weights == FileRecord(**GRAPH_CONTENT["weights"], extra=in_weights)
    assert json.loads(manifest.to_json()) == json.loads(signed(content))
    assert Manifest.from_json(manifest.to_json(), PATH) == manifest


def test_every_field_is_read() -> None:
    manifest = MANIFEST_OBJECT
    assert manifest.graph("fp32") == GraphRecord(**{**GRAPH_CONTENT, "weights": FileRecord(**GRAPH_CONTENT["weights"])})
    assert manifest.graph("int8").weights is None
    assert manifest.files[0] == FileRecord(**FILE_CONTENT)
    assert [record.file for record in manifest.records()] == [
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/model_int8.onnx",
        "tokenizer.json",
        "config.json",
    ]
    for name in CONTENT.keys() - {"graphs", "files"}:
        assert getattr(manifest, name) == CONTENT[name]


@pytest.mark.parametrize("version", ["2.0", "2", "10.3", 2])
@pytest.mark.parametrize("write", [signed, json.dumps])
def test_a_newer_major_format_is_refused_before_anything_else(version: Any, write: Callable[[Any], str]) -> None:
    text = write({"format_version": version, "of": "which nothing is known"})
    with pytest.raises(ModelFolderError, match=rf"format version {version}; .*pip install --upgrade e5onnx"):
        Manifest.from_json(text, PATH)


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.27"])
def test_a_newer_minor_format_is_read_and_kept(version: str) -> None:
    manifest = read({**CONTENT, "format_version": version, "new": [1, 2]})
    assert manifest.format_version == version
    assert json.loads(manifest.to_json())["new"] == [1, 2]


def test_a_manifest_of_version_1_0_compares_by_cosine() -> None:
    assert read(without(CONTENT, "similarity_fn_name")).similarity_fn_name == "cosine"
    assert read({**CONTENT, "similarity_fn_name": "dot"}).similarity_fn_name == "dot"
    with pytest.raises(ModelFolderError, match="'similarity_fn_name' is 'manhattan', not cosine or dot"):
        read({**CONTENT, "similarity_fn_name": "manhattan"})


@pytest.mark.parametrize("version", ["", "one", "-1.0", None, True, [1], "²"])
def test_an_unreadable_format_version_is_refused(version: Any) -> None:
    with pytest.raises(ModelFolderError, match="unreadable format version"):
        read({**CONTENT, "format_version": version})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"dimension": 384', '"dimension": 385'),
        ('"query: "', '"query:"'),
        ('"max_tokens": 512', '"max_tokens": 51'),
        ('"size": 577', '"size": 578'),
        ('"checksum": "', '"checksum": "0'),
        ('"checksum"', '"check"'),
        ('"layers"', '"new": 1, "layers"'),
    ],
)
def test_a_change_by_hand_is_noticed(before: str, after: str) -> None:
    text = signed(CONTENT)
    assert before in text
    with pytest.raises(ModelFolderError, match=r"e5onnx\.json was changed after the export.*Export the model again"):
        Manifest.from_json(text.replace(before, after, 1), PATH)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "\ufeff{}", "[" * 100_000, "9" * 5000, signed(CONTENT)[:-1]])
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(ModelFolderError, match=r"e5onnx\.json is not valid JSON"):
        Manifest.from_json(text, PATH)


@pytest.mark.parametrize("text", ["[]", "null", "5", '"text"', "{}", '{"model_type": "bert"}', '["format_version"]'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ModelFolderError, match=r"e5onnx\.json is not the manifest"):
        Manifest.from_json(text, PATH)


@pytest.mark.parametrize(
    ("content", "key"),
    [(without(CONTENT, key), key) for key in CONTENT if key not in ("format_version", "similarity_fn_name")]
    + [({**CONTENT, "graphs": [without(GRAPH_CONTENT, key)]}, key) for key in GRAPH_CONTENT]
    + [({**CONTENT, "files": [without(FILE_CONTENT, key)]}, key) for key in FILE_CONTENT],
)
def test_a_missing_key_is_named(content: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelFolderError, match=rf"e5onnx\.json is not a valid manifest: it lacks the key '{key}'"):
        read(content)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format_version": 1.0}, "format_version"),
        ({"checkpoint": None}, "checkpoint"),
        ({"revision": 5}, "revision"),
        ({"dimension": "384"}, "dimension"),
        ({"dimension": 384.0}, "dimension"),
        ({"layers": [12]}, "layers"),
        ({"max_tokens": None}, "max_tokens"),
        ({"normalize": 1}, "normalize"),
        ({"prompts": []}, "prompts"),
        ({"default_prompt_name": {}}, "default_prompt_name"),
        ({"graphs": {}}, "graphs"),
        ({"tools": "none"}, "tools"),
        ({"graphs": [5]}, "precision"),
        ({"files": [["tokenizer.json"]]}, "sha256"),
        ({"graphs": [{**GRAPH_CONTENT, "precision": 32}]}, "precision"),
        ({"graphs": [{**GRAPH_CONTENT, "parity": []}]}, "parity"),
        ({"graphs": [{**GRAPH_CONTENT, "calibration": 371}]}, "calibration"),
        ({"graphs": [{**GRAPH_CONTENT, "weights": []}]}, "weights"),
        ({"graphs": [{**GRAPH_CONTENT, "weights": {"file": WEIGHTS}}]}, "sha256"),
        ({"graphs": [{**GRAPH_CONTENT, "weights": {**GRAPH_CONTENT["weights"], "file": "../x"}}]}, "outside"),
        ({"files": [{**FILE_CONTENT, "size": "711396"}]}, "size"),
        ({"files": [{**FILE_CONTENT, "sha256": None}]}, "sha256"),
        ({"files": [{**FILE_CONTENT, "file": 5}]}, "file"),
    ],
)
def test_a_wrong_type_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFolderError, match=rf"e5onnx\.json is not a valid manifest: .*{named}"):
        read({**CONTENT, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts": {"query": 5}}, "prompts"),
        ({"default_prompt_name": "no such prompt"}, "default_prompt_name"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_an_impossible_value_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFolderError, match=rf"e5onnx\.json is not a valid manifest: .*{named}"):
        read({**CONTENT, **changes})


@pytest.mark.parametrize("key", ["graphs", "files"])
@pytest.mark.parametrize(
    "name",
    ["../x", "..", "/etc/passwd", "onnx/../../x", "a/..", "", ".", "a\\b", "..\\x", "C:\\x", "C:/x"],
)
def test_a_file_outside_of_the_folder_is_refused(key: str, name: str) -> None:
    record = {**(GRAPH_CONTENT if key == "graphs" else FILE_CONTENT), "file": name}
    with pytest.raises(ModelFolderError, match="outside the model folder"):
        read({**CONTENT, key: [record]})


# --- the fingerprint


def with_graph(position: int, **changes: Any) -> dict[str, Any]:
    graphs = [replace(graph, **changes) if i == position else graph for i, graph in enumerate(MANIFEST_OBJECT.graphs)]
    return {"graphs": tuple(graphs)}


def with_file(position: int, **changes: Any) -> dict[str, Any]:
    files = [replace(file, **changes) if i == position else file for i, file in enumerate(MANIFEST_OBJECT.files)]
    return {"files": tuple(files)}


@pytest.mark.parametrize(
    "changes",
    [
        with_graph(0, sha256="1" * 64),
        with_file(0, sha256="1" * 64),
        {"files": MANIFEST_OBJECT.files[1:]},  # without the tokenizer
        {"prompts": {"query": "query: ", "document": "passage:"}},
        {"prompts": {"query": "query: "}},
        {"prompts": {}},
        {"default_prompt_name": "query"},
        {"max_tokens": 256},
        {"normalize": False},
    ],
)
def test_fingerprint_changes_with_all_that_changes_vectors(changes: dict[str, Any]) -> None:
    assert replace(MANIFEST_OBJECT, **changes).fingerprint("fp32") != MANIFEST_OBJECT.fingerprint("fp32")


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": "a copy"},
        {"revision": "main"},
        {"layers": 13},
        {"pooling": "cls"},  # the graph has it
        {"tools": {"e5onnx": "9.9"}},
        {"format_version": "1.9"},
        {"extra": {"new": True}},
        {"prompts": {"document": "passage: ", "query": "query: "}},  # another order
        {"files": MANIFEST_OBJECT.files[::-1]},
        {"graphs": MANIFEST_OBJECT.graphs[::-1]},
        {"graphs": MANIFEST_OBJECT.graphs[:1]},
        with_graph(0, parity={}),
        with_graph(0, file="onnx/other.onnx"),
        with_graph(0, extra={"new": True}),
        with_graph(1, sha256="1" * 64),
        with_file(1, sha256="1" * 64),
    ],
)
def test_fingerprint_changes_with_nothing_else(changes: dict[str, Any]) -> None:
    assert replace(MANIFEST_OBJECT, **changes).fingerprint("fp32") == MANIFEST_OBJECT.fingerprint("fp32")


def test_fingerprints_of_precisions_differ() -> None:
    fp32, int8 = (MANIFEST_OBJECT.fingerprint(precision) for precision in ("fp32", "int8"))
    assert fp32 != int8
    assert {len(fp32), len(int8)} == {16}
    assert int(fp32 + int8, 16) > 0  # hexadecimal


def test_an_unknown_precision_is_refused_with_those_there_are() -> None:
    for call in (MANIFEST_OBJECT.graph, MANIFEST_OBJECT.fingerprint):
        with pytest.raises(InputValueError, match="no graph with precision 'fp16'; it has 'fp32', 'int8'"):
            call("fp16")


# --- opening


@pytest.fixture
def copied_model(tiny_model: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of a model folder that a test may damage."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=[ModelFolder.open, Tokenizer, Encoder], ids=["ModelFolder.open", "Tokenizer", "Encoder"])
def open_folder(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    """Each way to open a folder; all say the same of one that is none."""
    opened: Callable[[Path], object] = request.param
    return opened


def test_a_missing_folder_is_named(open_folder: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=f"there is no folder {tmp_path / 'absent'}"):
        open_folder(tmp_path / "absent")


def test_a_file_is_no_folder(open_folder: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=f"there is no folder {file}"):
        open_folder(file)


def test_a_checkpoint_is_to_be_exported(tmp_path: Path) -> None:
    """Tokenizer and Encoder do so themselves; see test_cache.py."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=f"holds a checkpoint.*e5onnx export {tmp_path}"):
        ModelFolder.open(tmp_path)


def test_a_folder_without_manifest_is_refused(open_folder: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=f"{tmp_path} is not an e5onnx model folder: {MANIFEST} is missing"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe{\x00", "is not UTF-8 text"), (b"", "is not valid JSON"), (b"{}", "is not the manifest")],
)
def test_a_damaged_manifest_is_refused(
    open_folder: Callable[[Path], object], tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ModelFolderError, match=f"{tmp_path / MANIFEST} {message}"):
        open_folder(tmp_path)


def test_an_opened_folder_stays_found_when_the_process_moves(
    copied_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied_model.parent)
    folder = ModelFolder.open(copied_model.name)
    monkeypatch.chdir("/")
    assert folder.path == copied_model
    assert folder.file("tokenizer.json") == copied_model / "tokenizer.json"


# --- sizes and checksums


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer.json"])
@pytest.mark.parametrize("size", [0, 1000])
def test_a_truncated_file_is_named_with_its_sizes(copied_model: Path, name: str, size: int) -> None:
    path = copied_model / name
    content = path.read_bytes()
    path.write_bytes(content[:size])
    message = rf"{path} has {size:,} bytes where the model's manifest expects {len(content):,}\."
    with pytest.raises(ModelFolderError, match=message):
        Encoder(copied_model)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer.json"])
def test_a_removed_file_is_named_with_its_size(copied_model: Path, name: str) -> None:
    path = copied_model / name
    size = path.stat().st_size
    path.unlink()
    with pytest.raises(ModelNotFoundError, match=f"{path} is missing; the model's manifest expects {size:,} bytes"):
        Encoder(copied_model)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("no memory"), KeyboardInterrupt()])
def test_a_failure_while_the_weights_are_hashed_is_not_lost(
    copied_model: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(file: Path | int, advance: None = None) -> str:
        if isinstance(file, int):  # the weights are open already
            raise error
        return sha256(file)

    sha256 = model_folder._sha256
    monkeypatch.setattr(model_folder, "_sha256", fail)
    with pytest.raises(ModelFolderError if isinstance(error, OSError) else type(error)) as raised:
        Encoder(copied_model)
    if isinstance(error, OSError):
        assert f"{WEIGHTS} cannot be read: Input/output error" in str(raised.value)


def test_weights_that_are_overwritten_in_place_are_noticed(copied_model: Path) -> None:
    """An engine maps them into memory, so that what is written into the file changes its vectors."""
    encoder = Encoder(copied_model)
    expected = encoder.encode("text")
    path = copied_model / WEIGHTS
    content = path.read_bytes()
    for damaged in (content[::-1], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(ModelFolderError, match=f"{path} was changed after the export"):
            encoder.encode("text")
        path.write_bytes(content)
        np.testing.assert_array_equal(encoder.encode("text"), expected)
    path.touch()
    np.testing.assert_array_equal(encoder.encode("text"), expected)


def test_a_model_may_be_replaced_or_removed_while_it_is_in_use(copied_model: Path, sample_model: Path) -> None:
    encoder = Encoder(copied_model)
    expected = encoder.encode("text")
    other = copied_model.parent / "other"
    shutil.copytree(sample_model, other)
    for name in (GRAPH, WEIGHTS, MANIFEST):
        (other / name).replace(copied_model / name)
        np.testing.assert_array_equal(encoder.encode("text"), expected)
    shutil.rmtree(other)
    shutil.rmtree(copied_model)
    np.testing.assert_array_equal(encoder.encode("text"), expected)
    copied_model.mkdir()  # for the fixture


def test_weights_that_are_replaced_while_they_are_loaded_are_noticed(copied_model: Path) -> None:
    copy = copied_model / "copy"
    shutil.copyfile(copied_model / WEIGHTS, copy)
    with (
        pytest.raises(ModelFolderError, match=f"{WEIGHTS} was replaced while it was loaded: load the model again"),
        ModelFolder.open(copied_model).graph("fp32"),
    ):
        copy.replace(copied_model / WEIGHTS)


def test_a_folder_has_no_revisions(tiny_model: Path) -> None:
    for load in (Encoder, Tokenizer):
        with pytest.raises(InputValueError, match=r"a revision is for a hub id; .* is a folder: leave out .*'main'"):
            load(tiny_model, revision="main")


def test_a_manifest_that_cannot_be_read_is_named(open_folder: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(ModelFolderError, match=f"{MANIFEST} cannot be read"):
        open_folder(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_a_missing_file(copied_model: Path) -> None:
    shutil.rmtree(copied_model / "onnx")
    (copied_model / "onnx").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=f"{copied_model / GRAPH} is missing"):
        Encoder(copied_model)


def test_a_manifest_without_tokenizer_is_refused(copied_model: Path) -> None:
    manifest = ModelFolder.open(copied_model).manifest
    others = tuple(record for record in manifest.files if record.file != "tokenizer.json")
    (copied_model / MANIFEST).write_text(replace(manifest, files=others).to_json())
    with pytest.raises(ModelFolderError, match=r"e5onnx\.json does not list tokenizer\.json"):
        Encoder(copied_model)


def test_verify_returns_every_file_of_the_folder(tiny_model: Path) -> None:
    checked = {record.file for record in ModelFolder.open(tiny_model).verify()}
    there = {path.relative_to(tiny_model).as_posix() for path in tiny_model.rglob("*") if path.is_file()}
    assert checked == there - {MANIFEST} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_verify_finds_one_flipped_bit(copied_model: Path, name: str) -> None:
    path, folder = copied_model / name, ModelFolder.open(copied_model)
    content = path.read_bytes()
    for position in (0, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ModelFolderError, match=f"{path} was changed after the export: its SHA-256 is"):
            folder.verify()
    path.write_bytes(content)
    assert folder.verify()


@pytest.mark.parametrize("name", FILES)
def test_verify_finds_a_missing_and_a_longer_file(copied_model: Path, name: str) -> None:
    path, folder = copied_model / name, ModelFolder.open(copied_model)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ModelFolderError, match=f"{path} has .* bytes where"):
        folder.verify()
    path.unlink()
    with pytest.raises(ModelNotFoundError, match=f"{path} is missing"):
        folder.verify()


# --- graphs that are not those of a model folder, with a manifest that says they are


def field(number: int, value: int | str | bytes) -> bytes:
    """Return one field of a protobuf message: a number, or anything with a length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    encoded = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(encoded)) + encoded


def _varint(number: int) -> bytes:
    if number < 128:
        return bytes([number])
    return bytes([number & 127 | 128]) + _varint(number >> 7)


FLOAT, INT32, INT64, DOUBLE = 1, 6, 7, 11  # TensorProto.DataType of onnx.proto
TOKEN_INPUTS = {"input_ids": INT64, "attention_mask": INT64}
BOTH_OUTPUTS = {"sentence_embedding": "vectors", "pooled_embedding": "vectors"}


def onnx_graph(
    *,
    inputs: dict[str, int] = TOKEN_INPUTS,
    outputs: dict[str, str] = BOTH_OUTPUTS,
    shape: tuple[int | str, ...] = ("batch", "sequence"),
    dimension: int = 48,
    kind: int = FLOAT,
) -> bytes:
    """Return an ONNX file that looks up a row for each token and takes the largest of them (without the onnx package).

    An output is one of "tokens" `[batch, sequence, dimension]`, "vectors" `[batch, dimension]` and "largest" `[]`.
    """

    def value(name: str, element: int, dims: bytes | None = None) -> bytes:
        tensor = field(1, element) + (b"" if dims is None else field(2, dims))
        return field(1, name) + field(2, field(1, tensor))

    def node(operator: str, sources: list[str], target: str, attributes: bytes = b"") -> bytes:
        return field(
            1, b"".join(field(1, name) for name in sources) + field(2, target) + field(4, operator) + attributes
        )

    no_keepdims = field(5, field(1, "keepdims") + field(3, 0) + field(20, 2))
    over_tokens = field(5, field(1, "axes") + field(8, 1) + field(20, 7))
    dims = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in shape)
    rows = field(1, 1) + field(1, dimension) + field(2, kind) + field(8, "rows")
    rows += field(9, bytes(dimension * (8 if kind == DOUBLE else 4)))
    graph = (
        node("Gather", ["rows", next(iter(inputs))], "tokens")
        + node("ReduceMax", ["tokens"], "vectors", over_tokens + no_keepdims)
        + node("ReduceMax", ["tokens"], "largest", no_keepdims)
        + b"".join(node("Identity", [source], name) for name, source in outputs.items())
        + field(2, "graph")
        + field(5, rows)
        + b"".join(field(11, value(name, element, dims)) for name, element in inputs.items())
        + b"".join(field(12, value(name, kind)) for name in outputs)
    )
    return field(1, 8) + field(8, field(1, "") + field(2, 17)) + field(7, graph)


def replace_graph(folder: Path, content: bytes) -> None:
    """Put another graph into a model folder, and rewrite the manifest to fit."""
    (folder / GRAPH).write_bytes(content)
    manifest = ModelFolder.open(folder).manifest
    measured = file_record(folder, GRAPH)
    graph = replace(manifest.graph("fp32"), sha256=measured.sha256, size=measured.size)
    (folder / MANIFEST).write_text(replace(manifest, graphs=(graph,)).to_json())
    ModelFolder.open(folder).verify()


def test_a_graph_that_keeps_the_contract_is_taken(copied_model: Path) -> None:
    replace_graph(copied_model, onnx_graph())
    assert Encoder(copied_model).dimension == 48


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(onnx_graph(inputs={"ids": INT64, "mask": INT64}), id="other input names"),
        pytest.param(onnx_graph(inputs={"input_ids": INT64}), id="no attention mask"),
        pytest.param(onnx_graph(inputs={**TOKEN_INPUTS, "token_type_ids": INT64}), id="one more input"),
        pytest.param(onnx_graph(inputs={"input_ids": INT32, "attention_mask": INT32}), id="int32 inputs"),
        pytest.param(onnx_graph(shape=(1, 128)), id="inputs of a fixed shape"),
        pytest.param(onnx_graph(outputs={"last_hidden_state": "tokens"}), id="another encoder's output"),
        pytest.param(onnx_graph(outputs={"sentence_embedding": "vectors"}), id="no pooled embedding"),
        pytest.param(onnx_graph(outputs={**BOTH_OUTPUTS, "logits": "vectors"}), id="one more output"),
        pytest.param(onnx_graph(outputs=dict.fromkeys(BOTH_OUTPUTS, "tokens")), id="one vector a token"),
        pytest.param(onnx_graph(outputs=dict.fromkeys(BOTH_OUTPUTS, "largest")), id="one number"),
        pytest.param(onnx_graph(dimension=47), id="another dimension"),
        pytest.param(onnx_graph(kind=DOUBLE), id="double outputs"),
    ],
)
def test_a_graph_of_another_contract_is_refused(copied_model: Path, graph: bytes) -> None:
    replace_graph(copied_model, graph)
    with pytest.raises(ModelFolderError, match=f"{copied_model / GRAPH} is not a graph of an e5onnx model folder"):
        Encoder(copied_model)


def test_a_dimension_other_than_the_graph_has_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"expected .*\['any', 384\]"):
        LoadedGraph(
            OpenedGraph(tiny_model / GRAPH, lambda: None),
            dimension=384,
            load=partial(OnnxRuntimeEngine, threads=1, precision="fp32"),
        )


@pytest.mark.parametrize("damage", ["garbage", "zeros", "nothing", "half", "tokenizer.json"])
def test_a_file_that_is_no_graph_is_refused(copied_model: Path, damage: str) -> None:
    content = (copied_model / GRAPH).read_bytes()
    damaged = {
        "garbage": (b"no ONNX graph " * len(content))[: len(content)],
        "zeros": bytes(len(content)),
        "nothing": b"",
        "half": content[: len(content) // 2],
        "tokenizer.json": (copied_model / "tokenizer.json").read_bytes(),
    }
    replace_graph(copied_model, damaged[damage])
    with pytest.raises(ModelFolderError, match=f"onnxruntime .* cannot load {copied_model / GRAPH}"):
        Encoder(copied_model)
