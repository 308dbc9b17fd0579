"""Settings of sentence-transformers that the export honours, against sentence-transformers; and those of tokenizers."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from checkpoints import TINY, make_checkpoint
from e5onnx import Encoder
from e5onnx.errors import CheckpointError
from e5onnx_export import export_model as export_both
from helpers import near, write_json
from texts import TEXTS

export_model = partial(export_both, precisions=["fp32"])
MODULES = ("Transformer", "Pooling", "Normalize")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "c", **TINY, modules=MODULES, max_seq_length=300)


def peer(checkpoint: Path) -> SentenceTransformer:
    return SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**content, **values})


@pytest.mark.parametrize("modules", [MODULES, MODULES[:2]], ids=["normalised", "of any length"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_cut_as_truncate_dim_says(tmp_path: Path, modules: tuple[str, ...], pooling: str) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "c", **TINY, modules=modules, pooling={"embedding_dimension": 48, "pooling_mode": pooling}
    )
    write_json(checkpoint / "config_sentence_transformers.json", {"truncate_dim": 16})
    said: list[str] = []
    model = export_both(checkpoint, tmp_path / "m", precisions=["fp32"], portable=True, report=said.append)
    assert model.manifest.dimension == 16
    assert "  dimension  16 (config_sentence_transformers.json)" in said
    encoder, expected = Encoder(model.path), peer(checkpoint)
    assert encoder.encode("").shape == (16,)
    unit = expected.encode(TEXTS, normalize_embeddings=True)
    assert unit.shape == (len(TEXTS), 16)
    near(encoder.encode(TEXTS, normalize_embeddings=True), unit)
    portable = Encoder(model.path, provider="openvino", precision="fp32")
    near(portable.encode(TEXTS, normalize_embeddings=True), unit)
    if len(modules) == 2:
        near(encoder.encode(TEXTS), expected.encode(TEXTS))
    else:  # sentence-transformers cuts after its Normalize module, and leaves vectors that are shorter than 1
        near(encoder.encode(TEXTS), unit)
        assert np.linalg.norm(expected.encode(TEXTS), axis=1).max() < 0.99


def test_int8_is_cut_too(tmp_path: Path, checkpoint: Path) -> None:
    write_json(checkpoint / "config_sentence_transformers.json", {"truncate_dim": 16})
    model = export_both(checkpoint, tmp_path / "m").path
    found, expected = (Encoder(model, precision=precision).encode(TEXTS) for precision in ("int8", "fp32"))
    assert found.shape == (len(TEXTS), 16)
    assert np.einsum("ij,ij->i", found, expected).min() > 0.98


@pytest.mark.parametrize("lowercase", [False, True])
def test_tokenizer_arguments_are_given_to_the_tokenizer(tmp_path: Path, checkpoint: Path, lowercase: bool) -> None:
    arguments = {"do_lower_case": lowercase, "strip_accents": not lowercase, "model_max_length": 200}
    write_json(checkpoint / "sentence_bert_config.json", {"tokenizer_args": arguments})
    model = export_model(checkpoint, tmp_path / "m").path
    encoder, expected = Encoder(model), peer(checkpoint)
    assert encoder.max_tokens == expected.max_seq_length == 200
    texts = [*TEXTS, "ÀÉÎ Quick BROWN Fox " * 3]
    near(encoder.encode(texts), expected.encode(texts))
    assert np.array_equal(encoder.encode("The Fox"), encoder.encode("the fox")) is lowercase
    with pytest.warns(UserWarning, match="cut [0-9]+ of"):
        near(encoder.encode("long " * 300), expected.encode("long " * 300))


def test_a_maximum_beyond_the_positions_is_that_of_the_positions(tmp_path: Path, checkpoint: Path) -> None:
    change(checkpoint / "sentence_bert_config.json", max_seq_length=2000)
    change(checkpoint / "tokenizer_config.json", model_max_length=64)  # which sentence-transformers overrides
    encoder = Encoder(export_model(checkpoint, tmp_path / "m").path)
    assert encoder.max_tokens == 512
    text = "long " * 400
    near(encoder.encode(text), peer(checkpoint).encode(text))


def test_similarity_and_empty_prompts_are_kept(tmp_path: Path, checkpoint: Path) -> None:
    saved = tmp_path / "saved"
    SentenceTransformer(str(checkpoint), device="cpu", similarity_fn_name="dot").save(str(saved))
    model = export_model(saved, tmp_path / "m")
    assert model.manifest.similarity_fn_name == "dot"
    encoder, expected = Encoder(model.path), peer(saved)
    assert encoder.prompts == expected.prompts == {"query": "", "document": ""}
    near(encoder.encode_query(TEXTS), expected.encode_query(TEXTS))
    near(encoder.encode(TEXTS, prompt_name="query"), expected.encode(TEXTS, prompt_name="query"))


def test_a_default_prompt_is_kept(tmp_path: Path, checkpoint: Path) -> None:
    st = {"prompts": {"query": "q: ", "document": None}, "default_prompt_name": "query"}
    write_json(checkpoint / "config_sentence_transformers.json", st)
    encoder, expected = Encoder(export_model(checkpoint, tmp_path / "m").path), peer(checkpoint)
    near(encoder.encode(TEXTS), expected.encode(TEXTS))
    near(encoder.encode_document(TEXTS), expected.encode_document(TEXTS))


# Tokenizers


def test_sides_are_refused_wherever_they_are_named(tmp_path: Path, checkpoint: Path) -> None:
    plain = shutil.copytree(checkpoint, tmp_path / "truncation")
    content = json.loads((plain / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Left", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    write_json(plain / "tokenizer.json", content)
    change(checkpoint / "tokenizer_config.json", padding_side="left")
    for source, named in [(plain, "truncates on the left"), (checkpoint, "padding_side is 'left'")]:
        with pytest.raises(CheckpointError, match=f"{named}; only 'right' is supported"):
            export_model(source, tmp_path / "out/model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"chat_template": "{{ messages[0].content }}"}, "chat template"),
        ({"model_input_names": ["input_ids"]}, "lacks attention_mask"),
        ({"model_input_names": False}, "model_input_names cannot be False"),
    ],
)
def test_what_the_runtime_does_not_do_is_refused(
    tmp_path: Path, checkpoint: Path, setting: dict[str, Any], named: str
) -> None:
    change(checkpoint / "tokenizer_config.json", **setting)
    with pytest.raises(CheckpointError, match=named):
        export_model(checkpoint, tmp_path / "m")


def test_special_tokens_that_are_to_be_split_are_noticed(tmp_path: Path, checkpoint: Path) -> None:
    change(checkpoint / "tokenizer_config.json", split_special_tokens=True)  # which tokenizer.json cannot say
    with pytest.raises(CheckpointError, match="splits special tokens"):
        export_model(checkpoint, tmp_path / "m")


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **TINY, vocab_size=30000)
    with pytest.raises(CheckpointError, match=r"token ids up to 30521, but the encoder has only 30000 \(vocab_size"):
        export_model(checkpoint, tmp_path / "m")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"model": {"type": "WordPiece"}}', b"\xff"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, checkpoint: Path, content: bytes) -> None:
    (checkpoint / "tokenizer.json").write_bytes(content)
    (checkpoint / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=f"the tokenizer in {checkpoint} cannot be loaded"):
        export_model(checkpoint, tmp_path / "m")
