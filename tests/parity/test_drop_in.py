"""The Encoder where a SentenceTransformer was: the page that compares them is checked, and the vectors are compared."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from torch import nn

from e5onnx import Encoder, InputValueError, MissingPromptWarning, TruncationWarning
from e5onnx.errors import RequestError
from e5onnx.manifest import MANIFEST
from e5onnx.model_folder import ModelFolder, file_record
from e5onnx.server.options import ServerOptions
from e5onnx.server.tei import EmbedRequest
from texts import TEXTS

PAGE = (Path(__file__).parents[2] / "docs/sentence_transformers.md").read_text()
METHODS = ("encode", "encode_query", "encode_document")
REPLACED = {"model_name_or_path": "model"}


def table(heading: str) -> dict[str, tuple[str, str]]:
    """Return the status and note of each name in the table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (same|differs|refused|not there) \| ?(.*?) ?\|$", section, re.MULTILINE)
    assert len(rows) == len({row[0] for row in rows}) > 10
    return {name: (status, note) for name, status, note in rows}


CALL, LOAD, ATTRIBUTES = (
    table("`encode`, `encode_query`, `encode_document`"),
    table("`SentenceTransformer(...)`"),
    table("Attributes and methods"),
)


@pytest.fixture(scope="module")
def encoder(e5_model: Path) -> Encoder:
    return Encoder(e5_model, threads=1)


@pytest.fixture(scope="module")
def forced(e5_model: Path) -> Encoder:
    return Encoder(e5_model, threads=1, truncate_dim=100, force_truncate_dim=True)


@pytest.fixture(scope="module")
def peer(e5_checkpoint: Path) -> SentenceTransformer:
    prompts = {"query": "query: ", "document": "passage: "}
    return SentenceTransformer(str(e5_checkpoint), device="cpu", prompts=prompts)


def names(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("method", METHODS)
def test_a_call_takes_the_same_arguments_at_the_same_positions(method: str) -> None:
    theirs = names(getattr(SentenceTransformer, method))
    assert theirs == list(CALL)
    for prefix in ("", "a"):
        ours = inspect.signature(getattr(Encoder, prefix + method)).parameters
        assert list(ours) == ["self", *(name for name in theirs if CALL[name][0] != "not there"), "truncate"]
        assert ours["truncate"].kind is inspect.Parameter.KEYWORD_ONLY


def test_every_argument_of_loading_is_in_the_table() -> None:
    assert names(SentenceTransformer.__init__) == list(LOAD)
    ours = names(Encoder.__init__)
    for name, (status, _) in LOAD.items():
        assert (REPLACED.get(name, name) in ours) is (status != "not there"), name


def test_every_public_attribute_is_in_the_table(peer: SentenceTransformer, encoder: Encoder) -> None:
    theirs = {name for name in dir(peer) if not name.startswith("_")} - {
        name for name in dir(nn.Sequential()) if not name.startswith("_")
    }
    listed = {name for name, (_, note) in ATTRIBUTES.items() if not note.startswith("since sentence-transformers 6")}
    modules = {name for name, _ in peer.named_children()}
    assert theirs - modules - set(ATTRIBUTES) == set()
    assert listed - theirs == set()
    for name, (status, note) in ATTRIBUTES.items():
        assert hasattr(encoder, name) is (status != "not there"), name
        if note.startswith("read only"):
            with pytest.raises(AttributeError, match=name):
                setattr(encoder, name, None)
    with pytest.raises(TypeError, match="does not support item assignment"):
        encoder.prompts["query"] = "other: "  # type: ignore[index]


@pytest.mark.parametrize("name", [name for name, (status, _) in CALL.items() if status == "refused"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_refused_says_what_the_table_says(encoder: Encoder, method: str, name: str) -> None:
    (argument, value, message) = re.fullmatch(r"`(\w+)=(.+?)`: (.+)", CALL[name][1]).groups()  # type: ignore[union-attr]
    values: dict[str, Any] = {"None": None, "False": False, "True": True, '"cuda"': "cuda", "{}": {}, "10": 10}
    with pytest.raises(InputValueError) as caught:
        getattr(encoder, method)("text", **{argument: values[value]})
    assert str(caught.value) == message


def test_a_device_of_loading_is_the_cpu(tiny_model: Path) -> None:
    Encoder(tiny_model, device="cpu")
    with pytest.raises(InputValueError) as caught:
        Encoder(tiny_model, device="cuda")
    assert LOAD["device"][1] == f'`device="cuda"`: {caught.value}'


def test_harmless_values_change_nothing(encoder: Encoder) -> None:
    torch = pytest.importorskip("torch")
    expected = encoder.encode_query(TEXTS)
    positional = encoder.encode_query(
        TEXTS, None, None, 32, False, "sentence_embedding", "float32", True, False, "cpu", False, None, None, None
    )
    np.testing.assert_array_equal(positional, expected)
    np.testing.assert_array_equal(encoder.encode_query(TEXTS, device=torch.device("cpu")), expected)
    with pytest.raises(InputValueError, match=r"got \['cpu', 'cpu'\]"):
        encoder.encode(TEXTS, device=["cpu", "cpu"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "truncate_dim", "precision"),
    [
        *itertools.product(METHODS[1:], [None, 100], ["float32"]),  # the others are made of these
        *(("encode_query", 100, precision) for precision in ("int8", "uint8", "binary")),
        ("encode_document", None, "ubinary"),
    ],
)
def test_vectors_of_every_precision_and_dimension_are_the_same(
    forced: Encoder, peer: SentenceTransformer, method: str, truncate_dim: int | None, precision: Any
) -> None:
    arguments = {"normalize_embeddings": True, "truncate_dim": truncate_dim or 384, "precision": precision}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the ranges of")
        ours = getattr(forced, method)(TEXTS, **arguments)
    theirs = getattr(peer, method)(TEXTS, **arguments)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if precision == "float32":
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    elif precision in ("int8", "uint8"):
        assert np.abs(ours.astype(int) - theirs).max() <= 1  # float32 differs in the last digits
        assert (ours == theirs).mean() > 0.99
    else:
        bits, expected = (np.unpackbits(each.view(np.uint8)) for each in (ours, theirs))
        assert (bits == expected).mean() > 0.999


def test_an_iterable_without_a_length_has_no_length(encoder: Encoder) -> None:
    tqdm = pytest.importorskip("tqdm").tqdm
    texts = tqdm(map(str, TEXTS), disable=True)
    with pytest.raises(TypeError):
        len(texts)
    np.testing.assert_array_equal(encoder.encode_query(texts), encoder.encode_query(TEXTS))


def test_a_single_text_and_no_texts(encoder: Encoder) -> None:
    assert encoder.encode_query("text", precision="ubinary").shape == (48,)
    assert encoder.encode_query([], precision="int8").dtype == np.int8
    with pytest.raises(InputValueError, match="one vector has no range"):
        encoder.encode_query("text", precision="int8")
    with pytest.raises(InputValueError, match="got 'fp32'; what the model computes in is the `precision` of Encoder"):
        encoder.encode_query("text", precision="fp32")  # type: ignore[arg-type]


def test_similarity_pairwise(encoder: Encoder, peer: SentenceTransformer) -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 5, 384)).astype(np.float32)
    theirs = np.asarray(peer.similarity_pairwise(first, second))
    np.testing.assert_allclose(encoder.similarity_pairwise(first, second), theirs, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(first[0], second[0]), theirs[:1], atol=1e-6)
    with pytest.raises(InputValueError, match="row by row"):
        encoder.similarity_pairwise(first, second[:1])
    assert encoder.similarity_fn_name == peer.similarity_fn_name == "cosine"
    peer.similarity_fn_name = "dot"
    theirs, peer.similarity_fn_name = np.asarray(peer.similarity_pairwise(first, second)), "cosine"
    dot = Encoder(**encoder.arguments(), threads=1)
    dot.manifest = replace(dot.manifest, similarity_fn_name="dot")
    np.testing.assert_allclose(dot.similarity_pairwise(first, second), theirs, atol=1e-4)


# Shorter vectors


def test_cut_vectors_are_normalised_again_unless_they_are_not_normalised(encoder: Encoder, forced: Encoder) -> None:
    whole = encoder.encode_query(TEXTS)[:, :100]
    np.testing.assert_allclose(
        forced.encode_query(TEXTS), whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6
    )
    pooled = encoder.encode_query(TEXTS, output_value="pooled_embedding")
    np.testing.assert_array_equal(forced.encode_query(TEXTS, output_value="pooled_embedding"), pooled[:, :100])
    assert forced.encode_query(TEXTS, truncate_dim=200).shape == (len(TEXTS), 200)  # the call's counts
    assert forced.encode([]).shape == (0, 100)
    tokenized = forced.tokenizer.tokenize(TEXTS, "query: ")
    np.testing.assert_array_equal(forced.encode_tokenized(tokenized), forced.encode_query(TEXTS))
    assert forced.encode_tokenized(tokenized, truncate_dim=7).shape == (len(TEXTS), 7)


def test_a_cut_is_part_of_what_the_encoder_says_of_itself(encoder: Encoder, forced: Encoder) -> None:
    assert (encoder.truncate_dim, encoder.dimension, encoder.get_embedding_dimension()) == (None, 384, 384)
    assert (forced.truncate_dim, forced.dimension, forced.get_sentence_embedding_dimension()) == (100, 100, 100)
    assert forced.fingerprint == encoder.manifest.fingerprint("fp32", "cpu", 100) != encoder.fingerprint
    assert encoder.manifest.fingerprint("fp32", "cpu", 384) == encoder.fingerprint
    assert encoder.manifest.fingerprint("fp32", "cpu", np.int64(100)) == forced.fingerprint  # type: ignore[arg-type]
    for wrong in (True, 100.0, "100", float("nan")):
        with pytest.raises(TypeError, match="truncate_dim must be a whole number"):
            encoder.manifest.fingerprint("fp32", "cpu", wrong)  # type: ignore[arg-type]
    for outside in (0, -1, 385):
        with pytest.raises(InputValueError, match=f"truncate_dim must be from 1 to 384, got {outside}"):
            encoder.manifest.fingerprint("fp32", "cpu", outside)
    for copy in (pickle.loads(pickle.dumps(forced)), Encoder(**forced.arguments())):
        assert (copy.fingerprint, copy.encode_query("text").shape) == (forced.fingerprint, (100,))


def test_a_model_that_is_not_known_to_be_trained_for_it_is_refused(encoder: Encoder, e5_model: Path) -> None:
    for cut in (
        lambda: Encoder(e5_model, truncate_dim=128),
        lambda: encoder.encode("text", truncate_dim=128),
        lambda: encoder.encode_stream(["text"], truncate_dim=128),
    ):
        with pytest.raises(InputValueError, match=r"not known to be trained for shorter vectors.*force_truncate_dim"):
            cut()
    encoder.encode_query("text", truncate_dim=384)
    for wrong in (0, -1, 385):
        with pytest.raises(InputValueError, match=f"from 1 to 384, the dimension of this model, got {wrong}"):
            Encoder(e5_model, truncate_dim=wrong, force_truncate_dim=True)


@pytest.mark.parametrize(
    ("config", "allowed", "message"),
    [
        ({"matryoshka_dimensions": [16, 32]}, {16, 32}, "is known to be trained for 16, 32 dimensions only, so"),
        ({"is_matryoshka": True}, {16, 20, 32}, ""),
        ({"is_matryoshka": False}, set(), "is not known to be trained for shorter vectors"),
        ({"matryoshka_dimensions": None}, set(), "is not known to be trained for shorter vectors"),
    ],
)
def test_config_json_says_what_a_model_was_trained_for(
    tiny_model: Path, tmp_path: Path, config: dict[str, Any], allowed: set[int], message: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    manifest = ModelFolder.open(folder).manifest
    files = tuple(file_record(folder, "config.json") if f.file == "config.json" else f for f in manifest.files)
    (folder / MANIFEST).write_text(replace(manifest, files=files).to_json())
    loaded = Encoder(folder)
    for dimension in (16, 20, 32):
        request = {"inputs": TEXTS, "dimensions": dimension}
        if dimension in allowed:
            assert loaded.encode(TEXTS, truncate_dim=dimension).shape == (len(TEXTS), dimension)
            assert EmbedRequest.from_json(request, loaded, ServerOptions()).dimensions == dimension
        else:
            with pytest.raises(RequestError, match="not known to be trained"):
                EmbedRequest.from_json(request, loaded, ServerOptions())
            with pytest.raises(InputValueError, match=message):
                loaded.encode(TEXTS, truncate_dim=dimension)


# Async and streams


@pytest.mark.parametrize("method", METHODS)
def test_async_methods_give_the_same(encoder: Encoder, method: str) -> None:
    arguments = {"prompt": "p: "} if method == "encode" else {}
    vectors = asyncio.run(getattr(encoder, f"a{method}")(TEXTS, **arguments))
    np.testing.assert_array_equal(vectors, getattr(encoder, method)(TEXTS, **arguments))
    with pytest.raises(InputValueError, match="batch_size"):
        asyncio.run(getattr(encoder, f"a{method}")(TEXTS, batch_size=0))


def test_a_cancelled_call_ends_between_two_batches(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_model)
    run, runs = encoder._graph.run, 0

    async def cancel() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def noted(*arguments: Any) -> Any:
            nonlocal runs
            runs += 1
            loop.call_soon_threadsafe(begun.set)
            if runs == 3:
                asyncio.run_coroutine_threadsafe(cancelled(), loop).result()
            return run(*arguments)

        async def cancelled() -> None:
            task.cancel()
            await asyncio.wait([task])

        monkeypatch.setattr(encoder._graph, "run", noted)
        task = asyncio.create_task(encoder.aencode(TEXTS, batch_size=1))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())  # waits for the thread
    assert runs == 3
    monkeypatch.undo()
    assert encoder.encode(TEXTS).shape == (len(TEXTS), 48)  # another call is not cancelled


def test_a_stream_yields_vectors_in_order_as_they_are_made(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e5onnx.encoder._WINDOW", 4)
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for read, text in enumerate(TEXTS, 1):  # noqa: B007
            yield text

    vectors = []
    for vector in encoder.encode_stream(texts(), prompt_name="query"):
        vectors.append(vector)
        assert read <= (len(vectors) + 3) // 4 * 4
    np.testing.assert_allclose(vectors, encoder.encode_query(TEXTS), atol=1e-6)
    assert all(vector.base is None for vector in vectors)  # one that is kept does not keep the others
    assert next(iter(encoder.encode_stream([])), None) is None


def test_a_stream_checks_its_arguments_at_once_and_warns(encoder: Encoder, e5_model: Path) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        encoder.encode_stream("one text")
    with pytest.raises(InputValueError, match="no prompt named 'other'"):
        encoder.encode_stream(["text"], prompt_name="other")
    with pytest.raises(TypeError, match="position 1, got int"):
        list(encoder.encode_stream(["text", 3], prompt=""))  # type: ignore[list-item]
    with pytest.warns(TruncationWarning, match="1 of 2 texts") as caught:
        list(encoder.encode_stream(["text", "word " * 600], prompt=""))
    assert caught[0].filename == __file__
    for read in (
        lambda: Encoder(e5_model).encode(["text"]),
        lambda: next(iter(Encoder(e5_model).encode_stream(["text"]))),
    ):
        with pytest.warns(MissingPromptWarning) as caught:
            read()
        where = (__file__, read.__code__.co_firstlineno)
        assert [(warning.filename, warning.lineno) for warning in caught] == [where]


def test_a_stream_that_is_left_early_still_warns(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e5onnx.encoder._WINDOW", 2)
    with pytest.warns(TruncationWarning, match="1 of 2 texts") as caught:
        dict(zip([1, 2], encoder.encode_stream(["text", "word " * 600, "not read"], prompt=""), strict=False))
    assert caught[0].filename == __file__
